"""How fast an utterance is spoken, in letters per second, and against a reference. A few microseconds."""

from __future__ import annotations

import numpy as np

from llasa.corpus.filters import trimmed
from llasa.text import spoken_form

SILENCE = 40.0
"""dB under the recording's level, as the corpus filters have it."""


def speaking_rate(text: str, seconds: float, language: str) -> float:
    """Letters of the spoken form ("21" has 8 in Italian) per second; nan where nothing was said."""
    letters = sum(character.isalpha() for character in spoken_form(text, language))
    return letters / seconds if letters and seconds > 0 else float("nan")


def relative_speed(text: str, seconds: float, reference_seconds: float, language: str) -> float:
    """Speaking rate by that of the same text in so many seconds: 2 is twice as fast. nan where one says nothing."""
    return speaking_rate(text, seconds, language) / speaking_rate(text, reference_seconds, language)


def spoken_seconds(waveform: np.ndarray, sample_rate: int) -> float:
    """Duration of float32 [samples] without the silence at both ends; 0 where there is no sound."""
    if not waveform.any():
        return 0.0
    return len(trimmed(waveform, sample_rate, margin=0.0, threshold=SILENCE)) / sample_rate
