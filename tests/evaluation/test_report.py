"""Arithmetic of the report on rows made by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from llasa.entry import compose_config
from llasa.evaluation.page import better_of
from llasa.evaluation.page_clips import choose, difference, rank
from llasa.evaluation.report import METRICS, as_text, build_report, compare, finite, summary

CONFIG = compose_config("evaluate", ["checkpoint=x", "store=y", "output=z", "resamples=200"])


def row(name: str, system: str = "a", **values: Any) -> dict[str, Any]:
    """A clip with nothing measured but what is given."""
    empty = dict.fromkeys(
        ("heard", "words", "characters", "repeated_words", "skipped_words", "similarity", "dnsmos", "relative_speed",
         "finish_reason", "generation_seconds", "decode_seconds")
    )  # fmt: skip
    return {"id": name, "system": system, "seconds": 2.0, **empty, **values}


def counts(errors: int, length: int) -> dict[str, int]:
    return {"errors": errors, "length": length, "substitutions": errors, "deletions": 0, "insertions": 0}


def test_rates_are_ratios_of_sums():
    """Fails when clips are averaged: 1 of 1 and 1 of 9 words are 2 of 10, not 0.56."""
    rows = [row("1", words=counts(1, 1)), row("2", words=counts(1, 9))]
    found = summary(rows, CONFIG)
    assert found["wer"]["value"] == pytest.approx(0.2)
    assert found["wer"]["clips"] == 2
    assert found["wer"]["low"] <= 0.2 <= found["wer"]["high"]
    assert set(found) == {"wer"}, "what was not measured is left out"


def test_means_shares_and_times():
    rows = [
        row("1", similarity=0.5, dnsmos={"ovrl": 2.0, "sig": 3.0, "bak": 4.0}, finish_reason="stop",
            generation_seconds=1.0, decode_seconds=0.5),
        row("2", similarity=1.0, dnsmos={"ovrl": 4.0, "sig": 3.0, "bak": 4.0}, finish_reason="length",
            generation_seconds=2.0, decode_seconds=0.5, seconds=6.0),
        row("3", similarity=None, dnsmos=None, finish_reason="stop", generation_seconds=3.0, decode_seconds=0.0),
    ]  # fmt: skip
    found = summary(rows, CONFIG)
    assert found["similarity"]["value"] == pytest.approx(0.75)
    assert found["similarity"]["clips"] == 2
    assert found["dnsmos_ovrl"]["value"] == pytest.approx(3.0)
    assert found["unfinished"]["value"] == pytest.approx(1 / 3)
    assert found["rtf"]["value"] == pytest.approx(7 / 10)
    assert found["generation_rtf"]["value"] == pytest.approx(6 / 10)


def test_a_share_of_none_still_has_an_interval():
    """A bootstrap of zeros would say that it cannot happen."""
    found = summary([row(str(n), finish_reason="stop") for n in range(20)], CONFIG)["unfinished"]
    assert (found["value"], found["low"]) == (0, 0)
    assert 0.1 < found["high"] < 0.2


def test_one_clip_has_no_interval():
    found = finite(summary([row("1", words=counts(1, 4))], CONFIG))["wer"]
    assert found == {"value": 0.25, "low": None, "high": None, "clips": 1}


def test_a_comparison_is_of_the_sentences_of_both():
    """First minus second; sentence 9 was said by one of them only."""
    first = [row(str(n), "a", words=counts(1, 4)) for n in range(8)] + [row("9", "a", words=counts(4, 4))]
    second = [row(str(n), "b", words=counts(2, 4)) for n in range(8)]
    found = compare(first, second, CONFIG)["wer"]
    assert found["difference"] == pytest.approx(-0.25)
    assert found["clips"] == 8
    assert found["p"] < 0.05
    other = compare(second, first, CONFIG)["wer"]
    assert other["difference"] == pytest.approx(0.25)
    assert compare(first, [row("none", "b", words=counts(1, 4))], CONFIG) == {}


def test_the_report_is_json_whatever_was_measured():
    """NaN is no JSON, and numpy's numbers are none either."""
    rows = [
        row("1", similarity=np.float32(0.5), relative_speed=float("nan"), words=counts(0, 0), dnsmos={"ovrl": np.inf}),
        row("2", similarity=np.float64(0.7), relative_speed=float("inf"), seconds=np.float64(0.0), repeated_words=2,
            skipped_words=0, generation_seconds=1.0, decode_seconds=1.0, words=counts(np.int64(1), 3)),
    ]  # fmt: skip
    systems = [{"name": "a", "kind": "checkpoint"}, {"name": "codec resynthesis", "kind": "codec"}]
    report = build_report(rows, systems, CONFIG, note=(1, 2))
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["clips"][0]["relative_speed"] is None
    assert report["clips"][0]["similarity"] == 0.5
    assert report["note"] == [1, 2]
    assert "relative_speed" not in report["systems"][0]["metrics"]
    assert report["systems"][1]["metrics"] == {}
    assert report["comparisons"] == []
    assert report["systems"][0]["metrics"]["wer"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    lines = as_text(report).splitlines()
    assert lines[0].split()[:2] == ["WER", "SIM"]
    assert lines[1].split()[:3] == ["a", "33.3", "%"]
    assert set(lines[2].removeprefix("codec resynthesis").split()) == {"–"}


def test_every_metric_has_a_key_of_its_own_and_says_what_it_is():
    assert len({metric.key for metric in METRICS}) == len(METRICS) == 12
    assert all(metric.about and metric.better in ("lower", "higher", None) for metric in METRICS)


def test_the_worst_sentences_stand_first():
    """By the worse of two checkpoints, and what is a ceiling does not count."""
    rows = [
        row("good", "a", characters=counts(0, 10)), row("good", "b", characters=counts(1, 10)),
        row("bad", "a", characters=counts(1, 10)), row("bad", "b", characters=counts(9, 10)),
        row("stuck", "a", characters=counts(2, 10), finish_reason="length"), row("stuck", "b"),
        row("tie", "a", characters=counts(2, 10), finish_reason="stop"), row("tie", "b"),
        row("good", "codec resynthesis", characters=counts(10, 10)),
    ]  # fmt: skip
    systems = [{"name": name, "kind": "checkpoint"} for name in "ab"] + [{"name": "codec resynthesis", "kind": "codec"}]
    ranking = rank(build_report(rows, systems, CONFIG))
    assert ranking == ["bad", "stuck", "tie", "good"]
    many = [str(n) for n in range(100)]
    chosen = choose(many, 10)
    assert chosen[:5] == many[:5]
    assert len(set(chosen)) == 10
    assert [int(name) for name in chosen[5:]] == [5, 24, 43, 62, 81]
    assert choose(many, 1) == ["0"]
    assert choose(many, 0) == []
    assert choose(many, 100) == many


def test_a_winner_is_named_only_where_interval_and_test_agree():
    metrics, pair = {metric.key: metric for metric in METRICS}, {"first": "a", "second": "b"}

    def winner(key: str, low: float, high: float, p: float) -> str:
        return better_of(pair, metrics[key], {"low": low, "high": high, "p": p}, 0.95)

    assert winner("wer", -0.2, -0.1, 0.01) == "a", "fewer errors"
    assert winner("wer", 0.1, 0.2, 0.01) == "b"
    assert winner("similarity", 0.1, 0.2, 0.01) == "a", "more alike"
    assert winner("wer", 0.1, 0.2, 0.06) == winner("wer", -0.1, 0.2, 0.01) == "not shown"
    assert winner("relative_speed", 0.1, 0.2, 0.01) == "", "faster is not better"


@pytest.mark.parametrize(
    ("text", "heard", "shown"),
    [
        ("Il gatto dorme.", "Il gatto dorme!", "Il gatto dorme!"),
        ("Il gatto dorme.", "Il gato dorme.", "Il <del>gatto</del> <mark>gato</mark> dorme."),
        ("Il gatto dorme.", "Il dorme dorme", "Il <del>gatto</del> dorme <mark>dorme</mark>"),
        ("Il gatto dorme.", "Il gatto", "Il gatto <del>dorme</del>"),
        ("Ho 3 gatti.", "Ho tre gatti", "Ho tre gatti"),
        ("Ciao.", "", "<del>ciao</del>"),
        ("Ciao.", "<b>Ciao</b> & via", "<mark>&lt;b&gt;Ciao&lt;/b&gt;</mark> <mark>&amp;</mark> <mark>via</mark>"),
    ],
)
def test_differences_are_marked_word_by_word(text, heard, shown):
    assert difference({"text": text, "heard": heard, "language": "it"}) == shown
