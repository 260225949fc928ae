"""What all sources share: splits by their usual names, measures, places of recordings, streams of files."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from llasa.corpus.access import unreadable
from llasa.corpus.sources import (
    SourceRow,
    StreamedSource,
    as_measures,
    choose_splits,
    recording,
    require_language,
)
from llasa.errors import RejectedRow, UserError


class Letters(StreamedSource):
    """Files of letters."""

    def __init__(self, *files: str, limit: int | None = None) -> None:
        self.files, self.limit, self.opened = files, limit, []

    def file_counts(self):
        return {"train": len(self.files), "test": 0}

    def file_rows(self, split, index):
        self.opened.append(index)
        for letter in self.files[index]:
            yield partial(SourceRow, letter, letter, b"", "", "it")


def read(source: StreamedSource, start: int, stop: int) -> list[tuple[int, str]]:
    return [(number, fetch().id) for number, fetch in source.rows("train", start, stop)]


def test_the_rows_of_some_files_are_numbered_from_the_first_of_them():
    source = Letters("ab", "", "cde", "f")
    assert source.splits() == {"train": 4, "test": 0}
    assert read(source, 0, 4) == list(enumerate("abcdef"))
    assert read(source, 2, 4) == list(enumerate("cdef"))
    assert read(source, 1, 2) == read(source, 2, 2) == []


def test_a_file_is_opened_when_its_rows_are_asked_for():
    source = Letters("ab", "cd", "ef")
    rows = source.rows("train", 0, 3)
    assert source.opened == []
    for _ in range(3):
        next(rows)
    assert source.opened == [0, 1]


@pytest.mark.parametrize(("limit", "expected"), [(1, "a"), (2, "ab"), (3, "abc"), (6, "abcdef"), (99, "abcdef")])
def test_with_a_limit_the_beginning_of_a_split_is_one_unit(limit, expected):
    source = Letters("ab", "", "cde", "f", limit=limit)
    assert source.splits() == {"train": 1, "test": 0}
    assert read(source, 0, 1) == list(enumerate(expected))
    assert read(source, 0, 0) == []
    assert list(source.rows("test", 0, 0)) == []


def test_a_limit_opens_no_file_beyond_it():
    source = Letters("ab", "cd", "ef", limit=2)
    assert len(read(source, 0, 1)) == 2
    assert source.opened == [0]


@pytest.mark.parametrize(
    ("available", "expected"),
    [
        (["train", "dev", "test"], {"train": "train", "validation": "dev", "test": "test"}),
        (["test", "validation", "train", "other"], {"train": "train", "validation": "validation", "test": "test"}),
        (["training", "eval"], {"train": "training", "validation": "eval"}),
        (["train", "dev", "valid"], {"train": "train", "validation": "valid"}),
    ],
)
def test_splits_go_by_their_usual_names(available, expected):
    assert choose_splits("c", available, None) == expected


def test_splits_that_are_not_there_are_refused_with_those_that_are():
    with pytest.raises(
        UserError, match=r"^c has no split called train or training; it has de, dev; name one: .*train: de"
    ):
        choose_splits("c", ["de", "dev"], None)
    with pytest.raises(
        UserError, match=r"^c has no split '9_hours'; it has train, dev; set dataset.splits.train to one"
    ):
        choose_splits("c", ["train", "dev"], {"train": "9_hours"})
    with pytest.raises(
        UserError, match=r"dataset.splits.dev='dev' is not valid; our splits are train, validation, test"
    ):
        choose_splits("c", ["train", "dev"], {"train": "train", "dev": "dev"})
    with pytest.raises(UserError, match=r"dataset.splits=.* is not valid; name one"):
        choose_splits("c", ["train"], {"train": None})


def test_a_split_set_to_null_is_left_out():
    assert choose_splits("c", ["train"], {"train": "train", "validation": None, "test": None}) == {"train": "train"}


def test_languages():
    require_language("c", "it", ["it", "de"], "r")
    require_language("c", "it", None, "r")
    require_language("c", None, ["de"], "r")
    with pytest.raises(UserError, match=r"^c has no language 'en'; it has de, it; do that$"):
        require_language("c", "en", ["it", "de"], "do that")


def test_measures_are_finite_numbers():
    values = {"a": 1, "b": "2", "c": 0.5, "d": None, "e": "", "f": "many", "g": float("nan"), "h": [1], "i": "inf"}
    assert as_measures(values) == {"a": 1.0, "b": 2.0, "c": 0.5}
    assert as_measures({"a": 10**400, "b": {}}) == {}


def test_places_of_recordings():
    folder = Path("corpus")
    assert recording("clips/a.wav", folder) == folder / "clips/a.wav"
    assert recording("/x/a.wav", folder) == Path("/x/a.wav")
    assert recording("file:///x/a.wav", folder) == Path("/x/a.wav")
    assert recording("a.wav", None) == Path("a.wav")
    assert str(recording("memory://bucket/a.wav", folder)) == "memory://bucket/a.wav"


@pytest.mark.parametrize("path", ["a\0.wav", "a" * 1_000_000, "nosuchprotocol://x/a.wav"])
def test_what_is_no_place_costs_its_row(path):
    with pytest.raises(RejectedRow) as refused:
        recording(path, Path("corpus"))
    assert refused.value.reason == "missing_audio"
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("error", [ValueError("first\nsecond"), OSError(""), ConnectionError("gone\n\nand more")])
def test_what_cannot_be_read_is_told_in_one_line(error):
    told = str(unreadable("s3://bucket/corpus", error))
    assert "\n" not in told
    assert told.startswith(("cannot read s3://bucket/corpus: ", "cannot reach s3://bucket/corpus: "))
    assert "; check the" in told
