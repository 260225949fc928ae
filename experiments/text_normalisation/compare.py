"""Ask num2words, NeMo text processing and Babel for the same things. README.md has the environment and the verdict."""

from __future__ import annotations

import argparse
import resource
import time
import warnings

SENTENCES = {
    "it": ["Costa 12,50 € oggi.", "Il 3 maggio 2024 alle 14:30.", "Dal 1998, 3º posto.", "il 03/05/2024", "-3,5 °C"],
    "de": [
        "Das kostet 12,50 € jetzt.",
        "Am 3. Mai 2024 um 14:30 Uhr.",
        "Seit 1998, 3. Platz.",
        "10-20 Leute",
        "-3,5 °C",
    ],
    "en": ["It costs €12.50 now.", "On 03/05/2024 at 14:30.", "Since 1998, 3rd place.", "10-20 people", "-3.5 °C"],
    "fr": ["Cela coûte 12,50 €.", "Le 1er mai 2024 à 14h30.", "Depuis 1998, 2e place.", "10-20 personnes", "5 km/h"],
    "es": ["Cuesta 12,50 €.", "El 3 de mayo de 2024 a las 14:30.", "Desde 1998, 3.ª planta.", "5 km/h", "21 personas"],
    "pt": ["Custa 12,50 €.", "Em 3 de maio de 2024 às 14:30.", "O 2º lugar", "5 km", "21 mulheres"],
    "nl": ["Het kost 12,50 €."],
    "pl": ["Kosztuje 12,50 zł."],
}
"""Five sentences each, the kinds of thing a transcript has; NeMo has no grammar for the last two."""


def nemo(language: str) -> None:
    started = time.perf_counter()
    try:
        from nemo_text_processing.text_normalization.normalize import Normalizer

        normalizer = Normalizer(input_case="cased", lang=language)
    except NotImplementedError as error:  # how NeMo says that it has no grammar for the language
        print(f"{language}: {error}")
        return
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{language}: grammar built in {time.perf_counter() - started:.0f} s, {peak} MiB")
    for sentence in SENTENCES[language]:
        started = time.perf_counter()
        try:
            spoken = normalizer.normalize(sentence)
        except Exception as error:  # that it raises is the finding
            spoken = f"raises {type(error).__name__}"
        print(f"| {sentence} | {spoken} | {1000 * (time.perf_counter() - started):.0f} ms |")


def num2words() -> None:
    from num2words import num2words

    codes = {"pt": "pt_BR"}
    asked = [(n, "cardinal") for n in (21, 1001, 1998, 101000, 21000000)]
    asked += [(n, "ordinal") for n in (3, 11, 13, 21, 80, 200)] + [(n, "year") for n in (1905, 1998, 2024)]
    for language in SENTENCES:
        answers = [
            f"{number} ({kind}) {num2words(number, lang=codes.get(language, language), to=kind)}"
            for number, kind in asked
        ]
        for amount in (12.5, 21.01):
            try:
                answer = num2words(amount, lang=codes.get(language, language), to="currency", currency="EUR")
            except Exception as error:  # the same
                answer = f"raises {type(error).__name__}"
            answers.append(f"{amount} EUR {answer}")
        print(f"{language}: " + "; ".join(answers))


def babel() -> None:
    from babel import Locale
    from babel.units import format_unit

    units = ("length-kilometer", "speed-kilometer-per-hour", "mass-kilogram", "digital-gigabyte", "temperature-celsius")
    for language in SENTENCES:
        spoken = [format_unit(count, unit, "long", locale=language) for unit in units for count in (1, 2)]
        print(f"{language}: {Locale(language).months['format']['wide'][5]}; " + "; ".join(spoken))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", choices=["nemo", "num2words", "babel"])
    parser.add_argument("language", nargs="?", choices=list(SENTENCES), help="one per process, for the memory figure")
    arguments = parser.parse_args()
    {"nemo": lambda: nemo(arguments.language), "num2words": num2words, "babel": babel}[arguments.library]()
