"""The nano's shape: as the published model where a language model can tell, and small enough for the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

import llasa
from llasa.codec.xcodec2 import PACKAGED, XCodec2, fingerprint, uses_features
from llasa.codec_training.initialise import initialise
from llasa.codec_training.shape import nano_config, new_nano
from llasa.entry import group_config
from tests.codec.tiny_xcodec2 import save_tiny_xcodec2
from tests.codec_training.speech_like import speech_like

LIMIT_BYTES = 12_000_000


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = new_nano(seed=0)
    initialise(model, speech_like(8, 1.0))
    folder = tmp_path_factory.mktemp("nano")
    model.half().save_pretrained(folder)
    return folder


def test_a_language_model_cannot_tell_it_from_the_published_one(checkpoint: Path) -> None:
    """Fails when codes, rate or frames differ: one prompt contract serves both."""
    codec = XCodec2(checkpoint=str(checkpoint), device="cpu")
    assert codec.spec.sample_rate == 16_000
    assert codec.spec.tokens_per_second == 50
    assert codec.spec.codebook_size == 65_536
    codes = codec.encode([speech_like(1, 1.5)[0].numpy()])
    assert codes[0].shape == (76,)
    assert codec.decode(codes)[0].shape == (76 * 320,)


def test_its_weights_fit_into_the_package_in_half_precision(checkpoint: Path) -> None:
    """Fails when a width or depth grows past 12 MB."""
    size = (checkpoint / "model.safetensors").stat().st_size
    assert 0.9 * LIMIT_BYTES < size < LIMIT_BYTES


def test_half_precision_is_storage_only(checkpoint: Path) -> None:
    """Fails when a stored half is computed with as a half: the codec works in float32."""
    codec = XCodec2(checkpoint=str(checkpoint), device="cpu")
    assert {parameter.dtype for parameter in codec.model.parameters()} == {torch.float32}


def test_features_cannot_change_its_codes_and_are_not_computed(checkpoint: Path) -> None:
    """Fails when the semantic branch hears anything, or when the codec computes features that it does not hear."""
    codec = XCodec2(checkpoint=str(checkpoint), device="cpu")
    assert not uses_features(codec.model)
    assert codec.features is None
    waveform = speech_like(1, 2.0)[0]
    padded = torch.nn.functional.pad(waveform, (0, 320))[None, None]
    loud = 100 * torch.randn(1, 101, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        deafened = codec.model.encode(padded, input_features=loud).audio_codes[0, 0]
    assert np.array_equal(deafened.numpy(), codec.encode([waveform.numpy()])[0])


def test_a_model_that_hears_features_gets_them(tmp_path: Path) -> None:
    """Fails when features are skipped for a model with a real semantic branch."""
    codec = XCodec2(checkpoint=str(save_tiny_xcodec2(tmp_path)), device="cpu")
    assert uses_features(codec.model)
    assert codec.features is not None


def test_batches_give_the_codes_of_single_clips(checkpoint: Path) -> None:
    """Fails when the branch without layers lets a clip's neighbours or padding through."""
    waveforms = [
        clip[:length].numpy() for clip, length in zip(speech_like(4, 1.8), (9_000, 17_000, 24_321, 28_800), strict=True)
    ]
    batched = XCodec2(checkpoint=str(checkpoint), device="cpu", batch_seconds=60).encode(waveforms)
    single = XCodec2(checkpoint=str(checkpoint), device="cpu", batch_seconds="auto").encode(waveforms)
    for one, other in zip(batched, single, strict=True):
        assert np.array_equal(one, other)


def test_its_name_finds_it_in_the_package(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Fails when the name depends on where a script is started, or when another folder can take its place."""
    assert PACKAGED["xcodec2_nano"] == Path(llasa.__file__).parent / "codec" / "xcodec2_nano"
    monkeypatch.setitem(PACKAGED, "xcodec2_nano", checkpoint)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "xcodec2_nano").mkdir()
    config = group_config("codec", "xcodec2_nano")
    codec = instantiate(config)
    assert isinstance(codec, XCodec2)
    assert codec.spec.name == codec.spec.checkpoint == "xcodec2_nano"
    assert codec.spec.fingerprint == fingerprint(XCodec2(checkpoint=str(checkpoint), device="cpu").model)


def test_the_seed_decides_the_weights() -> None:
    """Fails when weights come from the global generator, or when it is disturbed."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = new_nano(seed=1)
    assert torch.equal(before, torch.get_rng_state())
    torch.randn(3)
    assert fingerprint(first) == fingerprint(new_nano(seed=1))
    assert fingerprint(first) != fingerprint(new_nano(seed=2))
    assert nano_config().hop_length == 320
