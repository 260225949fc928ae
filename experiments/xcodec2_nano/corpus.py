"""Recorded speech to train a codec on, and what it is judged by: three folder corpora of 16 kHz FLAC.

    FOLDER/train           all voices but one, without the held-out sentences; transcripts where there are any
    FOLDER/heldout_it      Italian sentences that are in no training, of a voice that is
    FOLDER/heldout_voice   sentences of a voice that is in no training at all
    FOLDER/heldout.txt     the ids of heldout_it;  heldout_speaker.txt: that voice
    FOLDER/sources.json    minutes, band, licence and origin of each source

The speech comes in Debian's packages (``SOURCES``): apt downloads them into a folder beside FOLDER. Nothing is
installed, root is not needed, and none of it enters the repository. The same packages give the same bytes.

Each row says its licence. ``--gpl`` adds what is under the GPL: weights that were trained on it can then be published
under the GPL (version 3) alone, without it under CC-BY-SA 4.0 (README.md).

    python experiments/xcodec2_nano/corpus.py FOLDER [--gpl] [--packages FOLDER]

Needs PyAV, which faster-whisper (requirements/eval.txt) brings: libsndfile knows no G.722.
Cost: 230 MB of downloads and 40 s on one core; with ``--gpl`` 480 MB and 3 minutes.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.demo.recorded_italian import apt, decode_g722
from llasa.audio import read_audio
from llasa.errors import RejectedRow, UserError
from llasa.pictures import spectrogram

SAMPLE_RATE = 16_000
CORPORA = ("train", "heldout_it", "heldout_voice")
SOURCES_FILE = "sources.json"
HELDOUT_SENTENCES, HELDOUT_VOICE = "asterisk-it", "asterisk-ru"
"""Sources. The voice's language is heard in training from another voice; Whisper base reads it at a CER of 0.03."""

NUM_HELDOUT, MIN_HELDOUT_WORDS = 30, 4
HELDOUT_SECONDS = (1.5, 12.0)
SHORTEST_SECONDS = 0.2
QUIETEST_PEAK = 0.01
"""Of full scale: below it a file is a pause."""


@dataclass(frozen=True)
class Recording:
    id: str
    file: Path
    text: str
    """What is said, where that is known word for word; else empty."""
    speaker: str
    language: str


@dataclass(frozen=True)
class Source:
    """Recordings of one origin and licence, in Debian packages that unpack into one folder."""

    name: str
    packages: tuple[str, ...]
    licence: str
    """SPDX's name, or for a text of its own `LicenseRef-` and the package; README.md tells what each asks."""
    gpl: bool
    find: Callable[[Path], Iterator[Recording]]


NO_SPEECH = (
    "ascending-2tone",
    "beep",
    "beeperr",
    "confbridge-join",
    "confbridge-leave",
    "descending-2tone",
    "tt-monkeys",
)


def asterisk(language: str, speaker: str) -> Callable[[Path], Iterator[Recording]]:
    """Telephone prompts, G.722 at 16 kHz: sentences and parts of them, numbers, letters."""

    def find(root: Path) -> Iterator[Recording]:
        folder = next((root / "usr/share/asterisk/sounds").glob(f"{language}_*"))
        name = f"asterisk-core-sounds-{language}/core-sounds-{language}.txt.gz"
        texts = asterisk_texts(gzip.decompress((root / "usr/share/doc" / name).read_bytes()).decode("utf-8-sig"))
        for file in folder.rglob("*.g722"):
            key = file.relative_to(folder).with_suffix("").as_posix()
            if key not in NO_SPEECH and not key.startswith("silence/"):
                yield Recording(key.replace("/", "-"), file, texts.get(key, ""), speaker, language)

    return find


def asterisk_texts(listing: str) -> dict[str, str]:
    """Prompt → what is said, of lines `key: text`; not with remarks, `...`, or `?` where an accent was lost."""
    lines = (line.partition(":") for line in listing.splitlines() if not line.startswith(";"))
    found = {key.strip(): text.strip() for key, _, text in lines}
    # A key inside a text: the end of its line was lost, and the next prompt's follows.
    return {key: text for key, text in found.items() if text and not re.search(r"[][()?…\"]|\.\.|\w-\w+: ", text)}


def festvox_ru(root: Path) -> Iterator[Recording]:
    """Sentences of a novel, read by a man; `+` marks a stress in their texts."""
    voice = root / "usr/share/festival/voices/russian/msu_ru_nsh_clunits"
    for line in (voice / "etc/txt.done.data").read_text(encoding="utf-8").splitlines():
        name, text = re.fullmatch(r'\( (\w+) "(.*)" \)', line).groups()
        yield Recording(name, voice / f"wav/{name}.wav", text.replace("+", ""), "festvox-ru", "ru")


def tuxpaint(root: Path) -> Iterator[Recording]:
    """Names of pictures in twelve languages, read by volunteers."""
    stamps = root / "usr/share/tuxpaint/stamps"
    for file in stamps.rglob("*_desc_*.ogg"):
        name, _, language = file.relative_to(stamps).with_suffix("").as_posix().rpartition("_desc_")
        if language.isalpha():
            yield spoken_word(name, file, language, "tuxpaint")


def klettres(root: Path) -> Iterator[Recording]:
    """Letters and syllables in 20 languages."""
    folder = root / "usr/share/klettres"
    for file in folder.glob("*/*/*.ogg"):
        yield spoken_word(f"{file.parent.name}/{file.stem}", file, file.relative_to(folder).parts[0], "klettres")


def ktuberling(root: Path) -> Iterator[Recording]:
    """Words for things in 23 languages."""
    folder = root / "usr/share/ktuberling/sounds"
    for file in (file for suffix in ("ogg", "wav", "opus") for file in folder.glob(f"*/*.{suffix}")):
        yield spoken_word(file.stem, file, file.parent.name, "ktuberling")


def spoken_word(name: str, file: Path, language: str, source: str) -> Recording:
    """Who speaks is not said: the language stands for the voice."""
    return Recording(f"{language}-{name.replace('/', '-')}", file, "", f"{source}-{language}", language)


ASTERISK = {
    "it": ("Carlo Flora", "CC-BY-3.0"),
    "fr": ("June Wallack", "CC-BY-SA-3.0"),
    "es": ("Allison Smith", "CC-BY-SA-3.0"),
    "en": ("Allison Smith", "CC-BY-SA-3.0"),
    "ru": ("IvrvoiceRU", "CC-BY-3.0"),
}

SOURCES = [
    *(
        Source(
            name=f"asterisk-{language}",
            packages=(f"asterisk-core-sounds-{language}", f"asterisk-core-sounds-{language}-g722"),
            licence=licence,
            gpl=False,
            find=asterisk(language, speaker),
        )
        for language, (speaker, licence) in ASTERISK.items()
    ),
    Source("festvox-ru", ("festvox-ru",), "LicenseRef-festvox-ru", False, festvox_ru),
    Source("tuxpaint", ("tuxpaint-stamps-default",), "GPL-2.0-or-later", True, tuxpaint),
    Source("klettres", ("klettres-data",), "GPL-2.0-or-later", True, klettres),
    Source("ktuberling", ("ktuberling-data",), "GPL-2.0-or-later", True, ktuberling),
]


# --- packages ---------------------------------------------------------------------------------------------------------


def unpack(packages: tuple[str, ...], folder: Path) -> Path:
    """The folder into which these Debian packages are unpacked; apt downloads them the first time.

    Raises:
        UserError: apt cannot be run, or does not have them.
    """
    root = folder / "files" / packages[-1]
    if root.is_dir():
        return root
    folder.mkdir(parents=True, exist_ok=True)
    if not apt("download", *packages, folder=folder):
        lists = folder / "lists"
        (lists / "partial").mkdir(parents=True, exist_ok=True)
        own = ["-o", f"Dir::State::lists={lists.resolve()}"]
        if not (apt(*own, "update", folder=folder) and apt(*own, "download", *packages, folder=folder)):
            raise UserError(f"apt does not have {' '.join(packages)}", remedy="use a Debian, and run apt-get update")
    unpacked = root.with_name(f"{root.name}.tmp")
    unpacked.mkdir(parents=True, exist_ok=True)
    for package in packages:
        for archive in folder.glob(f"{package}_*.deb"):
            subprocess.run(["dpkg-deb", "-x", str(archive), str(unpacked)], check=True)
    unpacked.rename(root)
    return root


# --- sound ------------------------------------------------------------------------------------------------------------


def read(file: Path) -> np.ndarray:
    """float32 [samples] at 16 kHz, of any format that libsndfile knows, or raw G.722.

    Raises:
        RejectedRow: as ``read_audio``.
    """
    if file.suffix != ".g722":
        return read_audio(file, SAMPLE_RATE)
    waveform = decode_g722(file)
    if len(waveform) == 0:
        raise RejectedRow("empty_audio", "no samples")
    return waveform


def band_levels(waveforms: list[np.ndarray]) -> dict[str, float]:
    """How much of the band is there, over the frames of 32 ms within 30 dB of their clip's loudest.

    ``above_4khz_db``: power above 4 kHz, relative to all; ``bandwidth_hz``: where the mean spectrum, of clips of equal
    weight, is last within 45 dB of its peak.
    """
    spectrum = np.zeros(257)
    for waveform in waveforms:
        power = spectrogram(waveform, 512, 256).astype(np.float64)
        loudness = power.sum(axis=1)
        power = power[loudness > loudness.max() * 1e-3].sum(axis=0)
        spectrum += power / max(power.sum(), 1e-12)
    decibels = 10 * np.log10(spectrum / spectrum.max() + 1e-12)
    return {
        "above_4khz_db": round(float(10 * np.log10(spectrum[128:].sum() / spectrum.sum() + 1e-12)), 1),
        "bandwidth_hz": int(np.flatnonzero(decibels > -45).max() * SAMPLE_RATE / 512),
    }


# --- corpus -----------------------------------------------------------------------------------------------------------


def hash_order(recording: Recording) -> str:
    return hashlib.sha256(recording.id.encode()).hexdigest()


def choose(clips: list[tuple[Recording, np.ndarray]]) -> list[Recording]:
    """``NUM_HELDOUT`` whole sentences, by a hash of their ids; each text once. There are that many."""
    chosen: dict[str, Recording] = {}
    low, high = (round(seconds * SAMPLE_RATE) for seconds in HELDOUT_SECONDS)
    for recording, waveform in sorted(clips, key=lambda clip: hash_order(clip[0])):
        whole = len(recording.text.split()) >= MIN_HELDOUT_WORDS and not re.search(r"\d", recording.text)
        if whole and low <= len(waveform) <= high and len(chosen) < NUM_HELDOUT:
            chosen.setdefault(plain(recording.text), recording)
    assert len(chosen) == NUM_HELDOUT, len(chosen)
    return list(chosen.values())


def plain(text: str) -> str:
    return " ".join(re.sub(r"[\W_]+", " ", text.casefold()).split())


class CorpusFolder:
    """`metadata.jsonl` and the clips below it, as :class:`llasa.corpus.folder.FolderSource` reads them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ids: list[str] = []
        self._lines: list[str] = []

    def add(self, source: Source, recording: Recording, waveform: np.ndarray) -> None:
        import soundfile

        file = self.folder / source.name / f"{recording.id}.flac"
        file.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(file, np.clip(waveform, -1, 1), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        fields = {
            "file_name": file.relative_to(self.folder).as_posix(),
            "text": recording.text,
            "speaker": recording.speaker,
            "language": recording.language,
            "seconds": round(len(waveform) / SAMPLE_RATE, 3),
            "id": f"{source.name}/{recording.id}",
            "source": source.packages[-1],
            "licence": source.licence,
        }
        self.ids.append(fields["id"])
        self._lines.append(json.dumps(fields, ensure_ascii=False) + "\n")

    def close(self) -> None:
        (self.folder / "metadata.jsonl").write_text("".join(self._lines), encoding="utf-8")


def speech(source: Source, root: Path) -> tuple[list[tuple[Recording, np.ndarray]], Counter[str]]:
    """The clips of a source by their ids, each sound once, and how many were left out for what."""
    clips, left_out, seen = [], Counter(), set()
    for recording in sorted(source.find(root), key=lambda recording: recording.id):
        try:
            waveform = read(recording.file)
        except RejectedRow as error:
            left_out[error.reason] += 1
            continue
        digest = hashlib.sha256(waveform.tobytes()).digest()
        if digest in seen:
            left_out["twice"] += 1
        elif len(waveform) < SHORTEST_SECONDS * SAMPLE_RATE or np.abs(waveform).max() < QUIETEST_PEAK:
            left_out["short or silent"] += 1
        else:
            seen.add(digest)
            clips.append((recording, waveform))
    return clips, left_out


def write_corpus(folder: Path, packages: Path, sources: list[Source]) -> list[dict[str, Any]]:
    """Write all of it. Returns what `sources.json` says of each source."""
    train, italian, voice = (CorpusFolder(folder / name) for name in CORPORA)
    facts = []
    for source in sources:
        clips, left_out = speech(source, unpack(source.packages, packages))
        target = {HELDOUT_SENTENCES: italian, HELDOUT_VOICE: voice}.get(source.name)
        heldout = {recording.id: plain(recording.text) for recording in (choose(clips) if target else [])}
        for recording, waveform in clips:
            if target and recording.id in heldout:
                target.add(source, recording, waveform)
            # Nor is another take of a held-out sentence by the same voice trained on.
            elif source.name != HELDOUT_VOICE and plain(recording.text) not in heldout.values():
                train.add(source, recording, waveform)
        facts.append(
            {
                "source": source.name,
                "packages": source.packages,
                "licence": source.licence,
                "languages": sorted({recording.language for recording, _ in clips}),
                "speakers": sorted({recording.speaker for recording, _ in clips}),
                "clips": len(clips),
                "with_text": sum(bool(recording.text) for recording, _ in clips),
                "minutes": round(sum(len(waveform) for _, waveform in clips) / SAMPLE_RATE / 60, 1),
                "left_out": dict(sorted(left_out.items())),
                **band_levels([waveform for _, waveform in clips]),
            }
        )
        print(json.dumps(facts[-1], ensure_ascii=False), flush=True)
    for corpus in (train, italian, voice):
        corpus.close()
    (folder / "heldout.txt").write_text("".join(f"{name}\n" for name in italian.ids), encoding="utf-8")
    (folder / "heldout_speaker.txt").write_text(f"{ASTERISK['ru'][0]}\n", encoding="utf-8")
    (folder / SOURCES_FILE).write_text(json.dumps(facts, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gpl", action="store_true", help="also what is under the GPL; decides the weights' licence")
    parser.add_argument("--packages", type=Path, help="where the packages are kept (default: beside FOLDER)")
    arguments = parser.parse_args()
    folder = arguments.folder
    try:
        if folder.is_dir() and any(folder.iterdir()):
            if not (folder / SOURCES_FILE).is_file():
                raise UserError(f"{folder} is not empty and no corpus of this script", remedy="name another folder")
            for name in CORPORA:
                shutil.rmtree(folder / name, ignore_errors=True)
        sources = [source for source in SOURCES if arguments.gpl or not source.gpl]
        facts = write_corpus(folder, arguments.packages or folder.parent / "packages", sources)
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"{sum(fact['minutes'] for fact in facts):.0f} minutes in {folder}")


if __name__ == "__main__":
    main()
