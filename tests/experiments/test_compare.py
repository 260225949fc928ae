"""experiments/compare.py on metrics written by hand: every number, key and state is known beforehand."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from experiments.compare import default_output, main
from experiments.comparison.columns import columns, group_columns
from experiments.comparison.figures import against, curves
from experiments.comparison.reading import find_runs, flat
from experiments.comparison.style import in_legend_order, looks, natural, smooth
from experiments.comparison.table import Comparison, compare, label, setting
from experiments.comparison.text import escaped, markdown
from llasa.entry import compose_config
from tests.conftest import SMALL_LLAMA

CONFIG = {
    "model": {"name": "llasa_nano", "lr": 1e-3},
    "optimizer": {"_target_": "torch.optim.AdamW", "lr": 1e-3, "betas": [0.9, 0.95]},
    "trainer": {"max_steps": 40, "epochs": 3.0},
    "logger": {"name": "none", "run_name": None},
    "store": "data/it",
    "seed": 0,
}
LONG_AGO = 1_000_000_000


def write_run(
    folder: Path, losses: list[float | None], *more: dict[str, Any], checkpoint: bool = True, **changes: Any
) -> Path:
    """A run folder with a line every 10 steps, 1,000 tokens a step at 500, 2,000, 4,500, … tokens a second.

    Args:
        more: further lines of metrics. changes: of the config, `__` for a dot.
    """
    config = json.loads(json.dumps(CONFIG)) | {"output_dir": str(folder)}
    for key, value in changes.items():
        *groups, name = key.split("__")
        node = config
        for group in groups:
            node = node.setdefault(group, {})
        node[name] = value
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    lines = [
        {
            "step": 10 * i,
            "loss": loss,
            "lr": 1e-3,
            "tokens": 10_000 * i,
            "tokens_per_second": 500.0 * i**2,
            "epoch": i / 4,
        }
        for i, loss in enumerate(losses, start=1)
    ]
    write_lines(folder, [*lines, *more])
    if checkpoint:
        (folder / "checkpoint").mkdir()
    return folder


def write_lines(folder: Path, lines: list[dict[str, Any]], mode: str = "w") -> None:
    with open(folder / "metrics.jsonl", mode, encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    os.utime(folder / "metrics.jsonl", (LONG_AGO, LONG_AGO))


def compared(*paths: Path, **options: Any) -> Comparison:
    return compare(*find_runs(paths), **options)


def names(comparison: Comparison) -> list[str]:
    return [run.name for run in comparison.runs]


def cells(comparison: Comparison) -> dict[str, list[str]]:
    return {column.heading: column.cells for column in columns(comparison)}


@pytest.fixture
def sweep(tmp_path) -> Path:
    """Four runs by learning rate, one of them diverged, with held-out lines of their own."""
    heldout = [
        {"step": 20, "heldout/loss": 4.5, "heldout/accuracy": 0.125},
        {"step": 40, "heldout/loss": 4.75, "heldout/accuracy": 0.25},
    ]
    better = [heldout[0], {"step": 40, "heldout/loss": 4.0, "heldout/accuracy": 0.375}]
    root = tmp_path / "sweep"
    write_run(root / "0", [6.0, 5.0, 4.0, 4.5], *heldout, optimizer__lr=1e-4)
    write_run(root / "1", [6.0, 4.0, 3.0, 2.5], *better, optimizer__lr=1e-3)
    write_run(root / "2", [6.0, 4.5, 3.5, 3.25], *heldout, optimizer__lr=1e-2)
    write_run(root / "10", [6.5, 9.0, None, None], checkpoint=False, optimizer__lr=1e-1)
    return root


def test_every_number_of_the_table(sweep):
    """Fails when last and best are exchanged, when the speed is a mean, when time forgets the first line."""
    table = cells(compared(sweep))
    assert table["run"] == ["1", "2", "0", "10"]
    assert table["optimizer.lr"] == ["1e-3", "0.01", "1e-4", "0.1"]
    assert table["loss"] == ["2.5000", "3.2500", "4.5000", "NaN"]
    assert table["best loss"] == ["2.5000", "3.2500", "4.0000", "6.5000"]
    assert table["heldout/loss"] == ["4.0000", "4.7500", "4.7500", "–"]
    assert table["best heldout/loss"] == ["4.0000", "4.5000", "4.5000", "–"]
    assert table["heldout/accuracy"] == ["0.3750", "0.2500", "0.2500", "–"]
    assert table["best heldout/accuracy"] == ["0.3750", "0.2500", "0.2500", "–"]
    assert table["tokens"] == ["40,000"] * 4
    assert table["tokens/s"] == ["3,250"] * 4
    assert table["time"] == ["28.5 s"] * 4  # 10,000 · (1/500 + 1/2000 + 1/4500 + 1/8000)
    assert table["status"] == ["finished"] * 3 + ["diverged at step 30"]
    assert "seed" not in table


def test_json_has_the_same_unrounded(sweep, tmp_path, capsys):
    main([str(sweep), "--output", str(tmp_path / "out")])
    found = json.loads((tmp_path / "out/comparison.json").read_text())
    best, diverged = found["runs"][0], found["runs"][-1]
    assert found["keys"] == ["optimizer.lr"]
    assert best["name"] == "1"
    assert best["label"] == "lr 1e-3"
    assert best["config"] == {"optimizer.lr": 1e-3}
    assert best["last"] == {"loss": 2.5, "heldout/loss": 4.0, "heldout/accuracy": 0.375}
    assert best["tokens_per_second"] == 3250
    assert best["hours"] == pytest.approx(10_000 * (1 / 500 + 1 / 2000 + 1 / 4500 + 1 / 8000) / 3600, rel=1e-12)
    assert diverged["last"]["loss"] is None
    assert diverged["best"]["loss"] == 6.5
    assert (diverged["status"], diverged["step"]) == ("diverged", 40)
    printed = capsys.readouterr().out
    assert "diverged at step 30" in printed
    assert str(tmp_path / "out/index.html") in printed


def test_sorting_follows_the_direction_of_the_metric(sweep):
    """Fails when accuracies ascend, or when NaN and absent values are not last."""
    assert names(compared(sweep, metric="heldout/loss"))[0] == "1"
    assert names(compared(sweep, metric="heldout/loss"))[-1] == "10"
    accuracy = compared(sweep, metric="heldout/accuracy")
    assert [run.last("heldout/accuracy") for run in accuracy.runs] == [0.375, 0.25, 0.25, None]
    assert names(compared(sweep, metric="loss"))[-1] == "10"


def test_smoothing_is_an_average_corrected_for_its_start():
    """Fails without the correction (the first value would be 3), or when NaN enters the average."""
    assert smooth(np.array([6.0, 4.0, 8.0]), 0.0).tolist() == [6.0, 4.0, 8.0]
    # 0.5: averages 3, 3.5, 5.75 over 0.5, 0.75, 0.875
    assert smooth(np.array([6.0, 4.0, 8.0]), 0.5) == pytest.approx([6.0, 3.5 / 0.75, 5.75 / 0.875], rel=1e-12)
    gap = smooth(np.array([6.0, math.nan, 4.0]), 0.5)
    assert math.isnan(gap[1])
    assert gap[[0, 2]] == pytest.approx([6.0, 3.5 / 0.75], rel=1e-12)
    assert smooth(np.full(50, 7.0), 0.9) == pytest.approx(np.full(50, 7.0), rel=1e-12)


def test_differing_keys_exactly(tmp_path):
    """Fails when logger or output_dir count, when a missing key counts as another value, when a twin is a column."""
    write_run(tmp_path / "a", [2.0], optimizer__lr=1e-3, model__lr=1e-3, logger__run_name="a", resume=False)
    write_run(tmp_path / "b", [3.0], optimizer__lr=1e-4, model__lr=1e-4, logger__run_name="b", resume=True)
    write_run(tmp_path / "c", [4.0], optimizer__lr=1e-4, model__lr=1e-4, optimizer__betas=[0.9, 0.99], heldout__every=5)
    comparison = compared(tmp_path)
    assert comparison.keys == ["model.lr", "optimizer.betas"]
    assert comparison.same == {"optimizer.lr": "model.lr"}
    assert comparison.partial == ["heldout.every"]
    assert comparison.notes == [
        "optimizer.lr is the same as model.lr in every run.",
        "Only some of the configs have heldout.every.",
    ]
    assert cells(comparison)["optimizer.betas"] == ["[0.9, 0.95]", "[0.9, 0.95]", "[0.9, 0.99]"]


def test_a_key_that_some_lack_is_a_column_if_the_others_differ(tmp_path):
    for name, value in (("a", 8), ("b", 16)):
        write_run(tmp_path / name, [2.0], finetune__rank=value)
    write_run(tmp_path / "c", [3.0])
    comparison = compared(tmp_path)
    assert comparison.keys == ["finetune.rank"]
    assert cells(comparison)["finetune.rank"] == ["8", "16", "–"]
    assert label(comparison.runs[2], comparison) == "rank –"


def test_true_is_not_one(tmp_path):
    assert flat({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}
    write_run(tmp_path / "a", [2.0], kernels__compile=True)
    write_run(tmp_path / "b", [3.0], kernels__compile=False)
    comparison = compared(tmp_path)
    assert cells(comparison)["kernels.compile"] == ["true", "false"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-5, "1e-5"), (2.5e-4, "2.5e-4"), (0.05, "0.05"), (3.0, "3"), (1e20, "1e20"), (None, "null"), (16, "16")],
)
def test_settings_are_written_as_people_do(tmp_path, value, text):
    write_run(tmp_path / "a", [2.0], x=value)
    run = find_runs([tmp_path])[0][0]
    assert setting(run, "x") == text


def test_paths_are_shown_without_what_they_share(tmp_path):
    """Fails when the shared part is cut in the middle of a name (1h and 16h share a 1)."""
    for name in ("1h", "16h"):
        write_run(tmp_path / name, [2.0], store=f"/data/stores/it-{name}")
    assert sorted(cells(compared(tmp_path))["store"]) == ["it-16h", "it-1h"]


def test_natural_order():
    assert sorted(["it-16h", "it-1h", "it-4h", "it"], key=natural) == ["it", "it-1h", "it-4h", "it-16h"]


def state_of(folder: Path, **options: Any) -> tuple[str, str]:
    return find_runs([folder])[0][0].state(**options)


def test_how_a_run_ended(tmp_path):
    """Fails when a checkpoint of fewer steps counts as the end, or a pause as running."""
    assert state_of(write_run(tmp_path / "a", [4.0] * 4)) == ("finished", "finished")
    assert state_of(write_run(tmp_path / "b", [4.0] * 3, checkpoint=False)) == ("stopped", "stopped at step 30 of 40")
    resumed_further = write_run(tmp_path / "c", [4.0] * 4, trainer__max_steps=80)
    assert state_of(resumed_further) == ("stopped", "stopped at step 40 of 80")
    assert state_of(write_run(tmp_path / "d", [4.0, None, 4.0, 4.0])) == ("finished", "finished")
    assert state_of(write_run(tmp_path / "e", [4.0, None, None])) == ("diverged", "diverged at step 20")
    assert state_of(write_run(tmp_path / "f", [])) == ("empty", "no step logged")
    epochs = write_run(tmp_path / "g", [4.0] * 4, trainer__max_steps=None, checkpoint=False)
    assert state_of(epochs) == ("stopped", "stopped at step 40 of about 120")
    (epochs / "checkpoint").mkdir()
    assert state_of(epochs)[0] == "finished"


def test_a_run_that_is_still_written_to(tmp_path):
    """Its lines took 12.5 s on average, so two minutes decide; a slow run has five lines' time."""
    running = write_run(tmp_path / "a", [4.0, 3.0], checkpoint=False)
    assert state_of(running, now=LONG_AGO + 100.0) == ("running", "running, step 20 of 40")
    assert state_of(running, now=LONG_AGO + 130.0)[0] == "stopped"
    lines = [{"step": 10 * i, "loss": 4.0, "tokens": 10_000 * i, "tokens_per_second": 10.0} for i in (1, 2)]
    write_lines(running, lines)  # a line in 1,000 s
    assert state_of(running, now=LONG_AGO + 4_900.0)[0] == "running"
    assert state_of(running, now=LONG_AGO + 5_100.0)[0] == "stopped"
    empty = write_run(tmp_path / "b", [], checkpoint=False)
    assert state_of(empty, now=LONG_AGO + 1.0) == ("running", "running, no step logged yet")


def test_a_line_that_is_being_written_is_passed_over(tmp_path):
    run = write_run(tmp_path / "a", [4.0, 3.0])
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 30, "lo')
    assert [row["step"] for row in find_runs([run])[0][0].rows] == [10, 20]


def test_steps_that_were_trained_again_stand_once(tmp_path):
    """Fails when the lines of the interrupted run stay behind the resumed run's."""
    run = write_run(tmp_path / "a", [6.0, 5.0, 4.0, 3.0], {"step": 40, "heldout/loss": 9.0})
    write_lines(run, [{"step": 30, "loss": 3.5}, {"step": 30, "heldout/loss": 3.75}], mode="a")
    steps, losses = find_runs([run])[0][0].curve("loss")
    assert (steps.tolist(), losses.tolist()) == ([10, 20, 30], [6.0, 5.0, 3.5])
    assert find_runs([run])[0][0].values("heldout/loss") == [3.75]


def test_a_measurement_may_stand_before_the_line_of_its_step(tmp_path):
    run = write_run(tmp_path / "a", [])
    write_lines(run, [{"step": 10, "heldout/loss": 5.0}, {"step": 10, "loss": 4.0}, {"step": 20, "loss": 3.0}])
    found = find_runs([run])[0][0]
    assert found.rows == [{"step": 10, "heldout/loss": 5.0, "loss": 4.0}, {"step": 20, "loss": 3.0}]


def test_held_out_points_lie_between_the_training_lines(sweep):
    """Fails when a held-out point is drawn over its step on another axis."""
    run = find_runs([sweep / "0"])[0][0]
    steps, values = run.curve("heldout/loss")
    assert (steps.tolist(), values.tolist()) == ([20, 40], [4.5, 4.75])
    assert run.curve("heldout/loss", "tokens")[0].tolist() == [20_000, 40_000]
    hours = run.curve("heldout/loss", "time")[0]
    assert hours == pytest.approx([25 / 3600, 10_000 * (1 / 500 + 1 / 2000 + 1 / 4500 + 1 / 8000) / 3600])
    write_lines(run.folder, [{"step": 15, "heldout/loss": 4.0}], mode="a")
    assert find_runs([sweep / "0"])[0][0].curve("heldout/loss", "tokens")[0].tolist() == [15_000, 20_000, 40_000]


def test_audio_hours_where_they_were_logged(tmp_path):
    lines = [{"step": 10, "audio_hours": 0.5}, {"step": 20, "audio_hours": 1.0}]
    run = write_run(tmp_path / "a", [6.0, 5.0], *lines)
    write_run(tmp_path / "b", [6.0, 5.0], store="data/de")
    assert find_runs([run])[0][0].curve("loss", "audio_hours")[0].tolist() == [0.5, 1.0]
    comparison = compared(tmp_path, axis="audio_hours")
    figure = curves(comparison, "loss", 0.0)
    assert [line.get_xdata().tolist() for line in figure.axes[0].lines] == [[0.5, 1.0]]


def test_mean_and_deviation_over_seeds(tmp_path):
    """Fails with the population's deviation (n), or when runs that differ in more than the seed are one group."""
    losses = {1e-3: [2.0, 3.0, 7.0], 1e-2: [5.0, 5.5, None]}
    for lr, values in losses.items():
        for seed, loss in enumerate(values):
            write_run(tmp_path / f"{lr}-{seed}", [6.0, loss], optimizer__lr=lr, seed=seed, trainer__max_steps=20)
    comparison = compared(tmp_path)
    assert comparison.keys == ["optimizer.lr", "seed"]
    assert [len(group.runs) for group in comparison.groups] == [3, 3]
    first = comparison.groups[0]
    assert first.mean("loss") == 4.0
    assert first.deviation("loss") == pytest.approx(np.std([2.0, 3.0, 7.0], ddof=1), rel=1e-12)
    table = {column.heading: column.cells for column in group_columns(comparison)}
    assert table["optimizer.lr"] == ["1e-3", "0.01"]
    assert table["loss"] == ["4.0000 ± 2.6458", "5.2500 ± 0.3536 (2 of 3)"]
    appearance = looks(comparison)
    assert len({appearance[run.name] for run in first.runs}) == 1
    assert len(set(appearance.values())) == 2


def test_no_means_without_repeats(sweep):
    assert group_columns(compared(sweep)) == []


def test_colours_follow_the_order_of_a_number(sweep):
    """Fails when colours follow the rank of the loss: viridis gets lighter with the learning rate."""
    comparison = compared(sweep)
    appearance = looks(comparison)
    assert [label(run, comparison) for run in in_legend_order(comparison)] == [
        "lr 1e-4",
        "lr 1e-3",
        "lr 0.01",
        "lr 0.1",
    ]
    greens = [int(appearance[run.name].light[3:5], 16) for run in in_legend_order(comparison)]
    assert greens == sorted(set(greens))


def rendered(text: str) -> list[list[str]]:
    """The cells of the first table of a Markdown text, as a reader sees them."""
    lines = [line for line in text.split("\n\n")[1].splitlines() if line.startswith("|")]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    return [[re.sub(r"\\(.)", r"\1", cell.strip()) for cell in row] for row in rows]


def test_markdown_holds_the_table(tmp_path):
    """Fails when a pipe or a line break of a value is not escaped: the row would have more cells, or be two."""
    write_run(tmp_path / "a|b", [2.0], lang="x|y*z*")
    write_run(tmp_path / "c", [3.0], lang="first\nsecond")
    comparison = compared(tmp_path)
    table = rendered(markdown(comparison, [("loss.png", "training loss")]))
    assert table[0] == [column.heading for column in columns(comparison)]
    assert {len(row) for row in table} == {len(table[0])}
    assert [row[:3] for row in table[2:]] == [["a|b", "x|y*z*", "2.0000"], ["c", "first second", "3.0000"]]
    assert "![training loss](loss.png)" in markdown(comparison, [("loss.png", "training loss")])
    assert escaped("a|b_c") == r"a\|b\_c"


def test_figures_hold_the_curves(sweep, tmp_path):
    """Fails when the values, their order or the logarithmic axis are lost on the way into a figure."""
    comparison = compared(sweep)
    axes = curves(comparison, "loss", 0.0).axes[0]
    drawn = {tuple(line.get_ydata()) for line in axes.lines if len(line.get_ydata()) > 1}
    assert {(6.0, 5.0, 4.0, 4.5), (6.0, 4.0, 3.0, 2.5), (6.0, 4.5, 3.5, 3.25)} <= drawn
    crosses = [line for line in axes.lines if line.get_marker() == "x"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in crosses] == [(20, 9.0)]
    assert axes.get_ylabel() == "training loss (nats per token)"
    plot = against(comparison, "optimizer.lr").axes[0]
    assert plot.get_xscale() == "log"
    dots = {(line.get_xdata()[0], line.get_ydata()[0]) for line in plot.lines if line.get_marker() == "o"}
    assert dots == {(1e-4, 4.5), (1e-3, 2.5), (1e-2, 3.25)}
    means = [line.get_xydata().tolist() for line in plot.lines if line.get_marker() == "None"]
    assert means == [[[1e-4, 4.5], [1e-3, 2.5], [1e-2, 3.25]]]


def test_files(sweep, capsys):
    main([str(sweep), "--metric", "heldout/accuracy", "--x", "tokens", "--smooth", "0.5"])
    files = sorted(path.name for path in (sweep / "comparison").iterdir())
    pictures = ["heldout-accuracy-by-optimizer.lr.png", "heldout-accuracy.png", "heldout-loss.png"]
    assert files == ["comparison.json", "comparison.md", *pictures, "index.html", "loss.png"]
    for name in (*pictures, "loss.png"):
        assert (sweep / "comparison" / name).read_bytes().startswith(b"\x89PNG")
        assert f"({name})" in (sweep / "comparison/comparison.md").read_text()
    main([str(sweep)])  # its own folder is no run to it
    assert "4 runs" in (sweep / "comparison/comparison.md").read_text()


def test_where_it_is_written(sweep):
    assert default_output([sweep]) == sweep / "comparison"
    assert default_output([sweep / "0"]) == Path("outputs/comparison")
    assert default_output([sweep, sweep]) == Path("outputs/comparison")


def test_runs_are_found_below_and_once(sweep):
    runs, _ = find_runs([sweep / "1", sweep.parent, sweep])
    assert sorted(run.name for run in runs) == ["0", "1", "10", "2"]
    write_run(sweep.parent / "other/deep/0", [3.0])
    (sweep / "0/wandb/files").mkdir(parents=True)
    write_run(sweep / "0/wandb/files/inner", [3.0])  # nothing is looked for in a run
    assert sorted(run.name for run in find_runs([sweep.parent])[0]) == [
        "other/deep/0",
        "sweep/0",
        "sweep/1",
        "sweep/10",
        "sweep/2",
    ]


def test_jobs_that_failed(sweep, tmp_path, capsys):
    """Fails when a job without a run folder is forgotten, or when a stopped run is not said to have failed."""
    write_run(sweep / "3", [6.0, 5.0], checkpoint=False, optimizer__lr=1.0)
    jobs = [
        {"number": 1, "overrides": ["optimizer.lr=1e-3"], "output_dir": "elsewhere/1", "status": "finished"},
        {
            "number": 3,
            "overrides": ["optimizer.lr=1"],
            "output_dir": "elsewhere/3",
            "status": "failed",
            "error": "a\nb",
        },
        {"number": 4, "overrides": ["store=no|where"], "output_dir": "x/4", "status": "failed", "error": "no store"},
        {"number": 2, "overrides": [], "output_dir": "x/2", "status": "failed", "error": "resumed since"},
    ]
    (sweep / "sweep.json").write_text(json.dumps({"objective": "loss", "jobs": jobs}))
    main([str(sweep), "--output", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "failed at step 20" in printed
    assert "\n3: a b\nfailed: store=no|where: no store\n" in printed
    found = json.loads((tmp_path / "out/comparison.json").read_text())
    assert found["failed"] == [{"job": 4, "overrides": ["store=no|where"], "error": "no store"}]
    assert {run["name"]: run["error"] for run in found["runs"] if run["error"]} == {"3": "a b"}
    assert {run["name"]: run["status"] for run in found["runs"]}["2"] == "finished"
    text = (tmp_path / "out/comparison.md").read_text()
    assert "- 3: a b" in text
    assert r"- store=no\|where: no store" in text


def test_a_sweep_of_which_nothing_ran(tmp_path, capsys):
    jobs = [{"number": 0, "overrides": ["store=nowhere"], "output_dir": "0", "status": "failed", "error": "no store"}]
    (tmp_path / "sweep.json").write_text(json.dumps({"jobs": jobs}))
    main([str(tmp_path)])
    assert "failed: store=nowhere: no store" in capsys.readouterr().out
    assert "store=nowhere: no store" in (tmp_path / "comparison/index.html").read_text()


def test_an_evaluation_adds_its_rates(sweep, tmp_path):
    systems = [
        {"name": "ground truth", "kind": "recording", "metrics": {"wer": {"value": 0.01}}},
        {"name": "0", "kind": "checkpoint", "metrics": {"wer": {"value": 0.25}, "cer": {"value": 0.125}}},
    ]
    (sweep / "1/evaluation").mkdir()
    (sweep / "1/evaluation/report.json").write_text(json.dumps({"systems": systems}))
    (sweep / "0/evaluation").mkdir()
    (sweep / "0/evaluation/report.json").write_text("[]")
    table = cells(compared(sweep))
    assert (table["WER"], table["CER"]) == (["0.2500", "–", "–", "–"], ["0.1250", "–", "–", "–"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{root}/nowhere"], "nowhere is not a folder; name run folders, or a sweep's"),
        (["{root}/bare"], "bare is no run and holds none; a run has config.yaml and metrics.jsonl; config.yaml is"),
        (["{root}/sweep", "{root}/bare"], "bare is no run and holds none"),
        (["{root}/young"], "metrics.jsonl is missing"),
        (["{root}/broken"], "broken/config.yaml cannot be read"),
        (["{root}/sweep", "--metric", "heldout/los"], "named 'heldout/los'; did you mean heldout/loss?"),
        (["{root}/sweep", "--x", "audio_hours"], "no run has logged audio_hours; use --x step"),
        (["{root}/sweep", "--smooth", "1"], "--smooth 1 is not possible; use 0 or more, and less than 1"),
        (["{root}/sweep", "--output", "{root}/bare/file"], "cannot use {root}/bare/file: File exists"),
    ],
)
def test_mistakes(sweep, tmp_path, capsys, arguments, message):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/file").touch()
    (tmp_path / "young").mkdir()
    (tmp_path / "young/config.yaml").write_text("seed: 0\n")
    write_run(tmp_path / "broken", [3.0])
    (tmp_path / "broken/config.yaml").write_text("- [")
    with pytest.raises(SystemExit) as stop:
        main([argument.format(root=tmp_path) for argument in arguments])
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert message.format(root=tmp_path) in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_a_single_run_and_runs_without_a_step(tmp_path, capsys):
    write_run(tmp_path / "runs/a", [])
    main([str(tmp_path / "runs/a"), "--output", str(tmp_path / "out")])
    assert "no step logged" in capsys.readouterr().out
    write_run(tmp_path / "runs/b", [4.0, 3.0])
    main([str(tmp_path / "runs"), "--output", str(tmp_path / "out")])
    found = json.loads((tmp_path / "out/comparison.json").read_text())
    assert [(run["name"], run["last"]["loss"]) for run in found["runs"]] == [("b", 3.0), ("a", None)]


def test_runs_of_train_py(toy_store, tmp_path, capsys):
    """What the trainer writes is what is read: the last loss, the tokens and the end of two real runs."""
    from llasa.training.run import train

    for lr in ("1e-3", "1e-2"):
        overrides = [*SMALL_LLAMA, "lang=it", f"store={toy_store}", f"output_dir={tmp_path}/runs/{lr}"]
        overrides += [f"optimizer.lr={lr}", "trainer.max_steps=4", "trainer.log_every=2", "trainer.rows_per_step=2"]
        overrides += ["trainer.rows_per_device=2", "packing.max_length=256", "checkpoint.every=0"]
        overrides += ["sanity.first_loss=null", "heldout.every=0", "samples.every=0"]
        train(compose_config("train", overrides))
    capsys.readouterr()
    comparison = compared(tmp_path / "runs")
    assert comparison.keys == ["optimizer.lr"]
    assert [run.state()[0] for run in comparison.runs] == ["finished", "finished"]
    for run in comparison.runs:
        lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
        assert run.step == 4
        assert run.last("loss") == lines[-1]["loss"]
        assert run.last("tokens") == lines[-1]["tokens"] > 0
        assert run.hours() > 0
    assert comparison.runs[0].last("loss") < comparison.runs[1].last("loss")
