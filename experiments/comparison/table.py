"""What sets the runs apart, and in which order they come.

Run ─► compare ─► Comparison (sorted runs, differing keys, groups over seeds) ─► columns, figures, page
"""

from __future__ import annotations

import difflib
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from experiments.comparison.reading import Job, Run, is_to_grow
from llasa.errors import UserError

WHERE_AND_HOW = ("device", "force", "logger", "objective", "output_dir", "plan", "resume")
"""Config keys, and groups of them, that name or place a run and do not make it another experiment."""
SEED = "seed"
USUAL = ("loss", "heldout/loss", "heldout/accuracy")
ABSENT = "–"
MISSING = object()
LONGEST_LABEL = 48


@dataclass
class Group:
    """Runs that differ in their seed alone."""

    runs: list[Run]

    def values(self, metric: str) -> list[float]:
        """The last values of those that have one."""
        return [value for run in self.runs if (value := run.last(metric)) is not None]

    def mean(self, metric: str) -> float | None:
        values = self.values(metric)
        return statistics.fmean(values) if values else None

    def deviation(self, metric: str) -> float | None:
        """Sample standard deviation (n - 1); none of fewer than two values."""
        values = self.values(metric)
        return statistics.stdev(values) if len(values) > 1 else None


@dataclass
class Comparison:
    """
    Attributes:
        runs: best first by ``metric``; those without a finite value last.
        keys: config keys whose values differ, in the order of the config.
        same: key → the key whose values it has in every run (`optimizer.lr` follows `model.lr`); shown once.
        partial: keys that only some of the configs have and that have one value there.
        metrics: what the table shows.
        groups: of runs that differ in their seed alone, in the order of their means.
    """

    runs: list[Run]
    failed: list[Job]
    metric: str
    axis: str
    keys: list[str]
    same: dict[str, str]
    partial: list[str]
    metrics: list[str]
    groups: list[Group]
    notes: list[str]

    @property
    def settings(self) -> list[str]:
        """The differing keys without the seed."""
        return [key for key in self.keys if key != SEED]

    def group_of(self, run: Run) -> Group:
        return next(group for group in self.groups if run in group.runs)


def compare(runs: Sequence[Run], failed: Sequence[Job] = (), metric: str = "loss", axis: str = "step") -> Comparison:
    """Raises:
    UserError: no run has the metric, or can be drawn over the axis.
    """
    known = list(dict.fromkeys(name for run in runs for name in run.metrics()))
    if metric not in known and known:
        near = difflib.get_close_matches(metric, known, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise UserError(f"no run has a metric named {metric!r}", remedy=remedy)
    if known and axis != "step" and not any(len(run.axis(axis)[0]) for run in runs):
        raise UserError(f"no run has logged {axis}", remedy="use --x step or another axis")
    keys, same, partial = differing_keys(runs)
    groups = group_by_seed(runs, keys)
    groups.sort(key=lambda group: rank(group.mean(metric), metric))
    return Comparison(
        runs=sorted(runs, key=lambda run: rank(run.last(metric), metric)),
        failed=list(failed),
        metric=metric,
        axis=axis,
        keys=keys,
        same=same,
        partial=partial,
        metrics=[m for m in dict.fromkeys([*USUAL, metric]) if m == "loss" or m in known],
        groups=groups,
        notes=notes(runs, same, partial),
    )


def rank(value: float | None, metric: str) -> tuple[bool, float]:
    """Sorts the best first, and last what has no value."""
    if value is None:
        return True, 0.0
    return False, -value if is_to_grow(metric) else value


def differing_keys(runs: Sequence[Run]) -> tuple[list[str], dict[str, str], list[str]]:
    """(differing keys, keys that are the same as one of them, keys that only some have), see :class:`Comparison`.

    A config of another version lacks keys: what is not there differs from nothing.
    """
    every = dict.fromkeys(key for run in runs for key in run.config if not is_within(key, WHERE_AND_HOW))
    keys: list[str] = []
    same: dict[str, str] = {}
    partial: list[str] = []
    columns: dict[str, list[Any]] = {}
    for key in every:
        values = [run.config.get(key, MISSING) for run in runs]
        present = [value for value in values if value is not MISSING]
        if all(value == present[0] for value in present):
            if len(present) < len(values):
                partial.append(key)
        elif (twin := next((k for k, column in columns.items() if column == values), None)) is not None:
            same[key] = twin
        else:
            columns[key] = values
            keys.append(key)
    return keys, same, partial


def is_within(key: str, names: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def group_by_seed(runs: Sequence[Run], keys: Sequence[str]) -> list[Group]:
    groups: dict[tuple[str, ...], Group] = {}
    for run in runs:
        settings = tuple(repr(run.config.get(key, MISSING)) for key in keys if key != SEED)
        groups.setdefault(settings, Group([])).runs.append(run)
    return list(groups.values())


def notes(runs: Sequence[Run], same: dict[str, str], partial: Sequence[str]) -> list[str]:
    """What a reader of the table has to know besides, a sentence each."""
    said = [f"{key} is the same as {twin} in every run." for key, twin in same.items()]
    if partial:
        shown = ", ".join(partial[:8]) + (f" and {len(partial) - 8} more" if len(partial) > 8 else "")
        said.append(f"Only some of the configs have {shown}.")
    commits = {run.commit for run in runs if run.commit}
    if len(commits) > 1:
        shown = ", ".join(sorted(commit[:10] + ("-dirty" if commit.endswith("-dirty") else "") for commit in commits))
        said.append(f"The runs were made by {len(commits)} versions of the code: {shown}.")
    return said


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Dotted key → as few of its last parts as tell it from the others; a `_target_` goes by what it makes."""
    names = {}
    plain = [key.removesuffix("._target_") for key in keys]
    for key in keys:
        parts = key.removesuffix("._target_").split(".")
        for count in range(1, len(parts) + 1):
            name = ".".join(parts[-count:])
            if sum(other == name or other.endswith(f".{name}") for other in plain) == 1:
                break
        names[key] = name
    return names


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_numeric(comparison: Comparison, key: str) -> bool:
    """Whether all runs that have the key have a number there."""
    return all(is_number(run.config[key]) for run in comparison.runs if key in run.config)


def setting(run: Run, key: str, runs: Sequence[Run] = ()) -> str:
    """A config value as people write it. Of paths, what they share with those of the other ``runs`` is left out."""
    if key not in run.config:
        return ABSENT
    value = run.config[key]
    if isinstance(value, float):
        text = f"{value:g}" if value == 0 or abs(value) >= 0.01 else f"{value:.5e}"
        mantissa, e, exponent = text.partition("e")
        return f"{float(mantissa):g}e{int(exponent)}" if e else text
    if value is None or isinstance(value, bool):
        return str(value).lower() if value is not None else "null"
    paths = [str(other.config[key]).split("/") for other in runs if key in other.config]
    if isinstance(value, str) and all(len(parts) > 1 for parts in paths):
        shared = len(list(takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))))
        return "/".join(value.split("/")[min(shared, value.count("/")) :])
    return str(value)


def label(run: Run, comparison: Comparison) -> str:
    """What tells a run from the others: its settings if these are few, else its name."""
    if not comparison.keys:
        return run.name
    text = settings_of(run, comparison, comparison.keys)
    twins = [other for other in comparison.runs if settings_of(other, comparison, comparison.keys) == text]
    if len(text) > LONGEST_LABEL:
        return run.name
    return f"{text} ({run.name})" if len(twins) > 1 else text


def group_label(group: Group, comparison: Comparison) -> str:
    """What its runs share, and how many they are."""
    text = settings_of(group.runs[0], comparison, comparison.settings)
    if not text or len(text) > LONGEST_LABEL:
        text = label(group.runs[0], comparison) if len(group.runs) == 1 else group.runs[0].name
    return text if len(group.runs) == 1 else f"{text} ({len(group.runs)} runs)"


def settings_of(run: Run, comparison: Comparison, keys: Sequence[str]) -> str:
    """`lr 1e-4 · seed 0`."""
    names = short_names(comparison.keys)
    return " · ".join(f"{names[key]} {setting(run, key, comparison.runs)}" for key in keys)
