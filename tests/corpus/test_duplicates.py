"""Doubles: found across shards and splits, the first is kept, evaluation before training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from llasa.codec.base import CodecSpec
from llasa.corpus.duplicates import drop_duplicates, first_of_each
from llasa.corpus.store import Shard, plan_shards, read_shard_record, write_shard
from llasa.types import EncodedUtterance

SPEC = CodecSpec(
    name="small", fingerprint="s", sample_rate=8000, tokens_per_second=50.0, codebook_size=100, code_ranges=((0, 100),)
)


def utterance(name: str, sound: int, text: str, speaker: str = "a") -> EncodedUtterance:
    codes = np.random.default_rng(sound).integers(0, 100, 20).astype(np.uint16)
    return EncodedUtterance(name, text, text, speaker, "it", 0.4, codes)


ROWS = {
    # name, sound, text, speaker
    "train": [
        ("t0", 1, "Uno.", "a"),
        ("t1", 2, "Due.", "a"),  # the sound of t4
        ("t2", 3, "uno", "a"),  # the words of t0
        ("t3", 4, "Uno.", "b"),  # another speaker
        ("t4", 2, "Tre!", "a"),
        ("t5", 9, "Prova.", "c"),  # the sound and the words of e0
        ("t6", 2, "Quattro", "a"),  # the sound of t1, a third time
    ],
    "test": [("e0", 9, "Prova", "c"), ("e1", 10, "Fine.", "a")],
}


def write(root: Path) -> list[Shard]:
    shards = plan_shards({name: len(rows) for name, rows in ROWS.items()}, 3)
    for shard in shards:
        rows = [utterance(*row) for row in ROWS[shard.split][shard.start : shard.stop]]
        rejects = [{"row": "100", "reason": "silent", "detail": "x"}] if shard.number == 0 else []
        write_shard(root, shard, SPEC, rows, rejects, list(range(shard.start, shard.stop)))
    return shards


def left(root: Path, shards: list[Shard]) -> list[str]:
    return [name for shard in shards for name in pq.read_table(root / shard.file)["id"].to_pylist()]


def rejected(root: Path, shards: list[Shard]) -> list[tuple[str, str, str]]:
    found = [(shard.split, reject) for shard in shards for reject in read_shard_record(root / shard.file).rejects]
    return [(split, reject["row"], reject["reason"]) for split, reject in found if reject["reason"] != "silent"]


@pytest.mark.parametrize(
    ("mode", "gone"),
    [
        ("off", {}),
        ("audio", {"t4": "duplicate_audio", "t5": "duplicate_audio", "t6": "duplicate_audio"}),
        ("text", {"t2": "duplicate_text", "t5": "duplicate_text"}),
        ("both", {"t2": "duplicate_text", "t4": "duplicate_audio", "t5": "duplicate_audio", "t6": "duplicate_audio"}),
    ],
)
def test_all_but_the_first_are_dropped(tmp_path, mode, gone):
    shards = write(tmp_path)
    assert drop_duplicates(tmp_path, shards, mode) == len(gone)
    everything = [row[0] for split in ROWS.values() for row in split]
    assert left(tmp_path, shards) == [name for name in everything if name not in gone]
    assert sorted(rejected(tmp_path, shards)) == [("train", name[1:], reason) for name, reason in sorted(gone.items())]
    for shard in shards:
        record = read_shard_record(tmp_path / shard.file)
        table = pq.read_table(tmp_path / shard.file)
        assert record.rows == len(table)
        assert record.codes == 20 * len(table)
        assert record.seconds == pytest.approx(0.4 * len(table))
    assert read_shard_record(tmp_path / shards[0].file).rejects[-1]["reason"] == "silent"  # by row


def test_the_reject_names_the_first(tmp_path):
    shards = write(tmp_path)
    drop_duplicates(tmp_path, shards, "audio")
    rejects = [reject for shard in shards for reject in read_shard_record(tmp_path / shard.file).rejects]
    details = {reject["row"]: reject["detail"] for reject in rejects if reject["reason"] == "duplicate_audio"}
    assert details == {
        "4": "the same as row 1 of train/00000.parquet",
        "5": "the same as row 0 of test/00000.parquet",
        "6": "the same as row 1 of train/00000.parquet",
    }


def test_again_and_after_an_end_in_the_middle_nothing_differs(tmp_path):
    shards = write(tmp_path / "once")
    drop_duplicates(tmp_path / "once", shards, "both")
    once = {shard.file: (tmp_path / "once" / shard.file).read_bytes() for shard in shards}
    assert drop_duplicates(tmp_path / "once", shards, "both") == 0
    assert {shard.file: (tmp_path / "once" / shard.file).read_bytes() for shard in shards} == once
    for done in shards:  # this one was written again before the end came
        root = tmp_path / f"half {done.file.replace('/', ' ')}"
        write(root)
        (root / done.file).write_bytes(once[done.file])
        drop_duplicates(root, shards, "both")
        assert {shard.file: (root / shard.file).read_bytes() for shard in shards} == once


def test_a_store_without_rows(tmp_path):
    shards = plan_shards({"train": 2}, 1)
    for shard in shards:
        write_shard(tmp_path, shard, SPEC, [], [])
    assert drop_duplicates(tmp_path, shards, "both") == 0
    assert drop_duplicates(tmp_path, [], "both") == 0
    assert json.loads(json.dumps(read_shard_record(tmp_path / shards[0].file).rejects)) == []


def test_first_of_each_against_a_loop():
    keys = np.random.default_rng(0).integers(0, 50, 500).astype(np.uint64)
    seen: dict[int, int] = {}
    expected = [seen.setdefault(int(key), index) for index, key in enumerate(keys)]
    assert first_of_each(keys).tolist() == expected
    assert len(set(expected)) == 50
