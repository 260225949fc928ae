"""Two processes over gloo on the CPU, started as users start eight GPUs: the same as one process, to rounding.

All runs fine-tune one text Llama with tied embeddings: extending its vocabulary and sharing it out are compared too.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from llasa.entry import compose_config
from llasa.model.llama import load_for_inference
from llasa.tokens.byte_tokenizer import byte_tokenizer
from llasa.training.arguments import training_arguments

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
SUBMITIT = ("-m", "hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=2")
STEPS = 6


@pytest.fixture(scope="module")
def settings(toy_store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("text_llama")
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 2, "vocab_size": len(tokenizer), "tie_word_embeddings": True}
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ["model=llasa_nano", "model.architecture=null", f"model.checkpoint={folder}", f"store={toy_store}",
            "logger=none", "device=cpu", "optimizer=adamw", "optimizer.lr=1e-3", "packing.max_length=512",
            f"trainer.max_steps={STEPS}", "trainer.log_every=1", "trainer.rows_per_step=4", "checkpoint.every=3",
            ]  # fmt: skip


def start(arguments, launcher=(), launcher_overrides=()):
    command = [sys.executable, *launcher, "train.py", *launcher_overrides, *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "WORLD_SIZE"} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False, timeout=300)


def results(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return lines, load_file(folder / "checkpoint" / "model.safetensors")


@pytest.fixture(scope="module")
def one_process(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    result = start([*settings, "trainer.rows_per_device=4", f"output_dir={folder}"])
    assert result.returncode == 0, result.stderr[-3000:]
    return results(folder)


def assert_same(folder, one_process, parallel):
    """Fails when a row is doubled or lost, when gradients are not added up, or the loss not scaled."""
    (lines, weights), (lines_of_one, weights_of_one) = results(folder), one_process
    resolved = json.loads((folder / "provenance.json").read_text())["resolved"]
    assert (resolved["parallel"], resolved["processes"]) == (parallel, 2)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in lines_of_one], abs=1e-5)
    norms = [line["grad_norm"] for line in lines_of_one]
    assert [line["grad_norm"] for line in lines] == pytest.approx(norms, abs=1e-5)
    assert [line["tokens"] for line in lines] == [line["tokens"] for line in lines_of_one]
    assert weights.keys() == weights_of_one.keys()
    for name, tensor in weights_of_one.items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-5, rtol=1e-5)


def test_two_processes_learn_what_one_does(settings, one_process, tmp_path):
    """Fails without `average_tokens_across_devices`."""
    result = start([*settings, "trainer.rows_per_device=1", f"output_dir={tmp_path}"], TORCHRUN)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("checkpoint: ") == 1
    assert_same(tmp_path, one_process, "ddp")


def test_sharded_weights_learn_what_whole_ones_do_and_resume(settings, one_process, tmp_path):
    """Fails when accelerate falls back to DDP (no sharded state), and when the states of the optimizer are lost."""
    fsdp = [*settings, "parallel=fsdp", "trainer.rows_per_device=1", f"output_dir={tmp_path}"]
    result = start(fsdp, TORCHRUN)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("checkpoint: ") == 1
    assert_same(tmp_path, one_process, "fsdp")
    checkpoint = load_for_inference(str(tmp_path / "checkpoint"), "cpu").model
    assert type(checkpoint) is LlamaForCausalLM
    assert checkpoint.config.architectures == ["LlamaForCausalLM"]
    assert checkpoint.lm_head.weight is checkpoint.model.embed_tokens.weight
    torch.testing.assert_close(
        checkpoint.state_dict()["lm_head.weight"], one_process[1]["model.embed_tokens.weight"], atol=1e-5, rtol=1e-5
    )

    state = tmp_path / "state" / "checkpoint-3"
    shards = sorted(path.name for path in (state / "pytorch_model_fsdp_0").glob("*.distcp"))
    assert shards == ["__0_0.distcp", "__1_0.distcp"]
    shutil.rmtree(tmp_path / "state" / f"checkpoint-{STEPS}")
    shutil.rmtree(tmp_path / "checkpoint")
    result = start([*fsdp, "resume=true"], TORCHRUN)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "step 4/6" in result.stdout
    assert "step 3/6" not in result.stdout
    assert_same(tmp_path, one_process, "fsdp")


def test_the_tasks_of_a_submitit_job_are_one_group(settings, one_process, tmp_path):
    """Fails without `join_launcher`: each task would train a model of its own, in one folder."""
    arguments = [*settings, "trainer.rows_per_device=1", f"output_dir={tmp_path}"]
    result = start(arguments, launcher_overrides=SUBMITIT)
    assert result.returncode == 0, result.stderr[-3000:]
    tasks = [path.read_text() for path in sorted(tmp_path.glob(".submitit/*/*_log.out"))]
    assert [task.count("checkpoint: ") for task in tasks] == [1, 0]
    assert_same(tmp_path / "0", one_process, "ddp")


def test_a_mistake_is_told_once(settings, tmp_path):
    """Fails when processes after the first speak at once."""
    result = start([*settings, "optimizer.lrr=1", f"output_dir={tmp_path}"], TORCHRUN)
    assert result.returncode != 0
    assert result.stderr.count("error: there is no key 'optimizer.lrr'") == 1
    assert list(tmp_path.iterdir()) == []


def test_each_process_builds_rows_of_its_own(settings, tmp_path, monkeypatch):
    """Fails with `split_batches`, and where a step's rows are not the next ones of the plan."""
    from accelerate.data_loader import prepare_data_loader

    processes, rows = 4, list(range(48))
    monkeypatch.setenv("WORLD_SIZE", "1")
    config = compose_config("train", [*settings, "trainer.rows_per_step=16", "trainer.rows_per_device=2"])
    arguments = training_arguments(config, tmp_path, 3, "cpu", "fp32", "single")
    config = arguments.accelerator_config
    seen = []
    for process in range(processes):
        loader = prepare_data_loader(
            DataLoader(rows, batch_size=arguments.per_device_train_batch_size),
            num_processes=processes,
            process_index=process,
            put_on_device=False,
            split_batches=config.split_batches,
            dispatch_batches=config.dispatch_batches,
            even_batches=config.even_batches,
        )
        seen.append([batch.tolist() for batch in loader])
    assert all(len(batches) == 6 and all(len(batch) == 2 for batch in batches) for batches in seen)
    for step in range(3):
        of_step = [row for batches in seen for batch in batches[2 * step : 2 * step + 2] for row in batch]
        assert sorted(of_step) == rows[16 * step : 16 * step + 16]
