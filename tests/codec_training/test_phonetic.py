"""The recogniser's ear as a loss: Whisper's own features, over clips of any length; part of a training."""

import numpy as np
import pytest
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

from llasa.codec_training.phonetic import SAMPLE_RATE, PhoneticLoss
from llasa.errors import UserError
from tests.codec_training.corpora import column, run
from tests.codec_training.speech_like import speech_like


@pytest.fixture(scope="module")
def recognizer(tmp_path_factory):
    """A Whisper of 30 thousand parameters, random but alive in every layer."""
    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=32, decoder_layers=1,
        decoder_attention_heads=2, decoder_ffn_dim=16, vocab_size=51865, num_mel_bins=80, init_std=0.3,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("whisper")
    WhisperModel(config).save_pretrained(folder)
    return folder


def test_it_hears_what_whisper_hears(recognizer):
    """Fails when the spectrogram, the positions, a layer or the last norm are not Whisper's."""
    loss = PhoneticLoss(str(recognizer))
    sound = np.zeros(30 * SAMPLE_RATE, np.float32)
    sound[: 3 * SAMPLE_RATE] = 0.2 * np.random.default_rng(0).standard_normal(3 * SAMPLE_RATE)
    mel = WhisperFeatureExtractor()(sound, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
    waveforms = torch.from_numpy(sound)[None]
    torch.testing.assert_close(loss.log_mel(waveforms), mel, atol=1e-5, rtol=0)
    model = WhisperModel.from_pretrained(recognizer).eval()
    with torch.no_grad():
        whole = model.encoder(mel).last_hidden_state
        heard = loss.features(waveforms)
    assert len(heard) == 3
    torch.testing.assert_close(heard[-1], whole, atol=1e-4, rtol=1e-4)


def test_it_grows_with_what_is_wrong_and_teaches_the_estimate_alone(recognizer):
    loss = PhoneticLoss(str(recognizer))
    target = speech_like(2, 0.5)
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    estimates = [(target + scale * noise).requires_grad_() for scale in (0.0, 0.01, 0.1)]
    values = [loss(estimate, target) for estimate in estimates]
    assert values[0] == 0
    assert 0.01 < values[1] < values[2]
    values[2].backward()
    assert float(estimates[2].grad.abs().sum()) > 0
    assert all(parameter.grad is None for parameter in loss.parameters())


def test_a_training_has_it(recordings_corpus, tiny_codec, recognizer, tmp_path):
    """Fails when the weight is ignored, or the loss is not in the metrics."""
    model = f"codec_model.checkpoint={tiny_codec}"
    ear = ["losses.phonetic=2.0", f"losses.recognizer={recognizer}", model]
    run(recordings_corpus, tmp_path / "whole", *ear, "trainer.max_steps=4")
    run(recordings_corpus, tmp_path / "deaf", model, "trainer.max_steps=4")
    heard = column(tmp_path / "whole", "phonetic")
    assert len(heard) == 4
    assert min(heard) > 0
    parts = zip(*(column(tmp_path / "whole", key) for key in ("mel", "stft", "phonetic")), strict=True)
    expected = [mel + stft + 2 * phonetic for mel, stft, phonetic in parts]
    np.testing.assert_allclose(column(tmp_path / "whole", "loss"), expected, rtol=1e-5)
    assert column(tmp_path / "deaf", "loss")[0] < column(tmp_path / "whole", "loss")[0]
    assert column(tmp_path / "deaf", "mel")[3] != column(tmp_path / "whole", "mel")[3]


def test_a_recognizer_that_is_none(tmp_path):
    with pytest.raises(UserError, match=r"losses\.recognizer=\S*nothing cannot be read.*openai/whisper-tiny"):
        PhoneticLoss(str(tmp_path / "nothing"))
