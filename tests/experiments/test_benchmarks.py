"""What the benchmarks make of their measurements; the measurements themselves belong in no test."""

from __future__ import annotations

import json

import numpy as np
import pytest

from experiments.benchmarks import draw
from experiments.benchmarks.growth import curve
from experiments.benchmarks.harness import alternate
from experiments.benchmarks.origin import step_seconds


def test_the_tables_are_those_of_the_committed_figures():
    """Fails when a table is edited by hand, or a JSON is committed without `draw.py`."""
    origin, growth = (json.loads((draw.FOLDER / f"{name}-cpu.json").read_text()) for name in ("origin", "growth"))
    assert draw.table_of(draw.README.read_text(encoding="utf-8")) == draw.comparison(origin)
    assert draw.table_of((draw.FOLDER / "README.md").read_text(encoding="utf-8")) == draw.exponents(growth)


def test_a_ratio_is_above_one_where_ours_is_better():
    sides = {
        "origin": {"tokens_per_second": 100, "loss": 5.0, "peak_gigabytes": 4.0, "first_step_seconds": 9.0},
        "ours": {"tokens_per_second": 300, "loss": 3.0, "peak_gigabytes": 2.0, "first_step_seconds": 10.0},
    }
    result = {
        "training": {"seconds": 60.0, **sides},
        "preprocessing": {
            "times_real_time": {"origin": 30.0, "ours": 33.0},
            "bytes_per_second_of_audio": {"origin": 1000, "ours": 100},
        },
        "first_audio": {"seconds": {"origin": 8.0, "ours": 2.0}},
    }
    ratios = [line.split("|")[4].strip() for line in draw.comparison(result).splitlines()[2:]]
    assert ratios == ["3.0", "", "2.0", "0.9", "1.1", "10.0", "4.0"]


def test_a_table_is_written_between_its_marks_and_nothing_else_changes(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"-\n{draw.BEGIN}\n-\n{draw.END}\n-\n")
    for table in ("| a |\n| b |", "| c |"):
        draw.write_table(page, table)
        assert page.read_text() == f"-\n{draw.BEGIN}\n{table}\n{draw.END}\n-\n"


@pytest.mark.parametrize("power", [0.0, 1.0, 1.5])
def test_the_exponent_of_a_power_is_found(power):
    found = curve({size: lambda size=size: 3 * size**power for size in (10, 40, 1000)})
    assert (found["exponent"], found["at_the_end"]) == (power, power)
    assert list(found["at"]) == ["10", "40", "1000"]


def test_the_end_of_a_curve_may_rise_more_steeply():
    found = curve({1: lambda: 1.0, 10: lambda: 1.0, 100: lambda: 10.0})
    assert found["at_the_end"] == 1.0
    assert 0 < found["exponent"] < 1


def test_sides_take_turns_and_the_median_is_kept():
    order = []
    values = {"a": iter([1.0, 9.0, 2.0]), "b": iter([5.0, 4.0, 6.0])}

    def measure(name):
        order.append(name)
        return next(values[name])

    assert alternate({name: lambda name=name: measure(name) for name in values}, 3) == {"a": 2.0, "b": 5.0}
    assert order == ["a", "b"] * 3


def test_seconds_of_steps_are_their_tokens_over_their_speed():
    lines = [{"tokens": 100, "tokens_per_second": 50}, {"tokens": 400, "tokens_per_second": 100}]
    assert np.allclose(step_seconds(lines), [2.0, 5.0])
