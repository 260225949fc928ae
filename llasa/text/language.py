"""What a language's file must say: one :class:`Language`, mostly tables, and the few functions no table can hold.

A new language is one new file in ``languages/`` with ``LANGUAGE = Language(...)``; nothing else changes but the tests.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

Fixes = tuple[tuple[str, str], ...]
"""Regular expressions and replacements, applied in order."""

OwnRule = tuple[str, "str | Callable[[re.Match[str]], str]"]
"""A regular expression and what takes its match's place: a template for ``re.Match.expand``, or a function."""


class Noun(NamedTuple):
    """A thing that is counted: a unit, a currency."""

    one: str
    other: str
    gender: str = "m"
    """A key of ``Language.before_noun``; "" leaves the number as it is."""
    few: str = ""
    """Polish, after 2 to 4 ("dwa metry")."""
    part: str = ""
    """Polish, after a decimal ("dwa przecinek pięć metra")."""


class Currency(NamedTuple):
    noun: Noun
    cent: Noun | None = None
    """The hundredth; without one, 1.50 is read as a decimal."""


def nouns(table: str) -> dict[str, Noun]:
    """Read rows of ``sign, sign | one | other | gender | few | part``."""
    return {sign: Noun(*fields) for sign, fields in _rows(table)}


def currencies(table: str) -> dict[str, Currency]:
    """Read rows of ``sign, sign | one | other | gender || one cent | more cents | gender``."""
    found = {}
    for line in filter(str.strip, table.splitlines()):
        whole, _, cent = line.partition("||")
        noun = nouns(whole)
        cent_noun = Noun(*(part.strip() for part in cent.split("|"))) if cent else None
        found.update({sign: Currency(noun[sign], cent_noun) for sign in noun})
    return found


def listed(names: str) -> tuple[str, ...]:
    """Read names with spaces between them."""
    return tuple(names.split())


def numbered(names: str) -> dict[str, int]:
    """Read names with spaces between them, and count them from 1; "-" is a number without a name."""
    return {name: index for index, name in enumerate(names.split(), 1) if name != "-"}


def any_of(names: Iterable[str]) -> str:
    """A regular expression of any of them, the longest first, or "p" would hide "pp". None match nothing."""
    return "|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)"


def words(table: str) -> dict[str, str]:
    """Read rows of ``short, short | long``; the long form may be empty."""
    return {short: fields[0] for short, fields in _rows(table)}


def _rows(table: str) -> Iterator[tuple[str, list[str]]]:
    for line in filter(str.strip, table.splitlines()):
        names, *fields = (part.strip() for part in line.split("|"))
        for name in names.split(", "):
            yield name, fields


def plural_unless_one(number: int, is_decimal: bool) -> str:
    """Italian, German, English, Spanish, Dutch: "one" for 1 only."""
    return "one" if number == 1 and not is_decimal else "other"


def plural_from_two(number: int, is_decimal: bool) -> str:
    """French and Brazilian Portuguese: 0 and 1,5 are singular."""
    return "one" if number < 2 else "other"


@dataclass(frozen=True, kw_only=True, eq=False)
class Language:
    """How one language writes and says what is not plain words."""

    alphabet: str
    """The lower-case letters a transcript may hold, those of common loanwords and names included."""
    characters_per_second: tuple[float, float]
    """Plausible bounds of characters of the spoken form per second of read speech."""

    # numbers
    num2words_code: str
    minus: str
    plus: str
    thousands: str
    """The characters that group digits by three."""
    decimal_marks: Mapping[str, str]
    """Each character that starts a fraction, and its name; "." has a name for versions and addresses too."""
    fraction_as_number: bool
    """Whether 3.14 ends in "fourteen" (up to two digits) or in "one four"."""
    cardinal_fixes: Fixes = ()
    """What num2words gets wrong, and its commas, which a voice would read as pauses."""
    before_noun: Mapping[str, Fixes] = field(default_factory=dict)
    """By gender, what happens to a cardinal before its noun: "uno" to "una"."""
    noun_endings: tuple[tuple[str, str], ...] = ()
    """Regular expression of the word after a number, and its gender where that changes the number; the first wins.
    It is matched against number and word, "21 horas"."""
    counted_fixes: Fixes = ()
    """What happens between number and noun: "una ora" to "un'ora"."""
    plural: Callable[[int, bool], str] = plural_unless_one
    """(number, is_decimal) to a field of :class:`Noun`."""
    range_word: str = ""
    """Between the ends of "10-20"; empty where the language sets the two side by side ("dieci-venti")."""
    score_word: str = ""
    """Between the parts of "2:1"."""
    fractions: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """"1/2" to what it is alone, and after a whole number, ``{}``."""

    phone_words: str = ""
    """A regular expression of the words after which digits are read one by one."""

    # ordinals
    ordinal_fixes: Fixes = ()
    ordinal_forms: Mapping[str, Fixes] = field(default_factory=dict)
    """By form (a gender, a case), how it is made from what num2words gives."""
    ordinal_marks: Mapping[str, str] = field(default_factory=dict)
    """What stands after the digits of an ordinal ("rd", "ª"), and the form it asks for."""

    # dates
    months: tuple[str, ...]
    """As they stand in a date."""
    month_abbreviations: Mapping[str, int] = field(default_factory=dict)
    """Without their period; 1 is January."""
    date_order: str = "dmy"
    date_template: str = "{day} {month} {year}"
    """Of a date in digits."""
    day: Callable[[int, str], str]
    """(day, the word before it in lower case) to words."""
    date_year: Callable[[int], str] | None = None
    """The year of a date, where it is not ``year``."""
    year: Callable[[int], str] | None = None
    """None where a year is read as any number."""
    year_after: tuple[str, ...] = ()
    """Words after which four digits are a year; case does not count."""

    bare_year: str = ""
    """A regular expression of digits that are a year without such a word."""

    # times of day
    time: Callable[[int, int, str], str]
    """(hour, minute, the word before it in lower case) to words."""
    hour_marks: str = ":"
    """A regular expression of what stands between hour and minute."""
    hour_words: str = ""
    """A regular expression of a word after the time that ``time`` says itself ("Uhr"); it is swallowed."""
    dot_time_after: tuple[str, ...] = ()
    """Words after which "9.15" is a time; before ``hour_words`` it always is one."""

    # what is counted
    per: str
    """Between two units: "g/l"."""
    large_number_fixes: Fixes = ()
    """What happens to a number before its noun, whatever the gender: "un milione" to "un milione di"."""
    singular_after: tuple[str, ...] = ()
    """Words after which number and unit describe a thing: "a 16 GB disk" is "a sixteen gigabyte disk"."""
    percent: Noun
    per_mille: Noun
    units: Mapping[str, Noun]
    currencies: Mapping[str, Currency]
    scales: Mapping[str, str] = field(default_factory=dict)
    """Between number and currency: "bn" to "billion", "milioni" to "milioni di"."""
    scale_links: str = ""
    """A regular expression of what may already stand between the two: "di "."""
    cent_link: str
    """Between whole and cents: "dodici euro e cinquanta centesimi"."""
    cents_named: bool = True
    """Whether cents above nine have their name ("zwölf Euro fünfzig" has not)."""

    # words
    abbreviations: Mapping[str, str] = field(default_factory=dict)
    """Before a capital they do not end a sentence (titles); ``z. B.`` is found without the space too."""
    closing_abbreviations: Mapping[str, str] = field(default_factory=dict)
    """Those that may end one ("ecc."): before a capital the period stays."""
    number_abbreviations: Mapping[str, str] = field(default_factory=dict)
    """Read out only before a digit ("p. 5")."""
    symbols: Mapping[str, str] = field(default_factory=dict)
    """Signs between words and numbers alike; "" drops one."""
    symbols_before_number: Mapping[str, str] = field(default_factory=dict)
    times_sign: str
    """Between numbers, for × and x and *."""
    times_word: str
    """After a number, for "3x a week"."""
    power: str
    """Between numbers, for ^ and for superscripts."""
    square: str
    cube: str
    padded_guillemets: bool = False
    """Whether « quotes » carry spaces inside (German »reversed« ones must keep the spaces around them)."""
    own_trigger: str = r"(?<!\w)[IVXL]+(?!\w)"
    """A regular expression that finds every text with work for ``own_rules`` and no digit or sign."""
    own_rules: tuple[OwnRule, ...] = ()
    """What only this language has (Roman numerals in context, German "3. Platz"); runs before all but abbreviations."""
