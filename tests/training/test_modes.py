"""Every way to train, through `train()` itself: what its parts promise has to hold when they are put together."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from llasa.entry import compose_config
from llasa.errors import UserError
from llasa.model.llama import load_for_inference
from llasa.training.run import train
from tests.conftest import SMALL_LLAMA, write_toy_store
from tests.model.tiny import save_tiny

STEPS = ["trainer.max_steps=6", "trainer.rows_per_step=2", "trainer.rows_per_device=1", "trainer.log_every=1"]
FAST = [*SMALL_LLAMA, "optimizer=adamw", "packing.max_length=512", "checkpoint.every=3", "checkpoint.keep=9", *STEPS]


def run(store, folder, *overrides):
    return train(compose_config("train", [*FAST, f"store={store}", f"output_dir={folder}", *overrides]))


def column(folder, key):
    return [json.loads(line)[key] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def record(folder):
    return json.loads((folder / "provenance.json").read_text())


def stop_after(folder, step):
    """Make a finished run one that was killed right after the state of ``step``."""
    for result in ("checkpoint", "adapter"):
        shutil.rmtree(folder / result, ignore_errors=True)
    for state in (folder / "state").iterdir():
        if int(state.name.rpartition("-")[2]) > step:
            shutil.rmtree(state)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A checkpoint that speaks the toy codec, for the adapters to stand on."""
    return save_tiny(tmp_path_factory.mktemp("base") / "checkpoint")


@pytest.mark.parametrize("name", ["lora", "qlora"])
def test_adapters_are_trained_resumed_and_merged(toy_store, tmp_path, base, name):
    """Fails when a state lacks the adapters (the resumed losses differ), and when RUN/checkpoint is not merged (it
    speaks as the base does)."""
    adapters = [f"finetune={name}", f"model.checkpoint={base}", "model.architecture=null", "optimizer.lr=1e-2"]
    run(toy_store, tmp_path / "whole", *adapters)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    stop_after(tmp_path / "cut", 3)
    run(toy_store, tmp_path / "cut", *adapters, "resume=true")
    whole = column(tmp_path / "whole", "loss")
    assert whole[-1] < whole[0]
    assert column(tmp_path / "cut", "loss") == pytest.approx(whole, abs=1e-6)
    merged, again = (load_file(tmp_path / run / "checkpoint/model.safetensors") for run in ("whole", "cut"))
    for key in merged:
        torch.testing.assert_close(again[key], merged[key], atol=1e-6, rtol=1e-5)
    of_base = load_file(base / "model.safetensors")
    assert merged.keys() == of_base.keys()
    moved = {key for key in merged if not torch.equal(merged[key], of_base[key])}
    assert any("q_proj" in key for key in moved)
    assert not any("norm" in key for key in moved), "LoRA leaves the norms alone"
    assert load_for_inference(str(tmp_path / "whole/adapter"), "cpu").card.codec.name == "toy"
    learn = record(tmp_path / "whole")["model"]["finetune"]
    assert 0 < learn["trainable"] < learn["all"]


def test_one_batch_is_learnt_by_heart(toy_store, tmp_path):
    """Fails when the debug mode does not reach the data, and when any part of a step does not learn."""
    settings = ["optimizer.lr=1e-2", "schedule=constant", "packing.max_length=192", "trainer.rows_per_device=2"]
    loss = run(toy_store, tmp_path / "run", *settings, "debug=overfit_batch", "trainer.max_steps=100")
    assert loss < 0.05 < column(tmp_path / "run", "loss")[0]
    rows = np.diff(column(tmp_path / "run", "tokens"))
    assert set(rows) == {rows[0]}, "each step has the tokens of the first"


def test_auto_resumes_what_is_there_and_starts_what_is_not(toy_store, tmp_path):
    """Fails when auto starts again over a state (the first losses are logged anew) or refuses to start."""
    run(toy_store, tmp_path / "run", "resume=auto")
    first = column(tmp_path / "run", "loss")
    stop_after(tmp_path / "run", 3)
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    marked = [json.dumps(json.loads(line) | {"before": True}) for line in lines]
    (tmp_path / "run/metrics.jsonl").write_text("\n".join(marked) + "\n")
    run(toy_store, tmp_path / "run", "resume=auto")
    again = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in again] == first
    assert ["before" in line for line in again] == [True] * 3 + [False] * 3


@pytest.mark.parametrize("mode", ["pack", "group", "pad_to_max"])
def test_every_layout_trains_the_same_examples(toy_store, tmp_path, mode):
    """An epoch has the same tokens in each; padding counts for nothing. Fails when a mode drops or repeats examples,
    or when its padding is trained on."""
    run(toy_store, tmp_path / "run", f"packing.mode={mode}", "trainer.max_steps=null", "trainer.epochs=1",
        "trainer.rows_per_step=1", "packing.max_length=512", "checkpoint.every=0")  # fmt: skip
    run(toy_store, tmp_path / "packed", "trainer.max_steps=null", "trainer.epochs=1", "trainer.rows_per_step=1",
        "checkpoint.every=0")  # fmt: skip
    assert column(tmp_path / "run", "tokens")[-1] == column(tmp_path / "packed", "tokens")[-1]
    assert column(tmp_path / "run", "epoch")[-1] == pytest.approx(1)
    steps = len(column(tmp_path / "run", "step"))
    assert steps == {"pack": len(column(tmp_path / "packed", "step")), "group": 20, "pad_to_max": 20}[mode]


def test_layouts_give_one_row_the_same_loss(tmp_path):
    """Two examples, a row each, padded to the longer or to 512. Fails when padding is attended to or trained on."""
    store = write_toy_store(tmp_path / "store", count=2)
    for mode in ("group", "pad_to_max"):
        run(store, tmp_path / mode, f"packing.mode={mode}", "trainer.rows_per_step=2", "trainer.rows_per_device=2",
            "trainer.max_steps=1", "checkpoint.every=0")  # fmt: skip
    losses = [column(tmp_path / mode, "loss")[0] for mode in ("group", "pad_to_max")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert column(tmp_path / "group", "tokens") == column(tmp_path / "pad_to_max", "tokens")


def test_a_mixture_is_recorded_and_logged(tmp_path):
    """Fails when shares are not those of the config, and when a source's tokens are not logged."""
    store = write_toy_store(tmp_path / "store", count=40, languages=("it", "de", "it", "it"))
    run(store, tmp_path / "run", "lang=multilingual", "mixture.weights={it: 1, de: 1}")
    sources = {source["name"]: source for source in record(tmp_path / "run")["sources"]}
    assert set(sources) == {"it", "de"}
    assert sources["it"]["num_examples"] == 3 * sources["de"]["num_examples"] == 30
    assert sources["it"]["share"] == pytest.approx(0.5, abs=0.1)
    assert sources["de"]["repeats"] > sources["it"]["repeats"]
    assert len(column(tmp_path / "run", "tokens/de")) == 6
    totals = zip(*(column(tmp_path / "run", key) for key in ("tokens", "tokens/it", "tokens/de")), strict=True)
    assert all(tokens == it + de for tokens, it, de in totals)


def test_a_plan_writes_nothing(toy_store, tmp_path, capsys):
    run(toy_store, tmp_path / "run", "plan=true")
    assert "optimizer states" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_a_plan_refuses_what_training_refuses(toy_store, tmp_path):
    with pytest.raises(UserError, match="the optimizer refuses its settings"):
        run(toy_store, tmp_path / "run", "plan=true", "optimizer.betas=[2,3]")
    with pytest.raises(UserError, match="does not work with parallel=fsdp"):
        run(toy_store, tmp_path / "run", "plan=true", "optimizer=adam8bit", "parallel=fsdp")
