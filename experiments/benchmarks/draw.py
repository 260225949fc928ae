"""The figures of the benchmarks, and the tables that two READMEs have between marks, from their JSON.

python experiments/benchmarks/draw.py
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
README = FOLDER.parents[1] / "README.md"
BEGIN, END = "<!-- experiments/benchmarks/draw.py writes this table -->", "<!-- to here -->"
PARTS = ("preprocessing", "packing", "training", "synthesis")
COLOURS = {"origin": "#D55E00", "ours": "#0072B2"}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    origin, growth = (json.loads((FOLDER / f"{name}-cpu.json").read_text()) for name in ("origin", "growth"))
    write_table(README, comparison(origin))
    write_table(FOLDER / "README.md", exponents(growth))
    draw_origin(origin, FOLDER / "origin.png")
    draw_growth(growth, FOLDER / "growth.png")


def write_table(page: Path, table: str) -> None:
    """Put it between the marks of a page."""
    before, rest = page.read_text(encoding="utf-8").split(BEGIN + "\n")
    after = rest.split("\n" + END)[1]
    page.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


def table_of(text: str) -> str:
    """What stands between the marks."""
    return text.split(BEGIN + "\n")[1].split("\n" + END)[0]


def comparison(result: dict[str, Any]) -> str:
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


def exponents(result: dict[str, Any]) -> str:
    """Of every curve: its sizes, and its slope on logarithmic axes, of all and of the last two sizes."""
    lines = ["| | by | sizes | exponent | of the last two |", "|---|---|---|---|---|"]
    for part, unit, name, curve in curves(result):
        sizes = [f"{float(size):,.0f}" for size in curve["at"]]
        slope, last = curve["exponent"], curve["at_the_end"]
        lines.append(f"| {unit} of {part} | {name} | {sizes[0]} to {sizes[-1]} | **{slope}** | {last} |")
    return "\n".join(lines)


def curves(result: dict[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """(part, unit, by what, curve) each."""
    for part in PARTS:
        for name, units in result[part].items():
            for unit, curve in units.items():
                yield part, unit, name.replace("_", " "), curve


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
    figure, panels = axes_of(len(PARTS))
    panel = dict(zip(PARTS, panels, strict=True))
    for part, unit, name, curve in curves(result):
        if unit == "seconds":
            label = f"{name}: {curve['exponent']:.2f}"
            panel[part].loglog([float(size) for size in curve["at"]], curve["at"].values(), marker="o", label=label)
    for part, axes in panel.items():
        axes.set(title=part, xlabel="size", ylabel="seconds")
        axes.legend(frameon=False, title="exponent by")
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
