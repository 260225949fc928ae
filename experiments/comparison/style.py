"""Colours, dashes, names and scales that the figures and the page share.

A swept number is shown by colours in its order (viridis), anything else by the Okabe-Ito palette: both are told apart
with any kind of colour vision. Runs that differ in their seed alone look alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.comparison.reading import Run, natural
from experiments.comparison.table import SEED, Comparison, is_numeric, setting

OKABE_ITO = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Without its yellow, which white paper swallows."""
DASHES = ("", "6 3", "2 2", "8 3 2 3")
"""Of SVG: lengths of lines and gaps."""
LIGHT_RANGE, DARK_RANGE = (0.0, 0.86), (0.22, 1.0)
"""The part of viridis that can be seen on white, and on black."""
UNITS = {"tokens": "tokens", "step": "step", "audio_hours": "hours of audio"}
NAMES = {
    "loss": "training loss (nats per token)",
    "heldout/loss": "held-out loss (nats per token)",
    "heldout/accuracy": "held-out speech-token accuracy",
    "samples/cer": "character error rate of the samples",
    "samples/seconds": "seconds of the samples",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_second": "tokens per second",
    "epoch": "epochs",
    "mfu": "model FLOPs utilisation",
    "memory_gb": "memory (GB)",
    "gpu_memory_gb": "GPU memory (GB)",
}


@dataclass(frozen=True)
class Look:
    light: str
    dark: str
    dash: str


def looks(comparison: Comparison) -> dict[str, Look]:
    """Name of a run → how its curve looks."""
    coloured, dashed = scale_keys(comparison)
    if coloured is not None:
        values = distinct(comparison, coloured)
        others = distinct(comparison, dashed) if dashed else [None]
        return {
            run.name: Look(
                viridis(values.index(run.config.get(coloured)), len(values), LIGHT_RANGE),
                viridis(values.index(run.config.get(coloured)), len(values), DARK_RANGE),
                DASHES[others.index(run.config.get(dashed)) if dashed else 0],
            )
            for run in comparison.runs
        }
    result = {}
    for index, group in enumerate(comparison.groups):
        colour, dash = OKABE_ITO[index % len(OKABE_ITO)], DASHES[index // len(OKABE_ITO) % len(DASHES)]
        for run in group.runs:
            result[run.name] = Look(colour, "#ffffff" if colour == "#000000" else colour, dash)
    return result


def scale_keys(comparison: Comparison) -> tuple[str | None, str | None]:
    """(the number that colours are ordered by, a key that dashes tell), if that says all there is to say."""
    if len(comparison.settings) > 2:
        return None, None
    ordered = [
        key
        for key in comparison.settings
        if is_numeric(comparison, key)
        and all(key in run.config for run in comparison.runs)
        and len(distinct(comparison, key)) > 2
    ]
    if not ordered:
        return None, None
    coloured = max(ordered, key=lambda key: len(distinct(comparison, key)))
    dashed = next((key for key in comparison.settings if key != coloured), None)
    if dashed is not None and len(distinct(comparison, dashed)) > len(DASHES):
        return None, None
    return coloured, dashed


def distinct(comparison: Comparison, key: str) -> list[object]:
    """The values of a key, numbers in their order, others as they come."""
    values: list[object] = []
    for run in comparison.runs:
        if (value := run.config.get(key)) not in values:
            values.append(value)
    if not is_numeric(comparison, key) or None in values:
        return values
    return sorted(values, key=float)  # type: ignore[arg-type] - numbers, as was just asked


def viridis(index: int, total: int, part: tuple[float, float]) -> str:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    low, high = part
    return to_hex(colormaps["viridis"](low + (high - low) * (index / (total - 1) if total > 1 else 0.5)))


def in_legend_order(comparison: Comparison) -> list[Run]:
    """By the values of the differing keys; a legend is read as a scale."""

    def key(run: Run) -> list[tuple[int, float, list[tuple[bool, float, str]]]]:
        values = [(run.config.get(k), setting(run, k, comparison.runs)) for k in comparison.keys]
        return [(0, float(v), []) if isinstance(v, int | float) else (1, 0.0, natural(text)) for v, text in values]

    return sorted(comparison.runs, key=key)


def categories(comparison: Comparison, key: str) -> list[str]:
    """The values of a key as words, in the order of an axis."""
    return sorted({setting(run, key, comparison.runs) for run in comparison.runs if key in run.config}, key=natural)


def smooth(values: np.ndarray, weight: float) -> np.ndarray:
    """Exponential moving average, corrected for its start as in Adam: the first value is the first value.

    ``average = weight · average + (1 - weight) · value``, divided by ``1 - weight^n`` after n values. What is not
    finite stays so and does not enter the average.
    """
    result = np.array(values, dtype=float)
    average, known = 0.0, 0
    for index, value in enumerate(result):
        if math.isfinite(value):
            known += 1
            average = weight * average + (1 - weight) * value
            result[index] = average / (1 - weight**known)
    return result


def is_logarithmic(values: Sequence[float]) -> bool:
    """Whether a logarithmic axis suits: positive and over at least a factor of ten."""
    return min(values) > 0 and max(values) / min(values) >= 10


def is_training_curve(metric: str) -> bool:
    """Of every few steps, noisy: what smoothing is for."""
    return metric in ("loss", "grad_norm", "tokens_per_second", "mfu") or metric.startswith("loss/")


def metric_name(metric: str) -> str:
    """`heldout/loss/it` → held-out loss (nats per token), it."""
    if metric in NAMES:
        return NAMES[metric]
    stem = next((known for known in NAMES if metric.startswith(f"{known}/")), None)
    return f"{NAMES[stem]}, {metric[len(stem) + 1 :]}" if stem else metric


def time_unit(longest_hours: float) -> tuple[float, str]:
    """(how many of the unit an hour has, its name)."""
    return (1, "h") if longest_hours >= 2 else (60, "min") if longest_hours >= 2 / 60 else (3600, "s")


def plotted_keys(comparison: Comparison) -> list[str]:
    """Keys that a metric is drawn against; seeds only if nothing else differs."""
    return comparison.settings or [key for key in comparison.keys if key == SEED]


def ceiling(tops: Sequence[float], starts: Sequence[float]) -> float | None:
    """Where to end a loss axis so that one run that blew up does not press the others flat; none = as it comes."""
    limit = 1.25 * max(starts, default=math.inf)
    return limit if max(tops, default=-math.inf) > limit > 0 else None
