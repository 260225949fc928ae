"""The pipeline ahead of the codec: in order, bounded, and gone when its consumer is."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from llasa.codec.codec2 import Codec2
from llasa.config import FiltersConfig
from llasa.corpus import encode
from llasa.corpus.claims import claim
from llasa.corpus.encode import Pipeline, decode_pool, make_shards, to_make
from llasa.corpus.sources import EncodedRow, Fetch, SourceRow
from llasa.corpus.store import plan_shards, read_shard_record, write_shard
from llasa.errors import RejectedRow, UserError
from llasa.types import EncodedUtterance, Utterance
from tests.corpus.recordings import audio_bytes, speech_like

CLIP = audio_bytes(speech_like(0.5, 1, 8_000), 8_000)


class Corpus:
    """Rows that say when they were asked for; some take longer than others."""

    unit = "row"

    def __init__(self, rows: int, slow: float = 0.0) -> None:
        self.count, self.slow, self.fetched = rows, slow, 0
        self.lock = threading.Lock()

    def describe(self) -> dict:
        return {"name": "made up"}

    def splits(self) -> dict[str, int]:
        return {"train": self.count}

    def rows(self, split: str, start: int, stop: int) -> Iterator[tuple[int, Fetch]]:
        for index in range(start, stop):
            yield index, partial(self.fetch, index)

    def fetch(self, index: int) -> SourceRow:
        with self.lock:
            self.fetched += 1
        time.sleep(self.slow * (index % 3))
        if index % 10 == 9:
            raise RejectedRow("missing_audio", f"row {index}")
        return SourceRow(f"r{index}", f"Riga {'x' * index}", CLIP, "", "it")


@pytest.fixture(params=["threads", "processes"])
def pool(request) -> Iterator[Executor]:
    with decode_pool(4, 2 if request.param == "processes" else 0) as pool:
        yield pool


@pytest.fixture
def threads() -> Iterator[Executor]:
    with decode_pool(4, 0) as pool:
        yield pool


def pipeline(source: Corpus, pool: Executor) -> Pipeline:
    return Pipeline(source, Codec2().spec, FiltersConfig(max_seconds=5, characters_per_second=None), pool)


def claims(root: Path, source: Corpus, shard_rows: int = 10):
    shards = plan_shards(source.splits(), shard_rows)
    return to_make(root, ((shard, claim(root, shard.file)) for shard in shards), [])


def test_rows_come_in_order_whatever_they_take(tmp_path, pool):
    source = Corpus(40, slow=0.01)
    found = [
        [(number, result.id if isinstance(result, Utterance) else result.reason) for number, result in rows]
        for _, _, rows in pipeline(source, pool).run(claims(tmp_path, source))
    ]
    assert found == [
        [(i, "missing_audio" if i % 10 == 9 else f"r{i}") for i in range(start, start + 10)]
        for start in range(0, 40, 10)
    ]


def test_a_slow_codec_holds_the_reader_back(tmp_path, monkeypatch, pool):
    monkeypatch.setattr(encode, "READ_AHEAD", 16)
    source = Corpus(400)
    shards = pipeline(source, pool).run(claims(tmp_path, source, 400))
    _, _, rows = next(shards)
    next(rows)
    time.sleep(0.5)
    assert 16 <= source.fetched <= 16 + 4 + 2  # the queue, what is on its way into it, and what came out
    assert len(list(rows)) == 399
    shards.close()


def test_it_reads_on_into_the_next_shard_and_no_further(tmp_path, pool):
    source = Corpus(100)
    shards = pipeline(source, pool).run(claims(tmp_path, source))
    next(shards)
    time.sleep(0.5)
    assert source.fetched == 20
    shards.close()


def test_when_the_consumer_stops_so_does_the_reader_and_its_claims_are_free(tmp_path, pool):
    source = Corpus(1000, slow=0.001)
    pool.submit(int).result()  # its threads and processes are started
    shards = pipeline(source, pool).run(claims(tmp_path, source))
    _, mine, rows = next(shards)
    next(rows)
    shards.close()
    mine.release()
    assert not [thread for thread in threading.enumerate() if thread.name == "read"]
    assert source.fetched < 100
    assert claim(tmp_path, "train/00001.parquet") is not None


@pytest.mark.parametrize("processes", [0, 1])
@pytest.mark.parametrize("where", ["row", "source"])
def test_a_bug_is_raised_where_it_is_seen_and_names_its_row(tmp_path, where, processes):
    class Broken(Corpus):
        def rows(self, split: str, start: int, stop: int) -> Iterator[tuple[int, Fetch]]:
            if where == "source" and start == 10:
                raise KeyError("bug")
            return super().rows(split, start, stop)

        def fetch(self, index: int) -> SourceRow:
            if where == "row" and index == 13:
                raise KeyError("bug")
            return super().fetch(index)

    source = Broken(30)
    codec = Codec2()
    shards = plan_shards(source.splits(), 10)
    with pytest.raises(KeyError, match="bug") as raised:
        make_shards(tmp_path, shards, source, codec, FiltersConfig(characters_per_second=None), 2, processes)
    if where == "row":
        assert raised.value.__notes__ == ["in row 13 of train/00001.parquet"]
    assert read_shard_record(tmp_path / "train/00000.parquet").rows == 9
    assert not (tmp_path / "train/00001.parquet").exists()


def test_shards_that_are_there_are_not_made_again(tmp_path):
    source = Corpus(30)
    shards = plan_shards(source.splits(), 10)
    write_shard(tmp_path, shards[1], Codec2().spec, [], [])
    done: list[int] = []
    make_shards(tmp_path, shards, source, Codec2(), FiltersConfig(characters_per_second=None), 2, on_rows=done.append)
    assert sum(done) == source.fetched == 20
    assert [read_shard_record(tmp_path / shard.file).rows for shard in shards] == [9, 0, 9]


@pytest.mark.parametrize("processes", [1, 2])
def test_processes_make_the_bytes_that_threads_make(tmp_path, processes):
    source = Corpus(40)
    shards = plan_shards(source.splits(), 10)
    filters = FiltersConfig(characters_per_second=None)
    make_shards(tmp_path / "threads", shards, source, Codec2(), filters, 2)
    make_shards(tmp_path / "processes", shards, source, Codec2(), filters, 2, processes)
    for shard in shards:
        assert (tmp_path / "threads" / shard.file).read_bytes() == (tmp_path / "processes" / shard.file).read_bytes()


def test_a_decoding_process_that_dies_is_told_in_one_line(tmp_path):
    source = Corpus(40)
    shards = plan_shards(source.splits(), 10)

    def kill(count: int) -> None:
        for child in multiprocessing.active_children():
            child.kill()

    with pytest.raises(UserError, match=r"a process that decodes died.*use fewer decode_processes"):
        make_shards(tmp_path, shards, source, Codec2(), FiltersConfig(characters_per_second=None), 2, 1, kill)


def test_decoding_processes_end_with_their_parent(tmp_path):
    program = (
        "import os, time\n"
        "from llasa.corpus.encode import decode_pool\n"
        "if __name__ == '__main__':\n"
        "    pool = decode_pool(1, 1)\n"
        "    print(pool.submit(os.getpid).result(), flush=True)\n"
        "    time.sleep(60)\n"
    )
    (tmp_path / "program.py").write_text(program)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py")], env=environment, stdout=subprocess.PIPE, text=True
    ) as parent:
        child = Path(f"/proc/{int(parent.stdout.readline())}")
        assert child.exists()
        parent.kill()
    deadline = time.monotonic() + 10
    while child.exists() and "State:\tZ" not in (child / "status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)


# --- rows that are codes already -------------------------------------------------------------------------------------


class Codes(Corpus):
    def fetch(self, index: int) -> EncodedRow:
        spec = Codec2().spec
        codes = np.array([[start + index for start, _ in spec.code_ranges]] * 50, dtype=np.int64).reshape(-1)
        if index == 1:
            codes = codes[:-1]
        if index == 2:
            codes = codes[::-1]
        if index == 3:
            codes = codes[:8]
        return EncodedRow(f"c{index}", "" if index == 4 else f"Sono {index}", codes, "s", "it")


def test_rows_of_codes_pass_by_the_codec(tmp_path, threads):
    source = Codes(7)
    (shard,) = plan_shards(source.splits(), 10)
    make_shards(tmp_path, [shard], source, Codec2(), FiltersConfig(), threads=2)
    record = read_shard_record(tmp_path / shard.file)
    assert [(reject["row"], reject["reason"]) for reject in record.rejects] == [
        ("1", "broken_codes"), ("2", "broken_codes"), ("3", "too_short"), ("4", "empty_text"),
    ]  # fmt: skip
    assert record.rows == 3
    prepared = [
        result for _, _, rows in pipeline(source, threads).run(claims(tmp_path / "b", source)) for _, result in rows
    ]
    first = prepared[0]
    assert isinstance(first, EncodedUtterance)
    assert (first.text, first.text_given, first.seconds) == ("Sono zero", "Sono 0", 1.0)
    assert first.codes.dtype == np.uint16
