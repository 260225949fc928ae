"""The exported decoder of XCodec2 against the codec itself, read back from its file."""

import json

import numpy as np
import pytest
import torch

from llasa.codec import export
from llasa.codec.codec2 import Codec2
from llasa.codec.export import CARD, FILES, TOLERANCE, export_decoder, read_decoder
from llasa.codec.xcodec2 import XCodec2
from llasa.errors import UserError
from tests.codec.tiny_xcodec2 import save_tiny_xcodec2

HOP = 320
FORMS = [
    "onnx",
    "torch_export",
]


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    """Random weights give every frame the phase 0, a click where the window is 0: spread, they sound like noise."""
    codec = XCodec2(checkpoint=str(save_tiny_xcodec2(tmp_path_factory.mktemp("tiny_xcodec2"))), device="cpu")
    with torch.no_grad():
        codec.model.acoustic_decoder.head.linear.weight.mul_(10)
    waveform = codec.decode([np.arange(50) * 1000])[0]
    assert 0.05 < waveform.std() < 1, "too quiet or too loud to compare"
    return codec


@pytest.fixture(scope="module")
def exported(codec, tmp_path_factory):
    """form → (folder, decoder read from it), each made once."""
    made = {}

    def get(form):
        if form not in made:
            folder = tmp_path_factory.mktemp(form)
            difference = export_decoder(codec, form, folder)
            made[form] = (folder, read_decoder(folder / FILES[form]), difference)
        return made[form]

    return get


@pytest.mark.parametrize("form", FORMS)
def test_the_file_decodes_as_the_codec_does(codec, exported, form):
    """Any batch and any length. Fails when the inverse FFT's imaginary parts change sign, the window is left out, or
    the export fixes the number of frames."""
    _, decoder, _ = exported(form)
    generator = np.random.default_rng(1)
    for batch, frames in ((1, 2), (1, 3), (2, 5), (5, 49), (1, 50), (2, 51), (1, 600)):
        codes = generator.integers(0, 65_536, (batch, frames))
        expected = np.stack(codec.decode(list(codes)))
        waveform = decoder(codes)
        assert waveform.dtype == np.float32
        assert waveform.shape == expected.shape == (batch, frames * HOP)
        assert np.abs(waveform - expected).max() <= TOLERANCE * np.abs(expected).max()
    single = decoder(np.array([[7]]))
    assert single.shape == (1, HOP)
    assert np.isfinite(single).all()


@pytest.mark.parametrize("form", FORMS)
def test_the_folder_holds_one_file_and_the_codecs_card(codec, exported, form):
    folder, _, difference = exported(form)
    assert {path.name for path in folder.iterdir()} == {FILES[form], CARD}
    card = json.loads((folder / CARD).read_text())
    assert card["fingerprint"] == codec.spec.fingerprint
    assert (card["sample_rate"], card["hop"], card["codebook_size"]) == (16_000, HOP, 65_536)
    assert 0 < difference == card["largest_difference"] < TOLERANCE


def test_a_decoder_that_differs_is_refused(codec, tmp_path, monkeypatch):
    """Fails when the file is not compared with the codec after it was written."""
    monkeypatch.setattr(export, "TOLERANCE", 1e-12)
    with pytest.raises(UserError, match=r"differs from the codec by .*; try the other format"):
        export_decoder(codec, "torch_export", tmp_path)
    assert not (tmp_path / CARD).exists()


def test_exporting_leaves_the_codec_as_it_was(codec, exported):
    """Fails when the model's own head is replaced."""
    exported("torch_export")
    assert type(codec.model.acoustic_decoder.head).__name__ == "Xcodec2ISTFTHead"
    assert all(not weight.requires_grad for weight in codec.model.parameters())


def test_a_codec_without_weights_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^the codec codec2 cannot be exported: .*; pass a checkpoint that"):
        export_decoder(Codec2(), "torch_export", tmp_path)
    assert list(tmp_path.iterdir()) == []
