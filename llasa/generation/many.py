"""A file of a thousand lines, spoken into a folder; what is there already is not spoken again.

    texts ─sorted by length, cut into batches─► Requests ─generate_with_retries─► codec ─► FOLDER/NN.wav, NN.txt
                                                                                           FOLDER/manifest.jsonl

A batch is in memory at a time; its files are written when it is done, each whole or not at all, then its lines of the
manifest. So a killed run has lost a batch, and the next one goes on. The batches are those of the whole list, also
where only some of their lines are missing: neighbours can change the last bit of a logit, and a list that was killed
must sound like one that was not. A line's seed is the list's: a sentence sounds the same wherever it stands.

    {"number": 7, "file": "07.wav", "text": …, "spoken": …, "language": "it", "seed": …, "tries": 1, "seconds": 2.48,
     "num_codes": 496, "finish_reason": "stop", "made_with": "5f0c…"}
    {"number": 8, "text": "😀", "rejected": "text='😀' has nothing to say; …"}

While a run goes on, lines are added in the order in which they are spoken; at its end they stand in the list's.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import soundfile
from tqdm import tqdm

from llasa.audio import write_wav
from llasa.config import SamplingConfig
from llasa.errors import UserError
from llasa.generation.engine import Request
from llasa.generation.retries import TriedCodes, generate_with_retries
from llasa.generation.synthesizer import Manner, Synthesizer
from llasa.generation.voices import Voice
from llasa.provenance import write_atomically
from llasa.text import spoken_form
from llasa.types import Speech

MANIFEST = "manifest.jsonl"


@dataclass(frozen=True)
class Line:
    """A line of the list: its number, from 1, the name of its WAV, the text as given and as it is read."""

    number: int
    file: str
    text: str
    spoken: str


def speak_many(
    synthesizer: Synthesizer,
    texts: Sequence[str],
    folder: Path,
    sampling: SamplingConfig,
    *,
    voice: Voice | None = None,
    seed: int = 0,
    speaker: str | None = None,
    made_with: Mapping[str, Any] | None = None,
    heard: Callable[[int, Speech], None] | None = None,
) -> list[dict[str, Any]]:
    """Speak every text into ``folder``; a line that cannot be spoken does not keep the others from it.

    Args:
        texts: of each line, none empty.
        made_with: what decides the speech besides the other arguments, as JSON: the checkpoint's fingerprint, the
            codec's and the engine. Lines made with something else are spoken again.
        heard: gets the number and the speech of each line that is spoken now.

    Returns:
        The manifest, a record for each line in order.

    Raises:
        UserError: at the end, if lines could not be spoken; at once, if the folder cannot be written, or holds other
            files.
    """
    job = _Job(synthesizer, sampling, {"voice": voice, "seed": seed, "speaker": speaker})
    key = job.key(made_with or {})
    lines = number_lines(texts, synthesizer.language)
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / MANIFEST).is_file() and any(folder.iterdir()):
            raise UserError(f"{folder} holds other files and no speech of a list", remedy="choose another output=")
        _remove_parts(folder, lines)
        records = _known(folder, lines, key)
        _write_manifest(folder, records)
    if records:
        print(f"{folder}: {len(records):,} of {len(lines):,} lines are there already")
    started, seconds = time.perf_counter(), 0.0
    with (
        _without_own_bar(synthesizer),
        tqdm(total=len(lines), initial=len(records), unit=" lines", desc="speaking", disable=None) as bar,
    ):
        for batch in batches(lines, synthesizer.engine.batch_size):
            missing = {line.number for line in batch} - records.keys()
            if not missing:
                continue
            new = {}
            for line, outcome in job.speak(batch, missing):
                if isinstance(outcome, str):
                    new[line.number] = {"number": line.number, "text": line.text, "rejected": outcome}
                    continue
                tried, speech = outcome
                with _writing(folder):
                    _write_line(folder, line, speech)
                new[line.number] = _record(line, tried, speech, synthesizer.language, key)
                seconds += speech.seconds
                if heard is not None:
                    heard(line.number, speech)
            with _writing(folder):
                _add_to_manifest(folder, new)
            records |= new
            bar.update(len(missing))
    with _writing(folder):
        _write_manifest(folder, records)
    ordered = [records[line.number] for line in lines]
    _tell(folder, ordered, seconds, time.perf_counter() - started)
    rejected = [record for record in ordered if "rejected" in record]
    if rejected:
        raise UserError(
            f"{len(rejected):,} of {len(lines):,} lines could not be spoken; line {rejected[0]['number']}: "
            f"{rejected[0]['rejected']}",
            remedy=f"all are named in {folder / MANIFEST}",
        )
    return ordered


def number_lines(texts: Sequence[str], language: str) -> list[Line]:
    """01.wav, 02.wav, … with as many digits as the last number has."""
    width = max(2, len(str(len(texts))))
    return [
        Line(number, f"{number:0{width}d}.wav", text, spoken_form(text, language))
        for number, text in enumerate(texts, 1)
    ]


def batches(lines: Sequence[Line], size: int) -> Iterator[list[Line]]:
    """Neighbours in length; the longest first, so that a lack of memory shows at once."""
    ordered = sorted(lines, key=lambda line: (-len(line.spoken), line.number))
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


@dataclass(frozen=True)
class _Job:
    """What is the same for all lines."""

    synthesizer: Synthesizer
    sampling: SamplingConfig
    chosen: Manner
    """Voice, seed and speaker."""

    def key(self, made_with: Mapping[str, Any]) -> str:
        """What tells speech made this way from speech made in any other."""
        voice = self.chosen["voice"]
        facts = {
            **self.chosen,
            "voice": voice and [voice.text, hashlib.sha256(voice.codes.astype("<u4").tobytes()).hexdigest()],
            "language": self.synthesizer.language,
            "sampling": asdict(self.sampling),
            "made_with": dict(made_with),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def speak(self, batch: Sequence[Line], missing: set[int]) -> Iterator[tuple[Line, tuple[TriedCodes, Speech] | str]]:
        """The missing lines of a batch: their speech, or why there is none."""
        requests: list[Request] = []
        spoken: list[Line] = []
        for line in batch:
            try:
                requests.append(self.synthesizer.request(line.text, self.sampling, **self.chosen))
                spoken.append(line)
            except UserError as error:
                if line.number in missing:
                    yield line, str(error)
        if missing.isdisjoint(line.number for line in spoken):
            return
        generated = generate_with_retries(self.synthesizer.engine, self.synthesizer.speech, requests, self.sampling)
        wanted = [(line, codes) for line, codes in zip(spoken, generated, strict=True) if line.number in missing]
        for (line, codes), speech in zip(wanted, self.synthesizer.decode([codes for _, codes in wanted]), strict=True):
            yield line, (codes, speech)


def _record(line: Line, tried: TriedCodes, speech: Speech, language: str, key: str) -> dict[str, Any]:
    return {
        "number": line.number,
        "file": line.file,
        "text": line.text,
        "spoken": line.spoken,
        "language": language,
        "seed": tried.seed,
        "tries": tried.tries,
        "seconds": round(speech.seconds, 3),
        "num_codes": len(speech.codes),
        "finish_reason": speech.finish_reason,
        "made_with": key,
    }


def read_manifest(folder: Path) -> list[dict[str, Any]]:
    """The records of a folder, also of one that is being spoken or was killed: a last line in part is left out."""
    path = folder / MANIFEST
    if not path.is_file():
        return []
    records = []
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("number"), int):
            records.append(record)
    return records


def _known(folder: Path, lines: Sequence[Line], key: str) -> dict[int, dict[str, Any]]:
    """The records, by number, of the lines whose files are there and were made from this text in this way."""
    wanted = {line.number: line for line in lines}
    known = {}
    for record in read_manifest(folder):
        line = wanted.get(record["number"])
        if (
            line is not None
            and (record.get("file"), record.get("text"), record.get("made_with")) == (line.file, line.text, key)
            and _is_whole(folder / line.file, record.get("seconds", -1.0))
            and (folder / line.file).with_suffix(".txt").is_file()
        ):
            known[line.number] = record
    return known


def _is_whole(path: Path, seconds: float) -> bool:
    """Whether a WAV is there and as long as its record says."""
    try:
        return abs(soundfile.info(path).duration - seconds) < 0.001
    except (OSError, soundfile.SoundFileError):
        return False


def _remove_parts(folder: Path, lines: Sequence[Line]) -> None:
    """Remove what a killed run wrote under a temporary name."""
    stems = {Path(line.file).stem for line in lines} | {Path(MANIFEST).stem}
    for path in folder.glob(".*.tmp"):
        if path.name.split(".")[1] in stems:
            path.unlink(missing_ok=True)


def _write_line(folder: Path, line: Line, speech: Speech) -> None:
    path = folder / line.file
    write_atomically(path.with_suffix(".txt"), f"{line.text}\n".encode())
    write_wav(path, speech.waveform, speech.sample_rate)


def _json_lines(records: Mapping[int, dict[str, Any]]) -> bytes:
    return "".join(json.dumps(records[number], ensure_ascii=False) + "\n" for number in sorted(records)).encode()


def _add_to_manifest(folder: Path, records: Mapping[int, dict[str, Any]]) -> None:
    with open(folder / MANIFEST, "ab") as manifest:
        manifest.write(_json_lines(records))


def _write_manifest(folder: Path, records: Mapping[int, dict[str, Any]]) -> None:
    """The whole of it, in order of the lines; also frees it of what a killed run wrote in part."""
    write_atomically(folder / MANIFEST, _json_lines(records))


def _tell(folder: Path, records: Sequence[dict[str, Any]], seconds: float, elapsed: float) -> None:
    """What a person wants to know in the end."""
    if seconds:
        print(f"{folder}: {seconds:.1f} s of speech in {elapsed:.1f} s, {seconds / elapsed:.2g} times real time")
    for reason, count in Counter(record.get("finish_reason") for record in records).items():
        if reason in ("length", "loop"):
            numbers = [str(record["number"]) for record in records if record.get("finish_reason") == reason]
            why = "were cut at the length limit" if reason == "length" else "only repeated themselves and were cut"
            print(f"{folder}: {count:,} lines {why}: {_some(numbers)}")
    files = {record.get("file") for record in records}
    left = sorted(path.name for path in folder.glob("*.wav") if path.stem.isdigit() and path.name not in files)
    if left:
        print(f"{folder}: {len(left):,} files of another list are left there: {_some(left)}")


def _some(names: Sequence[str], count: int = 10) -> str:
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")


@contextmanager
def _without_own_bar(synthesizer: Synthesizer) -> Iterator[None]:
    """One bar is enough."""
    before, synthesizer.engine.progress = synthesizer.engine.progress, False
    try:
        yield
    finally:
        synthesizer.engine.progress = before


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Errors of the disk as a mistake of the user: a full one, a folder that is a file."""
    try:
        yield
    except (OSError, soundfile.SoundFileError) as error:
        raise UserError(f"cannot write to output={folder}: {error}", remedy="choose another output=") from None
