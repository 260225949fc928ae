"""The encoder's anti-aliased activations, computed in five loops instead of thirty: the step takes 0.6 of its time.

In: an ``Xcodec2Model``. Out: the same model, whose activations give the same values and gradients to float32's last
bits. Each of them (36 in the published encoder and in the nano) doubles the rate, applies SnakeBeta and halves the
rate again, with filters of 12 taps (BigVGAN: Lee et al. 2023, arXiv 2206.04658, which brings a CUDA kernel for it).
As written in transformers that is most of the nano's training step: padding, two convolutions of one channel each
and five passes over twice the samples, and as many again backwards.

Here even and odd samples of the doubled rate stay apart, so every step is a weighted sum of shifted inputs that
torch.compile turns into one loop, and the gradient is written out: the doubled samples are computed again instead of
kept.

Cost: 10 s to a minute of compilation once for each process, whatever the shapes; a C++ compiler (on a CPU).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, reduce
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import Xcodec2Model
from transformers.models.xcodec2.modeling_xcodec2 import Xcodec2AntiAliasedActivation1d

_TAPS = 6
"""Of each phase of a filter of twelve."""


def fuse_activations(model: Xcodec2Model, *, compile: bool = True) -> int:
    """Give the acoustic encoder's activations the forward pass of this module; returns how many there are.

    Weights and their names stay. For training alone: :class:`llasa.codec.xcodec2.XCodec2` hooks into the layers that
    are passed over here. ``compile=False`` computes the same without a compiler, slower than before.
    """
    activations = [
        layer for layer in model.acoustic_encoder.modules() if isinstance(layer, Xcodec2AntiAliasedActivation1d)
    ]
    for layer in activations:
        layer.forward = _Fused(layer, compile)
    return len(activations)


class _Fused:
    """What stands in an activation's ``forward``. Not a module: the layer's parameters stay the layer's."""

    def __init__(self, layer: Xcodec2AntiAliasedActivation1d, compile: bool) -> None:
        ratio, taps = layer.upsample.ratio, layer.upsample.filter.numel()
        assert (ratio, taps, layer.downsample.filter.numel()) == (2, 2 * _TAPS, 2 * _TAPS), "another filter"
        self.snake = layer.act
        self.up = tuple((ratio * layer.upsample.filter.flatten()).tolist())
        self.down = tuple(layer.downsample.filter.flatten().tolist())
        self.compile = compile

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """float [clips, channels, length] → float32, the same shape"""
        with torch.autocast(values.device.type, enabled=False):
            # x + sin(a x)^2 / b is x + (1 - cos(2 a x)) / 2 b
            frequency = 2 * self.snake.alpha.float().exp()[:, None]
            size = 0.5 / (self.snake.beta.float().exp() + self.snake.no_div_by_zero)[:, None]
            return _Activation.apply(values.float(), frequency, size, self.up, self.down, self.compile)


class _Activation(torch.autograd.Function):
    """Even samples stand for the doubled rate's times 2 t, odd ones for 2 t + 1."""

    @staticmethod
    def forward(
        ctx: Any,
        values: torch.Tensor,
        frequency: torch.Tensor,
        size: torch.Tensor,
        up: tuple[float, ...],
        down: tuple[float, ...],
        compile: bool,
    ) -> torch.Tensor:
        length = values.shape[-1]
        padded = pad(values, (3, 3), mode="replicate")
        even, odd = _kernel(_snake, compile)(padded, frequency, size, up, length)
        first, last = even[..., :1], odd[..., -1:]  # which repeat beyond the ends
        even = torch.cat([first.expand(-1, -1, 2), even, last.expand(-1, -1, 3)], dim=-1)
        odd = torch.cat([first.expand(-1, -1, 3), odd, last.expand(-1, -1, 2)], dim=-1)
        ctx.save_for_backward(padded, frequency, size)
        ctx.settings = up, down, length, compile
        return _kernel(_halve, compile)(even, odd, down, length)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        padded, frequency, size = ctx.saved_tensors
        up, down, length, compile = ctx.settings
        all_even, all_odd = _kernel(_halve_backward, compile)(pad(gradient, (5, 5)), down, length)
        even, odd = all_even[..., 2 : length + 2].contiguous(), all_odd[..., 3 : length + 3].contiguous()
        even[..., 0] += all_even[..., :2].sum(dim=-1) + all_odd[..., :3].sum(dim=-1)
        odd[..., -1] += all_even[..., length + 2 :].sum(dim=-1) + all_odd[..., length + 3 :].sum(dim=-1)
        even, odd, by_frequency, by_size = _kernel(_snake_backward, compile)(
            padded, even, odd, frequency, size, up, length
        )
        everywhere = _kernel(_double_backward, compile)(pad(even, (5, 6)), pad(odd, (6, 5)), up, length)
        inside = everywhere[..., 3 : length + 3].contiguous()
        inside[..., 0] += everywhere[..., :3].sum(dim=-1)
        inside[..., -1] += everywhere[..., length + 3 :].sum(dim=-1)
        return inside, by_frequency[:, None], by_size[:, None], None, None, None


def _sum(terms: Iterable[torch.Tensor]) -> torch.Tensor:
    """Without the 0 that Python's own begins with."""
    return reduce(torch.add, terms)


def _double(padded: torch.Tensor, up: tuple[float, ...], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[clips, channels, 3 + length + 3] → even and odd samples at twice the rate, [clips, channels, length] each"""
    even = _sum(up[2 * tap + 1] * padded[..., 5 - tap : 5 - tap + length] for tap in range(_TAPS))
    odd = _sum(up[2 * tap] * padded[..., 6 - tap : 6 - tap + length] for tap in range(_TAPS))
    return even, odd


def _snake(
    padded: torch.Tensor, frequency: torch.Tensor, size: torch.Tensor, up: tuple[float, ...], length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    even, odd = _double(padded, up, length)
    return even + (1 - torch.cos(frequency * even)) * size, odd + (1 - torch.cos(frequency * odd)) * size


def _halve(even: torch.Tensor, odd: torch.Tensor, down: tuple[float, ...], length: int) -> torch.Tensor:
    """Even samples with 2 and 3 more at their ends, odd ones with 3 and 2 → [clips, channels, length]"""
    return _sum(
        down[2 * tap + 1] * even[..., tap : tap + length] + down[2 * tap] * odd[..., tap : tap + length]
        for tap in range(_TAPS)
    )


def _halve_backward(gradient: torch.Tensor, down: tuple[float, ...], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[clips, channels, 5 + length + 5] → those of :func:`_halve`'s two inputs, length + 5 each"""
    size = length + _TAPS - 1
    even = _sum(down[2 * tap + 1] * gradient[..., 5 - tap : 5 - tap + size] for tap in range(_TAPS))
    odd = _sum(down[2 * tap] * gradient[..., 5 - tap : 5 - tap + size] for tap in range(_TAPS))
    return even, odd


def _snake_backward(
    padded: torch.Tensor,
    even_gradient: torch.Tensor,
    odd_gradient: torch.Tensor,
    frequency: torch.Tensor,
    size: torch.Tensor,
    up: tuple[float, ...],
    length: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """→ the gradients of even and odd samples, and those of frequency and size, [channels] each"""
    even, odd = _double(padded, up, length)
    even_sine, odd_sine = torch.sin(frequency * even), torch.sin(frequency * odd)
    by_frequency = (size * (even_gradient * even_sine * even + odd_gradient * odd_sine * odd)).sum(dim=(0, 2))
    even_rest, odd_rest = 1 - torch.cos(frequency * even), 1 - torch.cos(frequency * odd)
    by_size = (even_gradient * even_rest + odd_gradient * odd_rest).sum(dim=(0, 2))
    slope = frequency * size
    return even_gradient * (1 + slope * even_sine), odd_gradient * (1 + slope * odd_sine), by_frequency, by_size


def _double_backward(even: torch.Tensor, odd: torch.Tensor, up: tuple[float, ...], length: int) -> torch.Tensor:
    """Even samples' gradients with 5 and 6 zeros at their ends, odd ones' with 6 and 5 → of the padded input"""
    size = length + _TAPS
    return _sum(
        up[2 * tap + 1] * even[..., tap : tap + size] + up[2 * tap] * odd[..., tap : tap + size] for tap in range(_TAPS)
    )


@cache
def _kernel(function: Callable[..., Any], compile: bool) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True) if compile else function
