"""DNSMOS by the models that speechmos carries."""

import socket

import numpy as np
import pytest

from llasa.audio import resample
from llasa.corpus.espeak import synthesize
from llasa.evaluation.dnsmos import Dnsmos

RATE = 16_000


@pytest.fixture(scope="module")
def judge() -> Dnsmos:
    """Made where a connection would fail the test: the models are in the package."""

    def refuse(*_: object) -> None:
        raise AssertionError("asks the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        return Dnsmos(threads=1)


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    """2.3 s of speech: four times that is one window of the models, so one run of them."""
    samples, rate = synthesize("Il gatto dorme sul divano vicino alla finestra.", voice="it+f3", words_per_minute=170)
    return resample(samples.astype(np.float32) / 32768, rate, RATE)[: round(2.3 * RATE)]


def noisy(clip: np.ndarray, decibels: float) -> np.ndarray:
    """With white noise at that signal-to-noise ratio."""
    noise = np.random.default_rng(0).normal(size=len(clip)).astype(np.float32)
    return clip + noise * np.sqrt(np.mean(clip**2) / 10 ** (decibels / 10))


def test_noise_lowers_the_scores(judge, clip):
    """Fails when two scores change places, or the clip is not handed on as it is."""
    clean, noise, louder = (judge.score(sound, RATE) for sound in (clip, noisy(clip, 10), noisy(clip, 0)))
    assert list(clean) == ["ovrl", "sig", "bak", "p808"]
    assert all(1 <= score <= 5 for scores in (clean, noise, louder) for score in scores.values())
    assert clean["bak"] > noise["bak"] + 0.3 > louder["bak"] + 0.4
    assert clean["ovrl"] > noise["ovrl"] + 0.1 > louder["ovrl"] + 0.2
    assert clean["p808"] > noise["p808"] > louder["p808"]
    assert clean["sig"] > clean["ovrl"]
    assert judge.score(clip, RATE) == clean


def test_the_scores_are_the_packages_own(judge, clip):
    """Fails when resampling or clipping changes a clip that needs neither."""
    from speechmos import dnsmos

    expected = dnsmos.run(clip, RATE)
    scores = judge.score(clip, RATE)
    assert scores == pytest.approx({name: expected[f"{name}_mos"] for name in scores}, abs=1e-3)


def test_another_sampling_rate(judge, clip):
    """Fails when the rate is ignored: the clip would sound half as fast again."""
    expected = judge.score(clip, RATE)
    assert judge.score(resample(clip, RATE, 24_000), 24_000) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("samples", [0, 4_800])
def test_short_clips(judge, clip, samples):
    """Fails when an empty clip, which never fills a window, goes to the package."""
    scores = judge.score(clip[8_000 : 8_000 + samples], RATE)
    assert all(1 <= score <= 5 for score in scores.values())


def test_a_clip_above_full_scale_is_clipped(judge, clip):
    """Fails when it goes to the package as it is, which refuses it."""
    loud = clip * (3 / np.abs(clip).max())
    assert judge.score(loud, RATE) == judge.score(np.clip(loud, -1, 1), RATE)
