"""A voice resembles itself more than another: resemblyzer with its own weights, and a tiny WavLM from a folder."""

import socket

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMForXVector, WavLMModel

from llasa.audio import resample
from llasa.corpus.espeak import synthesize
from llasa.errors import UserError
from llasa.evaluation.similarity import SpeakerEncoder, similarity

SENTENCES = ("Il gatto dorme sul divano vicino alla finestra.", "Domani mattina andremo al mercato.")
RATE = 16_000


def speech(text: str, voice: str) -> np.ndarray:
    """Spoken by espeak: float32 [samples] at 16 kHz."""
    samples, rate = synthesize(text, voice=voice, words_per_minute=170)
    return resample(samples.astype(np.float32) / 32768, rate, RATE)


@pytest.fixture(scope="module")
def clips() -> dict[str, list[np.ndarray]]:
    return {voice: [speech(text, voice) for text in SENTENCES] for voice in ("it+f3", "it+m7")}


@pytest.fixture(scope="module")
def encoder() -> SpeakerEncoder:
    """Made where a connection would fail the test: its weights are in the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        return SpeakerEncoder()


def refuse(*_: object) -> None:
    raise AssertionError("asks the network")


@pytest.fixture(scope="module")
def wavlm(tmp_path_factory) -> str:
    """A WavLM for x-vectors with random weights, as `save_pretrained` leaves it."""
    folder = tmp_path_factory.mktemp("wavlm")
    torch.manual_seed(0)
    WavLMForXVector(tiny()).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder)
    return str(folder)


def tiny() -> WavLMConfig:
    return WavLMConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        tdnn_dim=(16, 16, 16, 16, 32),
        xvector_output_dim=24,
    )


def test_a_voice_resembles_itself_more_than_another(encoder, clips):
    """Two sentences each of a woman's and a man's voice. Fails when the clips are not told apart."""
    women, men = ([encoder.embed(clip, RATE) for clip in clips[voice]] for voice in ("it+f3", "it+m7"))
    within = [similarity(*women), similarity(*men)]
    between = [similarity(a, b) for a in women for b in men]
    assert min(within) > max(between) + 0.1
    assert max(within) < 0.99  # not the same clip


def test_an_embedding_is_a_unit_vector_and_a_clip_its_own_equal(encoder, clips):
    vector = encoder.embed(clips["it+f3"][0], RATE)
    assert vector.shape == (encoder.size,) == (256,)
    assert vector.dtype == np.float32
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
    assert similarity(vector, encoder.embed(clips["it+f3"][0], RATE)) == pytest.approx(1, abs=1e-6)


def test_neither_level_nor_sampling_rate_count(encoder, clips):
    """Fails when a clip's level is left as it is (0.95 between a clip and its tenth)."""
    clip = clips["it+m7"][0]
    vector = encoder.embed(clip, RATE)
    for gain in (0.02, 0.1, 1.1):
        assert similarity(vector, encoder.embed(clip * gain, RATE)) > 0.999, gain
    assert similarity(vector, encoder.embed(resample(clip, RATE, 24_000), 24_000)) > 0.99


def test_short_and_silent_clips(encoder, clips):
    """Fails when a clip in which no speech is found stays empty, or silence is divided by its own length."""
    own, other = clips["it+f3"][0], clips["it+m7"][0]
    short = encoder.embed(own[8_000:12_800], RATE)
    assert similarity(short, encoder.embed(own, RATE)) > similarity(short, encoder.embed(other, RATE))
    for clip in (own[8_000:8_400], np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)):
        assert np.linalg.norm(encoder.embed(clip, RATE)) == pytest.approx(1, abs=1e-6)
        assert similarity(encoder.embed(clip, RATE), encoder.embed(clip * 0.1, RATE)) > 0.999
    for clip in (np.zeros(0, np.float32), np.zeros(RATE, np.float32), np.full(RATE, 1e-5, np.float32)):
        silent = encoder.embed(clip, RATE)
        assert silent.shape == short.shape
        assert similarity(silent, short) == similarity(silent, silent) == 0


def test_a_wavlm_comes_from_a_folder(wavlm, clips, monkeypatch):
    """Fails when the model is not the folder's: what it says is computed here by its own parts."""
    monkeypatch.setattr(socket.socket, "connect", refuse)
    encoder = SpeakerEncoder(wavlm, device="cpu")
    clip = clips["it+f3"][0]
    vector = encoder.embed(clip, RATE)
    assert vector.shape == (encoder.size,) == (24,)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
    level = clip * (0.1 / np.sqrt(np.mean(clip.astype(np.float64) ** 2)))
    with torch.inference_mode():
        expected = WavLMForXVector.from_pretrained(wavlm).eval()(torch.tensor(level[None], dtype=torch.float32))
    expected = torch.nn.functional.normalize(expected.embeddings[0], dim=0).numpy()
    np.testing.assert_allclose(vector, expected, atol=1e-5)
    assert similarity(vector, encoder.embed(clip * 0.1, RATE)) > 0.999
    assert similarity(vector, encoder.embed(clips["it+m7"][0], RATE)) < 0.9999999
    assert np.linalg.norm(encoder.embed(clip[:800], RATE)) == pytest.approx(1, abs=1e-6)  # shorter than its network


def test_a_model_that_cannot_measure_is_refused(tmp_path):
    """Fails when a WavLM without an x-vector head is given a random one."""
    with pytest.raises(UserError, match=r"no speaker model in \./nowhere"):
        SpeakerEncoder("./nowhere")
    with pytest.raises(UserError, match="cannot be loaded"):
        SpeakerEncoder(str(tmp_path))
    WavLMModel(tiny()).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"has no .*; use resemblyzer, or a folder"):
        SpeakerEncoder(str(tmp_path))
