"""The metrics callback alone: what a line says of the data."""

import json

import numpy as np
import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from llasa.config import LoggerConfig
from llasa.corpus.store import TokenStore
from llasa.packing.dataset import PackedRows, Source
from llasa.packing.lengths import example_lengths
from llasa.tracking import Tracker
from llasa.training.callbacks import MetricsCallback, speech_hours
from tests.conftest import write_toy_store
from tests.model.tiny import CODEC, tiny_speech_model


@pytest.mark.parametrize("languages", [("it",), ("it", "de")])
def test_tokens_are_counted_by_source_from_the_beginning_also_after_a_resume(tmp_path, languages):
    """Fails when the rows before the resume, which had steps of another size, are not counted or counted twice."""
    rows = TokenStore(write_toy_store(tmp_path / "store", count=24, languages=languages)).rows("train")
    prompt = tiny_speech_model().prompt
    parts = {name: rows.select(np.flatnonzero(np.asarray(rows["language"]) == name)) for name in languages}
    sources = [Source(name, part, example_lengths(part, prompt)) for name, part in parts.items()]
    data = PackedRows(sources, prompt, max_length=256, window=64, seed=0)
    data.shift = 1 * 5 - 2 * 5  # five steps of one row, then steps of two: step 7 ends before row 9
    tracker = Tracker(tmp_path / "run", LoggerConfig(name="none"), {})
    codes = np.concatenate([np.asarray(part["num_codes"]) for part in parts.values()])
    hours = speech_hours(data.plan, codes, CODEC.tokens_per_second)
    callback = MetricsCallback(tracker, data, rows_per_step=2, hours=hours)
    state = TrainerState(global_step=5, max_steps=9)
    arguments, control = TrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True), TrainerControl()
    callback.on_train_begin(arguments, state, control)
    for state.global_step in (6, 7):
        callback.on_step_end(arguments, state, control)
    callback.on_log(arguments, state, control, {"loss": 1.0, "learning_rate": 0.1, "grad_norm": 2.0})
    callback.on_train_end(arguments, state, control)
    tracker.close()
    (line,) = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    expected = dict.fromkeys(languages, 0)
    for row in range(9):
        for index in data.plan.examples(row):
            expected[languages[int(index >= len(parts[languages[0]]))]] += int(data.plan.lengths[index])
    assert line["tokens"] == sum(expected.values())
    seconds = sum(int(codes[index]) for row in range(9) for index in data.plan.examples(row)) / 50
    assert 0 < line["audio_hours"] == pytest.approx(seconds / 3600, abs=1e-6)
    assert 0.1 < line["memory_gb"] < 100  # torch alone takes that
    assert 0 < line["epoch"] == pytest.approx(9 / len(data.plan.epoch(0)), abs=1e-4)
    by_source = {key.removeprefix("tokens/"): n for key, n in line.items() if key.startswith("tokens/")}
    assert by_source == (expected if len(languages) > 1 else {})
    assert not control.should_log
    state.global_step = 9
    callback.on_step_end(arguments, state, control)
    assert control.should_log


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_hours_are_counted_over_epochs_as_the_examples_are_repeated(tmp_path, temperature):
    """The slow twin adds up what each row holds. Fails when an epoch of a mixture is taken for the whole store, and
    when codes are counted for the wrong examples."""
    rows = TokenStore(write_toy_store(tmp_path / "store", count=40, languages=("it", "it", "it", "de"))).rows("train")
    prompt = tiny_speech_model().prompt
    languages = np.asarray(rows["language"])
    parts = [rows.select(np.flatnonzero(languages == name)) for name in ("it", "de")]
    sources = [
        Source(name, part, example_lengths(part, prompt)) for name, part in zip(("it", "de"), parts, strict=True)
    ]
    longest = max(int(source.lengths.max()) for source in sources)
    data = PackedRows(sources, prompt, max_length=2 * longest, window=16, seed=0, temperature=temperature)
    codes = np.concatenate([np.asarray(part["num_codes"]) for part in parts])
    hours = speech_hours(data.plan, codes, 50.0)
    seconds, last = 0.0, data.plan.rows_in(3) + 2
    for row in range(last):
        assert hours(row) == pytest.approx(seconds / 3600, rel=1e-9)
        seconds += codes[data.plan.examples(row)].sum() / 50
    assert speech_hours(data.plan, codes, 50.0)(last) == pytest.approx(
        seconds / 3600
    )  # asked at once, as after a resume
    assert data.plan.locate(last)[0] == 3
