"""Rows of packed examples, built from a token store when they are asked for.

store rows ─lengths─► plan ─row numbers─► examples ─collate─► PackedBatch
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from llasa.errors import UserError
from llasa.packing.plan import PackingPlan
from llasa.tokens.prompt import PromptBuilder
from llasa.types import Example

LENGTH_BATCH = 10_000


class PackedRows(Dataset):
    """Map-style data set: item ``i`` is the list of examples in row ``i`` of the plan, epoch after epoch.

    Args:
        rows: columns ``text``, ``codes``, ``num_codes`` (a split of a :class:`TokenStore`).
        max_length: tokens in a row; longer examples are left out.

    Attributes:
        num_examples, num_dropped: rows of the store that are used, and that are longer than ``max_length``.
        num_rows: the length of this data set; one epoch until it is set to what a run needs.

    Raises:
        UserError: no example fits.
    """

    def __init__(self, rows: Any, prompt: PromptBuilder, *, max_length: int, window: int, seed: int) -> None:
        self.rows, self.prompt = rows, prompt
        lengths = example_lengths(rows, prompt)
        self.kept = np.flatnonzero(lengths <= max_length)
        self.num_examples, self.num_dropped = len(self.kept), len(lengths) - len(self.kept)
        if self.num_examples == 0:
            raise UserError(
                f"every one of the {len(lengths):,} examples is longer than packing.max_length={max_length} "
                f"(the shortest has {lengths.min():,} tokens, {prompt.overhead} of them the prompt's)",
                remedy=f"use packing.max_length={lengths.min()} or more",
            )
        self.plan = PackingPlan(lengths[self.kept], max_length=max_length, window=window, seed=seed)
        self.num_rows = self.plan.rows_in(1)

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, row: int) -> list[Example]:
        stored = self.rows[self.kept[self.plan.examples(row)].tolist()]
        return [self.prompt.example(str(t), c) for t, c in zip(stored["text"], stored["codes"], strict=True)]

    def rows_in(self, epochs: float) -> int:
        """Rows that ``epochs`` epochs take; a fraction counts towards the epoch it is of."""
        whole = int(epochs)
        rest = round((epochs - whole) * len(self.plan.epoch(whole))) if epochs > whole else 0
        return max(1, self.plan.rows_in(whole) + rest)

    def num_tokens(self, start: int, stop: int) -> int:
        """Tokens of the examples in rows ``start`` to ``stop``: padding does not count."""
        return sum(int(self.plan.lengths[self.plan.examples(row)].sum()) for row in range(start, stop))


def example_lengths(rows: Any, prompt: PromptBuilder) -> np.ndarray:
    """Tokens of the example that each row of a store becomes, int64 [rows]."""
    parts: Sequence[np.ndarray] = [
        prompt.lengths([str(text) for text in batch["text"]], np.asarray(batch["num_codes"]))
        for batch in rows.select_columns(["text", "num_codes"]).iter(LENGTH_BATCH)
    ]
    return np.concatenate(parts)
