"""The spoken form of a transcript: what the model reads, in training and at inference alike.

    text as given ─clean─► one unicode form ─numbers─► words only ─clean─► spoken form

Preprocessing and infer.py both call :func:`spoken_form`, so it is deterministic and idempotent, and no string
makes it raise. Idempotence holds by construction: cleaning runs until nothing changes, and the number pass
leaves neither a digit nor a percent sign, without which it does not run.

The cleaned form, for every language:

- NFC; any whitespace, line breaks included, is one space; none at the ends or before closing punctuation
  (French ``Oui !`` becomes ``Oui!``);
- no control, format (zero-width, BOM, soft hyphen), private-use or unassigned characters, no replacement
  characters and no lone surrogates: all dropped without a trace, so the letters around them join;
- emoji and other pictographs become a space, and so does whatever looks like a control token of the model,
  ``<|...|>``, together with every stray ``<|`` or ``|>``;
- ``'`` and ``"`` for all single and double quotes, apostrophes, primes and guillemets; ``-`` for hyphens, en dashes
  and the minus sign; `` - `` for em dashes and ``--``; ``...`` for the ellipsis.

What a language needs beyond that is one row of ``_RULES``. Case is kept. About 20 µs per sentence; a number
not seen before costs up to 0.2 ms more, hence the cache.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from functools import lru_cache

_MAX_PLAIN_DIGITS = 9
"""Longer digit strings are telephone, account or article numbers: nobody reads them as billions."""

_MAX_GROUPED_DIGITS = 12
"""With thousands separators a long number is meant as one; num2words is checked up to here in all languages."""


def spoken_form(text: str, language: str) -> str:
    """Return ``text`` as it is read aloud in ``language`` (a code of ``LANGUAGES``, matched exactly).

    Any other code gets the cleaning alone. The result may be empty: see :func:`has_speakable_text`.
    """
    rules = _RULES.get(language)
    if rules is None:
        return _clean(text)
    if rules.padded_guillemets:
        text = _GUILLEMET_PADDING.sub("", text)
    text = _clean(text)
    if _DIGIT_OR_PERCENT.search(text):
        text = _clean(_speak_numbers(text, rules))
    return text


def has_speakable_text(text: str) -> bool:
    """Whether a letter is left after cleaning. Ask it of a spoken form: the digits of a raw text are no letters."""
    return any(character.isalpha() for character in _clean(text))


# --- cleaning, the same for every language ---------------------------------------------------------------------------

_SPEAKABLE_SYMBOLS = frozenset("°№℃℉")
"""Of the unicode category So (symbol, other), where the emoji live, these stand for words."""


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
        self[code_point] = replacement
        return replacement


def _character_table() -> _CharacterTable:
    table = _CharacterTable()
    for replacement, characters in (
        ("'", "‘’‚‛‹›ʼʹ′`´"),
        ('"', "“”„‟«»″‶"),
        ("-", "‐‑‒–−﹣－"),
        (" - ", "—―⸺⸻〰"),
        ("...", "…"),
        ("..", "‥"),
        ("!!", "‼"),
        ("!?", "⁉"),
        ("?!", "⁈"),
        ("??", "⁇"),
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


def _clean(text: str) -> str:
    # Dropping a character can bring two others together that compose, or that now read as a dash or a token.
    # The loop ends: what a pass replaces never comes back, and all else only gets shorter.
    while True:
        cleaned = _clean_once(text)
        if cleaned == text:
            return cleaned
        text = cleaned


def _clean_once(text: str) -> str:
    text = unicodedata.normalize("NFC", text.translate(_CHARACTERS))
    # A space, not nothing: "<" and "|b|>" on either side of a removed token must not become a token themselves.
    text = _SPECIAL_TOKEN.sub(" ", text)
    text = _LONG_ELLIPSIS.sub("...", text)
    text = _LONG_DASH.sub(" - ", text)
    text = " ".join(text.split())
    return _SPACE_BEFORE_PUNCTUATION.sub("", text)


# --- numbers, by language --------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class _Rules:
    """How one language writes and says numbers."""

    num2words_code: str
    minus: str
    plus: str
    percent: str
    one_percent: str = ""
    """Where "1 %" is not the word for 1 and the word for percent."""
    thousands: str
    """The characters that group digits by three."""
    decimal_marks: dict[str, str]
    """Each character that starts a fraction, and its name."""
    fraction_as_number: bool
    """Whether 3.14 ends in "fourteen" (up to two digits) or in "one four"."""
    cardinal_fixes: tuple[tuple[str, str], ...] = ()
    """Regular expressions and replacements for what num2words gets wrong."""
    padded_guillemets: bool = False
    """Whether « quotes » carry spaces inside (German »reversed« ones must keep the spaces around them)."""

    run: re.Pattern[str] = field(init=False)
    number: re.Pattern[str] = field(init=False)
    fixes: tuple[tuple[re.Pattern[str], str], ...] = field(init=False)

    def __post_init__(self) -> None:
        # A space only belongs to a run where it groups, and "2024 100" has no group of three before it.
        piece = r"(?:[1-9]\d{0,2}(?: \d{3})+(?!\d)|\d+)" if " " in self.thousands else r"\d+"
        # A sign counts at the start of a word: in "COVID-19" and "10-20" the hyphen is no minus.
        self.run = re.compile(
            rf"(?P<sign>(?<![^\s(\[\"'])[-+])?(?P<digits>{piece}(?:[.,:/-]{piece})*)(?P<percent> ?%+)?", re.ASCII
        )
        gap = "[" + re.escape(self.thousands) + "]"
        mark = "[" + re.escape("".join(self.decimal_marks)) + "]"
        self.number = re.compile(
            rf"(?P<whole>[1-9]\d{{0,2}}(?P<gap>{gap})\d{{3}}(?:(?P=gap)\d{{3}})*|\d+)"
            rf"(?:(?P<mark>{mark})(?P<fraction>\d+))?",
            re.ASCII,
        )
        self.fixes = tuple((re.compile(pattern), replacement) for pattern, replacement in self.cardinal_fixes)


_NO_COMMA = (",", "")  # num2words groups with commas, which a voice would read as pauses

_RULES: dict[str, _Rules] = {
    "it": _Rules(
        num2words_code="it",
        minus="meno",
        plus="più",
        percent="per cento",
        thousands=".",
        decimal_marks={",": "virgola", ".": "punto"},
        fraction_as_number=True,
        # The accent of a final "tré" is lost before "milioni" in numbers over a billion.
        cardinal_fixes=(_NO_COMMA, (r"(?<=\w)tre\b", "tré")),
    ),
    "de": _Rules(
        num2words_code="de",
        minus="minus",
        plus="plus",
        percent="Prozent",
        one_percent="ein Prozent",
        thousands=".",
        decimal_marks={",": "Komma", ".": "Punkt"},
        fraction_as_number=False,
        # "einhunderteinstausend", "einhunderteins Millionen"
        cardinal_fixes=((r"eins(?=tausend)", "ein"), (r"eins(?= Mil)", "eine")),
    ),
    "en": _Rules(
        num2words_code="en",
        minus="minus",
        plus="plus",
        percent="percent",
        thousands=",",
        decimal_marks={".": "point"},
        fraction_as_number=False,
        cardinal_fixes=(_NO_COMMA,),
    ),
    "fr": _Rules(
        num2words_code="fr",
        minus="moins",
        plus="plus",
        percent="pour cent",
        thousands=" .",
        decimal_marks={",": "virgule", ".": "point"},
        fraction_as_number=True,
        padded_guillemets=True,
    ),
    "es": _Rules(
        num2words_code="es",
        minus="menos",
        plus="más",
        percent="por ciento",
        thousands=".",
        decimal_marks={",": "coma", ".": "punto"},
        fraction_as_number=True,
        # "veintiuno mil", "treinta y uno millones"
        cardinal_fixes=((r"veintiuno(?= mil)", "veintiún"), (r"\buno(?= mil)", "un")),
    ),
    "pt": _Rules(
        # Brazilian, as most of the recordings are: "dezesseis", where Portugal says "dezasseis".
        num2words_code="pt_BR",
        minus="menos",
        plus="mais",
        percent="por cento",
        thousands=".",
        decimal_marks={",": "vírgula", ".": "ponto"},
        fraction_as_number=True,
        cardinal_fixes=(_NO_COMMA,),
    ),
    "nl": _Rules(
        num2words_code="nl",
        minus="min",
        plus="plus",
        percent="procent",
        thousands=".",
        decimal_marks={",": "komma", ".": "punt"},
        fraction_as_number=True,
        # Spelling: "honderdeen", not "honderdéén"; a space follows "duizend".
        cardinal_fixes=((r"(?<=\w)één", "een"), (r"duizend(?=\w)", "duizend ")),
    ),
    "pl": _Rules(
        num2words_code="pl",
        minus="minus",
        plus="plus",
        percent="procent",
        thousands=" .",
        decimal_marks={",": "przecinek", ".": "kropka"},
        fraction_as_number=True,
    ),
}

LANGUAGES = tuple(_RULES)
"""The languages whose numbers are read out."""

_DIGIT_OR_PERCENT = re.compile(r"[\d%]")
_FOREIGN_DIGIT = re.compile(r"[^\D0-9]")
_BARE_FRACTION = re.compile(r"(?<![^\s(\[\"'+-])\.(?=\d)", re.ASCII)
_PERCENT = re.compile(r"%[\s%]*")


def _speak_numbers(text: str, rules: _Rules) -> str:
    """Replace every digit and percent sign of a cleaned text by words."""
    text = _FOREIGN_DIGIT.sub(lambda match: str(unicodedata.decimal(match[0])), text)
    text = _BARE_FRACTION.sub("0.", text)
    text = rules.run.sub(lambda match: _speak_match(match, rules), text)
    return _PERCENT.sub(f" {rules.percent} ", text)


def _speak_match(match: re.Match[str], rules: _Rules) -> str:
    words = _speak_run(match["digits"], rules)
    if match["percent"]:
        alone = match["digits"] == "1" and rules.one_percent
        words = alone or f"{words} {rules.percent}"
    if match["sign"]:
        words = f"{rules.minus if match['sign'] == '-' else rules.plus} {words}"
    # "A4", "MP3", "3D", "cap.5": the words stand apart from letters and from a sentence mark before them.
    before, after = match.string[: match.start()][-1:], match.string[match.end() :][:1]
    if before.isalnum() or (before and before in ".,;:!?)]}%+°№"):
        words = f" {words}"
    if after.isalnum() or (after and after in "([{+°№"):
        words = f"{words} "
    return words


def _speak_run(run: str, rules: _Rules) -> str:
    """Say digits and the separators between them: one number where the language reads it so, else its parts.

    The parts of times, dates, versions and ranges follow each other plainly, those of a list with its commas.
    """
    if number := rules.number.fullmatch(run):
        return _speak_number(number, rules)
    separator = next(mark for mark in ":/-,." if mark in run)  # there is one: bare digits are a number
    return (", " if separator == "," else " ").join(_speak_run(part, rules) for part in run.split(separator))


def _speak_number(number: re.Match[str], rules: _Rules) -> str:
    whole, gap, mark, fraction = number["whole"], number["gap"], number["mark"], number["fraction"]
    if gap:
        digits = whole.replace(gap, "")
        words = _cardinal(digits, rules) if len(digits) <= _MAX_GROUPED_DIGITS else _digit_by_digit(digits, rules)
    elif len(whole) > _MAX_PLAIN_DIGITS or (len(whole) > 1 and whole[0] == "0"):
        words = _digit_by_digit(whole, rules)
    else:
        words = _cardinal(whole, rules)
    if not fraction:
        return words
    as_number = rules.fraction_as_number and len(fraction) <= 2 and fraction[0] != "0"
    spoken_fraction = _cardinal(fraction, rules) if as_number else _digit_by_digit(fraction, rules)
    return f"{words} {rules.decimal_marks[mark]} {spoken_fraction}"


def _digit_by_digit(digits: str, rules: _Rules) -> str:
    return " ".join(_cardinal(digit, rules) for digit in digits)


def _cardinal(digits: str, rules: _Rules) -> str:
    words = _num2words(int(digits), rules.num2words_code)
    for pattern, replacement in rules.fixes:
        words = pattern.sub(replacement, words)
    return words


@lru_cache(maxsize=16384)
def _num2words(number: int, code: str) -> str:
    # Only integers from 0 go in: of a fraction given as text Italian says the whole part alone, Spanish says "punto",
    # Polish raises on a negative number.
    from num2words import num2words

    return num2words(number, lang=code)
