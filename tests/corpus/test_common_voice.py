"""Common Voice as Mozilla hands it out: real MP3 clips and tables in its columns."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pytest

from llasa.audio import decode_audio
from llasa.build import build
from llasa.corpus.common_voice import CommonVoiceSource
from llasa.entry import compose_config
from llasa.errors import RejectedRow, UserError
from tests.corpus.recordings import speech_like, write_audio

COLUMNS = ("client_id", "path", "sentence_id", "sentence", "sentence_domain", "up_votes", "down_votes", "age", "gender",
           "accents", "variant", "locale", "segment")  # fmt: skip


def line(name: str, sentence: str = "Ciao.", speaker: str = "c0ffee", locale: str = "it", votes: str = "2\t1") -> str:
    return f"{speaker}\t{name}\ts-1\t{sentence}\t\t{votes}\t\t\t\t\t{locale}\t"


def write_table(folder: Path, table: str, lines: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{table}.tsv").write_text("\n".join(["\t".join(COLUMNS), *lines, ""]), encoding="utf-8")


@pytest.fixture
def release(tmp_path) -> Path:
    folder = tmp_path / "cv-corpus-23.0" / "it"
    for table, count in {"train": 3, "dev": 2, "test": 1, "validated": 6, "other": 1}.items():
        write_table(folder, table, [line(f"common_voice_it_{table}{row}.mp3", f"Frase {row}.") for row in range(count)])
    write_audio(folder / "clips" / "common_voice_it_train0.mp3", speech_like(0.5, 1, 48_000), 48_000)
    return folder


def source(path: Path | str, **changes) -> CommonVoiceSource:
    splits = {"train": "train", "validation": "dev", "test": "test"}
    return CommonVoiceSource(**{"path": str(path), "language": "it", "splits": splits, **changes})


def test_the_option_reads_a_release(release):
    for path in (release, release.parent):
        config = compose_config("preprocess", ["dataset=common_voice", f"dataset.path={path}", "lang=it"])
        corpus = build(config.dataset)
        assert corpus.splits() == {"train": 3, "validation": 2, "test": 1}
        row = corpus.row("train", 0)
        assert (row.id, row.text, row.speaker, row.language) == ("common_voice_it_train0", "Frase 0.", "c0ffee", "it")
        assert row.measures == {"up_votes": 2.0, "down_votes": 1.0}
        waveform, rate = decode_audio(row.audio)
        assert (rate, round(len(waveform) / rate, 1)) == (48_000, 0.5)
        assert [corpus.row("train", index).text for index in range(3)] == ["Frase 0.", "Frase 1.", "Frase 2."]
        assert corpus.row("validation", 1).id == "common_voice_it_dev1"


def test_any_table_can_be_a_split(release):
    corpus = source(release, splits={"train": "validated", "validation": None, "test": None})
    assert corpus.splits() == {"train": 6}
    assert corpus.describe() != source(release).describe()
    assert json.loads(json.dumps(corpus.describe())) == corpus.describe()
    assert source(release, limit=2).splits() == {"train": 2, "validation": 2, "test": 1}


def test_quotes_and_line_separators_are_text(release):
    write_table(release, "train", [line("a.mp3", '"Ciao", disse\u2028lei.'), line("b.mp3", '"Solo aperta')])
    corpus = source(release)
    assert [corpus.row("train", index).text for index in range(2)] == ['"Ciao", disse\u2028lei.', '"Solo aperta']


def test_rows_of_another_shape_are_refused_alone(release):
    lines = [
        line("a.mp3"),
        "too\tfew",
        line(""),
        line("b.mp3", votes="many\t"),
        line("c" * 10_000),
        line("d\0.mp3"),
        line("e"),
    ]
    write_table(release, "train", lines)
    corpus, found = source(release), []
    for _, fetch in corpus.rows("train", 0, 7):
        try:
            found.append(fetch().id)
        except RejectedRow as reason:
            found.append(reason.reason)
    assert found == ["a", "malformed_row", "missing_audio", "b", "missing_audio", "missing_audio", "e"]
    assert corpus.row("train", 3).measures == {}
    assert corpus.row("train", 6).audio == release / "clips" / "e.mp3"


def test_what_is_no_release_is_refused_with_where_to_get_one(release, tmp_path):
    with pytest.raises(
        UserError, match=r"/nowhere has no train.tsv and no dev.tsv and no test.tsv; download a release"
    ):
        source(tmp_path / "nowhere")
    (release / "dev.tsv").unlink()
    with pytest.raises(
        UserError, match=r"/it has no dev.tsv; download a release from https://mozilladatacollective.com"
    ):
        source(release)
    write_table(release, "dev", [])
    (release / "train.tsv").write_text("file\ttext\n")
    with pytest.raises(UserError, match=r"train.tsv has no column 'client_id'; it has file, text; .*dataset=folder"):
        source(release)
    (release / "train.tsv").write_bytes(b"client_id\tpath\tsentence\nx\ty\tperc\xe9\n")
    with pytest.raises(UserError, match=r"train.tsv is not UTF-8"):
        source(release)


def test_a_release_of_another_language_is_refused(release):
    with pytest.raises(UserError, match=r"/it holds the language it, not de; pass lang=it, or the folder of de"):
        source(release, language="de")
    write_table(release, "train", [line("a.mp3", locale="sv-SE")])
    assert source(release, language="sv", splits={"train": "train"}).splits() == {"train": 1}


def test_a_release_in_an_object_store(release):
    memory = fsspec.filesystem("memory")
    memory.put(str(release.parent), "/bucket/cv", recursive=True)
    try:
        corpus = source("memory://bucket/cv")
        assert corpus.describe() == source(release).describe()
        assert len(decode_audio(corpus.row("train", 0).audio)[0]) > 20_000
        with pytest.raises(RejectedRow, match="missing_audio"):
            decode_audio(corpus.row("train", 1).audio)
    finally:
        memory.rm("/bucket", recursive=True)
