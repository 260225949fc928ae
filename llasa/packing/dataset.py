"""Rows of packed examples, built from token stores when they are asked for.

    sources ─lengths─► mixture, plan ─row numbers─► examples ─collate─► PackedBatch

Item ``i`` of the data set is row ``i + shift`` of the plan, epoch after epoch. Where a run stands is told by the row
it comes to next and the plan's fingerprint (:meth:`PackedRows.position`); a resumed run goes on there whatever the
number of its steps (:meth:`PackedRows.continue_from`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from llasa.errors import UserError
from llasa.packing.lengths import example_lengths
from llasa.packing.mixture import Mixture, SourceReport, token_shares
from llasa.packing.plan import PackingPlan
from llasa.tokens.prompt import PromptBuilder, speaker_tag
from llasa.types import Example


@dataclass(frozen=True)
class Source:
    """What a mixture has a share of: a language of a store.

    ``rows`` have the columns ``text``, ``codes``, ``num_codes``, and ``speaker`` where the prompt has tags (a split of
    a :class:`TokenStore`, or a part of one); ``lengths`` are the tokens of the example that each of them becomes, int
    [rows].
    """

    name: str
    rows: Any
    lengths: np.ndarray


class PackedRows(Dataset):
    """Map-style data set: item ``i`` is the list of examples in row ``i + shift`` of the plan.

    Args:
        sources: or the rows of a store, which are then the only source.
        max_length: tokens in a row; longer examples are left out.
        mode, window, group_rows: see :class:`PackingPlan`.
        temperature, weights: of the mixture, see :func:`token_shares`.

    Attributes:
        num_examples, num_dropped: rows of the store that are used, and that are longer than ``max_length``.
        num_rows: the length of this data set; one epoch until it is set to what a run needs.
        sources: a report of each.

    Raises:
        UserError: no example fits, or the weights are not those of the sources.
    """

    def __init__(
        self,
        sources: Sequence[Source] | Any,
        prompt: PromptBuilder,
        *,
        max_length: int,
        window: int,
        seed: int,
        mode: str = "pack",
        group_rows: int = 1,
        temperature: float = 1.0,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        if not isinstance(sources, list | tuple):
            sources = [Source("all", sources, example_lengths(sources, prompt))]
        self.prompt = prompt
        self._rows = [source.rows for source in sources]
        self._kept = [np.flatnonzero(source.lengths <= max_length).astype(np.int32) for source in sources]
        parts = [source.lengths[kept].astype(np.int32) for source, kept in zip(sources, self._kept, strict=True)]
        self._bounds = np.cumsum([0, *map(len, parts)])
        if self._bounds[-1] == 0:
            shortest = min(source.lengths.min() for source in sources)
            raise UserError(
                f"every one of the {sum(len(source.lengths) for source in sources):,} examples is longer than "
                f"packing.max_length={max_length} (the shortest has {shortest:,} tokens, {prompt.overhead} of them "
                "the prompt's)",
                remedy=f"use packing.max_length={shortest} or more",
            )
        tokens = {source.name: int(part.sum(dtype=np.int64)) for source, part in zip(sources, parts, strict=True)}
        assert len(tokens) == len(sources), "two sources of one name"
        shares = token_shares(tokens, temperature, weights or {})
        lengths = np.concatenate(parts)
        mixture = Mixture(lengths, seed=seed, bounds=self._bounds, names=tuple(tokens), shares=shares)
        self.plan = PackingPlan(
            lengths, max_length=max_length, window=window, seed=seed, mode=mode, group_rows=group_rows, mixture=mixture
        )
        self.sources = [
            SourceReport(
                name=source.name,
                num_examples=len(part) if share else 0,
                num_dropped=len(source.lengths) - len(part),
                tokens=tokens[source.name],
                epoch_tokens=round(epoch_tokens),
                share=float(share),
                repeats=float(epoch_tokens / tokens[source.name]) if share else 0.0,
            )
            for source, part, share, epoch_tokens in zip(
                sources, parts, mixture.shares, mixture.epoch_tokens, strict=True
            )
        ]
        self.num_examples = sum(report.num_examples for report in self.sources)
        left_out = {report.name for report in self.sources if report.tokens and not report.share}
        self.num_dropped = sum(report.num_dropped for report in self.sources if report.name not in left_out)
        self.shift = 0
        self.num_rows = self.plan.rows_in(1)

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, item: int) -> list[Example]:
        sources, numbers = self.origins(item)
        examples: dict[int, Example] = {}
        for source in np.unique(sources).tolist():
            places = np.flatnonzero(sources == source).tolist()
            stored = self._rows[source][numbers[places].tolist()]
            speakers = stored["speaker"] if self.prompt.rules.speaker_tags else [""] * len(places)
            for place, text, codes, speaker in zip(places, stored["text"], stored["codes"], speakers, strict=True):
                examples[place] = self.prompt.example(str(text), codes, str(speaker))
        row = [examples[place] for place in range(len(numbers))]
        planned = self.plan.lengths[self.plan.examples(item + self.shift)].tolist()
        assert [len(example.input_ids) for example in row] == planned, "the lengths are of other examples"
        return row

    def origins(self, item: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the examples of an item come from: the source of each by number, and the row in it; int [examples]."""
        examples = self.plan.examples(item + self.shift)
        sources = np.searchsorted(self._bounds, examples, side="right") - 1
        rows = np.empty(len(examples), dtype=np.int64)
        for source in np.unique(sources).tolist():
            mine = sources == source
            rows[mine] = self._kept[source][examples[mine] - self._bounds[source]]
        return sources, rows

    @cached_property
    def num_codes(self) -> np.ndarray:
        """Speech codes of each example of the plan, int32 [examples]."""
        columns = [rows.select_columns(["num_codes"]).with_format("arrow") for rows in self._rows]
        counts = [np.concatenate([part["num_codes"].to_numpy() for part in column.iter(10_000)]) for column in columns]
        return np.concatenate([count[kept] for count, kept in zip(counts, self._kept, strict=True)])

    @cached_property
    def speakers(self) -> Counter[str]:
        """Examples by the speaker's tag, of the sources that have a share; one without a speaker is not counted."""
        counts: Counter[str] = Counter()
        for rows, kept, report in zip(self._rows, self._kept, self.sources, strict=True):
            if not report.share:
                continue
            start = 0
            for batch in rows.select_columns(["speaker"]).with_format("arrow").iter(10_000):
                stop = start + len(batch)
                first, last = np.searchsorted(kept, [start, stop])
                for entry in batch["speaker"].take(kept[first:last] - start).value_counts().to_pylist():
                    counts[speaker_tag(entry["values"])] += entry["counts"]
                start = stop
        del counts[""]
        return counts

    def rows_in(self, epochs: float) -> int:
        """Rows of the plan that ``epochs`` epochs take, at least one; a fraction is of the epoch it lies in."""
        return max(1, self._row_at(epochs))

    def epochs_before(self, item: int) -> float:
        """How many epochs the rows before an item make: 1.5 is the middle of the second one."""
        epoch, row = self.plan.locate(item + self.shift)
        return epoch + (row / len(self.plan.epoch(epoch)) if row else 0)

    def num_tokens(self, start: int, stop: int) -> int:
        """Tokens of the examples in items ``start`` to ``stop``: padding does not count.

        Item ``-shift`` is the first row of the plan, so tokens since the beginning are `num_tokens(-shift, stop)`.
        """
        return int(self._tokens(start, stop).sum())

    def tokens_by_source(self, start: int, stop: int) -> dict[str, int]:
        """The same for each source."""
        return {report.name: int(n) for report, n in zip(self.sources, self._tokens(start, stop), strict=True)}

    def position(self, item: int) -> dict[str, Any]:
        """Where a run stands that comes to ``item`` next: JSON for its state, read by :meth:`continue_from`."""
        epoch, row_in_epoch = self.plan.locate(item + self.shift)
        return {
            "row": item + self.shift,
            "epoch": epoch,
            "row_in_epoch": row_in_epoch,
            "epochs": self.epochs_before(item),
            "group_rows": self.plan.group_rows,
            "fingerprint": self.plan.fingerprint,
        }

    def continue_from(self, position: Mapping[str, Any], item: int) -> bool:
        """Set ``shift`` so that ``item`` is the row at a position.

        Steps may have another number of rows than before: groups are then cut as they were, so that no example is
        seen twice.

        Returns:
            Whether the rows that follow are exactly those that were left. They are not if the examples or how they
            become rows have changed; the run then goes on at the same part of the same epoch of the new plan.
        """
        if self.plan.group_rows != position["group_rows"]:
            before = self.plan.with_groups_of(position["group_rows"])
            if before.fingerprint == position["fingerprint"]:
                self.plan = before
        exact = self.plan.fingerprint == position["fingerprint"]
        row = position["row"] if exact else self._row_at(position["epochs"])
        self.shift = row - item
        return exact

    def _row_at(self, epochs: float) -> int:
        whole = int(epochs)
        rest = round((epochs - whole) * len(self.plan.epoch(whole))) if epochs > whole else 0
        return self.plan.rows_in(whole) + rest

    def _tokens(self, start: int, stop: int) -> np.ndarray:
        return self.plan.tokens_before(stop + self.shift) - self.plan.tokens_before(start + self.shift)
