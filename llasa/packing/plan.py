"""The packing plan: from the lengths of the examples to rows of at most ``max_length`` tokens.

Only lengths are looked at. Each epoch shuffles the examples by its own seed, cuts them into windows, packs each
window by best-fit decreasing and shuffles the rows, so a plan is a pure function of (lengths, seed, epoch) and a
resumed run finds the row it stopped at by its number.

Cost: about 1 µs per example and 16 bytes of memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class EpochRows:
    """Rows of one epoch. ``row(i)`` is ``indices[offsets[i]:offsets[i + 1]]``, indices of examples."""

    indices: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, number: int) -> np.ndarray:
        return self.indices[self.offsets[number] : self.offsets[number + 1]]


def best_fit_decreasing(lengths: np.ndarray, max_length: int) -> list[list[int]]:
    """Pack items into bins of ``max_length``: longest first, each into the fullest bin that still takes it.

    The bins with ``r`` tokens left are kept in a list for each ``r``; an integer whose bit ``r`` says that such a
    bin exists finds the tightest one without a search.
    """
    assert len(lengths) == 0 or (lengths.min() > 0 and lengths.max() <= max_length)
    bins: list[list[int]] = []
    open_bins: list[list[int]] = [[] for _ in range(max_length + 1)]
    available = 0
    for item in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[item])
        fitting = available >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            number = open_bins[room].pop()
            if not open_bins[room]:
                available ^= 1 << room
        else:
            room, number = max_length, len(bins)
            bins.append([])
        bins[number].append(item)
        room -= length
        if room:
            if not open_bins[room]:
                available |= 1 << room
            open_bins[room].append(number)
    return bins


class PackingPlan:
    """Rows for as many epochs as anyone asks for, in one numbering.

    Args:
        lengths: tokens of each example, int [examples]; all at most ``max_length``.
        window: examples packed together.
    """

    def __init__(self, lengths: np.ndarray, *, max_length: int, window: int, seed: int) -> None:
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.max_length, self.window, self.seed = max_length, window, seed
        self._first_rows = [0]
        self._cached: dict[int, EpochRows] = {}
        assert len(self.lengths) > 0, "nothing to pack"

    def epoch(self, number: int) -> EpochRows:
        """The rows of an epoch; every example stands in exactly one of them."""
        if number in self._cached:
            return self._cached[number]
        generator = np.random.default_rng((self.seed, number))
        order = generator.permutation(len(self.lengths))
        rows = [row for window in self._windows(order) for row in self._pack(window, generator)]
        generator.shuffle(rows)
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
        packed = EpochRows(np.concatenate(rows), offsets)
        if number == len(self._first_rows) - 1:
            self._first_rows.append(self._first_rows[-1] + len(packed))
        # Two epochs: at a boundary the loader is ahead of the step.
        self._cached = {other: rows for other, rows in self._cached.items() if other == number - 1} | {number: packed}
        return packed

    def rows_in(self, epochs: int) -> int:
        """Number of rows in the first ``epochs`` epochs."""
        while len(self._first_rows) <= epochs:
            self.epoch(len(self._first_rows) - 1)
        return self._first_rows[epochs]

    def locate(self, row: int) -> tuple[int, int]:
        """(epoch, row inside the epoch) of a row in the one numbering."""
        epochs = 1
        while self.rows_in(epochs) <= row:
            epochs += 1
        return epochs - 1, row - self._first_rows[epochs - 1]

    def examples(self, row: int) -> np.ndarray:
        """Indices of the examples in a row of the one numbering."""
        epoch, number = self.locate(row)
        return self.epoch(epoch).row(number)

    def efficiency(self) -> float:
        """Share of the tokens of epoch 0's rows that are examples, not padding."""
        return float(self.lengths.sum() / (len(self.epoch(0)) * self.max_length))

    def _windows(self, order: np.ndarray) -> Iterator[np.ndarray]:
        for start in range(0, len(order), self.window):
            yield order[start : start + self.window]

    def _pack(self, window: np.ndarray, generator: np.random.Generator) -> Iterator[np.ndarray]:
        for items in best_fit_decreasing(self.lengths[window], self.max_length):
            yield generator.permutation(window[items])
