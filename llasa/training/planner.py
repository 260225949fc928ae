"""`python train.py plan=true`: memory on each GPU, and time, for a config. Loads nothing and writes nothing.

config ─► shape of the model ─► :mod:`llasa.training.memory` for 1, 2, 4, 8 processes ─► a table

What is `auto` is resolved as training would. For `device=cuda` on a machine without one (a laptop), bf16, Liger if it
is installed, and an attention without a dense mask are assumed, and said so.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from typing import Any

import torch

from llasa.config import TrainConfig
from llasa.device import num_processes, resolve_device, resolve_precision
from llasa.errors import UserError
from llasa.model.attention import resolve_attention
from llasa.model.finetune import apply_finetune, require_trainable
from llasa.model.kernels import resolve_kernels
from llasa.model.loading import is_adapter
from llasa.model.shapes import XCODEC2_CODES, model_shape
from llasa.training.cost import (
    ParameterCount,
    attention_flops,
    count_parameters,
    flops_per_token,
    meta_model,
    peak_flops,
)
from llasa.training.data import SPLIT, Stores, open_stores
from llasa.training.memory import StepMemory, Workload, model_bytes, step_memory
from llasa.training.optim import check_optimizer, optimizer_name, resolve_optimizer
from llasa.training.parallel import require_shardable

GIB = 2**30
CUDA_OVERHEAD = 1.0 * GIB
"""Context, kernels, workspaces of cuBLAS and NCCL: 0.5 to 1.5 GiB on GPUs since Ampere, before the first tensor."""
GPUS = {"24 GB": 23.5, "40 GB": 39.4, "80 GB": 79.1}
"""GiB that a program can use of GPUs sold as so large."""
GPU_NAMES = ("RTX 4090", "A100", "H100")
ASSUMED_MFU = 0.35
"""Published figure for Llamas of 1B on H100s; the share of a smaller GPU's peak is rather higher."""
TOKENS_PER_CODE = 1.1
"""Text and prompt are about a tenth of the codes: a clip of 10 s at 50 codes a second is about 550 tokens."""
EXAMPLE_SECONDS, CODES_PER_SECOND = 10, 50
PROCESSES = (1, 2, 4, 8)


@dataclass(frozen=True)
class Choices:
    """What is `auto` in a config, resolved."""

    device: str
    precision: str
    kernel: str
    attn: str
    assumed: bool
    """There is no such device here."""


@dataclass(frozen=True)
class Plan:
    """Of one device among ``processes``. All in bytes."""

    processes: int
    parallel: str
    micro_batches: int
    memory: StepMemory
    overhead: float
    unknown_optimizer: str | None

    @property
    def total(self) -> float:
        return self.memory.peak + self.overhead


def resolve_choices(config: TrainConfig) -> Choices:
    """As training resolves them, except that a CUDA device may be planned for where there is none."""
    assumed = config.device == "cuda" and not torch.cuda.is_available()
    device = "cuda" if assumed else resolve_device(config.device)
    kernel = resolve_kernels(config.kernels.name, device)
    if not assumed:
        precision = resolve_precision(config.trainer.precision, device)
        return Choices(device, precision, kernel, resolve_attention(config.kernels, device, precision), False)
    precision = "bf16" if config.trainer.precision == "auto" else config.trainer.precision
    # All without a dense mask take the same memory.
    attn = config.kernels.attn if config.kernels.attn != "auto" else "flex_attention" if precision == "bf16" else "sdpa"
    return Choices(device, precision, kernel, attn, True)


class Planner:
    """Plans for one model, whose weights are counted once for each optimizer.

    Raises:
        UserError: training would refuse the config too, for what is checked before weights are loaded.
    """

    def __init__(self, config: TrainConfig, num_codes: int) -> None:
        self.config, self.choices = config, resolve_choices(config)
        self.llama, extended = model_shape(config.model, num_codes)
        checkpoint = config.model.checkpoint
        adapter = checkpoint is not None and is_adapter(checkpoint)
        require_trainable(config.finetune, config.model.name, checkpoint, adapter=adapter, extended=extended)
        dtype = torch.bfloat16 if config.trainer.parameters == "bf16" else torch.float32
        model = meta_model(self.llama, dtype)
        with torch.device("meta"):
            self.model = apply_finetune(model, config.finetune, checkpoint)
        self.count: ParameterCount = count_parameters(self.llama)
        self.trainable = sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def parallel(self, processes: int) -> str:
        """single, ddp or fsdp, for that many processes."""
        if self.config.parallel.name == "fsdp":
            return "fsdp"
        return "single" if processes == 1 else "ddp"

    def plan(self, processes: int = 1, **trainer: Any) -> Plan:
        """Args:
        trainer: fields of `config.trainer` to change.
        """
        settings, choices = replace(self.config.trainer, **trainer), self.choices
        parallel = self.parallel(processes)
        node = resolve_optimizer(self.config.optimizer, choices.device, parallel)
        bf16, sharded = choices.precision == "bf16", parallel == "fsdp"
        micro_batches = math.ceil(settings.rows_per_step / (settings.rows_per_device * processes))
        work = Workload(
            rows=settings.rows_per_device,
            length=self.config.packing.max_length,
            checkpointing=settings.activation_checkpointing,
            bf16=bf16,
            weights_bf16=settings.parameters == "bf16" or (sharded and bf16),
            attn=choices.attn,
            kernel=choices.kernel,
            kernels=self.config.kernels,
            finetune=self.config.finetune,
            accumulates=micro_batches > 1,
            parallel=parallel,
            processes=processes,
            cpu_offload=self.config.parallel.cpu_offload,
        )
        counted = model_bytes(self.model, node, self.config.finetune)
        overhead = CUDA_OVERHEAD if choices.device == "cuda" else 0.0
        memory = step_memory(self.llama, counted, work)
        return Plan(processes, parallel, micro_batches, memory, overhead, counted.unknown_optimizer)

    def processes(self) -> tuple[int, ...]:
        """Those that were started, or as many as a machine may have."""
        if num_processes() > 1:
            return (num_processes(),)
        if self.choices.device == "cpu" or self.config.parallel.name == "single":
            return (1,)
        settings = self.config.trainer
        least = 2 if self.config.parallel.name in ("ddp", "fsdp") else 1
        possible = [n for n in PROCESSES if n >= least and settings.rows_per_step % (settings.rows_per_device * n) == 0]
        return tuple(possible or [least])

    def remedies(self, gib: float, processes: int) -> str | None:
        """The least change with which the config fits into so many GiB, "" for none; none = nothing of these."""
        settings = self.config.trainer
        modes = ("none", "selective", "full")
        for rows in dict.fromkeys((settings.rows_per_device, 1)):
            for mode in modes[modes.index(settings.activation_checkpointing) :]:
                if self.plan(processes, activation_checkpointing=mode, rows_per_device=rows).total <= gib * GIB:
                    changes = {"rows_per_device": rows, "activation_checkpointing": mode}
                    return " ".join(f"trainer.{k}={v}" for k, v in changes.items() if v != getattr(settings, k))
        return None

    def executed_flops(self, example_length: float) -> float:
        """FLOPs for each token that are really computed: frozen weights have no gradient of their own, and full
        checkpointing computes layers twice, but for the MLP's last product. Adapters' own are left out."""
        config, count = self.config, self.count
        full = flops_per_token(self.llama, example_length, count)
        last = self.llama.num_hidden_layers * self.llama.hidden_size * self.llama.intermediate_size
        again = 2 * (count.layer_matrices - last) + attention_flops(self.llama, example_length) / 3
        if config.finetune.name != "full" or config.finetune.train != "all":
            full -= 2 * count.layer_matrices
        if config.finetune.name != "full" and config.finetune.embeddings != "full":
            full -= 2 * count.head
        return full + (again if config.trainer.activation_checkpointing == "full" else 0)


def find_stores(config: TrainConfig) -> Stores | None:
    """The stores of a config if they are there: a plan does not need them."""
    try:
        return open_stores(config)
    except UserError:
        return None


def plan_memory(config: TrainConfig, processes: int = 1, num_codes: int = XCODEC2_CODES) -> Plan:
    """The memory of one device among ``processes``.

    Args:
        num_codes: of the codec, for a model that does not speak yet.
    """
    return Planner(config, num_codes).plan(processes)


def print_plan(config: TrainConfig) -> None:
    """Print what a config takes. Every process may call it, the first prints.

    Raises:
        UserError: what training would refuse before it loads the weights.
    """
    if int(os.environ.get("RANK", "0")) > 0:  # asking accelerate would make a group of the processes
        return
    if config.parallel.name == "fsdp":
        require_shardable(config)
    stores = find_stores(config)
    planner = Planner(config, stores.codec.codebook_size if stores else XCODEC2_CODES)
    plans = [planner.plan(n) for n in planner.processes()]
    for parallel in dict.fromkeys(plan.parallel for plan in plans):
        check_optimizer(config.optimizer, planner.choices.device, parallel)
    print("\n".join([*_head(planner, stores, plans[0]), "", *_table(plans), "", *_fits(planner, plans)]))
    print("\n".join(["", *_time(planner, plans, stores)]))


def _head(planner: Planner, stores: Stores | None, plan: Plan) -> list[str]:
    config, choices = planner.config, planner.choices
    settings, count = config.trainer, planner.count
    where = "no such device here, so assumed" if choices.assumed else "as resolved here"
    finetune = config.finetune.name + (f" ({config.finetune.train})" if config.finetune.name == "full" else "")
    lines = [
        f"{config.model.name}: {count.total / 1e6:,.1f} M parameters, vocabulary {planner.llama.vocab_size:,}; "
        f"finetune={finetune}: {planner.trainable / 1e6:,.1f} M learn",
        f"{choices.device}, arithmetic in {choices.precision}, kernels {choices.kernel}, attention {choices.attn} "
        f"({where}); weights in {settings.parameters}",
        f"{optimizer_name(config.optimizer, choices.device, plan.parallel)}; activation checkpointing "
        f"{settings.activation_checkpointing}; {settings.rows_per_device} rows of {config.packing.max_length:,} tokens "
        f"at a time, {settings.rows_per_step} in a step",
    ]
    if stores is None and config.model.codec is None:
        lines.append(f"no store yet: a codec of {XCODEC2_CODES:,} codes is assumed")
    if plan.unknown_optimizer:
        lines.append(f"{plan.unknown_optimizer} is not known here: 8 bytes of states a parameter are assumed")
    return lines


def _table(plans: list[Plan]) -> list[str]:
    rows = {
        "weights": [plan.memory.weights for plan in plans],
        "gradients": [plan.memory.gradients for plan in plans],
        "optimizer states": [plan.memory.states for plan in plans],
        "activations": [plan.memory.activations for plan in plans],
        "loss": [plan.memory.loss for plan in plans],
        "CUDA and its libraries": [plan.overhead for plan in plans],
        "peak (not all at once)": [plan.total for plan in plans],
    }
    if plans[0].overhead == 0:
        del rows["CUDA and its libraries"]
    title = f"{'GiB on each device':<26}" + "".join(f"{f'{p.processes} x {p.parallel}':>12}" for p in plans)
    body = [f"{name:<26}" + "".join(f"{size / GIB:12.2f}" for size in sizes) for name, sizes in rows.items()]
    micro = f"{'micro-batches in a step':<26}" + "".join(f"{plan.micro_batches:12,}" for plan in plans)
    return [title, *body, f"highest in: {plans[0].memory.peak_moment}", micro]


def _fits(planner: Planner, plans: list[Plan]) -> list[str]:
    if planner.choices.device != "cuda":
        return ["(a CPU's memory: what Python and its libraries take, about 1 GiB, comes on top)"]
    lines = []
    for name, gib in GPUS.items():
        fitting = [plan.processes for plan in plans if plan.total <= gib * GIB]
        if fitting:
            lines.append(f"{name} GPUs: fits on {' or '.join(map(str, fitting))}")
            continue
        advice = "try finetune=lora or qlora, or parallel=fsdp with more GPUs"
        for processes in dict.fromkeys((plans[0].processes, plans[-1].processes)):
            if remedy := planner.remedies(gib, processes):
                advice = f"it would on {processes} with {remedy}"
                break
        lines.append(f"{name} GPUs: does not fit; {advice}")
    return lines


def _time(planner: Planner, plans: list[Plan], stores: Stores | None) -> list[str]:
    """Hours for an epoch of the stores, or for 1,000 hours of speech."""
    config = planner.config
    rate = stores.codec.tokens_per_second if stores else CODES_PER_SECOND
    tokens, what = 1000 * 3600 * rate * TOKENS_PER_CODE, f"1,000 hours of speech at {rate:g} codes a second"
    example_length = EXAMPLE_SECONDS * rate * TOKENS_PER_CODE
    if stores is not None:
        splits = [store.manifest["splits"].get(SPLIT, {"rows": 0, "codes": 0}) for store in stores.stores.values()]
        codes, examples = (sum(split[key] for split in splits) for key in ("codes", "rows"))
        if examples:
            tokens, what = codes * TOKENS_PER_CODE, "an epoch of the store"
            example_length = tokens / examples
    per_step = config.trainer.rows_per_step * config.packing.max_length
    steps = math.ceil(tokens / per_step)
    example_length = min(example_length, config.packing.max_length)
    useful = flops_per_token(planner.llama, example_length, planner.count)
    executed = planner.executed_flops(example_length)
    lines = [
        f"{what}: about {tokens / 1e6:,.1f} M tokens, {steps:,} steps of {per_step:,} tokens; {useful / 1e9:.3g} GFLOP "
        f"a token ({executed / 1e9:.3g} computed), {executed * per_step / 1e12:,.3g} TFLOP a step"
    ]
    if planner.choices.device != "cuda":
        return [*lines, "time: not estimated for a CPU"]
    names = GPU_NAMES if planner.choices.assumed else (torch.cuda.get_device_name(),)
    for name in names:
        peak = peak_flops(name)
        if peak is None:
            lines.append(f"{name}: its peak is not known, so no time")
            continue
        hours = [executed * tokens / (peak * ASSUMED_MFU * plan.processes) / 3600 for plan in plans]
        each = ", ".join(f"{plan.processes}: {time:,.3g} h" for plan, time in zip(plans, hours, strict=True))
        lines.append(f"{name} at {ASSUMED_MFU:.0%} of its {peak / 1e12:,.0f} TFLOP/s in bf16, GPUs: {each}")
    return lines
