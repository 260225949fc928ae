"""Peak memory of real training steps on the CPU, in a process of its own: a JSON list, one number of bytes a case.

    python -m tests.training.step_peaks '[{"checkpointing": "full"}, …]'

Every allocation of torch's CPU allocator is an event of its profiler; the running sum's highest point in the second
step (when states exist) is the peak.
"""

from __future__ import annotations

import gc
import json
import sys
from typing import Any

import torch
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import LlamaConfig, LlamaForCausalLM

from llasa.config import FinetuneConfig, KernelsConfig
from llasa.model.activation_checkpointing import apply_activation_checkpointing
from llasa.model.finetune import apply_finetune
from llasa.model.kernels import apply_kernels
from llasa.training.memory import Workload
from llasa.training.optim import EIGHT_BIT, build_optimizer

ROWS, LENGTH = 2, 256
ADAMW = {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 1e-4, "fused": True}
ADAM8BIT = {"_target_": EIGHT_BIT, "_partial_": True, "algorithm": "Adam8bit", "lr": 1e-4}


def shape(tied: bool = True) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=6000,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        use_cache=False,
    )


def kernels(chunk: int | None) -> KernelsConfig:
    """``chunk``: positions whose logits exist at a time; none = all."""
    return KernelsConfig(name="torch", attn="sdpa", loss_chunk_size=chunk or ROWS * LENGTH)


def workload(
    checkpointing: str = "none",
    bf16: bool = False,
    weights: str = "fp32",
    finetune: dict[str, Any] | None = None,
    chunk: int | None = 64,
    micro_batches: int = 1,
    attn: str = "sdpa",
) -> Workload:
    return Workload(
        rows=ROWS,
        length=LENGTH,
        checkpointing=checkpointing,
        bf16=bf16,
        weights_bf16=weights == "bf16",
        attn=attn,
        kernel="torch",
        kernels=kernels(chunk),
        finetune=FinetuneConfig(**(finetune or {"name": "full"})),
        accumulates=micro_batches > 1,
    )


def measured_peak(tied: bool = True, eight_bit: bool = False, micro_batches: int = 1, **settings: Any) -> int:
    work = workload(micro_batches=micro_batches, **settings)
    config = shape(tied)
    config._attn_implementation = work.attn
    positions = torch.cat([torch.arange(100), torch.arange(LENGTH - 100)]).repeat(ROWS, 1)
    ids = torch.randint(0, config.vocab_size, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    gc.collect()
    gc.disable()  # what is freed by reference counts alone is what a GPU's allocator gets back
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model = LlamaForCausalLM(config).to(torch.bfloat16 if work.weights_bf16 else torch.float32)
        apply_kernels(model, "torch", work.kernels)
        model = apply_finetune(model, work.finetune, None).train()
        apply_activation_checkpointing(model, work.checkpointing)
        optimizer = build_optimizer(model, ADAM8BIT if eight_bit else ADAMW, "cpu")
        for _ in range(2):
            with record_function("gradients"):
                for _ in range(micro_batches):
                    with torch.autocast("cpu", torch.bfloat16, enabled=work.bf16):
                        loss = model(input_ids=ids, position_ids=positions, labels=ids).loss
                    loss.backward()
                    del loss
            optimizer.step()
            optimizer.zero_grad()
    gc.enable()
    pending = list(profiler.profiler.kineto_results.experimental_event_tree())
    allocations, steps = [], []
    while pending:
        event = pending.pop()
        pending.extend(event.children)
        if event.tag == _EventType.Allocation:
            allocations.append((event.start_time_ns, event.extra_fields.alloc_size))
        elif event.name == "gradients":
            steps.append((event.start_time_ns, event.end_time_ns))
    # The optimizer's step itself is left out: on a CPU 8-bit Adam works in fp32 copies, on a GPU in none.
    start, stop = max(steps)
    current = peak = 0
    for moment, size in sorted(allocations):
        current += size
        peak = max(peak, current if start <= moment <= stop else 0)
    return peak


if __name__ == "__main__":
    print(json.dumps([measured_peak(**case) for case in json.loads(sys.argv[1])]))
