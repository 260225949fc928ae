"""Several processes and sudden ends: whatever happens to whom, the store comes out the same, byte for byte."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from llasa.corpus import runners
from llasa.corpus.claims import claim
from llasa.corpus.run import parse_range, preprocess
from llasa.corpus.runners import Job, make_in_new_process
from llasa.corpus.store import TokenStore, plan_shards
from llasa.entry import compose_config
from llasa.errors import UserError
from tests.corpus.recordings import speech_like, write_audio, write_folder_corpus
from tests.corpus.stores import contents

ROOT = Path(__file__).parents[2]
ROWS, SHARD_ROWS = 60, 3


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """60 rows of 10 s, some bad, some double: a second or two of work for Codec2, in 20 shards."""
    folder = tmp_path_factory.mktemp("corpus")
    sounds = [speech_like(10.0, seed, 8_000) for seed in range(3)]
    for index in range(ROWS - 4):
        write_audio(folder / f"{index}.wav", np.roll(sounds[index % 3], 50 * index), 8_000)
    (folder / "7.wav").write_bytes(b"no sound")
    rows = [
        {"audio": f"{i % (ROWS - 4)}.wav", "text": "" if i == 20 else f"Riga {i}.", "id": f"r{i}"} for i in range(ROWS)
    ]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "corpus.jsonl"


def overrides(corpus: Path, store: Path | str) -> list[str]:
    return ["dataset=manifest", f"dataset.path={corpus}", "lang=it", "codec=codec2", f"store={store}",
            f"shard_rows={SHARD_ROWS}", "filters.characters_per_second=null"]  # fmt: skip


@pytest.fixture(scope="module")
def expected(corpus, tmp_path_factory) -> dict[str, bytes]:
    """What one process makes that nobody disturbs."""
    store = tmp_path_factory.mktemp("stores") / "store"
    manifest = preprocess(compose_config("preprocess", overrides(corpus, store)))
    assert manifest["rows"] == ROWS - 6
    assert manifest["dropped"] == {"duplicate_audio": 4, "empty_text": 1, "unreadable_audio": 1}
    return contents(store)


def start(corpus: Path, store: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "preprocess.py"), *overrides(corpus, store), *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=corpus.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen) -> str:
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return output


def wait_for(found, process: subprocess.Popen):
    """The first true value of ``found()``, while the process runs."""
    deadline = time.monotonic() + 60
    while not (value := found()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return value


def children(pid: int) -> list[int]:
    """Process ids of what it started with `multiprocessing`."""
    ids = [int(entry) for entry in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [child for child in ids if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]


def start_two_workers(corpus: Path, store: Path) -> tuple[subprocess.Popen, list[int]]:
    """The command and its workers' process ids, when the first shard is there."""
    process = start(corpus, store, "runner.workers=2")
    workers = wait_for(lambda: len(found := children(process.pid)) == 2 and found, process)
    wait_for(lambda: list(store.glob("train/?????.parquet")), process)
    return process, workers


# --- sudden ends -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_random_kills_change_no_byte(corpus, expected, tmp_path):
    generator = random.Random(0)
    shards = sum(name.endswith(".parquet") for name in expected)
    kills = 0
    for attempt in range(10):
        store, workers = tmp_path / f"store {attempt}", 1 + attempt % 2
        for _ in range(3):
            process = start(corpus, store, f"runner.workers={workers}")
            before = len(list(store.glob("train/?????.parquet")))
            wait_for(lambda store=store, before=before: len(list(store.glob("train/?????.parquet"))) > before, process)
            time.sleep(generator.uniform(0, 0.2))
            process.kill()
            process.communicate()
            kills += 1
            # Workers notice at their next row that the parent is gone.
            made = {name: content for name, content in contents(store).items() if name in expected}
            if "manifest.json" in made or len(made) >= shards:
                break
        finish(start(corpus, store, f"runner.workers={workers}"))
        assert contents(store) == expected
        if attempt >= 1 and kills >= 5:
            return
    pytest.fail(f"{kills} kills: it is too quick to be interrupted")


def test_a_worker_that_dies_leaves_its_shards_to_the_others(corpus, expected, tmp_path):
    store = tmp_path / "store"
    process, (first, _) = start_two_workers(corpus, store)
    os.kill(first, signal.SIGKILL)
    output = finish(process)
    assert "worker 0 ended with status -9; the others made its shards" in output
    assert contents(store) == expected


def test_a_run_whose_workers_all_died_says_so_and_can_go_on(corpus, expected, tmp_path):
    store = tmp_path / "store"
    process, both = start_two_workers(corpus, store)
    for pid in both:
        os.kill(pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.startswith("error: the store is not complete: worker ")
    assert "-9" in errors
    assert errors.count("\n") == 1
    finish(start(corpus, store))
    assert contents(store) == expected


def test_interrupted_workers_end_with_their_parent(corpus, expected, tmp_path):
    store = tmp_path / "store"
    process, both = start_two_workers(corpus, store)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.splitlines()[-1]) == (130, "interrupted")
    assert not any(Path(f"/proc/{pid}").exists() for pid in both)
    finish(start(corpus, store))
    assert contents(store) == expected


# --- together --------------------------------------------------------------------------------------------------------


def test_two_commands_at_once_share_the_work(corpus, expected, tmp_path):
    store = tmp_path / "store"
    outputs = [finish(process) for process in [start(corpus, store), start(corpus, store)]]
    assert all("54 rows" in output for output in outputs)
    assert contents(store) == expected


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_make_the_same_bytes(corpus, expected, workers, tmp_path):
    finish(start(corpus, tmp_path / "store", f"runner.workers={workers}"))
    assert contents(tmp_path / "store") == expected


def test_a_claimed_shard_is_left_to_its_owner_until_he_lets_go(tmp_path):
    mine = claim(tmp_path, "train/00000.parquet")
    probe = (
        "import sys; from pathlib import Path; from llasa.corpus.claims import claim; "
        "print(claim(Path(sys.argv[1]), 'train/00000.parquet') is None, claim(Path(sys.argv[1]), 'b') is None)"
    )

    def ask() -> str:
        return subprocess.run(
            [sys.executable, "-c", probe, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout

    assert ask() == "True False\n"
    mine.release()
    assert ask() == "False False\n"


def test_a_worker_refuses_another_corpus_than_the_plan_names(corpus, tmp_path):
    config = compose_config("preprocess", overrides(corpus, tmp_path / "store"))
    shards = plan_shards({"train": ROWS}, SHARD_ROWS)
    preprocess(config)
    plan = json.loads((tmp_path / "store" / "plan.json").read_bytes())
    make_in_new_process(Job(config, plan, shards), lambda rows: None)
    plan["source"]["fingerprint"] = "another"
    with pytest.raises(UserError, match=r"another corpus or codec than the one it works for: source\.fingerprint"):
        make_in_new_process(Job(config, plan, shards), lambda rows: None)


@pytest.mark.parametrize(
    ("codec", "more", "gpus", "expected"),
    [
        ("codec2", [], 0, (1, 0)),
        ("codec2", [], 2, (1, 0)),  # it needs no GPU
        ("xcodec2", [], 0, (1, 0)),
        ("xcodec2", [], 1, (1, 8)),
        ("xcodec2", [], 4, (4, 3)),
        ("xcodec2", ["codec.device=cpu"], 4, (1, 0)),
        ("xcodec2", ["runner.workers=2"], 4, (2, 7)),
        ("xcodec2", ["decode_processes=1"], 4, (4, 1)),
    ],
)
def test_processes_share_the_cores(monkeypatch, codec, more, gpus, expected):
    monkeypatch.setattr(runners, "visible_cuda_devices", lambda: [str(index) for index in range(gpus)])
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    config = compose_config("preprocess", ["dataset=espeak", "lang=it", f"codec={codec}", *more])
    assert (runners.num_local_workers(config), runners.num_decode_processes(config)) == expected


# --- Ray and SLURM ---------------------------------------------------------------------------------------------------


def test_ray_makes_the_same_bytes_and_replaces_a_lost_worker(corpus, expected, tmp_path):
    store = tmp_path / "store"
    process = start(corpus, store, "runner=ray", "runner.workers=2")

    def tasks() -> list[int]:
        names = {int(path.parent.name): path.read_text() for path in Path("/proc").glob("[0-9]*/comm")}
        return [pid for pid, name in names.items() if name.startswith("ray::") and "_ray_task"[:8] in name]

    wait_for(lambda: list(store.glob("train/?????.parquet")), process)
    running = wait_for(tasks, process)
    os.kill(running[0], signal.SIGKILL)
    finish(process)
    assert contents(store) == expected


def test_an_array_of_jobs_through_submitit(corpus, expected, tmp_path):
    store = tmp_path / "store"
    more = ("-m", "hydra/launcher=submitit_local", "shards=0-6,7-13,14-19", f"hydra.sweep.dir={tmp_path}/jobs")
    finish(start(corpus, store, *more))
    assert contents(store) == expected
    assert len(list((tmp_path / "jobs" / ".submitit").glob("*/*_0_log.out"))) == 3


def test_a_mistake_in_a_job_of_an_array_is_one_line(corpus, tmp_path):
    more = ("-m", "hydra/launcher=submitit_local", "shards=90-99", f"hydra.sweep.dir={tmp_path}/jobs")
    process = start(corpus, tmp_path / "store", *more)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert errors == "error: in a job of the sweep: shards=90-99: there are 20 shards; they are 0 to 19\n"


def test_without_slurm_the_launcher_says_so(corpus, tmp_path):
    process = start(corpus, tmp_path / "store", "-m", "hydra/launcher=submitit_slurm", "shards=1/2,2/2",
                    f"hydra.sweep.dir={tmp_path}/jobs")  # fmt: skip
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert errors == "error: hydra/launcher=submitit_slurm: there is no srun here; run it on a SLURM login node\n"


# --- parts -----------------------------------------------------------------------------------------------------------


def test_parts_of_a_store_are_finished_by_the_last(corpus, expected, tmp_path, capsys):
    store = tmp_path / "store"
    for part in ("2/3", "1/3"):
        config = compose_config("preprocess", [*overrides(corpus, store), f"shards={part}"])
        assert preprocess(config) is None
        assert "the last job completes the store" in capsys.readouterr().out
        with pytest.raises(UserError, match="is not finished"):
            TokenStore(store)
    last = preprocess(compose_config("preprocess", [*overrides(corpus, store), "shards=3/3"]))
    assert last == json.loads(expected["manifest.json"])
    assert contents(store) == expected


@pytest.mark.parametrize(
    ("text", "shards"),
    [("0-99", range(10)), ("3", [3]), ("3-3", [3]), ("8-12", [8, 9]), ("1/2", range(5)), ("2/2", range(5, 10)),
     ("1/3", range(3)), ("2/3", range(3, 6)), ("3/3", range(6, 10)), ("1/1", range(10))],
)  # fmt: skip
def test_ranges(text, shards):
    assert list(range(10)[parse_range(text, 10)]) == list(shards)


@pytest.mark.parametrize("count", [0, 1, 7, 100])
@pytest.mark.parametrize("parts", [1, 3, 8])
def test_parts_cover_every_shard_once(count, parts):
    found = [index for part in range(1, parts + 1) for index in range(count)[parse_range(f"{part}/{parts}", count)]]
    assert found == list(range(count))


def test_a_part_without_a_shard_is_told(capsys):
    assert list(range(4)[parse_range("1/8", 4)]) == []
    assert capsys.readouterr().out.startswith("shards=1/8: none of the 4 shards")


def test_a_range_beyond_the_store_is_refused():
    with pytest.raises(UserError, match="there are 10 shards; they are 0 to 9"):
        parse_range("10-19", 10)


# --- other places ----------------------------------------------------------------------------------------------------


def test_a_store_wherever_fsspec_reaches(corpus, expected):
    import fsspec

    manifest = preprocess(compose_config("preprocess", overrides(corpus, "memory://bucket/store")))
    files = fsspec.filesystem("memory")
    found = {path.removeprefix("/bucket/store/"): files.cat(path) for path in files.find("/bucket/store")}
    assert found == expected
    store = TokenStore("memory://bucket/store")
    assert manifest == store.manifest
    assert preprocess(compose_config("preprocess", overrides(corpus, "memory://bucket/store"))) == manifest


def test_rejected_files_are_tried_again_when_asked(tmp_path):
    folder = write_folder_corpus(tmp_path / "corpus", 8, seed=4)
    options = ["dataset=folder", f"dataset.path={folder}", "lang=it", "codec=codec2", "shard_rows=2",
               "filters.characters_per_second=null"]  # fmt: skip
    whole = preprocess(compose_config("preprocess", [*options, f"store={tmp_path}/whole"]))
    clip = (folder / "wavs" / "clip-0003.wav").read_bytes()
    (folder / "wavs" / "clip-0003.wav").unlink()
    missing = preprocess(compose_config("preprocess", [*options, f"store={tmp_path}/store"]))
    assert missing["dropped"] == {"missing_audio": 1}
    (folder / "wavs" / "clip-0003.wav").write_bytes(clip)
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "store/train").iterdir()}
    assert preprocess(compose_config("preprocess", [*options, f"store={tmp_path}/store"])) == missing
    again = preprocess(compose_config("preprocess", [*options, f"store={tmp_path}/store", "retry=true"]))
    assert again == whole
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")
    changed = [
        path.name for path in (tmp_path / "store/train").iterdir() if path.stat().st_mtime_ns != times[path.name]
    ]
    assert changed == ["00001.parquet"]
