"""Compare training runs: what they were given, what came out, and how they got there.

    python experiments/compare.py RUN_OR_SWEEP … [--output DIR] [--metric loss] [--x step] [--smooth 0.0]

run folders (config.yaml, metrics.jsonl) ─► a table in the terminal, and in DIR
    comparison.md      the tables and figures to paste
    comparison.json    the same, unrounded
    *.png              curves of all runs, and the metric against each key that differs
    index.html         all of it in one file: sort, switch runs on and off, change the axes

A sweep's folder stands for all runs below it. Cost: 1 s per 100,000 lines of metrics, and 0.3 s a figure.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # by which all of these are found

from experiments.comparison.figures import draw
from experiments.comparison.page import write_page
from experiments.comparison.reading import AXES, METRICS, find_runs
from experiments.comparison.table import Comparison, compare
from experiments.comparison.text import as_json, markdown, terminal
from llasa.errors import UserError
from llasa.explain import fail
from llasa.provenance import write_atomically, write_json


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    try:
        comparison, output = run(options)
    except UserError as error:
        fail(error)
    except OSError as error:
        if error.filename is None:
            raise
        fail(UserError(f"cannot use {error.filename}: {error.strerror}", remedy="choose another folder"))
    print(terminal(comparison))
    print(f"\n{output / 'index.html'}")


def parser() -> argparse.ArgumentParser:
    text = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    text.add_argument("runs", nargs="+", type=Path, metavar="RUN_OR_SWEEP")
    text.add_argument("--output", type=Path, help="default: SWEEP/comparison of one sweep, else outputs/comparison")
    text.add_argument("--metric", default="loss", help="the runs are sorted by its last value (default: loss)")
    text.add_argument("--x", default="step", choices=AXES, help="what the curves are drawn over (default: step)")
    text.add_argument(
        "--smooth", default=0.0, type=float, metavar="WEIGHT", help="of training curves: 0 = not, below 1"
    )
    return text


def run(options: argparse.Namespace) -> tuple[Comparison, Path]:
    """Write everything and return the comparison and its folder.

    Raises:
        UserError: see :func:`find_runs` and :func:`compare`.
    """
    if not 0 <= options.smooth < 1:
        raise UserError(f"--smooth {options.smooth:g} is not possible", remedy="use 0 or more, and less than 1")
    runs, failed = find_runs(options.runs)
    comparison = compare(runs, failed, options.metric, options.x)
    output: Path = options.output or default_output(options.runs)
    output.mkdir(parents=True, exist_ok=True)
    figures = draw(comparison, output, options.smooth)
    write_atomically(output / "comparison.md", markdown(comparison, figures).encode())
    write_json(output / "comparison.json", as_json(comparison))
    write_page(output / "index.html", comparison, options.smooth)
    return comparison, output


def default_output(paths: Sequence[Path]) -> Path:
    is_sweep = len(paths) == 1 and not (paths[0] / METRICS).is_file()
    return paths[0] / "comparison" if is_sweep else Path("outputs/comparison")


if __name__ == "__main__":
    main()
