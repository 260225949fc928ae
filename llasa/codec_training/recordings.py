"""A corpus as samples on disk: decoded once, and then read as if it were in memory.

    source ─rows─► decode threads ─checks, mono, resample─► int16 ─► FOLDER/samples.i16, index.json

Every row of the corpus is taken whose sound the filters let pass; transcripts are not looked at. A corpus that comes
as a stream is read until `recordings.max_hours` are there. The files appear when they are whole.

Cost: 115 MB an hour on disk, and the time to decode (an hour of MP3 takes a core some 2 s, of WAV 0.3 s). Memory: the
page cache's.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from llasa.audio import MAX_SECONDS, decode_audio, resample
from llasa.config import FiltersConfig
from llasa.corpus.filters import check_length, check_level, check_measures, clipped_share
from llasa.corpus.sources import EncodedRow, Fetch, Source
from llasa.errors import RejectedRow, UserError
from llasa.provenance import write_json

SAMPLES, INDEX = "samples.i16", "index.json"
FORMAT = 1
SCALE = 32768.0
HELDOUT_SPLITS = ("validation", "test")
HELDOUT_HOURS = 1.0
"""Taken of a split that a corpus has to measure on."""
READ_AHEAD = 64
"""Rows that are decoded, or about to be, ahead of the file."""
TEXT_FILTERS = ("characters_per_second", "duplicates", "max_foreign_letters")
"""Not looked at here."""


@dataclass(frozen=True, slots=True)
class Recording:
    """``length`` samples from ``start`` on."""

    id: str
    speaker: str
    language: str
    split: str
    start: int
    length: int


@dataclass(frozen=True)
class Recordings:
    """``samples`` int16 [all samples] of all ``rows``, one after the other, at ``sample_rate`` Hz."""

    samples: np.ndarray
    rows: list[Recording]
    sample_rate: int
    facts: dict[str, Any]
    """What they are of: the source's description, the filters, counts of what was left out."""

    def waveform(self, row: Recording, start: int = 0, length: int | None = None) -> np.ndarray:
        """float32 [length], in [-1, 1]; none = to the recording's end."""
        stop = row.length if length is None else min(row.length, start + length)
        return self.samples[row.start + start : row.start + stop].astype(np.float32) / SCALE

    def hours(self) -> float:
        return sum(row.length for row in self.rows) / self.sample_rate / 3600

    def describe(self) -> str:
        """What they are and what was left out, in a line."""
        speakers = {row.speaker for row in self.rows if row.speaker}
        languages = sorted({row.language for row in self.rows if row.language})
        parts = [f"{len(self.rows):,} recordings, {self.hours():,.2f} h"]
        parts += [f"{len(speakers):,} speakers"] if speakers else []
        parts += [", ".join(languages)] if languages else []
        left_out = ", ".join(f"{count:,} {reason}" for reason, count in self.facts["left_out"].items())
        return "; ".join([*parts, *([f"left out: {left_out}"] if left_out else [])])


def open_recordings(folder: Path) -> Recordings | None:
    """What is in a folder; none where nothing whole is."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        rows = [Recording(**row) for row in index["rows"]]
        size = (folder / SAMPLES).stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if index["facts"]["format"] != FORMAT or size != 2 * sum(row.length for row in rows):
        return None
    samples = np.memmap(folder / SAMPLES, dtype="<i2", mode="r")
    return Recordings(samples, rows, index["facts"]["sample_rate"], index["facts"])


def make_recordings(
    folder: Path, source: Source, filters: FiltersConfig, max_hours: float, sample_rate: int
) -> Recordings:
    """Decode a corpus into ``folder``. What lies there already is taken, if it is the same.

    Raises:
        UserError: no row can be used, or the folder holds another corpus.
    """
    facts = {
        "format": FORMAT,
        "sample_rate": sample_rate,
        "source": source.describe(),
        "filters": {key: value for key, value in asdict(filters).items() if key not in TEXT_FILTERS},
        "max_hours": max_hours,
    }
    facts = json.loads(json.dumps(facts))
    if (known := open_recordings(folder)) is not None:
        if {key: known.facts.get(key) for key in facts} == facts:
            return known
        raise UserError(
            f"recordings.folder={folder} holds other recordings (another corpus, filters or max_hours)",
            remedy="name another folder, or remove it",
        )
    partial_folder = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial_folder, ignore_errors=True)
    partial_folder.mkdir(parents=True)
    try:
        rows, left_out, examples = decode_all(partial_folder / SAMPLES, source, filters, max_hours, sample_rate)
        if not any(row.split == "train" for row in rows):
            raise UserError(
                f"no recording of {facts['source'].get('name', 'the corpus')} can be used ({in_words(left_out)})",
                remedy=f"e.g. {examples[0]}" if examples else "check dataset.path",
            )
        facts["left_out"] = dict(left_out.most_common())
        write_json(partial_folder / INDEX, {"facts": facts, "rows": [asdict(row) for row in rows]})
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed, or damaged
        os.replace(partial_folder, folder)
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)
    made = open_recordings(folder)
    assert made is not None
    return made


def decode_all(
    path: Path, source: Source, filters: FiltersConfig, max_hours: float, sample_rate: int
) -> tuple[list[Recording], Counter[str], list[str]]:
    """Write the samples; the rows, what was left out by reason, and an example of each reason."""
    rows: list[Recording] = []
    left_out: Counter[str] = Counter()
    examples: dict[str, str] = {}
    start = 0
    splits = source.splits()
    heldout = next((split for split in HELDOUT_SPLITS if split in splits), None)
    with open(path, "wb") as file, tqdm(unit=" recordings", desc="decoding", disable=None) as bar:
        for split in ("train", heldout):
            if split is None or split not in splits:
                continue
            limit = round((max_hours if split == "train" else HELDOUT_HOURS) * 3600 * sample_rate)
            first = start
            for result in decoded(source.rows(split, 0, splits[split]), filters, sample_rate):
                if isinstance(result, RejectedRow):
                    left_out[result.reason] += 1
                    examples.setdefault(result.reason, str(result))
                    continue
                row_id, speaker, language, samples = result
                file.write(samples.tobytes())
                rows.append(Recording(row_id, speaker, language, split, start, len(samples)))
                start += len(samples)
                bar.update(1)
                if start - first >= limit:
                    break
        file.flush()
        os.fsync(file.fileno())
    return rows, left_out, list(examples.values())


Decoded = tuple[str, str, str, np.ndarray]
"""id, speaker, language, int16 [samples]"""


def decoded(fetches: Iterator[tuple[int, Fetch]], filters: FiltersConfig, rate: int) -> Iterator[Decoded | RejectedRow]:
    """The rows in their order, or why one cannot be used."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="decode") as pool:
        waiting: deque[Future[Decoded | RejectedRow]] = deque()
        try:
            for _, fetch in fetches:
                waiting.append(pool.submit(decode, fetch, filters, rate))
                if len(waiting) >= READ_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def decode(fetch: Fetch, filters: FiltersConfig, sample_rate: int) -> Decoded | RejectedRow:
    """As :func:`llasa.corpus.filters.prepare`, without the text."""
    try:
        row = fetch()
        if isinstance(row, EncodedRow):
            raise UserError("this corpus holds codes and no sound", remedy="choose another dataset=")
        check_measures(row.measures, filters)
        waveform, rate = decode_audio(row.audio, filters.max_seconds or MAX_SECONDS)
        if filters.min_sample_rate is not None and rate < filters.min_sample_rate:
            raise RejectedRow(
                "low_sample_rate",
                f"{row.id} has {rate} Hz, filters.min_sample_rate={filters.min_sample_rate} are wanted",
            )
        check_length(len(waveform) / rate, filters)
        check_level(waveform, rate, filters)
        if filters.max_clipped is not None and (share := clipped_share(waveform)) > filters.max_clipped:
            raise RejectedRow("clipped", f"{row.id}: {share:.2%} of the samples")
        resampled = resample(waveform, rate, sample_rate)
        if len(resampled) == 0:
            raise RejectedRow("empty_audio", f"{row.id} has {len(waveform)} samples at {rate} Hz")
    except RejectedRow as reason:
        return reason
    samples = np.clip(np.rint(resampled * SCALE), -SCALE, SCALE - 1).astype("<i2")
    return row.id, row.speaker, row.language, samples


def in_words(left_out: Counter[str]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in left_out.most_common()) or "it has no rows"
