"""English.

Choices: numbers with "and" ("one hundred and one"), as before; digits of a date are month first (American), and day
first where only that gives a date; 1100 to 2099 is read as a year after "in", "since" and the like. "12.50" dollars are
"twelve dollars and fifty cents". "3:00" is "three o'clock" up to twelve, "15:00" "fifteen hundred". am and pm become
capitals, which voices spell. "St." before a capital is "Saint", else "Street". "0.5 km" is plural. "1/2" is "one half".
Not covered: Roman numerals outside rulers, wars and chapters; "4x4".
"""

from __future__ import annotations

import re

from llasa.text.language import Language, Noun, currencies, listed, nouns, numbered, words
from llasa.text.numbers import ROMAN, cardinal, ordinal, roman_value, year_in_hundreds


def day(number: int, previous: str) -> str:
    return ordinal(number, LANGUAGE)


def day_before_month(match: re.Match[str]) -> str:
    """ "3 May" is "the third of May"; the article or "of" may be there already."""
    if not 1 <= int(match["number"]) <= 31:
        return match[0]
    words = ordinal(int(match["number"]), LANGUAGE)
    return f"{match['article'] or 'the '}{words} {match['of'] or 'of '}"


def time(hour: int, minute: int, previous: str) -> str:
    hours = cardinal(hour, LANGUAGE)
    if minute:
        return f"{hours} {'oh ' if minute < 10 else ''}{cardinal(minute, LANGUAGE)}"
    return f"{hours} o'clock" if 1 <= hour <= 12 else f"{hours} hundred"


def year(number: int) -> str:
    if 2001 <= number <= 2009 or number % 1000 == 0:
        return cardinal(number, LANGUAGE)
    return year_in_hundreds(number, "en").replace("oh-", "oh ")


def meridiem_time(match: re.Match[str]) -> str:
    hour, minute = int(match["hour"]), int(match["minute"] or 0)
    words = time(hour, minute, "") if minute else cardinal(hour, LANGUAGE)
    end = (
        "."
        if match["stop"].endswith(".") and re.match(r"[\"')]*(?:$| +[A-Z])", match.string[match.end() :][:6])
        else ""
    )
    return f"{words} {match['half'].upper()}M{end}"


def decade(match: re.Match[str]) -> str:
    number = int(match["number"])
    words = year(number) if number >= 1100 else cardinal(number, LANGUAGE)
    return re.sub(r"y$", "ies", words) if words.endswith("y") else f"{words}s"


LANGUAGE: Language = Language(
    alphabet="abcdefghijklmnopqrstuvwxyzàáâäçèéêëíîïñóôöùúûüæœøåß",
    # Judgement: readers make 13 to 17; a third of that or half as much again means a wrong transcript.
    characters_per_second=(5.0, 26.0),
    num2words_code="en",
    minus="minus",
    plus="plus",
    thousands=",",
    decimal_marks={".": "point"},
    fraction_as_number=False,
    cardinal_fixes=((",", ""),),
    range_word="to",
    score_word="to",
    fractions={
        "1/2": ("one half", "{} and a half"),
        "1/3": ("one third", "{} and a third"),
        "2/3": ("two thirds", "{} and two thirds"),
        "1/4": ("one quarter", "{} and a quarter"),
        "3/4": ("three quarters", "{} and three quarters"),
        "1/5": ("one fifth", "{} and a fifth"),
        "1/8": ("one eighth", "{} and an eighth"),
    },
    ordinal_fixes=((",", ""),),
    phone_words=r"[Pp]hone|[Tt]el",
    ordinal_marks={"st": "", "nd": "", "rd": "", "th": ""},
    months=listed("January February March April May June July August September October November December"),
    month_abbreviations={
        **numbered("Jan Feb - Apr - Jun Jul Aug Sep Oct Nov Dec"),
        "Sept": 9,
    },
    date_order="mdy",
    date_template="{month} {day}, {year}",
    day=day,
    year=year,
    year_after=listed(
        "in since from until till to by before after of year around circa during early late and the summer winter "
        "spring autumn fall season"
    ),
    time=time,
    percent=Noun("percent", "percent"),
    per="per",
    per_mille=Noun("per mille", "per mille"),
    singular_after=("a", "an"),
    units=nouns("""
        km | kilometer | kilometers
        m | meter | meters
        cm | centimeter | centimeters
        mm | millimeter | millimeters
        km/h, kph | kilometer per hour | kilometers per hour
        mph | mile per hour | miles per hour
        m/s | meter per second | meters per second
        mi | mile | miles
        ft | foot | feet
        yd | yard | yards
        lb, lbs | pound | pounds
        oz | ounce | ounces
        m², m2 | square meter | square meters
        km², km2 | square kilometer | square kilometers
        cm² | square centimeter | square centimeters
        sq ft | square foot | square feet
        m³, m3 | cubic meter | cubic meters
        ha | hectare | hectares
        kg | kilogram | kilograms
        g | gram | grams
        mg | milligram | milligrams
        l, L | liter | liters
        ml, mL | milliliter | milliliters
        h, hr, hrs | hour | hours
        min, mins | minute | minutes
        s, sec, secs | second | seconds
        ms | millisecond | milliseconds
        ° | degree | degrees
        °C, ° C, ℃ | degree Celsius | degrees Celsius
        °F, ° F, ℉ | degree Fahrenheit | degrees Fahrenheit
        kB, KB | kilobyte | kilobytes
        MB | megabyte | megabytes
        GB | gigabyte | gigabytes
        TB | terabyte | terabytes
        Hz | hertz | hertz
        kHz | kilohertz | kilohertz
        MHz | megahertz | megahertz
        GHz | gigahertz | gigahertz
        W | watt | watts
        kW | kilowatt | kilowatts
        kWh | kilowatt hour | kilowatt hours
        V | volt | volts
        kcal | kilocalorie | kilocalories
    """),
    currencies=currencies("""
        €, EUR, euros | euro | euros | m || cent | cents
        $, US$, USD | dollar | dollars | m || cent | cents
        £, GBP | pound | pounds | m || penny | pence
        CHF | Swiss franc | Swiss francs
        ¥ | yen | yen
        zł | zloty | zlotys
        ¢ | cent | cents
    """),
    scales=words("""
        thousand, k, K | thousand
        million, m, M, mn | million
        billion, bn, B | billion
        trillion, tn, T | trillion
    """),
    cent_link="and",
    abbreviations=words("""
        Mr., Mr | Mister
        Mrs., Mrs | Missus
        Ms. | Ms
        Dr., Dr | Doctor
        Prof. | Professor
        Sen. | Senator
        Gov. | Governor
        Gen. | General
        Col. | Colonel
        Capt. | Captain
        Lt. | Lieutenant
        Sgt. | Sergeant
        Rev. | Reverend
        e.g. | for example
        E.g. | For example
        I.e. | That is
        i.e. | that is
        vs. | versus
        approx. | approximately
        Mt. | Mount
        Ave. | Avenue
        Blvd. | Boulevard
        Rd. | Road
        dept. | department
        w/o | without
    """),
    closing_abbreviations=words("""
        etc. | et cetera
        Jr. | Junior
        Inc. | Incorporated
        Ltd. | Limited
        Co. | Company
    """),
    number_abbreviations=words("""
        No. | Number
        no., № | number
        Nos. | Numbers
        p. | page
        pp. | pages
        vol. | volume
        Vol. | Volume
        ch. | chapter
        Ch. | Chapter
        fig. | figure
        Fig. | Figure
    """),
    symbols=words("""
        & | and
        @ | at
        + | plus
        = | equals
        § | section
        §§ | sections
        ± | plus or minus
        ÷ | divided by
        # | hashtag
        № | number
    """),
    symbols_before_number=words("""
        ~, ≈ | about
        # | number
        < | less than
        > | more than
        ≤ | at most
        ≥ | at least
    """),
    times_sign="times",
    times_word="times",
    power="to the power of",
    square="squared",
    cube="cubed",
    own_trigger=r"(?<!\w)(?:I[IVXL]+|[VXL][IVXL]*)(?!\w)|(?<!\w)St\.|World War I",
    own_rules=(
        (r"(?<!\w)'(?=\d\d(?![\d']|s\b))", ""),
        (r"(?<![\w.,/-])([4-8])'(\d{1,2})\"", r"\1 foot \2"),
        (r"\bWorld War I(?!\w)", "World War one"),
        (r"(?<![\w.])St\.(?= [A-Z])", "Saint"),
        (r"(?<=[a-z] )St\.(?=[,;:?!)]| [a-z])", "Street"),
        (r"(?<=[a-z] )St\.(?=[\"')]*$)", "Street."),
        (
            r"(?<![\w.,:/-])(?P<hour>1[0-2]|0?[1-9])(?:[:.](?P<minute>[0-5]\d))? ?(?P<half>[aApP])"
            r"(?P<stop>\.?[mM](?!\w)\.?)",
            meridiem_time,
        ),
        (r"(?<![\w.,:/-])'?(?P<number>1[1-9]\d0|20[1-9]0|[2-9]0)'?s(?!\w)", decade),
        (
            r"(?<![\w.,:/-])(?P<article>[Tt]he )?(?P<number>\d{1,2})(?:st|nd|rd|th)? (?P<of>of )?"
            r"(?=(?:January|February|March|April|May|June|July|August|September|October|November|December)(?!\w))",
            day_before_month,
        ),
        (
            rf"\b(?P<name>Louis|Henry|Charles|George|Edward|William|James|Richard|Elizabeth|Catherine|Napoleon|Pius|"
            rf"Benedict|Leo|Paul|Gregory|Philip|Frederick|Alexander|Nicholas|Mary|Peter|Innocent|Ramses|Ptolemy) "
            rf"(?!I(?!\w)){ROMAN}"
            r"(?![\w'])",
            lambda match: f"{match['name']} the {ordinal(roman_value(match['roman']), LANGUAGE)}",
        ),
        (
            rf"\b(?P<name>World War|[Cc]hapter|CHAPTER|[Pp]art|[Bb]ook|[Aa]ct|[Vv]olume|[Ss]cene|Type|Super Bowl) "
            rf"(?!I(?!\w)){ROMAN}(?![\w'])",
            lambda match: f"{match['name']} {cardinal(roman_value(match['roman']), LANGUAGE)}",
        ),
    ),
)
