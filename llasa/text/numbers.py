"""Numbers in words: cardinals, ordinals, decimals, digits one by one, ranges, fractions, Roman numerals.

num2words says integers and ordinals; all the rest is here, for of a fraction given as text it says the whole part alone
(Italian) or "punto" for the comma (Spanish), and its currencies and years are wrong in half of our languages
(experiments/text_normalisation). A number not seen before costs up to 0.2 ms, hence the caches.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from llasa.text.language import Fixes, Language, any_of

_MAX_PLAIN_DIGITS = 9
"""Longer digit strings are telephone, account or article numbers: nobody reads them as billions."""

_MAX_GROUPED_DIGITS = 12
"""With thousands separators a long number is meant as one; num2words is checked up to here in all languages."""

ROMAN = r"(?P<roman>(?=[IVXL])(?:XL|L?X{0,3})(?:IX|IV|V?I{0,3}))"
"""A Roman numeral up to 89 as rulers, centuries and chapters have them, for rules that give it a context."""

ALONE = r"(?<![\w.,:/-])"
"""What may not stand before digits that are read with what follows them."""


@lru_cache(maxsize=16384)
def cardinal(number: int, language: Language, gender: str = "") -> str:
    words = apply_fixes(_num2words(number, language.num2words_code, "cardinal"), language.cardinal_fixes)
    return apply_fixes(words, language.before_noun[gender]) if gender in language.before_noun else words


@lru_cache(maxsize=4096)
def ordinal(number: int, language: Language, form: str = "") -> str:
    """``form`` is a key of ``language.ordinal_forms``; without one it is what num2words gives."""
    words = apply_fixes(_num2words(number, language.num2words_code, "ordinal"), language.ordinal_fixes)
    return apply_fixes(words, language.ordinal_forms.get(form, ()))


def apply_fixes(words: str, fixes: Fixes) -> str:
    for pattern, replacement in fixes:
        words = re.sub(pattern, replacement, words)
    return words


def _num2words(number: int, code: str, kind: str) -> str:
    # Only integers from 0 go in: Polish raises on a negative number.
    from num2words import num2words

    return num2words(number, lang=code, to=kind)


@lru_cache(maxsize=1024)
def year_in_hundreds(number: int, code: str) -> str:
    """English and German: 1998 as "nineteen ninety-eight"."""
    return _num2words(number, code, "year")


def say_year(number: int, language: Language) -> str:
    return language.year(number) if language.year else cardinal(number, language)


def roman_value(numeral: str) -> int:
    values = [{"I": 1, "V": 5, "X": 10, "L": 50}[letter] for letter in numeral]
    following = [*values[1:], 0]
    return sum(-value if value < after else value for value, after in zip(values, following, strict=True))


def number_pattern(language: Language) -> str:
    """A regular expression, without groups, of a whole or decimal number as the language writes it."""
    grouped = "|".join(
        rf"[1-9]\d{{0,2}}(?:{re.escape(gap)}\d{{3}}){{1,6}}(?!{re.escape(gap)}?\d)" for gap in language.thousands
    )
    marks = "[" + re.escape("".join(language.decimal_marks)) + "]"
    return rf"(?:{grouped}|\d+)(?:{marks}\d+)?(?!\d)"


@lru_cache(maxsize=64)
def _number_parts(language: Language) -> re.Pattern[str]:
    gap = "[" + re.escape(language.thousands) + "]"
    mark = "[" + re.escape("".join(language.decimal_marks)) + "]"
    return re.compile(
        rf"(?P<whole>[1-9]\d{{0,2}}(?P<gap>{gap})\d{{3}}(?:(?P=gap)\d{{3}})*|\d+)(?:(?P<mark>{mark})(?P<fraction>\d+))?",
        re.ASCII,
    )


def split_number(text: str, language: Language) -> tuple[int, str] | None:
    """Whole part and fraction digits of one number, or None where ``text`` is no single number."""
    if match := _number_parts(language).fullmatch(text):
        return int(re.sub(r"\D", "", match["whole"])[:300]), match["fraction"] or ""
    return None


def say_number(text: str, language: Language, gender: str = "") -> str | None:
    """Words for a number as written (grouped, decimal), or None where it is no single number."""
    match = _number_parts(language).fullmatch(text)
    if match is None:
        return None
    whole, gap, mark, fraction = match["whole"], match["gap"], match["mark"], match["fraction"]
    digits = whole.replace(gap, "") if gap else whole
    too_long = len(digits) > (_MAX_GROUPED_DIGITS if gap else _MAX_PLAIN_DIGITS)
    if too_long or (len(digits) > 1 and digits[0] == "0"):
        words = say_digits(digits, language)
    else:
        words = cardinal(int(digits), language, "" if fraction else gender)
    if not fraction:
        return words
    as_number = language.fraction_as_number and len(fraction) <= 2 and fraction[0] != "0"
    spoken_fraction = cardinal(int(fraction), language) if as_number else say_digits(fraction, language)
    return f"{words} {language.decimal_marks[mark]} {spoken_fraction}"


def say_digits(digits: str, language: Language) -> str:
    """One by one; characters that are no digits are passed over."""
    return " ".join(cardinal(int(digit), language) for digit in digits if digit in "0123456789")


def say_range(first: str, last: str, language: Language) -> str:
    if language.range_word:
        return f"{first} {language.range_word} {last}"
    return f"{first} - {last}" if " " in first + last else f"{first}-{last}"


def spaced(match: re.Match[str], words: str) -> str:
    """``words`` apart from letters and from a sentence mark before them: "A4", "MP3", "cap.5"."""
    before, after = match.string[: match.start()][-1:], match.string[match.end() :][:1]
    if before.isalnum() or (before and before in ".,;:!?)]}%+°№"):
        words = f" {words}"
    if after.isalnum() or (after and after in "([{+°№"):
        words = f"{words} "
    return words


def kept_period(match: re.Match[str]) -> str:
    """The period of an abbreviation, where it ends the text as well: "3 Std."."""
    ends_text = not match.string[match.end() :][:4].strip("\"')]")
    return "." if match[0].endswith(".") and ends_text else ""


def read_numbers(language: Language) -> Callable[[str], str]:
    """The pass that leaves no digit: fractions, phone numbers, ordinals, ranges, scores, then every run of digits."""
    # A space only belongs to a run where it groups, and "2024 100" has no group of three before it.
    piece = r"(?:[1-9]\d{0,2}(?: \d{3})+(?!\d)|\d+)" if " " in language.thousands else r"\d+"
    # A sign counts at the start of a word: in "COVID-19" and "10-20" the hyphen is no minus.
    run = re.compile(
        rf"(?P<sign>(?<![^\s(\[\"'])[-+])?(?P<digits>{piece}(?:[.,:/-]{piece})*)(?=(?P<next> [a-zA-ZÀ-ž]{{2,24}})?)",
        re.ASCII,
    )
    fraction = re.compile(
        rf"{ALONE}(?:(?P<whole>\d{{1,3}}) )?(?P<part>\d{{1,2}}/\d{{1,2}})(?![\w/]|[.,:-]\d)", re.ASCII
    )
    phone = re.compile(
        r"(?<![\w.,/-])(?<!\d )(?:\+\d{1,3}(?:[ /-]\d{1,10}){2,6}|0\d{1,4}[-/]\d{3,10}(?:[ -]\d{2,8}){0,4}"
        r"|0\d{1,4} \d{3,10}(?:[ -]\d{2,8}){0,4}|\d{3}-\d{3}-\d{4}|\d{3}-\d{4})(?![\w-]|[.,/:]\d)",
        re.ASCII,
    )
    named_phone = re.compile(
        rf"\b(?P<before>(?:{language.phone_words or '(?!)'})(?:\.:|[.:])? )"
        r"(?P<number>\+?[(\d][\d ()/.-]{4,18}\d)(?!\w|[.,:]\d)"
    )
    between = re.compile(rf"{ALONE}(?P<first>[1-9]\d{{0,3}})-(?P<last>[1-9]\d{{0,3}})(?![\w-]|[.,/:]\d)", re.ASCII)
    score = re.compile(rf"{ALONE}(?P<first>\d{{1,3}}):(?P<last>\d{{1,3}})(?![\w:]|[.,/-]\d)", re.ASCII)
    marks = any_of(language.ordinal_marks)
    marked = re.compile(rf"(?<![\w,:/-])(?<!\d\.)(?P<number>\d{{1,4}})(?P<mark>{marks})(?![\w°])")
    bare_fraction = re.compile(r"(?<![^\s(\[\"'+$€£-])\.(?=\d)", re.ASCII)
    genders = [(re.compile(pattern), gender) for pattern, gender in language.noun_endings]

    def say_fraction(match: re.Match[str]) -> str:
        if match["part"] not in language.fractions:
            return match[0]
        alone, after_whole = language.fractions[match["part"]]
        return after_whole.format(cardinal(int(match["whole"]), language)) if match["whole"] else alone

    def say_phone(number: str) -> str:
        plus = f"{language.plus} " if number.startswith("+") else ""
        return plus + say_digits(number, language)

    def say_between(match: re.Match[str]) -> str:
        first, last = int(match["first"]), int(match["last"])
        if 1100 <= first < 2100 and len(match["last"]) == 2 and last > first % 100:  # "2020-21"
            return say_range(say_year(first, language), cardinal(last, language), language)
        if first >= last:
            return match[0]
        say: Callable[[int, Language], str] = say_year if first >= 1100 and last < 2100 else cardinal
        return say_range(say(first, language), say(last, language), language)

    def say_score(match: re.Match[str]) -> str:
        return f" {language.score_word} ".join(cardinal(int(match[end]), language) for end in ("first", "last"))

    def say_ordinal(match: re.Match[str]) -> str:
        return spaced(match, ordinal(int(match["number"]), language, language.ordinal_marks[match["mark"]]))

    def say_run(digits: str, gender: str) -> str:
        """One number where the language reads it so, else its parts: of dates and ranges they follow each other
        plainly, those of a list with its commas, those of a version with its points."""
        if (words := say_number(digits, language, gender)) is not None:
            return words
        separator = next(mark for mark in ":/-,." if mark in digits)  # there is one: bare digits are a number
        link = {",": ", ", ".": f" {language.decimal_marks['.']} "}.get(separator, " ")
        return link.join(say_run(part, "") for part in digits.split(separator))

    def say_match(match: re.Match[str]) -> str:
        following = match["next"] or ""
        gender = ""
        if following:
            counted = match["digits"] + following
            gender = next((gender for pattern, gender in genders if pattern.search(counted)), "")
        words = say_run(match["digits"], gender)
        if match["sign"]:
            words = f"{language.minus if match['sign'] == '-' else language.plus} {words}"
        return spaced(match, words)

    def read(text: str) -> str:
        if "/" in text:
            text = fraction.sub(say_fraction, text)
        text = named_phone.sub(lambda match: match["before"] + say_phone(match["number"]), text)
        text = phone.sub(lambda match: say_phone(match[0]), text)
        text = marked.sub(say_ordinal, text)
        text = between.sub(say_between, text)
        if language.score_word:
            text = score.sub(say_score, text)
        return run.sub(say_match, bare_fraction.sub("0.", text))

    return read
