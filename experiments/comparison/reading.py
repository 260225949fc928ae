"""Runs as they lie on disk: config, metrics, how they ended.

RUN and SWEEP folders ─► find_runs ─► Run (flat config, metrics by step, state) ─► table, figures, page

A run that is being written may be read at any moment. Cost: each metrics.jsonl is read once, 1 s per 100,000 lines.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from llasa.errors import UserError, first_line
from llasa.provenance import CONFIG, RECORD
from llasa.sweep import FAILED, REPORT, UNFINISHED
from llasa.tracking import METRICS, read_metrics

EVALUATION = Path("evaluation/report.json")
AXES = ("step", "tokens", "audio_hours", "time")
QUIET_LINES, QUIET_SECONDS = 5, 120.0
"""A run that wrote nothing for longer than both (its own pace, and two minutes) is not running any more."""


@dataclass
class Job:
    """What a sweep says of one of its runs."""

    number: int
    overrides: list[str]
    status: str
    error: str | None
    folder: Path

    @property
    def is_lost(self) -> bool:
        return self.status in (FAILED, UNFINISHED)


@dataclass
class Run:
    """One run.

    Attributes:
        name: its folder, below the folder that all compared runs share.
        config: dotted key → value, as resolved when it ran.
        rows: the metrics of each step, ascending; None is a value that was not finite.
        evaluation: `WER` and the like, if it was evaluated.
    """

    folder: Path
    name: str
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    commit: str | None = None
    job: Job | None = None
    evaluation: dict[str, float] = field(default_factory=dict)

    @property
    def training(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if "loss" in row and is_measure(row["loss"])]

    def metrics(self) -> list[str]:
        """Names of all that was measured, in the order in which it appeared."""
        names = dict.fromkeys(key for row in self.rows for key, value in row.items() if is_measure(value))
        return [name for name in names if name != "step"]

    def values(self, metric: str) -> list[float | None]:
        return [row[metric] for row in self.rows if metric in row and is_measure(row[metric])]

    def last(self, metric: str) -> float | None:
        """The newest value; None if it was not finite or there is none."""
        values = self.values(metric)
        return values[-1] if values else None

    def best(self, metric: str) -> float | None:
        finite = [value for value in self.values(metric) if value is not None]
        return (max if is_to_grow(metric) else min)(finite, default=None)

    def axis(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, position on the axis) of the training lines; `time` in hours of training, without pauses."""
        if name == "time":
            points = [(row["step"], hours) for row, hours in zip(self.training, self._hours(), strict=True)]
        else:
            points = [(row["step"], row[name]) for row in self.rows if isinstance(row.get(name), int | float)]
        steps, positions = np.array(points, dtype=float).reshape(-1, 2).T
        return steps, positions

    def curve(self, metric: str, axis: str = "step") -> tuple[np.ndarray, np.ndarray]:
        """(x, y) of a metric, y NaN where it was not finite.

        Lines that lack the axis themselves (held-out ones have no `tokens`) get its value from the lines around.
        """
        rows = [row for row in self.rows if metric in row and is_measure(row[metric])]
        steps = np.array([row["step"] for row in rows], dtype=float)
        y = np.array([math.nan if row[metric] is None else row[metric] for row in rows], dtype=float)
        if axis == "step":
            return steps, y
        known, positions = self.axis(axis)
        if not len(known):
            return np.empty(0), np.empty(0)
        return np.interp(steps, np.concatenate([[0], known]), np.concatenate([[0], positions])), y

    def _hours(self) -> list[float]:
        """Hours of training until each training line: its tokens, at the speed that it states."""
        hours, tokens, result = 0.0, 0.0, []
        for row in self.training:
            speed, now = row.get("tokens_per_second"), row.get("tokens")
            if isinstance(now, int | float):
                if speed:
                    hours += max(now - tokens, 0) / speed / 3600
                tokens = now
            result.append(hours)
        return result

    def hours(self) -> float | None:
        return next((hours for hours in reversed(self._hours()) if hours > 0), None)

    def speed(self) -> float | None:
        """Median of the tokens a second."""
        known = [value for value in self.values("tokens_per_second") if value is not None]
        return statistics.median(known) if known else None

    @property
    def step(self) -> int:
        return int(self.rows[-1]["step"]) if self.rows else 0

    def planned_steps(self) -> tuple[int | None, bool]:
        """(number of steps, whether it is exact): from the config, else from the epochs so far."""
        if (steps := self.config.get("trainer.max_steps")) is not None:
            return int(steps), True
        epochs, epoch = self.config.get("trainer.epochs"), self.last("epoch")
        return (round(self.step * epochs / epoch), False) if epochs and epoch else (None, False)

    def state(self, now: float | None = None) -> tuple[str, str]:
        """(finished, running, stopped, diverged, failed or empty; the same in words)."""
        training = self.training
        if training and training[-1]["loss"] is None:
            return "diverged", f"diverged at step {first_of_tail(training):,}"
        steps, exact = self.planned_steps()
        arrived = bool(self.rows) and (not exact or self.step >= (steps or 0))
        has_checkpoint = (self.folder / "checkpoint").is_dir()
        if arrived and has_checkpoint:  # also a job that its sweep lists as failed and that was resumed since
            return "finished", "finished"
        if self.job is not None and self.job.status == FAILED:
            return "failed", f"failed at step {self.step:,}" if self.rows else "failed"
        if arrived and exact:
            return "finished", "finished"
        ended = self.job is not None  # a sweep's list is written when all its jobs are over
        running = not ended and self._is_running(time.time() if now is None else now)
        if not self.rows:
            return ("running", "running, no step logged yet") if running else ("empty", "no step logged")
        where = f"step {self.step:,}" + (f" of {'' if exact else 'about '}{steps:,}" if steps else "")
        return ("running", f"running, {where}") if running else ("stopped", f"stopped at {where}")

    @property
    def error(self) -> str | None:
        """Why it did not finish, if a sweep has recorded it."""
        return self.job.error if self.job is not None and self.state()[0] != "finished" else None

    def _is_running(self, now: float) -> bool:
        hours, lines = self.hours(), len(self.training)
        pace = 3600 * hours / lines if hours else 0.0
        return now - (self.folder / METRICS).stat().st_mtime < max(QUIET_SECONDS, QUIET_LINES * pace)


def first_of_tail(training: Sequence[dict[str, Any]]) -> int:
    """The step from which on no loss is finite."""
    tail = itertools.takewhile(lambda row: row["loss"] is None, reversed(training))
    return int([row["step"] for row in tail][-1])


def is_measure(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def is_to_grow(metric: str) -> bool:
    """Whether more of it is better; losses, error rates and seconds are to fall."""
    return any(word in metric for word in ("accuracy", "tokens_per_second", "mfu"))


def find_runs(paths: Sequence[Path]) -> tuple[list[Run], list[Job]]:
    """The runs in the folders, each once, and the failed jobs of sweeps that left no run.

    Args:
        paths: run folders, and folders with run folders anywhere below.

    Raises:
        UserError: a folder is not there or holds no run; a config that cannot be read.
    """
    folders: dict[Path, Path] = {}
    sweeps: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path} is not a folder", remedy="name run folders, or a sweep's")
        found, listed = walk(path)
        if not found:
            missing = METRICS if (path / CONFIG).is_file() else CONFIG
            if not any(job.is_lost for sweep in listed for job in read_sweep(sweep)):
                raise UserError(
                    f"{path} is no run and holds none", remedy=f"a run has {CONFIG} and {METRICS}; {missing} is missing"
                )
        folders |= {folder.resolve(): folder for folder in found}
        sweeps |= {folder.resolve(): folder for folder in listed}
    jobs = [job for sweep in sweeps for job in read_sweep(sweep)]
    by_folder = {job.folder: job for job in jobs}
    shared = os.path.commonpath([folder.parent for folder in folders]) if folders else ""
    runs = [read_run(folder, os.path.relpath(folder, shared), by_folder.get(folder)) for folder in folders]
    return runs, [job for job in jobs if job.is_lost and job.folder not in folders]


def walk(path: Path) -> tuple[list[Path], list[Path]]:
    """(run folders, folders with a sweep's list of jobs) in and below a folder; nothing is looked for in a run."""
    runs, sweeps = [], []
    for folder, children, files in os.walk(path):
        children.sort(key=natural)
        if REPORT in files:
            sweeps.append(Path(folder))
        if CONFIG in files and METRICS in files:
            runs.append(Path(folder))
            children.clear()
    return runs, sweeps


def natural(text: str) -> list[tuple[bool, float, str]]:
    """Sorts `it-4h` before `it-16h`, and job 2 before 10."""
    parts = re.split(r"(\d+)", text)
    return [(True, float(part), "") if part.isdecimal() else (False, 0.0, part) for part in parts]


def read_run(folder: Path, name: str, job: Job | None = None) -> Run:
    try:
        config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise TypeError("it holds no keys")
    except (yaml.YAMLError, UnicodeDecodeError, TypeError) as error:
        raise UserError(f"{folder / CONFIG} cannot be read: {first_line(error)}", remedy="leave this run out") from None
    record = read_json(folder / RECORD)
    return Run(
        folder=folder,
        name=name,
        config=flat(config),
        rows=merged(read_metrics(folder)),
        commit=record.get("commit") if isinstance(record, dict) else None,
        job=job,
        evaluation=read_evaluation(folder / EVALUATION),
    )


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key → value; lists are values, and so is an empty group."""
    if not isinstance(config, dict) or (prefix and not config):
        return {prefix.rstrip("."): config}
    return {key: value for name, part in config.items() for key, value in flat(part, f"{prefix}{name}.").items()}


def merged(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was measured at each step: its lines in one, ascending.

    Where steps were trained again, the later lines stand.
    """
    rows: dict[int, dict[str, Any]] = {}
    newest = -1
    for line in lines:
        step = int(line["step"])
        if "loss" in line:
            if step <= newest:
                rows = {known: values for known, values in rows.items() if known < step}
            newest = step
        rows[step] = rows.get(step, {}) | line
    return [rows[step] for step in sorted(rows)]


def read_sweep(folder: Path) -> list[Job]:
    """The jobs of a sweep, as far as its list can be understood."""
    listed = read_json(folder / REPORT)
    listed = listed.get("jobs") if isinstance(listed, dict) else listed
    jobs = []
    for number, job in enumerate(listed if isinstance(listed, list) else []):
        if not isinstance(job, dict):
            continue
        output = Path(job.get("output_dir") or number)
        jobs.append(
            Job(
                number=job.get("number", number),
                overrides=[str(override) for override in job.get("overrides") or []],
                status=str(job.get("status")),
                error=" ".join(str(job["error"]).split()) if job.get("error") else None,
                # The sweep's folder may have been moved since.
                folder=(output if output.is_dir() else folder / output.name).resolve(),
            )
        )
    return jobs


def read_evaluation(path: Path) -> dict[str, float]:
    """WER and CER of the run's speech, from a report that `evaluate.py` wrote into the run's folder."""
    report = read_json(path)
    try:
        metrics = next(system["metrics"] for system in report["systems"] if system["kind"] == "checkpoint")
        return {name.upper(): float(metrics[name]["value"]) for name in ("wer", "cer") if name in metrics}
    except (KeyError, TypeError, StopIteration):
        return {}


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
