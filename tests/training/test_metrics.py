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
from llasa.training.callbacks import MetricsCallback
from tests.conftest import write_toy_store
from tests.model.tiny import tiny_speech_model


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
    callback, state = MetricsCallback(tracker, data, rows_per_step=2), TrainerState(global_step=5, max_steps=9)
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
    assert 0 < line["epoch"] == pytest.approx(9 / len(data.plan.epoch(0)), abs=1e-4)
    by_source = {key.removeprefix("tokens/"): n for key, n in line.items() if key.startswith("tokens/")}
    assert by_source == (expected if len(languages) > 1 else {})
    assert not control.should_log
    state.global_step = 9
    callback.on_step_end(arguments, state, control)
    assert control.should_log
