"""`preprocess.py` from corpus to store: what is kept, what is refused and why, and runs that stop and go on."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from llasa.audio import read_audio
from llasa.codec.codec2 import Codec2
from llasa.corpus.run import preprocess
from llasa.corpus.store import TokenStore
from llasa.entry import compose_config
from llasa.errors import UserError
from llasa.text import spoken_form
from tests.codec.tiny_xcodec2 import save_tiny_xcodec2
from tests.corpus.recordings import (
    audio_bytes,
    speech_like,
    write_audio,
    write_folder_corpus,
    write_hub_corpus,
    write_parquet_corpus,
)
from tests.corpus.stores import contents, stored_rows

ROOT = Path(__file__).parents[2]
ANY_RATE = "filters.characters_per_second=null"
"""The recordings here have no words, so their texts fit no speaking rate."""


def make_store(corpus: Path, store: Path, *overrides: str, dataset: str = "folder") -> dict:
    """In this process; the manifest."""
    common = [f"dataset={dataset}", f"dataset.path={corpus}", "lang=it", "codec=codec2", f"store={store}", ANY_RATE]
    return preprocess(compose_config("preprocess", [*common, *overrides]))


def start(cwd: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "preprocess.py"), "codec=codec2", ANY_RATE, *arguments]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(cwd: Path, *arguments: str) -> tuple[int, str, str]:
    """By command, as people do: exit status, output, errors."""
    process = start(cwd, *arguments)
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


def identities(root: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of every file: a file that was written again has another."""
    files = {str(path.relative_to(root)): path.stat() for path in root.rglob("*") if path.is_file()}
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in files.items()}


def rejects(root: Path) -> list[dict]:
    return [json.loads(line) for line in (root / "rejects.jsonl").read_text(encoding="utf-8").splitlines()]


# --- what a store holds ----------------------------------------------------------------------------------------------

STEREO = np.stack([speech_like(0.8, 21, 44_100), speech_like(0.8, 22, 44_100)], axis=1)
NOT_FINITE = np.array([0.1, np.nan] * 8_000, dtype=np.float32)

MIXED: list[tuple[str, bytes | None, str, str | None]] = [
    # name, content, text, why it is refused
    ("a.wav", audio_bytes(speech_like(0.7, 1), 16_000), "Ho 3 gatti.", None),
    ("b.wav", b"", "Vuoto.", "empty_audio"),
    ("c.wav", np.random.default_rng(0).bytes(4_000), "Rumore.", "unreadable_audio"),
    ("d.mp3", audio_bytes(STEREO, 44_100, "MP3"), "Buongiorno a tutti!", None),
    ("e.wav", audio_bytes(speech_like(0.7, 2), 16_000), "", "empty_text"),
    ("f.wav", audio_bytes(speech_like(0.7, 3), 16_000), "… 😀 !", "empty_text"),
    ("g.wav", None, "Manca.", "missing_audio"),
    ("h.wav", audio_bytes(speech_like(0.29, 4), 16_000), "Breve.", "too_short"),
    ("i.flac", audio_bytes(speech_like(0.3, 5, 8_000), 8_000, "FLAC"), "Appena lunga.", None),
    ("j.wav", audio_bytes(speech_like(2.1, 6), 16_000), "Lunga.", "too_long"),
    ("k.ogg", audio_bytes(speech_like(2.0, 7), 16_000, "OGG"), "Quasi “troppo” lunga…", None),
    ("l.wav", audio_bytes(np.zeros(16_000), 16_000), "Silenzio.", "silent"),
    ("m.wav", audio_bytes(NOT_FINITE, 16_000, "WAV", "FLOAT"), "Rotto.", "unreadable_audio"),
    ("n.wav", audio_bytes(np.zeros(0), 16_000), "Senza campioni.", "empty_audio"),
    ("o.wav", audio_bytes(speech_like(0.7, 8), 22_050), "Fine.", None),
]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    lines = ["file_name,text,speaker\n"]
    for name, content, text, _ in MIXED:
        if content is not None:
            (folder / name).write_bytes(content)
        lines.append(f'{name},"{text}",anna\n')
    lines.append("p.wav,una virgola, di troppo,anna\n")
    (folder / "metadata.csv").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def mixed_store(mixed, tmp_path_factory) -> Path:
    store = tmp_path_factory.mktemp("stores") / "mixed"
    make_store(mixed, store, "shard_rows=4", "filters.max_seconds=2")
    return store


def test_kept_rows_are_what_a_slow_loop_makes(mixed, mixed_store):
    codec = Codec2()
    expected = [(name, text) for name, _, text, refused in MIXED if refused is None]
    rows = stored_rows(mixed_store)
    assert len(rows) == len(expected) == 5
    for row, (name, text) in zip(rows, expected, strict=True):
        waveform = read_audio(mixed / name, 8_000)
        assert row["codes"] == codec.encode([waveform])[0].tolist()
        assert row["num_codes"] == len(row["codes"]) == codec.num_codes(len(waveform)) > 50
        assert row["seconds"] == pytest.approx(len(waveform) / 8_000)
        assert (row["id"], row["speaker"], row["language"]) == (Path(name).stem, "anna", "it")
        assert (row["text"], row["text_given"]) == (spoken_form(text, "it"), text)
    assert rows[0]["text"] == "Ho tre gatti."
    assert len({tuple(row["codes"]) for row in rows}) == 5


def test_every_dropped_row_is_named_with_its_reason(mixed_store):
    found = [(line["split"], line["row"], line["reason"]) for line in rejects(mixed_store)]
    expected = [("train", str(index), refused) for index, (*_, refused) in enumerate(MIXED) if refused]
    assert found == [*expected, ("train", str(len(MIXED)), "malformed_row")]
    assert all(line["detail"] for line in rejects(mixed_store))
    assert {line["reason"] for line in rejects(mixed_store)} == {
        "empty_audio", "unreadable_audio", "missing_audio", "empty_text", "too_short", "too_long", "silent",
        "malformed_row",
    }  # fmt: skip


def test_the_manifest_says_what_is_there(mixed_store):
    manifest = json.loads((mixed_store / "manifest.json").read_text(encoding="utf-8"))
    rows = stored_rows(mixed_store)
    counts = {
        "rows": len(rows),
        "codes": sum(len(row["codes"]) for row in rows),
        "seconds": pytest.approx(sum(row["seconds"] for row in rows), abs=0.01),
    }
    assert manifest["splits"] == {"train": {"shards": 4, **counts}}
    assert {key: manifest[key] for key in counts} == counts
    assert manifest["dropped"] == {
        "empty_audio": 2, "empty_text": 2, "malformed_row": 1, "missing_audio": 1, "silent": 1, "too_long": 1,
        "too_short": 1, "unreadable_audio": 2,
    }  # fmt: skip
    assert manifest["codec"] == json.loads(json.dumps(Codec2().spec.to_dict()))
    assert manifest["source"]["name"] == "folder"
    assert manifest["languages"] == ["it"]
    assert manifest["provenance"].keys() >= {"commit", "python", "packages"}
    assert sorted(contents(mixed_store)) == [
        "manifest.json", "plan.json", "rejects.jsonl", *(f"train/0000{i}.parquet" for i in range(4)),
    ]  # fmt: skip


@pytest.mark.parametrize("threads", [1, 4])
def test_the_same_bytes_with_any_number_of_threads(mixed, mixed_store, threads, tmp_path):
    overrides = ["shard_rows=4", "filters.max_seconds=2", f"decode_threads={threads}"]
    make_store(mixed, tmp_path / "store", *overrides)
    assert contents(tmp_path / "store") == contents(mixed_store)


@pytest.mark.parametrize("shard_rows", [1, 5, 16, 1000])
def test_shard_rows_is_the_unit_of_work_and_changes_no_row(mixed, mixed_store, shard_rows, tmp_path):
    manifest = make_store(mixed, tmp_path / "store", f"shard_rows={shard_rows}", "filters.max_seconds=2")
    assert manifest["splits"]["train"]["shards"] == -(-(len(MIXED) + 1) // shard_rows)
    assert stored_rows(tmp_path / "store") == stored_rows(mixed_store)
    assert rejects(tmp_path / "store") == rejects(mixed_store)
    assert len(TokenStore(tmp_path / "store").rows("train")) == 5  # with shard_rows=1, most shards are empty


def test_order_and_codes_hold_beyond_the_read_ahead_and_over_pieces(tmp_path, monkeypatch):
    rows = 80
    monkeypatch.setattr("llasa.corpus.encode.READ_AHEAD", 16)
    corpus = write_folder_corpus(tmp_path / "corpus", rows, seed=5, seconds=0.3, sample_rate=8_000)
    make_store(corpus, tmp_path / "one piece", "decode_threads=1")
    monkeypatch.setattr("llasa.corpus.encode.PIECE_SECONDS", 3.0)
    for threads in (1, 2):
        store = tmp_path / f"pieces, {threads} threads"
        make_store(corpus, store, f"decode_threads={threads}")
        assert contents(store) == contents(tmp_path / "one piece")
    stored = stored_rows(tmp_path / "one piece")
    assert [row["id"] for row in stored] == [f"clip-{index:04d}" for index in range(rows)]
    assert [row["num_codes"] for row in stored] == [
        Codec2().num_codes(round(0.3 * (1 + index % 10 / 10) * 8_000)) for index in range(rows)
    ]


def test_a_manifest_corpus_in_several_languages(tmp_path):
    clip = write_audio(tmp_path / "clip.flac", speech_like(0.5, 1))
    rows = [
        {"audio": "clip.flac", "text": "3", "id": "one"},
        {"audio": str(clip), "text": "3", "id": "two", "language": "de", "speaker": "eva", "duration": 0.5},
    ]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = make_store(tmp_path / "corpus.jsonl", tmp_path / "store", "filters.duplicates=off", dataset="manifest")
    assert manifest["languages"] == ["de", "it"]
    one, two = stored_rows(tmp_path / "store")
    assert (one["id"], one["text"], one["language"], one["speaker"]) == ("one", "tre", "it", "")
    assert (two["id"], two["text"], two["language"], two["speaker"]) == ("two", "drei", "de", "eva")
    assert one["codes"] == two["codes"]


def test_a_hub_corpus_with_its_splits(tmp_path):
    corpus = write_hub_corpus(tmp_path / "hub", "cml_tts", {"train": 5, "dev": 2, "test": 3}, seed=1)
    manifest = make_store(corpus, tmp_path / "store", "shard_rows=2", "decode_threads=4", dataset="cml_tts")
    assert {split: facts["rows"] for split, facts in manifest["splits"].items()} == {
        "train": 5, "validation": 2, "test": 3,
    }  # fmt: skip
    for split, count in (("train", 5), ("validation", 2), ("test", 3)):
        rows = stored_rows(tmp_path / "store", split)
        assert [(row["id"], row["speaker"]) for row in rows] == [(f"{split}-{i}", str(i % 2)) for i in range(count)]
        assert [row["num_codes"] for row in rows] == [4 * round(50 * (0.5 + i / 10)) for i in range(count)]


def test_refusals_of_content_in_memory_are_the_same_in_every_run(tmp_path):
    good = audio_bytes(speech_like(0.5, 1), 16_000)
    unusable = [np.random.default_rng(seed).bytes(3_000) for seed in range(5)] + [good[:20]]
    rows = [{"audio": {"bytes": content, "path": None}, "text": "Ciao."} for content in [good, *unusable]]
    write_parquet_corpus(tmp_path / "hub", {"train": rows})
    stores = []
    for name in ("one", "two"):
        make_store(tmp_path / "hub", tmp_path / name, dataset="hub")
        stores.append(contents(tmp_path / name))
    assert [line["reason"] for line in rejects(tmp_path / "one")] == ["unreadable_audio"] * 6
    assert stores[0] == stores[1]


def test_recordings_that_vanish_at_the_lower_rate_are_refused_even_without_a_least_length(tmp_path):
    write_folder_corpus(tmp_path / "corpus", 2, seed=1)
    write_audio(tmp_path / "corpus" / "wavs" / "clip-0001.wav", np.ones(2), 96_000)
    make_store(tmp_path / "corpus", tmp_path / "store", "filters.min_seconds=0")
    assert [(line["row"], line["reason"]) for line in rejects(tmp_path / "store")] == [("1", "empty_audio")]


def test_a_store_tells_its_precision_and_how_far_it_is_from_exact(tmp_path):
    corpus = write_folder_corpus(tmp_path / "corpus", 6, seed=2, seconds=1.0)
    checkpoint = save_tiny_xcodec2(tmp_path / "xcodec2")

    def make(precision: str, store: str) -> dict:
        codec = [f"codec.checkpoint={checkpoint}", "codec.device=cpu", f"codec.precision={precision}"]
        return make_store(corpus, tmp_path / store, "codec=xcodec2", *codec)

    coarse, exact = make("bf16", "coarse"), make("fp32", "exact")
    assert exact["provenance"]["encoding"] == {"precision": "fp32"}
    told = coarse["provenance"]["encoding"]
    assert told["precision"] == "bf16"
    pairs = zip(stored_rows(tmp_path / "coarse"), stored_rows(tmp_path / "exact"), strict=True)
    equal = np.concatenate([np.equal(one["codes"], other["codes"]) for one, other in pairs])
    assert told["agreement"]["clips"] == 6
    assert told["agreement"]["equal_to_fp32"] == pytest.approx(equal.mean())
    assert 0.5 < equal.mean() < 1
    assert told["agreement"]["equal_in_another_order"] == 1.0
    assert coarse["codec"] == exact["codec"]
    with pytest.raises(UserError, match=r"other settings: codec\.precision \(bf16 there, fp32 now\)"):
        make("fp32", "coarse")


# --- again, and on after an end --------------------------------------------------------------------------------------


@pytest.fixture
def finished(mixed_store, tmp_path) -> Path:
    return shutil.copytree(mixed_store, tmp_path / "store")


AGAIN = ("shard_rows=4", "filters.max_seconds=2")


def test_a_second_run_does_nothing(mixed, finished, capsys):
    before, files = contents(finished), identities(finished)
    capsys.readouterr()
    manifest = make_store(mixed, finished, *AGAIN)
    assert "the store is complete, nothing to do" in capsys.readouterr().out
    assert manifest == json.loads(before["manifest.json"])
    assert contents(finished) == before
    assert identities(finished) == files


@pytest.mark.parametrize("damage", ["deleted", "truncated", "emptied"])
def test_a_lost_shard_is_made_again_and_no_other(mixed, finished, damage):
    before, files = contents(finished), identities(finished)
    shard = finished / "train" / "00002.parquet"
    if damage == "deleted":
        shard.unlink()
    else:
        shard.write_bytes(before["train/00002.parquet"][: 100 if damage == "truncated" else 0])
    make_store(mixed, finished, *AGAIN)
    assert contents(finished) == before
    shards = [f"train/0000{i}.parquet" for i in (0, 1, 3)]
    assert {name: identities(finished)[name] for name in shards} == {name: files[name] for name in shards}


@pytest.mark.parametrize("lost", [["manifest.json"], ["manifest.json", "rejects.jsonl"]])
def test_a_lost_manifest_is_written_again_from_the_shards(mixed, finished, lost):
    before, files = contents(finished), identities(finished)
    for name in lost:
        (finished / name).unlink()
    make_store(mixed, finished, *AGAIN)
    assert contents(finished) == before
    shards = [name for name in files if name.endswith(".parquet")]
    assert {name: identities(finished)[name] for name in shards} == {name: files[name] for name in shards}


def test_files_half_written_by_a_killed_run_are_replaced(mixed, finished):
    before = contents(finished)
    (finished / "manifest.json").unlink()
    (finished / "rejects.jsonl").unlink()
    (finished / "train" / "00003.parquet").rename(finished / "train" / ".00003.parquet.0a1b2c3d4e5f.tmp")
    (finished / "train" / ".00003.parquet.0a1b2c3d4e5f.tmp").write_bytes(before["train/00003.parquet"][:500])
    (finished / ".rejects.jsonl.0a1b2c3d4e5f.tmp").write_bytes(b'{"split')
    make_store(mixed, finished, *AGAIN)
    assert contents(finished) == before


def test_a_store_that_lost_a_shard_is_unfinished_until_it_is_made_again(mixed, finished):
    shard = finished / "train" / "00001.parquet"
    shard.unlink()
    shard.mkdir()  # nothing can be written there, so the run fails
    with pytest.raises(OSError, match=r"00001\.parquet"):
        make_store(mixed, finished, *AGAIN)
    with pytest.raises(UserError, match="is not finished"):
        TokenStore(finished)


@pytest.fixture(scope="module")
def long_corpus(tmp_path_factory) -> Path:
    """48 rows of 8 s, a few of them bad and some of them twice: a second of work for Codec2."""
    folder = tmp_path_factory.mktemp("long")
    for index in range(45):
        write_audio(folder / f"{index}.wav", np.roll(speech_like(8.0, index % 4, 8_000), index * 100), 8_000)
    rows = [{"audio": f"{i % 45}.wav", "text": "" if i % 11 == 5 else f"Riga {i}.", "id": f"r{i}"} for i in range(48)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "corpus.jsonl"


@pytest.fixture(scope="module")
def uninterrupted(long_corpus, tmp_path_factory) -> dict[str, bytes]:
    store = tmp_path_factory.mktemp("stores") / "long"
    make_store(long_corpus, store, "shard_rows=4", dataset="manifest")
    return contents(store)


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_goes_on_to_the_same_bytes(long_corpus, uninterrupted, stop, tmp_path):
    store = tmp_path / "store"
    arguments = ("dataset=manifest", f"dataset.path={long_corpus}", "lang=it", "shard_rows=4", "store=store")
    process = start(tmp_path, *arguments)
    deadline = time.monotonic() + 60
    while not (store / "train" / "00001.parquet").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(stop)
    _, errors = process.communicate(timeout=60)
    if stop == signal.SIGINT:
        assert process.returncode == 130
        assert errors.splitlines()[-1] == "interrupted"
        assert "Traceback" not in errors
    else:
        assert process.returncode == -signal.SIGKILL
    # It was in the middle: some shards are there, whole, and nothing says that the store is finished.
    made = {name: content for name, content in contents(store).items() if name.endswith(".parquet")}
    shards = [name for name in uninterrupted if name.endswith(".parquet")]
    assert 2 <= len(made) < len(shards) == 12
    assert made == {name: uninterrupted[name] for name in made}
    assert not (store / "manifest.json").exists()
    with pytest.raises(UserError, match=r"is not finished; finish it with `python preprocess.py"):
        TokenStore(store)
    files = identities(store)
    assert make_store(long_corpus, store, "shard_rows=4", dataset="manifest")["rows"] == 41
    assert contents(store) == uninterrupted
    assert {name: identities(store)[name] for name in made} == {name: files[name] for name in made}
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


# --- by command ------------------------------------------------------------------------------------------------------


def test_the_command_makes_a_store_and_then_nothing(tmp_path):
    corpus = write_folder_corpus(tmp_path / "voci, [n. 1] = è", 5, seed=3)
    arguments = ("dataset=folder", f"dataset.path={corpus}", "lang=it", "store=my store", "shard_rows=2")
    cwd = tmp_path / "elsewhere"
    cwd.mkdir()
    status, output, errors = run(cwd, *arguments)
    assert (status, errors) == (0, "")
    assert output.startswith("my store: 5 rows, 3.6 s, ")
    assert "; dropped: none\n" in output
    # The store is all it leaves: no log, no folder of Hydra's.
    assert [path.name for path in cwd.iterdir()] == ["my store"]
    before, files = contents(cwd / "my store"), identities(cwd / "my store")
    assert run(cwd, *arguments) == (0, "the store is complete, nothing to do\n" + output, "")
    assert contents(cwd / "my store") == before
    assert identities(cwd / "my store") == files
    # What the command makes is what the function makes.
    make_store(corpus, tmp_path / "other", "shard_rows=2")
    assert contents(tmp_path / "other") == before


def test_espeak_needs_nothing_but_the_command(tmp_path):
    arguments = ("dataset=espeak", "lang=de", "dataset.limit=8", "dataset.validation=1", "dataset.test=2")
    status, output, errors = run(tmp_path, *arguments, "store=store")
    assert (status, errors) == (0, "")
    assert "8 rows" in output
    store = TokenStore(tmp_path / "store")
    assert store.codec == Codec2().spec
    assert store.manifest["languages"] == ["de"]
    assert {split: len(stored_rows(tmp_path / "store", split)) for split in store.splits} == {
        "train": 5, "validation": 1, "test": 2,
    }  # fmt: skip
    for row in stored_rows(tmp_path / "store"):
        assert row["num_codes"] == pytest.approx(200 * row["seconds"], abs=4)
        assert len(np.unique(row["codes"])) > 100
    # Its sound is speech again: the codes are those of the sentence, not of silence.
    assert np.std(Codec2().decode([np.array(row["codes"])])[0]) > 0.02


# --- what cannot be used ---------------------------------------------------------------------------------------------


def refused(cwd: Path, *arguments: str) -> str:
    """The one line that a mistake prints."""
    status, output, errors = run(cwd, *arguments)
    assert status == 2, (output, errors)
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    return errors


def test_a_corpus_without_a_usable_row(tmp_path):
    corpus = tmp_path / "corpus"
    write_audio(corpus / "a.wav", np.zeros(16_000))
    (corpus / "b.wav").write_bytes(b"no sound")
    (corpus / "metadata.csv").write_text("a|Silenzio\nb|Niente\nc|Manca\n")
    arguments = ("dataset=folder", f"dataset.path={corpus}", "store=store")
    assert refused(tmp_path, *arguments) == (
        "error: no row of the corpus is usable (dropped: 1 missing_audio, 1 silent, 1 unreadable_audio); "
        "see store/rejects.jsonl, retry=true tries those again whose files have been mended\n"
    )
    assert len(rejects(tmp_path / "store")) == 3
    before = contents(tmp_path / "store")
    with pytest.raises(UserError, match="no row of the corpus is usable"):
        make_store(corpus, tmp_path / "store")
    assert contents(tmp_path / "store") == before


def test_mistakes_are_told_in_one_line_before_anything_is_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    corpus = write_folder_corpus(tmp_path / "corpus", 1, seed=1)
    folder = ("dataset=folder", f"dataset.path={corpus}")
    before = contents(tmp_path)
    assert "there is no lang named 'xx'; valid names: de, en, " in refused(tmp_path, *folder, "lang=xx", "store=store")
    assert "there is no folder at nowhere; pass dataset.path=FOLDER" in refused(
        tmp_path, "dataset=folder", "dataset.path=nowhere", "store=store"
    )
    assert "cannot write to file/below: Not a directory; choose another folder with store=" in refused(
        tmp_path, *folder, "store=file/below"
    )
    assert contents(tmp_path) == before


def test_other_settings_do_not_touch_a_store(mixed, finished):
    before, files = contents(finished), identities(finished)
    for overrides, keys in (
        (["shard_rows=5", "filters.max_seconds=2"], "shard_rows (4 there, 5 now)"),
        (
            ["shard_rows=4", "filters.max_seconds=3", "filters.min_peak=0.1"],
            "filters.max_seconds (2.0 there, 3.0 now), filters.min_peak (0.001 there, 0.1 now)",
        ),
        ([*AGAIN, "dataset.limit=2"], "dataset.rows (16 there, 2 now), splits.train (16 there, 2 now)"),
        ([*AGAIN, "lang=de"], "lang (it there, de now)"),
    ):
        with pytest.raises(UserError, match=re.escape(f"made with other settings: {keys}; choose another folder")):
            make_store(mixed, finished, *overrides)
    assert contents(finished) == before
    assert identities(finished) == files


def test_a_store_of_another_format_is_not_called_complete(mixed, finished):
    plan = json.loads((finished / "plan.json").read_text(encoding="utf-8"))
    (finished / "plan.json").write_text(json.dumps({**plan, "format_version": plan["format_version"] - 1}))
    with pytest.raises(UserError, match="made with other settings: format_version"):
        make_store(mixed, finished, *AGAIN)


def test_a_folder_of_something_else_is_left_alone(mixed, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and no token store"):
        make_store(mixed, tmp_path)
    assert contents(tmp_path) == {"notes.txt": b"mine"}
