"""Sweeps as a person runs them: every launcher, Optuna, jobs that fail, a second try, and what is left to read.

Jobs that train are tiny and real. What only concerns the sweep itself is tried with jobs of a line or two.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from llasa.config import InferConfig, TrainConfig
from llasa.entry import entry
from llasa.errors import UserError
from llasa.sweep import JOBS, SOME_FAILED, Sweep, direction
from tests.conftest import SMALL_LLAMA
from tests.test_entry import run_python, run_script, write_entry

TINY = [*SMALL_LLAMA, "optimizer=adamw", "packing.max_length=512", "trainer.max_steps=2", "trainer.rows_per_step=1",
        "trainer.rows_per_device=1", "trainer.log_every=1", "checkpoint.every=1", "schedule=constant",
        "schedule.warmup=0", "heldout.every=0", "samples.every=0"]  # fmt: skip
DIVERGES = "1e30"


def report(folder: Path) -> dict:
    return json.loads((folder / "sweep.json").read_text())


def column(folder: Path, key: str) -> list:
    return [job[key] for job in report(folder)["jobs"]]


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


class Outcome(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run_sweep(tmp_path, monkeypatch, capfd):
    """A sweep in this process, which has imported everything, in the empty folder ``sweep``."""

    def run(job: Callable[[Any], Any], *arguments: str, root: str = "train") -> Outcome:
        monkeypatch.chdir(tmp_path)
        common = ["store=x", "output_dir=sweep"] if root == "train" else []
        status = run_here(monkeypatch, root, job, "-m", *common, *arguments)
        return Outcome(status, *capfd.readouterr())

    return run


def run_here(monkeypatch, root: str, job: Callable[[Any], Any], *arguments: str) -> int:
    """The exit status of a program with this job."""
    monkeypatch.setattr(sys, "argv", ["program.py", *arguments])
    for name in ("HYDRA_FULL_ERROR", "PYTHONPATH"):  # set by the entry, for processes that it has to itself
        monkeypatch.setenv(name, os.environ.get(name, ""))
    handlers = logging.root.handlers[:]
    try:
        entry(root)(job)()
    except SystemExit as leaving:
        return leaving.code or 0
    finally:
        logging.root.handlers[:] = handlers  # Hydra's and Optuna's write to this test's output
        logging.getLogger("optuna").handlers.clear()
    return 0


# Jobs that train


@pytest.fixture(scope="module")
def sweep(toy_store, tmp_path_factory):
    """Three learning rates; the second one's gradients are not numbers after a step."""
    from llasa.training.run import train

    folder = tmp_path_factory.mktemp("sweep") / "rates"
    with pytest.MonkeyPatch.context() as patch:
        rates = ["-m", *TINY, f"optimizer.lr=1e-3,{DIVERGES},1e-2"]
        status = run_here(patch, "train", train, *rates, f"store={toy_store}", f"output_dir={folder}")
    return status, folder


def test_a_diverged_job_is_reported_and_the_others_finish(sweep):
    """Fails when a job's mistake ends the sweep, as it ends a single run, and when the objective is not the job's."""
    status, folder = sweep
    assert status == SOME_FAILED
    told = report(folder)
    assert (told["objective"], told["direction"]) == ("loss", "minimize")
    assert column(folder, "status") == ["finished", "failed", "finished"]
    assert column(folder, "overrides") == [["optimizer.lr=0.001"], ["optimizer.lr=1e+30"], ["optimizer.lr=0.01"]]
    assert [Path(run) for run in column(folder, "output_dir")] == [folder / str(number) for number in range(3)]
    assert re.match(r"the (loss|gradient norm) is nan at step 2; lower optimizer\.lr", column(folder, "error")[1])
    objectives = column(folder, "objective")
    assert objectives == [losses(folder / "0")[-1], None, losses(folder / "2")[-1]]
    assert told["best"] == (0 if objectives[0] < objectives[2] else 2)
    assert not (folder / JOBS).exists()


def test_the_runs_of_a_sweep_are_a_group_of_the_logger(sweep):
    """Fails when a job does not fill in what the config leaves open."""
    loggers = [yaml.safe_load((sweep[1] / number / "config.yaml").read_text())["logger"] for number in "012"]
    assert {logger["group"] for logger in loggers} == {"rates"}
    names = [logger["run_name"] for logger in loggers]
    assert names == ["optimizer.lr=0.001", "optimizer.lr=1e+30", "optimizer.lr=0.01"]


def test_the_same_sweep_again_runs_what_is_missing(sweep, toy_store, monkeypatch):
    """Fails when a finished job is trained again, and when a folder that holds a run ends the sweep."""
    from llasa.training.run import train

    _, folder = sweep
    for number in "02":
        lines = (folder / number / "metrics.jsonl").read_text().splitlines()
        marked = [json.dumps(json.loads(line) | {"before": True}) + "\n" for line in lines]
        (folder / number / "metrics.jsonl").write_text("".join(marked))
    whole = losses(folder / "2")
    for rest in ("checkpoint", "state/checkpoint-2"):  # as if job 2 was killed after a step
        shutil.rmtree(folder / "2" / rest)
    arguments = ["-m", *TINY, f"optimizer.lr=1e-3,{DIVERGES},1e-2", f"store={toy_store}", f"output_dir={folder}"]
    assert run_here(monkeypatch, "train", train, *arguments, "resume=auto") == SOME_FAILED
    for number, expected in (("0", [True, True]), ("2", [True, False])):
        lines = (folder / number / "metrics.jsonl").read_text().splitlines()
        assert ["before" in json.loads(line) for line in lines] == expected
        assert (folder / number / "checkpoint").is_dir()
    assert losses(folder / "2") == whole
    assert column(folder, "status") == ["finished", "failed", "finished"]
    assert column(folder, "objective") == [losses(folder / "0")[-1], None, whole[-1]]


LAUNCHERS = {
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra/launcher=submitit_local"],
    "ray": ["hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2",
            "+hydra.launcher.ray.init.include_dashboard=false"],
}  # fmt: skip


@pytest.mark.parametrize(
    "launcher",
    [pytest.param("joblib", marks=pytest.mark.slow), "submitit_local", pytest.param("ray", marks=pytest.mark.slow)],
)
def test_jobs_train_in_processes_of_a_launcher(launcher, toy_store, tmp_path):
    """Fails when a record does not come back from another process, or a failure there ends the sweep."""
    folder = tmp_path / "sweep"
    result = run_script("train.py", "-m", *LAUNCHERS[launcher], *TINY, f"optimizer.lr=1e-3,{DIVERGES}",
                        f"store={toy_store}", f"output_dir={folder}", cwd=tmp_path)  # fmt: skip
    assert result.returncode == SOME_FAILED, result.stderr[-3000:]
    assert column(folder, "status") == ["finished", "failed"]
    assert column(folder, "objective") == [losses(folder / "0")[-1], None]
    assert (folder / "0/checkpoint").is_dir()
    last = result.stderr.splitlines()[-1] if launcher != "ray" else result.stderr
    assert re.search(r"^error: in a job of the sweep: the (loss|gradient norm) is nan at step 2", last, re.MULTILINE)
    logger = yaml.safe_load((folder / "1" / "config.yaml").read_text())["logger"]
    assert (logger["group"], logger["run_name"]) == ("sweep", "optimizer.lr=1e+30")
    table = result.stdout[result.stdout.index(f"sweep {folder.relative_to(tmp_path)}: 1 of 2 jobs finished") :]
    assert re.search(r"^  0  finished loss [\d.]+ \(best\)  optimizer\.lr=0\.001  sweep/0$", table, re.MULTILINE)
    assert re.search(r"^  1  failed  +optimizer\.lr=1e\+30  sweep/1\n     the ", table, re.MULTILINE)


# Jobs of a line or two


def by_seed(config: TrainConfig) -> float:
    if config.seed == 2:
        raise UserError("no store", remedy="make one")
    if config.seed == 3:
        raise RuntimeError("the cause")
    return math.nan if config.seed == 4 else 1.5


ERROR_OF = {"1": None, "2": "no store; make one", "3": "RuntimeError: the cause", "4": "loss is nan"}


@pytest.mark.parametrize(
    ("seeds", "status", "told"),
    [
        ("1,1", 0, ""),
        ("1,2", 3, "in a job of the sweep: no store; make one"),
        ("2,2", 2, "in 2 jobs of the sweep: no store; make one"),
        ("2,3,1,4", 3, "3 of 4 jobs of the sweep did not finish (0, 1, 3); see sweep/sweep.json"),
    ],
)
def test_the_exit_status_tells_whether_all_some_or_none_finished(seeds, status, told, tmp_path, run_sweep):
    """Fails when a mistake, a bug or a result that is no number ends the sweep or passes for a finished job."""
    result = run_sweep(by_seed, f"seed={seeds}")
    assert result.returncode == status, result.stderr
    assert result.stderr.splitlines()[-1:] == ([f"error: {told}"] if told else [])
    assert column(tmp_path / "sweep", "error") == [ERROR_OF[seed] for seed in seeds.split(",")]
    assert ('raise RuntimeError("the cause")' in result.stderr) == ("3" in seeds), "a bug keeps its traceback"
    assert result.stderr.count("Traceback") == seeds.count("3")


DIES = """
import os
os._exit(1) if config.seed == 5 else None
return 1.0
"""


@pytest.mark.parametrize("launcher", ["joblib", pytest.param("submitit_local", marks=pytest.mark.slow)])
def test_a_job_whose_process_is_killed_is_told_too(launcher, tmp_path):
    """submitit goes on; joblib cannot. Fails when submitit's launcher stops at the first result that is missing."""
    script = write_entry(tmp_path, "train", DIES.strip())
    seeds = "seed=1,5,1" if launcher == "submitit_local" else "seed=1,5"
    result = run_python(script, "-m", *LAUNCHERS[launcher], "store=x", "output_dir=sweep", seeds, cwd=tmp_path)
    assert "Traceback" not in result.stderr
    statuses = column(tmp_path / "sweep", "status")
    killed = [job["status"] for job in report(tmp_path / "sweep")["jobs"] if "seed=5" in job["overrides"]]
    assert killed == ["unfinished"]  # joblib may never have started the other one
    if launcher == "joblib":
        assert result.returncode == 2
        assert "error: the process of a job was killed, which ends a sweep of hydra/launcher=joblib" in result.stderr
    else:
        assert statuses == ["finished", "unfinished", "finished"]
        assert result.returncode == SOME_FAILED
        assert "error: in a job of the sweep: its process ended before the job did" in result.stderr


def test_ctrl_c_ends_the_whole_sweep_and_leaves_its_table(tmp_path, run_sweep):
    def interrupted(config: TrainConfig) -> float:
        print("job", config.seed)
        if config.seed == 2:
            raise KeyboardInterrupt
        return 1.0

    result = run_sweep(interrupted, "seed=1,2,3")
    assert (result.returncode, result.stderr) == (130, "interrupted\n")
    assert re.findall(r"^job (\d)$", result.stdout, re.MULTILINE) == ["1", "2"]
    assert column(tmp_path / "sweep", "status") == ["finished", "unfinished"]


def test_preemption_ends_the_whole_sweep_with_status_0(tmp_path, run_sweep):
    def preempted(config: TrainConfig) -> float:
        raise SystemExit(0)

    result = run_sweep(preempted, "seed=1,2")
    assert (result.returncode, result.stderr) == (0, "")
    assert column(tmp_path / "sweep", "status") == ["unfinished"]


def test_a_failure_of_one_of_several_processes_ends_the_sweep(tmp_path, run_sweep, monkeypatch):
    """The other processes would be in a job that this one has left."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = run_sweep(by_seed, "seed=1,2,1")
    assert (result.returncode, result.stderr) == (2, "error: job 1 of the sweep: no store; make one\n")
    assert column(tmp_path / "sweep", "status") == ["finished", "failed"]


def rate(config: TrainConfig) -> float:
    if config.seed == 2 or config.optimizer["lr"] > 5e-4:
        raise UserError("diverged", remedy="less")
    return config.optimizer["lr"]


def test_optuna_maximises_an_accuracy_and_takes_failed_trials(tmp_path, run_sweep):
    """Fails when the direction does not follow the objective, when a failed trial is a NaN, at which the sweeper ends,
    and when `tag(log, …)` does not get through."""
    search = ["hydra/sweeper=optuna", "optimizer.lr=tag(log, interval(1e-5, 1e-3))", "hydra.sweeper.n_trials=6"]
    result = run_sweep(rate, *search, "hydra.sweeper.sampler.seed=4", "objective=heldout/accuracy")
    assert result.returncode == SOME_FAILED, result.stderr
    told = report(tmp_path / "sweep")
    statuses = column(tmp_path / "sweep", "status")
    assert len(statuses) == 6
    assert set(statuses) == {"finished", "failed"}
    values = [job["objective"] for job in told["jobs"] if job["objective"] is not None]
    assert (told["direction"], told["jobs"][told["best"]]["objective"]) == ("maximize", max(values))
    assert all(1e-5 <= value <= 5e-4 for value in values)
    best = yaml.safe_load((tmp_path / "sweep/optimization_results.yaml").read_text())
    assert best["best_value"] == max(values) > min(values)


def test_a_study_without_a_finished_trial_is_a_sweep_without_a_finished_job(run_sweep):
    search = ["hydra/sweeper=optuna", "optimizer.lr=interval(1e-5, 1e-3)", "hydra.sweeper.n_trials=2"]
    result = run_sweep(rate, *search, "seed=2")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1] == "error: in 2 jobs of the sweep: diverged; less"


def test_a_study_is_kept_in_a_database_or_refused(tmp_path, run_sweep):
    search = ["hydra/sweeper=optuna", "optimizer.lr=interval(1e-5, 1e-4)", "hydra.sweeper.n_trials=1",
              "hydra.sweeper.study_name=rates", f"hydra.sweeper.storage=sqlite:///{tmp_path}/study.db"]  # fmt: skip
    results = [run_sweep(rate, *search, f"output_dir=sweep{number}") for number in (1, 2)]
    if version("SQLAlchemy").startswith("1."):
        assert [result.returncode for result in results] == [0, 0]
        with closing(sqlite3.connect(tmp_path / "study.db")) as database:
            assert database.execute("select count(*) from trials").fetchone() == (2,), "both commands' trials"
    else:
        refused = "error: hydra.sweeper.storage: optuna 2 cannot keep a study with SQLAlchemy"
        assert [(result.returncode, result.stderr.startswith(refused)) for result in results] == [(2, True)] * 2


def test_a_job_that_returns_nothing_has_finished(tmp_path, run_sweep):
    assert run_sweep(lambda config: None, "seed=1,2").returncode == 0
    assert column(tmp_path / "sweep", "status") == ["finished"] * 2
    assert report(tmp_path / "sweep")["best"] is None


def test_records_of_an_older_sweep_do_not_count(tmp_path, run_sweep):
    folder = tmp_path / "sweep" / JOBS
    folder.mkdir(parents=True)
    (folder / "7.json").write_text(json.dumps({"sweep": "old", "number": 7, "overrides": [], "output_dir": "x"}))
    assert Sweep(tmp_path / "sweep", (), None, "minimize").jobs() == []
    assert run_sweep(by_seed, "seed=1,1").returncode == 0
    assert column(tmp_path / "sweep", "number") == [0, 1]


def test_what_infer_writes_is_numbered_in_a_sweep(run_sweep):
    """Fails when each job writes over the last one's speech."""

    def output(config: InferConfig) -> None:
        print("to", config.output)

    common = ["checkpoint=x", "text=Ciao", "hydra.sweep.dir=sweep"]
    result = run_sweep(output, *common, "seed=1,2", "output=out/a.wav", root="infer")
    assert re.findall(r"^to (.*)$", result.stdout, re.MULTILINE) == ["out/a-0.wav", "out/a-1.wav"]
    result = run_sweep(output, *common, "output=a.wav,b.wav", root="infer")
    assert re.findall(r"^to (.*)$", result.stdout, re.MULTILINE) == ["a.wav", "b.wav"]


def test_what_the_user_named_is_not_named_again(run_sweep):
    def names(config: TrainConfig) -> None:
        print("is", config.logger.group, config.logger.run_name)

    result = run_sweep(names, "seed=1,2", "logger.group=mine", "logger.run_name=this")
    assert re.findall(r"^is (.*)$", result.stdout, re.MULTILINE) == ["mine this"] * 2
    result = run_sweep(names, "seed=1,2", "optimizer.lr=choice(1e-3)", "lang=it")
    assert re.findall(r"^is (.*)$", result.stdout, re.MULTILINE) == [
        f"sweep seed={seed},optimizer.lr=0.001" for seed in (1, 2)
    ]


@pytest.mark.parametrize(
    ("folder", "name"),
    [("sweeps/rates", "rates"), ("outputs/2026-01-02/03-04-05", "2026-01-02_03-04-05"), ("2026-1-2/x", "x")],
)
def test_a_sweep_is_called_after_its_folder(folder, name):
    assert Sweep(Path(folder), (), None, "minimize").name == name


@pytest.mark.parametrize(
    ("objective", "expected"),
    [("loss", "minimize"), ("heldout/loss", "minimize"), ("samples/cer", "minimize"), (None, "minimize"),
     ("heldout/accuracy", "maximize"), ("heldout/accuracy/it", "maximize")],
)  # fmt: skip
def test_an_accuracy_is_to_grow(objective, expected):
    assert direction(objective) == expected
