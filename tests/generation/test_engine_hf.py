"""The decoding loop against transformers' own `generate`, one prompt at a time, as its slow twin."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from llasa.config import SamplingConfig
from llasa.generation.decoding import Decoder
from llasa.generation.engine import Request
from llasa.generation.engine_hf import TransformersEngine
from llasa.model.attention import SDPA
from tests.model.tiny import tiny_speech_model

GREEDY = SamplingConfig(temperature=0.0, loop_seconds=0)
SAMPLED = SamplingConfig(temperature=1.0, top_k=8, top_p=0.9, loop_seconds=0)
TEXTS = ["Ciao", "Come stai oggi?", "Io", "La luna è alta nel cielo", "Sì"]
FRAME = 2


@pytest.fixture(scope="module")
def speech():
    speech = tiny_speech_model(spread=0.5)
    speech.model.eval()
    return speech


def requests(speech, texts, limits, **settings):
    return [Request(speech.prompt.prompt(text), limit, **settings) for text, limit in zip(texts, limits, strict=True)]


def generate(speech, texts, sampling, limits, batch_size=8, **settings):
    engine = TransformersEngine(batch_size=batch_size)
    return engine.generate(speech, requests(speech, texts, limits, **settings), sampling)


def assert_same(results, expected):
    for a, b in zip(results, expected, strict=True):
        assert (a.codes.tolist(), a.finish_reason) == (b.codes.tolist(), b.finish_reason)


class InPlace(LogitsProcessor):
    """The frame layout of the tiny codec, (0, 16) and (16, 64), for transformers' `generate`."""

    def __init__(self, vocabulary, prompt_length):
        self.vocabulary, self.prompt_length = vocabulary, prompt_length

    def __call__(self, input_ids, scores):
        frame, place = divmod(input_ids.shape[1] - self.prompt_length, FRAME)
        first = self.vocabulary.first_code
        allowed = list(range(first, first + 16)) if place == 0 else list(range(first + 16, first + 64))
        allowed += [self.vocabulary.speech_end] if place == 0 and frame > 0 else []
        refused = torch.full_like(scores, float("-inf"))
        refused[:, allowed] = scores[:, allowed]
        return refused


def test_greedy_codes_are_those_of_transformers_generate(speech):
    """Fails when a place, a position or the mask of the slot cache is off by one."""
    vocabulary = speech.vocabulary
    for text, ours in zip(TEXTS, generate(speech, TEXTS, GREEDY, [40] * 5), strict=True):
        prompt = torch.from_numpy(speech.prompt.prompt(text))[None]
        rules = InPlace(vocabulary, prompt.shape[1])
        output = speech.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            logits_processor=LogitsProcessorList([rules]),
            do_sample=False,
            use_cache=True,
            max_new_tokens=41,
            eos_token_id=vocabulary.speech_end,
            pad_token_id=vocabulary.speech_end,
        )[0, prompt.shape[1] :].numpy()
        ends = np.flatnonzero(output == vocabulary.speech_end)
        expected = output[: ends[0]] if len(ends) else output[:40]
        assert ours.codes.tolist() == vocabulary.ids_to_codes(expected).tolist()
        assert ours.finish_reason == ("stop" if len(ends) else "length")


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_codes_stand_in_their_places_and_the_limit_holds(speech, sampling):
    limits = [10, 20, 30, 40, 2]
    for result, limit in zip(generate(speech, TEXTS, sampling, limits), limits, strict=True):
        assert FRAME <= len(result.codes) <= limit
        assert len(result.codes) % FRAME == 0
        assert (result.codes[0::2] < 16).all()
        assert ((result.codes[1::2] >= 16) & (result.codes[1::2] < 64)).all()
        assert result.finish_reason == "stop" or len(result.codes) == limit


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_neighbours_and_late_arrivals_change_nothing(speech, sampling):
    """Fails when a sequence that moves into another slot leaves a part of itself behind, or numbers are shared."""
    limits = [12, 40, 30, 40, 22]
    alone = [generate(speech, [text], sampling, [limit])[0] for text, limit in zip(TEXTS, limits, strict=True)]
    assert len({tuple(result.codes) for result in alone}) == 5
    for batch_size in (2, 3, 8):
        assert_same(generate(speech, TEXTS, sampling, limits, batch_size), alone)


def test_the_seed_of_a_request_decides(speech):
    first, again, other = (generate(speech, TEXTS, SAMPLED, [40] * 5, seed=seed) for seed in (1, 1, 2))
    assert_same(first, again)
    assert all(a.codes.tolist() != b.codes.tolist() for a, b in zip(first, other, strict=True))
    prompt = speech.prompt.prompt("Ciao")
    twins = [Request(prompt, 40, seed=seed) for seed in (1, 2, 1)]
    results = TransformersEngine(batch_size=3).generate(speech, twins, SAMPLED)
    assert results[0].codes.tolist() == results[2].codes.tolist() == first[0].codes.tolist()
    assert results[1].codes.tolist() == other[0].codes.tolist(), "equal prompts, filled once"


def test_no_code_before_end_is_lost_and_end_counts_at_the_limit(speech):
    whole = max(generate(speech, TEXTS, SAMPLED, [200] * 5), key=lambda r: (r.finish_reason == "stop", len(r.codes)))
    assert whole.finish_reason == "stop", "the model ends one of them"
    number = [r.codes.tolist() for r in generate(speech, TEXTS, SAMPLED, [200] * 5)].index(whole.codes.tolist())
    at_limit = generate(speech, TEXTS[number : number + 1], SAMPLED, [len(whole.codes)])[0]
    assert (at_limit.codes.tolist(), at_limit.finish_reason) == (whole.codes.tolist(), "stop")
    if len(whole.codes) > FRAME:
        short = generate(speech, TEXTS[number : number + 1], SAMPLED, [len(whole.codes) - FRAME])[0]
        assert (short.codes.tolist(), short.finish_reason) == (whole.codes[:-FRAME].tolist(), "length")
    later = generate(speech, TEXTS[number : number + 1], SAMPLED, [200], min_codes=len(whole.codes) + 1)[0]
    assert len(later.codes) > len(whole.codes)
    assert later.codes[: len(whole.codes)].tolist() == whole.codes.tolist()


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 0.999}])
def test_the_narrowest_sampling_is_greedy(speech, narrow):
    greedy = generate(speech, TEXTS, GREEDY, [20] * 5)
    assert_same(generate(speech, TEXTS, SamplingConfig(temperature=1.0, loop_seconds=0, **narrow), [20] * 5), greedy)


def test_repetition_counts_what_this_utterance_said_and_not_the_voice(speech):
    """Fails when the codes in front all count, or none does."""
    punishing = SamplingConfig(temperature=0.0, repetition_penalty=99.0, loop_seconds=0)
    engine, repeated = TransformersEngine(batch_size=1), 0
    for text in TEXTS:
        prompt = speech.prompt.prompt(text)
        codes = engine.generate(speech, [Request(prompt, 40)], punishing)[0].codes.tolist()
        assert len(set(codes[:32])) == len(codes[:32]), "16 codes can stand first in a frame"
        begun = engine.generate(speech, [Request(prompt, 8)], GREEDY)[0].codes
        longer = np.concatenate([prompt, speech.vocabulary.codes_to_ids(begun)])
        plain = engine.generate(speech, [Request(longer, 2)], GREEDY)[0].codes.tolist()
        as_voice = engine.generate(speech, [Request(longer, 2)], punishing)[0].codes.tolist()
        as_own = engine.generate(speech, [Request(longer, 2, num_spoken=len(begun))], punishing)[0].codes.tolist()
        assert as_voice == plain
        assert not set(as_own) & set(begun.tolist())
        repeated += bool(set(plain) & set(begun.tolist()))
    assert repeated, "the model repeats itself if it may"


def test_a_loop_ends_the_speech():
    speech = tiny_speech_model(spread=0.02)  # untrained, it says one thing for ever
    speech.model.eval()
    sampling = SamplingConfig(temperature=0.0, loop_seconds=1.0)
    result = generate(speech, ["Ciao"], sampling, [1000])[0]
    assert result.finish_reason == "loop"
    assert len(result.codes) <= 50 * 2.5


def test_what_is_streamed_is_what_is_generated(speech):
    wanted = requests(speech, TEXTS, [12, 40, 30, 40, 22], seed=3)
    engine = TransformersEngine(batch_size=2)
    parts = [[] for _ in TEXTS]
    reasons = {}
    for part in engine.stream(speech, wanted, SAMPLED):
        assert part.index not in reasons, "nothing follows the last part"
        assert len(part.codes) in (0, FRAME)
        parts[part.index] += part.codes.tolist()
        if part.finish_reason:
            reasons[part.index] = part.finish_reason
    expected = engine.generate(speech, wanted, SAMPLED)
    assert parts == [result.codes.tolist() for result in expected]
    assert [reasons[i] for i in range(5)] == [result.finish_reason for result in expected]


def test_who_is_cancelled_leaves_the_others_as_they_are(speech):
    wanted = requests(speech, TEXTS[1:4], [40] * 3, seed=7)
    expected = TransformersEngine(batch_size=3).generate(speech, wanted, SAMPLED)
    decoder = Decoder(speech, slots=3, capacity=400)
    for index, request in enumerate(wanted):
        decoder.add(index, request, SAMPLED)
    assert decoder.free == 0
    codes = [[], [], []]
    for step in range(200):
        if step == 5:
            assert 0 in {sequence.utterance.index for sequence in decoder.sequences}
            free = decoder.free
            decoder.cancel(0)
            assert decoder.free == free + 1
        if not decoder.sequences:
            break
        for part in decoder.step():
            codes[part.index] += part.codes.tolist()
    assert len(codes[0]) <= 6
    assert codes[1:] == [result.codes.tolist() for result in expected[1:]]


def test_each_sequence_is_sampled_its_own_way(speech):
    """Fails when one chooser, or the codes another slot has said, serves all rows."""
    ways = [GREEDY, SAMPLED, replace(SAMPLED, repetition_penalty=1.5), replace(GREEDY, repetition_penalty=2.0), SAMPLED]
    wanted = requests(speech, TEXTS, [12, 40, 30, 40, 22], seed=3)
    engine = TransformersEngine(batch_size=3)
    expected = [engine.generate(speech, [request], way)[0] for request, way in zip(wanted, ways, strict=True)]
    assert any(
        engine.generate(speech, [request], GREEDY)[0].codes.tolist() != result.codes.tolist()
        for request, result in zip(wanted[2:4], expected[2:4], strict=True)
    )
    batch = engine.open(speech, capacity=400)
    waiting, codes, reasons = [4, 3, 2, 1, 0], [[] for _ in TEXTS], [None] * 5
    while waiting or len(batch):
        while waiting and batch.free:
            index = waiting.pop()
            batch.add(index, wanted[index], ways[index])
        assert len(batch) == 3 - batch.free
        for part in batch.step():
            codes[part.index] += part.codes.tolist()
            reasons[part.index] = part.finish_reason
    assert codes == [result.codes.tolist() for result in expected]
    assert reasons == [result.finish_reason for result in expected]


def test_a_head_that_cannot_be_sliced_gives_the_same(speech):
    """As with adapters in the head, or FSDP's shards: all logits, then the codes' columns."""
    expected = generate(speech, TEXTS, SAMPLED, [20] * 5)
    head = speech.model.lm_head

    class Wrapped(torch.nn.Linear):
        pass

    other = Wrapped(head.in_features, head.out_features, bias=False)
    other.weight = head.weight
    speech.model.lm_head = other
    try:
        assert_same(generate(speech, TEXTS, SAMPLED, [20] * 5), expected)
    finally:
        speech.model.lm_head = head


def test_the_model_is_left_as_it_was(speech):
    generate(speech, TEXTS, GREEDY, [4] * 5)
    assert speech.model.config._attn_implementation == SDPA
    assert generate(speech, [], GREEDY, []) == []
