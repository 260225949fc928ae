"""Padding that XCodec2's encoder cannot see, so that clips of different lengths share a batch.

In: the batch's numbers of frames. Out: nothing; while the encoder runs, hooks set the tail of each clip (what lies
between its own end and the batch's) to what the next layer would find there if the clip were alone:

| layer | alone, beyond the end stands | so the tail becomes |
|---|---|---|
| convolution with zero padding (all of the acoustic encoder's and the semantic adapter's) | zeros | zeros |
| up- and down-sampling around each snake activation, padded by replication | the last value | the last value |
| convolution of one tap, snake, ReLU, linear layer | nothing, they do not look sideways | left as it is |

The semantic encoder needs only its attention mask: its convolutions look to the left alone, and its layer norms at
one frame. Values of a tail are never used, so they may be overwritten in place, also where a residual shares them.

Every length is a whole number of values a frame (320 at the waveform, one at the codes, twice as many between up- and
down-sampling), because the waveform is padded to whole frames and each strided convolution divides exactly; so a
clip's end at a layer is its number of frames times that rate.

Cost: only the last ``BUCKET_FRAMES`` frames of a batch are touched (5 % of a 20 s clip), by one to three small
kernels for each hooked layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers.models.xcodec2.modeling_xcodec2 import (
    Xcodec2DownSample1d,
    Xcodec2SnakeBeta,
    Xcodec2UpSample1d,
)

BUCKET_FRAMES = 50
"""Bucket lengths are multiples of this: 1 s, so 30 shapes up to 30 s, and 5 % of padding for clips of 10 s."""

_POINTWISE = (Xcodec2SnakeBeta, nn.ReLU)


def bucket_length(num_frames: int) -> int:
    """Frames that a clip of ``num_frames`` is padded to; always at least one more than it has.

    One more, because transformers drops an attention mask without a zero in it and then takes another path: what a
    clip goes through would depend on its neighbours.
    """
    return (num_frames // BUCKET_FRAMES + 1) * BUCKET_FRAMES


class ClipEnds:
    """Forward hooks on the layers that look sideways; they act only inside :meth:`at`.

    ``parts`` are the acoustic encoder and the semantic adapter, ``downsampling_ratios`` the encoder's.
    ``hooked`` maps the names of the layers that got a hook to the layers.

    Raises:
        TypeError: a layer for which the table above has no line.
    """

    def __init__(self, parts: dict[str, nn.Module], downsampling_ratios: Sequence[int]) -> None:
        self._masks: dict[int, torch.Tensor] = {}
        self._last: dict[int, torch.Tensor] = {}
        self._total = 0
        levels = [math.prod(downsampling_ratios[depth:]) for depth in range(len(downsampling_ratios) + 1)]
        self._rates = {rate for level in levels for rate in (level, 2 * level)}
        self.hooked: dict[str, nn.Module] = {}
        for part, module in parts.items():
            for name, layer in module.named_modules(prefix=part):
                hook = self._hook(name, layer)
                if hook is not None:
                    layer.register_forward_pre_hook(hook)
                    self.hooked[name] = layer

    def _hook(self, name: str, layer: nn.Module) -> Callable[[nn.Module, tuple[torch.Tensor]], None] | None:
        if isinstance(layer, Xcodec2UpSample1d | Xcodec2DownSample1d):
            return self._repeat_last_value
        if isinstance(layer, nn.Conv1d) and layer.padding_mode == "zeros":
            return None if layer.kernel_size == (1,) else self._zero
        if isinstance(layer, _POINTWISE) or any(layer.children()):
            return None
        raise TypeError(f"{name}: no rule for what a {type(layer).__name__} finds beyond the end of a clip")

    @contextmanager
    def at(self, num_frames: torch.Tensor, total: int) -> Iterator[None]:
        """Within it, the hooked layers see row i of a batch end after its ``num_frames[i]`` frames.

        ``num_frames`` int64 [batch], from 1 to ``total``, the frames of the batch; those of one bucket, so no clip
        is shorter than ``total - BUCKET_FRAMES``.
        """
        start = max(0, total - BUCKET_FRAMES)
        beyond = torch.arange(start, total, device=num_frames.device) >= num_frames[:, None]  # [batch, tail frames]
        self._masks = {rate: beyond.repeat_interleave(rate, dim=1)[:, None] for rate in self._rates}
        self._last = {rate: (num_frames * rate - 1)[:, None, None] for rate in self._rates}
        self._total = total
        try:
            yield
        finally:
            self._masks, self._last, self._total = {}, {}, 0

    def _tail(self, values: torch.Tensor) -> tuple[int, torch.Tensor]:
        """Values [batch, channels, total * rate] → the rate, and a view of the frames in which clips may end."""
        rate, rest = divmod(values.shape[-1], self._total)
        assert rest == 0, f"{values.shape[-1]} values are no whole number a frame of {self._total} frames"
        return rate, values[..., values.shape[-1] - self._masks[rate].shape[-1] :]

    def _zero(self, layer: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if self._total:
            rate, tail = self._tail(inputs[0])
            tail.masked_fill_(self._masks[rate], 0.0)

    def _repeat_last_value(self, layer: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if self._total:
            values = inputs[0]
            rate, tail = self._tail(values)
            last = values.gather(-1, self._last[rate].expand(-1, values.shape[1], -1))
            tail.copy_(torch.where(self._masks[rate], last, tail))
