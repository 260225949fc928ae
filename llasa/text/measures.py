"""What is counted: money, units, percent. "12,50 €", "$5 bn", "10-20 km/h", "1 %"."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from llasa.text.dates import previous_word
from llasa.text.language import Currency, Language, Noun
from llasa.text.numbers import (
    apply_fixes,
    cardinal,
    kept_period,
    number_pattern,
    say_number,
    say_range,
    spaced,
    split_number,
)

_SIGN = r"(?P<sign>(?<![^\s(\[\"'])[-+])?"
_START = r"(?=[-+\d])(?<![\w%])(?<!\d[.,:/-])"


def form_of(noun: Noun, number: int, is_decimal: bool, language: Language) -> str:
    form = getattr(noun, language.plural(number, is_decimal))
    return form or noun.other


def counted(number: str, noun: Noun, language: Language) -> str:
    """A number as written and its noun: "21", hora to "veintiuna horas"."""
    whole, fraction = split_number(number, language) or (0, "")
    spoken = apply_fixes(say_number(number, language, noun.gender) or "", language.large_number_fixes)
    words = f"{spoken} {form_of(noun, whole, bool(fraction), language)}"
    return apply_fixes(words, language.counted_fixes)


def money(number: str, scale: str, currency: Currency, language: Language) -> str:
    """An amount as written, with two digits after the mark as cents."""
    if scale:
        words = f"{say_number(number, language, 'm')} {language.scales[scale]} {currency.noun.other}"
        return apply_fixes(words, language.counted_fixes)
    whole, fraction = split_number(number, language) or (0, "")
    if len(fraction) != 2 or currency.cent is None:
        return counted(number, currency.noun, language)
    cents = int(fraction)
    whole_words = counted(number[:-3], currency.noun, language)
    if not cents:
        return whole_words
    cent_words = counted(str(cents), currency.cent, language)
    if not whole:
        return cent_words
    if cents < 10 or language.cents_named:
        return f"{whole_words} {language.cent_link} {cent_words}"
    return f"{whole_words} {cardinal(cents, language)}"


def _alternatives(names: Iterable[str]) -> str:
    """Longest first; a name that begins or ends with a letter must not run on into a word."""
    escaped = []
    for name in sorted(names, key=len, reverse=True):
        end = r"(?![\w'])" if name[-1].isalnum() else ""
        escaped.append(("(?<![^\\W\\d_])" if name[0].isalpha() else "") + re.escape(name) + end)
    return "|".join(escaped)


def read_measures(language: Language) -> Callable[[str], str]:
    number = number_pattern(language)
    amount = rf"(?:(?P<from>{number})-)?(?P<number>{number})"
    scale = rf"(?: ?(?P<scale>{_alternatives(language.scales)}))?" if language.scales else "(?P<scale>$^)?"
    symbols = _alternatives(language.currencies)
    link = rf"(?:{language.scale_links})?" if language.scale_links else ""
    first_characters = re.escape("".join(sorted({symbol[0] for symbol in language.currencies})))
    any_symbol = re.compile(symbols)
    before = re.compile(
        rf"(?=[-+{first_characters}]){_SIGN}(?P<symbol>{symbols}) ?(?P<minus>-)?{amount}(?:{scale})(?![\w%]|[.,:/]\d)",
        re.ASCII,
    )
    per = f"(?:/(?P<per>{_alternatives(language.units)}))?"
    units = {**language.units, "%": language.percent, "‰": language.per_mille}
    after = re.compile(rf"{_START}{_SIGN}{amount}{scale} ?{link}(?P<symbol>{symbols}){per}")
    measured = re.compile(rf"{_START}{_SIGN}{amount} ?(?P<unit>{_alternatives(units)}){per}")

    def say(match: re.Match[str], words: str) -> str:
        if first := match["from"]:
            words = say_range(say_number(first, language) or first, words, language)
        sign = match["sign"] or match.groupdict().get("minus")
        if sign:
            words = f"{language.plus if sign == '+' else language.minus} {words}"
        if unit := match.groupdict().get("per"):
            words = f"{words} {language.per} {units[unit].one}"
        return spaced(match, words + kept_period(match))

    def say_money(match: re.Match[str]) -> str:
        currency = language.currencies[match["symbol"]]
        return say(match, money(match["number"], match["scale"] or "", currency, language))

    def say_measure(match: re.Match[str]) -> str:
        unit = units[match["unit"]]
        if language.singular_after and previous_word(match) in language.singular_after:
            unit = unit._replace(other=unit.one)
        return say(match, counted(match["number"], unit, language))

    def read(text: str) -> str:
        if any_symbol.search(text):
            text = after.sub(say_money, before.sub(say_money, text))
        return measured.sub(say_measure, text)

    return read
