"""The token store: what is written is what is read, byte for byte the same, and a damaged store says what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llasa.codec.base import CodecSpec
from llasa.corpus.store import (
    FORMAT_VERSION,
    Shard,
    TokenStore,
    codes_hash,
    differing_keys,
    plan_shards,
    read_shard_record,
    shard_is_whole,
    write_manifest,
    write_plan,
    write_shard,
)
from llasa.errors import UserError
from llasa.types import EncodedUtterance
from tests.corpus.stores import contents

SMALL = CodecSpec(
    name="small", fingerprint="s", sample_rate=8000, tokens_per_second=50.0, codebook_size=100, code_ranges=((0, 100),)
)
WIDE = CodecSpec(
    name="wide", fingerprint="w", sample_rate=8000, tokens_per_second=50.0, codebook_size=1 << 17,
    code_ranges=((0, 1 << 17),), checkpoint="somewhere/wide",
)  # fmt: skip


def make_rows(count: int, spec: CodecSpec, seed: int = 0) -> list[EncodedUtterance]:
    """Rows of 1 to 40 codes, the least and the greatest code among them."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        codes = rng.integers(0, spec.codebook_size, 1 + index % 40).astype(spec.code_dtype)
        codes[:2] = [0, spec.codebook_size - 1][: len(codes)]
        rows.append(
            EncodedUtterance(
                id=f"{seed}-{index}",
                text=f'frase {"i" * index}, è così\u2028 "bene"',
                text_given=f"Frase {index} 😀",
                speaker=f"s{index % 3}",
                language="it" if index % 5 else "de",
                seconds=len(codes) / 50,
                codes=codes,
            )
        )
    return rows


def write_store(root: Path, spec: CodecSpec = SMALL, counts: dict[str, int] | None = None) -> Path:
    """A store of shards of four rows; the second shard of train is empty, its rows were all refused."""
    counts = counts or {"train": 10, "test": 3}
    shards = plan_shards(counts, 4)
    plan = {"codec": spec.to_dict(), "source": {"name": "made up"}}
    write_plan(root, plan)
    for shard in shards:
        if shard.file == "train/00001.parquet":
            rejects = [{"row": str(i), "reason": "silent", "detail": 'perché "no"'} for i in range(4, 8)]
            write_shard(root, shard, spec, [], rejects)
        else:
            write_shard(root, shard, spec, make_rows(10, spec)[shard.start : shard.stop], [])
    write_manifest(root, shards, plan, {"commit": "abc"})
    return root


# --- planning --------------------------------------------------------------------------------------------------------


def test_shards_cut_each_split_in_order():
    assert plan_shards({"train": 7, "test": 3, "validation": 0}, 3) == [
        Shard("train", 0, 0, 3),
        Shard("train", 1, 3, 6),
        Shard("train", 2, 6, 7),
        Shard("test", 0, 0, 3),
    ]
    assert Shard("train", 12, 0, 1).file == "train/00012.parquet"


@pytest.mark.parametrize("shard_rows", [1, 2, 9, 10, 11, 1000])
def test_shards_cover_every_row_once(shard_rows):
    shards = plan_shards({"train": 10}, shard_rows)
    assert [row for shard in shards for row in range(shard.start, shard.stop)] == list(range(10))
    assert [shard.number for shard in shards] == list(range(len(shards)))


# --- writing and reading ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spec", "dtype"), [(SMALL, np.uint16), (WIDE, np.uint32)])
def test_rows_come_back_as_they_were(tmp_path, spec, dtype):
    rows = make_rows(45, spec)
    shard = Shard("train", 0, 0, 45)
    record = write_shard(tmp_path, shard, spec, rows, [])
    table = pq.read_table(tmp_path / shard.file)
    # The contract's columns, in its order, and four of our own.
    ours = ("text_given", "num_codes", "row", "codes_hash")
    assert [name for name in table.column_names if name not in ours] == [
        "id", "text", "speaker", "language", "seconds", "codes",
    ]  # fmt: skip
    assert table.schema.field("codes").type.value_type == pa.from_numpy_dtype(dtype)
    assert len(table) == record.rows == 45
    for stored, row in zip(table.to_pylist(), rows, strict=True):
        np.testing.assert_array_equal(stored.pop("codes"), row.codes)
        assert stored.pop("num_codes") == len(row.codes)
        assert stored.pop("row") == int(row.id.partition("-")[2])
        assert stored.pop("codes_hash") == codes_hash(row.codes.astype(np.uint32)) != 0
        assert stored.pop("seconds") == pytest.approx(row.seconds)
        assert stored == {key: getattr(row, key) for key in ("id", "text", "text_given", "speaker", "language")}
    assert record.codes == sum(len(row.codes) for row in rows) > 500
    assert record.seconds == pytest.approx(record.codes / 50)
    assert record.languages == ["de", "it"]


def test_a_shard_carries_its_record(tmp_path):
    shard = Shard("train", 3, 30, 40)
    rejects = [{"row": "31", "reason": "silent", "detail": "perché è zitto 😀"}]
    record = write_shard(tmp_path, shard, SMALL, make_rows(9, SMALL), rejects)
    assert read_shard_record(tmp_path / "train" / "00003.parquet") == record
    assert record.rejects == rejects


def test_an_empty_shard_comes_back(tmp_path):
    shard = Shard("train", 0, 0, 1)
    record = write_shard(tmp_path, shard, SMALL, [], [{"row": "0", "reason": "silent", "detail": "x"}])
    assert shard_is_whole(tmp_path / shard.file)
    assert read_shard_record(tmp_path / shard.file) == record
    assert (record.rows, record.codes, record.seconds, record.languages) == (0, 0, 0, [])
    table = pq.read_table(tmp_path / shard.file)
    assert len(table) == 0
    assert table.schema.field("codes").type.value_type == pa.uint16()


def test_the_same_rows_give_the_same_bytes(tmp_path):
    stores = [contents(write_store(tmp_path / name)) for name in ("one", "two")]
    assert stores[0] == stores[1]
    assert sorted(stores[0]) == [
        "manifest.json", "plan.json", "rejects.jsonl",
        "test/00000.parquet", "train/00000.parquet", "train/00001.parquet", "train/00002.parquet",
    ]  # fmt: skip
    other = contents(write_store(tmp_path / "other", counts={"train": 9, "test": 3}))
    assert other["train/00002.parquet"] != stores[0]["train/00002.parquet"]


def test_the_manifest_counts_what_the_shards_hold(tmp_path):
    root = write_store(tmp_path / "store")
    manifest = json.loads((root / "manifest.json").read_text(encoding="utf-8"))
    rows = make_rows(10, SMALL)
    train, test = [*rows[:4], *rows[8:]], rows[:3]
    assert manifest["format_version"] == FORMAT_VERSION
    assert CodecSpec.from_dict(manifest["codec"]) == SMALL
    assert manifest["source"] == {"name": "made up"}
    assert manifest["provenance"] == {"commit": "abc"}
    assert manifest["languages"] == ["de", "it"]
    assert manifest["dropped"] == {"silent": 4}
    for name, shards, expected in (("train", 3, train), ("test", 1, test)):
        assert manifest["splits"][name] == {
            "shards": shards,
            "rows": len(expected),
            "codes": sum(len(row.codes) for row in expected),
            "seconds": pytest.approx(sum(row.seconds for row in expected)),
        }
    for key in ("rows", "codes", "seconds"):
        assert manifest[key] == pytest.approx(sum(split[key] for split in manifest["splits"].values()))
    rejects = [json.loads(line) for line in (root / "rejects.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rejects == [
        {"split": "train", "row": str(i), "reason": "silent", "detail": 'perché "no"'} for i in range(4, 8)
    ]


@pytest.mark.parametrize("spec", [SMALL, WIDE])
def test_an_opened_store_gives_its_rows(tmp_path, spec):
    store = TokenStore(write_store(tmp_path / "store", spec))
    assert store.codec == spec
    assert store.splits == ["train", "test"]
    assert [str(file.relative_to(store.root)) for file in store.files("train")] == [
        "train/00000.parquet", "train/00001.parquet", "train/00002.parquet",
    ]  # fmt: skip
    assert len(store.files()) == 4
    made = make_rows(10, spec)
    for split, expected in (("train", [*made[:4], *made[8:]]), ("test", made[:3])):
        rows = store.rows(split)
        assert len(rows) == len(expected)
        for row, original in zip(rows, expected, strict=True):
            assert (row["id"], row["text"], row["speaker"], row["language"]) == (
                original.id, original.text, original.speaker, original.language,
            )  # fmt: skip
            assert np.issubdtype(row["codes"].dtype, np.integer)
            np.testing.assert_array_equal(row["codes"], original.codes)
            assert row["num_codes"] == len(original.codes)


def test_a_store_opens_after_it_was_moved(tmp_path):
    shutil.move(write_store(tmp_path / "store"), tmp_path / "elsewhere")
    assert len(TokenStore(str(tmp_path / "elsewhere")).rows("train")) == 6


# --- damaged stores --------------------------------------------------------------------------------------------------


def refusal(root: Path) -> str:
    with pytest.raises(UserError) as refused:
        TokenStore(root)
    return str(refused.value)


@pytest.mark.parametrize("keep", [0, 3, 0.5, -1])
@pytest.mark.parametrize("file", ["train/00000.parquet", "train/00001.parquet", "test/00000.parquet"])
def test_a_truncated_shard_is_named_with_its_remedy(tmp_path, file, keep):
    root = write_store(tmp_path / "store")
    assert shard_is_whole(root / file)
    content = (root / file).read_bytes()
    (root / file).write_bytes(content[: int(keep * len(content)) if keep == 0.5 else keep])
    assert not shard_is_whole(root / file)
    message = refusal(root)
    assert f"shard {root / file} is damaged" in message
    assert message.endswith("; delete that file and run preprocess.py again: it makes only what is missing")


def test_a_missing_shard_is_named_with_its_remedy(tmp_path):
    root = write_store(tmp_path / "store")
    (root / "train/00002.parquet").unlink()
    assert not shard_is_whole(root / "train/00002.parquet")
    message = refusal(root)
    assert f"shard {root}/train/00002.parquet is missing; delete that file and run preprocess.py again" in message


def test_a_file_that_is_no_shard_is_named(tmp_path):
    root = write_store(tmp_path / "store")
    pq.write_table(pa.table({"id": ["x"]}), root / "train/00000.parquet")
    assert not shard_is_whole(root / "train/00000.parquet")
    assert f"shard {root}/train/00000.parquet has no column of codes" in refusal(root)


def test_a_code_beyond_the_codebook_is_refused(tmp_path):
    root = write_store(tmp_path / "store")
    TokenStore(root)
    larger = CodecSpec(**{**vars(SMALL), "codebook_size": 101, "code_ranges": ((0, 101),)})
    write_shard(root, Shard("test", 0, 0, 3), larger, make_rows(4, larger), [])
    message = refusal(root)
    assert f"shard {root}/test/00000.parquet has the code 100, but the codebook of small ends at 99; delete" in message


def test_no_store_names_the_command_that_makes_one(tmp_path):
    for root in (tmp_path / "nowhere", tmp_path):
        message = refusal(root)
        assert f"there is no token store at {root}; make it with `python preprocess.py" in message
        assert f"store={root}" in message


def test_an_unfinished_store_says_so(tmp_path):
    root = write_store(tmp_path / "store")
    (root / "manifest.json").unlink()
    assert f"the token store at {root} is not finished; finish it with `python preprocess.py" in refusal(root)


def test_another_format_version_is_refused(tmp_path):
    root = write_store(tmp_path / "store")
    manifest = json.loads((root / "manifest.json").read_text(encoding="utf-8"))
    (root / "manifest.json").write_text(json.dumps({**manifest, "format_version": FORMAT_VERSION + 1}))
    assert f"has store format {FORMAT_VERSION + 1}, this code reads {FORMAT_VERSION}; make it again" in refusal(root)


@pytest.mark.parametrize("content", [b"", b'{"format_version": 1, "cod', b"\xff\xfe"])
def test_a_damaged_manifest_is_refused(tmp_path, content):
    root = write_store(tmp_path / "store")
    (root / "manifest.json").write_bytes(content)
    message = refusal(root)
    assert f"{root}/manifest.json is damaged" in message
    assert message.endswith(f"; delete {root}/manifest.json and run preprocess.py again")


def test_a_split_that_is_not_there_or_has_no_rows_is_refused(tmp_path):
    store = TokenStore(write_store(tmp_path / "store"))
    with pytest.raises(UserError, match="has no split 'validation'; use one of train, test"):
        store.rows("validation")
    root = tmp_path / "empty"
    plan = {"codec": SMALL.to_dict(), "source": {}}
    shards = plan_shards({"train": 1}, 1)
    write_plan(root, plan)
    write_shard(root, shards[0], SMALL, [], [{"row": "0", "reason": "silent", "detail": ""}])
    write_manifest(root, shards, plan, {})
    with pytest.raises(UserError, match=r"the split train of .* is empty; see rejects.jsonl"):
        TokenStore(root).rows("train")


# --- continuing ------------------------------------------------------------------------------------------------------

PLAN = {"codec": SMALL.to_dict(), "source": {"name": "a", "rows": {"train": 3}}, "shard_rows": 4}


def test_the_same_plan_is_accepted_again(tmp_path):
    write_plan(tmp_path / "store", PLAN)
    before = contents(tmp_path / "store")
    write_plan(tmp_path / "store", json.loads(json.dumps(PLAN)))
    assert contents(tmp_path / "store") == before == {"plan.json": before["plan.json"]}


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"shard_rows": 5}, "shard_rows (4 there, 5 now)"),
        (
            {"source": {"name": "b", "rows": {"train": 4}}, "shard_rows": 1},
            "shard_rows (4 there, 1 now), dataset.name (a there, b now), dataset.rows.train (3 there, 4 now)",
        ),
        ({"source": {"name": "a", "rows": {"train": 3, "test": 1}}}, "dataset.rows.test (nothing there, 1 now)"),
        ({"source": {"name": "a", "rows": {"train": 3}, "fingerprint": "f"}}, "the corpus (its files have changed)"),
        (
            {"codec": SMALL.to_dict() | {"codebook_size": 200, "fingerprint": "t"}},
            "codec.codebook_size (100 there, 200 now), codec.fingerprint (s there, t now)",
        ),
        ({"filters": {"min_peak": 0.1}}, "filters"),
    ],
)
def test_other_settings_are_refused_by_name_and_change_nothing(tmp_path, changes, keys):
    root = write_store(tmp_path / "store")
    (root / "plan.json").write_text(json.dumps(PLAN))
    before = contents(root)
    with pytest.raises(UserError) as refused:
        write_plan(root, {**PLAN, **changes})
    assert str(refused.value) == (
        f"{root} holds a store made with other settings: {keys}; choose another folder with store=, or delete that one"
    )
    assert contents(root) == before
    assert len(before) == 7


def test_differing_keys_go_down_dictionaries_only():
    assert differing_keys({"a": {"b": 1, "c": [1, 2]}}, {"a": {"b": 1, "c": [1, 3]}}) == ["a.c"]
    assert sorted(differing_keys({"a": 1, "b": None}, {"a": {"x": 1}, "c": 2})) == ["a", "c"]
    assert differing_keys({"a": {}}, {"a": {}}) == []


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "manifest.json", "train/00000.parquet"])
def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path, name):
    root = tmp_path / "folder"
    (root / name).parent.mkdir(parents=True)
    (root / name).write_bytes(b"mine")
    with pytest.raises(UserError, match=r"is not empty and no token store; choose another folder with store="):
        write_plan(root, PLAN)
    assert contents(root) == {name: b"mine"}


def test_an_empty_folder_is_taken(tmp_path):
    write_plan(tmp_path, PLAN)
    assert json.loads((tmp_path / "plan.json").read_text(encoding="utf-8")) == PLAN


def test_a_run_killed_while_it_wrote_the_plan_is_continued(tmp_path):
    (tmp_path / ".plan.json.0a1b2c3d4e5f.tmp").write_bytes(b'{"codec": {"na')
    (tmp_path / ".claims").mkdir()
    write_plan(tmp_path, PLAN)
    assert json.loads((tmp_path / "plan.json").read_bytes()) == PLAN


def test_a_damaged_plan_is_refused(tmp_path):
    root = write_store(tmp_path / "store")
    (root / "plan.json").write_bytes(b'{"codec"')
    with pytest.raises(UserError, match=rf"plan.json is damaged .*; delete {root} and run preprocess.py again"):
        write_plan(root, PLAN)


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_store_that_cannot_be_made_is_refused(tmp_path, name):
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(UserError, match=rf"cannot write to {tmp_path}/{name}: .*; choose another folder"):
        write_plan(tmp_path / name, PLAN)
    assert contents(tmp_path) == {"file": b"mine"}
