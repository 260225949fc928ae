"""Abbreviations read out: "Sig. Rossi", "z. B.", "etc.", "p. 5".

A period that also ends the sentence stays: at the end of the text always, before a capital only after those
abbreviations that may end a sentence ("usw."), never after those that stand before a name ("Dr.").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from llasa.text.language import Language, any_of

_CLOSING = "\"')]"


def _pattern(key: str) -> str:
    parts = re.split(r"(?<=\.) ?(?=.)", key)
    pattern = r" ?".join(map(re.escape, parts))
    return pattern + (r"(?!\.)" if key.endswith(".") else r"(?!\w|\.\w)" if key[-1].isalpha() else "")


def abbreviation_table(language: Language) -> dict[str, str]:
    """All but those before digits, with a capital as the first letter too."""
    return with_capitals({**language.abbreviations, **language.closing_abbreviations})


def with_capitals(table: Mapping[str, str]) -> dict[str, str]:
    table = dict(table)
    for key, words in list(table.items()):
        if key[1:2] == ".":  # "A. C. Milan" has initials
            continue
        table.setdefault(key[0].upper() + key[1:], words[:1].upper() + words[1:])
    return table


def abbreviation_pattern(language: Language) -> str:
    keys = sorted(abbreviation_table(language), key=len, reverse=True)
    return rf"(?<![\w.])(?:{'|'.join(map(_pattern, keys)) or '(?!)'})"


def read_abbreviations(language: Language) -> Callable[[str], str]:
    table = {key.replace(" ", ""): words for key, words in abbreviation_table(language).items()}
    closing = {key.replace(" ", "").lower() for key in language.closing_abbreviations}
    anywhere = re.compile(abbreviation_pattern(language))
    numbers = with_capitals(language.number_abbreviations)
    before_digit = re.compile(rf"(?<![\w.])(?P<key>{any_of(numbers)}) ?(?=\d|[IVXL]{{2,}}(?!\w))")

    def say(match: re.Match[str]) -> str:
        key = match[0].replace(" ", "")
        words = table[key]
        after = match.string[match.end() : match.end() + 8]
        if key.endswith("."):
            rest = after.lstrip(_CLOSING)
            ends_text = not rest and len(after) < 8
            ends_sentence = key.lower() in closing and rest[:1] == " " and rest.lstrip(" \"'(¿¡")[:1].isupper()
            if ends_text or ends_sentence:
                return f"{words}."
        return f"{words} " if after[:1].isalnum() and not words.endswith("-") else words

    def read(text: str) -> str:
        text = before_digit.sub(lambda match: f"{numbers[match['key']]} ", text)
        return anywhere.sub(say, text)

    return read
