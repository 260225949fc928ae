"""The comparison as text: in the terminal, as Markdown to paste, as JSON for programs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from experiments.comparison.columns import Column, columns, evaluations, group_columns
from experiments.comparison.reading import Job
from experiments.comparison.table import Comparison, label

WIDEST = 32
"""Letters of a terminal's column; the rest of a value is in the other files."""


def terminal(comparison: Comparison) -> str:
    """Aligned columns; numbers stand right."""
    parts = [aligned(columns(comparison))]
    if groups := group_columns(comparison):
        parts.append("mean ± standard deviation over the seeds\n" + aligned(groups))
    said = [f"{run.name}: {run.error}" for run in comparison.runs if run.error]
    said += [f"failed: {failed_line(job)}" for job in comparison.failed]
    parts += ["\n".join(said)] if said else []
    return "\n\n".join([*parts, *comparison.notes])


def aligned(table: Sequence[Column]) -> str:
    rows = [[column.heading for column in table], *zip(*(column.cells for column in table), strict=True)]
    rows = [[shortened(cell) for cell in row] for row in rows]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if column.is_number else cell.ljust(width)
            for cell, width, column in zip(row, widths, table, strict=True)
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "  ".join("─" * width for width in widths), *lines[1:]])


def shortened(cell: str) -> str:
    return cell if len(cell) <= WIDEST else cell[: WIDEST // 2 - 1] + "…" + cell[-WIDEST // 2 :]


def failed_line(job: Job) -> str:
    """A job that left no run: what it was to be, and what became of it."""
    overrides = " ".join(job.overrides) or f"job {job.number}"
    return overrides + (f": {job.error}" if job.error else "")


def markdown(comparison: Comparison, figures: Sequence[tuple[str, str]]) -> str:
    """Tables, what failed, and the figures, given as (file name, caption)."""
    runs = f"{len(comparison.runs)} run" + ("s" if len(comparison.runs) != 1 else "")
    parts = [f"**{runs}, best {comparison.metric} first.**", pipes(columns(comparison))]
    if groups := group_columns(comparison):
        parts += ["Mean ± standard deviation over the seeds:", pipes(groups)]
    errors = [f"- {escaped(run.name)}: {escaped(run.error)}" for run in comparison.runs if run.error]
    errors += [f"- {escaped(failed_line(job))}" for job in comparison.failed]
    if errors:
        parts += ["Did not finish:", "\n".join(errors)]
    parts += [escaped(note) for note in comparison.notes]
    parts += [f"![{escaped(caption)}]({name})" for name, caption in figures]
    return "\n\n".join(parts) + "\n"


def pipes(table: Sequence[Column]) -> str:
    lines = [
        [escaped(column.heading) for column in table],
        ["---:" if column.is_number else "---" for column in table],
        *([escaped(cell) for cell in row] for row in zip(*(column.cells for column in table), strict=True)),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, also within a table."""
    for special in "\\|`*_<>[]":
        text = text.replace(special, f"\\{special}")
    return " ".join(text.split())


def as_json(comparison: Comparison) -> dict[str, Any]:
    """All that the tables show, unrounded."""
    return {
        "metric": comparison.metric,
        "keys": comparison.keys,
        "same": comparison.same,
        "partial": comparison.partial,
        "runs": [
            {
                "name": run.name,
                "label": label(run, comparison),
                "folder": os.path.relpath(run.folder),
                "commit": run.commit,
                "config": {key: run.config[key] for key in comparison.keys if key in run.config},
                "status": run.state()[0],
                "status_text": run.state()[1],
                "error": run.error,
                "step": run.step,
                "last": {metric: run.last(metric) for metric in comparison.metrics},
                "best": {metric: run.best(metric) for metric in comparison.metrics},
                "tokens": run.last("tokens"),
                "tokens_per_second": run.speed(),
                "hours": run.hours(),
                "evaluation": {
                    name: run.evaluation[name] for name in evaluations(comparison) if name in run.evaluation
                },
            }
            for run in comparison.runs
        ],
        "groups": [
            {
                "runs": [run.name for run in group.runs],
                "config": {k: group.runs[0].config.get(k) for k in comparison.settings},
                "mean": {metric: group.mean(metric) for metric in comparison.metrics},
                "standard_deviation": {metric: group.deviation(metric) for metric in comparison.metrics},
            }
            for group in comparison.groups
        ],
        "failed": [{"job": job.number, "overrides": job.overrides, "error": job.error} for job in comparison.failed],
        "notes": comparison.notes,
    }
