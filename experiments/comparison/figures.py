"""PNG figures of a comparison: curves over the x axis, held-out curves, the metric against each differing key."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.comparison.reading import Run
from experiments.comparison.style import (
    UNITS,
    Look,
    categories,
    ceiling,
    distinct,
    in_legend_order,
    is_logarithmic,
    is_training_curve,
    looks,
    metric_name,
    plotted_keys,
    smooth,
    time_unit,
)
from experiments.comparison.table import SEED, Comparison, group_label, is_numeric, setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, LINE = "#1c1b19", "#67625a", "#e3dfd7"
RESOLUTION = 160
MOST_NAMES = 14
"""Of a legend."""
SETTINGS = {
    "font.size": 10,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.solid_capstyle": "round",
}


def draw(comparison: Comparison, folder: Path, smoothing: float = 0.0) -> list[tuple[str, str]]:
    """Write the figures and return their (file name, caption).

    Args:
        smoothing: weight of :func:`smooth`, for training curves only; the values themselves stay visible, faint.
    """
    import matplotlib

    matplotlib.use("Agg")
    figures: list[tuple[str, str]] = []
    with matplotlib.rc_context(SETTINGS):
        for metric in curve_metrics(comparison):
            if (figure := curves(comparison, metric, smoothing)) is not None:
                caption = f"{metric_name(metric)} over {axis_caption(comparison.axis)}"
                figures.append((save(figure, folder, metric), caption))
        for key in plotted_keys(comparison):
            if (figure := against(comparison, key)) is not None:
                caption = f"last {metric_name(comparison.metric)} against {key}"
                figures.append((save(figure, folder, f"{comparison.metric}-by-{key}"), caption))
    return figures


def curve_metrics(comparison: Comparison) -> list[str]:
    return [m for m in comparison.metrics if any(run.values(m) for run in comparison.runs)]


def save(figure: Figure, folder: Path, name: str) -> str:
    import matplotlib.pyplot as plt

    file = re.sub(r"[^A-Za-z0-9._-]+", "-", name) + ".png"
    figure.savefig(folder / file, dpi=RESOLUTION, metadata={"Software": None})
    plt.close(figure)
    return file


def curves(comparison: Comparison, metric: str, smoothing: float) -> Figure | None:
    """A line for each run. One that ends in values that are not finite ends with a cross."""
    import matplotlib.pyplot as plt

    drawn = [(run, *run.curve(metric, comparison.axis)) for run in in_legend_order(comparison)]
    drawn = [(run, x, y) for run, x, y in drawn if np.isfinite(y).any() and len(x)]
    if not drawn:
        return None
    letters = max(len(group_label(group, comparison)) for group in comparison.groups)
    figure, axes = plt.subplots(figsize=(6.6 + min(0.075 * letters + 0.5, 4), 4.3), layout="constrained")
    appearance = looks(comparison)
    scale, unit = x_unit(comparison.axis, [float(x[-1]) for _, x, _ in drawn])
    named: dict[str, Any] = {}
    for run, x, y in drawn:
        look = appearance[run.name]
        line: dict[str, Any] = {"color": look.light, "linestyle": dashes(look), "linewidth": 1.7}
        if len(y) <= 25:
            line |= {"marker": "o", "markersize": 3.5}
        if smoothing and is_training_curve(metric):
            axes.plot(x * scale, y, color=look.light, linewidth=0.8, alpha=0.25)
            y = smooth(y, smoothing)
        name = group_label(comparison.group_of(run), comparison)  # its runs look alike: one line of the legend
        named[name] = axes.plot(x * scale, y, **line)[0]
        if not math.isfinite(y[-1]):
            end = np.flatnonzero(np.isfinite(y))[-1]
            axes.plot(x[end] * scale, y[end], "x", color=look.light, markersize=8, markeredgewidth=2, clip_on=False)
    limit_loss(axes, metric, [y for _, _, y in drawn])
    axes.set_xlabel(f"{UNITS.get(comparison.axis, 'time')}{unit}")
    axes.set_ylabel(metric_name(metric))
    axes.margins(x=0.02)
    if comparison.axis == "tokens":
        thousands(axes)
    legend(figure, axes, named)
    return figure


def limit_loss(axes: Axes, metric: str, values: Sequence[np.ndarray]) -> None:
    """See :func:`ceiling`; says in the figure that something lies beyond it."""
    if "loss" not in metric:
        return
    finite = [y[np.isfinite(y)] for y in values]
    top = ceiling([float(y.max()) for y in finite], [float(y[0]) for y in finite])
    if top is not None:
        low = min(float(y.min()) for y in finite)
        axes.set_ylim(low - 0.05 * (top - low), top)
        text = "↑ beyond: up to " + f"{max(float(y.max()) for y in finite):,.4g}"
        axes.annotate(text, (1, 1), xycoords="axes fraction", ha="right", va="top", color=SOFT, fontsize=9)


def against(comparison: Comparison, key: str) -> Figure | None:
    """A dot for each run; lines join the means over the seeds where all other settings are the same."""
    import matplotlib.pyplot as plt

    runs = [run for run in comparison.runs if key in run.config]
    values = {run.name: run.last(comparison.metric) for run in runs}
    if not any(value is not None for value in values.values()):
        return None
    figure, axes = plt.subplots(figsize=(5.6, 4.0), layout="constrained")
    appearance = looks(comparison)
    numeric = is_numeric(comparison, key) and key != SEED
    words = categories(comparison, key)

    def position(run: Run) -> float:
        return float(run.config[key]) if numeric else words.index(setting(run, key, comparison.runs))

    for line in joined(comparison, key, runs) if numeric else []:
        axes.plot(*zip(*line, strict=True), color=SOFT, linewidth=1.2, zorder=1)
    if not numeric:
        mark_means(axes, [(position(run), value) for run in runs if (value := values[run.name]) is not None])
    for run in runs:
        value, colour = values[run.name], appearance[run.name].light
        if value is not None:
            axes.plot(position(run), value, "o", color=colour, markersize=7, markeredgecolor="white", zorder=3)
    if numeric:
        number_axis(axes, comparison, key)
    else:
        axes.set_xticks(range(len(words)), words)
        axes.set_xlim(-0.5, len(words) - 0.5)
        if max(map(len, words)) * len(words) > 60:
            axes.tick_params(axis="x", labelrotation=30)
    if "loss" in comparison.metric:
        starts = [run.values(comparison.metric)[0] for run in runs if run.values(comparison.metric)]
        finite = [value for value in values.values() if value is not None]
        if (top := ceiling(finite, [start for start in starts if start is not None])) is not None:
            axes.set_ylim(min(finite) - 0.05 * (top - min(finite)), top)
    if None in values.values():  # room for the crosses
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.08 * (high - low))
    for run in runs:  # after the limits are known
        top = axes.get_ylim()[1]
        if (value := values[run.name]) is None or value > top:
            if value is None and not run.values(comparison.metric):
                continue
            axes.plot(
                position(run), 0.97, "x", transform=axes.get_xaxis_transform(), color=appearance[run.name].light,
                markersize=8, markeredgewidth=2, zorder=3,
            )  # fmt: skip
            axes.annotate(
                "NaN" if value is None else f"{value:.4g}", (position(run), 0.97), xycoords=axes.get_xaxis_transform(),
                xytext=(-8, 0), textcoords="offset points", ha="right", va="center", color=SOFT, fontsize=8,
            )  # fmt: skip
    axes.set_xlabel(key)
    axes.set_ylabel(f"last {metric_name(comparison.metric)}")
    return figure


def joined(comparison: Comparison, key: str, runs: Sequence[Run]) -> list[list[tuple[float, float]]]:
    """For each combination of the other settings (seed aside) the (value, mean of the metric) of its runs, by value.

    Empty where these combinations are so many that lines would only tangle.
    """
    lines: dict[tuple[str, ...], dict[float, list[float]]] = {}
    for run in runs:
        if (value := run.last(comparison.metric)) is not None:
            others = tuple(repr(run.config.get(other)) for other in comparison.settings if other != key)
            lines.setdefault(others, {}).setdefault(float(run.config[key]), []).append(value)
    means = [[(x, float(np.mean(values[x]))) for x in sorted(values)] for values in lines.values()]
    return [line for line in means if len(line) > 1] if len(lines) <= 8 else []


def mark_means(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    """A short line at the mean of each category."""
    for x, group in itertools.groupby(sorted(points), key=lambda point: point[0]):
        mean = float(np.mean([value for _, value in group]))
        axes.plot([x - 0.18, x + 0.18], [mean, mean], color=SOFT, linewidth=1.5, zorder=1)


def number_axis(axes: Axes, comparison: Comparison, key: str) -> None:
    """Logarithmic if that suits; a tick at each value if they are few."""
    from matplotlib.ticker import NullFormatter, NullLocator

    # All numbers: the caller has asked `is_numeric`.
    values = [float(value) for value in distinct(comparison, key) if value is not None]  # type: ignore[arg-type]
    if is_logarithmic(values):
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(*widened(values))
    if len(values) <= 8:
        named = {float(run.config[key]): setting(run, key) for run in comparison.runs if key in run.config}
        shown: list[float] = []
        for value in values:  # names that would touch are left out
            place = axes.transData.transform((value, 0))[0]
            if not shown or place - axes.transData.transform((shown[-1], 0))[0] > 4 + 8 * len(named[value]):
                shown.append(value)
        axes.set_xticks(shown, [named[value] for value in shown])
        axes.xaxis.set_minor_locator(NullLocator())


def widened(values: Sequence[float]) -> tuple[float, float]:
    """Limits of an axis with room for the outer dots."""
    low, high = min(values), max(values)
    if low == high:
        return low - 1, high + 1
    if is_logarithmic(values):
        room = (high / low) ** 0.08
        return low / room, high * room
    return low - 0.08 * (high - low), high + 0.08 * (high - low)


def x_unit(axis: str, ends: Sequence[float]) -> tuple[float, str]:
    """(factor from the axis' values, what is said behind its name)."""
    if axis != "time":
        return 1, ""
    scale, name = time_unit(max(ends))
    return scale, f" ({name})"


def axis_caption(axis: str) -> str:
    return {"step": "steps", "audio_hours": "hours of audio"}.get(axis, axis)


def thousands(axes: Axes) -> None:
    from matplotlib.ticker import EngFormatter

    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))


def dashes(look: Look) -> Any:
    return (0, tuple(float(part) for part in look.dash.split())) if look.dash else "-"


def legend(figure: Figure, axes: Axes, named: dict[str, Any]) -> None:
    """Beside the curves, never on them; a long one is cut and says so."""
    if len(named) < 2:
        return
    names = [f"\u200a{name}" for name in named]  # a name that begins with _ would be left out
    handles = list(named.values())
    if len(names) > MOST_NAMES:
        names = [*names[:MOST_NAMES], f"and {len(names) - MOST_NAMES} more"]
        handles = [*handles[:MOST_NAMES], axes.plot([], [], " ")[0]]
    figure.legend(handles, names, loc="outside right center", handlelength=1.8)
