import numpy as np
import pytest

from llasa.corpus.store import TokenStore
from llasa.generation.loops import LoopDetector, find_loop

FRAME, RATE = 4, 50.0


def speech(frames: int, seed: int = 0) -> np.ndarray:
    """Codes [frames * FRAME] that do not repeat."""
    return np.random.default_rng(seed).integers(0, 4096, frames * FRAME)


def looping(period: int, turns_seconds: float = 4.0, begin: int = 20) -> np.ndarray:
    """Speech of ``begin`` frames, then ``period`` frames over and over."""
    codes = speech(begin + period).reshape(-1, FRAME)
    turns = int(turns_seconds * RATE) // period + 1
    return np.concatenate([codes[:begin], *[codes[begin:]] * turns]).reshape(-1)


@pytest.mark.parametrize("seconds", [0.5, 2.0])
def test_a_loop_of_any_period_is_found_as_soon_as_it_has_gone_on_long_enough(seconds):
    """Fails when a period is left out, or the loop is told too early, too late or from another place."""
    window = int(seconds * RATE)
    for period in range(1, window // 2 + 1):
        codes = looping(period)
        detector = LoopDetector(FRAME, RATE, seconds)
        answers = [detector.push(frame) for frame in codes.reshape(-1, FRAME)[: 20 + period + window]]
        assert set(answers[:-1]) == {None}, period
        assert answers[-1] == (20 + period) * FRAME, period
        assert find_loop(codes, FRAME, RATE, seconds) == answers[-1]


def test_what_is_before_the_repetition_holds_the_loop_once():
    """Fails when the first turn counts as repetition, or the second does not."""
    assert find_loop(looping(7), FRAME, RATE, 2.0) == 27 * FRAME
    assert find_loop(speech(300), FRAME, RATE, 2.0) is None


def test_a_loop_with_a_wrong_code_now_and_then_is_one():
    """Fails when all codes of the window must agree (``AGREEMENT = 1``)."""
    codes = looping(11)
    codes[20 * FRAME :: 37] = 5000
    found = find_loop(codes, FRAME, RATE, 2.0)
    assert found is not None
    assert abs(found // FRAME - 31) <= 11
    codes[20 * FRAME :: 3] = np.arange(len(codes[20 * FRAME :: 3])) + 6000
    assert find_loop(codes, FRAME, RATE, 2.0) is None, "two codes of three are no loop"


@pytest.mark.parametrize("frame", [1, 4])
def test_a_pause_shorter_than_the_loop_never_counts(frame):
    """A codec says one frame for a silence. Fails when a share of ``loop_seconds`` is enough."""
    for pause, is_loop in ((1.0, False), (1.9, False), (1.98, False), (2.02, True)):
        before, after = speech(60, 1)[: 60 * frame], speech(60, 2)[: 60 * frame]
        silence = np.tile(np.arange(frame), 1 + int(pause * RATE))
        codes = np.concatenate([before, silence, after, silence, after[::-1]])
        assert (find_loop(codes, frame, RATE, 2.0) is not None) == is_loop, pause


def test_a_repeated_word_is_none():
    """The same word three times over, each time said a little differently (a third of its codes)."""
    words = np.tile(speech(20), (12, 1))
    other = np.random.default_rng(3).random(words.shape) < 1 / 3
    words[other] = np.random.default_rng(4).integers(0, 4096, other.sum())
    assert find_loop(words.reshape(-1), FRAME, RATE, 2.0) is None


def test_it_can_be_switched_off_and_short_speech_has_none():
    assert LoopDetector(FRAME, RATE, 0.0).push(looping(1)) is None
    assert find_loop(np.empty(0, np.uint16), FRAME, RATE, 2.0) is None
    assert find_loop(looping(1)[: 50 * FRAME], FRAME, RATE, 2.0) is None
    assert find_loop(np.zeros(9, np.uint16), 2, RATE, 0.04) == 2, "a half frame at the end is left out"


def test_how_the_codes_are_parted_does_not_matter():
    """Fails when a push forgets what came before it."""
    codes = looping(13).astype(np.uint16)
    for size in (1, 3, 40, 1000):
        detector = LoopDetector(FRAME, RATE, 1.0)
        parts = [codes[start : start + size * FRAME] for start in range(0, len(codes), size * FRAME)]
        assert next(filter(None, map(detector.push, parts))) == find_loop(codes, FRAME, RATE, 1.0) == 33 * FRAME


def test_spoken_sentences_have_no_loop(espeak_store):
    """A synthetic voice repeats itself more than any person; all 478 recordings: experiments/speech_bounds."""
    rows = TokenStore(espeak_store).rows("train")[:]["codes"]
    assert len(rows) == 3
    for codes in rows:
        assert find_loop(np.asarray(codes), FRAME, RATE, 0.5) is None
