"""Schema of `train.py`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from llasa.config.monitoring import HeldOutConfig, SamplesConfig
from llasa.config.shared import LangConfig, LoggerConfig
from llasa.config.validation import is_positive_range, require, require_choice


@dataclass
class ArchitectureConfig:
    """Shape of a Llama that is trained from scratch (names of `transformers.LlamaConfig`)."""

    hidden_size: int = MISSING
    intermediate_size: int = MISSING
    num_hidden_layers: int = MISSING
    num_attention_heads: int = MISSING
    num_key_value_heads: int = MISSING
    rope_theta: float = 10_000.0
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        for key in keys:
            require(getattr(self, key) >= 1, f"model.architecture.{key}", getattr(self, key), "use 1 or more")
        heads = self.num_attention_heads
        require(
            self.hidden_size % (2 * heads) == 0,
            "model.architecture.hidden_size",
            self.hidden_size,
            f"use a multiple of twice the number of heads, {2 * heads}",
        )
        require(
            heads % self.num_key_value_heads == 0,
            "model.architecture.num_key_value_heads",
            self.num_key_value_heads,
            f"use a divisor of num_attention_heads={heads}",
        )


@dataclass
class ModelConfig:
    """Where the weights come from and what training them needs by default."""

    name: str = MISSING
    checkpoint: str | None = None
    """Hub name or folder of the weights; none = from scratch with ``architecture``."""
    codec: str | None = None
    """The codec whose codes the model speaks; none = whatever the store was made with."""
    architecture: ArchitectureConfig | None = None
    lr: float = MISSING
    """Default peak learning rate; `optimizer.lr` refers to it."""
    max_length: int = MISSING
    """Default length of a packed row in tokens; `packing.max_length` refers to it."""

    def __post_init__(self) -> None:
        require(
            (self.checkpoint is None) != (self.architecture is None),
            "model.checkpoint",
            self.checkpoint,
            "a model has either a checkpoint to start from or an architecture to build, not both",
        )
        require(self.lr > 0, "model.lr", self.lr, "use a positive learning rate")
        require(self.max_length >= 64, "model.max_length", self.max_length, "use 64 or more")


@dataclass
class PackingConfig:
    """How examples become rows of tokens."""

    mode: str = "pack"
    """pack = many examples in a row; group = one a row, padded to the longest of examples of like length;
    pad_to_max = one a row, padded to ``max_length`` (the origin's, to compare with)."""
    max_length: int = MISSING
    """Tokens in a row; a longer example is dropped and counted, never cut."""
    window: int = 16_384
    """Examples that are packed (or grouped) together; larger packs tighter, smaller mixes better."""
    workers: int = 0
    """Processes that build rows ahead of the step; 0 = in the training process."""

    def __post_init__(self) -> None:
        require_choice("packing.mode", self.mode, ("group", "pack", "pad_to_max"))
        require(self.max_length >= 64, "packing.max_length", self.max_length, "use 64 or more")
        require(self.window >= 1, "packing.window", self.window, "use 1 or more")
        require(self.workers >= 0, "packing.workers", self.workers, "use 0 or more")


@dataclass
class MixtureConfig:
    """How much of each source (a language of a store) an epoch holds.

    A source is named LANGUAGE where there is one store, else STORE/LANGUAGE.
    """

    temperature: float = 1.0
    """Shares are size^(1/temperature): 1 = as large as they are, 2 = square roots, more = more alike."""
    weights: dict[str, float] = field(default_factory=dict)
    """Shares by source instead, of all the sources; they need not sum to 1. 0 leaves a source out."""

    def __post_init__(self) -> None:
        require(1 <= self.temperature < math.inf, "mixture.temperature", self.temperature, "use 1 or more")
        require(
            all(0 <= weight < math.inf for weight in self.weights.values())
            and (not self.weights or any(self.weights.values())),
            "mixture.weights",
            self.weights,
            "use 0 or more for each source, and more than 0 for one",
        )


@dataclass
class ScheduleConfig:
    name: str = MISSING
    warmup: float = 0.03
    """Share of the steps over which the learning rate rises from 0."""
    decay: float = 0.2
    """wsd only: share of the steps over which it falls at the end."""
    min_ratio: float = 0.0
    """Learning rate at the end, as a share of the peak (cosine and wsd)."""

    def __post_init__(self) -> None:
        require_choice("schedule.name", self.name, ("constant", "cosine", "wsd"))
        require(0 <= self.warmup < 1, "schedule.warmup", self.warmup, "use a share of the steps, 0 <= warmup < 1")
        require(
            0 <= self.decay <= 1 - self.warmup,
            "schedule.decay",
            self.decay,
            f"warm-up and decay together are at most 1, so use 0 to {1 - self.warmup:g}",
        )
        require(0 <= self.min_ratio <= 1, "schedule.min_ratio", self.min_ratio, "use a share of the peak, 0 to 1")


@dataclass
class KernelsConfig:
    name: str = MISSING
    """auto = liger on CUDA, torch elsewhere."""
    attn: str = "auto"
    """auto = the newest FlashAttention that is installed and suits the device, else flex_attention on CUDA in
    bf16; sdpa_varlen on the CPU; else sdpa."""
    loss_chunk_size: int = 256
    """torch: positions whose logits exist at a time."""
    liger_chunk_memory: int = 8
    """liger: its `chunk_mem_const`; more = fewer and larger chunks of the fused loss. Its own default, 1, makes about
    64 of a 1B model with 193,800 rows, whatever the batch."""
    compile: bool = False
    """torch.compile of each decoder layer."""

    def __post_init__(self) -> None:
        require_choice("kernels.name", self.name, ("auto", "liger", "torch"))
        flash = ("flash_attention_2", "flash_attention_3", "flash_attention_4")
        require_choice("kernels.attn", self.attn, ("auto", "eager", "flex_attention", "sdpa", "sdpa_varlen", *flash))
        require(self.loss_chunk_size >= 1, "kernels.loss_chunk_size", self.loss_chunk_size, "use 1 or more")
        require(self.liger_chunk_memory >= 1, "kernels.liger_chunk_memory", self.liger_chunk_memory, "use 1 or more")


@dataclass
class FinetuneConfig:
    """Which weights learn."""

    name: str = MISSING
    train: str = "all"
    """full only: all, or embeddings (and the head): a first stage for a new vocabulary."""
    rank: int = 64
    """lora, qlora: rank of the adapters of every linear layer."""
    alpha: float = 64.0
    """Adapters are scaled by alpha / rank."""
    dropout: float = 0.0
    embeddings: str = "none"
    """lora, qlora: none, lora (adapters on embeddings and head too), or full (they learn as they are; what a model
    with new tokens needs)."""

    def __post_init__(self) -> None:
        require_choice("finetune.name", self.name, ("full", "lora", "qlora"))
        require_choice("finetune.train", self.train, ("all", "embeddings"))
        require(
            self.train == "all" or self.name == "full",
            "finetune.train",
            self.train,
            f"finetune={self.name} trains adapters; use finetune=full with it",
        )
        require(self.rank >= 1, "finetune.rank", self.rank, "use 1 or more")
        require(self.alpha > 0, "finetune.alpha", self.alpha, "use a positive number")
        require(0 <= self.dropout < 1, "finetune.dropout", self.dropout, "use a probability, 0 <= dropout < 1")
        require_choice("finetune.embeddings", self.embeddings, ("full", "lora", "none"))


@dataclass
class ParallelConfig:
    """Who shares the work: processes that `torchrun`, accelerate or SLURM started."""

    name: str = MISSING
    """auto = ddp where there are several processes, else single. fsdp (FSDP2) shards weights, gradients and states."""
    reshard_after_forward: bool = True
    """fsdp: free a layer's gathered weights after its forward (less memory, more traffic)."""
    cpu_offload: bool = False
    """fsdp: keep weights, gradients and states in the host's memory."""

    def __post_init__(self) -> None:
        require_choice("parallel.name", self.name, ("auto", "ddp", "fsdp", "single"))


@dataclass
class TrainerConfig:
    max_steps: int | None = None
    """Optimizer steps; none = as many as ``epochs`` take."""
    epochs: float = 3.0
    rows_per_step: int = 32
    """Packed rows in an optimizer step, over all devices and accumulation."""
    rows_per_device: int = 4
    """Packed rows that one device holds at a time; the rest is accumulated."""
    max_grad_norm: float = 1.0
    log_every: int = 10
    precision: str = "auto"
    """Of the arithmetic: auto = bf16 autocast on CUDA, fp32 elsewhere."""
    parameters: str = "fp32"
    """Type in which weights and gradients are held; bf16 halves them, and rounds small updates away."""
    activation_checkpointing: str = "none"
    """none; selective = all but matrix products and attention are computed again in the backward pass; full = whole
    layers are."""

    def __post_init__(self) -> None:
        if self.max_steps is not None:
            require(self.max_steps >= 1, "trainer.max_steps", self.max_steps, "use 1 or more, or null for epochs")
        require(0 < self.epochs < math.inf, "trainer.epochs", self.epochs, "use a positive number")
        require(self.rows_per_device >= 1, "trainer.rows_per_device", self.rows_per_device, "use 1 or more")
        require(
            self.rows_per_step % self.rows_per_device == 0 and self.rows_per_step >= 1,
            "trainer.rows_per_step",
            self.rows_per_step,
            f"use a multiple of trainer.rows_per_device={self.rows_per_device}",
        )
        require(self.log_every >= 1, "trainer.log_every", self.log_every, "use 1 or more")
        require_choice("trainer.precision", self.precision, ("auto", "bf16", "fp32"))
        require_choice("trainer.parameters", self.parameters, ("bf16", "fp32"))
        require_choice("trainer.activation_checkpointing", self.activation_checkpointing, ("full", "none", "selective"))


@dataclass
class SanityConfig:
    """What is suspicious while training. A loss that is not a number always ends the run."""

    first_loss: Any = "auto"
    """[lowest, highest] of the first step's loss; auto = from the vocabulary; none = not checked."""
    grad_norm_spike: float | None = 20.0
    """A gradient norm this many times the median of the last 100 steps; none = not checked."""
    stop: bool = False
    """End the run instead of a warning."""

    def __post_init__(self) -> None:
        require(
            self.first_loss in (None, "auto") or is_positive_range(self.first_loss),
            "sanity.first_loss",
            self.first_loss,
            "use auto, two numbers such as [3,13], or null",
        )
        if self.grad_norm_spike is not None:
            require(
                self.grad_norm_spike > 1, "sanity.grad_norm_spike", self.grad_norm_spike, "use more than 1, or null"
            )


@dataclass
class CheckpointConfig:
    every: int = 500
    """Steps between resumable states; 0 = none, only the final checkpoint."""
    keep: int = 2

    def __post_init__(self) -> None:
        require(self.every >= 0, "checkpoint.every", self.every, "use 0 or more")
        require(self.keep >= 1, "checkpoint.keep", self.keep, "use 1 or more")


@dataclass
class TrainConfig:
    """`python train.py`: a token store and a model in, a checkpoint that speaks out."""

    model: ModelConfig = MISSING
    lang: LangConfig = MISSING
    optimizer: Any = MISSING
    schedule: ScheduleConfig = MISSING
    finetune: FinetuneConfig = MISSING
    kernels: KernelsConfig = MISSING
    parallel: ParallelConfig = MISSING
    logger: LoggerConfig = MISSING
    packing: PackingConfig = MISSING
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    sanity: SanityConfig = field(default_factory=SanityConfig)
    heldout: HeldOutConfig = field(default_factory=HeldOutConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    objective: str = "loss"
    """What a sweep minimises, or maximises if it is an accuracy: a key of the metrics."""
    store: str = MISSING
    stores: dict[str, str] = field(default_factory=dict)
    """Several stores, by name, instead of ``store``."""
    speaker_tags: bool = False
    """Put each row's speaker in front of its text ("tara: Hello"), so that infer.py can ask for one with speaker=NAME.
    Rows whose corpus tells none stay as they are; one name in several stores is one speaker. Whom a store holds out
    (`split.by=speaker`) is not learned."""
    output_dir: str = MISSING
    resume: Any = False
    """true = go on from the last state in ``output_dir``; auto = if there is one, else start (for requeued jobs)."""
    force: bool = False
    """With ``resume``: go on although the config has changed."""
    plan: bool = False
    """Print the memory and time that the config would take, and run nothing."""
    debug: str | None = None
    """overfit_batch: one batch again and again, to see whether the model can learn at all."""
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**32, "seed", self.seed, "use 0 to 4294967295")
        require(self.resume in (True, False, "auto"), "resume", self.resume, "use true, false or auto")
        lr = self.optimizer["lr"] if isinstance(self.optimizer, Mapping) and "lr" in self.optimizer else 1.0
        positive = isinstance(lr, int | float) and lr > 0
        require(positive, "optimizer.lr", lr, "use a positive learning rate")
        if self.debug is not None:
            require_choice("debug", self.debug, ("overfit_batch",))
