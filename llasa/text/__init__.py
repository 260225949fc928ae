"""The spoken form of a transcript: what the model reads, in training and at inference alike.

    text as given ─clean─► one unicode form ─passes of the language─► words only ─clean─► spoken form

Preprocessing and infer.py both call :func:`spoken_form`, so it is deterministic and idempotent, and no string
makes it raise; in a language of ``LANGUAGES`` neither a digit nor a percent sign is left. The passes, in order:

    digits folded ─► addresses ─► abbreviations ─► own rules ─► signs before numbers ─► dates ─► times
                  ─► money, units, percent ─► years ─► powers ─► numbers ─► symbols

Where to change what: one file of ``languages/`` per language holds all of its words; ``clean.py`` what holds for every
language; ``abbreviations.py``, ``dates.py``, ``times.py``, ``measures.py``, ``numbers.py`` and ``symbols.py`` one pass
each, the same for all languages; ``language.py`` says what a language's file must fill in. Of the libraries compared in
experiments/text_normalisation only num2words is used, for cardinals and ordinals.

Where a form is ambiguous, the reading is one that never sounds wrong; the language's file says which.
Case is kept. About 20 µs of one core per sentence of 100 characters without digits or signs, 0.3 ms with; a number not
seen before costs up to 0.2 ms more. The first call in a language compiles its expressions, some 40 ms.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from pathlib import Path

from llasa.text.abbreviations import abbreviation_pattern, read_abbreviations
from llasa.text.clean import clean, has_speakable_text, join_guillemets
from llasa.text.dates import read_dates, read_years
from llasa.text.language import Language
from llasa.text.measures import read_measures
from llasa.text.numbers import read_numbers
from llasa.text.symbols import (
    fold_digits,
    read_addresses,
    read_powers,
    read_signs_of_numbers,
    read_symbols,
    symbol_table,
)
from llasa.text.times import read_times

__all__ = [
    "LANGUAGES",
    "alphabet",
    "characters_per_second",
    "foreign_letters",
    "has_speakable_text",
    "spoken_form",
]

LANGUAGES = tuple(
    sorted(path.stem for path in (Path(__file__).parent / "languages").glob("*.py") if path.stem != "__init__")
)
"""The languages with rules of their own: one file each in ``languages/``."""

_MAX_ROUNDS = 12
"""Words of one round can complete an abbreviation of the next ("z.* B."); no text was seen to need more than four."""


def spoken_form(text: str, language: str) -> str:
    """Return ``text`` as it is read aloud in ``language`` (a code of ``LANGUAGES``, matched exactly).

    Any other code gets the cleaning alone. The result may be empty: see :func:`has_speakable_text`.
    """
    if language not in LANGUAGES:
        return clean(text)
    rules, needs_words, passes = _compiled(language)
    if rules.padded_guillemets:
        text = join_guillemets(text)
    text = clean(text)
    for _ in range(_MAX_ROUNDS):
        if not needs_words.search(text):
            break
        spoken = text
        for read in passes:
            spoken = read(spoken)
        spoken = clean(spoken)
        if spoken == text:
            break
        text = spoken
    return text


def alphabet(language: str) -> frozenset[str] | None:
    """The lower-case letters a transcript may hold; None for a language without rules."""
    return frozenset(_language(language).alphabet) if language in LANGUAGES else None


def foreign_letters(text: str, language: str) -> str:
    """The distinct letters of ``text``, lower case and sorted, that the language does not write; else ""."""
    letters = alphabet(language)
    if letters is None:
        return ""
    return "".join(sorted({letter for letter in text.lower() if letter.isalpha()} - letters))


def characters_per_second(language: str) -> tuple[float, float] | None:
    """Plausible bounds of characters of the spoken form per second of read speech, to find wrong transcripts."""
    return _language(language).characters_per_second if language in LANGUAGES else None


def _language(code: str) -> Language:
    return import_module(f"llasa.text.languages.{code}").LANGUAGE


@lru_cache(maxsize=len(LANGUAGES))
def _compiled(code: str) -> tuple[Language, re.Pattern[str], tuple[Callable[[str], str], ...]]:
    """The language, an expression that finds whether there is anything to do, and the passes."""
    language = _language(code)
    signs = "".join(
        sorted({sign for key in symbol_table(language) for sign in key if not sign.isalnum() and sign != "."})
    )
    needs_words = re.compile(
        rf"[\d{re.escape(signs)}¹²³⁰-⁹₀-₉¼½¾⅐-⅞①-⑳⑴-⒛⓪-⓿❶-➓]|{language.own_trigger}|{abbreviation_pattern(language)}"
    )
    own_rules = [(re.compile(pattern), replacement) for pattern, replacement in language.own_rules]

    def read_own(text: str) -> str:
        for pattern, replacement in own_rules:
            text = pattern.sub(replacement, text)
        return text

    passes = (
        fold_digits,
        read_addresses(language),
        read_abbreviations(language),
        read_own,
        read_signs_of_numbers(language),
        read_dates(language),
        read_times(language),
        read_measures(language),
        read_years(language),
        read_powers(language),
        read_numbers(language),
        read_symbols(language),
    )
    return language, needs_words, passes
