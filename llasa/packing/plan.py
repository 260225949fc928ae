"""The packing plan: from the lengths of the examples to rows of at most ``max_length`` tokens.

    examples of the epoch ─shuffled─► windows ─packed, or grouped by length─► rows, or groups ─shuffled─► EpochRows

Only lengths are looked at. Each epoch shuffles its examples by its own seed, so a plan is a pure function of (lengths,
settings, seed, epoch), and a resumed run finds the row it stopped at by its number.

pack        windows are packed by best-fit decreasing: many examples in a row
group       one example a row; windows are sorted by length and cut into the groups of rows that make a step
pad_to_max  one example a row, in shuffled order

Cost: packing takes about 1 µs and, while it lasts, 30 bytes an example (ten million: 8 s, 0.3 GB), the others less. The
rows of the last four epochs are kept, at some 6 bytes an example (16 where it has a row of its own).
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from functools import cached_property

import numpy as np

from llasa.packing.mixture import Mixture
from llasa.packing.rows import EpochRows

KEPT_EPOCHS = 4
"""At a boundary the loader is ahead of the step, and a run's length is known only when its epochs are packed."""
VERSION = 2
"""Of the order of rows; goes up when the same settings give other rows."""


def best_fit_decreasing(lengths: np.ndarray, max_length: int) -> np.ndarray:
    """Pack items into bins of ``max_length``: longest first, each into the fullest bin that still takes it.

    Of the bins with ``r`` tokens left the last one is taken; a sorted list of every such ``r`` finds the tightest.

    Returns:
        The number of each item's bin, int32 [items].
    """
    assert len(lengths) == 0 or (lengths.min() > 0 and lengths.max() <= max_length)
    order = np.argsort(-lengths, kind="stable")
    bins: list[int] = []
    open_bins: list[list[int]] = [[] for _ in range(max_length + 1)]
    rooms: list[int] = []
    num_bins = 0
    for length in lengths[order].tolist():
        tightest = bisect_left(rooms, length)
        if tightest < len(rooms):
            room = rooms[tightest]
            same = open_bins[room]
            number = same.pop()
            if not same:
                del rooms[tightest]
        else:
            room, number = max_length, num_bins
            num_bins += 1
        bins.append(number)
        room -= length
        if room:
            same = open_bins[room]
            if not same:
                rooms.insert(bisect_left(rooms, room), room)
            same.append(number)
    result = np.empty(len(lengths), dtype=np.int32)
    result[order] = bins
    return result


class PackingPlan:
    """Rows for as many epochs as anyone asks for, in one numbering.

    Args:
        lengths: tokens of each example, int [examples]; all at most ``max_length``.
        window: examples packed or grouped together.
        mode: pack, group or pad_to_max.
        group_rows: rows of a step, which are of like length; only ``group`` has use for it.
        mixture: the examples of each epoch; none = all of them.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        *,
        max_length: int,
        window: int,
        seed: int,
        mode: str = "pack",
        group_rows: int = 1,
        mixture: Mixture | None = None,
    ) -> None:
        assert len(lengths) > 0, "nothing to pack"
        assert mode in ("group", "pack", "pad_to_max")
        assert group_rows >= 1
        self.lengths = np.asarray(lengths, dtype=np.int32)
        self.max_length, self.window, self.seed = max_length, window, seed
        self.mode, self.group_rows = mode, group_rows
        self.mixture = mixture or Mixture(self.lengths, seed=seed)
        self._first_rows = [0]
        self._tokens = [np.zeros(len(self.mixture.names), dtype=np.int64)]
        self._kept: dict[int, EpochRows] = {}

    def with_groups_of(self, group_rows: int) -> PackingPlan:
        """The same plan for steps of another number of rows."""
        return PackingPlan(
            self.lengths,
            max_length=self.max_length,
            window=self.window,
            seed=self.seed,
            mode=self.mode,
            group_rows=group_rows,
            mixture=self.mixture,
        )

    @cached_property
    def fingerprint(self) -> str:
        """Two plans with the same one have the same rows."""
        settings = {
            "version": VERSION,
            "mode": self.mode,
            "seed": self.seed,
            "max_length": self.max_length if self.mode == "pack" else None,
            "window": self.window if self.mode != "pad_to_max" else None,
            "group_rows": self.group_rows if self.mode == "group" else None,
            "sources": self.mixture.names,
            "bounds": self.mixture.bounds.tolist(),
            "shares": self.mixture.shares.tolist(),
        }
        return hashlib.blake2b(json.dumps(settings).encode() + self.lengths.tobytes(), digest_size=16).hexdigest()

    def epoch(self, number: int) -> EpochRows:
        """The rows of an epoch; without a mixture every example stands in exactly one of them."""
        rows = self._kept.pop(number, None)
        if rows is None:
            # Groups have to begin where steps do, wherever the epoch before ended.
            start = self.rows_in(number) if self.mode == "group" else 0
            rows = self._plan(number, start)
        self._kept[number] = rows
        while len(self._kept) > KEPT_EPOCHS:
            del self._kept[next(iter(self._kept))]
        if number == len(self._first_rows) - 1:
            self._first_rows.append(self._first_rows[-1] + len(rows))
            self._tokens.append(self._tokens[-1] + rows.tokens_before(len(rows)))
        return rows

    def rows_in(self, epochs: int) -> int:
        """Number of rows in the first ``epochs`` epochs."""
        while len(self._first_rows) <= epochs:
            self.epoch(len(self._first_rows) - 1)
        return self._first_rows[epochs]

    def locate(self, row: int) -> tuple[int, int]:
        """(epoch, row inside the epoch) of a row in the one numbering."""
        assert row >= 0
        while self._first_rows[-1] < row:
            self.epoch(len(self._first_rows) - 1)
        epoch = bisect_right(self._first_rows, row) - 1
        return epoch, row - self._first_rows[epoch]

    def examples(self, row: int) -> np.ndarray:
        """Indices of the examples in a row of the one numbering."""
        epoch, number = self.locate(row)
        rows = self.epoch(epoch)
        return rows.row(number)

    def tokens_before(self, row: int) -> np.ndarray:
        """Tokens of each source in the first ``row`` rows of the one numbering, int64 [sources]."""
        epoch, number = self.locate(row)
        return self._tokens[epoch] + (self.epoch(epoch).tokens_before(number) if number else 0)

    def efficiency(self) -> float:
        """Share of the tokens of epoch 0's rows that are examples, not padding.

        Of groups: padded to the longest of the whole group, which is no less than what its batches are padded to.
        """
        rows = self.epoch(0)
        examples = int(self.tokens_before(len(rows)).sum())
        if self.mode != "group":
            return examples / (len(rows) * self.max_length)
        starts = np.arange(0, len(rows), self.group_rows)
        longest = np.maximum.reduceat(self.lengths[rows.indices], starts).astype(np.int64)
        return examples / int((longest * np.diff(np.append(starts, len(rows)))).sum())

    def _plan(self, number: int, start: int) -> EpochRows:
        generator = np.random.default_rng((self.seed, number))
        order = generator.permutation(self.mixture.examples(number))
        if self.mode == "pack":
            sizes = self._pack(order)
            return self._rows(order, sizes).shuffled(generator)
        if self.mode == "group":
            order = self._group(order, -start % self.group_rows, generator)
        return self._rows(order, np.ones(len(order), dtype=np.int32))

    def _rows(self, indices: np.ndarray, sizes: np.ndarray) -> EpochRows:
        return EpochRows(indices, np.append(0, np.cumsum(sizes, dtype=np.int64)), self.lengths, self.mixture.bounds)

    def _pack(self, order: np.ndarray) -> np.ndarray:
        """Bring the examples of each row together, in place, and return how many each row has, int32 [rows].

        Inside a row they stand as they stood in the shuffled order.
        """
        sizes = []
        for window in self._windows(order):
            bins = best_fit_decreasing(self.lengths[window], self.max_length)
            window[:] = window[np.argsort(bins, kind="stable")]
            sizes.append(np.bincount(bins).astype(np.int32))
        return np.concatenate(sizes)

    def _group(self, order: np.ndarray, head: int, generator: np.random.Generator) -> np.ndarray:
        """Put examples of like length together: whole groups in a shuffled order.

        The first ``head`` rows complete the step that the epoch before began, the last ones begin one.
        """
        head = min(head, len(order))
        stop = head + (len(order) - head) // self.group_rows * self.group_rows
        middle = order[head:stop]
        for window in self._windows(middle, self.group_rows):
            window[:] = window[np.argsort(self.lengths[window], kind="stable")]
        groups = generator.permutation(middle.reshape(-1, self.group_rows))
        return np.concatenate([order[:head], groups.reshape(-1), order[stop:]])

    def _windows(self, order: np.ndarray, multiple: int = 1) -> Iterator[np.ndarray]:
        """Views of ``window`` examples, or as many of them as are a multiple."""
        size = max(multiple, self.window // multiple * multiple)
        for start in range(0, len(order), size):
            yield order[start : start + size]
