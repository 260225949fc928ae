"""Keys and values of sequences of different lengths, a slot each, and the attention that reads them.

    prompt ─prefill(slot)─► slot[0:n]          one sequence, causal, nothing padded
    next ids ─decode(rows)─► slot[length]      one id of each of the first rows, each at its own place

Active sequences are always the first slots, so a step reads a view and copies nothing. The price is one copy of a slot
where a sequence ends before others. transformers' own caches hold one length for all rows, so that sequences of
different lengths have to be padded on the left and none can come in later.

Memory: ``2 x layers x heads x width`` values a place: 32 KB for Llama 3.2 1B in bf16, 64 MB a slot of 2,048.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

SLOTS = "slots"
"""The name of :func:`slot_attention` in transformers."""
BLOCK = 64
"""Places are read in multiples of it, that shapes are few."""


class SlotCache:
    """What Llama's attention takes as ``past_key_values``; an ``update`` does what the last of :meth:`prefill` and
    :meth:`decode` said.

    Args:
        slots, capacity: sequences at a time, and places of each.
    """

    def __init__(self, slots: int, capacity: int) -> None:
        self.slots, self.capacity = slots, -(-capacity // BLOCK) * BLOCK
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._slot: int | None = None
        self._rows = self._places = torch.empty(0)
        self._span = 0

    def prefill(self, slot: int) -> None:
        """The next keys and values [1, heads, n, width] are those of a prompt, for this slot."""
        self._slot = slot

    def decode(self, places: torch.Tensor, longest: int) -> torch.Tensor:
        """The next keys and values [n, heads, 1, width] stand at ``places``, int64 [n], of the first slots.

        Returns:
            What may be attended to, bool [n, 1, 1, span].

        Args:
            longest: the largest of the places, which the device need not be asked for.
        """
        self._slot = None
        self._rows, self._places = torch.arange(len(places), device=places.device), places
        self._span = -(-(longest + 1) // BLOCK) * BLOCK
        return (torch.arange(self._span, device=places.device) <= places[:, None])[:, None, None]

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """New keys and values of a layer → all of its that may be attended to, [n, heads, span, width]."""
        if layer not in self._layers:
            shape = (self.slots, keys.shape[1], self.capacity, keys.shape[3])
            # Zeros: what is masked is still multiplied, by nothing, and 0 times what memory held may not be 0.
            self._layers[layer] = keys.new_zeros(shape), values.new_zeros(shape)
        all_keys, all_values = self._layers[layer]
        if self._slot is not None:
            length = keys.shape[2]
            all_keys[self._slot, :, :length] = keys[0]
            all_values[self._slot, :, :length] = values[0]
            return keys, values
        all_keys[self._rows, :, self._places] = keys[:, :, 0]
        all_values[self._rows, :, self._places] = values[:, :, 0]
        rows = len(self._rows)
        return all_keys[:rows, :, : self._span], all_values[:rows, :, : self._span]

    def copy(self, source: int, target: int, length: int) -> None:
        """The first ``length`` places of one slot into another."""
        for tensor in (tensor for layer in self._layers.values() for tensor in layer):
            tensor[target, :, :length] = tensor[source, :, :length]

    def get_seq_length(self, *args: Any) -> int:
        """0: where ids stand is always given (`position_ids`)."""
        return 0

    def get_mask_sizes(self, query_length: int, *args: Any) -> tuple[int, int]:
        """Of a prompt's mask, which transformers makes; a decoding step brings its own."""
        return query_length, 0


def slot_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """One query a sequence, [n, heads, 1, width], over [n, key heads, span, width]: the heads that share a key are
    taken as queries of it. transformers' sdpa would copy the keys for each of them, at every step."""
    if query.shape[2] > 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    rows, heads, _, width = query.shape
    grouped = query.view(rows, key.shape[1], heads // key.shape[1], width)
    output = scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    return output.reshape(rows, 1, heads, width), None


AttentionInterface.register(SLOTS, slot_attention)


@contextmanager
def attending_slots(model: LlamaForCausalLM) -> Iterator[None]:
    """The model's attention is :func:`slot_attention` within; a prompt gets no mask, it is plainly causal."""
    before = model.config._attn_implementation
    model.config._attn_implementation = SLOTS
    try:
        yield
    finally:
        model.config._attn_implementation = before
