"""The figures of the benchmarks, and the table that the README may have between two marks, from their JSON.

python experiments/benchmarks/draw.py [--origin FILE.json] [--growth FILE.json]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
README = FOLDER.parents[1] / "README.md"
BEGIN, END = "<!-- experiments/benchmarks/draw.py writes this table -->", "<!-- to here -->"
COLOURS = {"origin": "#D55E00", "ours": "#0072B2"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--origin", type=Path, default=FOLDER / "origin-cpu.json")
    parser.add_argument("--growth", type=Path, default=FOLDER / "growth-cpu.json")
    arguments = parser.parse_args()
    origin = json.loads(arguments.origin.read_text())
    print(table(origin))
    text = README.read_text(encoding="utf-8")
    if BEGIN in text:
        before, rest = text.split(BEGIN)
        after = rest.split(END)[1]
        README.write_text(f"{before}{BEGIN}\n{table(origin)}\n{END}{after}", encoding="utf-8")
    draw_origin(origin, FOLDER / "origin.png")
    draw_growth(json.loads(arguments.growth.read_text()), FOLDER / "growth.png")


def table(result: dict[str, Any]) -> str:
    """Both sides of every measure, and their ratio the better way round."""
    encoded, trained, spoken = result["preprocessing"], result["training"], result["first_audio"]["seconds"]
    theirs, ours = trained["origin"], trained["ours"]
    speed, stored = encoded["times_real_time"], encoded["bytes_per_second_of_audio"]
    rows = [
        ("useful tokens/s in training", theirs["tokens_per_second"], ours["tokens_per_second"], True),
        (f"loss after {trained['seconds']:.0f} s of steps", theirs["loss"], ours["loss"], None),
        ("memory of training at its peak, GB", theirs["peak_gigabytes"], ours["peak_gigabytes"], False),
        ("start of training, to its first step, s", theirs["first_step_seconds"], ours["first_step_seconds"], False),
        ("audio encoded in a second, s (one process)", speed["origin"], speed["ours"], True),
        ("store, bytes for a second of audio", stored["origin"], stored["ours"], False),
        ("`infer.py` to the first sound of a sentence (`stream=true`), s", spoken["origin"], spoken["ours"], False),
    ]  # fmt: skip
    lines = ["| | origin's recipe | ours | ratio |", "|---|---|---|---|"]
    for name, origin, own, more_is_better in rows:
        ratio = "" if more_is_better is None else f"{own / origin if more_is_better else origin / own:.1f}"
        lines.append(f"| {name} | {origin:,} | **{own:,}** | {ratio} |")
    return "\n".join(lines)


def axes_of(columns: int) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, columns, figsize=(4 * columns, 3.2), dpi=150, squeeze=False)
    for part in axes[0]:
        part.spines[["top", "right"]].set_visible(False)
    return figure, axes[0]


def draw_origin(result: dict[str, Any], path: Path) -> None:
    """The losses of both sides against time."""
    import numpy as np

    figure, (axes,) = axes_of(1)
    for name, colour in COLOURS.items():
        curve = result["training"][name]["curve"]
        tokens = np.diff([0, *curve["tokens"]])
        share = np.ones(min(len(tokens), max(1, round(20_000 / tokens.mean()))))
        losses, counts = (np.convolve(values, share)[: len(tokens)] for values in (tokens * curve["loss"], tokens))
        axes.plot(curve["seconds"], losses / counts, color=colour, label={"origin": "origin's recipe"}.get(name, name))
    axes.set(xlabel="seconds of training", ylabel="loss (mean of 20,000 tokens)")
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)


def draw_growth(result: dict[str, Any], path: Path) -> None:
    """Seconds by size, a panel for each step of the way, all axes logarithmic."""
    parts = ("preprocessing", "packing", "training", "synthesis")
    figure, panels = axes_of(len(parts))
    for axes, part in zip(panels, parts, strict=True):
        for name, curves in result[part].items():
            sizes = [float(size) for size in curves["seconds"]["at"]]
            label = f"{name.replace('_', ' ')}: {curves['seconds']['exponent']:.2f}"
            axes.loglog(sizes, list(curves["seconds"]["at"].values()), marker="o", label=label)
        axes.set(title=part, xlabel="size", ylabel="seconds")
        axes.legend(frameon=False, title="exponent by")
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
