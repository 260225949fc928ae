"""Two processes over gloo on the CPU, started as users start eight GPUs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import SMALL_LLAMA

ROOT = Path(__file__).resolve().parents[2]


def run(store, folder, launcher, rows_per_device):
    settings = [*SMALL_LLAMA, "optimizer=adamw", "optimizer.lr=1e-3", "packing.max_length=512", "trainer.max_steps=6",
                "trainer.log_every=1", "trainer.rows_per_step=4", f"trainer.rows_per_device={rows_per_device}",
                "checkpoint.every=3"]  # fmt: skip
    command = [sys.executable, *launcher, "train.py", *settings, f"store={store}", f"output_dir={folder}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return lines, load_file(folder / "checkpoint" / "model.safetensors"), result


def test_two_processes_learn_what_one_does(toy_store, tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    one, weights_of_one, _ = run(toy_store, tmp_path / "one", [], rows_per_device=4)
    two, weights_of_two, result = run(toy_store, tmp_path / "two", torchrun, rows_per_device=1)
    assert result.stdout.count("checkpoint: ") == 1
    assert [line["step"] for line in two] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], abs=1e-5)
    assert [line["tokens"] for line in two] == [line["tokens"] for line in one]
    assert weights_of_one.keys() == weights_of_two.keys()
    for name, tensor in weights_of_one.items():
        torch.testing.assert_close(weights_of_two[name], tensor, atol=1e-5, rtol=1e-5)
