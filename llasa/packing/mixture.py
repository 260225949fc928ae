"""Sources in chosen proportions: which examples an epoch takes from each language or corpus.

lengths by source ─shares─► tokens of each source an epoch ─walk─► examples of the epoch

An epoch of a mixture has as many tokens as all used sources together. A source whose share is above its natural one
is repeated, one below it is sampled. Nothing is drawn with replacement: a source is an endless walk through seeded
permutations of its examples, and each epoch goes on where the one before it stopped. So after any number of epochs
the examples of a source have all been seen equally often, give or take once, and what an epoch holds follows from
(lengths, shares, seed, epoch) alone. With natural shares an epoch is every example once.

Cost: a permutation of a source for each end of an epoch that lies inside a pass of it; some 0.1 µs an example.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llasa.errors import UserError


@dataclass(frozen=True)
class SourceReport:
    """What becomes of a source in a mixture; for people and for the record of a run."""

    name: str
    num_examples: int
    """That are used: neither dropped nor of a source whose share is 0."""
    num_dropped: int
    """Longer than a row."""
    tokens: int
    """Of all its examples that fit, once."""
    epoch_tokens: int
    """That an epoch takes of it, to within an example."""
    share: float
    """Of an epoch's tokens."""
    repeats: float
    """How often an epoch goes through it."""


def token_shares(tokens: Mapping[str, int], temperature: float, weights: Mapping[str, float]) -> dict[str, float]:
    """Share of each source in an epoch's tokens; they sum to 1.

    Proportional to ``tokens^(1 / temperature)``, as for multilingual BERT (https://arxiv.org/abs/1911.02116 calls
    the exponent alpha), or to ``weights``.

    Raises:
        UserError: weights do not name the sources, give something to one with no examples, or stand beside a
            temperature.
    """
    if not weights:
        largest = max(tokens.values())
        sizes = {name: (count / largest) ** (1 / temperature) if count else 0.0 for name, count in tokens.items()}
    else:
        if temperature != 1:
            raise UserError(
                f"mixture.temperature={temperature:g} says nothing where mixture.weights gives the shares",
                remedy="leave out one of the two",
            )
        known = ", ".join(tokens)
        if unknown := [name for name in weights if name not in tokens]:
            raise UserError(f"mixture.weights names {', '.join(unknown)}, which is no source", remedy=f"use {known}")
        if left_out := [name for name in tokens if name not in weights]:
            raise UserError(
                f"mixture.weights says nothing of {', '.join(left_out)}",
                remedy=f"give a weight to each of {known}; 0 leaves a source out",
            )
        if empty := [name for name, weight in weights.items() if weight and not tokens[name]]:
            raise UserError(
                f"no example of {', '.join(empty)} fits into a row", remedy="raise packing.max_length, or weigh it 0"
            )
        sizes = {name: float(weights[name]) for name in tokens}
    total = sum(sizes.values())
    return {name: size / total for name, size in sizes.items()}


class Mixture:
    """The examples of each epoch.

    Args:
        lengths: tokens of each example, int [examples], one source after another.
        bounds: where each source begins, and the end; [sources + 1].
        names: of the sources; a source's walk depends on its name, not on its place.
        shares: of each source in an epoch's tokens; none = as large as they are.

    Attributes:
        epoch_tokens: what an epoch takes of each source, [sources], before it is rounded to whole examples.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        *,
        seed: int,
        bounds: Sequence[int] | np.ndarray | None = None,
        names: Sequence[str] = ("",),
        shares: Mapping[str, float] | None = None,
    ) -> None:
        self.lengths, self.seed, self.names = lengths, seed, tuple(names)
        self.bounds = np.asarray([0, len(lengths)] if bounds is None else bounds, dtype=np.int64)
        assert len(self.bounds) == len(self.names) + 1
        assert self.bounds[-1] == len(lengths)
        parts = [lengths[start:stop] for start, stop in zip(self.bounds, self.bounds[1:], strict=False)]
        self.source_tokens = np.array([part.sum(dtype=np.int64) for part in parts])
        if shares is None:
            shares = dict(zip(self.names, self.source_tokens / self.source_tokens.sum(), strict=True))
        self.shares = np.array([shares[name] for name in self.names])
        assert abs(self.shares.sum() - 1) < 1e-9
        assert not self.shares[self.source_tokens == 0].any()
        self.epoch_tokens = self.shares * self.source_tokens[self.shares > 0].sum()

    def examples(self, epoch: int) -> np.ndarray:
        """Indices of the examples of an epoch in ascending order, one of them as often as it is repeated; int32."""
        times = np.concatenate([self._times(source, epoch) for source in range(len(self.names))])
        return np.repeat(np.arange(len(times), dtype=np.int32), times)

    def _times(self, source: int, epoch: int) -> np.ndarray:
        """How often each example of a source stands in an epoch, int32 [examples of the source]."""
        (first_pass, begun), (last_pass, done) = self._reached(source, epoch), self._reached(source, epoch + 1)
        size = self.bounds[source + 1] - self.bounds[source]
        times = np.full(size, last_pass - first_pass, dtype=np.int32)
        if begun:
            times[self._walk(source, first_pass)[:begun]] -= 1
        if done:
            times[self._walk(source, last_pass)[:done]] += 1
        return times

    def _reached(self, source: int, epoch: int) -> tuple[int, int]:
        """(passes, examples of the pass after them) that the epochs before ``epoch`` take of a source.

        The end is put where the tokens so far are closest to what the share asks for, so errors do not add up.
        """
        if self.epoch_tokens[source] == 0:
            return 0, 0
        passes, rest = divmod(round(epoch * self.epoch_tokens[source]), int(self.source_tokens[source]))
        if rest == 0:
            return passes, 0
        lengths = self.lengths[self.bounds[source] : self.bounds[source + 1]]
        reached = np.cumsum(lengths[self._walk(source, passes)], dtype=np.int64)
        after = int(np.searchsorted(reached, rest))
        before = int(reached[after - 1]) if after else 0
        count = after + (reached[after] - rest < rest - before)
        return (passes + 1, 0) if count == len(lengths) else (passes, int(count))

    def _walk(self, source: int, number: int) -> np.ndarray:
        """The order of a source's examples in a pass."""
        generator = np.random.default_rng((self.seed, zlib.crc32(self.names[source].encode()), number))
        return generator.permutation(np.arange(self.bounds[source + 1] - self.bounds[source], dtype=np.int32))
