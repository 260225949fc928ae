"""Where recorded sentences come from: the first step of the flow.

A source is cut into numbered units, rows or whole files, always the same ones in the same order, so that the plan
of a store is a list of ranges of units and any worker can make any shard.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llasa.config import require
from llasa.errors import RejectedRow, UserError
from llasa.paths import location

MEASURES = ("levenshtein", "dnsmos", "up_votes", "down_votes")
"""What a corpus may itself say of a row, under our names."""

MAX_PATH = 4096
"""Characters; what is longer is no path anywhere."""

SPLIT_ALIASES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "development", "eval", "evaluation"),
    "test": ("test", "testing"),
}
"""Our name of a split → what corpora call it, the likeliest first."""


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A row as the corpus has it: transcript not normalised, audio not decoded (file content or path)."""

    id: str
    text: str
    audio: bytes | Path
    speaker: str
    language: str
    measures: dict[str, float] = field(default_factory=dict)
    """What the corpus itself says of the row: some of ``MEASURES``, finite numbers."""


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """A row of a corpus that holds codes already: ``codes`` [num_codes] of the store's codec."""

    id: str
    text: str
    codes: np.ndarray
    speaker: str
    language: str


Fetch = Callable[[], SourceRow | EncodedRow]
"""Reads one row; called in the threads that decode. Raises ``RejectedRow`` where this row lacks something."""


class Source(Protocol):
    """A corpus in numbered units."""

    unit: str
    """What ``splits`` counts: "row", or "file" where a corpus is read as a stream and its rows are not counted."""

    def describe(self) -> dict[str, Any]:
        """What identifies the corpus and changes when its rows or their order do (plain JSON values); written into
        the store's manifest, and compared when a store is continued."""
        ...

    def splits(self) -> dict[str, int]:
        """Number of units of each split, under the store's names: train, validation, test."""
        ...

    def rows(self, split: str, start: int, stop: int) -> Iterator[tuple[int, Fetch]]:
        """The rows of units ``start`` to ``stop``, each with its number: within the split where the unit is a row,
        else within the first of the files. Numbers are ascending and the same every time."""
        ...


class IndexedSource:
    """A source whose rows can be read in any order: subclasses give ``row``."""

    unit = "row"

    def row(self, split: str, index: int) -> SourceRow | EncodedRow:
        """Row ``index`` of ``split``.

        Raises:
            RejectedRow: this row lacks something; the others are not touched.
        """
        raise NotImplementedError

    def rows(self, split: str, start: int, stop: int) -> Iterator[tuple[int, Fetch]]:
        for index in range(start, stop):
            yield index, partial(self.row, split, index)


class StreamedSource:
    """A source that is read as a stream of whole files, because its rows are not counted or not worth keeping.

    Subclasses give ``file_counts`` and ``file_rows``. With ``limit``, the first so many rows of a split, whichever
    files they lie in, are one unit: where they end is known only when they have been read.
    """

    unit = "file"
    limit: int | None = None

    def file_counts(self) -> dict[str, int]:
        """Number of files of each split, under our names."""
        raise NotImplementedError

    def file_rows(self, split: str, index: int) -> Iterator[Fetch]:
        """The rows of file ``index`` of ``split`` in its order, read as they are asked for."""
        raise NotImplementedError

    def splits(self) -> dict[str, int]:
        counts = self.file_counts()
        return {split: min(count, 1) for split, count in counts.items()} if self.limit else counts

    def rows(self, split: str, start: int, stop: int) -> Iterator[tuple[int, Fetch]]:
        if self.limit:
            start, stop = 0, self.file_counts()[split] if stop > start else 0
        fetches = itertools.chain.from_iterable(self.file_rows(split, index) for index in range(start, stop))
        yield from enumerate(itertools.islice(fetches, self.limit))


def require_limit(limit: int | None) -> None:
    require(limit is None or limit >= 1, "dataset.limit", limit, "use 1 or more, or null for all rows")


def require_language(corpus: str, language: str | None, languages: Iterable[str] | None, remedy: str) -> None:
    """Refuse a language that the corpus lacks. No ``languages``: it may have any."""
    known = sorted(languages or ())
    if known and language is not None and language not in known:
        raise UserError(f"{corpus} has no language {language!r}; it has {', '.join(known)}", remedy=remedy)


def choose_splits(corpus: str, available: Iterable[str], wanted: dict[str, str | None] | None) -> dict[str, str]:
    """Our name of a split → the corpus' name.

    Args:
        wanted: such a mapping, where none leaves a split out; or none: whatever of ``SPLIT_ALIASES`` there is.

    Raises:
        UserError: a wanted split, or any for training, is not there.
    """
    available = list(available)
    has = f"it has {', '.join(available) or 'none'}"
    if wanted is None:
        found = {
            ours: next((name for name in names if name in available), None) for ours, names in SPLIT_ALIASES.items()
        }
        if found["train"] is None:
            raise UserError(
                f"{corpus} has no split called {' or '.join(SPLIT_ALIASES['train'])}; {has}",
                remedy=f"name one: 'dataset.splits={{train: {available[0] if available else 'NAME'}}}'",
            )
        return {ours: name for ours, name in found.items() if name is not None}
    chosen = require_splits(wanted)
    for ours, theirs in chosen.items():
        if theirs not in available:
            raise UserError(
                f"{corpus} has no split {theirs!r}; {has}", remedy=f"set dataset.splits.{ours} to one of these, or null"
            )
    return chosen


def require_splits(wanted: dict[str, str | None]) -> dict[str, str]:
    """A mapping of our splits to a corpus' as it is configured, without those set to none."""
    for ours, theirs in wanted.items():
        require(ours in SPLIT_ALIASES, f"dataset.splits.{ours}", theirs, f"our splits are {', '.join(SPLIT_ALIASES)}")
    chosen = {ours: theirs for ours, theirs in wanted.items() if theirs}
    require(bool(chosen), "dataset.splits", wanted, "name one split at least")
    return chosen


def as_measures(values: dict[str, Any]) -> dict[str, float]:
    """Those of ``values`` that are finite numbers; a corpus may lack a measure in some of its rows."""
    measures = {}
    for name, value in values.items():
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            continue
        if math.isfinite(number):
            measures[name] = number
    return measures


def text_or(value: Any, default: str) -> str:
    """A value as text; ``default`` where there is none. The number 0 is a name too."""
    return default if value is None or value == "" else str(value)


def recording(path: str, folder: Path | None) -> Path:
    """Where a recording lies that metadata name: by its address, by its absolute path, or from ``folder``.

    Raises:
        RejectedRow: it is no path.
    """
    if len(path) > MAX_PATH or "\0" in path:
        raise RejectedRow("missing_audio", f"no path: {path[:80]!r}")
    if "://" in path:
        try:
            return location(path)
        except UserError as error:
            raise RejectedRow("missing_audio", str(error)) from None
    return folder / path if folder is not None and not Path(path).is_absolute() else Path(path)


def refuse(reason: str, detail: str) -> SourceRow:
    """A ``Fetch`` for what is known to be unusable when it is met in a stream."""
    raise RejectedRow(reason, detail)
