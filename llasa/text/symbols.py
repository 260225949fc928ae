"""Signs between words: addresses, & and @, superscripts, signs of calculation, and the digits of other scripts.

:func:`fold_digits` runs first and leaves ASCII digits only; :func:`read_signs_of_numbers` runs while the digits still
stand, :func:`read_powers` once units have taken their "m²", :func:`read_symbols` when all digits are words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from llasa.text.language import Language, any_of

_FOREIGN_DIGIT = re.compile(r"[^\D0-9]")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")
_SUBSCRIPTS = {ord(sign): str(digit) for digit, sign in enumerate("₀₁₂₃₄₅₆₇₈₉")}
_VULGAR_FRACTION = re.compile(r"((?<=\d) ?)?([¼½¾⅐-⅞])")
_ENCLOSED_DIGIT = re.compile(r"[①-⑳⑴-⒛⓪-⓿❶-➓]")
_FOOTNOTE = re.compile(r"(?<=[^\W\d_])[⁰¹⁴-⁹][⁰¹²³⁴-⁹]*")
_SUPERSCRIPT = re.compile(r"([^\W_])?([⁰¹²³⁴⁵⁶⁷⁸⁹]+)")
_ADDRESS = re.compile(
    r"(?<![\w.+-])(?:https?://[\w./-]{1,200}\w/?|www\.[\w-]{1,63}(?:\.[\w-]{1,63}){1,4}"
    r"|[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,4})"
)


def fold_digits(text: str) -> str:
    """Digits of other scripts, in circles and as subscripts are ASCII digits; ½ is "1/2"; footnotes go."""
    text = _FOOTNOTE.sub("", text).translate(_SUBSCRIPTS)
    text = _ENCLOSED_DIGIT.sub(lambda match: f" {int(unicodedata.numeric(match[0]))} ", text)
    text = _FOREIGN_DIGIT.sub(lambda match: str(unicodedata.decimal(match[0])), text)
    return _VULGAR_FRACTION.sub(_plain_fraction, text)


def _plain_fraction(match: re.Match[str]) -> str:
    plain = unicodedata.normalize("NFKC", match[2]).replace("⁄", "/")
    return plain if match[1] is None else f" {plain}"


def read_signs_of_numbers(language: Language) -> Callable[[str], str]:
    before = language.symbols_before_number
    signs = re.compile(rf"({any_of(before)}) ?(?=[\d€$£])")
    times = re.compile(r"(?<=\d) ?[x×*·] ?(?=\d)")
    often = re.compile(r"(?<=\d)[x×](?!\w)")

    def read(text: str) -> str:
        text = times.sub(f" {language.times_sign} ", text)
        text = often.sub(f" {language.times_word}", text)
        return signs.sub(lambda match: f" {before[match[1]]} ", text)

    return read


def read_powers(language: Language) -> Callable[[str], str]:
    power = re.compile(r"(?<=\w) ?\^ ?(?=\w)")

    def say_superscript(match: re.Match[str]) -> str:
        base, digits = match[1], match[2].translate(_SUPERSCRIPTS)
        if base is None or (base.isalpha() and digits not in ("2", "3")):
            return base or ""  # a footnote too: "parola²³"
        spoken = {"2": language.square, "3": language.cube}.get(digits, f"{language.power} {digits}")
        after = match.string[match.end() : match.end() + 1]
        return f"{base} {spoken}" + (" " if after.isalnum() else "")

    def read(text: str) -> str:
        return power.sub(f" {language.power} ", _SUPERSCRIPT.sub(say_superscript, text))

    return read


def read_addresses(language: Language) -> Callable[[str], str]:
    dot = f" {language.decimal_marks['.']} "

    def say(match: re.Match[str]) -> str:
        address = re.sub(r"^https?://", "", match[0]).rstrip("/")
        return address.replace(".", dot)

    return lambda text: _ADDRESS.sub(say, text)


def read_symbols(language: Language) -> Callable[[str], str]:
    table = symbol_table(language)
    pattern = re.compile(any_of(table))
    return lambda text: pattern.sub(lambda match: f" {table[match[0]]} ", text)


def symbol_table(language: Language) -> dict[str, str]:
    """The language's symbols, its currencies' and units' signs standing alone, and what is never said."""
    table = dict.fromkeys("*_^~\\{}/×·≈≤≥¹²³", "")
    table.update(
        {sign: currency.noun.other for sign, currency in language.currencies.items() if not sign[-1].isalnum()}
    )
    table.update({"%": language.percent.other, "‰": language.per_mille.other})
    degrees = (("°", "°"), ("℃", "°C"), ("℉", "°F"))
    table.update({sign: language.units[unit].other for sign, unit in degrees if unit in language.units})
    return {**table, **language.symbols}
