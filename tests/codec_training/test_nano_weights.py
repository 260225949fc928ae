"""The weights in the package, `codec=xcodec2_nano`: there without a download, and as good as their card says."""

import os
import re
from pathlib import Path

import numpy as np
import pytest

from experiments.xcodec2_nano.corpus import SAMPLE_RATE, SOURCES, choose, speech, unpack
from experiments.xcodec2_nano.judge import distance
from llasa.build import build
from llasa.codec.xcodec2 import PACKAGED
from llasa.codec_training.usage import code_metrics
from llasa.entry import group_config
from llasa.errors import UserError
from tests.codec_training.speech_like import speech_like

FOLDER = PACKAGED["xcodec2_nano"]


@pytest.fixture(scope="module")
def codec():
    return build(group_config("codec", "xcodec2_nano"))


@pytest.fixture(scope="module")
def heldout():
    """The Italian sentences that the codec was not trained on, float32 [samples] each."""
    (source,) = (source for source in SOURCES if source.name == "asterisk-it")
    try:
        packages = unpack(source.packages, Path(os.environ["LLASA_CACHE"]) / "packages")
    except UserError as error:
        pytest.skip(str(error))
    clips = speech(source, packages)[0]
    chosen = {recording.id for recording in choose(clips)}
    return [waveform for recording, waveform in clips if recording.id in chosen]


def figure(name: str) -> float:
    """A number of the card's table of held-out sentences."""
    found = re.search(rf"^\| {re.escape(name)} \| ([\d.,]+)", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert found is not None, name
    return float(found[1].replace(",", ""))


def test_it_is_small_and_of_the_contract(codec):
    assert sum(file.stat().st_size for file in FOLDER.glob("*.safetensors")) <= 12_000_000
    assert (codec.spec.sample_rate, codec.spec.tokens_per_second, codec.spec.codebook_size) == (16_000, 50.0, 65_536)
    (codes,) = codec.encode([speech_like(1, 1.0)[0].numpy()])
    assert len(codes) == 51
    assert len(codec.decode([codes])[0]) >= 16_000


def test_its_card_names_the_licence_and_those_who_spoke():
    card = (FOLDER / "README.md").read_text()
    assert "license: cc-by-sa-4.0" in card
    for name in ("Carlo Flora", "June Wallack", "Allison Smith", "festvox-ru"):
        assert name in card


def test_held_out_speech_comes_back_as_the_card_says(codec, heldout):
    """Fails when the weights, the features or the frame rule are not those that were measured."""
    assert codec.spec.sample_rate == SAMPLE_RATE
    codes = codec.encode(heldout)
    sounds = [sound[: len(original)] for sound, original in zip(codec.decode(codes), heldout, strict=True)]
    distances = [distance(sound, original, SAMPLE_RATE) for sound, original in zip(sounds, heldout, strict=True)]
    assert len(distances) == 30
    assert np.mean(distances) == pytest.approx(figure("mel distance, dB"), abs=0.1)
    usage = code_metrics(np.concatenate(codes))
    assert usage["codes"] == pytest.approx(figure("different codes"), rel=0.02)
    assert usage["perplexity"] == pytest.approx(figure("perplexity of the codes"), rel=0.02)
