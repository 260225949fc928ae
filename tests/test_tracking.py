"""Metrics on disk and in TensorBoard, read back with its own reader. Weights & Biases: test_tracking_wandb.py."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from llasa.config import LoggerConfig
from llasa.tracking import METRICS, Tracker, last_value, read_metrics

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


def test_several_lines_may_share_a_step(tmp_path):
    """Training and held-out speech report apart; after a resume both are there once."""
    rows = [{"step": 10, "heldout/loss": 5.0}, {"step": 10, "loss": 4.0}, {"step": 20, "heldout/loss": 3.0}]
    assert track(tmp_path, rows) == rows
    assert track(tmp_path, rows[2:], start_step=10) == rows


def test_numbers_of_numpy_and_torch_are_numbers_and_what_is_not_finite_is_null(tmp_path):
    """Fails when a NaN is written as it is: no reader of JSON takes it."""
    import torch

    row = {"step": np.int64(3), "loss": np.float32(0.5), "lr": torch.tensor(0.25), "a": float("nan"), "b": None, "n": 2}
    (line,) = track(tmp_path, [row, {"step": 4, "loss": float("inf")}])[:1]
    assert line == {"step": 3, "loss": 0.5, "lr": 0.25, "a": None, "b": None, "n": 2}
    assert last_value(tmp_path, "n") == 2
    assert math.isnan(last_value(tmp_path, "loss"))


def test_the_last_value_is_found_past_lines_without_it(tmp_path):
    assert read_metrics(tmp_path) == []
    assert math.isnan(last_value(tmp_path, "loss"))
    track(tmp_path, [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5}, {"step": 2, "heldout/loss": 1.75}])
    with open(tmp_path / METRICS, "a", encoding="utf-8") as file:
        file.write('{"step": 3, "loss": 1.2')
    assert (last_value(tmp_path, "loss"), last_value(tmp_path, "heldout/loss")) == (1.5, 1.75)


def test_a_text_with_a_line_separator_stays_one_line(tmp_path):
    """Fails when lines are split where JSON does not end them."""
    (tmp_path / METRICS).write_text('{"step": 5, "text": "a\u2028b"}\n', encoding="utf-8")
    Tracker(tmp_path, LoggerConfig(name="none"), {}, start_step=5).close()
    assert read_metrics(tmp_path) == [{"step": 5, "text": "a\u2028b"}]


# A full disk

FULL_DISK = """
import resource, sys
from pathlib import Path
from llasa.config import LoggerConfig
from llasa.tracking import Tracker

tracker = Tracker(Path("run"), LoggerConfig(name=sys.argv[1]), {})
limit = resource.getrlimit(resource.RLIMIT_FSIZE)
for step in range(1, 301):
    if step == 101:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    if step == 201 and sys.argv[2] == "freed":
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    tracker.log({"step": step, "loss": 0.5})
tracker.close()
print("trained to the end")
"""


@pytest.mark.parametrize(("logger", "then"), [("none", "full"), ("none", "freed"), ("tensorboard", "full")])
def test_a_full_disk_does_not_end_the_run(tmp_path, logger, then):
    """Fails when a write that fails is let through, when a warning comes with each line, and when a line is cut in
    two by a disk that has room again."""
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, logger, then],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, "trained to the end\n"), result.stderr
    assert result.stderr.count("cannot be written, training goes on") == 1
    steps = [row["step"] for row in read_metrics(tmp_path / "run")]
    assert steps == list(range(1, 301 if then == "freed" else 101))
    assert result.stderr.count("the last lines of run/metrics.jsonl are lost") == (then == "full")


# TensorBoard


def events(folder: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder / "tensorboard"))
    reader.Reload()
    return reader


def test_tensorboard_reads_the_same_values(tmp_path):
    assert track(tmp_path, ROWS, logger="tensorboard") == ROWS
    reader = events(tmp_path)
    assert sorted(reader.Tags()["scalars"]) == ["loss", "lr", "tokens_per_second"]
    for tag in ("loss", "lr", "tokens_per_second"):
        assert [event.step for event in reader.Scalars(tag)] == [10, 20, 30]
        assert [event.value for event in reader.Scalars(tag)] == pytest.approx([row[tag] for row in ROWS], rel=1e-6)


def test_tensorboard_plays_sound_and_shows_pictures(tmp_path, capsys):
    """Fails when media are written for another step or in another shape, and when a sound that cannot
    be one ends anything."""
    tracker = Tracker(tmp_path, LoggerConfig(name="tensorboard"), {})
    wave = 1.5 * np.sin(np.arange(1600) / 10).astype(np.float32)
    picture = np.zeros((4, 6, 3), dtype=np.uint8)
    picture[1, 2] = (255, 128, 0)
    tracker.log_media(20, audio={"samples/0": (wave, 16_000, "ciao")}, images={"samples/mel/0": picture})
    tracker.log_media(20, audio={"samples/1": ("no sound", 16_000, "")})
    assert "warning: TensorBoard failed: " in capsys.readouterr().err
    tracker.log({"step": 30, "loss": 1.0})
    tracker.close()
    reader = events(tmp_path)
    assert [event.step for event in reader.Scalars("loss")] == [30]
    (sound,) = reader.Audio("samples/0")
    assert (sound.step, sound.sample_rate) == (20, 16_000)
    samples, _ = soundfile.read(io.BytesIO(sound.encoded_audio_string))
    assert samples == pytest.approx(wave.clip(-1, 1), abs=1e-3)
    (image,) = reader.Images("samples/mel/0")
    assert (image.step, image.width, image.height) == (20, 6, 4)
    with Image.open(io.BytesIO(image.encoded_image_string)) as shown:
        assert shown.getpixel((2, 1)) == (255, 128, 0)
    (caption,) = reader.Tensors("samples/0/text/text_summary")
    assert caption.tensor_proto.string_val == [b"ciao"]


def test_a_resumed_tensorboard_run_has_no_step_twice_or_lost(tmp_path):
    """Fails when what the interrupted run wrote after its state is not purged."""
    track(tmp_path, ROWS, logger="tensorboard")
    time.sleep(1.1)  # files are read in the order of their names, which are seconds
    track(tmp_path, [{"step": 30, "loss": 0.25}, {"step": 40, "loss": 0.125}], logger="tensorboard", start_step=20)
    assert [(event.step, event.value) for event in events(tmp_path).Scalars("loss")] == [
        (10, 6.25),
        (20, 4.5),
        (30, 0.25),
        (40, 0.125),
    ]
    time.sleep(1.1)
    track(tmp_path, [{"step": 0, "loss": 7.0}], logger="tensorboard")  # begun anew
    assert [(event.step, event.value) for event in events(tmp_path).Scalars("loss")] == [(0, 7.0)]
