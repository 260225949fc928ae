"""Spanish.

Choices: "1 de mayo" is "uno de mayo" ("primero" only where "1.º" is written); "14:30" is "catorce y treinta";
a number takes its gender from the ending -as or -os of the word after it ("21 personas" is "veintiuna personas");
centuries and rulers have ordinals up to ten and cardinals above ("siglo diecinueve", "Felipe segundo").
Not covered: numbers before nouns in -es or in a misleading -a, -o (but for a few listed); a dot as the mark of a time
only after "las"; Roman numerals elsewhere.
"""

from __future__ import annotations

import re

from llasa.text.language import Language, Noun, currencies, listed, nouns, words
from llasa.text.numbers import ROMAN, cardinal, ordinal, roman_value


def day(number: int, previous: str) -> str:
    return cardinal(number, LANGUAGE)


def time(hour: int, minute: int, previous: str) -> str:
    hours = cardinal(hour, LANGUAGE, "f")
    return f"{hours} y {cardinal(minute, LANGUAGE)}" if minute else hours


def roman_after(match: re.Match[str]) -> str:
    number = roman_value(match["roman"])
    form = "f" if match["name"] in ("Isabel", "Catalina") else ""
    return f"{match['name']} " + (ordinal(number, LANGUAGE, form) if number <= 10 else cardinal(number, LANGUAGE))


def roman_before(match: re.Match[str]) -> str:
    return ordinal(roman_value(match["roman"]), LANGUAGE, "f")


LANGUAGE: Language = Language(
    alphabet="abcdefghijklmnopqrstuvwxyzáéíóúüñçàèìòùâêôïöä",
    # Judgement: readers make 13 to 18; a third of that or half as much again means a wrong transcript.
    characters_per_second=(5.0, 27.0),
    num2words_code="es",
    minus="menos",
    plus="más",
    thousands=".",
    decimal_marks={",": "coma", ".": "punto"},
    fraction_as_number=True,
    # "veintiuno mil", "treinta y uno millones"
    cardinal_fixes=((r"veintiuno(?= mil)", "veintiún"), (r"\buno(?= mil)", "un")),
    before_noun={
        "m": ((r"veintiuno$", "veintiún"), (r"\buno$", "un")),
        "f": ((r"uno$", "una"), (r"ientos\b(?!.*mill)", "ientas"), (r"quinientos\b(?!.*mill)", "quinientas")),
    },
    noun_endings=(
        (
            r" (?:para|contra|cada|hasta|era|como|pero|cuando|menos|mas|dijo|otras|otros|además|tras|entre|solo)\b",
            "",
        ),
        (
            r" (?:días|problemas?|sistemas?|programas?|temas?|mapas?|idiomas?|planetas?|kilos|puntos|poemas?|gramas)\b",
            "m",
        ),
        (
            r" (?:manos?|veces|mujeres|fotos?|motos?|vez|noches?|partes?|calles?|ciudades|ciudad|canciones|flores)\b",
            "f",
        ),
        (
            r" (?:meses|hombres|mes|hombre|países|país|lugares|goles|millones|mil|\w+istas|atletas|dálmatas|poetas)\b",
            "m",
        ),
        (r"^1 \w{3,}a$", "f"),
        (r"^1 \w{3,}o$", "m"),
        (r"^(?!1 ).* \w{2,}as$", "f"),
        (r"^(?!1 ).* \w{2,}os$", "m"),
    ),
    score_word="a",
    large_number_fixes=((r"(mill(?:ón|ones))$", r"\1 de"),),
    range_word="a",
    fractions={
        "1/2": ("medio", "{} y medio"),
        "1/3": ("un tercio", "{} y un tercio"),
        "2/3": ("dos tercios", "{} y dos tercios"),
        "1/4": ("un cuarto", "{} y cuarto"),
        "3/4": ("tres cuartos", "{} y tres cuartos"),
        "1/5": ("un quinto", "{} y un quinto"),
        "1/8": ("un octavo", "{} y un octavo"),
    },
    ordinal_fixes=(
        (r"^décimoprimero$", "undécimo"),
        (r"^décimosegundo$", "duodécimo"),
        (r"^décimo tercero$", "decimotercero"),
        (r"^décimo cuarto$", "decimocuarto"),
        (r"^décimo quinto$", "decimoquinto"),
        (r"^décimo sexto$", "decimosexto"),
        (r"^décimo séptimo$", "decimoséptimo"),
        (r"^décimo octavo$", "decimoctavo"),
        (r"^décimo noveno$", "decimonoveno"),
        (r"^quadragésimo", "cuadragésimo"),
    ),
    ordinal_forms={"f": ((r"o\b", "a"),), "short": ((r"(primer|tercer)o$", r"\1"),)},
    phone_words=r"[Tt]eléfono",
    ordinal_marks={"º": "", ".º": "", "°": "", ".°": "", "ª": "f", ".ª": "f", "er": "short", ".er": "short"},
    months=listed("enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre"),
    month_abbreviations={"ene": 1, "feb": 2, "abr": 4, "ago": 8, "sept": 9, "oct": 10, "nov": 11, "dic": 12},
    date_template="{day} de {month} de {year}",
    day=day,
    time=time,
    hour_words="h",
    dot_time_after=("las",),
    percent=Noun("por ciento", "por ciento", ""),
    per="por",
    per_mille=Noun("por mil", "por mil", ""),
    units=nouns("""
        km | kilómetro | kilómetros
        m | metro | metros
        cm | centímetro | centímetros
        mm | milímetro | milímetros
        km/h | kilómetro por hora | kilómetros por hora
        m/s | metro por segundo | metros por segundo
        m², m2 | metro cuadrado | metros cuadrados
        km², km2 | kilómetro cuadrado | kilómetros cuadrados
        cm² | centímetro cuadrado | centímetros cuadrados
        m³, m3 | metro cúbico | metros cúbicos
        ha | hectárea | hectáreas | f
        kg | kilo | kilos
        g | gramo | gramos
        mg | miligramo | miligramos
        t | tonelada | toneladas | f
        l, L | litro | litros
        cl | centilitro | centilitros
        ml | mililitro | mililitros
        h | hora | horas | f
        min | minuto | minutos
        s | segundo | segundos
        ms | milisegundo | milisegundos
        ° | grado | grados
        °C, ° C, ℃, ºC, º C | grado Celsius | grados Celsius
        °F, ° F, ℉ | grado Fahrenheit | grados Fahrenheit
        kB, KB | kilobyte | kilobytes
        MB | megabyte | megabytes
        GB | gigabyte | gigabytes
        TB | terabyte | terabytes
        Hz | hercio | hercios
        kHz | kilohercio | kilohercios
        MHz | megahercio | megahercios
        GHz | gigahercio | gigahercios
        W | vatio | vatios
        kW | kilovatio | kilovatios
        kWh | kilovatio hora | kilovatios hora
        V | voltio | voltios
        kcal | kilocaloría | kilocalorías | f
    """),
    currencies=currencies("""
        €, EUR, euros | euro | euros | m || céntimo | céntimos
        $, US$, USD | dólar | dólares | m || centavo | centavos
        £, GBP | libra | libras | f || penique | peniques
        CHF | franco suizo | francos suizos | m || céntimo | céntimos
        ¥ | yen | yenes
        zł | esloti | eslotis
    """),
    scales=words("""
        millón | millón de
        millones | millones de
        mil | mil
    """),
    scale_links="de ",
    cent_link="con",
    abbreviations=words("""
        Sr. | Señor
        Sra. | Señora
        Srta. | Señorita
        Sres. | Señores
        sr. | señor
        sra. | señora
        Dr. | Doctor
        Dra. | Doctora
        Prof. | Profesor
        Profa. | Profesora
        D. | Don
        Dña., Dª | Doña
        Ud. | usted
        Uds. | ustedes
        Vd. | usted
        Vds. | ustedes
        Sto. | Santo
        Sta. | Santa
        p. ej. | por ejemplo
        P. ej. | Por ejemplo
        Avda. | Avenida
        Gral. | General
        tel. | teléfono
        aprox. | aproximadamente
    """),
    closing_abbreviations=words("""
        etc. | etcétera
        EE. UU. | Estados Unidos
        EE.UU. | Estados Unidos
        EEUU | Estados Unidos
        a. C. | antes de Cristo
        d. C. | después de Cristo
        JJ. OO. | Juegos Olímpicos
    """),
    number_abbreviations=words("""
        n.º, n°, nº, núm., № | número
        N.º, N°, Nº, Núm. | Número
        p., pág. | página
        págs. | páginas
        art. | artículo
        cap. | capítulo
        fig. | figura
        vol. | volumen
    """),
    symbols=words("""
        & | y
        @ | arroba
        + | más
        = | igual a
        § | párrafo
        ± | más menos
        ÷ | dividido entre
        # | almohadilla
        № | número
    """),
    symbols_before_number=words("""
        ~, ≈ | aproximadamente
        # | número
        < | menos de
        > | más de
        ≤ | como máximo
        ≥ | como mínimo
    """),
    times_sign="por",
    times_word="veces",
    power="elevado a",
    square="al cuadrado",
    cube="al cubo",
    own_rules=(
        (r"(?<![\w.])s\. (?=[IVX]+(?!\w))", "siglo "),
        (r"(?<![\w.,/-])(?<!\d )1/2 (?=(?:hora|taza|cucharada|docena|botella|cebolla|manzana)\b)", "media "),
        (r"(?<![\w.,/-])(\d{1,3}) 1/2 (?!más)([a-zá-ú]{2,}as)\b", r"\1 \2 y media"),
        (r"(?<![\w.,/-])(\d{1,3}) 1/2 (?!que|con|por|más)([a-zá-ú]{3,}|kg|km|m|l|g)\b", r"\1 \2 y medio"),
        (rf"\b(?P<name>[Ss]iglo|[Cc]apítulo|[Tt]omo) {ROMAN}(?![\w'])", roman_after),
        (
            rf"\b(?P<name>Felipe|Carlos|Alfonso|Fernando|Juan|Pablo|Pío|Benedicto|Luis|Enrique|Jaime|Sancho|Pedro|León|"
            rf"Isabel|Catalina|Napoleón|Jorge|Guillermo|Clemente|Gregorio|Inocencio|Alejandro|Federico|Francisco|Ramsés)"
            rf" {ROMAN}(?![\w'])",
            roman_after,
        ),
        (rf"(?<![\w.]){ROMAN}(?= (?:Guerra|guerra|edición|República)\b)", roman_before),
        (r"\b(?P<before>[Aa]ños )'(?=\d0\b)", r"\g<before>"),
    ),
)
