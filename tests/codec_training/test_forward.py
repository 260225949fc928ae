"""The differentiable way through the codec is the codec's own way."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llasa.codec.features import KaldiFilterBank
from llasa.codec.xcodec2 import XCodec2
from llasa.codec_training.forward import reconstruct, semantic_features, trained_parameters
from llasa.codec_training.initialise import initialise
from llasa.codec_training.shape import new_nano
from tests.codec.tiny_xcodec2 import save_tiny_xcodec2
from tests.codec_training.speech_like import speech_like

LENGTHS = (16_000, 15_999, 16_001, 9_123)


@pytest.fixture(scope="module")
def codecs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, XCodec2]:
    """One that hears semantic features, and one that does not."""
    nano = new_nano(seed=0)
    initialise(nano, speech_like(8, 1.0))
    folder = tmp_path_factory.mktemp("nano")
    nano.save_pretrained(folder)
    hearing = save_tiny_xcodec2(tmp_path_factory.mktemp("tiny"))
    return {name: XCodec2(checkpoint=str(path), device="cpu") for name, path in (("nano", folder), ("tiny", hearing))}


@pytest.mark.parametrize("name", ["nano", "tiny"])
@pytest.mark.parametrize("length", LENGTHS)
def test_rounded_it_is_the_codec_to_the_last_bit(codecs: dict[str, XCodec2], name: str, length: int) -> None:
    """Fails when padding, features, one of the two tanh, the levels' scale or a straight-through bit differ."""
    codec = codecs[name]
    waveform = speech_like(1, 1.1, seed=3)[:, :length]
    features = semantic_features(codec.model, KaldiFilterBank(), waveform)
    assert (features is None) == (name == "nano")
    made = reconstruct(codec.model, waveform, features, rounding=1.0)
    codes = codec.encode([waveform[0].numpy()])[0]
    assert len(np.unique(codes)) > 25
    assert np.array_equal(made.codes[0].numpy(), codes)
    assert np.array_equal(made.waveforms[0].detach().numpy(), codec.decode([codes])[0][:length])


def test_a_batch_is_its_clips(codecs: dict[str, XCodec2]) -> None:
    """Fails when clips of a batch hear one another."""
    model = codecs["nano"].model
    waveforms = speech_like(3, 1.0, seed=4)
    together = reconstruct(model, waveforms, None)
    for index in range(3):
        alone = reconstruct(model, waveforms[index : index + 1], None)
        torch.testing.assert_close(together.latents[index], alone.latents[0], atol=1e-4, rtol=1e-4)
        assert (together.codes[index] == alone.codes[0]).float().mean() > 0.95


def test_rounding_is_phased_in_value_by_value(codecs: dict[str, XCodec2], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails when noise is not a step wide, when its share is not 1 - rounding, or when codes become the noise's."""
    model = codecs["nano"].model
    waveforms = speech_like(4, 2.0, seed=5)
    given = []
    project_out = model.quantizer.project_out
    monkeypatch.setattr(
        project_out, "forward", lambda values: given.append(values) or torch.zeros(*values.shape[:2], 288)
    )
    results = {}
    for rounding in (0.0, 0.3, 1.0):
        generator = torch.Generator().manual_seed(0)
        results[rounding] = reconstruct(model, waveforms, None, rounding=rounding, generator=generator)
    noisy, mixed, rounded = (2 * values for values in given)
    bound = model.quantizer.quantizer.bound
    values = bound(bound(results[0.0].latents))
    assert torch.equal(rounded, values.round())
    noise = noisy - values
    assert -0.5 <= noise.min() < -0.49
    assert 0.49 < noise.max() <= 0.5
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 12**-0.5) < 0.01
    assert abs((mixed == rounded).float().mean() - 0.3) < 0.02
    for made in results.values():
        assert torch.equal(made.codes, results[1.0].codes)


def test_the_generator_decides_the_noise(codecs: dict[str, XCodec2]) -> None:
    """Fails when noise comes from the global generator."""
    waveforms = speech_like(1, 0.5)
    first, again, other = (
        reconstruct(codecs["nano"].model, waveforms, None, rounding=0.5, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(first.waveforms, again.waveforms)
    assert not torch.equal(first.waveforms, other.waveforms)


@pytest.mark.parametrize("rounding", [0.0, 1.0])
def test_the_gradient_passes_straight_through(codecs: dict[str, XCodec2], rounding: float) -> None:
    """Fails when rounding cuts the encoder off: its gradient is then zero."""
    model = codecs["nano"].model
    parameters = trained_parameters(model, "all")
    made = reconstruct(model, speech_like(2, 1.0), None, rounding=rounding, generator=torch.Generator())
    made.waveforms.square().sum().backward()
    assert model.quantizer.project_in.weight.grad.abs().max() > 0
    assert model.acoustic_encoder.conv1.weight.grad.abs().max() > 0
    for parameter in parameters:
        parameter.grad = None


@pytest.mark.parametrize(("name", "part"), [("nano", "all"), ("tiny", "all"), ("nano", "decoder"), ("tiny", "decoder")])
def test_only_the_trained_part_gets_a_gradient(codecs: dict[str, XCodec2], name: str, part: str) -> None:
    """Fails when a decoder's training would move the codes, or a frozen semantic encoder would move."""
    model = codecs[name].model
    waveforms = speech_like(2, 0.5)
    trained = {id(parameter) for parameter in trained_parameters(model, part)}
    features = semantic_features(model, KaldiFilterBank(), waveforms)
    reconstruct(model, waveforms, features).waveforms.square().sum().backward()
    moved = {key.split(".")[0] for key, value in model.named_parameters() if value.grad is not None}
    expected = {"quantizer", "acoustic_decoder"}
    if part == "all":
        expected |= {"acoustic_encoder", "fc_encoder"} | ({"semantic_adapter"} if name == "tiny" else set())
    assert moved == expected
    assert (model.quantizer.project_in.weight.grad is not None) == (part == "all")
    for parameter in model.parameters():
        assert (parameter.grad is not None) == (id(parameter) in trained)
        parameter.grad = None


def test_training_mode_leaves_the_frozen_encoder_alone(codecs: dict[str, XCodec2]) -> None:
    """Fails when ``model.train()`` switches on the semantic encoder's dropout and masks."""
    model = codecs["tiny"].model
    waveforms = speech_like(2, 1.0)
    features = semantic_features(model, KaldiFilterBank(), waveforms)
    with torch.no_grad():
        expected = reconstruct(model, waveforms, features).latents
        model.train()
        latents = reconstruct(model, waveforms, features).latents
        model.eval()
    assert torch.equal(latents, expected)


def test_a_model_that_hears_features_wants_them(codecs: dict[str, XCodec2]) -> None:
    with pytest.raises(AssertionError, match="needs features"):
        reconstruct(codecs["tiny"].model, speech_like(1, 0.5), None)
