"""How fast training is on a CPU, and what each of its parts gains; prints one JSON.

    python experiments/benchmarks/train.py [--output FILE.json] [--only NAME …]

Ratios are taken within one run, the sides in turn, because machines are noisy. Layouts and processes are timed
through `llasa.training.run.train` as users run it, on a made-up store: clips of log-normal length with a mean of
10 s, 50 codes a second, as many text bytes as Llama 3's tokenizer makes tokens of such a sentence. The model has
the proportions of Llama-1B with 193,800 rows (28 % of the FLOPs in the head) at a thousandth of its size.
What needs a GPU is in train_gpu.py.
"""

from __future__ import annotations

import gc
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.benchmarks.harness import (
    ROOT,
    alternate,
    clip_seconds,
    command_line,
    in_a_process,
    lines_of,
    peak_memory,
    run,
    timed,
    write_tokens,
)

CODEBOOK = 2800
MAX_LENGTH = 2048
MODEL = [
    "model=llasa_nano",
    "model.architecture.hidden_size=128",
    "model.architecture.intermediate_size=512",
    "model.architecture.num_hidden_layers=4",
    "optimizer=adamw",
    "optimizer.lr=1e-4",
    "logger=none",
    "device=cpu",
    f"packing.max_length={MAX_LENGTH}",
    "trainer.log_every=1",
    "checkpoint.every=0",
]


def write_store(root: Path, count: int) -> Path:
    """A token store of random codes and of sentences of 4 bytes a second of speech."""
    from llasa.codec.base import CodecSpec

    spec = CodecSpec("benchmark", "benchmark-1", 16_000, 50.0, CODEBOOK, ((0, CODEBOOK),))
    return write_tokens(root, spec, lambda seconds: "a" * round(4 * seconds), clip_seconds(count))


def tokens_per_second(run: Path) -> float:
    """Useful tokens a second of a run's steps but the first two, whose start-up is not a step's."""
    return statistics.median(line["tokens_per_second"] for line in lines_of(run)[2:])


# What each part measures


def layout(workspace: Path) -> dict[str, Any]:
    """Useful tokens a second of packed rows over one example a row, padded to all of it or to the batch's longest."""
    from llasa.entry import compose_config
    from llasa.training.run import train

    store = write_store(workspace / "store", 3000)
    modes = {
        "pack": ["trainer.rows_per_step=4", "trainer.rows_per_device=4"],
        "group": ["trainer.rows_per_step=16", "trainer.rows_per_device=16"],
        "pad_to_max": ["trainer.rows_per_step=4", "trainer.rows_per_device=4"],
    }
    count = iter(range(1000))

    def speed_of(mode: str) -> float:
        folder = workspace / f"{mode}-{next(count)}"
        overrides = [*MODEL, *modes[mode], f"packing.mode={mode}", "trainer.max_steps=8"]
        train(compose_config("train", [*overrides, f"store={store}", f"output_dir={folder}"]))
        return tokens_per_second(folder)

    speed = alternate({mode: lambda mode=mode: speed_of(mode) for mode in modes}, 3)
    mean = mean_tokens(store)
    return {
        "tokens_per_second": {mode: round(value) for mode, value in speed.items()},
        "mean_tokens_of_an_example": round(mean, 1),
        "pack_over_pad_to_max": round(speed["pack"] / speed["pad_to_max"], 2),
        "goal": round(max(3.4, 0.9 * MAX_LENGTH / mean), 2),
        "pack_over_group": round(speed["pack"] / speed["group"], 2),
    }


def prompt_builder() -> Any:
    from llasa.tokens.byte_tokenizer import byte_tokenizer
    from llasa.tokens.prompt import PromptBuilder, PromptRules
    from llasa.tokens.vocabulary import SpeechVocabulary, extend_tokenizer

    tokenizer = byte_tokenizer()
    extend_tokenizer(tokenizer, CODEBOOK)
    return PromptBuilder(tokenizer, SpeechVocabulary.from_tokenizer(tokenizer, CODEBOOK), PromptRules())


def mean_tokens(store: Path) -> float:
    from llasa.corpus.store import TokenStore
    from llasa.packing.dataset import example_lengths

    return float(example_lengths(TokenStore(store).rows("train"), prompt_builder()).mean())


def loss(workspace: Path) -> dict[str, Any]:
    """The chunked loss over full logits: 2,048 tokens, 193,800 rows, forward and backward."""
    hidden, tokens = 512, 2048
    sides = {"chunked": loss_function(True, tokens, hidden), "full": loss_function(False, tokens, hidden)}
    seconds = alternate({name: lambda function=function: timed(function) for name, function in sides.items()}, 3)
    peaks = {name: in_a_process(loss_peak, name == "chunked", tokens, hidden)["bytes"] for name in sides}
    return {
        "tokens": tokens,
        "vocabulary": 193_800,
        "hidden": hidden,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "speed_ratio": round(seconds["full"] / seconds["chunked"], 2),
        "peak_megabytes": {name: round(value / 1e6) for name, value in peaks.items()},
        "memory_ratio": round(peaks["chunked"] / peaks["full"], 3),
    }


def loss_function(chunked: bool, tokens: int, hidden: int) -> Callable[[], None]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from llasa.config import KernelsConfig
    from llasa.model.kernels import apply_kernels

    torch.manual_seed(0)
    shape = {"hidden_size": hidden, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 8}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=193_800, tie_word_embeddings=False, use_cache=False, **shape))
    model.model.embed_tokens.weight.requires_grad_(False)  # whose gradient is not the loss's
    ids = torch.randint(0, 193_800, (1, tokens))
    if chunked:
        apply_kernels(model, "torch", KernelsConfig(name="torch"))

    def step() -> None:
        model.zero_grad(set_to_none=False)
        model(input_ids=ids, labels=ids, num_items_in_batch=tokens).loss.backward()

    step()
    return step


def loss_peak(chunked: bool, tokens: int, hidden: int) -> dict[str, int]:
    """Bytes that a step of the loss adds to the process at its peak; the gradients are there before it."""
    import torch

    torch.set_num_threads(1)
    loss_function(chunked, 8, hidden)
    gc.collect()  # a model with a forward of its own refers to itself
    before = peak_memory()
    loss_function(chunked, tokens, hidden)
    return {"bytes": peak_memory() - before}


def states(workspace: Path) -> dict[str, Any]:
    """Bytes of the optimizers' states over those of fp32 AdamW, after a step on a model of 8 M parameters."""
    import torch

    from llasa.entry import compose_config
    from llasa.training.optim import build_optimizer

    def bytes_of(name: str) -> int:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Embedding(8000, 512), *(torch.nn.Linear(512, 2048) for _ in range(4)))
        node = compose_config("train", [f"optimizer={name}"]).optimizer
        optimizer = build_optimizer(model, node, "cpu")
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        return sum(
            value.numel() * value.element_size()
            for state in optimizer.state.values()
            for value in state.values()
            if torch.is_tensor(value)
        )

    names = ["adam8bit", "adamw8bit", "muon"]
    reference = bytes_of("adamw")
    return {"adamw_bytes": reference, "ratio": {name: round(bytes_of(name) / reference, 3) for name in names}}


def loader(workspace: Path) -> dict[str, Any]:
    """Tokens a second that one process makes ready: rows read from the store, tokenised, packed, collated."""
    from llasa.corpus.store import TokenStore
    from llasa.packing.collate import PackingCollator
    from llasa.packing.dataset import PackedRows

    store = write_store(workspace / "store", 3000)
    data = PackedRows(
        TokenStore(store).rows("train"), prompt_builder(), max_length=8192, window=16_384, seed=0
    )  # of two hours of speech
    collate = PackingCollator(pad_token_id=0)
    rows = min(len(data), 100)
    seconds = timed(lambda: [collate([data[row]]) for row in range(rows)])
    rate = data.num_tokens(0, rows) / seconds
    published = 42_000
    return {
        "tokens_per_second": round(rate),
        "over_an_h100": round(rate / published, 1),
        "an_h100": f"{published} tokens/s of Llama-3.2-1B, FACTS section 4",
    }


def processes(workspace: Path) -> dict[str, Any]:
    """Two gloo processes of one thread each over one process of one thread: the same rows a step."""
    store = write_store(workspace / "store", 3000)
    count = iter(range(1000))

    def speed_of(launcher: list[str]) -> float:
        folder = workspace / f"processes-{next(count)}"
        settings = [*MODEL, "trainer.rows_per_step=8", "trainer.rows_per_device=4", "trainer.max_steps=8"]
        command = [sys.executable, *launcher, "train.py", *settings, f"store={store}", f"output_dir={folder}"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
        return tokens_per_second(folder)

    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    speed = alternate({"one": lambda: speed_of([]), "two": lambda: speed_of(torchrun)}, 2)
    return {
        "tokens_per_second": {name: round(value) for name, value in speed.items()},
        "ratio": round(speed["two"] / speed["one"], 2),
    }


def plan(workspace: Path) -> dict[str, Any]:
    """The plan of an epoch of ten million examples: seconds, peak memory, share of the tokens that are examples."""
    return {str(length): in_a_process(plan_epoch, 10_000_000, length) for length in (2048, 8192)}


def plan_epoch(examples: int, max_length: int) -> dict[str, Any]:
    from llasa.packing.plan import PackingPlan

    lengths = (clip_seconds(examples) * 54).astype(np.int32) + 30
    built = PackingPlan(np.minimum(lengths, max_length), max_length=max_length, window=16_384, seed=0)
    seconds = timed(lambda: built.epoch(0))
    return {
        "examples": examples,
        "rows": len(built.epoch(0)),
        "seconds": round(seconds, 1),
        "peak_gigabytes": round(peak_memory() / 1e9, 2),
        "efficiency": round(built.efficiency(), 4),
    }


def recompute(workspace: Path) -> dict[str, Any]:
    """Tokens a second with activation checkpointing over without."""
    from llasa.entry import compose_config
    from llasa.training.run import train

    store = write_store(workspace / "store", 1000)
    count = iter(range(1000))

    def speed_of(mode: str) -> float:
        folder = workspace / f"{mode}-{next(count)}"
        overrides = [*MODEL, "trainer.rows_per_step=4", "trainer.rows_per_device=4", "trainer.max_steps=6"]
        overrides += [f"trainer.activation_checkpointing={mode}", f"store={store}", f"output_dir={folder}"]
        train(compose_config("train", overrides))
        return tokens_per_second(folder)

    speed = alternate({mode: lambda mode=mode: speed_of(mode) for mode in ("none", "selective", "full")}, 2)
    return {mode: round(value / speed["none"], 2) for mode, value in speed.items()}


PARTS = (layout, loss, states, loader, processes, plan, recompute)

if __name__ == "__main__":
    run(command_line(__doc__, PARTS).parse_args(), PARTS, called=(loss_peak, plan_epoch))
