"""The cells of the tables: a row a run, and a row for each setting with the mean over its seeds.

Comparison ─► columns, group_columns ─► terminal, Markdown, page
"""

from __future__ import annotations

from dataclasses import dataclass

from experiments.comparison.reading import Run
from experiments.comparison.table import ABSENT, Comparison, Group, is_numeric, setting

NOT_FINITE = "NaN"


def evaluations(comparison: Comparison) -> list[str]:
    return list(dict.fromkeys(name for run in comparison.runs for name in run.evaluation))


def amount(value: float | None, decimals: int = 4) -> str:
    """Loss, accuracy and the like, with enough digits to tell two runs apart."""
    if value is None:
        return ABSENT
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.3e}"
    return f"{value:.{decimals if abs(value) < 100 else 2}f}"


def last(run: Run, metric: str) -> str:
    """The newest value; what was not finite is said to be so."""
    return NOT_FINITE if run.values(metric) and run.last(metric) is None else amount(run.last(metric))


def hours(value: float | None) -> str:
    if value is None:
        return ABSENT
    seconds = round(value * 3600)
    if seconds < 60:
        return f"{value * 3600:.1f} s"
    return f"{seconds // 60} min {seconds % 60:02d} s" if seconds < 3600 else f"{value:.2f} h"


def count(value: float | None) -> str:
    return ABSENT if value is None else f"{value:,.0f}"


@dataclass(frozen=True)
class Column:
    """A column of the table: its heading, whether it holds numbers, each run's cell and what it sorts by."""

    heading: str
    is_number: bool
    cells: list[str]
    sort: list[float | str | None]


def columns(comparison: Comparison) -> list[Column]:
    """The run's name, its settings, its metrics, how far it came."""
    runs = comparison.runs
    result = [Column("run", False, [run.name for run in runs], [run.name for run in runs])]
    for key in comparison.keys:
        cells = [setting(run, key, runs) for run in runs]
        numeric = is_numeric(comparison, key)
        raw = [run.config.get(key) if numeric else cell for run, cell in zip(runs, cells, strict=True)]
        result.append(Column(key, numeric, cells, raw))
    for metric in comparison.metrics:
        result.append(Column(metric, True, [last(run, metric) for run in runs], [run.last(metric) for run in runs]))
        best = [run.best(metric) for run in runs]
        result.append(Column(f"best {metric}", True, [amount(value) for value in best], best))
    for name in evaluations(comparison):
        rates = [run.evaluation.get(name) for run in runs]
        result.append(Column(name, True, [amount(rate) for rate in rates], rates))
    tokens = [run.last("tokens") for run in runs]
    speeds = [run.speed() for run in runs]
    result.append(Column("tokens", True, [count(value) for value in tokens], tokens))
    result.append(Column("tokens/s", True, [count(value) for value in speeds], speeds))
    result.append(Column("time", True, [hours(run.hours()) for run in runs], [run.hours() for run in runs]))
    states = [run.state()[1] for run in runs]
    return [*result, Column("status", False, states, states)]


def group_columns(comparison: Comparison) -> list[Column]:
    """Mean ± standard deviation over the seeds, a row for each setting; none where no setting was repeated."""
    groups = comparison.groups
    if not any(len(group.runs) > 1 for group in groups):
        return []
    firsts = [group.runs[0] for group in groups]
    result = []
    for key in comparison.settings:
        cells = [setting(run, key, comparison.runs) for run in firsts]
        result.append(Column(key, is_numeric(comparison, key), cells, list(cells)))
    sizes = [len(group.runs) for group in groups]
    result.append(Column("runs", True, [str(size) for size in sizes], list(sizes)))
    for metric in comparison.metrics:
        means = [group.mean(metric) for group in groups]
        result.append(Column(metric, True, [spread(group, metric) for group in groups], means))
    return result


def spread(group: Group, metric: str) -> str:
    """`3.9871 ± 0.0123`; how many of the runs that is, if not all."""
    mean, deviation = group.mean(metric), group.deviation(metric)
    text = amount(mean)
    if deviation is not None:
        text += f" ± {deviation:.0e}" if 0 < deviation < 5e-5 else f" ± {deviation:.4f}"
    finite = len(group.values(metric))
    return text if finite in (0, len(group.runs)) else f"{text} ({finite} of {len(group.runs)})"
