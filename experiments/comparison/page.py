"""The comparison as one page: tables made here, curves drawn by its script (page.js), nothing to load.

Cost: about 30 bytes a point; a curve has at most ``MOST_POINTS`` of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from experiments.comparison.columns import Column, columns, group_columns
from experiments.comparison.reading import AXES, Run
from experiments.comparison.style import (
    UNITS,
    Look,
    categories,
    in_legend_order,
    is_logarithmic,
    is_training_curve,
    looks,
    metric_name,
    plotted_keys,
    time_unit,
)
from experiments.comparison.table import SEED, Comparison, is_numeric, label, setting
from experiments.comparison.text import failed_line
from llasa.report_page import write_report_page

HERE = Path(__file__).parent
MOST_POINTS = 1500
NOT_DRAWN = ("tokens", "audio_hours", "epoch", "step")
"""Measures that only say how far a run is."""


def write_page(path: Path, comparison: Comparison, smoothing: float = 0.0) -> None:
    appearance = looks(comparison)
    write_report_page(
        path,
        HERE / "page.html",
        title=title(comparison),
        colours="\n".join(colours(number, appearance[run.name]) for number, run in enumerate(comparison.runs)),
        lead=lead(comparison),
        table=runs_table(comparison, appearance),
        groups=groups_table(comparison),
        failures=failures(comparison),
        plots=plots(comparison),
        notes="".join(f'<p class="soft">{escape(note)}</p>' for note in comparison.notes),
        # "<" ends a script, whatever is quoted around it
        data=json.dumps(page_data(comparison, smoothing, appearance), allow_nan=False).replace("<", "\\u003c"),
        script=(HERE / "page.js").read_text(encoding="utf-8"),
    )


def title(comparison: Comparison) -> str:
    runs = len(comparison.runs)
    varied = ", ".join(comparison.settings[:3]) + (", …" if len(comparison.settings) > 3 else "")
    return f"{runs} run{'s' if runs != 1 else ''}" + (f" by {varied}" if varied else "")


def lead(comparison: Comparison) -> str:
    """The best run in a sentence, and the best mean where settings were repeated."""
    metric = metric_name(comparison.metric)
    said = []
    best = comparison.runs[0] if comparison.runs else None
    if best is not None and best.last(comparison.metric) is not None:
        cell = next(column.cells[0] for column in columns(comparison) if column.heading == comparison.metric)
        said.append(f"Best {escape(metric)}: <b>{cell}</b>, {escape(label(best, comparison))}.")
    if any(len(group.runs) > 1 for group in comparison.groups) and len(comparison.groups) > 1:
        means = group_columns(comparison)
        cells = {column.heading: column.cells[0] for column in means}
        settings = ", ".join(f"{key} {cells[key]}" for key in comparison.settings)
        said.append(f"Best mean: <b>{cells[comparison.metric]}</b>, {escape(settings)}.")
    return "".join(f"<p>{sentence}</p>" for sentence in said)


def colours(number: int, look: Look) -> str:
    return (
        f".r{number} {{ --c: {look.light}; }} "
        f"@media (prefers-color-scheme: dark) {{ .r{number} {{ --c: {look.dark}; }} }}"
    )


def runs_table(comparison: Comparison, appearance: dict[str, Look]) -> str:
    rows = []
    table = columns(comparison)
    for number, run in enumerate(comparison.runs):
        swatch = (
            f'<svg class="swatch" viewBox="0 0 24 10" aria-hidden="true"><line x1="0" x2="24" y1="5" y2="5" '
            f'stroke-dasharray="{appearance[run.name].dash}"/></svg>'
        )
        cells = [
            f'<th scope="row" data-value="{escape(run.name)}" title="{escape(str(run.folder))}">'
            f"<span>{swatch}{escape(run.name)}</span></th>"
        ]
        for column in table[1:]:
            content = escape(column.cells[number])
            if column.heading == "status":
                content = f'<span class="state {run.state()[0]}">{content}</span>'
            is_first = column.heading == comparison.metric and number == 0 and column.sort[0] is not None
            cells.append(cell(column, number, content, "first" if is_first else ""))
        rows.append(f'<tr class="r{number}" data-run="{number}">{"".join(cells)}</tr>')
    return whole_table("runs-table", table, rows)


def groups_table(comparison: Comparison) -> str:
    table = group_columns(comparison)
    if not table:
        return ""
    rows = [
        f"<tr>{''.join(cell(column, row, escape(column.cells[row])) for column in table)}</tr>"
        for row in range(len(comparison.groups))
    ]
    heading = '<h2 id="seeds">Mean ± standard deviation over the seeds</h2>'
    return heading + whole_table("groups-table", table, rows, " fitting")


def whole_table(name: str, table: Sequence[Column], rows: Sequence[str], shape: str = "") -> str:
    heads = "".join(
        f'<th scope="col" data-numbers="{"yes" if column.is_number else "no"}"'
        f'{"" if column.is_number else " class=word"}><button type="button">{escape(column.heading)}</button></th>'
        for column in table
    )
    return (
        f'<div class="scroll{shape}"><table id="{name}"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def cell(column: Column, row: int, content: str, extra: str = "") -> str:
    """A cell that knows what it sorts by, "" where there is nothing."""
    value = column.sort[row]
    classes = f"{'' if column.is_number else 'word '}{extra}".strip()
    sort = "" if value is None else str(value)
    return f'<td{f" class={chr(34)}{classes}{chr(34)}" if classes else ""} data-value="{escape(sort)}">{content}</td>'


def failures(comparison: Comparison) -> str:
    """The error lines of what did not finish."""
    said = [(run.name, run.error) for run in comparison.runs if run.error]
    items = [f"<li><b>{escape(name)}</b>: {escape(error)}</li>" for name, error in said]
    items += [f"<li>{escape(failed_line(job))}</li>" for job in comparison.failed]
    return f'<h2 id="failed">Failed</h2><ul class="failures">{"".join(items)}</ul>' if items else ""


def plots(comparison: Comparison) -> str:
    """Places for the metric against each key; the script draws them."""
    keys = plotted_keys(comparison)
    if not keys:
        return ""
    panels = "".join(f'<div class="panel"><div class="chart" data-key="{escape(key)}"></div></div>' for key in keys)
    what = "A dot is a run, a line a mean."
    return f'<h2 id="keys">By setting</h2><p class="soft">{what}</p><div class="plots">{panels}</div>'


def page_data(comparison: Comparison, smoothing: float, appearance: dict[str, Look]) -> dict[str, Any]:
    """What the script draws from; None is a value that was not finite."""
    runs = comparison.runs
    known = dict.fromkeys([*comparison.metrics, *(name for run in runs for name in run.metrics())])
    metrics = [name for name in known if name not in NOT_DRAWN and not name.startswith("tokens/")]
    axes = [axis for axis in AXES if any(len(run.axis(axis)[0]) for run in runs)]
    numbers = {run.name: number for number, run in enumerate(runs)}
    return {
        "metric": comparison.metric,
        "axis": comparison.axis,
        "smooth": smoothing,
        "axes": [axis_data(comparison, axis) for axis in axes],
        "metrics": [{"name": m, "title": metric_name(m), "smooth": is_training_curve(m)} for m in metrics],
        "keys": [key_data(comparison, key) for key in plotted_keys(comparison)],
        "legend": [numbers[run.name] for run in in_legend_order(comparison)],
        "runs": [
            {
                "id": numbers[run.name],
                "label": label(run, comparison),
                "dash": appearance[run.name].dash,
                "config": {key: run.config[key] for key in comparison.keys if key in run.config},
                "text": {key: setting(run, key, runs) for key in comparison.keys},
                **series(run, metrics, axes),
            }
            for run in runs
        ],
    }


def axis_data(comparison: Comparison, axis: str) -> dict[str, Any]:
    """An axis, in the unit that suits its length; `factor` brings the values to it."""
    factor, unit, name = 1.0, UNITS.get(axis, ""), UNITS.get(axis, "time")
    if axis == "time":
        factor, unit = time_unit(max((run.hours() or 0.0 for run in comparison.runs), default=0.0))
        name = f"time ({unit})"
    return {"name": axis, "title": name, "unit": unit, "factor": factor}


def key_data(comparison: Comparison, key: str) -> dict[str, Any]:
    having = [run for run in comparison.runs if key in run.config]
    numeric = is_numeric(comparison, key) and key != SEED
    return {
        "name": key,
        "numeric": numeric,
        "log": numeric and is_logarithmic([run.config[key] for run in having]),
        "categories": categories(comparison, key),
    }


def series(run: Run, metrics: Sequence[str], axes: Sequence[str]) -> dict[str, Any]:
    """Each metric with the number of its frame: the x values, by axis, that it shares with others."""
    frames: list[dict[str, list[float]]] = []
    places: dict[bytes, int] = {}
    result: dict[str, dict[str, Any]] = {}
    for metric in metrics:
        steps, y = run.curve(metric)
        if not len(steps):
            continue
        kept = thinned(len(steps))
        place = places.setdefault(steps.tobytes(), len(frames))
        if place == len(frames):
            frames.append({axis: rounded(run.curve(metric, axis)[0][kept]) for axis in axes if len(run.axis(axis)[0])})
        result[metric] = {"frame": place, "y": rounded(y[kept])}
    return {"frames": frames, "series": result}


def thinned(count: int) -> np.ndarray:
    """Which of the points are drawn: evenly many, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, MOST_POINTS)).round().astype(int))


def rounded(values: np.ndarray) -> list[float | None]:
    """Seven digits; what is not finite is None."""
    return [float(f"{value:.7g}") if np.isfinite(value) else None for value in values]
