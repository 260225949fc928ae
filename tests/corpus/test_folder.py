"""Folder corpora and manifests: every form of metadata, and what is wrong with a row told by row."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import numpy as np
import pytest

from llasa.audio import decode_audio
from llasa.corpus.folder import FolderSource, ManifestSource
from llasa.errors import RejectedRow, UserError
from tests.corpus.recordings import speech_like, write_audio, write_folder_corpus


def folder_source(folder: Path, metadata: str | bytes, name: str = "metadata.csv", **changes) -> FolderSource:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(metadata.encode() if isinstance(metadata, str) else metadata)
    return FolderSource(**{"path": str(folder), "language": "it", **changes})


def manifest_source(folder: Path, rows: list, **changes) -> ManifestSource:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ManifestSource(**{"path": str(folder / "manifest.jsonl"), "language": "it", **changes})


def rows_of(source: ManifestSource) -> list:
    """Each row as a SourceRow, or as its reason for being refused."""
    results = []
    for index in range(source.splits()["train"]):
        try:
            results.append(source.row("train", index))
        except RejectedRow as reason:
            results.append(reason.reason)
    return results


def texts_of(source: ManifestSource) -> list[str]:
    return [row if isinstance(row, str) else row.text for row in rows_of(source)]


# --- LJSpeech --------------------------------------------------------------------------------------------------------


def test_ljspeech_with_two_columns_and_a_wavs_folder(tmp_path):
    write_folder_corpus(tmp_path, 3, seed=1)
    source = FolderSource(path=str(tmp_path), language="it")
    assert source.splits() == {"train": 3}
    lines = (tmp_path / "metadata.csv").read_text(encoding="utf-8").splitlines()
    for index, row in enumerate(rows_of(source)):
        assert row.id == f"clip-{index:04d}"
        assert f"{row.id}|{row.text}" == lines[index]
        assert row.audio == tmp_path / "wavs" / f"{row.id}.wav"
        assert (row.speaker, row.language) == ("", "it")
        np.testing.assert_allclose(
            decode_audio(row.audio)[0], speech_like(0.6 * (1 + index / 10), 1 + index), atol=1 / 32768
        )


def test_ljspeech_with_three_columns_takes_the_normalised_text(tmp_path):
    source = folder_source(tmp_path, "a|Il 3 maggio|Il tre maggio\nb|Ciao|\nc|Solo due\n")
    assert texts_of(source) == ["Il tre maggio", "Ciao", "Solo due"]


def test_ljspeech_audio_may_lie_beside_the_metadata(tmp_path):
    write_audio(tmp_path / "a.wav", speech_like(0.3, 1))
    write_audio(tmp_path / "wavs" / "b.flac", speech_like(0.3, 1))
    write_audio(tmp_path / "wavs" / "c.01.wav", speech_like(0.3, 1))
    write_audio(tmp_path / "d.ogg", speech_like(0.3, 1))
    rows = rows_of(folder_source(tmp_path, "a|uno\nb|due\nc.01|tre\nd.ogg|quattro\n"))
    assert [str(row.audio.relative_to(tmp_path)) for row in rows] == ["a.wav", "wavs/b.flac", "wavs/c.01.wav", "d.ogg"]
    assert all(row.audio.is_file() for row in rows)


def test_ljspeech_audio_that_is_nowhere_is_looked_for_in_wavs(tmp_path):
    (row,) = rows_of(folder_source(tmp_path, "a|uno\n"))
    with pytest.raises(RejectedRow, match=r"missing_audio: no file at .*/wavs/a.wav"):
        decode_audio(row.audio)


def test_ljspeech_quotes_and_commas_are_text(tmp_path):
    source = folder_source(tmp_path, 'a|"Ciao, disse\nb|lui, e "poi" andò.\n')
    assert texts_of(source) == ['"Ciao, disse', 'lui, e "poi" andò.']


def test_ljspeech_lines_of_another_shape_are_refused_alone(tmp_path):
    source = folder_source(tmp_path, "a|uno\nno bar at all\n\nb|due\nc|x|y|z\n|quattro\nd|\n" + "e" * 300 + "|sei\n")
    rows = rows_of(source)
    assert [row if isinstance(row, str) else row.text for row in rows] == [
        "uno", "malformed_row", "due", "malformed_row", "missing_audio", "", "sei",
    ]  # fmt: skip
    with pytest.raises(RejectedRow, match="missing_audio"):
        decode_audio(rows[-1].audio)


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_byte_order_marks_leave_no_trace(tmp_path, newline, bom):
    ljspeech = bom + newline.join(["a|uno", "b|due", ""]).encode()
    assert [(row.id, row.text) for row in rows_of(folder_source(tmp_path, ljspeech))] == [("a", "uno"), ("b", "due")]
    header = bom + newline.join(["file_name,text", "a.wav,uno", "b.wav,due", ""]).encode()
    assert [(row.id, row.text) for row in rows_of(folder_source(tmp_path, header))] == [("a", "uno"), ("b", "due")]


def test_unicode_line_separators_do_not_cut_a_transcript(tmp_path):
    text = "prima\u2028seconda\x0cterza\x85quarta\x1cquinta"
    assert texts_of(folder_source(tmp_path, f"a|{text}\nb|due\n")) == [text, "due"]


# --- a header --------------------------------------------------------------------------------------------------------


def test_a_header_names_the_columns_in_any_order(tmp_path):
    rows = rows_of(folder_source(tmp_path, "speaker,text,other,file_name\nanna,Ciao.,x,clips/a.wav\n,Sì.,,b.flac\n"))
    assert [(row.id, row.text, row.speaker) for row in rows] == [("a", "Ciao.", "anna"), ("b", "Sì.", "")]
    assert [row.audio for row in rows] == [tmp_path / "clips/a.wav", tmp_path / "b.flac"]


def test_quoted_commas_quotes_and_line_breaks_are_text(tmp_path):
    source = folder_source(
        tmp_path,
        "file_name,text,speaker\n"
        'a.wav,"Ciao, come stai?",anna\n'
        'b.wav,"Disse ""ciao"", e uscì.",anna\n'
        'c.wav,"Prima riga\nseconda riga",bea\n'
        'd.wav, "Dopo, uno spazio", bea\n',
    )
    assert texts_of(source) == [
        "Ciao, come stai?", 'Disse "ciao", e uscì.', "Prima riga\nseconda riga", "Dopo, uno spazio",
    ]  # fmt: skip
    assert [row.speaker for row in rows_of(source)] == ["anna", "anna", "bea", "bea"]


def test_an_unquoted_comma_refuses_the_row_instead_of_cutting_its_text(tmp_path):
    source = folder_source(tmp_path, "file_name,text\na.wav,Ciao, come stai?\nb.wav,Bene.\n")
    assert texts_of(source) == ["malformed_row", "Bene."]


@pytest.mark.parametrize("tail", ["", 'd.wav,Disse "ciao" e uscì.\n', 'd.wav,"Quattro, cinque"\n'])
def test_a_quote_left_open_costs_its_own_row_only(tmp_path, tail):
    metadata = 'file_name,text\na.wav,Uno\nb.wav,"Due\nc.wav,Tre\n' + tail
    texts = texts_of(folder_source(tmp_path, metadata))
    assert texts[:3] == ["Uno", "malformed_row", "Tre"]
    assert len(texts) == (4 if tail else 3)


def test_rows_that_lack_a_value_are_refused_alone(tmp_path):
    source = folder_source(tmp_path, "file_name,text,speaker\na.wav\n,Due,anna\nc.wav,,anna\nd.wav,Quattro\n")
    assert texts_of(source) == ["missing_column", "missing_audio", "", "Quattro"]


@pytest.mark.parametrize(("delimiter", "name"), [("|", "file_name"), ("\t", "path"), (";", "audio")])
def test_other_delimiters_and_usual_names(tmp_path, delimiter, name):
    lines = [(name, "sentence", "speaker"), ("a.wav", 'Ciao, "come" stai?', "7")]
    (row,) = rows_of(folder_source(tmp_path, "".join(delimiter.join(line) + "\n" for line in lines)))
    assert (row.id, row.text, row.speaker) == ("a", 'Ciao, "come" stai?', "7")


@pytest.mark.parametrize("delimiter", ["|", "\t"])
def test_between_bars_and_tabs_a_quote_is_text(tmp_path, delimiter):
    metadata = f'file_name{delimiter}text\na.wav{delimiter}"Ciao, disse\nb.wav{delimiter}lui."\n'
    assert texts_of(folder_source(tmp_path, metadata)) == ['"Ciao, disse', 'lui."']


@pytest.mark.parametrize("header", ["file_name,words", "name,text", "a.wav,Ciao", "just words"])
def test_neither_form_is_refused_with_the_first_line(tmp_path, header):
    with pytest.raises(UserError, match=r"neither LJSpeech lines .* nor a header") as refused:
        folder_source(tmp_path, f"{header}\na.wav,Ciao\n")
    assert repr(header) in str(refused.value)


# --- metadata.jsonl and manifests ------------------------------------------------------------------------------------


def test_metadata_jsonl(tmp_path):
    lines = ['{"file_name": "clips/a.wav", "text": "Uno", "speaker": "anna"}', '{"file_name": "b.wav", "text": "Due"}']
    rows = rows_of(folder_source(tmp_path, "\ufeff" + "\r\n".join(lines), "metadata.jsonl"))
    assert [(row.id, row.text, row.speaker) for row in rows] == [("a", "Uno", "anna"), ("b", "Due", "")]
    assert rows[0].audio == tmp_path / "clips/a.wav"


def test_metadata_csv_is_preferred(tmp_path):
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.wav", "text": "json"}')
    assert texts_of(folder_source(tmp_path, "a|csv\n")) == ["csv"]


def test_manifest_fields(tmp_path):
    elsewhere = write_audio(tmp_path / "elsewhere" / "b.wav", speech_like(0.3, 1))
    write_audio(tmp_path / "corpus" / "clips" / "a.wav", speech_like(0.3, 2))
    source = manifest_source(
        tmp_path / "corpus",
        [
            {"audio": "clips/a.wav", "text": "Uno"},
            {"audio": str(elsewhere), "text": "Due", "id": "x-2", "speaker": "anna", "language": "de", "duration": 0.3},
            {"audio": "../elsewhere/b.wav", "text": "Tre", "id": 0, "speaker": 0, "language": None},
        ],
    )
    rows = rows_of(source)
    assert [(row.id, row.text, row.speaker, row.language) for row in rows] == [
        ("a", "Uno", "", "it"), ("x-2", "Due", "anna", "de"), ("0", "Tre", "0", "it"),
    ]  # fmt: skip
    samples = [decode_audio(row.audio)[0] for row in rows]
    np.testing.assert_array_equal(samples[1], samples[2])
    assert not np.array_equal(samples[0], samples[1])


def test_manifest_lines_that_cannot_be_read_are_refused_alone(tmp_path):
    source = manifest_source(
        tmp_path,
        [
            {"audio": "a.wav", "text": "Uno"},
            "",
            "not json",
            '["a.wav", "a list"]',
            '{"audio": "b.wav"',
            {"audio": "c.wav"},
            {"text": "no audio"},
            {"audio": "", "text": "Vuoto"},
            {"audio": "d.wav", "text": None},
            r'{"audio": "e.wav", "text": "half a pair \ud83d"}',
            '{"audio": "f.wav", "text": "x", "n": ' + "9" * 5_000 + "}",
            '{"audio": "g.wav", "text": ' + "[" * 100_000,
            r'{"audio": "h.wav", "text": "a pair \ud83d\ude00"}',
        ],
    )
    assert texts_of(source) == [
        "Uno", "malformed_row", "malformed_row", "malformed_row", "missing_column", "missing_column", "missing_audio",
        "missing_column", "malformed_row", "malformed_row", "malformed_row", "a pair 😀",
    ]  # fmt: skip


# --- the corpus as a whole -------------------------------------------------------------------------------------------


def test_limit_keeps_the_first_rows(tmp_path):
    assert texts_of(folder_source(tmp_path, "a|uno\nb|due\nc|tre\n", limit=2)) == ["uno", "due"]
    assert texts_of(folder_source(tmp_path, "a|uno\nb|due\nc|tre\n", limit=9)) == ["uno", "due", "tre"]
    for limit in (0, -1):
        with pytest.raises(UserError, match=f"dataset.limit={limit} is not valid"):
            folder_source(tmp_path, "a|uno\nb|due\n", limit=limit)


def test_the_description_changes_with_the_metadata_only(tmp_path):
    descriptions = [
        folder_source(tmp_path / name, metadata, **changes).describe()
        for name, metadata, changes in (
            ("one", "a|uno\nb|due\n", {}),
            ("copy", "a|uno\nb|due\n", {}),
            ("order", "b|due\na|uno\n", {}),
            ("text", "a|uno\nb|tre\n", {}),
            ("limit", "a|uno\nb|due\n", {"limit": 1}),
        )
    ]
    assert descriptions[0] == descriptions[1]
    for other in descriptions[2:]:
        assert other != descriptions[0]
    assert json.loads(json.dumps(descriptions[0])) == descriptions[0]


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff", "file_name,text\n"])
def test_metadata_without_rows_is_refused(tmp_path, content):
    with pytest.raises(UserError, match="lists no recordings"):
        folder_source(tmp_path, content)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="lists no recordings"):
        ManifestSource(path=str(tmp_path / "empty.jsonl"), language="it")


def test_metadata_that_is_not_utf8_is_refused_with_the_place(tmp_path):
    with pytest.raises(UserError, match=r"metadata.csv is not UTF-8 \(.* at byte 6\)"):
        folder_source(tmp_path, b"a|perc\xe9\n")
    (tmp_path / "utf16.jsonl").write_text('{"audio": "a.wav", "text": "x"}', encoding="utf-16")
    with pytest.raises(UserError, match="is not UTF-8"):
        ManifestSource(path=str(tmp_path / "utf16.jsonl"), language="it")


def test_a_corpus_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"has no metadata.csv and no metadata.jsonl; add metadata.csv"):
        FolderSource(path=str(tmp_path), language="it")
    with pytest.raises(UserError, match=r"there is no folder at .*/nowhere; pass dataset.path"):
        FolderSource(path=str(tmp_path / "nowhere"), language="it")
    for path in (tmp_path, tmp_path / "nothing.jsonl"):
        with pytest.raises(UserError, match=r"there is no manifest at .*; pass dataset.path"):
            ManifestSource(path=str(path), language="it")


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    write_folder_corpus(tmp_path / "voices", 2, seed=1)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert FolderSource(path="~/voices", language="it").splits() == {"train": 2}
    with pytest.raises(UserError, match=r"^there is no folder at ~nobody-of-this-name/voices; pass dataset.path"):
        FolderSource(path="~nobody-of-this-name/voices", language="it")


def test_measures_come_with_their_rows(tmp_path):
    lines = [
        {"audio": "a.wav", "text": "Uno", "dnsmos": 3.5, "up_votes": "2"},
        {"audio": "b.wav", "text": "Due", "dnsmos": "?"},
    ]
    assert [row.measures for row in rows_of(manifest_source(tmp_path, lines))] == [{"dnsmos": 3.5, "up_votes": 2.0}, {}]
    (row,) = rows_of(folder_source(tmp_path, "file_name,text,levenshtein\na.wav,Uno,0.95\n"))
    assert row.measures == {"levenshtein": 0.95}


def test_metadata_of_the_wrong_kind_costs_its_row(tmp_path):
    """Numbers, lists, zero bytes, a path of a million characters, an address of no protocol."""
    write_audio(tmp_path / "a.wav", speech_like(0.3, 1))
    wrong = [
        5,
        ["a.wav"],
        {"path": "a.wav"},
        True,
        "a\0.wav",
        "x" * 1_000_000,
        "nosuch://a.wav",
        ".",
        "/",
        "..",
        "~",
        "s" * 300,
    ]
    source = manifest_source(tmp_path, [{"audio": audio, "text": "Uno"} for audio in [*wrong, "a.wav"]])
    for index in range(len(wrong)):
        with pytest.raises(RejectedRow) as refused:
            decode_audio(source.row("train", index).audio)
        assert refused.value.reason == "missing_audio"
        assert len(refused.value.detail) < 500
    assert len(decode_audio(source.row("train", len(wrong)).audio)[0]) == 4800
    texts = manifest_source(tmp_path, [{"audio": "a.wav", "text": text} for text in (5, ["x"], "x\0y")])
    assert texts_of(texts) == ["5", "['x']", "x\0y"]


@pytest.mark.parametrize("header", ["", "file_name,text\n"])
def test_damaged_lines_of_a_table_cost_themselves(tmp_path, header):
    separator = "," if header else "|"
    names = ["a", "b\0c", "d" * 1_000_000, "e"]
    source = folder_source(tmp_path, header + "".join(f"{name}{separator}testo\n" for name in names))
    rows = rows_of(source)
    assert len(rows) == 4
    assert [row if isinstance(row, str) else row.id for row in (rows[0], rows[3])] == ["a", "e"]
    assert rows[1] == "missing_audio"
    assert rows[2] in ("missing_audio", "malformed_row")


# --- in an object store ----------------------------------------------------------------------------------------------


@pytest.fixture
def memory():
    store = fsspec.filesystem("memory")
    yield store
    store.rm("/bucket", recursive=True)


def test_a_folder_in_an_object_store_has_the_rows_of_the_same_one_here(tmp_path, memory):
    write_folder_corpus(tmp_path, 4, seed=1)
    (tmp_path / "wavs" / "clip-0002.wav").rename(tmp_path / "clip-0002.wav")
    (tmp_path / "wavs" / "clip-0003.wav").unlink()
    memory.put(str(tmp_path) + "/", "/bucket/voices", recursive=True)
    here, there = (
        FolderSource(path=str(tmp_path), language="it"),
        FolderSource(path="memory://bucket/voices", language="it"),
    )
    assert there.describe() == here.describe()
    for mine, theirs in zip(rows_of(here)[:3], rows_of(there)[:3], strict=True):
        assert (mine.id, mine.text) == (theirs.id, theirs.text)
        assert str(theirs.audio) == str(mine.audio).replace(str(tmp_path), "memory://bucket/voices")
        np.testing.assert_array_equal(decode_audio(mine.audio)[0], decode_audio(theirs.audio)[0])
    with pytest.raises(RejectedRow, match=r"missing_audio: no file at memory://bucket/voices/wavs/clip-0003.wav"):
        decode_audio(rows_of(there)[3].audio)


def test_an_object_store_is_listed_and_not_asked_for_each_name(tmp_path, memory, monkeypatch):
    write_folder_corpus(tmp_path, 30, seed=1, seconds=0.1)
    memory.put(str(tmp_path) + "/", "/bucket/voices", recursive=True)
    source = FolderSource(path="memory://bucket/voices", language="it")
    asked = []
    for name in ("ls", "info", "exists", "isfile"):
        method = getattr(type(memory), name)
        monkeypatch.setattr(
            type(memory), name, lambda self, *a, _m=method, _n=name, **k: asked.append(_n) or _m(self, *a, **k)
        )
    assert all(not isinstance(row, str) for row in rows_of(source))
    assert 1 <= len(asked) < 10


def test_a_manifest_names_recordings_beside_it_here_and_elsewhere(tmp_path, memory):
    clips = [speech_like(0.3, seed) for seed in range(3)]
    local = write_audio(tmp_path / "local.wav", clips[0])
    for name, clip in (("corpus/clips/beside.wav", clips[1]), ("other/elsewhere.wav", clips[2])):
        memory.pipe(f"/bucket/{name}", write_audio(tmp_path / "x.wav", clip).read_bytes())
    memory.pipe("/bucket/corpus/empty.wav", b"")
    names = [str(local), "clips/beside.wav", "memory://bucket/other/elsewhere.wav", "clips/none.wav", "empty.wav"]
    lines = [json.dumps({"audio": name, "text": "Ciao"}) for name in names]
    memory.pipe("/bucket/corpus/list.jsonl", "\n".join(lines).encode())
    source = ManifestSource(path="memory://bucket/corpus/list.jsonl", language="it")
    for index, clip in enumerate(clips):
        np.testing.assert_allclose(decode_audio(source.row("train", index).audio)[0], clip, atol=1 / 32768)
    for index, reason in ((3, "missing_audio"), (4, "empty_audio")):
        with pytest.raises(RejectedRow) as refused:
            decode_audio(source.row("train", index).audio)
        assert refused.value.reason == reason


def test_a_store_that_cannot_be_reached_costs_the_run_and_no_row(tmp_path, memory, monkeypatch):
    write_folder_corpus(tmp_path, 1, seed=1)
    memory.put(str(tmp_path) + "/", "/bucket/voices", recursive=True)
    (row,) = rows_of(FolderSource(path="memory://bucket/voices", language="it"))

    def gone(*arguments, **options):
        raise ConnectionError("gone")

    for name in ("_open", "cat_file"):
        monkeypatch.setattr(type(memory), name, gone)
    with pytest.raises(
        UserError, match=r"^cannot read memory://bucket/voices/wavs/clip-0000.wav: gone; check the network"
    ):
        decode_audio(row.audio)
    with pytest.raises(UserError, match=r"^cannot reach memory://bucket/voices/metadata.csv: gone; check the network"):
        FolderSource(path="memory://bucket/voices", language="it")


def test_what_is_not_in_an_object_store_is_refused(memory):
    memory.pipe("/bucket/x", b"x")
    with pytest.raises(UserError, match=r"^memory://bucket/voices has no metadata.csv and no metadata.jsonl"):
        FolderSource(path="memory://bucket/voices", language="it")
    with pytest.raises(UserError, match=r"^there is no manifest at memory://bucket/list.jsonl; pass dataset.path"):
        ManifestSource(path="memory://bucket/list.jsonl", language="it")
    with pytest.raises(UserError, match=r"^cannot reach nosuch://bucket/voices"):
        FolderSource(path="nosuch://bucket/voices", language="it")
