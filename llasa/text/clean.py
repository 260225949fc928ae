"""One unicode form for every language, the eight that have rules and all others.

    text as given ─► characters folded or dropped ─► NFC ─► tokens, dashes, dots, spaces ─► again until nothing changes

- NFC; any whitespace, line breaks included, is one space; none at the ends or before closing punctuation
  (French ``Oui !`` becomes ``Oui!``);
- full-width letters, digits and signs, ligatures (``ﬁ``) and mathematical letters are the plain ones; Chinese
  punctuation stays;
- no control, format (zero-width, BOM, soft hyphen), private-use or unassigned characters, no replacement
  characters and no lone surrogates: all dropped without a trace, so the letters around them join;
- emoji and other pictographs become a space, and so does whatever looks like a control token of the model,
  ``<|...|>``, together with every stray ``<|`` or ``|>``;
- ``'`` and ``"`` for all single and double quotes, apostrophes, primes and guillemets; ``-`` for hyphens, en dashes
  and the minus sign; `` - `` for em dashes and ``--``; ``...`` for the ellipsis.

Case is kept. About 15 µs per sentence.
"""

from __future__ import annotations

import re
import unicodedata

_SPEAKABLE_SYMBOLS = frozenset("°№℃℉")
"""Of the unicode category So (symbol, other), where the emoji live, these stand for words."""

_CJK_PUNCTUATION = frozenset("，！？：；（）～")
"""Full-width characters that are the language's own and no copy of an ASCII one."""


def clean(text: str) -> str:
    """Return ``text`` in the one form above; a fixed point of itself."""
    # Dropping a character can bring two others together that compose, or that now read as a dash or a token.
    # The loop ends: what a pass replaces never comes back, and all else only gets shorter.
    while True:
        cleaned = _clean_once(text)
        if cleaned == text:
            return cleaned
        text = cleaned


def has_speakable_text(text: str) -> bool:
    """Whether a letter is left after cleaning. Ask it of a spoken form: the digits of a raw text are no letters."""
    return any(character.isalpha() for character in clean(text))


def join_guillemets(text: str) -> str:
    """Take the spaces out of « padded » quotes, for languages that write them so, before cleaning."""
    return _GUILLEMET_PADDING.sub("", text)


class _CharacterTable(dict[int, "str | None"]):
    """A table for ``str.translate`` that decides by unicode category and remembers its answers."""

    def __missing__(self, code_point: int) -> str | None:
        character = chr(code_point)
        category = unicodedata.category(character)
        replacement: str | None = character
        if character.isspace():
            replacement = " "
        elif category in ("Cc", "Cf", "Cs", "Co", "Cn"):
            replacement = None
        elif (category == "So" and character not in _SPEAKABLE_SYMBOLS) or (
            # arrows and geometric shapes count as mathematics (Sm) in part; skin tones are modifiers (Sk)
            0x2190 <= code_point <= 0x21FF or 0x25A0 <= code_point <= 0x25FF or 0x1F3FB <= code_point <= 0x1F3FF
        ):
            replacement = " "
        elif (
            0xFF01 <= code_point <= 0xFF5E or 0xFB00 <= code_point <= 0xFB06 or 0x1D400 <= code_point <= 0x1D7FF
        ) and character not in _CJK_PUNCTUATION:
            replacement = unicodedata.normalize("NFKC", character).translate(self)
        self[code_point] = replacement
        return replacement


def _character_table() -> _CharacterTable:
    table = _CharacterTable()
    for replacement, characters in (
        ("'", "‘’‚‛‹›ʼʹ′`´＇｀"),
        ('"', "“”„‟«»″‶＂"),
        ("-", "‐‑‒–−﹣－"),
        (" - ", "—―⸺⸻〰"),
        ("...", "…"),
        ("..", "‥"),
        ("!!", "‼"),
        ("!?", "⁉"),
        ("?!", "⁈"),
        ("??", "⁇"),
        ("/", "⁄∕"),
        # The replacement character, the keycap's frame, a joiner, and letters that show nothing (Hangul fillers).
        (None, "\ufffd\u20e3\u034f\u115f\u1160\u3164\uffa0"),
        (None, "".join(map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))))),  # variation selectors
    ):
        for character in characters:
            table[ord(character)] = replacement
    return table


_CHARACTERS = _character_table()
_SPECIAL_TOKEN = re.compile(r"<\|[^<>|]*\|>|<\||\|>")
_LONG_ELLIPSIS = re.compile(r"\.{4,}")
_LONG_DASH = re.compile(r"-{2,}")
_SPACE_BEFORE_PUNCTUATION = re.compile(r" +(?=[.,;:!?]+(?:[\s\"']|$))")
_GUILLEMET_PADDING = re.compile(r"(?<=«)\s+|(?<!\s)\s+(?=»)")


def _clean_once(text: str) -> str:
    text = unicodedata.normalize("NFC", text.translate(_CHARACTERS))
    # A space, not nothing: "<" and "|b|>" on either side of a removed token must not become a token themselves.
    text = _SPECIAL_TOKEN.sub(" ", text)
    text = _LONG_ELLIPSIS.sub("...", text)
    text = _LONG_DASH.sub(" - ", text)
    text = " ".join(text.split())
    return _SPACE_BEFORE_PUNCTUATION.sub("", text)
