"""Proof-reading: a good store passes, every kind of worthless one fails by name, and the page can be read."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image

from llasa.audio import read_audio
from llasa.codec.base import code_problem
from llasa.codec.codec2 import Codec2
from llasa.config import FiltersConfig
from llasa.corpus import acoustics, recognition
from llasa.corpus.census import Census, Histogram, take_census
from llasa.corpus.proofs import Proof, compare_with_source, find_rows, read_proofs
from llasa.corpus.run import preprocess
from llasa.corpus.sources import EncodedRow
from llasa.corpus.store import Shard, TokenStore, codes_hash, read_shard_record, write_table
from llasa.corpus.verify import sample_rows, verify_store
from llasa.corpus.verify_checks import delay_check, percent
from llasa.corpus.verify_page import PALETTE, histogram, png_bytes
from llasa.entry import compose_config
from llasa.errors import UserError
from llasa.text import spoken_form
from tests.codec.tiny_xcodec2 import save_tiny_xcodec2
from tests.corpus.recordings import speech_like, write_audio, write_folder_corpus
from tests.corpus.stores import contents, stored_rows

ROWS = 10
CHECKS = [
    "codec", "lengths", "codes", "corpus", "encoding", "contrast", "mel", "energy", "delay", "level", "words",
]  # fmt: skip


def make(corpus: Path, store: Path | str, *more: str) -> None:
    """The texts are too long for the clips; proof-reading must not mind, as it takes the filters from the store."""
    preprocess(compose_config("preprocess", overrides(corpus, store, "filters.characters_per_second=null", *more)))


def overrides(corpus: Path, store: Path | str, *more: str) -> list[str]:
    return ["dataset=folder", f"dataset.path={corpus}", "lang=it", "codec=codec2", f"store={store}", *more]


def verify(corpus: Path, store: Path | str, *more: str) -> dict[str, Any]:
    return verify_store(compose_config("preprocess", overrides(corpus, store, "verify=true", *more)))


def failing(corpus: Path, store: Path, *more: str) -> tuple[list[str], str]:
    """Names of the checks that fail, and the message; the report must be there and say the same."""
    with pytest.raises(UserError) as refused:
        verify(corpus, store, *more)
    report = json.loads((store.with_name(store.name + "-report") / "verify.json").read_text(encoding="utf-8"))
    failed = [check["name"] for check in report["checks"] if check["passed"] is False]
    message = str(refused.value)
    assert report["passed"] is False
    assert f"{len(failed)} of " in message
    assert all(f"{name}: " in message for name in failed)
    page = store.with_name(store.name + "-report") / "index.html"
    assert message.endswith(f"; see {page}")
    assert "✗ Failed" in page.read_text(encoding="utf-8")
    return failed, message


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Ten clips, each of another length; the second has a text that an HTML page must escape."""
    folder = write_folder_corpus(tmp_path_factory.mktemp("corpus"), ROWS, seed=5, seconds=0.8)
    lines = (folder / "metadata.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    lines[1] = "clip-0001|<script>alert(\"Ho 3 gatti & un 'cane'\")</script>\n"
    (folder / "metadata.csv").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def good(corpus, tmp_path_factory) -> Path:
    store = tmp_path_factory.mktemp("stores") / "good"
    make(corpus, store, "shard_rows=4")
    return store


@pytest.fixture(scope="module")
def report(corpus, good) -> dict[str, Any]:
    return verify(corpus, good, "verification.seed=3")


@pytest.fixture
def copy(good, tmp_path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "store"))


def rewrite(store: Path, change: Callable[[list[dict]], None], *, hashes: bool = True) -> None:
    """Change the rows of the whole store in place; its counts and its codes' hashes fit the new rows, so that nothing
    but the rows themselves gives the change away."""
    files = sorted(store.glob("*/*.parquet"))
    tables = [pq.read_table(file) for file in files]
    rows = [row for table in tables for row in table.to_pylist()]
    change(rows)
    for file, table in zip(files, tables, strict=True):
        mine, rows = rows[: len(table)], rows[len(table) :]
        for row in mine if hashes else []:
            row["num_codes"] = len(row["codes"])
            row["codes_hash"] = codes_hash(np.array(row["codes"]))
        new = pa.Table.from_pylist(mine, schema=table.schema)
        write_table(store, Shard(file.parent.name, int(file.stem), 0, 0), new, read_shard_record(file).rejects)


# --- a good store ----------------------------------------------------------------------------------------------------


def test_a_good_store_passes_every_check(report):
    assert report["passed"] is True
    assert [check["name"] for check in report["checks"]] == CHECKS
    assert {check["name"]: check["passed"] for check in report["checks"]} == {
        **dict.fromkeys(CHECKS, True), "words": None,
    }  # fmt: skip
    assert report["notes"] == []
    assert len(report["rows"]) == ROWS
    for row in report["rows"]:
        assert (row["equal_codes"], row["fails"], row["problems"]) == (1.0, [], [])
        assert row["mel_distance"] < row["nearest_other"]
        assert abs(row["gain"]) < 6
        assert row["delay_seconds"] == pytest.approx(0.02, abs=0.011)


def test_the_report_tells_the_rows_as_they_are_stored(good, report):
    stored = stored_rows(good)
    assert [row["row"] for row in report["rows"]] == list(range(ROWS))
    for told, row in zip(report["rows"], stored, strict=True):
        assert {key: told[key] for key in ("id", "text", "text_given", "speaker", "language", "num_codes")} == {
            key: row[key] for key in ("id", "text", "text_given", "speaker", "language", "num_codes")
        }
        assert told["seconds"] == pytest.approx(row["seconds"], abs=1e-4)
        assert told["characters_per_second"] == pytest.approx(len(row["text"]) / row["seconds"], abs=1e-3)
    assert report["rows"][1]["text_given"] != report["rows"][1]["text"]
    assert [row["shard"] for row in report["rows"]] == [f"train/{n:05d}.parquet" for n in [0] * 4 + [1] * 4 + [2] * 2]


def test_recordings_are_prepared_as_they_were_for_the_store(tmp_path):
    for number in range(4):
        silence = np.zeros(8_000, np.float32)
        write_audio(tmp_path / f"corpus/{number}.wav", np.concatenate([silence, speech_like(2, number), silence]))
    lines = [f"{number}.wav,Una frase lunga due secondi.\n" for number in range(4)]
    (tmp_path / "corpus/metadata.csv").write_text("file_name,text\n" + "".join(lines), encoding="utf-8")
    make(tmp_path / "corpus", tmp_path / "store", "filters.trim_silence=0.1")
    rows = verify(tmp_path / "corpus", tmp_path / "store")["rows"]
    assert all(2 <= row["seconds"] < 2.5 for row in rows)


def test_the_store_is_not_touched_and_a_report_is_repeatable(corpus, good, tmp_path):
    before = contents(good)
    folders = [tmp_path / "one", tmp_path / "two" / "deep"]
    for folder in folders:
        verify(corpus, good, f"verification.output={folder}", "verification.rows=4")
    assert contents(good) == before
    page, again = (contents(folder) for folder in folders)
    assert sorted(page) == ["index.html", "verify.json"]
    # Only the folder it was told to write to is another.
    assert page["verify.json"].replace(b"/one", b"/two/deep") == again["verify.json"]
    assert page["index.html"].replace(b"/one", b"/two/deep") == again["index.html"]


def test_the_seed_decides_the_rows(corpus, good, tmp_path):
    chosen = []
    for seed in (0, 0, 1):
        more = (f"verification.seed={seed}", "verification.rows=4", f"verification.output={tmp_path}/r")
        chosen.append([row["row"] for row in verify(corpus, good, *more)["rows"]])
    assert chosen[0] == chosen[1] != chosen[2]
    assert all(len(rows) == 4 for rows in chosen)


def test_few_rows_are_not_contrasted_but_still_encoded_again(corpus, good, tmp_path):
    found = verify(corpus, good, "verification.rows=1", f"verification.output={tmp_path}/r")
    passed = {check["name"]: check["passed"] for check in found["checks"]}
    assert (passed["contrast"], passed["encoding"], passed["mel"]) == (None, True, True)


# --- worthless stores ------------------------------------------------------------------------------------------------

CODEC = Codec2()
STARTS, ENDS = np.array(CODEC.spec.code_ranges).T
CODES = np.tile(STARTS, 50)


def proof(file: int, row: int, codes: np.ndarray, **found: Any) -> Proof:
    at = 4 * file + row
    return Proof(
        split="train", file=Path(f"train/{file:05d}.parquet"), index=0, row=row, id=f"r{at}",
        text=spoken_form(f"Frase {at}.", "it"), text_given=f"Frase {at}.", speaker="a", language="it", seconds=1.0,
        codes=codes, **found,
    )  # fmt: skip


def frames(row: dict) -> np.ndarray:
    """[frames, 4]"""
    return np.array(row["codes"]).reshape(-1, 4)


def each(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[list[dict]], None]:
    def apply(rows: list[dict]) -> None:
        for row in rows:
            row["codes"] = change(frames(row)).reshape(-1).tolist()

    return apply


def exchange(*keys: str) -> Callable[[list[dict]], None]:
    """Give each row the values of the next."""

    def apply(rows: list[dict]) -> None:
        for key in keys:
            values = [row[key] for row in rows]
            for row, value in zip(rows, values[1:] + values[:1], strict=True):
                row[key] = value

    return apply


WORTHLESS: dict[str, tuple[Callable[[list[dict]], None], set[str]]] = {
    # what was done to the codes, and the checks that must fail at least
    # (These clips are not speech and have one rhythm, so a wrong one is not far enough away for "mel".)
    "shuffled": (exchange("codes"), {"lengths", "encoding", "contrast"}),
    "shuffled with their lengths": (exchange("codes", "seconds"), {"corpus", "encoding", "contrast"}),
    "offset by 1": (each(lambda f: (f - STARTS + 1) % (ENDS - STARTS) + STARTS), {"encoding", "contrast", "mel"}),
    "offset by 500": (each(lambda f: (f - STARTS + 500) % (ENDS - STARTS) + STARTS), {"encoding", "contrast", "mel"}),
    "rotated by 1 frame": (each(lambda f: np.roll(f, 1, axis=0)), {"encoding"}),
    "rotated by 6 frames": (each(lambda f: np.roll(f, 6, axis=0)), {"encoding", "delay", "mel"}),
    "rotated by a third": (each(lambda f: np.roll(f, len(f) // 3, axis=0)), {"encoding", "delay", "mel"}),
    "reversed": (each(lambda f: f[::-1]), {"encoding", "mel"}),
    "all the same frame": (each(lambda f: np.repeat(f[:1], len(f), axis=0)), {"encoding", "contrast", "mel", "energy"}),
}


@pytest.mark.parametrize("name", WORTHLESS)
def test_worthless_codes_fail_by_name(corpus, copy, name):
    change, expected = WORTHLESS[name]
    rewrite(copy, change)
    failed, message = failing(corpus, copy)
    assert expected <= set(failed)
    assert "codec" not in failed
    share = float(re.search(r"encoding: ([\d.]+) % of all codes", message)[1])
    assert share < 45  # "all the same frame" keeps one frame, and the spare sub-codes of the others


@pytest.mark.parametrize("name", ["shuffled with their lengths", "offset by 1", "offset by 500", "reversed"])
def test_worthless_codes_are_found_by_ear_too(corpus, copy, name):
    """As if the codec did not repeat itself: any share of equal codes is let pass."""
    rewrite(copy, WORTHLESS[name][0])
    failed, _ = failing(corpus, copy, "verification.min_equal_codes=0")
    assert "encoding" not in failed
    assert {"mel", "contrast"} & set(failed)


def test_one_worthless_row_is_found_among_good_ones(corpus, copy):
    def change(rows: list[dict]) -> None:
        rows[6]["codes"] = np.roll(frames(rows[6]), 1, axis=0).reshape(-1).tolist()

    rewrite(copy, change)
    failed, message = failing(corpus, copy)
    assert failed == ["encoding"]
    assert "in train/00001 row 6" in message
    failed, _ = failing(corpus, copy, "verification.min_equal_codes=0.5")  # it is one in ten, but all of its codes
    assert failed == ["encoding"]


@pytest.mark.parametrize("keys", [("text", "text_given"), ("text",), ("id",), ("speaker",)])
def test_texts_on_other_rows_fail(corpus, copy, keys):
    def change(rows: list[dict]) -> None:
        for number, row in enumerate(rows):
            row["speaker"] = f"s{number}" if "speaker" in keys else row["speaker"]
        exchange(*keys)(rows)

    rewrite(copy, change)
    failed, message = failing(corpus, copy)
    assert failed == ["corpus"]
    assert f"corpus: 0 of {ROWS} rows; train/00000 row 0: {keys[-1]} is " in message
    assert " in the store and " in message


@pytest.mark.parametrize(
    ("key", "value", "failed", "words"),
    [
        ("num_codes", 4, ["lengths", "codes"], "num_codes says 4, there are "),
        ("codes_hash", 7, ["codes"], "the codes are not those that were written"),
        ("seconds", 9.0, ["lengths", "corpus"], "row 1 of train/00001.parquet lasts 9.000 s and has "),
        ("row", 4, ["corpus", "encoding"], "id is 'clip-0005' in the store and 'clip-0004' in the corpus"),
        ("row", 99, ["corpus"], "the corpus has no row 99 in train"),
    ],
)
def test_a_wrong_value_in_one_row_is_found(corpus, copy, key, value, failed, words):
    def change(rows: list[dict]) -> None:
        rows[5][key] = value

    rewrite(copy, change, hashes=False)
    found, message = failing(corpus, copy)
    assert found == failed
    assert words in message


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        ([0, 1024, 5120, 5120], "code 5120 stands where 9216 to 13311 belong"),
        ([0, 1024, 5120], "3 codes are no whole number of frames of 4"),
        ([], "0 codes are no whole number of frames of 4"),
    ],
)
def test_codes_that_cannot_be_decoded_are_named(corpus, copy, codes, words):
    rewrite(copy, lambda rows: rows[2].update(codes=codes))
    failed, message = failing(corpus, copy)
    assert {"lengths", "codes", "encoding"} <= set(failed)
    assert f"train/00000 row 2: {words}" in message
    assert code_problem(np.array(codes), CODEC.spec) == words
    for fitting in ([0, 1024, 5120, 9216], [1023, 5119, 9215, 13311]):
        assert code_problem(np.array(fitting * 2), CODEC.spec) == ""
    assert code_problem(np.array([1024, *fitting[1:]]), CODEC.spec) == "code 1024 stands where 0 to 1023 belong"


def test_a_row_that_begins_later_than_the_others_fails():
    """Fails when only the delay itself is limited: 50 ms are let pass where all rows have them."""

    def passed(*delays: int) -> bool | None:
        return delay_check([proof(0, row, CODES, delay=delay) for row, delay in enumerate(delays)], 0.9).passed

    assert passed(2, 2, 2, 4)
    assert passed(5, 5, 5, 5)
    assert passed(*[2] * 9, 5)
    assert not passed(2, 2, 2, 5)
    assert not passed(7, 7, 7, 7)
    assert passed() is None


def test_another_fingerprint_fails(corpus, copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["codec"]["fingerprint"] = "other weights"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    failed, message = failing(corpus, copy)
    assert failed == ["codec"]
    assert "fingerprint other weights, but this codec has codec2-2400" in message


def test_a_network_codec_with_other_weights_fails(corpus, tmp_path):
    """Weights drawn at random: they repeat themselves, but what they decode sounds like nothing, and both is said."""
    weights = [save_tiny_xcodec2(tmp_path / f"weights-{seed}", seed) for seed in (0, 1)]
    chosen = [[f"codec.checkpoint={folder}", "codec.device=cpu", "dataset.limit=4"] for folder in weights]
    store = tmp_path / "store"
    make(corpus, store, "codec=xcodec2", *chosen[0])
    own, _ = failing(corpus, store, "codec=xcodec2", *chosen[0])
    assert not {"codec", "lengths", "codes", "corpus", "encoding"} & set(own)
    assert "mel" in own
    other, _ = failing(corpus, store, "codec=xcodec2", *chosen[1])
    assert {"codec", "encoding"} <= set(other)


# --- the corpus ------------------------------------------------------------------------------------------------------


def test_without_its_corpus_a_store_is_checked_as_far_as_it_goes(good, copy, tmp_path, capsys):
    found = verify(tmp_path / "gone", copy)
    done = [check["name"] for check in found["checks"] if check["passed"]]
    assert done == ["codec", "lengths", "codes", "level"]
    assert {check["passed"] for check in found["checks"] if check["name"] not in done} == {None}
    assert "The corpus cannot be read (there is no folder at " in found["notes"][0]
    assert f"note: {found['notes'][0]}" in capsys.readouterr().out
    assert "The corpus cannot be read" in (tmp_path / "store-report" / "index.html").read_text(encoding="utf-8")
    rewrite(copy, lambda rows: rows[3].update(codes=[5, 5, 5, 5]))
    failed, message = failing(tmp_path / "gone", copy)
    assert failed == ["lengths", "codes"]
    assert "no row was compared with its recording" in message


def test_a_corpus_that_grew_is_noted_and_one_that_lost_rows_fails(corpus, good, tmp_path):
    grown = Path(shutil.copytree(corpus, tmp_path / "grown"))
    write_audio(grown / "wavs" / "new.wav", speech_like(1, 99))
    with (grown / "metadata.csv").open("a", encoding="utf-8") as file:
        file.write("new|Una frase nuova.\n")
    found = verify(grown, good, f"verification.output={tmp_path}/r")
    assert len(found["notes"]) == 1
    assert found["notes"][0].startswith("The corpus is not as it was when the store was made: ")

    lines = (grown / "metadata.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (grown / "metadata.csv").write_text("".join(lines[:3] + lines[4:]), encoding="utf-8")
    (grown / "wavs" / "clip-0001.wav").unlink()
    with pytest.raises(UserError) as refused:
        verify(grown, good, f"verification.output={tmp_path}/r")
    assert "The corpus is not as it was" in str(refused.value)
    problems = [row["problems"] for row in json.loads((tmp_path / "r" / "verify.json").read_text())["rows"]]
    assert problems[0] == problems[2] == []
    assert "row 1 would be dropped now (missing_audio" in problems[1][0]
    assert problems[3] == ["id is 'clip-0003' in the store and 'clip-0004' in the corpus"]


class Files:
    """A corpus read as a stream, two files of four rows; ``EncodedRow`` s with codes of their own."""

    unit = "file"

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.codes = rng.integers(STARTS, ENDS, (8, 50, 4)).reshape(8, 200).astype(np.uint16)

    def splits(self) -> dict[str, int]:
        return {"train": 2}

    def rows(self, split: str, start: int, stop: int) -> Iterator[tuple[int, Callable[[], EncodedRow]]]:
        for file in range(start, stop):
            for number in range(4):
                yield (
                    number,
                    lambda at=4 * file + number: EncodedRow(f"r{at}", f"Frase {at}.", self.codes[at], "a", "it"),
                )


def test_rows_of_files_and_rows_that_are_codes_already_are_found():
    source = Files()

    proofs = [proof(1, 0, source.codes[4]), proof(1, 3, source.codes[6])]
    assert [(p.row, fetch().id) for p, fetch in find_rows(source, proofs)] == [(0, "r4"), (3, "r7")]
    compare_with_source(proofs, source, CODEC, FiltersConfig())
    assert [p.unlike for p in proofs] == ["", ""]
    assert proofs[0].again.share == 1
    assert proofs[1].again.share < 0.05
    assert proofs[0].source is None
    absent = [proof(1, 0, source.codes[4])]
    absent[0].row = 4
    compare_with_source(absent, source, CODEC, FiltersConfig())
    assert absent[0].unlike == "the corpus has no row 4 in train"
    assert absent[0].again is None


# --- what cannot be proof-read ---------------------------------------------------------------------------------------


def test_no_store_and_an_unfinished_one_name_the_command(corpus, copy, tmp_path):
    with pytest.raises(UserError, match=r"there is no token store at .*none; make it with `python preprocess.py "):
        verify(corpus, tmp_path / "none")
    (copy / "manifest.json").unlink()
    with pytest.raises(UserError) as refused:
        verify(corpus, copy)
    command = f"`python preprocess.py dataset=folder lang=it codec=codec2 store={copy}`"
    assert f"is not finished; finish it with {command}" in str(refused.value)
    assert not (tmp_path / "store-report").exists()


def test_a_report_inside_the_store_is_refused(corpus, good):
    before = contents(good)
    for folder in (good, good / "report"):
        with pytest.raises(UserError, match=r"^verification.output=.* is inside the store; choose a folder outside"):
            verify(corpus, good, f"verification.output={folder}")
    assert contents(good) == before


def test_another_kind_of_codec_is_refused(corpus, good, tmp_path):
    weights = save_tiny_xcodec2(tmp_path / "weights")
    with pytest.raises(UserError, match=r"was made with the codec codec2, not xcodec2; pass codec=codec2"):
        verify(corpus, good, "codec=xcodec2", f"codec.checkpoint={weights}", "codec.device=cpu")


def test_a_store_in_another_place_is_proof_read(corpus):
    pytest.importorskip("upath")
    store = "memory://verify/store"
    make(corpus, store)
    assert verify(corpus, store, "verification.rows=4")["passed"]
    from llasa.paths import location

    assert "✓ Passed" in (location("memory://verify/store-report") / "index.html").read_text(encoding="utf-8")


# --- the recogniser --------------------------------------------------------------------------------------------------


class Whisper:
    """Stands in for faster_whisper.WhisperModel: knows each clip by its length, and makes one mistake in each."""

    supported_languages = ("en", "it")
    asked: list[dict[str, Any]]
    texts: dict[int, str]

    def __init__(self, model: str, **options: Any) -> None:
        if model == "unknown":
            raise ValueError("Invalid model size 'unknown'\nexpected one of: …")
        Whisper.asked = []

    def transcribe(self, waveform: np.ndarray, **options: Any) -> tuple[list[Any], None]:
        assert waveform.dtype == np.float32
        Whisper.asked.append(options)
        nearest = min(self.texts, key=lambda samples: abs(samples - len(waveform)))
        return [types.SimpleNamespace(text=f" {self.texts[nearest].upper()} "), types.SimpleNamespace(text="x")], None


@pytest.fixture
def whisper(monkeypatch, report) -> type[Whisper]:
    module = types.ModuleType("faster_whisper")
    module.WhisperModel = Whisper
    monkeypatch.setitem(sys.modules, "faster_whisper", module)
    Whisper.texts = {round(16_000 * row["seconds"]): row["text"] for row in report["rows"]}
    assert len(Whisper.texts) == ROWS
    return Whisper


def test_a_recogniser_hears_the_texts(corpus, copy, whisper, tmp_path):
    found = verify(corpus, copy, "asr=base")
    (words,) = [check for check in found["checks"] if check["name"] == "words"]
    assert words["passed"] is True
    assert words["found"].startswith(f"{ROWS} of {ROWS} rows; character error rate ")
    assert words["found"].endswith(f"; {ROWS} in the sources")
    assert len(whisper.asked) == 2 * ROWS
    assert {options["language"] for options in whisper.asked} == {"it"}
    for row in found["rows"]:
        assert row["heard"] == row["source_heard"] == f"{row['text'].upper()} x"
        letters = len(recognition.plain_words(row["text"], "it"))
        assert row["cer"] == row["source_cer"] == pytest.approx(2 / letters, abs=1e-4)  # a space and the x
    page = (tmp_path / "store-report" / "index.html").read_text(encoding="utf-8")
    assert "heard in the decoded" in page
    assert "CER source" in page


def test_a_recogniser_hears_what_nothing_else_can(corpus, copy, whisper, tmp_path):
    """The corpus itself has its texts on the wrong recordings, so the store agrees with it in everything."""
    texts = list(whisper.texts.values())
    whisper.texts = dict(zip(whisper.texts, texts[1:] + texts[:1], strict=True))
    assert verify(corpus, copy)["passed"]
    failed, message = failing(corpus, copy, "asr=base")
    assert failed == ["words"]
    assert f"words: 0 of {ROWS} rows; character error rate " in message


def test_a_recogniser_that_hears_nothing_fails(corpus, copy, whisper, monkeypatch):
    monkeypatch.setattr(whisper, "transcribe", lambda *_, **__: ([], None))
    failed, message = failing(corpus, copy, "asr=base")
    assert failed == ["words"]
    assert "character error rate 100 %" in message


def test_asr_says_what_is_missing(corpus, good, monkeypatch, whisper, tmp_path):
    with pytest.raises(UserError, match=r"asr=unknown cannot be loaded \(Invalid model size 'unknown'\); pass asr="):
        verify(corpus, good, "asr=unknown")
    with pytest.raises(UserError, match=r"asr=.*/nothing is no folder with a model.bin; pass asr=FOLDER"):
        verify(corpus, good, f"asr={tmp_path}/nothing")
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(UserError, match=r"asr=base needs faster-whisper.*; pip install -r requirements/eval.txt"):
        verify(corpus, good, "asr=base")


def naive_edit_distance(a: str, b: str) -> int:
    costs = {(i, 0): i for i in range(len(a) + 1)} | {(0, j): j for j in range(len(b) + 1)}
    for i, x in enumerate(a, start=1):
        for j, y in enumerate(b, start=1):
            costs[i, j] = min(costs[i - 1, j] + 1, costs[i, j - 1] + 1, costs[i - 1, j - 1] + (x != y))
    return costs[len(a), len(b)]


def test_edit_distance_is_what_a_table_gives():
    rng = np.random.default_rng(0)
    pairs = [("", ""), ("", "abc"), ("abc", ""), ("gatto", "gatti"), ("abc", "xabcx"), ("è", "e")]
    pairs += [tuple("".join(rng.choice(list("abc "), rng.integers(0, 30))) for _ in range(2)) for _ in range(200)]
    for a, b in pairs:
        assert recognition.edit_distance(a, b) == naive_edit_distance(a, b), (a, b)
    assert len({recognition.edit_distance(a, b) for a, b in pairs}) > 10


def test_words_are_compared_as_they_are_spoken():
    assert recognition.plain_words("«L'ora, perché?» — 3!", "it") == "l ora perché tre"
    assert recognition.plain_words("Ho 3 gatti_neri; è  BELLO!", "it") == "ho tre gatti neri è bello"
    assert recognition.character_error_rate("Ho tre gatti.", "ho 3 gatti", "it") == 0
    assert recognition.character_error_rate("abcd", "abxd", "it") == 0.25
    assert recognition.character_error_rate("ab", "ab cdef", "it") == 2.5
    assert recognition.character_error_rate("", "", "it") == 0


# --- measures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sample_rate", [8_000, 16_000])
def test_mel_distance_is_nothing_to_itself_and_finds_a_delay(sample_rate):
    sound = speech_like(1.0, 1, sample_rate)
    late = np.concatenate([np.zeros(sample_rate // 20, np.float32), sound])[: len(sound)]  # 50 ms
    mel, late_mel = acoustics.log_mel(sound, sample_rate), acoustics.log_mel(0.3 * late, sample_rate)
    assert mel.shape == (101, acoustics.BANDS)
    assert (mel.max(), mel.min() >= -acoustics.RANGE_DB) == (0, True)
    delays = range(-10, 11)
    assert acoustics.mel_distances(mel, mel, delays).argmin() == 10
    assert acoustics.mel_distances(mel, mel, delays).min() == 0
    found = acoustics.mel_distances(late_mel, mel, delays)
    assert delays[int(found.argmin())] == 5
    assert found.min() < 0.5
    assert found[10] > 4
    assert acoustics.mel_distances(mel, late_mel, delays).argmin() == 5
    other = acoustics.log_mel(speech_like(1.0, 2, sample_rate), sample_rate)
    assert acoustics.mel_distances(other, mel, delays).min() > 4
    assert (
        acoustics.envelope_correlation(late_mel, mel, 5) > 0.99 > 0.9 > acoustics.envelope_correlation(late_mel, mel, 0)
    )


def test_only_delays_with_half_of_the_frames_count():
    mel = acoustics.log_mel(speech_like(0.3, 1, 8_000), 8_000)
    found = acoustics.mel_distances(mel, mel, range(-40, 41))
    assert np.isfinite(found).sum() == 2 * (len(mel) - len(mel) // 2) + 1
    assert found.argmin() == 40
    assert acoustics.envelope_correlation(mel, np.zeros_like(mel), 0) == 0
    assert acoustics.envelope_correlation(mel[:1], mel, 0) == 0


def test_a_tone_is_in_its_band_and_a_level_is_in_decibels():
    time = np.arange(8_000) / 8_000
    for hertz in (200, 1_000, 3_000):
        mel = acoustics.log_mel(np.sin(2 * np.pi * hertz * time).astype(np.float32), 8_000)
        mels = 2595 * np.log10(1 + np.array([acoustics.LOWEST_HZ, hertz, 4_000]) / 700)
        band = (mels[1] - mels[0]) / (mels[2] - mels[0]) * (acoustics.BANDS + 1) - 1
        assert abs(mel[50].argmax() - band) < 1
    assert acoustics.level(np.ones(100, np.float32)) == pytest.approx(0, abs=1e-3)
    assert acoustics.level(0.1 * np.ones(100, np.float32)) == pytest.approx(-20, abs=1e-3)
    assert acoustics.level(np.zeros(100, np.float32)) == acoustics.level(np.zeros(0, np.float32)) == -100


# --- the whole store -------------------------------------------------------------------------------------------------


def test_the_census_counts_what_a_slow_loop_counts(good, report):
    store = TokenStore(good)
    census = take_census(store, CODEC)
    rows = stored_rows(good)
    seconds = np.array([row["seconds"] for row in rows])
    characters = np.array([len(row["text"]) for row in rows])
    assert census.rows == len(rows) == ROWS
    assert list(census.shard_rows.values()) == [4, 4, 2]
    for bins, values in ((census.durations, seconds), (census.speeds, characters / seconds)):
        expected = [0] * len(bins.counts)
        for value in values:
            expected[int(value / bins.width)] += 1
        assert bins.counts.tolist() == expected
    assert census.text_correlation == pytest.approx(np.corrcoef(seconds, characters)[0, 1])
    part = census.parts["train", "it"]
    assert (part.rows, part.characters) == (ROWS, characters.sum())
    assert part.codes == sum(row["num_codes"] for row in rows)
    assert part.seconds == pytest.approx(seconds.sum())
    assert (census.wrong_lengths, census.first_wrong_length) == (0, "")
    assert report["census"] == json.loads(json.dumps(census.to_dict()))


def test_a_histogram_keeps_what_lies_beyond_and_its_quantiles():
    histogram = Histogram.of(0.5, 10)
    histogram.add(np.array([0.0, 0.49, 0.5, 3.2, 99.0]))
    assert np.flatnonzero(histogram.counts).tolist() == [0, 1, 6, 19]
    assert histogram.counts.sum() == 5
    assert histogram.to_dict()["counts"][:2] == [2, 1]
    values = np.random.default_rng(0).uniform(0, 10, 10_000)
    histogram = Histogram.of(0.1, 10)
    histogram.add(values)
    for share in (0.05, 0.5, 0.95):
        assert histogram.quantile(share) == pytest.approx(np.quantile(values, share), abs=0.11)
    assert Histogram.of(1, 5).to_dict()["counts"] == []
    assert Census().text_correlation is None


class Splits:
    """As much of a store as sampling asks for."""

    def __init__(self, splits: dict[str, list[int]]) -> None:
        self.splits = list(splits)
        self.rows = {Path(f"{name}/{n}"): rows for name, shards in splits.items() for n, rows in enumerate(shards)}

    def files(self, split: str) -> list[Path]:
        return [file for file in self.rows if file.parent.name == split]

    def sample(self, count: int, seed: int = 0) -> list[tuple[str, Path, int]]:
        return sample_rows(Census(shard_rows=self.rows), self, count, seed)


def test_a_sample_looks_into_every_split_and_every_stretch():
    store = Splits({"train": [1000, 0, 1000, 1000, 500], "test": [3], "validation": [0]})
    sample = store.sample(35)
    assert [split for split, *_ in sample].count("test") == 1
    assert [split for split, *_ in sample].count("train") == 35
    starts = dict(zip(store.files("train"), [0, 1000, 1000, 2000, 3000], strict=True))
    numbers = [starts[file] + index for split, file, index in sample if split == "train"]
    assert [number // 100 for number in numbers] == list(range(35))
    assert all(0 <= index < store.rows[file] for _, file, index in sample)
    assert len({number % 100 for number in numbers}) > 15
    assert store.sample(35) == sample != store.sample(35, seed=1)
    assert len(set(Splits({"train": [2, 0, 3]}).sample(128))) == 5


def test_the_asked_rows_are_read_from_their_row_groups(good, tmp_path):
    table = pa.concat_tables([pq.read_table(file) for file in sorted((good / "train").glob("*.parquet"))])
    pq.write_table(table, tmp_path / "00000.parquet", row_group_size=3)
    proofs = read_proofs("train", tmp_path / "00000.parquet", [0, 2, 3, 9], CODEC.spec)
    assert [proof.id for proof in proofs] == [f"clip-{n:04d}" for n in (0, 2, 3, 9)]
    for proof in proofs:
        assert proof.codes.tolist() == table["codes"][proof.index].as_py()
        assert (proof.broken, proof.codes.dtype) == ("", np.uint16)


# --- the page --------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags with their attributes, and text by tag; refuses what is not closed in order."""

    VOID = ("meta", "link", "br", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1], data.strip()))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def page(good, report) -> Page:
    return Page((good.with_name("good-report") / "index.html").read_text(encoding="utf-8"))


def test_the_page_plays_each_row_and_its_source(page, report, corpus):
    players = page.all("audio")
    assert len(players) == 2 * ROWS
    for number, row in enumerate(report["rows"]):
        source, decoded = players[2 * number : 2 * number + 2]
        assert source["aria-label"] == f"Row {number + 1}, source"
        assert decoded["aria-label"] == f"Row {number + 1}, decoded"
        played = []
        for player in (source, decoded):
            kind, _, content = player["src"].partition(",")
            assert kind == "data:audio/wav;base64"
            samples, rate = soundfile.read(io.BytesIO(base64.b64decode(content)))
            assert rate == 8_000
            assert np.sqrt((samples**2).mean()) > 0.01
            assert float(player["data-seconds"]) == pytest.approx(len(samples) / rate, abs=1e-4)
            played.append(samples)
        assert len(played[0]) / 8_000 == pytest.approx(row["seconds"], abs=1e-4)
        assert len(played[1]) / 8_000 == row["num_codes"] / 200
        recorded = read_audio(corpus / "wavs" / f"{row['id']}.wav", 8_000)
        np.testing.assert_allclose(played[0], recorded, atol=1e-4)
        assert np.abs(played[1][: len(recorded)] - recorded).max() > 0.1


def test_the_page_needs_nothing_else_and_escapes_texts(page, report):
    for _, attributes in page.tags:
        for key in ("src", "href"):
            if key in attributes:
                assert attributes[key].startswith(("data:", "#")), attributes[key][:80]
    assert len(page.all("script")) == 1
    assert any("<script>alert(" in text for tag, text in page.texts if tag == "small")
    assert "alert" not in "".join(text for tag, text in page.texts if tag == "script")
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(identifiers)) == len(identifiers)
    targets = {attributes["href"][1:] for attributes in page.all("a")}
    targets |= {attributes["data-clip"] for attributes in page.all("tr") if "data-clip" in attributes}
    assert targets == {f"row-{n}" for n in range(1, ROWS + 1)} <= set(identifiers)
    shown = [text for _, text in page.texts]
    for row in report["rows"]:
        assert shown.count(row["text"]) == 2  # in the table and over the players
    for check in report["checks"]:
        assert check["question"] in shown
        assert f"check-{check['name']}" in identifiers


def test_the_table_sorts_by_buttons(page, report):
    heads = [text for tag, text in page.texts if tag == "button"]
    assert heads[:5] == ["#", "Row", "Text", "Seconds", "Char./s"]  # no speaker is named, so no column
    cells = [attributes for attributes in page.all("td") if "data-value" in attributes]
    assert len(cells) == ROWS * len(heads)
    column = heads.index("Mel, dB")
    values = [float(cell["data-value"]) for cell in cells[column :: len(heads)]]
    assert values == [row["mel_distance"] for row in report["rows"]]
    assert all(attributes["type"] == "button" for attributes in page.all("button") if "class" in attributes)


def test_a_histograms_bars_hold_every_row():
    counts = np.random.default_rng(0).integers(0, 50, 117).tolist()
    data = {"bin": 0.1, "counts": [0, 0, 0, *counts], "p5": 1.0, "p50": 6.0, "p95": 11.0}
    panel = Page(histogram("Duration", data, "s", "seconds"))
    titles = [text for tag, text in panel.texts if tag == "title"]
    assert 10 < len(titles) == len(panel.all("rect")) <= 40
    assert sum(int(re.search(r": (\d+) rows", title)[1]) for title in titles) == sum(counts)
    heights = [float(bar["height"]) for bar in panel.all("rect")]
    assert max(heights) == 140
    for empty in ([], [0, 0], [3]):
        assert len(Page(histogram("x", data | {"counts": empty, "p50": 0.05}, "s", "seconds")).all("rect")) == 1


def test_a_picture_is_a_png_of_its_shades(page):
    shades = np.arange(256, dtype=np.uint8).reshape(4, 64)
    height, width, pixels, colours = read_png(png_bytes(shades))
    assert (height, width) == (4, 64)
    np.testing.assert_array_equal(pixels, shades)
    assert [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in (colours[0], colours[-1])] == [PALETTE[0], PALETTE[-1]]
    pictures = [image["src"].partition("base64,")[2] for image in page.all("img")]
    assert len(pictures) == 2 * ROWS
    for picture in pictures:
        height, width, pixels, _ = read_png(base64.b64decode(picture))
        assert height == 128
        assert 150 < width <= 480
        assert pixels.max() == 255
        assert len(np.unique(pixels)) > 20


def read_png(content: bytes) -> tuple[int, int, np.ndarray, np.ndarray]:
    """Height, width, indices and palette."""
    image = Image.open(io.BytesIO(content))
    assert (image.format, image.mode) == ("PNG", "P")
    return image.height, image.width, np.array(image), np.array(image.getpalette()).reshape(256, 3)


def test_shares_are_not_rounded_up_to_all():
    assert [percent(share) for share in (1, 0.99999, 0.5, 0.0004)] == ["100 %", "99.9 %", "50 %", "0 %"]
