"""`dataset.streaming=true`: the rows that a prepared data set has, in its order, file by file and in little memory."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llasa.corpus.hub import HubSource
from llasa.errors import RejectedRow, UserError

ROOT = Path(__file__).parents[2]
COLUMNS = {"audio": "audio", "text": "text", "speaker": "speaker", "levenshtein": "levenshtein"}


def write_files(
    folder: Path, split: str, files: int, rows: int, *, size: int = 200, group: int = 4, seed: int = 0
) -> None:
    """``files`` Parquet files of ``rows`` rows of ``size`` random bytes, ``group`` to a row group."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for file in range(files):
        names = [f"{folder.name}-{split}-{file}-{row}" for row in range(rows)]
        table = pa.table(
            {
                "audio": [{"bytes": rng.bytes(size), "path": f"{name}.wav"} for name in names],
                "text": names,
                "speaker": [row % 3 for row in range(rows)],
                "levenshtein": [None if row == 1 else 0.9 for row in range(rows)],
                "unused": ["x"] * rows,
            }
        )
        pq.write_table(table, folder / f"{split}-{file:05d}-of-{files:05d}.parquet", row_group_size=group)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Two configurations, several files to a split."""
    folder = tmp_path_factory.mktemp("stream") / "corpus"
    entries = []
    for seed, config in enumerate(("italian", "german")):
        write_files(folder / config, "train", 3, 7, seed=seed)
        write_files(folder / config, "dev", 1, 5, seed=seed + 10)
        files = "".join(f"  - split: {split}\n    path: {config}/{split}-*\n" for split in ("train", "dev"))
        entries.append(f"- config_name: {config}\n  data_files:\n{files}")
    (folder / "README.md").write_text(f"---\nconfigs:\n{''.join(entries)}---\n")
    return folder


def source(path: Path | str, **changes) -> HubSource:
    arguments = {"path": str(path), "config": None, "language": "it", "splits": None, "columns": COLUMNS}
    return HubSource(**{**arguments, "streaming": True, **changes})


def fetched(rows) -> list:
    """Each row as (text, audio, speaker, measures), or as the reason and detail of its refusal."""
    results = []
    for expected, (number, fetch) in enumerate(rows):
        assert number == expected
        try:
            row = fetch()
            results.append((row.text, row.audio, row.speaker, row.measures))
        except RejectedRow as reason:
            results.append((reason.reason, reason.detail))
    return results


@pytest.mark.parametrize("config", ["italian", "german"])
def test_a_stream_has_the_rows_of_the_prepared_data_set_in_its_order(corpus, config):
    stream, prepared = source(corpus, config=config), source(corpus, config=config, streaming=False)
    assert (stream.unit, prepared.unit) == ("file", "row")
    assert stream.splits() == {"train": 3, "validation": 1}
    assert prepared.splits() == {"train": 21, "validation": 5}
    for split in ("train", "validation"):
        rows = fetched(stream.rows(split, 0, stream.splits()[split]))
        assert rows == fetched(prepared.rows(split, 0, prepared.splits()[split]))
        assert len({audio for _, audio, _, _ in rows}) == len(rows) == prepared.splits()[split]
    assert rows[0][0] == f"{config}-dev-0-0"
    assert (rows[0][3], rows[1][3]) == ({"levenshtein": 0.9}, {})


def test_any_worker_reads_any_files(corpus):
    stream = source(corpus, config="italian")
    whole = fetched(stream.rows("train", 0, 3))
    assert len(whole) == 21
    assert fetched(stream.rows("train", 1, 3)) == whole[7:]
    copy = pickle.loads(pickle.dumps(stream))
    assert [row for file in (0, 1, 2) for row in fetched(copy.rows("train", file, file + 1))] == whole
    assert fetched(stream.rows("train", 2, 2)) == []


def test_ids_are_unique_and_the_same_again(corpus):
    ids = [[fetch().id for _, fetch in source(corpus, config="italian").rows("train", 0, 3)] for _ in range(2)]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 21


@pytest.mark.parametrize("limit", [1, 7, 8, 99])
def test_a_limit_makes_the_first_rows_of_each_split_one_unit(corpus, limit):
    stream = source(corpus, config="italian", limit=limit)
    assert stream.splits() == {"train": 1, "validation": 1}
    assert fetched(stream.rows("train", 0, 1)) == fetched(source(corpus, config="italian").rows("train", 0, 3))[:limit]
    assert len(fetched(stream.rows("validation", 0, 1))) == min(limit, 5)
    assert stream.describe() != source(corpus, config="italian").describe()
    assert stream.describe() != source(corpus, config="italian", limit=limit + 1).describe()


def test_the_description_follows_the_files(tmp_path):
    write_files(tmp_path / "data", "train", 2, 3)
    first = source(tmp_path / "data").describe()
    assert first == source(tmp_path / "data").describe() == json.loads(json.dumps(first))
    assert first["files"] == {"train": 2}
    write_files(tmp_path / "data", "train", 2, 3, seed=1)
    assert source(tmp_path / "data").describe() != first


def test_wrong_columns_are_refused_when_the_stream_is_opened(corpus):
    with pytest.raises(UserError, match=r"has no column 'sentence'; it has audio, text, speaker"):
        source(corpus, config="italian", columns={"audio": "audio", "text": "sentence"})
    with pytest.raises(UserError, match=r"the column 'speaker' of .* holds no audio"):
        source(corpus, config="italian", columns={"audio": "speaker", "text": "text"})


# --- damage ----------------------------------------------------------------------------------------------------------


def test_a_file_that_is_cut_off_costs_its_own_rows(tmp_path):
    write_files(tmp_path / "data", "train", 3, 7)
    whole = fetched(source(tmp_path / "data").rows("train", 0, 3))
    cut = tmp_path / "data" / "train-00001-of-00003.parquet"
    cut.write_bytes(cut.read_bytes()[:-100])
    rows = fetched(source(tmp_path / "data").rows("train", 0, 3))
    assert rows[:7] + rows[8:] == whole[:7] + whole[14:]
    assert rows[7][0] == "damaged_file"
    assert rows[7][1].startswith(f"file 1 of {tmp_path / 'data'}, train: ")


@pytest.mark.parametrize("group", [0, 1, 2])
def test_a_damaged_row_group_costs_its_own_rows(tmp_path, group):
    write_files(tmp_path / "data", "train", 2, 12, size=2000, group=4)
    whole = fetched(source(tmp_path / "data").rows("train", 0, 2))
    file = tmp_path / "data" / "train-00000-of-00002.parquet"
    start = pq.read_metadata(file).row_group(group).column(0).data_page_offset
    content = bytearray(file.read_bytes())
    content[start : start + 40] = b"\xff" * 40
    file.write_bytes(content)
    rows = fetched(source(tmp_path / "data").rows("train", 0, 2))
    first = 4 * group
    assert rows[first][0] == "damaged_file"
    assert rows[:first] + rows[first + 1 :] == whole[:first] + whole[first + 4 :]


class Failing:
    """A stream whose file cannot be reached, or only up to its second row."""

    num_shards = 1

    def __init__(self, error: Exception, *, opens: bool) -> None:
        self.error, self.opens = error, opens

    def shard(self, num_shards: int, index: int) -> Failing:
        return self

    def reshard(self) -> Failing:
        if not self.opens:
            raise self.error
        return self

    def __iter__(self):
        yield {"audio": {"bytes": b"x"}, "text": "Ciao", "speaker": 1, "levenshtein": 1.0}
        raise self.error


@pytest.mark.parametrize("opens", [False, True])
@pytest.mark.parametrize("error", [ConnectionError("gone"), TimeoutError("late"), PermissionError(13, "not yours")])
def test_a_network_that_fails_costs_the_run_and_no_row(corpus, error, opens):
    stream = source(corpus, config="italian")
    stream.datasets["train"] = Failing(error, opens=opens)
    rows = stream.rows("train", 0, 1)
    if opens:
        assert next(rows)[1]().text == "Ciao"
    with pytest.raises(
        UserError, match=r"^cannot (reach|read) file 0 of .*, train: .*(gone|late|not yours).*; check the"
    ):
        next(rows)


# --- elsewhere than in a local folder --------------------------------------------------------------------------------


@pytest.fixture
def bucket(corpus):
    """The same corpus in fsspec's memory."""
    memory = fsspec.filesystem("memory")
    memory.put(str(corpus), "/bucket/corpus", recursive=True)
    yield "memory://bucket/corpus"
    memory.rm("/bucket", recursive=True)


def test_parquet_files_in_an_object_store(bucket, corpus, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)  # `datasets` takes every address for the hub's
    local = source(corpus, config="german")
    for streaming in (True, False):
        remote = source(bucket, config="german", streaming=streaming)
        for split in ("train", "validation"):
            rows = fetched(remote.rows(split, 0, remote.splits()[split]))
            assert rows == fetched(local.rows(split, 0, local.splits()[split]))
        assert len(remote.describe()["fingerprint"]) == 16
    with pytest.raises(UserError, match=r"there are no Parquet files in memory://bucket/corpus/polish; check dataset"):
        source(bucket, config="polish")


# --- memory ----------------------------------------------------------------------------------------------------------

READ_ALL = """
import json, os, resource, sys
from llasa.corpus.hub import HubSource

columns = {"audio": "audio", "text": "text"}
source = HubSource(path=sys.argv[1], config=None, language="it", splits=None, columns=columns, streaming=True)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
for _, fetch in zip(range(3), source.rows("train", 0, 1)):
    fetch[1]()  # whatever is imported, is imported now
before, rows, size = peak(), 0, 0
for _, fetch in source.rows("train", 0, source.splits()["train"]):
    rows, size = rows + 1, size + len(fetch().audio)
print(json.dumps({"rows": rows, "megabytes": size / 2**20, "growth": peak() - before}), flush=True)
os._exit(0)  # the reading threads of `datasets` now and then abort an interpreter that is being taken down
"""


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """200 MB in row groups of 5 MB: the process may grow by a few row groups."""
    write_files(tmp_path / "data", "train", 2, 200, size=2**19, group=10)
    command = [sys.executable, "-c", READ_ALL, str(tmp_path / "data")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    read = json.loads(result.stdout)
    assert (read["rows"], read["megabytes"]) == (400, 200)
    assert read["growth"] < 60
