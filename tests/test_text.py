"""The spoken form: a table of cases per language, then what holds for every string."""

import random
import re
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import pytest

import llasa.text
from llasa.text import LANGUAGES, has_speakable_text, spoken_form

CASES = {
    "it": [
        ("Ciao, come stai?", "Ciao, come stai?"),
        ("Ho 3 gatti.", "Ho tre gatti."),
        ("Sono 23 o 28?", "Sono ventitré o ventotto?"),
        ("l’8 marzo", "l'otto marzo"),
        ("costa 1.234 lire", "costa milleduecentotrentaquattro lire"),
        ("33.000 abitanti", "trentatremila abitanti"),
        ("8.123.000.000", "otto miliardi e centoventitré milioni"),
        ("è 3,14 circa", "è tre virgola quattordici circa"),
        ("pi è 3,1416", "pi è tre virgola uno quattro uno sei"),
        ("la versione 3.5", "la versione tre punto cinque"),
        ("1.000,05", "mille virgola zero cinque"),
        ("il 50% di noi", "il cinquanta per cento di noi"),
        ("fa -5 gradi", "fa meno cinque gradi"),
        ("chiama 0612345678", "chiama zero sei uno due tre quattro cinque sei sette otto"),
        ("un foglio A4", "un foglio A quattro"),
        ("un MP3 in 3D", "un MP tre in tre D"),
        ("vedi cap.5", "vedi cap. cinque"),
        ("alle 8:30", "alle otto trenta"),
        ("«Sì» disse — e poi…", '"Sì" disse - e poi...'),
    ],
    "de": [
        ("Wie geht’s?", "Wie geht's?"),
        ("um 7 Uhr", "um sieben Uhr"),
        ("21 Tage", "einundzwanzig Tage"),
        ("1.234", "eintausendzweihundertvierunddreißig"),
        ("101.000", "einhunderteintausend"),
        ("101.000.000", "einhunderteine Millionen"),
        ("1.000.000", "eine Million"),
        ("3,14", "drei Komma eins vier"),
        ("Version 2.0", "Version zwei Punkt null"),
        ("nur 1 % davon", "nur ein Prozent davon"),
        ("2,1 %", "zwei Komma eins Prozent"),
        ("-3 Grad", "minus drei Grad"),
        ("ein A4-Blatt", "ein A vier-Blatt"),
        ("PLZ 01067", "PLZ null eins null sechs sieben"),
        ("10–20 Leute", "zehn zwanzig Leute"),
        ("»Ja« und »Nein«", '"Ja" und "Nein"'),
        ("„Gut“", '"Gut"'),
    ],
    "en": [
        ("It’s fine.", "It's fine."),
        ("7 cats", "seven cats"),
        ("21 days", "twenty-one days"),
        ("1,234,567", "one million two hundred and thirty-four thousand five hundred and sixty-seven"),
        ("1,000.50", "one thousand point five zero"),
        ("3.14", "three point one four"),
        (".5 miles", "zero point five miles"),
        ("1,2,3", "one, two, three"),
        ("100%", "one hundred percent"),
        ("-40 degrees", "minus forty degrees"),
        ("agent 007", "agent zero zero seven"),
        ("call 5551234567", "call five five five one two three four five six seven"),
        ("H2O and MP3", "H two O and MP three"),
        ("COVID-19", "COVID-nineteen"),
        ("a 3-year-old", "a three-year-old"),
        ("“Wait”—he said -- no", '"Wait" - he said - no'),
    ],
    "fr": [
        ("Aujourd’hui", "Aujourd'hui"),
        ("21 ans", "vingt et un ans"),
        ("80 personnes", "quatre-vingts personnes"),
        ("71 et 99", "soixante et onze et quatre-vingt-dix-neuf"),
        ("1 234 francs", "mille deux cent trente-quatre francs"),
        ("1\u202f000\u00a0000", "un million"),
        ("12.500", "douze mille cinq cents"),
        ("3,14", "trois virgule quatorze"),
        ("1 000,05", "mille virgule zéro cinq"),
        ("1 234.567", "mille deux cent trente-quatre point cinq six sept"),
        ("50\u00a0%", "cinquante pour cent"),
        ("-5 degrés", "moins cinq degrés"),
        ("en 2024 100 000 voix", "en deux mille vingt-quatre cent mille voix"),
        ("le 01 23 45", "le zéro un vingt-trois quarante-cinq"),
        ("du A4", "du A quatre"),
        ("«\u00a0Oui\u202f!\u00a0» dit-il", '"Oui!" dit-il'),
        ("l’11", "l'onze"),
    ],
    "es": [
        ("¿Qué tal?", "¿Qué tal?"),
        ("16 niños", "dieciséis niños"),
        ("500 metros", "quinientos metros"),
        ("1.234", "mil doscientos treinta y cuatro"),
        ("21.000", "veintiún mil"),
        ("31.000.000", "treinta y un millones"),
        ("101.001", "ciento un mil uno"),
        ("1.000.000", "un millón"),
        ("3,14", "tres coma catorce"),
        ("1.000,5", "mil coma cinco"),
        ("21 %", "veintiuno por ciento"),
        ("-5 grados", "menos cinco grados"),
        ("+5 grados", "más cinco grados"),
        ("el 0034", "el cero cero tres cuatro"),
        ("un MP3", "un MP tres"),
        ("—Hola —dijo", "- Hola - dijo"),
    ],
    "pt": [
        ("Olá, tudo bem?", "Olá, tudo bem?"),
        ("16 dias", "dezesseis dias"),
        ("23 anos", "vinte e três anos"),
        ("1.234", "mil duzentos e trinta e quatro"),
        ("1.100", "mil e cem"),
        ("21.000.000", "vinte e um milhões"),
        ("2.345.678", "dois milhões trezentos e quarenta e cinco mil seiscentos e setenta e oito"),
        ("3,14", "três vírgula catorze"),
        ("0,05", "zero vírgula zero cinco"),
        ("versão 3.5", "versão três ponto cinco"),
        ("50%", "cinquenta por cento"),
        ("-5 graus", "menos cinco graus"),
        ("ligue 0800", "ligue zero oito zero zero"),
        ("um MP3", "um MP três"),
        ("“Sim”", '"Sim"'),
    ],
    "nl": [
        ("Zo’n dag", "Zo'n dag"),
        ("1", "één"),
        ("22 dagen", "tweeëntwintig dagen"),
        ("101", "honderdeen"),
        ("1001", "duizend een"),
        ("101.000", "honderdeenduizend"),
        ("2.345", "tweeduizend driehonderdvijfenveertig"),
        ("2.000.000", "twee miljoen"),
        ("3,14", "drie komma veertien"),
        ("3,05", "drie komma nul vijf"),
        ("versie 3.5", "versie drie punt vijf"),
        ("50%", "vijftig procent"),
        ("-5 graden", "min vijf graden"),
        ("bel 0612345678", "bel nul zes één twee drie vier vijf zes zeven acht"),
        ("A4 en 4K", "A vier en vier K"),
    ],
    "pl": [
        ("Dzień dobry!", "Dzień dobry!"),
        ("5 kotów", "pięć kotów"),
        ("19 dni", "dziewiętnaście dni"),
        ("1 234", "tysiąc dwieście trzydzieści cztery"),
        ("22 000", "dwadzieścia dwa tysiące"),
        ("112\u00a0000", "sto dwanaście tysięcy"),
        ("1.000.000", "milion"),
        ("3,14", "trzy przecinek czternaście"),
        ("0,05", "zero przecinek zero pięć"),
        ("wersja 3.5", "wersja trzy kropka pięć"),
        ("50%", "pięćdziesiąt procent"),
        ("-5 stopni", "minus pięć stopni"),
        ("nr 0800", "nr zero osiem zero zero"),
        ("plik MP3", "plik MP trzy"),
        ("„Tak”", '"Tak"'),
    ],
    "xx": [
        ("  a \n\t b\u2028c ", "a b c"),
        ("room 101, 50%", "room 101, 50%"),
        ("cafe\u0301", "café"),
        ("\ufeffso\u00adft\u200b \x00hy\x7fphen", "soft hyphen"),
        ("perch\ufffd \ud800no\udfff", "perch no"),
        ("e\u200b\u0301", "é"),  # only once the zero-width space is gone do the two compose
        ("ciao😀mondo 👩‍👩‍👧 ☀️!", "ciao mondo!"),
        ("👍🏽 🇮🇹 1️⃣ ↔️ ok", "1 ok"),
        ("20 °C", "20 °C"),
        ("‘a’ ‚b‘ ‹c› d′ ”e“ 〝", "'a' 'b' 'c' d' \"e\" 〝"),
        ("a‐b‑c–d−e", "a-b-c-d-e"),
        ("a—b ― c--d", "a - b - c - d"),
        ("a…… b.....", "a... b..."),
        ("what ?! no .", "what?! no."),
        ("", ""),
    ],
}
TABLE = [(language, text, expected) for language, cases in CASES.items() for text, expected in cases]


@pytest.mark.parametrize(("language", "text", "expected"), TABLE)
def test_spoken_form(language, text, expected):
    assert spoken_form(text, language) == expected
    assert spoken_form(expected, language) == expected


def test_the_table_covers_every_language():
    assert set(LANGUAGES) == {"it", "de", "en", "fr", "es", "pt", "nl", "pl"} == set(CASES) - {"xx"}
    assert all(len(cases) >= 12 for cases in CASES.values())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<|begin_of_text|>Ciao<|eot_id|>.", "Ciao."),
        ("a <|SPEECH_GENERATION_END|> b<|s_65535|>c", "a b c"),
        ("<<|a|>|b|>", "< |b"),
        ("<<|a|>|s_<|b|>|>", "< |s_"),
        ("<\u200b|eot_id|\u200b>", ""),
        ("<|eot id|>", ""),
        ("<|||>x<|a|b|>", "| x a|b"),
        ("a < b | c > d", "a < b | c > d"),
    ],
)
@pytest.mark.parametrize("language", ["en", "xx"])
def test_nothing_reads_as_a_control_token(text, expected, language):
    spoken = spoken_form(text, language)
    assert "<|" not in spoken
    assert not re.search(r"<\|.*\|>", spoken)
    assert spoken == expected


FRAGMENTS = [
    *"0123456789.,:;!?%+-/'\"<>|()«»°²½ \t\n",
    *("<|", "|>", "<|s_1|>", "000", " 000", "1.000", "٣", "१", "𝟗", "é", "e", "\u0301", "\u0338", "ß", "word", "A"),
    *("\u00a0", "\u202f", "\u200b", "\ufeff", "\ufffd", "\ud83d", "\ude00", "😀", "️", "—", "–", "…", "`", "\u1fef"),
]


def random_strings(count, seed):
    source = random.Random(seed)
    for _ in range(count):
        if source.random() < 0.7:
            yield "".join(source.choices(FRAGMENTS, k=source.randrange(1, 30)))
        else:
            planes = source.choice([0x250, 0x3000, 0x10000, 0x110000])
            yield "".join(chr(source.randrange(planes)) for _ in range(source.randrange(1, 30)))


@pytest.mark.parametrize("language", [*LANGUAGES, "xx"])
def test_any_string_gives_a_clean_fixed_point(language):
    changed = 0
    for text in random_strings(1500, seed=7):
        spoken = spoken_form(text, language)
        assert spoken_form(spoken, language) == spoken, ascii(text)
        assert unicodedata.is_normalized("NFC", spoken), ascii(text)
        assert spoken == " ".join(spoken.split()), ascii(text)
        assert "<|" not in spoken, ascii(text)
        assert "|>" not in spoken, ascii(text)
        assert not {unicodedata.category(c) for c in spoken} & {"Cc", "Cf", "Cs", "Co", "Cn"}, ascii(text)
        if language != "xx":
            assert not re.search(r"[\d%]", spoken), ascii(text)
        changed += spoken != text
    assert changed > 1000


@pytest.mark.parametrize("language", LANGUAGES)
def test_different_numbers_sound_different(language):
    source = random.Random(3)
    numbers = [*range(1000), *(source.randrange(10 ** source.randrange(4, 10)) for _ in range(300))]
    words = {spoken_form(str(number), language) for number in numbers}
    assert len(words) == len(set(numbers)) > 1200
    assert all(re.fullmatch(r"[^\W\d_]+(?:[ -][^\W\d_]+)*", word) for word in words)


@pytest.mark.parametrize(("language", "mark"), [("it", "."), ("en", ","), ("fr", "\u202f"), ("pl", "\u00a0")])
def test_grouped_digits_are_one_number(language, mark):
    source = random.Random(5)
    for _ in range(100):
        number = source.randrange(1000, 10**9)
        assert spoken_form(f"{number:,}".replace(",", mark), language) == spoken_form(str(number), language)


def test_long_or_padded_digit_strings_are_read_one_by_one():
    assert spoken_form("123456789", "en").startswith("one hundred and twenty-three million")
    assert spoken_form("1234567890", "en") == "one two three four five six seven eight nine zero"
    assert spoken_form("00", "en") == "zero zero"
    assert spoken_form("0", "en") == "zero"
    assert spoken_form("999,999,999,999", "en").startswith("nine hundred and ninety-nine billion")
    assert spoken_form("9,999,999,999,999", "en") == " ".join(["nine"] * 13)


@pytest.mark.parametrize("unit", ["1", "1.", "1 000", " ", "<|", " !", "-", "%", "«", "1,", "1/1 ", "\u0301"])
def test_long_strings_take_linear_time(unit):
    started = time.process_time()
    spoken_form(unit * 50_000, "fr")
    assert time.process_time() - started < 6  # about 1 s at most; one quadratic expression takes 15 s and more


def test_has_speakable_text():
    for text in ("a", "Ciao!", "1 libro", "é", "<|eot_id|> sì", "привет", "漢"):
        assert has_speakable_text(text), text
    for text in ("", "  \n", "...", "?!", "😀", "—", "<|eot_id|>", "\u200b\u3164", "\ud800", "\u0301", "123", "½"):
        assert not has_speakable_text(text), text
    assert has_speakable_text(spoken_form("123", "it"))


def test_num2words_is_imported_when_a_number_comes():
    program = """
import sys
from llasa.text import spoken_form
assert spoken_form("ciao", "it") == "ciao" and "num2words" not in sys.modules
assert spoken_form("1", "it") == "uno" and "num2words" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(llasa.text.__file__).parents[1])
