"""Errors of words and characters, said again and left out, against counts by hand."""

import numpy as np
import pytest

from llasa.corpus.recognition import character_error_rate, edit_distance
from llasa.errors import UserError
from llasa.evaluation import optional_packages
from llasa.evaluation.words import (
    ErrorCounts,
    character_errors,
    count_errors,
    repeated_words,
    skipped_words,
    word_errors,
)


@pytest.mark.parametrize(
    ("text", "heard", "language", "expected"),
    [
        ("Il gatto dorme.", "il gatto dorme", "it", ErrorCounts(0, 0, 0, 3)),
        ("Il gatto nero dorme sul divano.", "Il gatto dorme sul divano", "it", ErrorCounts(0, 1, 0, 6)),
        ("Il gatto dorme.", "Il cane dorme molto bene", "it", ErrorCounts(1, 0, 2, 3)),
        ("L'ora è tarda, vero?", "l'ora e tarda", "it", ErrorCounts(1, 1, 0, 5)),
        ("Ho 21 gatti.", "Ho ventuno gatti!", "it", ErrorCounts(0, 0, 0, 3)),
        ("Der Zug kommt um 3 Uhr.", "der Zug kam um drei Uhr", "de", ErrorCounts(1, 0, 0, 6)),
        ("Buona notte", "", "it", ErrorCounts(0, 2, 0, 2)),
        ("", "buona notte", "it", ErrorCounts(0, 0, 2, 0)),
        ("...", "", "it", ErrorCounts(0, 0, 0, 0)),
    ],
)
def test_word_errors_are_those_counted_by_hand(text, heard, language, expected):
    """Fails when deletions and insertions change places, or the text keeps its case."""
    assert word_errors(text, heard, language) == expected


def test_character_errors_are_those_of_the_training_samples():
    """Fails when spaces do not count. One rate must not mean two things in one project."""
    assert character_errors("abcd", "abxd", "en") == ErrorCounts(1, 0, 0, 4)
    assert character_errors("di più", "dipiù", "it") == ErrorCounts(0, 1, 0, 6)
    pairs = [
        ("Perché no?", "perche no"),
        ("Ho 3 gatti", "ho tre ratti e"),
        ("", "abc"),
        ("abc", ""),
        ("Una Frase", "frase una"),
    ]
    for text, heard in pairs:
        counts = character_errors(text, heard, "it")
        assert counts.errors / max(1, counts.length) == character_error_rate(text, heard, "it")
    assert character_errors("你好吗", "你好", "zh") == ErrorCounts(0, 1, 0, 3)


def test_the_number_of_errors_is_the_edit_distance():
    generator = np.random.default_rng(0)
    totals = []
    for _ in range(200):
        first, second = ("".join(generator.choice(list("abc d"), size=generator.integers(0, 12))) for _ in range(2))
        counts = count_errors(first, second)
        assert counts.errors == edit_distance(first, second)
        assert counts.insertions - counts.deletions == len(second) - len(first)
        totals.append(counts.errors)
    assert len(set(totals)) > 5


@pytest.mark.parametrize(
    ("text", "heard", "expected"),
    [
        ("the cat sat", "the the cat sat", 1),
        ("the cat sat", "the the the cat sat", 2),
        ("buona notte", "buona notte buona notte", 2),
        ("buona notte a tutti", "buona notte buona notte a tutti", 2),
        ("buona notte a tutti", "Buona notte a tutti, a tutti, a tutti!", 4),
        ("the cat sat", "the cat cat sit", 1),  # beside a wrong word
        ("very very good", "very very good", 0),  # as the text has it
        ("very very good", "very very very good", 1),
        ("the big dog", "the the dog", 0),  # a wrong word
        ("the cat sat", "the black cat sat down", 0),  # added, but nothing said again
        ("ventuno gatti", "21 21 gatti", 1),
        ("a b", "a b a b c a b c", 5),  # "a b" first, then the "a b c" that is left twice
        ("la", "la " * 200, 199),  # a loop
        ("", "la la la", 2),
        ("la", "", 0),
    ],
)
def test_repeated_words(text, heard, expected):
    """Fails when a repetition that the text has counts too, or only single words are looked for."""
    language = "it" if "gatti" in text or "notte" in text else "xx"
    assert repeated_words(text, heard, language) == expected


@pytest.mark.parametrize(
    ("text", "heard", "expected"),
    [
        ("the black cat sat", "the cat sat", 1),
        ("buona notte a tutti quanti", "buona tutti", 3),
        ("buona notte a tutti quanti", "buona notte a", 2),  # it stopped early
        ("buona notte", "", 2),
        ("vorrei di più oggi", "vorrei dipiù oggi", 0),  # written together, not left out
        ("vorrei il gatto oggi", "vorrei gatta oggi", 1),  # left out beside a wrong word
        ("vorrei del vino oggi", "vorrei dino oggi", 1),  # the same, though one of its letters was heard
        ("vorrei oggi", "vorrei anche oggi", 0),
        ("vorrei il gatto oggi", "vorrei un cane nero oggi", 0),  # more words than there should be
        ("il gatto", "un cane", 0),  # wrong, not missing
        ("", "buona notte", 0),
    ],
)
def test_skipped_words(text, heard, expected):
    """Fails when a word written together with its neighbour counts as left out, or a wrong word does."""
    assert skipped_words(text, heard, "it") == expected


def test_a_missing_package_is_named_with_its_remedy():
    needed = pytest.raises(UserError, match=r"nothing needs .*no_such_package.*requirements/eval.txt")
    with needed, optional_packages("nothing"):
        import no_such_package  # noqa: F401
