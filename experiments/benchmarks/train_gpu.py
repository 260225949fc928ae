"""How fast training is on one GPU, and what each part of the stack gains; prints one JSON.

    python experiments/benchmarks/train_gpu.py [--output FILE.json] [--only NAME …]

Models of the published shapes with random weights, on a made-up store (see train.py); everything goes through
`llasa.training.run.train`, so a figure is that of the commands in the README. Needs `pip install llama-models
tiktoken` for Llama 3's tokenizer, and no hub.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.benchmarks.harness import clip_seconds, command_line, lines_of, run, write_tokens

SHAPES = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    "3b": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
}
BASE = ["model=llasa_1b", "logger=none", "device=cuda", "trainer.log_every=1", "checkpoint.every=0"]


def write_store(root: Path, count: int) -> Path:
    """A store of random XCodec2 codes with Italian-looking text."""
    from llasa.model.checkpoint import PUBLISHED_CODEC

    def text(seconds: float) -> str:
        return " ".join(["parola"] * max(1, round(2 * seconds)))

    return write_tokens(root, PUBLISHED_CODEC, text, clip_seconds(count))


def write_model(folder: Path, size: str) -> Path:
    """A checkpoint of the published shape and vocabulary with random weights, in bf16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from llasa.tokens.vocabulary import extend_tokenizer
    from tests.tokens.llama3 import llama3_tokenizer

    if folder.exists():
        return folder
    tokenizer = llama3_tokenizer()
    extend_tokenizer(tokenizer, 65_536)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        num_key_value_heads=8,
        max_position_embeddings=131_072,
        tie_word_embeddings=size != "8b",
        **SHAPES[size],
    )
    with torch.device("cuda"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    del model
    release()
    return folder


def release() -> None:
    import torch

    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def measure(workspace: Path, size: str, overrides: list[str], steps: int = 10) -> dict[str, Any]:
    """Useful tokens a second, MFU and peak memory of a run of ``steps`` steps; the first three are its warm-up."""
    import torch

    from llasa.entry import compose_config
    from llasa.training.run import train

    store = workspace / "store"
    if not store.exists():
        write_store(store, 4000)
    model = write_model(workspace / size, size)
    run = Path(tempfile.mkdtemp(dir=workspace))
    settings = [*BASE, f"model.checkpoint={model}", f"store={store}", f"output_dir={run}", f"trainer.max_steps={steps}"]
    release()
    try:
        train(compose_config("train", [*settings, *overrides]))
    except torch.cuda.OutOfMemoryError:
        return {"out_of_memory": True}
    lines = lines_of(run)[3:]
    record = json.loads((run / "provenance.json").read_text())["resolved"]
    speed = statistics.median(line["tokens_per_second"] for line in lines)
    result = {
        "tokens_per_second": round(speed),
        "peak_gigabytes": round(torch.cuda.max_memory_allocated() / 1e9, 1),
        "attn": record["attn"],
        "kernels": record["kernels"],
        "optimizer": record["optimizer"],
    }
    if lines[-1].get("mfu") is not None:
        result["mfu"] = round(statistics.median(line["mfu"] for line in lines), 3)
    return result


ROWS = {2048: "8", 8192: "2"}


def rows(length: int, per_step: int = 1) -> list[str]:
    per_device = int(ROWS[length])
    return [
        f"packing.max_length={length}",
        f"trainer.rows_per_device={per_device}",
        f"trainer.rows_per_step={per_device * per_step}",
    ]


def utilisation(workspace: Path) -> dict[str, Any]:
    """Model FLOPs utilisation of the 1B shape with rows of 2,048 and 8,192 tokens, and of each attention."""
    results: dict[str, Any] = {"goal": 0.45}
    for length in ROWS:
        results[str(length)] = measure(workspace, "1b", rows(length))
        results[f"{length} compiled"] = measure(workspace, "1b", [*rows(length), "kernels.compile=true"])
    for attn in ("sdpa", "flex_attention"):
        results[f"2048 {attn}"] = measure(workspace, "1b", [*rows(2048), f"kernels.attn={attn}"])
    return results


def chunks(workspace: Path) -> dict[str, Any]:
    """Tokens a second of the whole step by the fused loss's chunk memory; 1 is Liger's default."""
    results: dict[str, Any] = {"goal_over_default": 1.5}
    for length in ROWS:
        by_memory = {
            str(memory): measure(workspace, "1b", [*rows(length), f"kernels.liger_chunk_memory={memory}"])
            for memory in (1, 2, 4, 8, 16, 32)
        }
        best = max(by_memory.values(), key=lambda result: result.get("tokens_per_second", 0))
        by_memory["best_over_default"] = round(best["tokens_per_second"] / by_memory["1"]["tokens_per_second"], 2)
        results[str(length)] = by_memory
    return results


def origin(workspace: Path) -> dict[str, Any]:
    """The whole stack over the origin's recipe: padding to 2,048, full recomputation, Adam8bit, Liger's default."""
    theirs = [
        *rows(2048),
        "packing.mode=pad_to_max",
        "trainer.activation_checkpointing=full",
        "optimizer=adam8bit",
        "kernels.liger_chunk_memory=1",
    ]
    sides = {"origin": measure(workspace, "1b", theirs), "ours": measure(workspace, "1b", rows(2048))}
    ratio = sides["ours"]["tokens_per_second"] / sides["origin"]["tokens_per_second"]
    return {**sides, "ratio": round(ratio, 2), "goal": 4}


def largest(workspace: Path) -> dict[str, Any]:
    """Which shapes take two full fine-tuning steps within 24 GB, and on the whole device."""
    import torch

    total = torch.cuda.get_device_properties(0).total_memory
    frugal = [
        "packing.max_length=2048",
        "trainer.rows_per_device=1",
        "trainer.rows_per_step=1",
        "trainer.parameters=bf16",
        "trainer.activation_checkpointing=full",
        "optimizer=paged_adamw8bit",
    ]
    results: dict[str, Any] = {}
    for gigabytes in (24, total / 1e9):
        torch.cuda.set_per_process_memory_fraction(min(1.0, gigabytes * 1e9 / total))
        for size in SHAPES:
            results[f"{size} in {gigabytes:.0f} GB"] = measure(workspace, size, frugal, steps=5)
    torch.cuda.set_per_process_memory_fraction(1.0)
    return results


PARTS = (chunks, utilisation, origin, largest)


def main() -> None:
    parser = command_line(__doc__, PARTS)
    arguments = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        parser.error("needs a CUDA device; train.py measures what a CPU can")
    run(arguments, PARTS)


if __name__ == "__main__":
    main()
