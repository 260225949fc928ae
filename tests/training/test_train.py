import json
from itertools import pairwise

import pytest
import torch
import yaml
from safetensors.torch import load_file

from llasa.corpus.store import TokenStore
from llasa.entry import compose_config
from llasa.errors import UserError
from llasa.model.llama import load_for_inference
from llasa.packing.dataset import PackedRows, example_lengths
from llasa.training.run import train
from tests.conftest import SMALL_LLAMA, write_toy_store

FAST = [*SMALL_LLAMA, "optimizer=adamw", "packing.max_length=512", "trainer.log_every=1", "checkpoint.every=0"]


ADAMW = {"optimizer": "AdamW"}
TWO_ROWS = ["trainer.rows_per_step=2", "trainer.rows_per_device=2"]


def run(store, folder, *overrides):
    return train(compose_config("train", [*FAST, f"store={store}", f"output_dir={folder}", *overrides]))


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder):
    return load_file(folder / "checkpoint" / "model.safetensors")


def test_a_run_leaves_metrics_a_record_and_a_checkpoint(toy_store, tmp_path):
    loss = run(
        toy_store, tmp_path / "run", "trainer.max_steps=12", "trainer.rows_per_step=2", "trainer.rows_per_device=2"
    )
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert {"step", "loss", "lr", "grad_norm", "tokens_per_second", "tokens", "epoch"} <= lines[0].keys()
    assert lines[-1]["loss"] == loss < lines[0]["loss"]
    assert 4.0 < lines[0]["loss"] < 8.0, "a first loss far from ln(vocabulary) means that the labels are wrong"
    assert all(a["tokens"] < b["tokens"] for a, b in pairwise(lines))
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["optimizer"]["lr"] == config["model"]["lr"] == 2e-3
    assert config["seed"] == 0
    record = json.loads((tmp_path / "run" / "provenance.json").read_text())
    alone = {"parallel": "single", "processes": 1}
    choices = {"device": "cpu", "precision": "fp32", "kernels": "torch", "attn": "sdpa_varlen", **ADAMW, **alone}
    assert record["resolved"] == choices
    speech = load_for_inference(str(tmp_path / "run" / "checkpoint"), "cpu")
    card, longest = speech.card, example_lengths(TokenStore(toy_store).rows("train"), speech.prompt).max()
    assert (card.languages, card.codec.name, card.max_length) == (("it",), "toy", longest)


def test_tokens_are_counted_without_padding(toy_store, tmp_path):
    run(toy_store, tmp_path / "run", "trainer.epochs=2", "trainer.rows_per_step=1", "trainer.rows_per_device=1")
    prompt = load_for_inference(str(tmp_path / "run" / "checkpoint"), "cpu").prompt
    last = metrics(tmp_path / "run")[-1]
    assert last["tokens"] == 2 * example_lengths(TokenStore(toy_store).rows("train"), prompt).sum()
    assert last["epoch"] == pytest.approx(2.0, abs=0.2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_seed_gives_the_same_weights(toy_store, tmp_path, precision):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(toy_store, tmp_path / name, "trainer.max_steps=3", f"seed={seed}", f"trainer.precision={precision}",
            "trainer.rows_per_step=1", "trainer.rows_per_device=1")  # fmt: skip
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)
    assert {tensor.dtype for tensor in a.values()} == {torch.bfloat16 if precision == "bf16" else torch.float32}


def test_accumulation_changes_neither_losses_nor_weights(toy_store, tmp_path):
    for rows in (1, 2, 4):
        run(toy_store, tmp_path / str(rows), "trainer.max_steps=5", "trainer.rows_per_step=4",
            f"trainer.rows_per_device={rows}", "optimizer.lr=1e-3")  # fmt: skip
    expected = [line["loss"] for line in metrics(tmp_path / "4")]
    assert len(set(expected)) == 5
    for rows in (1, 2):
        assert [line["loss"] for line in metrics(tmp_path / str(rows))] == pytest.approx(expected, abs=1e-5)
        whole, parts = weights(tmp_path / "4"), weights(tmp_path / str(rows))
        for name in whole:
            torch.testing.assert_close(parts[name], whole[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("setting", ["trainer.activation_checkpointing=full", "packing.workers=2"])
def test_what_saves_memory_or_time_changes_no_loss(toy_store, tmp_path, setting):
    for name, extra in (("plain", []), ("other", [setting])):
        run(toy_store, tmp_path / name, "trainer.max_steps=4", *TWO_ROWS, *extra)
    plain, other = ([line["loss"] for line in metrics(tmp_path / name)] for name in ("plain", "other"))
    assert other == pytest.approx(plain, abs=1e-6)
    assert len(set(plain)) == 4


def test_a_store_of_several_languages_gives_the_one_that_was_asked_for(tmp_path):
    store = write_toy_store(tmp_path / "store", count=20, languages=("it", "de"))
    run(store, tmp_path / "run", "lang=de", "trainer.epochs=1", *TWO_ROWS)
    speech = load_for_inference(str(tmp_path / "run/checkpoint"), "cpu")
    assert speech.card.languages == ("de",)
    lengths = example_lengths(TokenStore(store).rows("train"), speech.prompt)
    epoch_tokens = metrics(tmp_path / "run")[-1]["tokens"] / metrics(tmp_path / "run")[-1]["epoch"]
    assert epoch_tokens < 0.7 * lengths.sum()


def test_norms_are_not_decayed(toy_store, tmp_path):
    """With nothing but decay at work (gradients clipped to zero) every matrix shrinks and the norms stay."""
    settings = ["trainer.max_steps=2", "schedule=constant", "schedule.warmup=0", "trainer.max_grad_norm=1e-30"]
    settings += ["optimizer.lr=0.1", "optimizer.weight_decay=0.5", *TWO_ROWS]
    run(toy_store, tmp_path / "run", *settings)
    norms = {name: t for name, t in weights(tmp_path / "run").items() if "norm" in name}
    assert len(norms) == 3
    assert all(torch.equal(tensor, torch.ones_like(tensor)) for tensor in norms.values())
    matrix = weights(tmp_path / "run")["model.layers.0.mlp.up_proj.weight"]
    assert matrix.std() < 0.1 * 0.95**2 * 1.02


@pytest.mark.parametrize(
    ("message", "overrides"),
    [
        ("there is no token store at", ["store=nowhere"]),
        ("has no lang=de, only it", ["lang=de"]),
        ("there is nothing to resume", ["resume=true"]),
        ("model=toy speaks xcodec2", ["model.name=toy", "model.codec=xcodec2"]),
        ("longer than packing.max_length=64", ["packing.max_length=64"]),
        ("torch sees no CUDA device", ["device=cuda"]),
        ("the optimizer refuses its settings", ["optimizer.betas=[2,3]"]),
        ("optimizer.lr='fast' is not valid; use a positive", ["optimizer.lr=fast"]),
        ("objective=heldout/loss is measured on held-out speech", ["objective=heldout/loss"]),
    ],
)
def test_a_mistake_is_named_before_anything_is_written(toy_store, tmp_path, message, overrides):
    if "device=cuda" in overrides and torch.cuda.is_available():
        return  # not a mistake here
    with pytest.raises(UserError, match=message):
        run(toy_store, tmp_path / "run", *overrides)
    assert not (tmp_path / "run").exists()


def test_long_examples_are_dropped_and_counted_never_cut(tmp_path, capsys):
    store = write_toy_store(tmp_path / "store", count=30, seed=3)
    run(store, tmp_path / "run", "packing.max_length=128", "trainer.max_steps=1")
    assert "longer than 128 left out" in capsys.readouterr().out
    speech = load_for_inference(str(tmp_path / "run" / "checkpoint"), "cpu")
    data = PackedRows(TokenStore(store).rows("train"), speech.prompt, max_length=128, window=8, seed=0)
    assert 0 < data.num_dropped < 30
    seen = [example for row in range(len(data)) for example in data[row]]
    assert len(seen) == data.num_examples == 30 - data.num_dropped
    assert all(example.labels[-1] == speech.vocabulary.speech_end for example in seen)
    assert all(len(example.input_ids) <= 128 for example in seen)


def test_what_a_sweep_compares_is_the_objective(toy_store, tmp_path):
    """Fails when the objective is the loss whatever is asked for."""
    assert run(toy_store, tmp_path / "run", "trainer.max_steps=2", *TWO_ROWS, "objective=grad_norm") == pytest.approx(
        metrics(tmp_path / "run")[-1]["grad_norm"]
    )
    with pytest.raises(UserError, match=r"objective=perplexity is not among the metrics .*grad_norm, loss, lr"):
        run(toy_store, tmp_path / "other", "trainer.max_steps=1", *TWO_ROWS, "objective=perplexity")
