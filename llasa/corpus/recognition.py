"""What a speech recogniser understands of a recording, and how far that is from what was to be said.

faster-whisper is an optional package (requirements/eval.txt); it is imported when a recogniser is made.
"""

from __future__ import annotations

import logging
import os
import re

import numpy as np

from llasa.audio import resample
from llasa.errors import UserError, first_line
from llasa.text import spoken_form

SAMPLE_RATE = 16_000
"""Whisper's."""


class Recognizer:
    """A Whisper model in CTranslate2's form. The same recording gives the same words every time.

    Cost: about 2 s a clip on one CPU core for Whisper base, whatever the clip's length (it looks at 30 s windows).

    Args:
        model: a local folder, or a name that faster-whisper knows and the hub has (``base``, ``large-v3``).

    Raises:
        UserError: faster-whisper is not installed, or there is no such model.
    """

    def __init__(self, model: str) -> None:
        try:
            from faster_whisper import WhisperModel
        except ImportError as error:
            raise UserError(
                f"asr={model} needs faster-whisper, which cannot be imported ({error})",
                remedy="pip install -r requirements/eval.txt",
            ) from None
        folder = os.path.expanduser(model)
        remedy = "pass asr=FOLDER of a Whisper model in CTranslate2's form, or a name such as asr=base"
        if model.startswith((".", "/", "~")) and not os.path.isfile(os.path.join(folder, "model.bin")):
            raise UserError(f"asr={model} is no folder with a model.bin", remedy=remedy)
        from llasa.device import resolve_device

        device = resolve_device("auto")
        logging.getLogger("faster_whisper").setLevel(logging.WARNING)  # it has a line to say of every clip
        try:
            # Not int8, the default of many: the error rate should be the model's, not the rounding's.
            self._model = WhisperModel(folder, device=device, compute_type="float16" if device == "cuda" else "float32")
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"asr={model} cannot be loaded ({first_line(error)})", remedy=remedy) from error
        self.name = model

    def transcribe(self, waveform: np.ndarray, sample_rate: int, language: str) -> str:
        """float32 [samples] → what is heard; in a language that the model does not know, it guesses which one it is.

        One temperature, as Whisper otherwise answers unclear speech with random words; no gate for silence, which
        would turn hard clips into empty answers.
        """
        segments, _ = self._model.transcribe(
            resample(waveform, sample_rate, SAMPLE_RATE),
            language=language if language in self._model.supported_languages else None,
            beam_size=5,
            temperature=0.0,
            no_speech_threshold=None,
            condition_on_previous_text=False,
            without_timestamps=True,
        )
        return " ".join(segment.text.strip() for segment in segments)


def plain_words(text: str, language: str) -> str:
    """What is compared: numbers as words, lower case, letters only: ``"L'1, perché?"`` → ``"l uno perché"`` (it)."""
    return " ".join(re.sub(r"[\W_]+", " ", spoken_form(text, language).casefold()).split())


def edit_distance(reference: str, hypothesis: str) -> int:
    """Characters to insert, delete or replace (Levenshtein)."""
    letters = np.array([ord(letter) for letter in hypothesis], dtype=np.int64)
    places = np.arange(len(letters) + 1)
    row = places
    for number, letter in enumerate(reference, start=1):
        # An insertion costs one for each place to the left, so a running minimum of (cost - place) covers them all.
        best = np.concatenate([[number], np.minimum(row[1:] + 1, row[:-1] + (letters != ord(letter)))])
        row = np.minimum.accumulate(best - places) + places
    return int(row[-1])


def character_error_rate(text: str, heard: str, language: str) -> float:
    """Edits per character of ``text``, both sides as :func:`plain_words`. Above 1 where more is heard than was said."""
    reference = plain_words(text, language)
    return edit_distance(reference, plain_words(heard, language)) / max(1, len(reference))
