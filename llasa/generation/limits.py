"""What is asked of a text before it is spoken, and what its length says of the speech's.

    text ─require_speakable─► spoken form ─code_bounds─► (fewest, most) codes of a Request

A model that ends after the first words, or never, is caught by how long a text takes to read aloud at all: from the
language's plausible characters per second (:func:`llasa.text.characters_per_second`), both ways on the generous side.
No recording that was measured, experiments/speech_bounds, would be cut or dragged on. The only cost is the spoken form.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from llasa.codec.base import CodecSpec
from llasa.config import SamplingConfig
from llasa.errors import UserError
from llasa.text import alphabet, characters_per_second, foreign_letters, has_speakable_text, spoken_form

UNKNOWN_RATE = (1.5, 40.0)
"""Characters per second of a language without rules: from Chinese, slowly read, to a script of many letters."""
PAUSE_SECONDS = 3.0
"""What silence at the edges and a held word may add to the shortest text."""
WORDS = re.compile(r"[^\W\d_]+")
SPELLED_SECONDS = 1.0
"""Of a letter that is said by its name, alone ("a b c") or in capitals ("FBI"), at most. The slowest that was
measured takes 0.76 s, the edges of the recording included."""
SHOWN = 60
"""Characters of a text that a message quotes."""


def code_bounds(text: str, language: str, spec: CodecSpec, sampling: SamplingConfig) -> tuple[int, int]:
    """The fewest and the most codes, both whole frames, that ``text`` in spoken form may become.

    ``sampling.max_seconds`` is never passed; without ``sampling.text_bounds`` it is the only bound. The fewest are
    those of the text's letters alone, read as fast as the language is; the most are those of all its characters, read
    as slowly, letters with names apart, and a pause.
    """
    frame = spec.codes_per_frame
    frames_per_second = spec.tokens_per_second / frame
    most = max(1, int(sampling.max_seconds * frames_per_second))
    if not sampling.text_bounds:
        return 0, most * frame
    slowest, fastest = characters_per_second(language) or UNKNOWN_RATE
    letters = sum(character.isalpha() for character in text)
    spelled = sum(len(word) for word in WORDS.findall(text) if len(word) == 1 or word.isupper())
    longest = PAUSE_SECONDS + len(text) / slowest + spelled * SPELLED_SECONDS
    most = min(most, math.ceil(longest * frames_per_second))
    return min(most, int(letters / fastest * frames_per_second)) * frame, most * frame


def retry_seed(seed: int, attempt: int) -> int:
    """The seed of a try: ``seed`` itself at first (``attempt`` 0), then others, each in [0, 2**32)."""
    if attempt == 0:
        return seed
    return int(np.random.SeedSequence([seed, attempt]).generate_state(1)[0])


def require_speakable(text: str, language: str, *, trained: Sequence[str] = (), key: str = "text") -> str:
    """The spoken form of a text that can be said.

    Text in a language that shares the letters is not found out: it is read as ``language`` would.

    Args:
        language: decides how numbers and symbols are read.
        trained: the languages that the checkpoint names; none = not known, any script may be right.
        key: what the user calls the text.

    Raises:
        UserError: no letter is left, or most letters are in no alphabet of the trained languages (Chinese for an
            Italian model).
    """
    spoken = spoken_form(text, language)
    if not has_speakable_text(spoken):
        raise UserError(f"{key}={shown(text)} has nothing to say", remedy="pass text with letters in it")
    if trained and all(alphabet(known) is not None for known in trained):
        letters = [letter for letter in spoken.lower() if letter.isalpha()]
        unknown = set.intersection(*(set(foreign_letters(spoken, known)) for known in trained))
        if 2 * sum(letter in unknown for letter in letters) > len(letters):
            raise UserError(
                f"{key}={shown(text)} is written in letters that the checkpoint's language ({', '.join(trained)}) "
                "does not have",
                remedy="pass text in its language, or a checkpoint of this one",
            )
    return spoken


def shown(text: str) -> str:
    """A text as a message quotes it."""
    return repr(text) if len(text) <= SHOWN else f"{text[:SHOWN]!r}… ({len(text):,} characters)"
