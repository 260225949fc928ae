"""Folder corpora and manifests: every form of metadata, and what is wrong with a row told by row."""

from __future__ import annotations

import json
from pathlib import Path

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
