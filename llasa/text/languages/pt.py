"""Portuguese, Brazilian in its words ("dezesseis", "quilômetro"), as most of the recordings are.

Choices: "14:30" and "14h30" are "catorze e trinta", "14h" "catorze horas"; the first of a month is "primeiro" where 1
or 1º is written; a number takes its gender from the ending -as of the word after it ("2 pessoas" is "duas pessoas");
centuries and rulers have ordinals up to ten and cardinals above ("século dezenove"). "1,5" is singular, as in print.
The euro's hundredth is "cêntimo", that of real and dollar "centavo".
Not covered: numbers before feminine nouns in other endings (but for a few listed); Portugal's "dezasseis".
"""

from __future__ import annotations

import re

from llasa.text.language import Language, Noun, currencies, listed, nouns, numbered, plural_from_two, words
from llasa.text.numbers import ROMAN, cardinal, ordinal, roman_value


def day(number: int, previous: str) -> str:
    return "primeiro" if number == 1 else cardinal(number, LANGUAGE)


def time(hour: int, minute: int, previous: str) -> str:
    hours = cardinal(hour, LANGUAGE, "f")
    if minute:
        return f"{hours} e {cardinal(minute, LANGUAGE)}"
    return f"{hours} {'hora' if hour < 2 else 'horas'}"


def roman_after(match: re.Match[str]) -> str:
    number = roman_value(match["roman"])
    form = "f" if match["name"] in ("Isabel", "Maria", "Elizabeth") else ""
    return f"{match['name']} " + (ordinal(number, LANGUAGE, form) if number <= 10 else cardinal(number, LANGUAGE))


LANGUAGE: Language = Language(
    alphabet="abcdefghijklmnopqrstuvwxyzáàâãçéêíóôõúüñèìòùëïöä",
    # Judgement: readers make 12 to 17; a third of that or half as much again means a wrong transcript.
    characters_per_second=(5.0, 27.0),
    num2words_code="pt_BR",
    minus="menos",
    plus="mais",
    thousands=".",
    decimal_marks={",": "vírgula", ".": "ponto"},
    fraction_as_number=True,
    cardinal_fixes=((",", ""),),
    before_noun={
        "f": (
            (r"\bum$", "uma"),
            (r"\bdois(?= mil\b|$)(?!.*milh)", "duas"),
            (r"(?<=[zr]ent|hent|cent)os\b(?!.*milh)", "as"),
        ),
    },
    noun_endings=(
        (r" (?:mas|para|das|pelas|nas|apenas|contra|cada|outras|era|ela|pela|toda)$", ""),
        (r" (?:dias?|problemas?|sistemas?|programas?|temas?|mapas?|quilogramas?|planetas?)$", "m"),
        (r" (?:vez|vezes|mulher|mulheres|mãos?|noites?|partes?|cidades?|fotos?|flores|milhas?)$", "f"),
        (r"^1 \w{3,}[aã]$", "f"),
        (r"^(?!1 ).* \w{2,}[aã]s$", "f"),
    ),
    plural=plural_from_two,
    large_number_fixes=((r"([mb]ilh(?:ão|ões))$", r"\1 de"),),
    range_word="a",
    score_word="a",
    fractions={
        "1/2": ("meio", "{} e meio"),
        "1/3": ("um terço", "{} e um terço"),
        "2/3": ("dois terços", "{} e dois terços"),
        "1/4": ("um quarto", "{} e um quarto"),
        "3/4": ("três quartos", "{} e três quartos"),
        "1/5": ("um quinto", "{} e um quinto"),
        "1/8": ("um oitavo", "{} e um oitavo"),
    },
    ordinal_forms={"f": ((r"o\b", "a"),)},
    phone_words=r"[Tt]elefone",
    ordinal_marks={"º": "", ".º": "", "°": "", "ª": "f", ".ª": "f"},
    months=listed("janeiro fevereiro março abril maio junho julho agosto setembro outubro novembro dezembro"),
    month_abbreviations=numbered("jan fev mar abr mai jun jul ago set out nov dez"),
    date_template="{day} de {month} de {year}",
    day=day,
    time=time,
    hour_marks="[hH]|:",
    percent=Noun("por cento", "por cento", ""),
    per="por",
    per_mille=Noun("por mil", "por mil", ""),
    units=nouns("""
        km | quilômetro | quilômetros
        m | metro | metros
        cm | centímetro | centímetros
        mm | milímetro | milímetros
        km/h | quilômetro por hora | quilômetros por hora
        m/s | metro por segundo | metros por segundo
        m², m2 | metro quadrado | metros quadrados
        km², km2 | quilômetro quadrado | quilômetros quadrados
        cm² | centímetro quadrado | centímetros quadrados
        m³, m3 | metro cúbico | metros cúbicos
        ha | hectare | hectares
        kg | quilo | quilos
        g | grama | gramas
        mg | miligrama | miligramas
        t | tonelada | toneladas | f
        l, L | litro | litros
        ml, mL | mililitro | mililitros
        h | hora | horas | f
        min | minuto | minutos
        s | segundo | segundos
        ms | milissegundo | milissegundos
        ° | grau | graus
        °C, ° C, ℃, ºC, º C | grau Celsius | graus Celsius
        °F, ° F, ℉ | grau Fahrenheit | graus Fahrenheit
        kB, KB | quilobyte | quilobytes
        MB | megabyte | megabytes
        GB | gigabyte | gigabytes
        TB | terabyte | terabytes
        Hz | hertz | hertz
        kHz | quilohertz | quilohertz
        MHz | megahertz | megahertz
        GHz | gigahertz | gigahertz
        W | watt | watts
        kW | quilowatt | quilowatts
        kWh | quilowatt-hora | quilowatts-hora
        V | volt | volts
        kcal | quilocaloria | quilocalorias | f
    """),
    currencies=currencies("""
        R$, BRL | real | reais | m || centavo | centavos
        €, EUR, euros | euro | euros | m || cêntimo | cêntimos
        $, US$, USD | dólar | dólares | m || centavo | centavos
        £, GBP | libra | libras | f || pêni | pence
        CHF | franco suíço | francos suíços | m || cêntimo | cêntimos
        ¥ | iene | ienes
        zł | zloty | zlotys
    """),
    scales=words("""
        milhão | milhão de
        milhões, mi | milhões de
        bilhão | bilhão de
        bilhões, bi | bilhões de
        mil | mil
    """),
    scale_links="de ",
    cent_link="e",
    abbreviations=words("""
        Sr. | Senhor
        Sra. | Senhora
        Srta. | Senhorita
        Srs. | Senhores
        sr. | senhor
        sra. | senhora
        Dr. | Doutor
        Dra. | Doutora
        Prof. | Professor
        Profa. | Professora
        Profª, Prof.ª | Professora
        Sto. | Santo
        Sta. | Santa
        D. | Dom
        Av. | Avenida
        p. ex. | por exemplo
        tel. | telefone
        aprox. | aproximadamente
        séc. | século
    """),
    closing_abbreviations=words("""
        etc. | et cetera
        a.C. | antes de Cristo
        d.C. | depois de Cristo
        EUA | Estados Unidos
        Ltda. | Limitada
        Cia. | Companhia
    """),
    number_abbreviations=words("""
        n.º, nº, n°, nº., № | número
        N.º, Nº, N° | Número
        p., pág. | página
        págs. | páginas
        art. | artigo
        cap. | capítulo
        fig. | figura
        vol. | volume
    """),
    symbols=words("""
        & | e
        @ | arroba
        + | mais
        = | igual a
        § | parágrafo
        ± | mais ou menos
        ÷ | dividido por
        # | hashtag
        № | número
    """),
    symbols_before_number=words("""
        ~, ≈ | cerca de
        # | número
        < | menos de
        > | mais de
        ≤ | no máximo
        ≥ | no mínimo
    """),
    times_sign="vezes",
    times_word="vezes",
    power="elevado a",
    square="ao quadrado",
    cube="ao cubo",
    own_rules=(
        (r"(?<![\w.,/-])(\d{1,2}) ?h ?([0-5]\d) ?min(?:utos)?(?!\w)", r"\1h\2"),
        (r"(?<![\w.,])(\d{1,3}) mil (?=[a-zá-ú]{2,}as\b)", r"\1.000 "),
        (r"(?<![\w.,/-])(?<!\d )1/2 (?=(?:hora|xícara|colher|dúzia|garrafa|cebola|maçã)\b)", "meia "),
        (r"(?<![\w.,/-])(\d{1,3}) 1/2 (?!mas)([a-zá-ú]{2,}as)\b", r"\1 \2 e meia"),
        (r"(?<![\w.,/-])(\d{1,3}) 1/2 (?!que|com|por|mais)([a-zá-ú]{3,}|kg|km|m|l|g)\b", r"\1 \2 e meio"),
        (rf"\b(?P<name>[Ss]éculo|[Cc]apítulo|[Tt]omo) {ROMAN}(?![\w'])", roman_after),
        (
            rf"\b(?P<name>Pedro|João|Afonso|Manuel|José|Luís|Paulo|Bento|Pio|Filipe|Henrique|Carlos|Jorge|Napoleão|Sancho|"
            rf"Fernando|Francisco|Guilherme|Clemente|Gregório|Leão|Isabel|Maria|Elizabeth) {ROMAN}(?![\w'])",
            roman_after,
        ),
        (
            rf"(?<![\w.]){ROMAN}(?= (?:Guerra|guerra|edição|República)\b)",
            lambda match: ordinal(roman_value(match["roman"]), LANGUAGE, "f"),
        ),
        (r"\b(?P<before>[Aa]nos )'(?=\d0\b)", r"\g<before>"),
    ),
)
