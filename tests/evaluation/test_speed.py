"""Letters per second, against a reference, without the silence around."""

import math

import numpy as np
import pytest

from llasa.corpus.espeak import synthesize
from llasa.evaluation.speed import relative_speed, speaking_rate, spoken_seconds


def test_letters_and_nothing_else_count():
    """Fails when spaces or punctuation count."""
    assert speaking_rate("Il gatto, sì!", 2.0, "it") == 9 / 2
    assert speaking_rate("Ho 21 anni", 1.0, "it") == len("hoventunoanni")
    assert math.isnan(speaking_rate("Il gatto", 0.0, "it"))
    assert math.isnan(speaking_rate("?!", 1.0, "it"))


def test_speed_against_the_reference():
    """Fails when it is the ratio of the durations upside down."""
    assert relative_speed("Il gatto dorme.", 1.0, 2.0, "it") == 2
    assert math.isnan(relative_speed("Il gatto", 1.0, 0.0, "it"))


def test_real_speech_at_two_speeds():
    text = "Il gatto dorme sul divano vicino alla finestra."
    slow, fast = (synthesize(text, voice="it", words_per_minute=rate) for rate in (120, 240))
    durations = [spoken_seconds(samples.astype(np.float32) / 32768, rate) for samples, rate in (slow, fast)]
    assert 1.5 < relative_speed(text, durations[1], durations[0], "it") < 2.5


def test_silence_around_does_not_count():
    tone = 0.5 * np.sin(np.arange(16_000) * 0.2).astype(np.float32)
    padded = np.pad(tone, (8_000, 24_000))
    assert spoken_seconds(tone, 16_000) == 1.0
    assert spoken_seconds(padded, 16_000) == pytest.approx(1.0, abs=0.04)
    assert spoken_seconds(np.zeros(16_000, np.float32), 16_000) == 0
    assert spoken_seconds(np.zeros(0, np.float32), 16_000) == 0
    assert spoken_seconds(np.ones(3, np.float32), 16_000) == pytest.approx(3 / 16_000)
