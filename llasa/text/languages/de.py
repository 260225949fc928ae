"""German.

Choices: "14:30" and "14.30 Uhr" are "vierzehn Uhr dreißig"; 1100 to 1999 are hundreds where a year is clear
("neunzehnhundertachtundneunzig"); "12,50 €" is "zwölf Euro fünfzig"; "2:1" is "zwei zu eins".
"3." is an ordinal before a month and, with the ending that the word before it asks for, before a capitalised word; with
no article in front only before nouns whose gender is listed. A bare "3." before any other word ends a sentence.
Not covered: "der 3. Klasse" in the genitive (it is read "der dritte" unless a preposition stands before), the case of
"ein" and "eine" before a noun, rulers in other cases than the nominative and the genitive.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from llasa.text.dates import previous_word
from llasa.text.language import Language, Noun, currencies, listed, nouns, words
from llasa.text.numbers import ROMAN, cardinal, kept_period, ordinal, roman_value, year_in_hundreds

_WEAK_N = set(
    listed(
        "am vom zum beim im dem den des zur einem einen eines einer diesem diesen jedem jeden ihrem ihren "
        "seinem seinen seiner ihrer meinem meinen unserem unseren ab bis seit"
    )
)
_WEAK_E = set(listed("der die das dieser diese dieses jede jedes ins meine deine seine ihre unsere eine keine"))
_DATIVE = "in|mit|von|aus|bei|nach|an|auf|zu|seit|vor|während|wegen|trotz|ab|unter|hinter|neben|zwischen|gegenüber"
_MASCULINE = (
    "Platz|Rang|Tag|Stock|Satz|Akt|Weltkrieg|Versuch|Teil|Band|Schritt|Spieltag|Geburtstag|Jahrestag|Advent|Sieger|"
    "Abschnitt|Artikel|Monat|Grad|Gang|Bezirk|FC|FSV|Preis|Punkt|Durchgang"
)
_FEMININE = (
    "Klasse|Liga|Runde|Auflage|Etage|Minute|Halbzeit|Staffel|Woche|Reihe|Stelle|Seite|Ausgabe|Etappe|Person|Folge|"
    "Sitzung|Generation|Dynastie"
)
_NEUTER = "Jahrhundert|Kapitel|Mal|Jahr|Semester|Quartal|Obergeschoss|Lebensjahr|Buch|Viertel|Jahrtausend|Bild|Spiel"


def day(number: int, previous: str) -> str:
    return ordinal(number, LANGUAGE, "n" if previous in _WEAK_N else "" if previous in _WEAK_E else "r")


def time(hour: int, minute: int, previous: str) -> str:
    hours = "ein" if hour == 1 else cardinal(hour, LANGUAGE)
    return f"{hours} Uhr {cardinal(minute, LANGUAGE)}" if minute else f"{hours} Uhr"


def year(number: int) -> str:
    return year_in_hundreds(number, "de") if number < 2000 else cardinal(number, LANGUAGE)


def ordinal_after_word(match: re.Match[str]) -> str:
    return day(int(match["number"]), previous_word(match))


def ordinal_after_article(match: re.Match[str]) -> str:
    article = match["article"].lower()
    weak = article in _WEAK_N or (article == "der" and match["preposition"])
    start = match["preposition"] or ""
    return f"{start}{match['article']} {ordinal(int(match['number']), LANGUAGE, 'n' if weak else '')}"


def ordinal_pair(match: re.Match[str]) -> str:
    form = "n" if match["article"].lower() in _WEAK_N else ""
    numbers = [ordinal(int(match[name]), LANGUAGE, form) for name in ("number", "last")]
    return f"{match['article']} {numbers[0]} {match['link']} {numbers[1]}"


def ordinal_of(form: str) -> Callable[[re.Match[str]], str]:
    return lambda match: ordinal(int(match["number"]), LANGUAGE, form)


def short_date(match: re.Match[str]) -> str:
    day_number, month = int(match["day"]), int(match["month"])
    if not (1 <= day_number <= 31 and 1 <= month <= 12):
        return match[0]
    return f"{match['before']} {day(day_number, match['before'].lower())} {LANGUAGE.months[month - 1]}"


def ruler(match: re.Match[str]) -> str:
    number = ordinal(roman_value(match["roman"]), LANGUAGE)
    number = number[:1].upper() + number[1:]
    end = kept_period(match)
    if match["name"] in ("Elisabeth", "Katharina"):
        return f"{match['name']} die {number}{end}"
    genitive = match["name"].endswith("s") and match["name"] not in ("Pius", "Johannes", "Nikolaus")
    return f"{match['name']} des {number}n{end}" if genitive else f"{match['name']} der {number}{end}"


_ARTICLE = "|".join(sorted(_WEAK_N | _WEAK_E, key=len, reverse=True))

LANGUAGE: Language = Language(
    alphabet="abcdefghijklmnopqrstuvwxyzäöüßàáâèéêëîïíñóôçåøšžčłćøæ",
    # Judgement: readers make 13 to 17; a third of that or half as much again means a wrong transcript.
    characters_per_second=(5.0, 26.0),
    num2words_code="de",
    minus="minus",
    plus="plus",
    thousands=".",
    decimal_marks={",": "Komma", ".": "Punkt"},
    fraction_as_number=False,
    # "einhunderteinstausend", "einhunderteins Millionen"
    cardinal_fixes=((r"eins(?=tausend)", "ein"), (r"eins(?= Mil)", "eine")),
    before_noun={"m": ((r"eins$", "ein"),), "n": ((r"eins$", "ein"),), "f": ((r"^eins$", "eine"), (r"eins$", "eine"))},
    noun_endings=(
        (
            r"^1 (?:Million|Milliarde|[A-ZÄÖÜ][a-zäöüß]+(?:ung|heit|keit|schaft|ion|tät)|Woche|Stunde|Minute)\b",
            "f",
        ),
        (r"^1 (?:Person|Frau|Katze|Seite|Tonne|Flasche|Tasse|Stimme|Mark|Mal)\b", "f"),
        (r"^1 (?:Tag|Monat|Jahr|Buch|Mann|Kind|Euro|Liter|Meter|Kilometer|Kilo|Punkt|Hund|Platz|Prozent|Uhr)\b", "m"),
    ),
    range_word="bis",
    score_word="zu",
    fractions={
        "1/2": ("ein halb", "{}einhalb"),
        "1/3": ("ein Drittel", "{} ein Drittel"),
        "2/3": ("zwei Drittel", "{} zwei Drittel"),
        "1/4": ("ein Viertel", "{}einviertel"),
        "3/4": ("drei Viertel", "{}dreiviertel"),
        "1/5": ("ein Fünftel", "{} ein Fünftel"),
        "1/8": ("ein Achtel", "{} ein Achtel"),
    },
    phone_words=r"Telefon",
    ordinal_forms={"n": ((r"$", "n"),), "r": ((r"$", "r"),), "s": ((r"$", "s"),)},
    months=listed("Januar Februar März April Mai Juni Juli August September Oktober November Dezember"),
    month_abbreviations={"Jan": 1, "Feb": 2, "Apr": 4, "Aug": 8, "Sept": 9, "Sep": 9, "Okt": 10, "Nov": 11, "Dez": 12},
    day=day,
    year=year,
    year_after=(
        *listed("seit in im um von bis vor nach ab Jahr Jahre Jahres Jahren anno Herbst Frühjahr Sommer Winter"),
        *listed("Anfang Mitte Ende geboren gestorben und zwischen"),
    ),
    # Digits before a capital are mostly a count ("1998 Leute"); everything else in this range sounds right in hundreds.
    bare_year=r"1[1-9]\d\d(?![\w%-]|[.,:/]\d)(?! [A-ZÄÖÜ])",
    time=time,
    hour_words="Uhr",
    percent=Noun("Prozent", "Prozent"),
    per="pro",
    per_mille=Noun("Promille", "Promille"),
    units=nouns("""
        km | Kilometer | Kilometer
        m | Meter | Meter
        cm | Zentimeter | Zentimeter
        mm | Millimeter | Millimeter
        km/h | Kilometer pro Stunde | Kilometer pro Stunde
        m/s | Meter pro Sekunde | Meter pro Sekunde
        m², m2, qm | Quadratmeter | Quadratmeter
        km², km2 | Quadratkilometer | Quadratkilometer
        cm² | Quadratzentimeter | Quadratzentimeter
        m³, m3 | Kubikmeter | Kubikmeter
        ha | Hektar | Hektar
        kg | Kilogramm | Kilogramm
        g | Gramm | Gramm
        mg | Milligramm | Milligramm
        t | Tonne | Tonnen | f
        l | Liter | Liter
        cl | Zentiliter | Zentiliter
        ml | Milliliter | Milliliter
        h, Std. | Stunde | Stunden | f
        Min., min | Minute | Minuten | f
        Sek., s | Sekunde | Sekunden | f
        ms | Millisekunde | Millisekunden | f
        Uhr | Uhr | Uhr
        EL | Esslöffel | Esslöffel
        TL | Teelöffel | Teelöffel
        ° | Grad | Grad
        °C, ° C, ℃ | Grad Celsius | Grad Celsius
        °F, ° F, ℉ | Grad Fahrenheit | Grad Fahrenheit
        kB, KB | Kilobyte | Kilobyte
        MB | Megabyte | Megabyte
        GB | Gigabyte | Gigabyte
        TB | Terabyte | Terabyte
        Hz | Hertz | Hertz
        kHz | Kilohertz | Kilohertz
        MHz | Megahertz | Megahertz
        GHz | Gigahertz | Gigahertz
        W | Watt | Watt
        kW | Kilowatt | Kilowatt
        kWh | Kilowattstunde | Kilowattstunden | f
        V | Volt | Volt
        kcal | Kilokalorie | Kilokalorien | f
    """),
    currencies=currencies("""
        €, EUR, Euro | Euro | Euro | m || Cent | Cent
        $, US$, USD | Dollar | Dollar | m || Cent | Cent
        £, GBP | Pfund | Pfund | m || Penny | Pence
        CHF | Franken | Franken | m || Rappen | Rappen
        ¥ | Yen | Yen
        zł | Zloty | Zloty
    """),
    scales=words("""
        Mio. | Millionen
        Million | Million
        Millionen | Millionen
        Mrd. | Milliarden
        Milliarde | Milliarde
        Milliarden | Milliarden
        Tsd., Tausend | Tausend
    """),
    cent_link="und",
    cents_named=False,
    abbreviations=words("""
        Dr. | Doktor
        Prof. | Professor
        Hr. | Herr
        Hrn. | Herrn
        Fr. | Frau
        St. | Sankt
        z. B. | zum Beispiel
        Z. B. | Zum Beispiel
        D. h. | Das heißt
        d. h. | das heißt
        u. a. | unter anderem
        i. d. R. | in der Regel
        o. Ä. | oder Ähnliches
        s. o. | siehe oben
        s. u. | siehe unten
        v. a. | vor allem
        z. T. | zum Teil
        u. U. | unter Umständen
        i. A. | im Auftrag
        m. E. | meines Erachtens
        sog. | sogenannte
        bzw. | beziehungsweise
        ca. | circa
        evtl. | eventuell
        ggf. | gegebenenfalls
        vgl. | vergleiche
        inkl. | inklusive
        exkl. | exklusive
        bspw. | beispielsweise
        geb. | geboren
        gest. | gestorben
        Tel. | Telefon
        Mio. | Millionen
        Mrd. | Milliarden
        Jh. | Jahrhundert
        Hbf. | Hauptbahnhof
        zzgl. | zuzüglich
        max. | maximal
        min. | minimal
    """),
    closing_abbreviations=words("""
        usw. | und so weiter
        u. s. w. | und so weiter
        usf. | und so fort
        etc. | et cetera
        v. Chr. | vor Christus
        n. Chr. | nach Christus
    """),
    number_abbreviations=words("""
        Nr., № | Nummer
        S. | Seite
        Kap. | Kapitel
        Art. | Artikel
        Abs. | Absatz
        Bd. | Band
        Abb. | Abbildung
    """),
    symbols=words("""
        & | und
        @ | at
        + | plus
        = | gleich
        § | Paragraf
        §§ | Paragrafen
        ± | plus minus
        ÷ | geteilt durch
        # | Hashtag
        № | Nummer
    """),
    symbols_before_number=words("""
        ~, ≈ | etwa
        # | Nummer
        < | weniger als
        > | mehr als
        ≤ | höchstens
        ≥ | mindestens
    """),
    times_sign="mal",
    times_word="mal",
    power="hoch",
    square="hoch zwei",
    cube="hoch drei",
    own_rules=(
        (
            r"\b(?P<article>[Aa]m|[Vv]om|[Zz]um|[Dd]er|[Dd]en|[Dd]em|[Bb]eim) (?P<number>\d{1,2})\.(?=[\"')]*$)",
            lambda match: f"{match['article']} {day(int(match['number']), match['article'].lower())}.",
        ),
        (r"(?<![\w.,:/-])(\d{1,3})x(?!\w)", lambda match: f"{cardinal(int(match[1]), LANGUAGE, 'm')}mal"),
        (r"(?<=\d),-+(?!\d)", ""),
        (r"(?<![\w.,:/-])(\d{1,2})\. ?(\d{1,2})\. (\d{4})(?!\w)", r"\1.\2.\3"),
        (r"(?<![\w.,:/-])(\d+) ?%(?=ig)", lambda match: f"{cardinal(int(match[1][:9]), LANGUAGE)}prozent"),
        (
            rf"\b(?P<article>(?i:{_ARTICLE})) (?P<number>\d{{1,2}})\. (?P<link>und|oder|bis|bis zum) "
            r"(?P<last>\d{1,2})\.(?= [\w])",
            ordinal_pair,
        ),
        (
            r"(?<![\w.,/-])(?<!\d )1/2 (?=(?:Stunde|Tasse|Minute|Million|Flasche|Packung|Zwiebel|Seite)\b)",
            "eine halbe ",
        ),
        (r"(?<![\w.,/-])(?<!\d )1/2 (?=(?:Jahr|Kilo|Pfund|Prozent|Dutzend)\b)", "ein halbes "),
        (r"(?<![\w.,/-])(?<!\d )1/2 (?=(?:Liter|Meter|Kilometer|Tag|Monat|Teelöffel|Esslöffel)\b)", "ein halber "),
        (
            r"\b(?P<before>[Aa]m|[Vv]om|[Bb]is|[Zz]um|[Dd]er|[Dd]en|[Dd]em|[Aa]b) (?P<day>\d{1,2})\."
            r"(?P<month>\d{1,2})\.(?! ?\d)",
            short_date,
        ),
        (
            rf"\b(?P<name>(?:Ludwig|Wilhelm|Friedrich|Karl|Heinrich|Otto|Johannes|Paul|Benedikt|Pius|Leo|Philipp|Georg|"
            rf"Elisabeth|Katharina|Napoleon|Gregor|Leopold|Franz|Ferdinand|Maximilian|Alexander|Nikolaus)s?) "
            rf"{ROMAN}(?:\.|(?!\w))",
            ruler,
        ),
        (
            rf"\b(?P<preposition>(?:(?i:{_DATIVE}) )?)(?P<article>(?i:{_ARTICLE})) (?P<number>\d{{1,3}})\."
            r"(?= (?:und \d{1,3}\. )?(?:[a-zäöü]+en |[a-zäöü]+e )?(?:[A-ZÄÖÜ][a-zäöüß]|FC\b|FSV\b)|-)(?! (?:"
            "Januar|Februar|März|April|Mai|Juni|Juli|August|September|Oktober|November|Dezember)"
            r"\b)",
            ordinal_after_article,
        ),
        (rf"(?<![\w.,-])(?P<number>\d{{1,3}})\.(?= (?:{_MASCULINE})\b)", ordinal_of("r")),
        (rf"(?<![\w.,-])(?P<number>\d{{1,3}})\.(?= (?:{_FEMININE})\b)", ordinal_of("")),
        (rf"(?<![\w.,-])(?P<number>\d{{1,3}})\.(?= (?:{_NEUTER})\b)", ordinal_of("s")),
        (
            r"(?<![\w.,'-])(?P<number>1[1-9]\d0|\d{1,3})er(?!\w)",
            lambda match: f"{year(int(match['number'])).removesuffix('s')}er",
        ),
        # No sentence goes on with a small letter: "wurde 2. und".
        (r"(?<![\w.,:/-])(?P<number>\d{1,3})\.(?= [a-zäöü])", ordinal_after_word),
    ),
)
