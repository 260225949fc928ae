"""Sweeps: what became of each job of `-m`, whoever ran it, and a table of them at the end.

    parent ─ launcher ─► job: SWEEP/.jobs/N.json ─► parent: SWEEP/sweep.json, a table, the exit status

A :class:`SweepCallback` stands in every root's Hydra config. Hydra carries it to the processes of joblib, submitit and
Ray, where it turns a job's exception into a record, so that the other jobs go on. The sweep's folder must be on a disk
that all its machines share, as its run folders have to be.

Cost: two small files a job. Nothing here imports torch.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
import time
import traceback
import uuid
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from llasa.errors import UserError, first_line
from llasa.explain import fail
from llasa.provenance import write_atomically, write_json

JOBS, REPORT = ".jobs", "sweep.json"
RUNNING, FINISHED, FAILED, UNFINISHED = "running", "finished", "failed", "unfinished"
UNFINISHED_REASON = "its process ended before the job did (stopped, killed or out of memory)"
SOME_FAILED = 3
"""Exit status of a sweep of which some jobs finished and some did not."""


def direction(objective: str | None) -> str:
    """How a metric is preferred: accuracies and the share of samples that ended are to grow, all else to fall."""
    return "maximize" if any(word in (objective or "") for word in ("accuracy", "stopped")) else "minimize"


@dataclass
class Job:
    """One job of a sweep, as its process and `sweep.json` tell it."""

    number: int
    overrides: list[str]
    """What this job has of its own: the keys that the sweep changes."""
    output_dir: str
    status: str = RUNNING
    objective: float | None = None
    error: str | None = None
    """One line; the traceback of a bug is in the job's log."""
    seconds: float | None = None


@dataclass
class Sweep:
    """What all processes of a sweep know about it."""

    folder: Path
    keys: tuple[str, ...]
    """The keys that differ between its jobs."""
    objective: str | None
    direction: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Tells its records from those of an older sweep in the same folder whose jobs still run."""

    @property
    def name(self) -> str:
        """Of the group of its runs: the folder's name, with the date where that is only a time."""
        dated = re.fullmatch(r"\d{4}-\d\d-\d\d", self.folder.parent.name)
        return f"{self.folder.parent.name}_{self.folder.name}" if dated else self.folder.name

    def own(self, overrides: list[str]) -> list[str]:
        return [override for override in overrides if override.partition("=")[0] in self.keys]

    def write(self, job: Job) -> None:
        (self.folder / JOBS).mkdir(parents=True, exist_ok=True)
        record = json.dumps({"sweep": self.id} | asdict(job)).encode()
        write_atomically(self.folder / JOBS / f"{job.number}.json", record)

    def jobs(self) -> list[Job]:
        """All that were started, by number."""
        records = [json.loads(path.read_bytes()) for path in (self.folder / JOBS).glob("*.json")]
        jobs = [Job(**record) for record in records if record.pop("sweep") == self.id]
        for job in jobs:
            if job.status == RUNNING:
                job.status, job.error = UNFINISHED, UNFINISHED_REASON
        return sorted(jobs, key=lambda job: job.number)


class SweepCallback(Callback):
    """Hydra's events of a sweep; of a single run it hears too and does nothing.

    Attributes:
        sweep: set in the parent, and with this object in each job's process.
    """

    def __init__(self) -> None:
        self.sweep: Sweep | None = None
        self.job: Job | None = None
        self.started = 0.0

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        global _sweep
        objective = OmegaConf.select(config, "objective")
        self.sweep = _sweep = Sweep(
            folder=Path(config.hydra.sweep.dir).absolute(),
            keys=swept_keys(config),
            objective=objective,
            direction=set_up_optuna(config, direction(objective)),
        )
        shutil.rmtree(self.sweep.folder / JOBS, ignore_errors=True)
        if "submitit" in config.hydra.launcher._target_:
            _go_on_without_lost_jobs()

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        global _sweep, _job
        if self.sweep is None:
            return
        _sweep = self.sweep  # in a process of a launcher's
        overrides = self.sweep.own(list(config.hydra.overrides.task))
        self.job = _job = Job(config.hydra.job.num, overrides, config.hydra.runtime.output_dir)
        self.started = time.monotonic()
        if is_first_process():
            self.sweep.write(self.job)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Record the result. A failure becomes a return value of none, which a sweeper takes: Optuna counts it as a
        failed trial and would end at a NaN.

        Raises:
            SystemExit: a failure of one of several processes. The others wait for it, and a next job would not find
                them.
        """
        if self.sweep is None or self.job is None:
            return
        job, self.job = self.job, None
        job.seconds = round(time.monotonic() - self.started, 1)
        result = job_return._return_value  # the property raises what the job raised
        if isinstance(result, BaseException):
            told = str(result) if isinstance(result, UserError) else f"{type(result).__name__}: {first_line(result)}"
            job.status, job.error = FAILED, " ".join(told.split())
        elif isinstance(result, (int, float)) and not math.isfinite(result):
            job.status, job.error = FAILED, f"{self.sweep.objective or 'the result'} is {result}"
        else:
            job.status = FINISHED
            job.objective = float(result) if isinstance(result, (int, float)) else None
        if job.status == FAILED or is_first_process():
            self.sweep.write(job)
        if job.status == FAILED:
            if isinstance(result, Exception) and not isinstance(result, UserError):
                traceback.print_exception(result)
            if several_processes():
                fail(UserError(f"job {job.number} of the sweep: {job.error}"))
            print(f"job {job.number} failed: {job.error}", file=sys.stderr, flush=True)
            job_return.status, job_return.return_value = JobStatus.COMPLETED, None


_sweep: Sweep | None = None
_job: Job | None = None


def current_job() -> tuple[Sweep, Job] | None:
    """The sweep and its job that this process runs; none outside of a sweep."""
    return None if _sweep is None or _job is None else (_sweep, _job)


def is_first_process() -> bool:
    names = ("RANK", "SUBMITIT_LOCAL_GLOBALID", "SLURM_PROCID")
    return next((os.environ[name] for name in names if name in os.environ), "0") == "0"


def several_processes() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def swept_keys(config: DictConfig) -> tuple[str, ...]:
    """The keys to which a sweep gives several values, on the command line or in `hydra.sweeper.params`."""
    try:
        overrides = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
    except HydraException:  # the sweeper will say so
        overrides = []
    swept = [override.get_key_element() for override in overrides if override.is_sweep_override()]
    return (*swept, *(OmegaConf.select(config, "hydra.sweeper.params") or {}))


def set_up_optuna(config: DictConfig, preferred: str) -> str:
    """Let Optuna's sweeper, if it is the one, follow the objective and go on after failed trials.

    Returns:
        The direction of the sweep: the preferred one, if the command line names no other.
    """
    sweeper = config.hydra.sweeper
    if "optuna" not in sweeper._target_:
        return preferred
    if sweeper.storage is not None and not version("SQLAlchemy").startswith("1."):
        fail(
            UserError(
                f"hydra.sweeper.storage: optuna 2 cannot keep a study with SQLAlchemy {version('SQLAlchemy')}",
                remedy="pip install sqlalchemy==1.4.54 alembic==1.16.5",
            )
        )
    with read_write(config), open_dict(sweeper):
        if not any(override.startswith("hydra.sweeper.direction=") for override in config.hydra.overrides.hydra):
            sweeper.direction = preferred
        # Its default, 0, tells of each failure on lines of its own, and of its exception, which we have caught.
        sweeper.max_failure_rate = sweeper.max_failure_rate or 1.0
    chosen = sweeper.direction
    return str(getattr(chosen, "name", chosen))


def _go_on_without_lost_jobs() -> None:
    """Let submitit's launcher go on when a job's process is killed or reaches its time limit.

    The launcher collects results job by job, and one that is missing would end it before the jobs that come after.
    """
    from submitit.core.core import Job as SubmittedJob
    from submitit.core.utils import FailedJobError, UncompletedJobError

    if hasattr(SubmittedJob.results, "of_library"):
        return
    of_library = SubmittedJob.results

    def results(self: Any) -> list[Any]:
        try:
            return of_library(self)
        except (FailedJobError, UncompletedJobError) as error:
            print(f"a job of the sweep is lost: {first_line(error)}", file=sys.stderr, flush=True)
            return [JobReturn(status=JobStatus.COMPLETED)]

    results.of_library = of_library  # type: ignore[attr-defined]
    SubmittedJob.results = results  # type: ignore[method-assign]  # submitit has no other way in


def finish_sweep() -> tuple[UserError, int] | None:
    """Write `sweep.json` and print the table, if this process ran a sweep.

    Returns:
        What is to be said of failures, and the exit status: 2 where no job finished, else `SOME_FAILED`. None where all
        finished, or there was no sweep.
    """
    global _sweep
    sweep, _sweep = _sweep, None
    if sweep is None or not is_first_process() or not (jobs := sweep.jobs()):
        return None
    finished = [job for job in jobs if job.status == FINISHED]
    valued = [(job.objective, job.number) for job in finished if job.objective is not None]
    choose = max if sweep.direction == "maximize" else min
    best = choose(valued, key=lambda job: job[0])[1] if valued else None
    report = {"objective": sweep.objective, "direction": sweep.direction, "best": best}
    write_json(sweep.folder / REPORT, report | {"jobs": [asdict(job) for job in jobs]})
    shutil.rmtree(sweep.folder / JOBS, ignore_errors=True)
    print(table(sweep, jobs, best), flush=True)
    if len(finished) == len(jobs):
        return None
    errors = [job.error for job in jobs if job.error is not None]
    if len(set(errors)) == 1:
        which = "a job" if len(errors) == 1 else f"{len(errors)} jobs"
        error = UserError(f"in {which} of the sweep: {errors[0]}")
    else:
        numbers = ", ".join(str(job.number) for job in jobs if job.error is not None)
        failures = f"{len(errors)} of {len(jobs)} jobs of the sweep did not finish ({numbers})"
        error = UserError(failures, remedy=f"see {shown(sweep.folder / REPORT)}")
    return error, SOME_FAILED if finished else 2


def table(sweep: Sweep, jobs: list[Job], best: int | None) -> str:
    """A line for each job: number, result, what it has of its own, folder; a failure's reason below it."""
    finished = sum(job.status == FINISHED for job in jobs)
    lines = [f"sweep {shown(sweep.folder)}: {finished} of {len(jobs)} jobs finished"]
    rows = []
    for job in jobs:
        value = "" if job.objective is None else f" {sweep.objective or 'result'} {job.objective:.6g}"
        mark = " (best)" if job.number == best and len(jobs) > 1 else ""
        rows.append((f"  {job.number}", f"{job.status}{value}{mark}", " ".join(job.overrides), shown(job.output_dir)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for job, row in zip(jobs, rows, strict=True):
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        lines += [f"{' ' * (widths[0] + 2)}{job.error}"] if job.error else []
    return "\n".join(lines)


def shown(path: str | Path) -> str:
    """Relative where that is shorter to read."""
    return str(Path(path).relative_to(Path.cwd()) if Path(path).is_relative_to(Path.cwd()) else path)
