from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from llasa.config import SamplingConfig
from llasa.generation.engine import Request
from llasa.generation.engine_hf import TransformersEngine
from llasa.generation.limits import retry_seed
from llasa.generation.loops import find_loop
from llasa.generation.retries import generate_with_retries
from tests.model.tiny import tiny_speech_model

SAMPLING = SamplingConfig(temperature=0.06, loop_seconds=0.4, retries=2)
"""At this temperature the tiny model ends, goes on and repeats itself, by the seed."""


class CountingEngine(TransformersEngine):
    """The real engine, which also counts what it was asked for."""

    def generate(self, speech, requests, sampling):
        self.asked = [*getattr(self, "asked", []), len(requests)]
        return super().generate(speech, requests, sampling)


@pytest.fixture(scope="module")
def speech():
    speech = tiny_speech_model(spread=0.1)
    speech.model.eval()
    return speech


@pytest.fixture(scope="module")
def requests(speech):
    return [
        Request(speech.prompt.prompt(text), 120, fewest, seed)
        for text in ("Ciao", "Come stai?", "La luna")
        for fewest in (0, 100)
        for seed in range(12)
    ]


def test_the_best_of_all_tries_is_kept(speech, requests):
    """Against every try on its own. Fails when the order of outcomes changes, the last try wins, one that ended is
    tried again, or a loop is not cut."""
    engine = CountingEngine(batch_size=64, progress=False)
    results = generate_with_retries(engine, speech, requests, SAMPLING)
    seeds = [[retry_seed(request.seed, attempt) for attempt in range(3)] for request in requests]
    singly = [replace(request, seed=seed) for request, own in zip(requests, seeds, strict=True) for seed in own]
    every = engine.generate(speech, singly, SAMPLING)
    outcomes = Counter()
    for number, result in enumerate(results):
        tries = every[3 * number : 3 * number + 3]
        reasons = [one.finish_reason for one in tries]
        best = min(range(3), key=lambda i: ["stop", "length", "loop"].index(reasons[i]))
        assert (result.finish_reason, result.seed) == (reasons[best], seeds[number][best])
        assert result.tries == (best + 1 if reasons[best] == "stop" else 3)
        codes = tries[best].codes
        if reasons[best] == "loop":
            codes = codes[: find_loop(codes, 2, 25.0, 0.4)]
        np.testing.assert_array_equal(result.codes, codes)
        outcomes[reasons[0], reasons[best]] += 1
    assert outcomes.keys() >= {("loop", "loop"), ("loop", "length"), ("stop", "stop"), ("loop", "stop")}, outcomes
    unfinished = sum(count for (first, _), count in outcomes.items() if first != "stop")
    assert engine.asked[:2] == [len(requests), unfinished], "what did not end is tried again together, nothing else"


def test_the_same_seeds_give_the_same_tries(speech, requests):
    engine = TransformersEngine(batch_size=5, progress=False)
    first, again = (generate_with_retries(engine, speech, requests[:4], SAMPLING) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.codes, b.codes)
        assert (a.seed, a.tries) == (b.seed, b.tries)


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"retries": 0}])
def test_where_nothing_else_can_come_nothing_is_tried(speech, requests, settings):
    engine = CountingEngine(batch_size=64, progress=False)
    results = generate_with_retries(engine, speech, requests, replace(SAMPLING, **settings))
    assert engine.asked == [len(requests)]
    assert {result.tries for result in results} == {1}
    assert {result.finish_reason for result in results} != {"stop"}
    assert generate_with_retries(engine, speech, [], SAMPLING) == []
