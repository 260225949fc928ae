"""Rows of examples to tensors.

Examples stand one after another; `position_ids` restart at each. transformers builds a block-diagonal causal mask
from that alone. Passing an `attention_mask`, or leaving `use_cache` on, switches this off silently and examples leak
into each other, so the batch has neither. The end of a row is padded as one more "example"
whose labels are all ignored.

FlashAttention's variable lengths are found by the same restarts, but only in a batch of one row (transformers'
`_is_packed_sequence`); with more rows the examples would leak. For it all rows become one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from llasa.tokens.prompt import IGNORE_INDEX
from llasa.types import Example, PackedBatch


class PackingCollator:
    """Collate rows of examples into a :class:`PackedBatch` of shape [rows, length].

    Without ``length`` it is the longest row's, rounded up to a multiple of ``multiple``: padding a batch of short rows
    to the full budget would only cost time. With it (`packing.mode=pad_to_max`) every row is padded to just that.
    With ``flatten`` the batch is a single row of all examples, and of every row's padding if there is a ``length``.
    """

    def __init__(
        self, *, pad_token_id: int, multiple: int = 8, flatten: bool = False, length: int | None = None
    ) -> None:
        self.pad_token_id, self.multiple, self.flatten, self.length = pad_token_id, multiple, flatten, length

    def __call__(self, rows: Sequence[Sequence[Example]]) -> PackedBatch:
        if self.flatten and self.length is None:
            rows = [[example for row in rows for example in row]]
        longest = max(sum(len(example.input_ids) for example in row) for row in rows)
        length = self.length or -(-longest // self.multiple) * self.multiple
        assert longest <= length, "an example or a row is longer than what it was planned for"
        shape = (len(rows), length)
        input_ids = np.full(shape, self.pad_token_id, dtype=np.int64)
        labels = np.full(shape, IGNORE_INDEX, dtype=np.int64)
        position_ids = np.empty(shape, dtype=np.int64)
        for number, row in enumerate(rows):
            start = 0
            for example in row:
                stop = start + len(example.input_ids)
                input_ids[number, start:stop] = example.input_ids
                labels[number, start:stop] = example.labels
                position_ids[number, start:stop] = np.arange(stop - start)
                start = stop
            position_ids[number, start:] = np.arange(length - start)
        if self.flatten:
            input_ids, labels, position_ids = (array.reshape(1, -1) for array in (input_ids, labels, position_ids))
        return PackedBatch(
            input_ids=torch.from_numpy(input_ids),
            labels=torch.from_numpy(labels),
            position_ids=torch.from_numpy(position_ids),
        )
