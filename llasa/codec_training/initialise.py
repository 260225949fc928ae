"""Weights to begin a training from nothing with, fitted to a batch of the clips it will see.

In: an ``Xcodec2Model`` as transformers initialises it, and clips. Out: the same model, changed in place. Takes as
long as one forward pass. Without it the codec learns nothing:

- transformers draws every weight with a standard deviation of 0.02, so the clip's signal is a thousand times smaller
  when it reaches the quantizer: each frame gets the same code. Here the layers of the main path are scaled one after
  the other, on the data, to an output of unit scale (LSUV: Mishkin and Matas 2016, arXiv 1511.06422).
- The quantizer's input projection becomes the whitened principal components of what comes in, so that from the first
  step on the eight values are centred, spread alike and uncorrelated: nearly every frame has a code of its own.
- The head's magnitudes begin as those of the average frame of speech (its bias alone does it), and its phases as a
  chirp's (Schroeder 1970): a frame's energy is spread over the whole frame. With phases near 0, as transformers
  leaves them, each frame is a pulse where its window is zero: silence, and no gradient that leads away from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import Xcodec2Model
from transformers.models.xcodec2.modeling_xcodec2 import Xcodec2ISTFTHead

from llasa.codec_training.forward import reconstruct
from llasa.codec_training.losses import LATENT_MEAN, LATENT_SPREAD

_RESIDUAL_SCALE = 0.5
"""Of what each residual unit of the encoder adds, beside a path of about unit scale."""
_HEAD_SPREAD = 0.5
"""Standard deviation, at first, of log-magnitudes (nepers) and phases (radians) about their biases."""
_MAGNITUDE_FLOOR = 1e-4

Hook = Callable[[Any, tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor]


def initialise(model: Xcodec2Model, waveforms: torch.Tensor, features: torch.Tensor | None = None) -> None:
    """Fit ``model`` to float32 [clips, samples], in place; ``features`` as for ``reconstruct``.

    The same model and clips give the same weights. Take a few hundred frames or more (8 clips of 1 s), of various
    sounds and voices: fewer frames than dimensions cannot be whitened.
    """
    encoder, decoder = model.acoustic_encoder, model.acoustic_decoder
    hooks: dict[nn.Module, Hook] = {encoder.conv1: _scaled_to(1.0), encoder.conv2: _scaled_to(1.0)}
    for block in encoder.block:
        hooks[block.conv1] = _scaled_to(1.0)
        for unit in (block.res_unit1, block.res_unit2, block.res_unit3):
            hooks[unit.conv1] = _scaled_to(1.0)
            hooks[unit.conv2] = _scaled_to(_RESIDUAL_SCALE)
    for layer in (model.fc_encoder, model.quantizer.project_out, decoder.fc, decoder.embed):
        hooks[layer] = _scaled_to(1.0)
    hooks[model.quantizer.project_in] = _whiten
    hooks[decoder.head.linear] = _scaled_to(_HEAD_SPREAD)
    was_training = model.training
    handles = [layer.register_forward_hook(hook) for layer, hook in hooks.items()]
    try:
        with torch.no_grad():
            reconstruct(model.eval(), waveforms, features)
            _speak(decoder.head, waveforms)
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)


def _scaled_to(spread: float) -> Hook:
    """A hook that gives its layer's output the mean 0 in each channel and the standard deviation ``spread`` in all."""

    def hook(layer: nn.Conv1d | nn.Linear, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        channels = 1 if isinstance(layer, nn.Conv1d) else output.ndim - 1
        others = [dim for dim in range(output.ndim) if dim != channels]
        means = output.mean(dim=others, keepdim=True)
        scale = spread / (output - means).square().mean().sqrt().clamp_min(1e-12)
        layer.weight.mul_(scale)
        assert layer.bias is not None
        layer.bias.sub_(means.flatten()).mul_(scale)
        return (output - means) * scale

    return hook


def _whiten(layer: nn.Linear, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    """Make a linear layer that of the whitened principal components of its inputs [clips, frames, size]."""
    frames = inputs[0].flatten(0, 1).double()
    mean = frames.mean(dim=0)
    _, singular, directions = torch.linalg.svd(frames - mean, full_matrices=False)
    spreads = singular[: layer.out_features].clamp_min(1e-9) / math.sqrt(len(frames))
    weight = LATENT_SPREAD / spreads[:, None] * directions[: layer.out_features]
    layer.weight.copy_(weight)
    layer.bias.copy_(LATENT_MEAN - weight @ mean)
    return nn.functional.linear(inputs[0], layer.weight, layer.bias)


def _speak(head: Xcodec2ISTFTHead, waveforms: torch.Tensor) -> None:
    """Set the head's biases to the mean of the clips' magnitudes and to a chirp's phases."""
    frames = waveforms.unfold(1, head.n_fft, head.hop_length) * head.window
    magnitudes = torch.fft.rfft(frames).abs().mean(dim=(0, 1)).clamp_min(_MAGNITUDE_FLOOR).log()
    bins = torch.arange(len(magnitudes), device=waveforms.device)
    phases = -math.pi * bins.square() / len(magnitudes)
    head.linear.bias.copy_(torch.cat([magnitudes, phases.remainder(2 * math.pi)]))
