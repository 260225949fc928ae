"""How fast an utterance is spoken, in letters per second, and against a reference. A few microseconds."""

from __future__ import annotations

import numpy as np

from llasa.corpus.filters import trimmed
from llasa.text import spoken_form

SILENCE = 40.0
"""dB under the recording's level, as the corpus filters have it."""


def speaking_rate(text: str, seconds: float, language: str | None = None) -> float:
    """Letters per second; nan where nothing was said. Spaces and punctuation are no letters.

    Args:
        text: in its spoken form, or as written if ``language`` is given: "21" is spoken as 8 letters (it).
    """
    spoken = text if language is None else spoken_form(text, language)
    letters = sum(character.isalpha() for character in spoken)
    return letters / seconds if letters and seconds > 0 else float("nan")


def relative_speed(
    text: str,
    seconds: float,
    reference_seconds: float,
    *,
    reference_text: str | None = None,
    language: str | None = None,
) -> float:
    """Speaking rate by the reference's: 2 is twice as fast. nan where one of them says nothing.

    Args:
        reference_text: what the reference says if that is another text, as with a voice to clone.
    """
    reference = speaking_rate(text if reference_text is None else reference_text, reference_seconds, language)
    return speaking_rate(text, seconds, language) / reference


def spoken_seconds(waveform: np.ndarray, sample_rate: int) -> float:
    """Duration of float32 [samples] without the silence at both ends; 0 where there is no sound."""
    if not waveform.any():
        return 0.0
    return len(trimmed(waveform, sample_rate, margin=0.0, threshold=SILENCE)) / sample_rate
