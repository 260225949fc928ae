"""Dutch.

Choices: "14:30" and "14.30 uur" are "veertien uur dertig"; 1100 to 1999 are hundreds where a year is clear
("negentienhonderdachtennegentig"), other numbers follow the spelling rule, a space after "duizend"; "12,50 euro" is
"twaalf euro vijftig"; "10-20" is "tien tot twintig"; "½" is "een half". "1" is "één" also before a noun.
Not covered: "halve" before other nouns than a few, popular readings such as "half drie", Roman
numerals outside rulers and wars.
"""

from __future__ import annotations

import re

from llasa.text.language import Language, Noun, currencies, listed, nouns, numbered, words
from llasa.text.numbers import ROMAN, cardinal, ordinal, roman_value


def day(number: int, previous: str) -> str:
    return cardinal(number, LANGUAGE)


def time(hour: int, minute: int, previous: str) -> str:
    return f"{cardinal(hour, LANGUAGE)} uur" + (f" {cardinal(minute, LANGUAGE)}" if minute else "")


def year(number: int) -> str:
    if number >= 2000 or number % 1000 < 100:
        return cardinal(number, LANGUAGE)
    rest = number % 100
    return f"{cardinal(number // 100, LANGUAGE)}honderd" + (
        cardinal(rest, LANGUAGE).replace("één", "een") if rest else ""
    )


def ruler(match: re.Match[str]) -> str:
    return f"{match['name']} de {ordinal(roman_value(match['roman']), LANGUAGE)}"


LANGUAGE: Language = Language(
    alphabet="abcdefghijklmnopqrstuvwxyzáàâäçéèêëíìîïñóòôöúùûüĳåø",
    # Judgement: readers make 13 to 18; a third of that or half as much again means a wrong transcript.
    characters_per_second=(5.0, 26.0),
    num2words_code="nl",
    minus="min",
    plus="plus",
    thousands=".",
    decimal_marks={",": "komma", ".": "punt"},
    fraction_as_number=True,
    # Spelling: "honderdeen", not "honderdéén"; a space follows "duizend".
    cardinal_fixes=((r"(?<=\w)één", "een"), (r"duizend(?=\w)", "duizend ")),
    range_word="tot",
    fractions={
        "1/2": ("een half", "{} en een half"),
        "1/3": ("een derde", "{} en een derde"),
        "2/3": ("twee derde", "{} en twee derde"),
        "1/4": ("een kwart", "{} en een kwart"),
        "3/4": ("drie kwart", "{} en drie kwart"),
        "1/5": ("een vijfde", "{} en een vijfde"),
        "1/8": ("een achtste", "{} en een achtste"),
    },
    phone_words=r"[Tt]elefoon|[Bb]el",
    ordinal_marks={"e": "", "de": "", "ste": "", "ᵉ": ""},
    months=listed("januari februari maart april mei juni juli augustus september oktober november december"),
    month_abbreviations=numbered("jan feb mrt apr - - - aug sept okt nov dec") | {"sep": 9},
    day=day,
    year=year,
    year_after=(
        *listed("in sinds vanaf van tot voor na rond jaar jaren zomer winter herfst voorjaar najaar begin eind tussen"),
        *listed("geboren overleden omstreeks en"),
    ),
    bare_year=r"1[1-9]\d\d(?![\w%-]|[.,:/]\d)(?=[,;:.!?)]| (?:is|was|werd|en|tot|begon|kwam|ging|had)\b|$)",
    time=time,
    hour_words="uur|u",
    dot_time_after=("om",),
    percent=Noun("procent", "procent"),
    per="per",
    per_mille=Noun("promille", "promille"),
    units=nouns("""
        km | kilometer | kilometer
        m | meter | meter
        cm | centimeter | centimeter
        mm | millimeter | millimeter
        km/h, km/u | kilometer per uur | kilometer per uur
        m/s | meter per seconde | meter per seconde
        m², m2 | vierkante meter | vierkante meter
        km², km2 | vierkante kilometer | vierkante kilometer
        cm² | vierkante centimeter | vierkante centimeter
        m³, m3 | kubieke meter | kubieke meter
        ha | hectare | hectare
        kg | kilo | kilo
        g, gr | gram | gram
        mg | milligram | milligram
        t | ton | ton
        l | liter | liter
        dl | deciliter | deciliter
        cl | centiliter | centiliter
        ml | milliliter | milliliter
        min | minuut | minuten
        s, sec | seconde | seconden
        ms | milliseconde | milliseconden
        ° | graad | graden
        °C, ° C, ℃ | graad Celsius | graden Celsius
        °F, ° F, ℉ | graad Fahrenheit | graden Fahrenheit
        kB, KB | kilobyte | kilobyte
        MB | megabyte | megabyte
        GB | gigabyte | gigabyte
        TB | terabyte | terabyte
        Hz | hertz | hertz
        kHz | kilohertz | kilohertz
        MHz | megahertz | megahertz
        GHz | gigahertz | gigahertz
        W | watt | watt
        kW | kilowatt | kilowatt
        kWh | kilowattuur | kilowattuur
        V | volt | volt
        kcal | kilocalorie | kilocalorieën
    """),
    currencies=currencies("""
        €, EUR, euro | euro | euro | m || cent | cent
        $, US$, USD | dollar | dollar | m || cent | cent
        £, GBP | pond | pond | m || penny | pence
        CHF | Zwitserse frank | Zwitserse frank | m || rappen | rappen
        ¥ | yen | yen
        zł | zloty | zloty
    """),
    scales=words("""
        miljoen, mln., mln | miljoen
        miljard, mld., mld | miljard
        duizend | duizend
    """),
    cent_link="en",
    cents_named=False,
    abbreviations=words("""
        dhr. | de heer
        mevr. | mevrouw
        mw. | mevrouw
        Dr. | Dokter
        dr. | doctor
        drs. | doctorandus
        prof. | professor
        ir. | ingenieur
        ing. | ingenieur
        mr. | meester
        ds. | dominee
        St. | Sint
        bijv. | bijvoorbeeld
        bv. | bijvoorbeeld
        d.w.z. | dat wil zeggen
        D.w.z. | Dat wil zeggen
        O.a. | Onder andere
        m.a.w. | met andere woorden
        o.a. | onder andere
        i.p.v. | in plaats van
        m.b.t. | met betrekking tot
        t/m | tot en met
        a.u.b. | alstublieft
        z.g. | zogenaamd
        zgn. | zogenaamde
        ca. | circa
        vgl. | vergelijk
        incl. | inclusief
        excl. | exclusief
        tel. | telefoon
        i.v.m. | in verband met
        n.a.v. | naar aanleiding van
        t.o.v. | ten opzichte van
        max. | maximaal
        mln. | miljoen
        mld. | miljard
    """),
    closing_abbreviations=words("""
        enz. | enzovoort
        etc. | et cetera
        e.d. | en dergelijke
        v.Chr. | voor Christus
        n.Chr. | na Christus
    """),
    number_abbreviations=words("""
        nr., № | nummer
        Nr. | Nummer
        nrs. | nummers
        p., blz., pag. | pagina
        art. | artikel
        hfst. | hoofdstuk
    """),
    symbols=words("""
        & | en
        @ | apenstaartje
        + | plus
        = | is gelijk aan
        § | paragraaf
        ± | plus of min
        ÷ | gedeeld door
        # | hashtag
        № | nummer
    """),
    symbols_before_number=words("""
        ~, ≈, ± | ongeveer
        # | nummer
        < | minder dan
        > | meer dan
        ≤ | hoogstens
        ≥ | minstens
    """),
    times_sign="keer",
    times_word="keer",
    power="tot de macht",
    square="kwadraat",
    cube="tot de derde",
    own_rules=(
        (r"(?<=\d),-+(?!\d)", ""),
        (r"(?<!\w)'(?=\d\d(?!\d))", ""),
        (
            r"(?<![\w.,/-])(?<!\d )1/2 (?=(?:liter|meter|kilometer|dag|minuut|theelepel|eetlepel|mijl|ton|fles|ui)\b)",
            "een halve ",
        ),
        (r"\b(?P<before>[Jj]aren )'(?=\d0\b)", r"\g<before>"),
        (
            rf"\b(?P<name>Willem|Lodewijk|Karel|Hendrik|Filips|Frederik|Johannes|Paulus|Pius|Benedictus|Leo|Napoleon|George|"
            rf"Elizabeth|Catharina|Leopold|Boudewijn|Albert|Alexander|Gregorius|Floris|Jan) {ROMAN}(?![\w'])",
            ruler,
        ),
        (
            rf"\b(?P<name>Wereldoorlog|hoofdstuk|Hoofdstuk|deel|Deel) {ROMAN}(?![\w'])",
            lambda match: f"{match['name']} {cardinal(roman_value(match['roman']), LANGUAGE)}",
        ),
        (r"(?<![\w.,-])(?P<number>\d0)'?s(?!\w)", lambda match: f"{cardinal(int(match['number']), LANGUAGE)}s"),
    ),
)
