"""RUN/best: the checkpoint of the best measurement, whole or the one before."""

import json
import os
import resource
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerControl, TrainerState, TrainingArguments

from llasa.config import LoggerConfig
from llasa.entry import compose_config
from llasa.model.checkpoint import CheckpointCard, save_checkpoint
from llasa.model.llama import load_for_inference
from llasa.tracking import Tracker
from llasa.training import best as module
from llasa.training.best import BestCallback, is_better, metrics_at, read_best
from llasa.training.run import train
from tests.conftest import SMALL_LLAMA
from tests.model.tiny import tiny_speech_model
from tests.training.test_heldout import RUN, lines_with, write_store
from tests.training.test_resume import rewind


class Training:
    """What happens around the callback in a run: metrics are logged, then it has its turn."""

    def __init__(self, folder, *overrides, start_step=0):
        config = compose_config(
            "train", [*SMALL_LLAMA, "store=none", f"output_dir={folder}", "heldout.every=1", *overrides]
        )
        self.speech, self.folder = tiny_speech_model(), folder
        self.tracker = Tracker(folder, LoggerConfig(name="none"), {}, start_step=start_step)
        self.arguments = TrainingArguments(output_dir=str(folder / "state"), use_cpu=True, report_to=[])
        self.callback = BestCallback(config, folder, whole=lambda: self.speech.model, save=self.save)
        self.callback.on_train_begin(self.arguments, self.state(start_step), TrainerControl())

    def save(self, folder, model):
        save_checkpoint(folder, model, self.speech.tokenizer, self.speech.card)

    def state(self, step):
        return TrainerState(global_step=step, max_steps=9)

    def step(self, step, **metrics):
        """Weights that tell the step, and metrics whose names have `_` for `/`."""
        with torch.no_grad():
            self.speech.model.model.norm.weight.fill_(step)
        if metrics:
            self.tracker.log({"step": step} | {key.replace("_", "/", 1): value for key, value in metrics.items()})
        self.callback.on_step_end(self.arguments, self.state(step), TrainerControl())
        return self.kept()

    def kept(self):
        """The step that RUN/best says it is of, and that its weights are of."""
        if not (self.folder / "best").exists():
            return None
        weights = load_file(self.folder / "best" / "model.safetensors")["model.norm.weight"]
        facts = json.loads((self.folder / "best" / "best.json").read_text())
        assert set(weights.tolist()) == {facts["step"]}
        return facts["step"]


def test_the_best_is_kept_until_there_is_a_better_one(tmp_path):
    """Fails when a later, worse measurement replaces it, and when an equal or missing one does."""
    training = Training(tmp_path)
    losses = [5.0, 4.0, 4.5, 4.0, float("nan"), 3.5]
    assert [training.step(step, heldout_loss=loss) for step, loss in enumerate(losses, 1)] == [1, 2, 2, 2, 2, 6]
    facts = json.loads((tmp_path / "best/best.json").read_text())
    assert facts == {"step": 6, "metric": "heldout/loss", "value": 3.5, "metrics": {"step": 6, "heldout/loss": 3.5}}
    assert training.callback.kept.describe(tmp_path) == f"best: {tmp_path}/best (step 6, heldout/loss 3.5)"
    assert {path.name for path in tmp_path.iterdir()} == {"best", "metrics.jsonl"}
    speech = load_for_inference(str(tmp_path / "best"), "cpu")
    assert speech.card.codec == training.speech.card.codec
    assert isinstance(CheckpointCard.load(str(tmp_path / "best")), CheckpointCard)


def test_accuracies_are_to_grow(tmp_path):
    training = Training(tmp_path, "heldout.metric=heldout/accuracy/it")
    values = [0.2, 0.1, 0.3]
    kept = [training.step(i, **{"heldout_accuracy/it": value, "heldout_loss": i}) for i, value in enumerate(values, 1)]
    assert kept == [1, 1, 3]
    keys = ("heldout/accuracy", "samples/stopped", "heldout/loss", "samples/cer")
    assert [is_better(key, 2.0, 1.0) for key in keys] == [True, True, False, False]
    assert [is_better(key, 1.0, 2.0) for key in keys] == [False, False, True, True]


def test_a_metric_of_the_samples_counts_where_they_are_spoken(tmp_path, capsys):
    """Fails when it is looked for at each step of `heldout.every`, of which step 1 has none."""
    training = Training(tmp_path, "heldout.metric=samples/cer", "samples.every=2")
    assert training.step(1, heldout_loss=1) is None
    training.tracker.log({"step": 2, "heldout/loss": 1})  # a line of its own
    assert training.step(2, samples_cer=0.4) == 2
    assert training.step(4, samples_cer=0.5) == 2
    assert training.step(6, samples_cer=0.1) == 6
    assert training.callback.kept.metrics == {"step": 6, "samples/cer": 0.1}
    assert training.step(9, heldout_loss=1) == 6, "the last step counts too, if it has the metric"
    assert capsys.readouterr().err == ""


def test_an_unknown_metric_is_told_once(tmp_path, capsys):
    training = Training(tmp_path, "heldout.metric=heldout/los")
    assert training.step(1, heldout_loss=2, heldout_accuracy=0.1) is None
    assert training.step(2, heldout_loss=1, heldout_accuracy=0.2) is None
    told = capsys.readouterr().err
    assert told == (
        "warning: heldout.metric=heldout/los was not measured at step 1, so no checkpoint is the best one (measured: "
        "heldout/accuracy, heldout/loss)\n"
    )


def test_a_resumed_run_remembers_the_best_of_its_past(tmp_path):
    """Fails when it starts anew, and when a best one of steps that are trained again stays."""
    training = Training(tmp_path)
    assert training.step(2, heldout_loss=3) == 2
    resumed = Training(tmp_path, start_step=2)
    assert resumed.callback.kept.value == 3
    assert resumed.step(3, heldout_loss=3.5) == 2
    assert resumed.step(4, heldout_loss=2.5) == 4
    again = Training(tmp_path, start_step=3)
    assert again.kept() is again.callback.kept is None
    assert again.step(4, heldout_loss=9) == 4
    assert Training(tmp_path).kept() is None, "a run that starts again"


def test_other_rows_and_other_metrics_are_not_compared(tmp_path):
    training = Training(tmp_path)
    assert training.step(1, heldout_loss=1, heldout_accuracy=0.9, heldout_tokens=100) == 1
    other_metric = Training(tmp_path, "heldout.metric=heldout/accuracy", start_step=1)
    assert other_metric.step(2, heldout_loss=0.5, heldout_accuracy=0.8, heldout_tokens=100) == 1
    assert other_metric.step(3, heldout_loss=2, heldout_accuracy=0.95, heldout_tokens=100) == 3
    other_rows = Training(tmp_path, start_step=3)
    assert other_rows.step(4, heldout_loss=9, heldout_accuracy=0.1, heldout_tokens=50) == 4


def test_killed_while_it_is_replaced(tmp_path):
    """Between the two renames: the one before is there again. While it is written: what is left goes."""
    training = Training(tmp_path)
    training.step(1, heldout_loss=1)
    os.replace(tmp_path / "best", tmp_path / ".best.old")
    shutil.copytree(tmp_path / ".best.old", tmp_path / ".best.tmp")
    (tmp_path / "..best.tmp.tmp").mkdir()
    resumed = Training(tmp_path, start_step=1)
    assert resumed.kept() == resumed.callback.kept.step == 1
    assert {path.name for path in tmp_path.iterdir()} == {"best", "metrics.jsonl"}


def test_a_damaged_one_is_forgotten(tmp_path):
    training = Training(tmp_path)
    training.step(1, heldout_loss=1)
    (tmp_path / "best/best.json").write_text("{")
    assert read_best(tmp_path) is None
    assert Training(tmp_path, start_step=1).step(2, heldout_loss=5) == 2


def test_a_full_disk_costs_this_checkpoint_and_not_the_run(tmp_path, capsys):
    """Fails when the error goes on, when the earlier one is harmed, and when the lost one counts as the best."""
    training = Training(tmp_path)
    assert training.step(1, heldout_loss=3) == 1
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # the weights are larger
    try:
        assert training.step(2, heldout_loss=1) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    told = capsys.readouterr().err
    assert "warning: the best checkpoint so far, of step 2, could not be written (" in told
    assert "GB free); training goes on" in told
    assert {path.name for path in tmp_path.iterdir()} == {"best", "metrics.jsonl"}
    assert training.step(3, heldout_loss=2) == 3


def test_an_error_of_ours_is_not_taken_for_a_full_disk(tmp_path):
    training = Training(tmp_path)
    training.speech.tokenizer = None
    with pytest.raises(AttributeError):
        training.step(1, heldout_loss=3)
    assert training.kept() is None


def test_metrics_are_read_from_the_end_of_their_file(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TAIL_BYTES", 150)
    tracker = Tracker(tmp_path, LoggerConfig(name="none"), {})
    for step in range(1, 40):
        tracker.log({"step": step, "heldout/loss": 1 / step})
        tracker.log({"step": step, "loss": step})
    tracker.log({"step": 39, "heldout/accuracy": float("nan")})
    metrics = tmp_path / "metrics.jsonl"
    assert metrics_at(metrics, 39) == {"step": 39, "heldout/loss": 1 / 39, "loss": 39, "heldout/accuracy": None}
    assert metrics_at(metrics, 38) == {}
    with open(metrics, "a") as file:
        file.write('{"step": 39, "samples/c')  # a full disk
    assert metrics_at(metrics, 39)["loss"] == 39


def test_a_run_keeps_the_weights_of_its_best_step(tmp_path, capsys):
    """The corpus is noise, so that the held-out loss rises when the training codes are learned by heart. Fails when
    the checkpoint is of another step than its loss, and when a resumed run does not go on with it."""
    store = write_store(tmp_path / "store", {"train": 4, "dev": 6})
    folder = tmp_path / "run"
    settings = [*RUN, f"store={store}", f"output_dir={folder}", "optimizer.lr=3e-2", "heldout.every=1",
                "checkpoint.every=1", "checkpoint.keep=20", "trainer.max_steps=8"]  # fmt: skip
    train(compose_config("train", settings))
    told = capsys.readouterr().out
    losses = {line["step"]: line["heldout/loss"] for line in lines_with(folder, "heldout/loss")}
    step = min(losses, key=losses.__getitem__)
    assert 1 < step < 8
    assert f"best: {folder}/best (step {step}, heldout/loss {losses[step]:.4g})" in told
    best, state = (load_file(folder / name / "model.safetensors") for name in ("best", f"state/checkpoint-{step}"))
    assert all(torch.equal(best[name], state[name]) for name in best)
    assert json.loads((folder / "best/llasa.json").read_text()) == json.loads(
        (folder / "checkpoint/llasa.json").read_text()
    )

    before = {path.name: path.read_bytes() for path in (folder / "best").iterdir()}
    rewind(folder, step)
    train(compose_config("train", [*settings, "resume=true"]))
    assert {path.name: path.read_bytes() for path in (folder / "best").iterdir()} == before
