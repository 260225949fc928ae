"""Scorers, each against what it should say by hand."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from llasa.config import SamplingConfig
from llasa.corpus.espeak import synthesize
from llasa.corpus.recognition import edit_distance
from llasa.errors import UserError
from llasa.generation.engine_hf import TransformersEngine
from llasa.generation.scoring import (
    Candidate,
    CharacterAccuracy,
    LengthPlausibility,
    Likelihood,
    prefix_error_rate,
)
from llasa.generation.synthesizer import Synthesizer
from llasa.model.checkpoint import CheckpointCard
from llasa.model.llama import TokenContract
from llasa.text import characters_per_second
from llasa.tokens.prompt import PromptRules
from tests.model.tiny import CODEC, tiny_speech_model

TEXT = "Ciao, come stai?"
LIKELIEST = SamplingConfig(temperature=1.0, top_k=1, max_seconds=1.0, text_bounds=False, loop_seconds=0, retries=0)


@pytest.fixture(scope="module")
def speech():
    speech = tiny_speech_model(spread=0.3)
    speech.model.eval()
    speech.card = CheckpointCard(PromptRules(), CODEC, ("it",), 256)
    return speech


def candidate(speech, codes=(3, 20, 4, 63), reason="stop", text=TEXT, language="it", seconds=0.08) -> Candidate:
    codes, silence = np.array(codes, dtype=np.uint16), np.zeros(round(seconds * 16_000), np.float32)
    return Candidate(silence, 16_000, codes, reason, text, language, speech.prompt.prompt(text), speech)


@pytest.mark.parametrize("reason", ["stop", "length", None])
def test_the_likelihood_is_the_models_own(speech, reason):
    """Against the logits of the whole row. Fails when codes are off by one, or END is forgotten or always there."""
    said = candidate(speech, reason=reason)
    ids = [*said.prompt, *(speech.vocabulary.first_code + said.codes.astype(int))]
    ids += [speech.vocabulary.speech_end] if reason == "stop" else []
    with torch.no_grad():
        log_probabilities = speech.model(torch.tensor([ids])).logits[0].double().log_softmax(dim=-1)
    expected = [float(log_probabilities[place - 1, ids[place]]) for place in range(len(said.prompt), len(ids))]
    assert len(expected) == 4 + (reason == "stop")
    assert Likelihood().score(said) == pytest.approx(np.mean(expected), abs=1e-5)


def test_what_the_model_says_is_likelier_than_chance(speech):
    synthesizer = Synthesizer(speech, None, TransformersEngine(batch_size=1), "it")
    (likeliest,) = synthesizer.generate([TEXT], LIKELIEST)
    generator = np.random.default_rng(0)
    for _ in range(5):
        frames = len(likeliest.codes) // 2
        chance = np.stack([generator.integers(0, 16, frames), generator.integers(16, 64, frames)], axis=1).reshape(-1)
        said = candidate(speech, likeliest.codes, likeliest.finish_reason)
        assert Likelihood().score(said) > Likelihood().score(candidate(speech, chance, likeliest.finish_reason)) + 1


def test_the_likelihood_needs_the_weights(speech):
    contract = {name: getattr(speech, name) for name in ("tokenizer", "vocabulary", "prompt", "card")}
    said = replace(candidate(speech), speech=TokenContract(**contract))
    with pytest.raises(UserError, match=r"likelihood needs the model's weights, .*; use engine=hf"):
        Likelihood().score(said)


def test_unfinished_speech_is_compared_with_the_prefix_that_fits_best():
    """Against every prefix by itself. Fails when the empty prefix counts: silence would be perfect."""
    text = "il gatto dorme sul divano"
    assert prefix_error_rate(text, "il gatto do") == 0
    assert prefix_error_rate(text, text) == 0
    assert prefix_error_rate(text, "") == 1
    assert prefix_error_rate(text, "il ratto do") == pytest.approx(1 / 11)
    assert prefix_error_rate(text, text + " rosso") == pytest.approx(6 / 25)
    for heard in ("gatto", "il gat", "xyz", "il gatto dorme sul", "illl"):
        every = [edit_distance(text[:n], heard) / n for n in range(1, len(text) + 1)]
        assert prefix_error_rate(text, heard) == pytest.approx(min(every))


def test_the_speed_of_speech_is_plausible_in_the_middle(speech):
    """Fails when seconds and letters change places, or slow counts other than fast."""
    slow, fast = characters_per_second("it")
    text = "a" * 60
    middle, slowest, fastest, half, twice = (
        LengthPlausibility().score(candidate(speech, text=text, seconds=60 / speed))
        for speed in ((slow * fast) ** 0.5, slow, fast, (slow * fast) ** 0.5 / 2, (slow * fast) ** 0.5 * 2)
    )
    assert middle == pytest.approx(0, abs=1e-3)
    assert slowest == pytest.approx(-1, abs=1e-3)
    assert fastest == pytest.approx(-1, abs=1e-3)
    assert half == pytest.approx(twice, abs=1e-3)
    assert -1 < half < -0.5
    assert LengthPlausibility().score(candidate(speech, codes=(), seconds=0)) < -3
    own = LengthPlausibility(speed=18)
    assert own.score(candidate(speech, text=text, seconds=60 / 18)) == pytest.approx(0, abs=1e-3)
    assert own.score(candidate(speech, text=text, seconds=60 / 11)) < -0.3
    with pytest.raises(UserError, match=r"search\.scorers\.length\.speed=0 is not valid"):
        LengthPlausibility(speed=0)
    with pytest.raises(UserError, match="how fast language=xx"):
        LengthPlausibility().score(candidate(speech, language="xx"))


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("LLASA_TEST_ASR"), reason="LLASA_TEST_ASR names no Whisper folder")
def test_a_recogniser_hears_errors(speech):
    """espeak's English. Fails when half a sentence is held against all of it, or the sign is lost."""
    text = "The weather is very nice today, and we are going to the market."
    samples, rate = synthesize(text, voice="en-us", words_per_minute=150)
    waveform = samples.astype(np.float32) / 32768
    judge = CharacterAccuracy(os.environ["LLASA_TEST_ASR"])
    whole = replace(candidate(speech, text=text, language="en"), waveform=waveform, sample_rate=rate)
    half = replace(whole, waveform=waveform[: len(waveform) // 2])
    assert judge.score(whole) > -0.1
    assert judge.score(half) < -0.3
    assert judge.score(replace(half, finish_reason=None)) > -0.2
    assert judge.score(replace(whole, text="A completely different text with other words in it.")) < -0.5
