"""Metrics on disk, in TensorBoard and in Weights & Biases, each read back with its own reader."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llasa.config import LoggerConfig
from llasa.tracking import METRICS, Tracker

ROOT = Path(__file__).parents[1]
ROWS = [
    {"step": 10, "loss": 6.25, "lr": 1e-4, "tokens_per_second": 2500},
    {"step": 20, "loss": 4.5, "lr": 5e-5, "tokens_per_second": 2501},
    {"step": 30, "loss": 1e-8, "lr": 0.0, "tokens_per_second": 2502},
]


def track(folder: Path, rows: list[dict], logger: str = "none", start_step: int = 0) -> list[dict]:
    tracker = Tracker(folder, LoggerConfig(name=logger), {"seed": 1}, start_step=start_step)
    for row in rows:
        tracker.log(row)
    tracker.close()
    return read_lines(folder)


def read_lines(folder: Path) -> list[dict]:
    content = (folder / METRICS).read_text(encoding="utf-8")
    assert content == "" or content.endswith("\n")
    return [json.loads(line) for line in content.splitlines()]


# metrics.jsonl


def test_every_call_is_one_line(tmp_path):
    assert track(tmp_path / "runs/new", ROWS) == ROWS
    assert [path.name for path in (tmp_path / "runs/new").iterdir()] == ["metrics.jsonl"]


def test_a_line_is_on_disk_before_the_next_step(tmp_path):
    """A killed run leaves what it logged."""
    tracker = Tracker(tmp_path, LoggerConfig(name="none"), {})
    for count, row in enumerate(ROWS, start=1):
        tracker.log(row)
        assert read_lines(tmp_path) == ROWS[:count]
    tracker.close()


@pytest.mark.parametrize(("start_step", "kept"), [(0, 0), (9, 0), (10, 1), (20, 2), (25, 2), (30, 3), (99, 3)])
def test_a_resumed_run_drops_what_came_after_its_state(tmp_path, start_step, kept):
    track(tmp_path, ROWS)
    again = [{"step": 31, "loss": 0.5}, {"step": 40, "loss": 0.25}]
    assert track(tmp_path, again, start_step=start_step) == ROWS[:kept] + again


@pytest.mark.parametrize(
    "tail", ['{"step": 15, "lo', '{"step": 15', "", "\n", "null\n", "[]\n", "7\n", '{"loss": 1.0}\n']
)
def test_a_line_that_a_crash_cut_off_is_dropped(tmp_path, tail):
    track(tmp_path, ROWS[:1])
    with open(tmp_path / METRICS, "a", encoding="utf-8") as file:
        file.write(tail)
    assert track(tmp_path, ROWS[1:], start_step=10) == ROWS


def test_lines_before_a_damaged_one_keep_their_bytes(tmp_path):
    line = '{"step":  5,   "loss": 1.50, "text": "perché"}\n'
    (tmp_path / METRICS).write_text(line + '{"step": 6, "lo', encoding="utf-8")
    Tracker(tmp_path, LoggerConfig(name="none"), {}, start_step=6).close()
    assert (tmp_path / METRICS).read_text(encoding="utf-8") == line


# TensorBoard


def test_tensorboard_reads_the_same_values(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert track(tmp_path, ROWS, logger="tensorboard") == ROWS
    reader = EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    assert sorted(reader.Tags()["scalars"]) == ["loss", "lr", "tokens_per_second"]
    for tag in ("loss", "lr", "tokens_per_second"):
        events = reader.Scalars(tag)
        assert [event.step for event in events] == [10, 20, 30]
        assert [event.value for event in events] == pytest.approx([row[tag] for row in ROWS], rel=1e-6)


# Weights & Biases


def wandb_records(path: Path) -> Iterator:
    """The records of a `.wandb` file: a header of 7 bytes, then a LevelDB log in blocks of 32 KiB.

    A piece has a header of 7 bytes (checksum 4, length 2, kind 1: full, first, middle, last). The records are
    wandb's own protocol buffers.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    position, pieces = 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        assert kind in (1, 2, 3, 4)
        pieces += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield Record.FromString(pieces)
            pieces = b""


WANDB_RUN = """
from pathlib import Path
from llasa.config import LoggerConfig
from llasa.tracking import Tracker

logger = LoggerConfig(name="wandb", project="my-project", group="sweep")
tracker = Tracker(Path("run"), logger, {"optimizer": {"lr": 0.5}})
for step in (10, 20):
    tracker.log({"step": step, "loss": 60 / step, "lr": 1e-4})
tracker.close(failed=True)
"""


@pytest.fixture(scope="module")
def wandb_run(tmp_path_factory) -> Path:
    """A run in a process of its own, with no key and no way to a server: wandb keeps state in its process."""
    folder = tmp_path_factory.mktemp("wandb")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    environment |= {
        "HOME": str(folder / "home"),
        "NETRC": str(folder / "home/netrc"),
        "PYTHONPATH": str(ROOT),
        "WANDB_BASE_URL": "http://127.0.0.1:9",  # nobody listens there: a request would fail the run
    }
    (folder / "home").mkdir()
    result = subprocess.run(
        [sys.executable, "-c", WANDB_RUN],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return folder / "run"


def test_wandb_without_a_key_is_an_offline_run_in_the_folder(wandb_run):
    assert [row["step"] for row in read_lines(wandb_run)] == [10, 20]
    (file,) = wandb_run.rglob("*.wandb")
    assert file.parent.name.startswith("offline-run-")
    assert sorted(path.name for path in wandb_run.iterdir()) == ["metrics.jsonl", "wandb"]


def test_the_offline_run_holds_config_names_and_values(wandb_run):
    (file,) = wandb_run.rglob("*.wandb")
    records = list(wandb_records(file))
    (run,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert (run.project, run.run_group, run.display_name) == ("my-project", "sweep", "run")
    assert {item.key: json.loads(item.value_json) for item in run.config.update}["optimizer"] == {"lr": 0.5}
    history = []
    for record in records:
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
            history.append({"step": record.history.step.num, **{key: row[key] for key in ("loss", "lr")}})
    assert history == [{"step": 10, "loss": 6.0, "lr": 1e-4}, {"step": 20, "loss": 3.0, "lr": 1e-4}]
    (end,) = [record.exit for record in records if record.WhichOneof("record_type") == "exit"]
    assert end.exit_code == 1  # closed as failed, although the process ended well


def test_a_service_that_cannot_start_costs_nothing_but_itself(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = LoggerConfig(name="wandb", project="a/b")  # a name that W&B refuses
    tracker = Tracker(tmp_path, logger, {})
    tracker.log({"step": 1, "loss": 2.0})
    tracker.close()
    assert "warning: W&B cannot be used" in capsys.readouterr().err
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": 2.0}
