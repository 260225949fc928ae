"""From these weights a codec learns; from transformers' it does not."""

from __future__ import annotations

import pytest
import torch
from transformers import Xcodec2Model

from llasa.codec_training.forward import reconstruct, trained_parameters
from llasa.codec_training.initialise import initialise
from llasa.codec_training.losses import LATENT_MEAN, LATENT_SPREAD, SpectralLosses, latent_penalty
from llasa.codec_training.shape import new_nano
from tests.codec_training.speech_like import speech_like


@pytest.fixture(scope="module")
def initialised() -> Xcodec2Model:
    model = new_nano(seed=0)
    initialise(model, speech_like(8, 1.0))
    return model


def _share_of_codes(model: Xcodec2Model, waveforms: torch.Tensor) -> float:
    with torch.no_grad():
        codes = reconstruct(model, waveforms, None).codes
    return codes.unique().numel() / codes.numel()


def test_nearly_every_frame_gets_a_code_of_its_own(initialised: Xcodec2Model) -> None:
    """Fails when the projection is not whitened; of clips other than those it was fitted to."""
    unseen = speech_like(8, 1.0, seed=1)
    assert _share_of_codes(initialised, unseen) > 0.8
    assert _share_of_codes(new_nano(seed=0), unseen) < 0.05


def test_latents_are_where_the_levels_are(initialised: Xcodec2Model) -> None:
    """Fails when the projection is fitted to other values than those that are rounded."""
    with torch.no_grad():
        latents = reconstruct(initialised, speech_like(8, 1.0), None).latents.flatten(0, 1)
    torch.testing.assert_close(latents.mean(dim=0), torch.full((8,), LATENT_MEAN), atol=0.02, rtol=0)
    torch.testing.assert_close(latents.std(dim=0), torch.full((8,), LATENT_SPREAD), atol=0.02, rtol=0)
    assert (latents.T.corrcoef() - torch.eye(8)).abs().max() < 0.02


def test_the_first_sound_is_as_loud_as_speech_and_as_dark(initialised: Xcodec2Model) -> None:
    """Fails when the head's biases are not the average frame's: flat, or silent as with the default weights."""
    waveforms = speech_like(4, 1.0, seed=1)
    losses = SpectralLosses(16_000)
    measured = []
    for model in (initialised, new_nano(seed=0)):
        with torch.no_grad():
            made = reconstruct(model, waveforms, None).waveforms
        level = float(made.square().mean() / waveforms.square().mean())
        measured.append((level, float(losses(made, waveforms)["mel"])))
    assert 0.08 < measured[0][0] < 1.5
    assert measured[0][1] < 0.42
    assert measured[1][0] < 1e-6


def _gradients(model: Xcodec2Model) -> dict[str, float]:
    parameters = trained_parameters(model, "all")
    waveforms = speech_like(4, 1.0, seed=1)
    made = reconstruct(model, waveforms, None, rounding=0.0, generator=torch.Generator().manual_seed(0))
    losses = SpectralLosses(16_000)(made.waveforms, waveforms)
    (losses["mel"] + losses["stft"]).backward()
    norms = {name: float(value.grad.norm()) for name, value in model.named_parameters() if value.requires_grad}
    for parameter in parameters:
        parameter.grad = None
    return norms


def test_the_gradient_reaches_every_trained_parameter(initialised: Xcodec2Model) -> None:
    """Fails when a layer of the main path is left out; of the default weights, the encoder's get next to nothing."""
    norms = _gradients(initialised)
    assert min(norms.values()) > 1e-5, min(norms, key=norms.__getitem__)
    default = _gradients(new_nano(seed=0))
    assert min(default.values()) < 1e-5


def test_it_changes_nothing_but_weights(initialised: Xcodec2Model) -> None:
    """Fails when a hook stays behind, or the mode changes: later passes would be rescaled."""
    assert not any(module._forward_hooks for module in initialised.modules())
    model = new_nano(seed=0).train()
    initialise(model, speech_like(8, 1.0))
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, initialised.state_dict()[name]), name


def test_a_few_steps_learn(initialised: Xcodec2Model) -> None:
    """Fails when loss, gradient and codes do not work together: the same steps from the default weights go nowhere."""
    model = new_nano(seed=0)
    model.load_state_dict(initialised.state_dict())
    waveforms = speech_like(4, 0.5, seed=2)
    losses = SpectralLosses(16_000, mel_bands={256: 40, 1024: 80}, stft_windows=(512,))
    optimizer = torch.optim.AdamW(trained_parameters(model, "all"), lr=5e-4)
    generator = torch.Generator().manual_seed(0)
    history = []
    for _ in range(12):
        made = reconstruct(model, waveforms, None, rounding=0.5, generator=generator)
        parts = losses(made.waveforms, waveforms)
        loss = parts["mel"] + parts["stft"] + latent_penalty(made.latents)
        history.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert history[-1] < 0.8 * history[0], history
    assert _share_of_codes(model, waveforms) > 0.7
