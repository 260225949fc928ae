"""Searches with a tiny model, a codec of sines, and scorers that measure the waveform.

The model is untrained, so what it says means nothing, but it says something else with each seed and ends by itself.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from llasa.build import build
from llasa.config import SamplingConfig
from llasa.entry import group_config
from llasa.errors import UserError
from llasa.generation.beam_search import BeamSearch
from llasa.generation.engine import Request
from llasa.generation.engine_hf import TransformersEngine
from llasa.generation.scoring import (
    Candidate,
    LengthPlausibility,
    WeightedSum,
)
from llasa.generation.search import BestOf
from llasa.generation.synthesizer import Synthesizer
from llasa.generation.voices import Voice
from llasa.model.checkpoint import CheckpointCard
from llasa.tokens.prompt import PromptRules
from tests.model.tiny import CODEC, tiny_speech_model

TEXT = "Ciao, come stai?"
FRAME_SECONDS = 0.04
SAMPLED = SamplingConfig(temperature=1.0, max_seconds=1.0, text_bounds=False, loop_seconds=0, retries=0)
LIKELIEST = replace(SAMPLED, top_k=1)
"""Sampling, of which the outcome is known."""


class Sines:
    """A codec for the toy codes: a frame of 40 ms is a sine, its first code the loudness, its second the pitch."""

    spec = CODEC

    def decode(self, codes):
        return [self._decode(np.asarray(clip, dtype=np.int64).reshape(-1, 2)) for clip in codes]

    @staticmethod
    def _decode(frames):
        time = np.arange(640) / 16_000
        tones = [(1 + loud) / 16 * np.sin(2 * np.pi * 50 * (pitch + 1) * time) for loud, pitch in frames]
        return np.concatenate([np.empty(0), *tones]).astype(np.float32)


class Loudness:
    """Root mean square; keeps what it judged."""

    name, judges_unfinished = "loudness", True

    def __init__(self):
        self.judged: list[Candidate] = []

    def score(self, candidate):
        self.judged.append(candidate)
        return loudness(candidate.waveform)


@dataclass
class Seconds:
    """Long speech is good, or with a sign of -1 short speech."""

    sign: float = 1.0
    name: str = "seconds"
    judges_unfinished: bool = field(default=True)

    def score(self, candidate):
        return self.sign * len(candidate.waveform) / candidate.sample_rate


class Constant:
    name, judges_unfinished = "constant", True

    def __init__(self, value=0.0):
        self.value = value

    def score(self, candidate):
        return self.value


class CountingEngine(TransformersEngine):
    """The real engine, which also keeps what it was asked for."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.asked: list[list[Request]] = []

    def generate(self, speech, requests, sampling):
        self.asked.append(list(requests))
        return super().generate(speech, requests, sampling)


@pytest.fixture
def synthesizer(speech):
    return Synthesizer(speech, Sines(), CountingEngine(batch_size=8, progress=False), "it")


@pytest.fixture(scope="module")
def speech():
    speech = tiny_speech_model(spread=0.3)
    speech.model.eval()
    speech.card = CheckpointCard(PromptRules(), CODEC, ("it",), 256)
    return speech


def loudness(waveform: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))


def same(a, b) -> bool:
    return np.array_equal(a.codes, b.codes) and a.finish_reason == b.finish_reason


def beams(**changes):
    given = {
        "width": 2,
        "candidates": 3,
        "step_seconds": 3 * FRAME_SECONDS,
        "step_scorers": {"loudness": Loudness()},
        "scorers": {"loudness": Loudness()},
    }
    return given | changes


# best of n


def test_the_best_is_the_one_with_the_best_score(synthesizer):
    """Fails when the worst is taken, or scores are those of another candidate."""
    result = BestOf(6, {"loudness": Loudness()}).speak(synthesizer, TEXT, SAMPLED, seed=3)
    assert len(result.candidates) == 6
    for candidate in result.candidates:
        assert candidate.total == candidate.scores["loudness"] == loudness(candidate.speech.waveform)
        assert np.array_equal(candidate.speech.waveform, Sines().decode([candidate.speech.codes])[0])
    ended = [candidate for candidate in result.candidates if candidate.speech.finish_reason == "stop"]
    assert len({candidate.total for candidate in ended}) > 2
    assert result.best.total == max(candidate.total for candidate in ended)
    assert result.speech is result.best.speech
    assert result.codes_generated == sum(len(candidate.speech.codes) for candidate in result.candidates)
    assert result.cost == result.codes_generated / len(result.speech.codes)
    assert len(synthesizer.engine.asked) == 1, "all in one batch"


@pytest.mark.parametrize("retries", [0, 2])
def test_one_candidate_is_plain_synthesis(synthesizer, retries):
    """Fails when a search of one draws with another seed, or does without the retries of plain synthesis."""
    sampling = replace(SAMPLED, max_seconds=0.4, retries=retries)
    reasons = set()
    for seed in range(6):
        (expected,) = synthesizer.speak([TEXT], sampling, seed=seed)
        one = BestOf(1, {}).speak(synthesizer, TEXT, sampling, seed=seed)
        assert same(one.speech, expected)
        beam = BeamSearch(**beams(width=1, candidates=1)).speak(synthesizer, TEXT, sampling, seed=seed)
        assert same(beam.speech, expected)
        assert np.array_equal(one.speech.waveform, expected.waveform)
        reasons.add(expected.finish_reason)
    assert reasons == {"stop", "length"} or retries


def test_candidates_are_plain_synthesis_with_other_seeds(synthesizer):
    """Best-of-3 chooses among the first three of best-of-6. Fails when the batch decides what a seed says."""
    six = BestOf(6, {"loudness": Loudness()}).speak(synthesizer, TEXT, SAMPLED, seed=5).candidates
    three = BestOf(3, {"loudness": Loudness()}).speak(synthesizer, TEXT, SAMPLED, seed=5).candidates
    assert len({candidate.seed for candidate in six}) == 6
    assert six[0].seed == 5
    assert len({candidate.speech.codes.tobytes() for candidate in six}) > 3
    for candidate in six:
        (plain,) = synthesizer.speak([TEXT], SAMPLED, seed=candidate.seed)
        assert same(candidate.speech, plain)
    for few, many in zip(three, six[:3], strict=True):
        assert same(few.speech, many.speech)
        assert (few.seed, few.scores) == (many.seed, many.scores)


def test_the_same_seed_finds_the_same(synthesizer):
    """Fails when seeds of candidates or steps do not come from the search's."""
    for search in (BestOf(4, {"loudness": Loudness()}), BeamSearch(**beams())):
        first, again, other = (search.speak(synthesizer, TEXT, SAMPLED, seed=seed) for seed in (1, 1, 2))
        assert same(first.speech, again.speech)
        assert [c.total for c in first.candidates] == [c.total for c in again.candidates]
        assert not same(first.speech, other.speech)


def test_what_did_not_end_ranks_below_what_did(synthesizer):
    """Fails when the score alone decides: here the longest is best, and what was cut off is longest."""
    sampling = replace(SAMPLED, max_seconds=0.6)
    against_the_score = 0
    for seed in range(6):
        result = BestOf(8, {"seconds": Seconds()}).speak(synthesizer, TEXT, sampling, seed=seed)
        ended = [c.total for c in result.candidates if c.speech.finish_reason == "stop"]
        assert ended
        assert result.speech.finish_reason == "stop"
        assert result.best.total == max(ended)
        against_the_score += max(ended) < max(c.total for c in result.candidates)
    assert against_the_score
    cut_off = replace(SAMPLED, max_seconds=FRAME_SECONDS)
    results = [BestOf(3, {"loudness": Loudness()}).speak(synthesizer, TEXT, cut_off, seed=seed) for seed in range(6)]
    unfinished = [r for r in results if all(c.speech.finish_reason == "length" for c in r.candidates)]
    assert unfinished
    for result in unfinished:
        assert result.best.total == max(c.total for c in result.candidates)


def test_of_equals_the_first_is_taken(synthesizer):
    """Fails when the last is."""
    result = BestOf(5, {"constant": Constant()}).speak(synthesizer, TEXT, SAMPLED)
    first = next(c for c in result.candidates if c.speech.finish_reason == "stop")
    assert result.best is first
    search = beams(step_scorers={"constant": Constant()}, scorers={"constant": Constant()}, step_seconds=0.08)
    result = BeamSearch(**search).speak(synthesizer, TEXT, SAMPLED)
    first = next(c for c in result.candidates if c.speech.finish_reason == "stop")
    assert result.best is first


def test_weights_decide_between_scorers(synthesizer):
    """Fails when weights are left out of the sum, or counted twice."""
    scorers = {"loudness": Loudness(), "seconds": Seconds()}
    weights = {"loudness": 0.0, "seconds": -2.0}
    result = BestOf(6, scorers, weights).speak(synthesizer, TEXT, SAMPLED)
    for candidate in result.candidates:
        assert set(candidate.scores) == {"loudness", "seconds"}
        assert candidate.total == pytest.approx(-2 * candidate.speech.seconds)
    ended = [c for c in result.candidates if c.speech.finish_reason == "stop"]
    assert result.speech.seconds == min(c.speech.seconds for c in ended)
    half = WeightedSum(scorers, {"seconds": 0.5})
    assert half.total({"loudness": 3.0, "seconds": 4.0}) == 5.0


# beam search


def test_steps_change_nothing_where_there_is_one_way_to_go_on(synthesizer):
    """Four beams that draw from the likeliest code alone: plain synthesis, in one beam, as the others say the same.

    Fails when a continuation forgets a code, asks twice for END, or duplicates are kept.
    """
    steps = [1, 2, 3, 5]
    ended = set()
    likeliest = replace(LIKELIEST, max_seconds=0.6)
    for text in (TEXT, "Io", "Sì", "La luna è alta nel cielo", "Tu"):
        (expected,) = synthesizer.speak([text], likeliest)
        ended.add(expected.finish_reason)
        for frames in steps:
            search = beams(width=2, candidates=2, step_seconds=frames * FRAME_SECONDS)
            result = BeamSearch(**search).speak(synthesizer, text, likeliest)
            assert same(result.speech, expected), (text, frames)
            assert len(result.candidates) == 1
            first = min(frames * 2, len(expected.codes))
            assert result.codes_generated == 4 * first + 2 * (len(expected.codes) - first)
    assert ended == {"stop", "length"}


def test_a_loop_that_began_steps_ago_is_found(synthesizer):
    """Fails when loops are only looked for within one step: this beam would go on to the limit."""
    synthesizer.speech = tiny_speech_model(spread=0.1)
    synthesizer.speech.model.eval()
    synthesizer.speech.card = CheckpointCard(PromptRules(), CODEC, ("it",), 256)
    sampling = replace(LIKELIEST, loop_seconds=0.4)
    for text, codes in (("Ciao, come stai?", 4), ("Io", 2), ("Che ora è?", 8)):
        (expected,) = synthesizer.speak([text], sampling)
        assert (expected.finish_reason, len(expected.codes)) == ("loop", codes)
        result = BeamSearch(**beams(candidates=1, step_seconds=0.08)).speak(synthesizer, text, sampling)
        assert same(result.speech, expected)


def test_at_each_step_the_better_ones_are_kept(synthesizer):
    """What a step continues are the ``width`` loudest of what the step before left. Fails when others are."""
    judge = Loudness()
    result = BeamSearch(**beams(width=2, candidates=3, step_scorers={"loudness": judge})).speak(
        synthesizer, TEXT, SAMPLED
    )
    asked = synthesizer.engine.asked
    assert len(asked[0]) == 6, "the first step is as wide as the others"
    prompt = asked[0][0].prompt
    dropped = judged = 0
    for requests in asked[1:]:
        continued = {request.prompt[len(prompt) :].tobytes() for request in requests}
        assert all(request.num_spoken == len(request.prompt) - len(prompt) for request in requests)
        assert all(request.min_codes == 2 for request in requests), "END was asked for at the end of the step before"
        length = requests[0].num_spoken
        pool = {}
        for candidate in judge.judged[judged:]:
            if len(candidate.codes) > length:
                break
            judged += 1
            assert candidate.finish_reason in (None, "stop", "length")
            pool[synthesizer.speech.vocabulary.codes_to_ids(candidate.codes).tobytes()] = (
                loudness(candidate.waveform),
                candidate.finish_reason,
            )
        best = sorted(pool, key=lambda codes: pool[codes][0], reverse=True)[:2]
        assert continued == {codes for codes in best if pool[codes][1] is None}
        dropped += len(pool) - len(best)
    assert dropped >= 8
    assert len(result.candidates) == 2


def test_a_beam_finds_what_the_step_scorer_looks_for(synthesizer):
    """Louder than the best of as many codes on the whole. Fails when a step keeps the first or the worst."""
    found = {"beam": [], "best_of": [], "plain": []}
    for seed in range(6):
        beam = BeamSearch(**beams(width=2, candidates=4, step_seconds=0.08)).speak(
            synthesizer, TEXT, SAMPLED, seed=seed
        )
        many = BestOf(8, {"loudness": Loudness()}).speak(synthesizer, TEXT, SAMPLED, seed=seed)
        found["beam"].append(beam.best.total)
        found["best_of"].append(many.best.total)
        found["plain"].append(many.candidates[0].total)
    assert np.mean(found["beam"]) > np.mean(found["best_of"]) + 0.02 > np.mean(found["plain"]) + 0.04


def test_every_search_has_a_bound(synthesizer):
    """Long speech is good, so nothing that ends is kept. Fails when steps go on beyond the text's limit."""
    search = beams(step_scorers={"s": Seconds()}, scorers={"s": Seconds()}, step_seconds=0.16)
    lengths = []
    for seed in range(6):
        synthesizer.engine.asked.clear()
        result = BeamSearch(**search).speak(synthesizer, TEXT, replace(SAMPLED, max_seconds=0.6), seed=seed)
        assert len(synthesizer.engine.asked) <= 4
        lengths += [len(candidate.speech.codes) for candidate in result.candidates]
    assert max(lengths) == 0.6 * 50


def test_a_beam_that_was_cut_off_gives_way(synthesizer):
    """Long speech is good, and the longest is what ran into the limit. Fails when only the score decides."""
    search = beams(candidates=4, step_scorers={"s": Seconds()}, scorers={"s": Seconds()}, step_seconds=0.16)
    sampling = replace(SAMPLED, max_seconds=0.6)
    results = [BeamSearch(**search).speak(synthesizer, TEXT, sampling, seed=seed) for seed in range(12)]
    reasons = [[c.speech.finish_reason for c in result.candidates] for result in results]
    assert reasons.count(["stop", "stop"]) >= 3
    assert any("length" in pair for pair in reasons)
    for result, pair in zip(results, reasons, strict=True):
        assert result.speech.finish_reason == "stop" or "stop" not in pair


def test_the_end_is_judged_by_other_scorers(synthesizer):
    """Fails when the steps' scorers choose at the end too."""
    search = beams(width=3, step_scorers={"loudness": Loudness()}, scorers={"short": Seconds(-1.0)}, step_seconds=0.08)
    ranges = []
    for seed in range(6):
        result = BeamSearch(**search).speak(synthesizer, TEXT, SAMPLED, seed=seed)
        assert set(result.best.scores) == {"short"}
        ended = [c.speech.seconds for c in result.candidates if c.speech.finish_reason == "stop"]
        if ended:
            assert result.speech.seconds == min(ended)
            ranges.append(max(ended) - min(ended))
    assert max(ranges) > 0


# what scorers get


def test_a_scorer_sees_the_voice_and_the_prompt(synthesizer, speech):
    """Fails when the voice's waveform, or the language, is left out."""
    voice = Voice("Buonasera.", np.array([3, 20, 4, 63, 15, 16], dtype=np.uint16))
    judge = Loudness()
    for search in (BestOf(3, {"loudness": judge}), BeamSearch(**beams(scorers={"loudness": judge}))):
        judge.judged.clear()
        result = search.speak(synthesizer, TEXT, SAMPLED, voice=voice, language="de")
        assert judge.judged
        for candidate, scored in zip(judge.judged, result.candidates, strict=True):
            assert np.array_equal(candidate.voice, Sines().decode([voice.codes])[0])
            assert np.array_equal(candidate.prompt, speech.prompt.prompt(f"Buonasera. {TEXT}", voice.codes))
            assert (candidate.text, candidate.language, candidate.sample_rate) == (TEXT, "de", 16_000)
            assert candidate.finish_reason == scored.speech.finish_reason
            assert np.array_equal(candidate.codes, scored.speech.codes)


# mistakes and configs


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BestOf(0, {"x": Constant()}), r"search\.n=0 is not valid; use 1 to 1024"),
        (lambda: BestOf(5_000, {"x": Constant()}), r"search\.n=5000"),
        (lambda: BestOf(2, {}), r"search\.scorers=\{\} is not valid; name one, or use search=none"),
        (lambda: BestOf(2, {"x": Constant()}, {"y": 1.0}), r"search\.weights\.y=1\.0 .*scorers are x"),
        (lambda: BeamSearch(**beams(width=0)), r"search\.width=0"),
        (lambda: BeamSearch(**beams(candidates=0)), r"search\.candidates=0"),
        (lambda: BeamSearch(**beams(width=64, candidates=64)), r"search\.width x candidates=4096"),
        (lambda: BeamSearch(**beams(step_seconds=0)), r"search\.step_seconds=0"),
        (lambda: BeamSearch(**beams(scorers={})), r"search\.scorers="),
        (lambda: BeamSearch(**beams(step_scorers={})), r"search\.step_scorers="),
        (
            lambda: BeamSearch(**beams(step_scorers={"length": LengthPlausibility()})),
            r"search\.step_scorers\.length only judges whole utterances; move it to search\.scorers",
        ),
        (lambda: BeamSearch(**beams(weights={"z": 1.0})), r"search\.weights\.z"),
    ],
)
def test_a_search_that_cannot_be_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_a_search_that_cannot_begin_is_refused(synthesizer):
    """Fails when greedy decoding is searched: all candidates would be the same."""
    greedy = replace(SAMPLED, temperature=0.0)
    for search in (BestOf(2, {"x": Constant()}), BeamSearch(**beams())):
        with pytest.raises(UserError, match=r"sampling\.temperature=0 .*; use a temperature above 0"):
            search.speak(synthesizer, TEXT, greedy)
        with pytest.raises(UserError, match="nothing to say"):
            search.speak(synthesizer, "…", SAMPLED)
    (expected,) = synthesizer.speak([TEXT], greedy)
    assert same(BestOf(1, {}).speak(synthesizer, TEXT, greedy).speech, expected)
    with pytest.raises(UserError, match=r"search\.step_seconds=0\.03 .*a frame of the codec has 0\.04 s"):
        BeamSearch(**beams(step_seconds=0.03)).speak(synthesizer, TEXT, SAMPLED)
    with pytest.raises(UserError, match="the scorer x gave nan; a scorer must give a finite number"):
        BestOf(2, {"x": Constant(float("nan"))}).speak(synthesizer, TEXT, SAMPLED)


def test_the_options_are_built_and_search(synthesizer):
    """Fails when an option names what is not there."""
    assert build(group_config("search", "none")) is None
    node = group_config("search", "best_of")
    result = build(node | {"n": 3}).speak(synthesizer, TEXT, SAMPLED, seed=1)
    assert [set(c.scores) for c in result.candidates] == [{"likelihood"}] * 3
    likelihood = node["scorers"]["likelihood"]
    length = {"_target_": "llasa.generation.scoring.LengthPlausibility"}
    changes = {"step_scorers": {"likelihood": likelihood}, "scorers": {"length": length}, "step_seconds": 0.12}
    search = build(group_config("search", "beam") | changes | {"width": 2, "candidates": 2})
    result = search.speak(synthesizer, TEXT, SAMPLED)
    assert 1 <= len(result.candidates) <= 2
    assert set(result.best.scores) == {"length"}
    for option in ("best_of_cer", "beam"):
        assert group_config("search", option)["scorers"]["cer"]["asr"] == "???"
