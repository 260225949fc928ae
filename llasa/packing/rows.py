"""The rows of one epoch, and how many tokens of each source the first of them hold.

Ten million examples are two arrays, not ten million objects; tokens are added up for blocks of rows, so that counting
those of any range touches a block at each end and no more.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

BLOCK = 256
"""Rows whose tokens are added up beforehand."""
BLOCKS_AT_A_TIME = 256
"""While they are added up: what bounds the memory of it."""


class EpochRows:
    """Row ``i`` holds the examples ``indices[offsets[i]:offsets[i + 1]]``.

    Args:
        indices: of examples, int32.
        offsets: int64 [rows + 1].
        lengths: tokens of every example, int32.
        bounds: where the examples of each source begin, and the end; int64 [sources + 1].
    """

    def __init__(self, indices: np.ndarray, offsets: np.ndarray, lengths: np.ndarray, bounds: np.ndarray) -> None:
        self.indices, self.offsets, self.lengths, self.bounds = indices, offsets, lengths, bounds

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, number: int) -> np.ndarray:
        assert 0 <= number < len(self)
        return self.indices[self.offsets[number] : self.offsets[number + 1]]

    def shuffled(self, generator: np.random.Generator) -> EpochRows:
        """The same rows in another order."""
        order = generator.permutation(len(self))
        sizes = np.diff(self.offsets)[order]
        offsets = np.append(0, np.cumsum(sizes))
        moved = np.repeat(self.offsets[:-1][order] - offsets[:-1], sizes)
        moved += np.arange(len(moved))
        return EpochRows(self.indices[moved], offsets, self.lengths, self.bounds)

    def tokens_before(self, number: int) -> np.ndarray:
        """Tokens of each source in the first ``number`` rows, int64 [sources]."""
        assert 0 <= number <= len(self)
        block = number // BLOCK
        return self._block_tokens[block] + self._tokens(block * BLOCK, number, 1)[0]

    @cached_property
    def _block_tokens(self) -> np.ndarray:
        """Tokens of each source before each block, int64 [whole blocks + 1, sources]."""
        blocks = len(self) // BLOCK
        parts = [
            self._tokens(start * BLOCK, stop * BLOCK, stop - start)
            for start in range(0, blocks, BLOCKS_AT_A_TIME)
            for stop in [min(start + BLOCKS_AT_A_TIME, blocks)]
        ]
        return np.concatenate([np.zeros((1, len(self.bounds) - 1), dtype=np.int64), *parts]).cumsum(axis=0)

    def _tokens(self, start: int, stop: int, parts: int) -> np.ndarray:
        """Tokens of each source in equal ``parts`` of the rows ``start`` to ``stop``, int64 [parts, sources]."""
        num_sources = len(self.bounds) - 1
        examples = self.indices[self.offsets[start] : self.offsets[stop]]
        key = np.searchsorted(self.bounds, examples, side="right") - 1
        ends = self.offsets[np.linspace(start, stop, parts + 1).astype(np.int64)]
        key += num_sources * np.repeat(np.arange(parts), np.diff(ends))
        # Sums of whole numbers in double precision are exact up to 2^53.
        sums = np.bincount(key, weights=self.lengths[examples], minlength=parts * num_sources)
        return sums.astype(np.int64).reshape(parts, num_sources)
