"""Dates and years: "03/05/2024", "2024-05-03", "3 maggio 2024", "May 3, 2024", and "since 1998".

A date in digits is read in the language's order; where that gives no date (25/12/2024 in English) the other order is
tried, and failing that it is left to the plain numbers. Two-digit years are read as written.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from llasa.text.language import Language, any_of
from llasa.text.numbers import cardinal, ordinal, say_digits, say_year


def previous_word(match: re.Match[str]) -> str:
    """The word right before a match, in lower case, or ""; at most 24 characters are looked at."""
    before = match.string[max(0, match.start() - 24) : match.start()]
    words = re.findall(r"[^\W\d_]+(?=[ '\"(]*$)", before)
    return words[-1].lower() if words else ""


def read_dates(language: Language) -> Callable[[str], str]:
    iso = re.compile(r"(?<![\w.,/-])(?P<year>\d{4})-(?P<second>\d\d)-(?P<first>\d\d)(?![\w-]|[.,/]\d)", re.ASCII)
    numeric = re.compile(
        r"(?<![\w.,/:-])(?P<first>\d{1,2})(?P<mark>[./-])(?P<second>\d{1,2})(?P=mark)(?P<year>\d{4}|\d\d)(?![\w-]|[.,/:]\d)",
        re.ASCII,
    )
    short = {name.lower(): index for name, index in language.month_abbreviations.items()}
    names = rf"{any_of(language.months)}|(?:{any_of(language.month_abbreviations)})(?:\.|(?!\w))"
    case = re.IGNORECASE if language.months[0].islower() else re.NOFLAG  # "may 5 people" is no date
    marks = any_of({*language.ordinal_marks, "."})
    day_month = re.compile(
        rf"(?<![\w,:/-])(?<!\d\.)(?:(?P<from>\d{{1,2}}) ?- ?)?(?P<day>\d{{1,2}})(?P<mark>{marks})? "
        rf"(?P<of>de |of )?(?P<month>{names})(?!\w)"
        rf"(?:(?P<link>,? (?:de |del )?)(?P<year>[12]\d{{3}})(?![\w%-]|[.,:/]\d))?",
        case,
    )
    month_day = re.compile(
        rf"(?<!\w)(?P<month>{names})(?!\w) (?P<day>\d{{1,2}})(?:{any_of(language.ordinal_marks)})?(?![\w%-]|[.,:/]\d)"
        rf"(?:,? (?P<year>[12]\d{{3}})(?![\w%-]|[.,:/]\d))?",
        case,
    )
    date_year = language.date_year or (lambda number: say_year(number, language))

    def say_in_digits(match: re.Match[str]) -> str:
        first, second, text = int(match["first"]), int(match["second"]), match["year"]
        day, month = (
            (second, first) if language.date_order == "mdy" and "mark" in match.groupdict() else (first, second)
        )
        if month > 12:
            day, month = month, day
        padded_with_dots = match.groupdict().get("mark") == "." and len(match["first"] + match["second"]) == 4
        is_version = len(text) == 2 and match["mark"] != "/" and not padded_with_dots  # "1.2.10", but not "03.05.24"
        if is_version or not (1 <= day <= 31 and 1 <= month <= 12):
            return match[0]
        short_year = say_digits(text, language) if text.startswith("0") else cardinal(int(text), language)
        return language.date_template.format(
            day=language.day(day, previous_word(match)),
            month=language.months[month - 1],
            year=short_year if len(text) == 2 else date_year(int(text)),
        )

    def month_name(written: str) -> str:
        name = written.lower().rstrip(".")
        return language.months[short[name] - 1] if name in short else written

    def say_day_month(match: re.Match[str]) -> str:
        if not 1 <= int(match["day"]) <= 31:
            return match[0]
        if match["mark"] in language.ordinal_marks:  # "1.º de mayo": as written
            words = ordinal(int(match["day"]), language, language.ordinal_marks[match["mark"]])
        else:
            words = language.day(int(match["day"]), previous_word(match))
        if match["from"]:
            first = language.day(int(match["from"]), previous_word(match))
            words = f"{first} {language.range_word} {words}" if language.range_word else f"{first} - {words}"
        words += f" {match['of'] or ''}{month_name(match['month'])}"
        return f"{words}{match['link']}{date_year(int(match['year']))}" if match["year"] else words

    def say_month_day(match: re.Match[str]) -> str:
        if not 1 <= int(match["day"]) <= 31:
            return match[0]
        words = f"{month_name(match['month'])} {language.day(int(match['day']), 'the')}"
        return f"{words}, {date_year(int(match['year']))}" if match["year"] else words

    def read(text: str) -> str:
        text = numeric.sub(say_in_digits, iso.sub(say_in_digits, text))
        text = day_month.sub(say_day_month, text)
        if language.date_order == "mdy":
            text = month_day.sub(say_month_day, text)
        return text

    return read


def read_years(language: Language) -> Callable[[str], str]:
    """Four digits where they are a year; after money and units, which "in 1500 m" is."""
    if language.year is None:
        return lambda text: text
    contexts = any_of([*language.year_after, *language.months, *language.month_abbreviations])
    year = re.compile(
        rf"(?P<before>(?<!\w)(?:{contexts})[,.]? \(?|\()(?P<year>1\d{{3}}|20\d\d)(?![\w%-]|[.,:/]\d)", re.IGNORECASE
    )
    bare = re.compile(rf"(?<![\w.,:/'-])(?P<year>{language.bare_year})") if language.bare_year else None

    def read(text: str) -> str:
        text = year.sub(lambda match: match["before"] + say_year(int(match["year"]), language), text)
        return bare.sub(lambda match: say_year(int(match["year"]), language), text) if bare else text

    return read
