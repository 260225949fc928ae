"""Fused activations are transformers' activations."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import Xcodec2Model
from transformers.models.xcodec2.modeling_xcodec2 import Xcodec2AntiAliasedActivation1d, Xcodec2SnakeBeta

from llasa.codec_training.activations import _Fused, fuse_activations
from llasa.codec_training.forward import reconstruct, trained_parameters
from llasa.codec_training.initialise import initialise
from llasa.codec_training.shape import new_nano
from tests.codec_training.speech_like import speech_like


@pytest.fixture(scope="module")
def model() -> Xcodec2Model:
    model = new_nano(seed=0)
    initialise(model, speech_like(4, 1.0))
    return model


def _results(layer: Xcodec2AntiAliasedActivation1d, values: torch.Tensor, wanted: torch.Tensor) -> list[torch.Tensor]:
    values = values.clone().requires_grad_()
    layer.zero_grad()
    out = layer(values)
    (out * wanted).sum().backward()
    return [out.detach(), values.grad, layer.act.alpha.grad.clone(), layer.act.beta.grad.clone()]


@pytest.mark.parametrize("length", [1, 2, 5, 40])
def test_values_and_gradients_are_those_of_the_layer(length: int) -> None:
    """Fails when a tap, a phase, an end's repetition or a term of a gradient is wrong."""
    generator = torch.Generator().manual_seed(0)
    layer = Xcodec2AntiAliasedActivation1d(Xcodec2SnakeBeta(6))
    nn.init.normal_(layer.act.alpha, 0, 0.5, generator=generator)
    nn.init.normal_(layer.act.beta, 0, 0.5, generator=generator)
    values, wanted = torch.randn(2, 3, 6, length, generator=generator).unbind()
    expected = _results(layer, values, wanted)
    layer.forward = _Fused(layer, compile=False)
    for got, want in zip(_results(layer, values, wanted), expected, strict=True):
        torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-5)


def _step(model: Xcodec2Model) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    waveforms = speech_like(2, 0.5, seed=1)
    parameters = trained_parameters(model, "all")
    made = reconstruct(model, waveforms, None, rounding=0.0, generator=torch.Generator().manual_seed(0))
    (made.waveforms - waveforms).square().sum().backward()
    gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.requires_grad}
    for parameter in parameters:
        parameter.grad = None
    return made.latents.detach(), gradients


def _check_fused(model: Xcodec2Model, compile: bool) -> None:
    names = list(model.state_dict())
    latents, gradients = _step(model)
    try:
        assert fuse_activations(model, compile=compile) == 36
        fused_latents, fused_gradients = _step(model)
        assert list(model.state_dict()) == names
    finally:
        for layer in model.acoustic_encoder.modules():
            layer.__dict__.pop("forward", None)
    torch.testing.assert_close(fused_latents, latents, atol=1e-3, rtol=1e-3)
    for name, gradient in gradients.items():
        assert (fused_gradients[name] - gradient).norm() <= 1e-3 * gradient.norm(), name


def test_a_whole_step_is_the_same(model: Xcodec2Model) -> None:
    """Fails when a layer is missed, given another's weights, or cut off from its gradient."""
    _check_fused(model, compile=False)


@pytest.mark.slow
def test_a_whole_step_is_the_same_compiled(model: Xcodec2Model) -> None:
    """Fails when what the compiler makes of it is something else."""
    _check_fused(model, compile=True)
