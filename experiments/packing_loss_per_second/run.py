"""Does packing learn more in the same time, or only count more tokens?

    python experiments/packing_loss_per_second/run.py STORE OUTPUT [--seconds 150]

The nano model, three layouts of rows, one after the other on the same machine: each gets about as many useful tokens a
step (so the same number of updates for the same speech), a constant learning rate, and the same wall-clock time.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

MAX_LENGTH = 2048
SHARED = [
    "model=llasa_nano",
    "lang=it",
    "optimizer=adamw",
    "optimizer.lr=2e-3",
    "schedule=constant",
    "logger=none",
    "device=cpu",
    "checkpoint.every=0",
    "samples.every=0",
    "heldout.every=0",
    "trainer.log_every=1",
    f"packing.max_length={MAX_LENGTH}",
]
COLOURS = {"pack": "#0072B2", "group": "#E69F00", "pad_to_max": "#D55E00"}


def train_rows(store: Path, folder: Path, mode: str, rows: int, steps: int) -> list[dict[str, float]]:
    """Run ``steps`` steps of ``rows`` rows and return the lines of the metrics."""
    from llasa.entry import compose_config
    from llasa.training.run import train

    overrides = [*SHARED, f"packing.mode={mode}", f"trainer.rows_per_step={rows}", f"trainer.rows_per_device={rows}"]
    overrides += [f"store={store}", f"output_dir={folder}", f"trainer.max_steps={steps}"]
    train(compose_config("train", overrides))
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def seconds_of(lines: list[dict[str, float]]) -> np.ndarray:
    """Time since the start at each line: the tokens of a step over its throughput."""
    tokens = np.diff([0, *(line["tokens"] for line in lines)])
    return np.cumsum(tokens / np.array([line["tokens_per_second"] for line in lines]))


def running_mean(values: np.ndarray, tokens: np.ndarray, window: int = 40_000) -> np.ndarray:
    """Mean of the losses of the last ``window`` useful tokens, so that every layout is smoothed alike."""
    first = np.searchsorted(tokens, tokens - window)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    last = np.arange(1, len(values) + 1)
    return (sums[last] - sums[first]) / (last - first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seconds", type=float, default=150.0)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)

    pilots = {
        mode: train_rows(arguments.store, arguments.output / f"pilot-{mode}", mode, 2 if mode == "pack" else 12, 6)
        for mode in COLOURS
    }
    packed = pilots["pack"][-1]["tokens"] / 6
    example = pilots["pad_to_max"][-1]["tokens"] / 6 / 12  # a group's length says nothing of the mean
    results = {}
    for mode, pilot in pilots.items():
        rows = 2 if mode == "pack" else max(1, round(packed / example))
        speed = float(np.median([line["tokens_per_second"] for line in pilot[1:]]))
        steps = max(10, int(arguments.seconds * speed / packed))
        lines = train_rows(arguments.store, arguments.output / mode, mode, rows, steps)
        tokens = np.array([line["tokens"] for line in lines])
        seconds = seconds_of(lines)
        within = seconds <= arguments.seconds
        smooth = running_mean(np.array([line["loss"] for line in lines]), tokens)[within]
        results[mode] = {
            "rows_per_step": rows,
            "steps": int(within.sum()),
            "tokens": int(tokens[within][-1]),
            "tokens_per_step": round(tokens[-1] / len(lines)),
            "tokens_per_second": round(float(tokens[within][-1] / seconds[within][-1])),
            "loss_at_the_end": round(float(smooth[-1]), 3),
            "seconds": [round(float(value), 2) for value in seconds[within]],
            "loss": [round(float(value), 4) for value in smooth],
        }
    for result in results.values():
        # When packing had come as far as the other layout comes by the end.
        passed = np.array(results["pack"]["loss"]) <= result["loss_at_the_end"]
        result["packing_took_seconds"] = results["pack"]["seconds"][int(np.argmax(passed))] if passed.any() else None
    short = {m: {k: v for k, v in r.items() if k not in ("seconds", "loss")} for m, r in results.items()}
    (arguments.output / "result.json").write_text(json.dumps(short, indent=2) + "\n")
    draw(results, arguments.output / "loss.png")
    print(json.dumps(short, indent=2))


def draw(results: dict[str, dict[str, list[float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=150)
    for mode, result in results.items():
        axes.plot(result["seconds"], result["loss"], color=COLOURS[mode], label=f"packing.mode={mode}")
    axes.set(xlabel="seconds of training", ylabel="loss (mean of 40,000 useful tokens)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
