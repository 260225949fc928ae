"""Data sets that `datasets` reads: real Parquet files in the columns of CML-TTS and MLS, and what cannot be loaded."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest

from llasa.audio import decode_audio
from llasa.build import build
from llasa.corpus.hub import HubSource
from llasa.entry import compose_config
from llasa.errors import RejectedRow, UserError
from tests.corpus.recordings import audio_bytes, speech_like, write_audio, write_hub_corpus, write_parquet_corpus

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cml_tts(tmp_path_factory) -> Path:
    return write_hub_corpus(tmp_path_factory.mktemp("hub") / "cml", "cml_tts", {"train": 4, "dev": 2, "test": 3}, 1)


def hub_source(path: Path | str, **changes) -> HubSource:
    arguments = {
        "path": str(path),
        "config": None,
        "language": "it",
        "splits": {"train": "train"},
        "columns": {"audio": "audio", "text": "text", "speaker": None, "id": None},
    }
    return HubSource(**{**arguments, **changes})


def group_source(option: str, path: Path) -> HubSource:
    """The source of ``conf/dataset/OPTION.yaml``, but from a local folder."""
    return build(compose_config("preprocess", [f"dataset={option}", f"dataset.path={path}", "lang=it"]).dataset)


def file_rows(folder: Path, split: str) -> list[dict]:
    return datasets.Dataset.from_parquet(str(folder / "italian" / f"{split}-00000-of-00001.parquet")).to_list()


@pytest.mark.parametrize(("option", "text", "identifier"), [("cml_tts", "text", None), ("mls", "transcript", "id")])
def test_the_options_read_their_data_sets(option, text, identifier, tmp_path):
    counts = {"train": 4, "dev": 2, "test": 3}
    folder = write_hub_corpus(tmp_path / "hub", option, counts, seed=1)
    source = group_source(option, folder)
    assert isinstance(source, HubSource)
    assert source.splits() == {"train": 4, "validation": 2, "test": 3}
    for split, name in {"train": "train", "validation": "dev", "test": "test"}.items():
        expected = file_rows(folder, name)
        assert len(expected) == counts[name]
        for index, fields in enumerate(expected):
            row = source.row(split, index)
            assert row.id == (fields[identifier] if identifier else f"{split}-{index}")
            assert row.text == fields[text]
            assert row.speaker == str(index % 2)  # "0" too
            assert row.language == "it"
            assert row.audio == fields["audio"]["bytes"]
            waveform, rate = decode_audio(row.audio)
            assert rate == 24_000
            assert len(waveform) == round((0.5 + index / 10) * 24_000)


def test_rows_come_in_any_order_and_again(cml_tts):
    source = hub_source(cml_tts)
    forward = [source.row("train", index) for index in range(4)]
    assert [source.row("train", index) for index in reversed(range(4))] == forward[::-1]
    assert len({row.audio for row in forward}) == 4


def test_audio_given_by_its_path(tmp_path):
    clip = write_audio(tmp_path / "clips" / "a.flac", speech_like(0.4, 1))
    write_parquet_corpus(tmp_path / "hub", {"train": [{"audio": {"bytes": None, "path": str(clip)}, "text": "Uno"}]})
    row = hub_source(tmp_path / "hub").row("train", 0)
    assert row.audio == clip
    np.testing.assert_allclose(decode_audio(row.audio)[0], speech_like(0.4, 1), atol=1 / 32768)


def test_rows_without_text_or_audio_are_refused_alone(tmp_path):
    content = audio_bytes(speech_like(0.4, 1), 24_000)
    rows = [
        {"audio": {"bytes": content, "path": None}, "text": "Uno", "speaker": "anna", "id": ""},
        {"audio": {"bytes": content, "path": None}, "text": None, "speaker": None, "id": "b"},
        {"audio": {"bytes": None, "path": None}, "text": "Tre", "speaker": None, "id": "c"},
        {"audio": None, "text": "Quattro", "speaker": None, "id": "d"},
        {"audio": {"bytes": b"", "path": "x.wav"}, "text": "Cinque", "speaker": None, "id": "e"},
    ]
    write_parquet_corpus(tmp_path / "hub", {"train": rows})
    columns = {"audio": "audio", "text": "text", "speaker": "speaker", "id": "id"}
    source = hub_source(tmp_path / "hub", columns=columns)
    first = source.row("train", 0)
    assert (first.id, first.speaker) == ("train-0", "anna")
    for index, reason in enumerate(["empty_text", "missing_audio", "missing_audio"], start=1):
        with pytest.raises(RejectedRow) as refused:
            source.row("train", index)
        assert refused.value.reason == reason
    last = source.row("train", 4)
    assert (last.id, last.speaker) == ("e", "")
    with pytest.raises(RejectedRow, match="empty_audio"):
        decode_audio(last.audio)


def test_limit_keeps_the_first_rows_of_each_split(cml_tts):
    splits = {"train": "train", "validation": "dev"}
    assert hub_source(cml_tts, splits=splits, limit=3).splits() == {"train": 3, "validation": 2}
    assert hub_source(cml_tts, limit=3).row("train", 2) == hub_source(cml_tts).row("train", 2)
    for limit in (0, -1):
        with pytest.raises(UserError, match=f"dataset.limit={limit} is not valid"):
            hub_source(cml_tts, limit=limit)


def test_the_description_tells_splits_and_columns_apart(cml_tts):
    plain = hub_source(cml_tts, limit=2).describe()
    assert plain["rows"] == {"train": 2}
    assert hub_source(cml_tts, limit=2).describe() == plain
    assert hub_source(cml_tts, limit=2, splits={"train": "dev"}).describe() != plain
    columns = {"audio": "audio", "text": "transcript_wav2vec", "speaker": None, "id": None}
    assert hub_source(cml_tts, limit=2, columns=columns).describe() != plain


# --- what cannot be used ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "column"), [("text", "sentence"), ("audio", "sound"), ("speaker", "who"), ("id", "key")]
)
def test_a_missing_column_is_refused_with_those_there_are(cml_tts, key, column):
    columns = {"audio": "audio", "text": "text", "speaker": None, "id": None, key: column}
    with pytest.raises(
        UserError, match=rf"has no column '{column}'; it has audio, .*text.*dataset\.columns"
    ) as refused:
        hub_source(cml_tts, columns=columns)
    stored = file_rows(cml_tts, "train")[0]
    assert all(name in str(refused.value) for name in stored)


@pytest.mark.parametrize("key", ["audio", "text"])
def test_audio_and_text_need_a_column(cml_tts, key):
    columns = {"audio": "audio", "text": "text", "speaker": None, "id": None, key: None}
    with pytest.raises(UserError, match=f"dataset.columns.{key}=None is not valid"):
        hub_source(cml_tts, columns=columns)


def test_columns_of_another_kind_are_refused(cml_tts):
    columns = {"audio": "speaker_id", "text": "text", "speaker": None, "id": None}
    with pytest.raises(UserError, match=r"the column 'speaker_id' of .* holds no audio"):
        hub_source(cml_tts, columns=columns)
    columns = {"audio": "audio", "text": "num_words", "speaker": None, "id": None}
    with pytest.raises(RejectedRow, match="malformed_row: the transcript is no text but int"):
        hub_source(cml_tts, columns=columns).row("train", 0)


def test_a_missing_split_is_refused_with_those_there_are(cml_tts):
    with pytest.raises(
        UserError, match=r"has no split 'training'; it has train, dev, test; set dataset\.splits\.train"
    ):
        hub_source(cml_tts, splits={"train": "training"})


@pytest.mark.parametrize("streaming", [False, True])
def test_a_missing_configuration_is_refused_with_those_there_are(tmp_path, streaming):
    folder = write_hub_corpus(tmp_path / "cml", "cml_tts", {"train": 2}, 1)
    with pytest.raises(UserError, match=r"/cml has no configuration 'german'; set dataset.config to one of italian$"):
        hub_source(folder, config="german", streaming=streaming)
    shutil.copytree(folder / "italian", folder / "polish")
    card = (folder / "README.md").read_text()
    polish = card.split("configs:\n")[1].split("---")[0].replace("italian", "polish")
    (folder / "README.md").write_text(card.replace("configs:\n", "configs:\n" + polish))
    with pytest.raises(UserError, match=r"has several configurations; .* one of polish, italian$"):
        hub_source(folder, config=None, streaming=streaming)
    assert hub_source(folder, config="polish", streaming=streaming).splits() == {"train": 1 if streaming else 2}


def test_a_language_that_the_corpus_lacks_is_refused_before_anything_is_read():
    for option in ("cml_tts", "mls"):
        with pytest.raises(
            UserError, match=rf"^{option} has no language 'en'; it has de, es, fr, it, nl, pl, pt; choose"
        ):
            build(compose_config("preprocess", [f"dataset={option}", "lang=en"]).dataset)


def test_without_a_mapping_splits_are_found_by_their_usual_names(tmp_path):
    for dev in ("dev", "validation"):
        folder = write_hub_corpus(tmp_path / dev, "cml_tts", {"train": 3, dev: 2, "1_hours": 1}, 1)
        source = hub_source(folder, splits=None)
        assert source.splits() == {"train": 3, "validation": 2}
        assert source.describe()["splits"] == {"train": "train", "validation": dev}
    small = hub_source(folder, splits={"train": "1_hours", "validation": None})
    assert small.splits() == {"train": 1}


def test_measures_of_the_data_set_come_with_its_rows(cml_tts):
    row = group_source("cml_tts", cml_tts).row("train", 0)
    assert row.measures == {"levenshtein": 0.97}
    assert hub_source(cml_tts).row("train", 0).measures == {}


def test_an_unknown_column_of_ours_is_refused(cml_tts):
    with pytest.raises(UserError, match=r"dataset.columns='speakr' is not valid; did you mean speaker\?"):
        hub_source(cml_tts, columns={"audio": "audio", "text": "text", "speakr": "speaker_id"})


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"cannot load .*/empty"):
        hub_source(tmp_path / "empty")
    (tmp_path / "damaged" / "data").mkdir(parents=True)
    (tmp_path / "damaged" / "data" / "train-00000-of-00001.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"cannot load .*/damaged.*: .*Parquet"):
        hub_source(tmp_path / "damaged")


def test_a_folder_of_recordings_is_sent_to_its_own_source(tmp_path):
    write_audio(tmp_path / "clips" / "a.wav", speech_like(0.4, 1))
    (tmp_path / "clips" / "metadata.csv").write_text("file_name,text\na.wav,Ciao\n")
    with pytest.raises(UserError, match=r"holds its recordings as loose files; .*dataset=folder"):
        hub_source(tmp_path / "clips")


def test_a_path_that_can_be_no_hub_name_is_refused():
    for path in ("/no/such/folder", "./folder", "a/b/c"):
        with pytest.raises(UserError, match=r"^there is no folder at (a|/no|folder).*; pass dataset.path=FOLDER"):
            hub_source(path)


def test_without_the_hub_a_name_is_refused_at_once(tmp_path):
    """In a process of its own, because `datasets` reads the switch when it is imported."""
    command = [
        sys.executable,
        str(ROOT / "preprocess.py"),
        "dataset=hub",
        "dataset.path=nobody/nothing",
        "codec=codec2",
    ]
    result = subprocess.run(
        [*command, "store=store"],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "error: nobody/nothing is no local folder and the hub is switched off; "
        "check dataset.path, or unset HF_HUB_OFFLINE\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_known_by_its_place_and_its_files(tmp_path):
    """`datasets` alone would give the first folder's rows for all three: they share name and configuration."""

    def texts(folder):
        columns = {"audio": "audio", "text": "text", "speaker": None, "id": None}
        source = HubSource(
            path=str(folder), config="italian", language="it", splits={"train": "train"}, columns=columns
        )
        return [source.row("train", index).text for index in range(source.splits()["train"])]

    first = write_hub_corpus(tmp_path / "a" / "corpus", "cml_tts", {"train": 2}, seed=1)
    second = write_hub_corpus(tmp_path / "b" / "corpus", "cml_tts", {"train": 3}, seed=2)
    before = [texts(first), texts(second)]
    assert [len(rows) for rows in before] == [2, 3]
    shutil.rmtree(second)
    write_hub_corpus(second, "cml_tts", {"train": 4}, seed=3)
    after = texts(second)
    assert len(after) == 4
    assert after[:3] != before[1]
    assert texts(first) == before[0]
