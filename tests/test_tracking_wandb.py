"""Weights & Biases with its real client: offline runs read back from their files, online ones on a server here.

Each run is a process of its own: wandb keeps state in its process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
from PIL import Image

from llasa.config import LoggerConfig
from llasa.tracking import Tracker, read_metrics
from llasa.tracking.wandb_records import history, records
from tests.wandb_server import WandbServer

ROOT = Path(__file__).parents[1]

START = """
import os, sys, time
from pathlib import Path
import numpy as np, psutil
from llasa.config import LoggerConfig
from llasa.provenance import write_atomically, write_json
from llasa.tracking import Tracker

run = Path("run")
def tracker(start_step=0, **logger):
    return Tracker(run, LoggerConfig(name="wandb", project="my-project", **logger), {"optimizer": {"lr": 0.5}},
        start_step=start_step)
"""


def environment(folder: Path, url: str, key: str | None, **variables: str) -> dict[str, str]:
    """No W&B settings but these and no home but the folder's."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    kept |= {"HOME": str(home), "NETRC": str(home / "netrc"), "PYTHONPATH": str(ROOT), "WANDB_BASE_URL": url}
    return kept | variables | ({"WANDB_API_KEY": key} if key else {})


NOBODY = "http://127.0.0.1:9"


def in_process(folder: Path, code: str | list[str], url: str = NOBODY, key: str | None = None, **variables: str):
    """Run ``code`` after START in ``folder`` (a list is a module's command line)."""
    return subprocess.run(
        [sys.executable, "-m", *code] if isinstance(code, list) else [sys.executable, "-c", START + code],
        cwd=folder,
        env=environment(folder, url, key, **variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def killed(folder: Path, code: str, until: Callable[[], bool], part: float, *where: str, **variables: str) -> Path:
    """Run ``code`` until something is so, then end it and W&B's own processes as a power cut does.

    Returns:
        W&B's file, of which a part is on disk: it is written in pieces of 32 KiB, and at times nobody can tell.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", START + code + ";time.sleep(60)"],
        cwd=folder,
        env=environment(folder, *where, **variables),
        stdin=subprocess.DEVNULL,
    )
    end = time.monotonic() + 60
    while not until() and time.monotonic() < end:
        time.sleep(0.05)
    for child in psutil.Process(process.pid).children(recursive=True):
        child.kill()
    process.kill()
    process.wait()
    assert until()
    (file,) = (folder / "run").rglob("*.wandb")
    os.truncate(file, max(7, int(file.stat().st_size * part)))
    return file


KEY = "a" * 40


def sync(folder: Path, command: list[str], server: WandbServer) -> list[dict]:
    """Upload a run by the command that was printed, and return the rows that the server then has."""
    assert command[:2] == ["wandb", "sync"]
    result = in_process(folder, command, server.url, KEY)
    assert result.returncode == 0, result.stderr
    (rows,) = server.rows.values()
    return rows


def upload_command(result: subprocess.CompletedProcess) -> list[str]:
    return result.stdout.rpartition("to W&B: ")[2].splitlines()[0].split()


def told(rows: list[dict]) -> list[dict]:
    """Rows without W&B's own values."""
    return [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]


# Offline

OFFLINE = """
write_json(run / "provenance.json", {"commit": "abc", "store": {"it": {"codec": {"fingerprint": "f1"}}}})
(run / "git.diff").write_text("a change")
(run / "checkpoint").mkdir()
(run / "checkpoint" / "weights.bin").write_bytes(bytes(3_000_000))
tracker = tracker(group="sweep", artifacts=True)
tracker.log({"step": 10, "loss": 6.0, "lr": 1e-4})
tracker.log({"step": 10, "heldout/loss": 5.5, "heldout/loss/it": 5.25})
tracker.log({"step": 20, "loss": float("nan"), "lr": 1e-5, "samples/cer": None})
tracker.log({"step": 10, "heldout/late": 1.0})
wave = np.sin(np.arange(1600) / 10).astype(np.float32) / 2
picture = np.zeros((4, 6, 3), dtype=np.uint8)
picture[1, 2] = (255, 128, 0)
tracker.log_media(20, audio={"samples/0": (wave, 16000, "ciao")}, images={"samples/mel/0": picture})
tracker.log_media(20, audio={"samples/1": ("no sound", 16000, "")})
tracker.log({"step": 30, "loss": 3.0})
tracker.log_artifact(run / "checkpoint", "model")
tracker.log_artifact(run / "best", "model")
tracker.close(failed=True)
"""
LINES = [
    {"step": 10, "loss": 6.0, "lr": 1e-4},
    {"step": 10, "heldout/loss": 5.5, "heldout/loss/it": 5.25},
    {"step": 20, "loss": None, "lr": 1e-5, "samples/cer": None},
    {"step": 10, "heldout/late": 1.0},
    {"step": 30, "loss": 3.0},
]


@pytest.fixture(scope="module")
def offline(tmp_path_factory) -> Iterator[tuple[Path, subprocess.CompletedProcess, list[str], float]]:
    """A run with no key; a server listens that nobody may ask."""
    folder = tmp_path_factory.mktemp("wandb")
    (folder / "run").mkdir()
    with WandbServer() as server:
        begin = time.monotonic()
        result = in_process(folder, OFFLINE, server.url)
        seconds = time.monotonic() - begin
        assert result.returncode == 0, result.stderr
        yield folder / "run", result, server.requests, seconds


def of_kind(run: Path, kind: str) -> list:
    (file,) = run.rglob("*.wandb")
    return [getattr(record, kind) for record in records(file) if record.WhichOneof("record_type") == kind]


def test_without_a_key_nothing_leaves_the_machine(offline):
    """Fails when W&B's own reports of errors and timings are not switched off: they are sent from offline runs too."""
    run, result, requests, seconds = offline
    assert requests == []
    assert seconds < 30  # W&B waits 90 s for a server by default
    (file,) = run.rglob("*.wandb")
    assert file.parent.name.startswith("offline-run-")
    assert f"wandb sync {file.parent.relative_to(run.parent)}" in result.stdout
    assert (run / "wandb_id").read_text().strip() == file.parent.name.rpartition("-")[2]
    written = [path for path in (run.parent / "home").rglob("*") if path.is_file()]
    assert [path for path in written if ".cache" not in path.parts and "artifacts" not in path.parts] == []


def test_every_line_arrives_also_one_of_an_older_step(offline):
    """Fails when steps are W&B's own: it drops what is logged for a step before its newest."""
    run, _, _, _ = offline
    (file,) = run.rglob("*.wandb")
    assert read_metrics(run) == LINES
    rows = told(history(file))
    assert rows[0] == LINES[0]
    assert rows[1] == LINES[1]
    assert rows[2] == {"step": 20, "lr": 1e-5}
    assert rows[3] == LINES[3]
    assert rows[-1] == LINES[-1]
    (metric,) = of_kind(run, "metric")
    assert (metric.glob_name, metric.step_metric) == ("*", "step")


def test_config_record_and_names_arrive(offline):
    run, _, _, _ = offline
    (record,) = of_kind(run, "run")
    assert (record.project, record.run_group, record.display_name) == ("my-project", "sweep", "run")
    config = {item.key: json.loads(item.value_json) for item in record.config.update}
    assert config["optimizer"] == {"lr": 0.5}
    assert config["provenance"]["commit"] == "abc"
    assert config["provenance"]["store"]["it"]["codec"]["fingerprint"] == "f1"
    (end,) = of_kind(run, "exit")
    assert end.exit_code == 1  # closed as failed, although the process ended well
    assert [path.read_text() for path in run.rglob("git.diff")] == ["a change"] * 2
    assert of_kind(run, "output") == of_kind(run, "output_raw") == []


def test_sound_and_pictures_lie_beside_the_run(offline):
    run, result, _, _ = offline
    (file,) = run.rglob("*.wandb")
    (row,) = [row for row in told(history(file)) if "samples/0" in row]
    assert (row["step"], row["samples/0"]["caption"]) == (20, "ciao")
    wave, sample_rate = soundfile.read(file.parent / "files" / row["samples/0"]["path"])
    assert sample_rate == 16000
    assert wave == pytest.approx(np.sin(np.arange(1600) / 10) / 2, abs=1e-3)
    with Image.open(file.parent / "files" / row["samples/mel/0"]["path"]) as picture:
        assert picture.size == (6, 4)
        assert picture.convert("RGB").getpixel((2, 1)) == (255, 128, 0)
    assert "warning: W&B failed: " in result.stderr  # of samples/1, which is no sound
    assert "switched off" not in result.stderr


def test_a_checkpoint_is_an_artifact_on_request(offline):
    run, result, _, _ = offline
    (request,) = of_kind(run, "artifact")
    name = f"checkpoint-{(run / 'wandb_id').read_text().strip()}"
    assert (request.type, request.name, sorted(request.aliases)) == ("model", name, ["checkpoint", "latest"])
    (file,) = request.manifest.contents
    assert (file.path, file.local_path) == ("weights.bin", str(run / "checkpoint" / "weights.bin"))
    assert f"W&B artifact {name}: run/checkpoint, 3.0 MB" in result.stdout
    assert result.stdout.count("artifact") == 1  # run/best is not there


# Resumed

SEGMENTS = [
    "t = tracker(); [t.log({'step': s, 'loss': s / 10}) for s in range(1, 401)]",
    "t = tracker(390); [t.log({'step': s, 'loss': s / 10}) for s in range(391, 411)]; t.log({'step': 410, 'x': 4});"
    "t.close(failed=True)",
    "t = tracker(400); [t.log({'step': s, 'loss': s / 10}) for s in range(401, 421)]; t.close()",
]
WHOLE = [{"step": step, "loss": step / 10} for step in range(1, 421)]
WHOLE.insert(410, {"step": 410, "x": 4})


def in_order(rows: list[dict]) -> list[dict]:
    return sorted(told(rows), key=lambda row: (row["step"], "x" in row))


def test_a_resumed_offline_run_is_one_run_without_a_row_twice_or_lost(tmp_path):
    """Killed, resumed from before its end, and again. Fails when rows that the files hold are logged again, when
    those that were lost with the process are not, when the file that the kill cut off is left as it is (W&B then
    uploads nothing after it), and when each segment has an id of its own."""
    file = killed(tmp_path, SEGMENTS[0], lambda: len(read_metrics(tmp_path / "run")) == 400, 0.7, NOBODY, None)
    assert 0 < len(history(file)) < 390
    for segment in SEGMENTS[1:]:
        result = in_process(tmp_path, segment)
        assert result.returncode == 0, result.stderr
    files = list((tmp_path / "run").rglob("*.wandb"))
    assert len(files) == 3
    assert len({file.name for file in files}) == 1
    assert in_order([row for file in files for row in history(file)]) == WHOLE
    with WandbServer() as server:  # W&B's own reader of the same files
        assert in_order(sync(tmp_path, upload_command(result), server)) == WHOLE


def test_a_killed_run_whose_file_holds_nothing_is_no_obstacle(tmp_path):
    """Fails when the empty file stays: W&B refuses to read it, and all after it."""
    code = "t = tracker(); [t.log({'step': s, 'loss': 1.0}) for s in (1, 2)]"
    killed(tmp_path, code, lambda: len(read_metrics(tmp_path / "run")) == 2, 0.0, NOBODY, None)
    result = in_process(tmp_path, "t = tracker(1); t.log({'step': 2, 'loss': 1.0}); t.close()")
    with WandbServer() as server:
        rows = told(sync(tmp_path, upload_command(result), server))
    assert rows == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 1.0}]
    before = set((tmp_path / "run").rglob("*.wandb"))
    in_process(tmp_path, "t = tracker(); t.log({'step': 1, 'loss': 1.0}); t.close()")  # not resumed: a run of its own
    (file,) = set((tmp_path / "run").rglob("*.wandb")) - before
    assert file.name not in {path.name for path in before}
    assert told(history(file)) == rows[:1]


@pytest.mark.parametrize(("interval", "uploaded"), [pytest.param("0.2", True, marks=pytest.mark.slow), ("60", False)])
def test_an_online_run_that_was_killed_is_resumed_without_a_row_twice_or_lost(tmp_path, interval, uploaded):
    """The server may have more rows than the file that the kill cut off, or fewer. Fails when it is not asked."""
    with WandbServer() as server:

        def ready() -> bool:
            on_server = sum(map(len, server.rows.values()))
            return len(read_metrics(tmp_path / "run")) == 400 and on_server == (400 if uploaded else 0)

        variables = {"WANDB__FILE_STREAM_TRANSMIT_INTERVAL": interval}
        file = killed(tmp_path, SEGMENTS[0], ready, 0.7, server.url, KEY, **variables)
        assert 0 < len(history(file)) < 390
        result = in_process(tmp_path, SEGMENTS[1], server.url, KEY)
        assert result.returncode == 0, result.stderr
        (rows,) = server.rows.values()
        assert in_order(rows) == [row for row in WHOLE if row["step"] <= 410]


# The network dies


def test_a_network_that_dies_in_the_middle_costs_nothing(tmp_path):
    """The server stops answering once the run is known. Fails when the end waits for it without a limit."""
    code = """
t = tracker()
for step in range(1, 21):
    t.log({"step": step, "loss": 1 / step})
begin = time.monotonic()
t.close()
print("closed in", round(time.monotonic() - begin))
"""
    with WandbServer(silent_after_start=True) as server:
        result = in_process(tmp_path, code, server.url, KEY, WANDB_FINISH_TIMEOUT="3")
        assert any("file_stream" in path for path in server.requests)
        assert server.rows == {}
    assert result.returncode == 0, result.stderr
    expected = [{"step": step, "loss": 1 / step} for step in range(1, 21)]
    assert read_metrics(tmp_path / "run") == expected
    assert int(result.stdout.rpartition("closed in ")[2]) < 20
    assert "warning: W&B did not take everything in time" in result.stderr
    (place,) = (tmp_path / "run/wandb").glob("run-*")
    command = upload_command(result)
    assert command == ["wandb", "sync", "--include-online", f"run/wandb/{place.name}"]
    with WandbServer() as server:
        assert told(sync(tmp_path, command, server)) == expected


def test_without_a_network_at_the_start_the_run_is_offline(tmp_path):
    """Fails when a run with a key is given up because nobody answers."""
    code = "t = tracker(); t.log({'step': 1, 'loss': 1.0}); t.close()"
    result = in_process(tmp_path, code, key=KEY, WANDB_INIT_TIMEOUT="2")
    assert result.returncode == 0, result.stderr
    assert "warning: W&B cannot be reached, so the run is recorded offline" in result.stderr
    (file,) = (tmp_path / "run").rglob("offline-run-*/*.wandb")
    assert told(history(file)) == [{"step": 1, "loss": 1.0}]


def test_a_service_that_dies_costs_nothing_but_itself(tmp_path):
    """Fails when an exception of W&B's client ends the run."""
    code = """
t = tracker()
t.log({"step": 1, "loss": 1.0})
for child in psutil.Process().children(recursive=True):
    child.kill()
time.sleep(1)
for step in (2, 3):
    t.log({"step": step, "loss": 1.0})
t.close()
"""
    result = in_process(tmp_path, code)
    assert result.returncode == 0, result.stderr
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [1, 2, 3]
    assert result.stderr.count("warning: W&B failed and is switched off") == 1


def test_jobs_of_a_sweep_may_follow_each_other_in_a_process(tmp_path):
    """Hydra's own launcher runs them so. Fails when the first one's run is gone on with."""
    code = """
for name in ("a", "b"):
    t = Tracker(Path(name), LoggerConfig(name="wandb", group="sweep", run_name=f"lr={name}"), {})
    t.log({"step": 1, "loss": 1.0})
    t.close(failed=name == "a")
"""
    result = in_process(tmp_path, code)
    assert result.returncode == 0, result.stderr
    runs = [of_kind(tmp_path / name, "run")[-1] for name in ("a", "b")]
    assert [(run.run_group, run.display_name) for run in runs] == [("sweep", "lr=a"), ("sweep", "lr=b")]
    assert runs[0].run_id != runs[1].run_id
    assert [of_kind(tmp_path / name, "exit")[0].exit_code for name in ("a", "b")] == [1, 0]


def test_a_service_that_cannot_start_costs_nothing_but_itself(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = LoggerConfig(name="wandb", project="a/b")  # a name that W&B refuses
    tracker = Tracker(tmp_path, logger, {})
    tracker.log({"step": 1, "loss": 2.0})
    tracker.close()
    assert "warning: logger=wandb cannot be used" in capsys.readouterr().err
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": 2.0}
