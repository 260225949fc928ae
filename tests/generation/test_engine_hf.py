import numpy as np
import pytest

from llasa.config import SamplingConfig
from llasa.generation.engine_hf import TransformersEngine
from tests.model.tiny import tiny_speech_model

GREEDY, SAMPLED = SamplingConfig(temperature=0.0), SamplingConfig(temperature=1.0, top_k=8, top_p=0.9)
TEXTS = ["Ciao", "Come stai oggi?", "Io", "La luna è alta nel cielo", "Sì"]


@pytest.fixture(scope="module")
def speech():
    speech = tiny_speech_model(spread=0.5)
    speech.model.eval()
    return speech


def generate(speech, texts, sampling, limits, seed=0, batch_size=8):
    prompts = [speech.prompt.prompt(text) for text in texts]
    return TransformersEngine(batch_size=batch_size).generate(speech, prompts, sampling, limits, seed)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_codes_stand_in_their_places_and_the_limit_holds(speech, sampling):
    limits = [10, 20, 30, 40, 2]
    for result, limit in zip(generate(speech, TEXTS, sampling, limits), limits, strict=True):
        assert 2 <= len(result.codes) <= limit
        assert len(result.codes) % 2 == 0
        assert (result.codes[0::2] < 16).all()
        assert ((result.codes[1::2] >= 16) & (result.codes[1::2] < 64)).all()
        assert result.finish_reason == "stop" or len(result.codes) == limit


def test_ragged_batches_equal_single_prompts(speech):
    together = generate(speech, TEXTS, GREEDY, [20] * 5)
    alone = [generate(speech, [text], GREEDY, [20])[0] for text in TEXTS]
    in_pairs = generate(speech, TEXTS, GREEDY, [20] * 5, batch_size=2)
    assert len({tuple(result.codes) for result in alone}) > 1
    for a, b, c in zip(together, alone, in_pairs, strict=True):
        np.testing.assert_array_equal(a.codes, b.codes)
        np.testing.assert_array_equal(c.codes, b.codes)
        assert a.finish_reason == b.finish_reason == c.finish_reason


def test_the_seed_decides(speech):
    first, again, other = (generate(speech, TEXTS, SAMPLED, [40] * 5, seed=seed) for seed in (1, 1, 2))
    assert all((a.codes == b.codes).all() for a, b in zip(first, again, strict=True))
    assert any(a.codes.tolist() != b.codes.tolist() for a, b in zip(first, other, strict=True))


def test_no_code_before_end_is_lost(speech):
    vocabulary = speech.vocabulary
    codes = np.array([3, 20, 4, 63])
    ids, end = vocabulary.codes_to_ids(codes), [vocabulary.speech_end]
    cut = TransformersEngine._cut
    stopped = cut(np.concatenate([ids, end, end]), 10, speech)
    assert (stopped.codes.tolist(), stopped.finish_reason) == (codes.tolist(), "stop")
    at_limit = cut(np.concatenate([ids, end]), 4, speech)
    assert (at_limit.codes.tolist(), at_limit.finish_reason) == (codes.tolist(), "stop")
    without_end = cut(ids, 4, speech)
    assert (without_end.codes.tolist(), without_end.finish_reason) == (codes.tolist(), "length")
    half_a_frame = cut(ids[:3], 10, speech)
    assert (half_a_frame.codes.tolist(), half_a_frame.finish_reason) == ([3, 20], "length")
    smaller_limit = cut(np.concatenate([ids, end]), 2, speech)
    assert (smaller_limit.codes.tolist(), smaller_limit.finish_reason) == ([3, 20], "length")
