"""What is in a whole store: distributions over all its rows, read shard by shard without the codes.

Memory: the counters, whatever the store's size. Cost: 3.5 s for a million rows on one core.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from llasa.codec.base import Codec
from llasa.corpus.store import TokenStore

COLUMNS = ("text", "speaker", "language", "seconds", "num_codes")


@dataclass
class Histogram:
    """Counts in bins of ``width``, from 0; what lies beyond the last bin is counted in it."""

    width: float
    counts: np.ndarray

    @classmethod
    def of(cls, width: float, end: float) -> Histogram:
        return cls(width, np.zeros(round(end / width), dtype=np.int64))

    def add(self, values: np.ndarray) -> None:
        bins = np.minimum(values / self.width, len(self.counts) - 1).astype(np.int64)
        self.counts += np.bincount(bins, minlength=len(self.counts))

    def quantile(self, share: float) -> float:
        """Within half a bin."""
        cumulated = np.cumsum(self.counts)
        if cumulated[-1] == 0:
            return 0.0
        return float((np.searchsorted(cumulated, share * cumulated[-1]) + 0.5) * self.width)

    def to_dict(self) -> dict[str, Any]:
        used = int(np.flatnonzero(self.counts).max(initial=-1)) + 1
        quantiles = {
            f"p{round(100 * share)}": round(self.quantile(share), 3) for share in (0.01, 0.05, 0.5, 0.95, 0.99)
        }
        return {"bin": self.width, "counts": self.counts[:used].tolist(), **quantiles}


@dataclass
class Part:
    """The rows of one language in one split."""

    rows: int = 0
    seconds: float = 0.0
    codes: int = 0
    characters: int = 0


@dataclass
class Census:
    """Numbers of a whole store."""

    durations: Histogram = field(default_factory=lambda: Histogram.of(0.1, 120))
    speeds: Histogram = field(default_factory=lambda: Histogram.of(0.25, 60))
    """Characters of the spoken text per second."""
    speakers: Counter[str] = field(default_factory=Counter)
    parts: dict[tuple[str, str], Part] = field(default_factory=dict)
    shard_rows: dict[Path, int] = field(default_factory=dict)
    wrong_lengths: int = 0
    """Rows whose number of codes is not that of their seconds."""
    first_wrong_length: str = ""
    moments: np.ndarray = field(default_factory=lambda: np.zeros(6))
    """Sums of 1, x, y, xx, yy, xy over all rows, x the characters of the text and y the seconds."""

    @property
    def rows(self) -> int:
        return sum(self.shard_rows.values())

    @property
    def text_correlation(self) -> float | None:
        """Of a row's characters with its seconds; none where one of them never changes."""
        count, x, y, xx, yy, xy = self.moments / max(1, self.moments[0])
        scale = (xx - x * x) * (yy - y * y)
        return float((xy - x * y) / np.sqrt(scale)) if count and scale > 1e-9 else None

    def to_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "speakers": len(self.speakers),
            "rows_of_speakers": dict(self.speakers.most_common(20)),
            "parts": [
                {"split": split, "language": language, **vars(part) | {"seconds": round(part.seconds, 3)}}
                for (split, language), part in self.parts.items()
            ],
            "seconds": self.durations.to_dict(),
            "characters_per_second": self.speeds.to_dict(),
            "text_correlation": self.text_correlation,
        }


def take_census(store: TokenStore, codec: Codec) -> Census:
    """Read the store's columns, without the codes."""
    census = Census()
    with tqdm(total=store.manifest["rows"], unit=" rows", desc="counting", disable=None) as progress:
        for split in store.splits:
            for file in store.files(split):
                with file.open("rb") as handle:
                    parquet = pq.ParquetFile(handle)
                    census.shard_rows[file] = parquet.metadata.num_rows
                    start = 0
                    for batch in parquet.iter_batches(batch_size=10_000, columns=list(COLUMNS)):
                        _count(census, codec, split, batch, f"{split}/{file.name}", start)
                        start += len(batch)
                        progress.update(len(batch))
    return census


def _count(census: Census, codec: Codec, split: str, batch: pa.RecordBatch, file: str, start: int) -> None:
    seconds = batch["seconds"].to_numpy().astype(np.float64)
    num_codes = batch["num_codes"].to_numpy()
    characters = pc.utf8_length(batch["text"]).to_numpy(zero_copy_only=False)
    census.durations.add(seconds)
    census.speeds.add(characters / np.maximum(seconds, 1e-3))
    census.moments += [
        len(batch), characters.sum(), seconds.sum(),
        (characters**2.0).sum(), (seconds**2).sum(), (characters * seconds).sum(),
    ]  # fmt: skip
    for entry in pc.value_counts(batch["speaker"]).to_pylist():
        census.speakers[entry["values"]] += entry["counts"]
    languages = np.array(batch["language"].to_pylist(), dtype=object)
    for language in dict.fromkeys(languages):
        chosen = languages == language
        part = census.parts.setdefault((split, language), Part())
        part.rows += int(chosen.sum())
        part.seconds += float(seconds[chosen].sum())
        part.codes += int(num_codes[chosen].sum())
        part.characters += int(characters[chosen].sum())
    for index, (duration, count) in enumerate(zip(seconds.tolist(), num_codes.tolist(), strict=True)):
        expected = codec.num_codes(round(duration * codec.spec.sample_rate))
        # Rows that came to us as codes have no samples: their seconds were told by the codes.
        if count not in (expected, round(duration * codec.spec.tokens_per_second)):
            census.wrong_lengths += 1
            census.first_wrong_length = census.first_wrong_length or (
                f"row {start + index} of {file} lasts {duration:.3f} s and has {count} codes instead of {expected}"
            )
