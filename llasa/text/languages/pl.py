"""Polish.

Choices: a date has the genitive ("trzeciego maja dwa tysiące dwudziestego czwartego roku"); the hour is an ordinal
whose case follows the word before it ("o czternastej trzydzieści", "czternasta trzydzieści"); nouns of units and
money have their three forms ("dwa złote", "pięć złotych", "dwa przecinek pięć metra"); "10-20" is
"dziesięć-dwadzieścia", as in print. A year is an ordinal only beside "rok", "roku", "r."
("w tysiąc dziewięćset dziewięćdziesiątym ósmym roku").
Not covered: cases of cardinals ("z pięcioma kotami" from digits), "dwóch panów", the gender of 1 and 2 before nouns
that are not listed, ordinals with a period before other nouns than those listed, rulers in other cases than
these two.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from llasa.text.language import Fixes, Language, Noun, currencies, listed, nouns, words
from llasa.text.numbers import ROMAN, cardinal, kept_period, ordinal, roman_value


def plural(number: int, is_decimal: bool) -> str:
    if is_decimal:
        return "part"
    if number == 1:
        return "one"
    return "few" if number % 10 in (2, 3, 4) and number % 100 not in (12, 13, 14) else "other"


def inflected(hard: str, soft: str, after_g: str) -> Fixes:
    """Endings of an ordinal's adjectives: "piąty", "trzeci", "drugi"; thousands and hundreds before them stay."""
    return ((r"(?<!trz)y\b", hard), (r"(?<=trzec)i\b", soft), (r"(?<=drug)i\b", after_g))


def day(number: int, previous: str) -> str:
    return ordinal(number, LANGUAGE, "genitive")


def year(number: int) -> str:
    return ordinal(number, LANGUAGE, "genitive")


_GENITIVE_BEFORE = set(listed("o od do po około koło godzinie godziny godz przy ok"))
_OTHER_BEFORE = set(listed("na przed za między a"))


def time(hour: int, minute: int, previous: str) -> str:
    form = "f_genitive" if previous in _GENITIVE_BEFORE else "f_accusative" if previous in _OTHER_BEFORE else "f"
    hours = "zero" if hour == 0 else ordinal(hour, LANGUAGE, form)
    return f"{hours} {'zero ' if minute < 10 else ''}{cardinal(minute, LANGUAGE)}" if minute else hours


def case_after(preposition: str | None) -> str:
    return "locative" if (preposition or "").strip().lower() in ("w", "we", "po", "o") else "genitive"


def year_with_noun(match: re.Match[str]) -> str:
    """ "w 1998 r." has the locative, "rok 1998" the nominative, all else the genitive."""
    noun = match["noun"]
    if noun == "rok":
        return f"{match['before'] or ''}{ordinal(int(match['year']), LANGUAGE)} rok"
    end = "." if noun == "r." and re.match(r"[\"')]*(?:$| +[\"']?[A-ZŚŻŁĆŹÓ])", match.string[match.end() :][:6]) else ""
    number = ordinal(int(match["year"]), LANGUAGE, case_after(match["before"]))
    return f"{match['before'] or ''}{number} roku{end}"


def roman_century(match: re.Match[str]) -> str:
    number = roman_value(match["roman"])
    noun = match["noun"]
    form = "" if noun == "wiek" else case_after(match["before"])
    spoken = "wieku" if noun == "w." else noun
    return f"{match['before']}{ordinal(number, LANGUAGE, form)} {spoken}"


_QUEENS = {"Elżbieta": "f", "Katarzyna": "f", "Elżbiety": "f_genitive", "Katarzyny": "f_genitive"}


def ruler(match: re.Match[str]) -> str:
    form = _QUEENS.get(match["name"], "genitive" if match["name"].endswith("a") else "")
    return f"{match['name']} {ordinal(roman_value(match['roman']), LANGUAGE, form).title()}"


_SCALES = nouns("""
    tys. | tysiąc | tysięcy | m | tysiące | tysiąca
    mln | milion | milionów | m | miliony | miliona
    mld | miliard | miliardów | m | miliardy | miliarda
""")


def scale(match: re.Match[str]) -> str:
    """ "3 mln" is "3 miliony", "5 mln" "5 milionów"."""
    form = plural(int(match["number"][:9]), bool(match["fraction"]))
    return f"{match['number']}{match['fraction'] or ''} {getattr(_SCALES[match['scale']], form)}"


def year_after_noun(match: re.Match[str]) -> str:
    number = ordinal(int(match["year"]), LANGUAGE, case_after(match["before"]))
    return f"{match['before'] or ''}{match['noun']} {number}"


def ordinal_of(form: str) -> Callable[[re.Match[str]], str]:
    return lambda match: ordinal(int(match["number"]), LANGUAGE, form)


def roman_of(form: str) -> Callable[[re.Match[str]], str]:
    return lambda match: ordinal(roman_value(match["roman"]), LANGUAGE, form)


_MONTHS = listed("stycznia lutego marca kwietnia maja czerwca lipca sierpnia września października listopada grudnia")

LANGUAGE: Language = Language(
    alphabet="abcdefghijklmnopqrstuvwxyząćęłńóśźżáàâäçéèêëíïñôöúüßšžč",
    # Judgement: readers make 12 to 17; a third of that or half as much again means a wrong transcript.
    characters_per_second=(5.0, 26.0),
    num2words_code="pl",
    minus="minus",
    plus="plus",
    thousands=" .",
    decimal_marks={",": "przecinek", ".": "kropka"},
    fraction_as_number=True,
    before_noun={
        "f": ((r"^jeden$", "jedna"), (r"\bdwa$", "dwie")),
        "n": ((r"^jeden$", "jedno"),),
    },
    noun_endings=(
        (r" (?:osoby?|osoba|kobiety?|kobieta|godziny?|godzina|minuty?|minuta|sekundy?|sekunda|książki|książka)$", "f"),
        (
            r" (?:dziewczyny?|strony|strona|córki|córka|siostry|siostra|rzeczy|noce|lekcje|części|drogi|nogi|szkoły)$",
            "f",
        ),
        (r"^1 (?:dziecko|miejsce|jajko|piwo|okno|zdanie|słowo|miasto)$", "n"),
    ),
    plural=plural,
    fractions={
        "1/2": ("pół", "{} i pół"),
        "1/3": ("jedna trzecia", "{} i jedna trzecia"),
        "2/3": ("dwie trzecie", "{} i dwie trzecie"),
        "1/4": ("jedna czwarta", "{} i jedna czwarta"),
        "3/4": ("trzy czwarte", "{} i trzy czwarte"),
        "1/5": ("jedna piąta", "{} i jedna piąta"),
        "1/8": ("jedna ósma", "{} i jedna ósma"),
    },
    phone_words=r"[Tt]elefon",
    ordinal_forms={
        "genitive": inflected("ego", "iego", "iego"),
        "locative": inflected("ym", "im", "im"),
        "f": inflected("a", "ia", "a"),
        "f_genitive": inflected("ej", "iej", "iej"),
        "f_accusative": inflected("ą", "ią", "ą"),
        "n": inflected("e", "ie", "ie"),
        "plural": inflected("e", "ie", "ie"),
        "plural_locative": inflected("ych", "ich", "ich"),
    },
    months=_MONTHS,
    month_abbreviations={"stycz": 1, "lut": 2, "kwiet": 4, "sierp": 8, "wrz": 9, "paźdz": 10, "list": 11, "grudz": 12},
    date_template="{day} {month} {year} roku",
    day=day,
    date_year=year,
    time=time,
    dot_time_after=("o", "od", "do", "po", "na", "przed", "godz.", "godzinie", "godziny", "godzina"),
    percent=Noun("procent", "procent", "m", "procent", "procent"),
    per="na",
    per_mille=Noun("promil", "promili", "m", "promile", "promila"),
    units=nouns("""
        km | kilometr | kilometrów | m | kilometry | kilometra
        m | metr | metrów | m | metry | metra
        cm | centymetr | centymetrów | m | centymetry | centymetra
        mm | milimetr | milimetrów | m | milimetry | milimetra
        km/h | kilometr na godzinę | kilometrów na godzinę | m | kilometry na godzinę | kilometra na godzinę
        m/s | metr na sekundę | metrów na sekundę | m | metry na sekundę | metra na sekundę
        m², m2 | metr kwadratowy | metrów kwadratowych | m | metry kwadratowe | metra kwadratowego
        km², km2 | kilometr kwadratowy | kilometrów kwadratowych | m | kilometry kwadratowe | kilometra kwadratowego
        m³, m3 | metr sześcienny | metrów sześciennych | m | metry sześcienne | metra sześciennego
        ha | hektar | hektarów | m | hektary | hektara
        kg | kilogram | kilogramów | m | kilogramy | kilograma
        dag | dekagram | dekagramów | m | dekagramy | dekagrama
        g | gram | gramów | m | gramy | grama
        mg | miligram | miligramów | m | miligramy | miligrama
        t | tona | ton | f | tony | tony
        l | litr | litrów | m | litry | litra
        ml | mililitr | mililitrów | m | mililitry | mililitra
        h, godz. | godzina | godzin | f | godziny | godziny
        min | minuta | minut | f | minuty | minuty
        s, sek. | sekunda | sekund | f | sekundy | sekundy
        ms | milisekunda | milisekund | f | milisekundy | milisekundy
        ° | stopień | stopni | m | stopnie | stopnia
        °C, ° C, ℃ | stopień Celsjusza | stopni Celsjusza | m | stopnie Celsjusza | stopnia Celsjusza
        °F, ° F, ℉ | stopień Fahrenheita | stopni Fahrenheita | m | stopnie Fahrenheita | stopnia Fahrenheita
        kB, KB | kilobajt | kilobajtów | m | kilobajty | kilobajta
        MB | megabajt | megabajtów | m | megabajty | megabajta
        GB | gigabajt | gigabajtów | m | gigabajty | gigabajta
        TB | terabajt | terabajtów | m | terabajty | terabajta
        Hz | herc | herców | m | herce | herca
        kHz | kiloherc | kiloherców | m | kiloherce | kiloherca
        MHz | megaherc | megaherców | m | megaherce | megaherca
        GHz | gigaherc | gigaherców | m | gigaherce | gigaherca
        W | wat | watów | m | waty | wata
        kW | kilowat | kilowatów | m | kilowaty | kilowata
        kWh | kilowatogodzina | kilowatogodzin | f | kilowatogodziny | kilowatogodziny
        V | wolt | woltów | m | wolty | wolta
        kcal | kilokaloria | kilokalorii | f | kilokalorie | kilokalorii
    """),
    currencies=currencies("""
        zł, PLN | złoty | złotych | m | złote | złotego || grosz | groszy | m | grosze | grosza
        gr | grosz | groszy | m | grosze | grosza
        €, EUR, euro | euro | euro | n || cent | centów | m | centy | centa
        $, US$, USD | dolar | dolarów | m | dolary | dolara || cent | centów | m | centy | centa
        £, GBP | funt | funtów | m | funty | funta || pens | pensów | m | pensy | pensa
        CHF | frank szwajcarski | franków szwajcarskich | m | franki szwajcarskie | franka szwajcarskiego
        ¥ | jen | jenów | m | jeny | jena
    """),
    scales={
        word: word
        for word in listed(
            "tysiąc tysiące tysięcy tysiąca milion miliony milionów miliona miliard miliardy miliardów miliarda"
        )
    },
    cent_link="i",
    abbreviations=words("""
        dr | doktor
        dr. | doktor
        prof. | profesor
        mgr | magister
        inż. | inżynier
        ks. | ksiądz
        św. | święty
        np. | na przykład
        m.in. | między innymi
        M.in. | Między innymi
        tzn. | to znaczy
        tj. | to jest
        tzw. | tak zwany
        ok. | około
        tel. | telefon
        por. | porównaj
        wg | według
        ww. | wyżej wymieniony
        im. | imienia
        pt. | pod tytułem
        ds. | do spraw
        jw. | jak wyżej
    """),
    closing_abbreviations=words("""
        itd. | i tak dalej
        itp. | i tym podobne
        p.n.e. | przed naszą erą
        n.e. | naszej ery
        etc. | et cetera
    """),
    number_abbreviations=words("""
        godz. | godzina
        nr, № | numer
        Nr | Numer
        s., str. | strona
        art. | artykuł
        rozdz. | rozdział
        t. | tom
        rys. | rysunek
    """),
    symbols=words("""
        & | i
        @ | małpa
        + | plus
        = | równa się
        § | paragraf
        ± | plus minus
        ÷ | podzielić przez
        # | hasztag
        № | numer
    """),
    symbols_before_number=words("""
        ~, ≈ | mniej więcej
        # | numer
        < | mniej niż
        > | więcej niż
        ≤ | najwyżej
        ≥ | co najmniej
    """),
    times_sign="razy",
    times_word="razy",
    power="do potęgi",
    square="do kwadratu",
    cube="do sześcianu",
    own_trigger=r"(?<!\w)(?:[IVXL]+(?!\w)|(?:ul|al|pl)\.)",
    own_rules=(
        (r"(?<![\w.,])(?P<number>\d+)(?P<fraction>,\d+)? ?(?P<scale>mln|mld|tys\.)(?!\w)", scale),
        (
            r"(?<![\w.,])([2-5]) dzieci\b",
            lambda match: f"{dict(zip('2345', listed('dwoje troje czworo pięcioro'), strict=True))[match[1]]} dzieci",
        ),
        (
            r"(?<![\w.])(\d{1,2}\.\d{1,2}\.\d{4}) ?(?:roku|r\.)",
            lambda match: match[1] + kept_period(match),
        ),
        (
            r"\b(?P<before>(?:[Ww]e?|[Pp]o|[Oo]) )?(?P<noun>roku) (?P<year>1\d{3}|20\d\d)(?!\w|[.,:/-]\d)",
            year_after_noun,
        ),
        (rf"(?<![\w.]){ROMAN}(?= wojna\b)", roman_of("f")),
        (rf"(?<![\w.]){ROMAN}(?= (?:wojny|wojnie)\b)", roman_of("f_genitive")),
        (rf"(?<![\w.]){ROMAN}(?= wojnę\b)", roman_of("f_accusative")),
        (r"\b(?P<when>[Oo]|[Pp]o) godzina (?=\d)", r"\g<when> godzinie "),
        (r"\b(?P<when>[Oo]d|[Dd]o|[Oo]koło) godzina (?=\d)", r"\g<when> godziny "),
        (r"\b(?P<when>(?i:przy|na|do|od|ze?|we?|po)) ul\.(?= ?[A-ZĆŁŚŹŻ\d])", r"\g<when> ulicy"),
        (r"\b(?P<when>(?i:przy|na|do|od|ze?|we?|po)) al\.(?= ?[A-ZĆŁŚŹŻ])", r"\g<when> alei"),
        (r"\b(?P<when>(?i:przy|na|do|od|ze?|we?|po)) pl\.(?= [A-ZĆŁŚŹŻ])", r"\g<when> placu"),
        (r"(?<![\w.])ul\.(?= ?[A-ZĆŁŚŹŻ\d])", "ulica"),
        (r"(?<![\w.])al\.(?= ?[A-ZĆŁŚŹŻ])", "aleja"),
        (r"(?<![\w.])pl\.(?= [A-ZĆŁŚŹŻ])", "plac"),
        (
            rf"(?<![\w.,:/-])(?P<day>\d{{1,2}})(?:\.)? (?P<month>{'|'.join(_MONTHS)}) "
            r"(?P<year>[12]\d{3}) (?:roku\b|r\.)",
            lambda match: f"{match['day']} {match['month']} {year(int(match['year']))} roku{kept_period(match)}",
        ),
        (
            r"\b(?P<before>(?:[Ww]e?|[Pp]o|[Oo]|[Oo]d|[Dd]o|[Zz]) )?(?<![\d.,:/-])"
            r"(?P<year>1\d{3}|20\d\d) (?P<noun>roku|rok|r\.)(?!\w)",
            year_with_noun,
        ),
        (
            r"\b(?P<noun>[Rr]ok) (?P<number>1\d{3}|20\d\d)(?!\w|[.,:/-]\d)",
            lambda match: f"{match['noun']} {ordinal(int(match['number']), LANGUAGE)}",
        ),
        (
            rf"(?<!\w)(?P<before>(?:[Ww]e?|[Pp]o|[Oo]|[Oo]d|[Dd]o|[Zz]) |){ROMAN} (?P<noun>wieku|wiek|w\.)(?!\w)",
            roman_century,
        ),
        (
            rf"\b(?P<name>Jan|Paweł|Zygmunt|Kazimierz|Władysław|Bolesław|Stefan|August|Henryk|Ludwik|Karol|Benedykt|Pius|"
            rf"Fryderyk|Aleksander|Mikołaj|Jerzy|Filip|Jana|Pawła|Zygmunta|Kazimierza|Władysława|Bolesława|Augusta|Henryka|"
            rf"Ludwika|Karola|Benedykta|Piusa|Fryderyka|Aleksandra|Mikołaja|Filipa|{'|'.join(_QUEENS)}) "
            rf"{ROMAN}(?![\w'])",
            ruler,
        ),
        (r"(?<=\b[Ll]ata )(?P<number>\d0)\.", ordinal_of("plural")),
        (r"(?<=\b[Ll]atach )(?P<number>\d0)\.", ordinal_of("plural_locative")),
        (r"(?<![\w.,:/-])(?P<number>\d{1,3})\.(?= (?:miejsce|piętro|urodziny|zadanie)\b)", ordinal_of("n")),
        (
            r"(?<![\w.,:/-])(?P<number>\d{1,3})\.(?= (?:runda|klasa|liga|rocznica|edycja|część|kolejka|minuta)\b)",
            ordinal_of("f"),
        ),
        (
            r"(?<![\w.,:/-])(?P<number>\d{1,3})\.(?= (?:tom|rozdział|dzień|etap|wiek|sezon|raz|odcinek|punkt)\b)",
            ordinal_of(""),
        ),
    ),
)
