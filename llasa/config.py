"""Schemas of the root configs, and their validation.

Each root (`train`, `preprocess`, `infer`) is a dataclass that stands first in the `defaults` of its YAML file,
so a wrong key or type fails while Hydra composes, before anything is loaded. What the types cannot say is
checked in `__post_init__`, once, when :mod:`llasa.entry` turns the composed config into these objects; after
that no code sees a `DictConfig`.

Nodes typed `Any` are the leaves that people swap. They carry a `_target_`, stay plain dictionaries and are
built with `hydra.utils.instantiate` in the room that uses them.

Nothing here imports torch: `python train.py --help` has to answer at once.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from llasa.errors import UserError

CONF_DIR = Path(__file__).resolve().parent.parent / "conf"


def require(condition: bool, key: str, value: object, remedy: str) -> None:
    """Raise a :class:`UserError` that names the config key and its value unless ``condition`` holds."""
    if not condition:
        raise UserError(f"{key}={value!r} is not valid", remedy=remedy)


def require_choice(key: str, value: str, choices: Iterable[str]) -> None:
    choices = sorted(choices)
    if value not in choices:
        nearest = difflib.get_close_matches(value, choices, n=1)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        raise UserError(f"{key}={value!r} is not valid", remedy=f"{hint}choose one of {', '.join(choices)}")


@dataclass
class LangConfig:
    """A language: ISO 639-1 ``code``, English ``name`` and what the corpora call it."""

    code: str = MISSING
    name: str = MISSING
    corpus_config: str = MISSING
    """Name of the language's configuration in CML-TTS and MLS, such as `italian`."""

    def __post_init__(self) -> None:
        require(len(self.code) in (2, 3), "lang.code", self.code, "use an ISO 639 code such as it")


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
    max_length: int = MISSING
    """Tokens in a row; a longer example is dropped and counted, never cut."""
    window: int = 16_384
    """Examples that are packed together; larger packs tighter, smaller mixes better."""
    workers: int = 0
    """Processes that build rows ahead of the step; 0 = in the training process."""

    def __post_init__(self) -> None:
        require(self.max_length >= 64, "packing.max_length", self.max_length, "use 64 or more")
        require(self.window >= 1, "packing.window", self.window, "use 1 or more")
        require(self.workers >= 0, "packing.workers", self.workers, "use 0 or more")


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
    """auto = flash_attention_2 on CUDA where flash-attn is installed, else sdpa."""
    loss_chunk_size: int = 256
    """Positions whose logits exist at a time in the torch loss."""

    def __post_init__(self) -> None:
        require_choice("kernels.name", self.name, ("auto", "liger", "torch"))
        require_choice("kernels.attn", self.attn, ("auto", "eager", "flash_attention_2", "sdpa"))
        require(self.loss_chunk_size >= 1, "kernels.loss_chunk_size", self.loss_chunk_size, "use 1 or more")


@dataclass
class FinetuneConfig:
    name: str = MISSING

    def __post_init__(self) -> None:
        require_choice("finetune.name", self.name, ("full",))


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
    """auto = bf16 autocast on CUDA, fp32 elsewhere. Parameters stay fp32 in both."""
    gradient_checkpointing: bool = False

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


@dataclass
class CheckpointConfig:
    every: int = 500
    """Steps between resumable states; 0 = none, only the final checkpoint."""
    keep: int = 2

    def __post_init__(self) -> None:
        require(self.every >= 0, "checkpoint.every", self.every, "use 0 or more")
        require(self.keep >= 1, "checkpoint.keep", self.keep, "use 1 or more")


@dataclass
class LoggerConfig:
    name: str = MISSING
    project: str = "llasa"
    run_name: str | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        require_choice("logger.name", self.name, ("none", "tensorboard", "wandb"))


@dataclass
class TrainConfig:
    """`python train.py`: a token store and a model in, a checkpoint that speaks out."""

    model: ModelConfig = MISSING
    lang: LangConfig = MISSING
    optimizer: Any = MISSING
    schedule: ScheduleConfig = MISSING
    finetune: FinetuneConfig = MISSING
    kernels: KernelsConfig = MISSING
    logger: LoggerConfig = MISSING
    packing: PackingConfig = MISSING
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    store: str = MISSING
    output_dir: str = MISSING
    resume: bool = False
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**32, "seed", self.seed, "use 0 to 4294967295")


@dataclass
class FiltersConfig:
    """Which rows of a corpus are fit for training. Each reason is counted and named in rejects.jsonl."""

    min_seconds: float = 0.3
    max_seconds: float = 30.0
    min_peak: float = 1e-3
    """Quieter recordings (peak of the absolute samples, 1 = full scale) are silence."""

    def __post_init__(self) -> None:
        require(
            0 <= self.min_seconds < self.max_seconds,
            "filters.min_seconds",
            self.min_seconds,
            f"use less than filters.max_seconds={self.max_seconds}",
        )
        require(0 <= self.min_peak < 1, "filters.min_peak", self.min_peak, "use 0 to 1")


@dataclass
class RunnerConfig:
    name: str = MISSING

    def __post_init__(self) -> None:
        require_choice("runner.name", self.name, ("local",))


@dataclass
class PreprocessConfig:
    """`python preprocess.py`: a corpus in, a token store out."""

    dataset: Any = MISSING
    lang: LangConfig = MISSING
    codec: Any = MISSING
    runner: RunnerConfig = MISSING
    filters: FiltersConfig = field(default_factory=FiltersConfig)
    store: str = MISSING
    shard_rows: int = 1000
    """Rows of the corpus in a shard, the unit of work and of what a crash can cost."""
    decode_threads: int = 2
    """Threads that read and decode audio ahead of the codec."""

    def __post_init__(self) -> None:
        require(self.shard_rows >= 1, "shard_rows", self.shard_rows, "use 1 or more")
        require(self.decode_threads >= 1, "decode_threads", self.decode_threads, "use 1 or more")


@dataclass
class SamplingConfig:
    """How the next code is chosen. Codes in the wrong place and text tokens are never allowed."""

    temperature: float = 0.8
    """0 = greedy."""
    top_k: int = 0
    """0 = all."""
    top_p: float = 1.0
    max_seconds: float = 20.0
    """Speech is ended here if the model does not end it (finish_reason "length")."""

    def __post_init__(self) -> None:
        require(self.temperature >= 0, "sampling.temperature", self.temperature, "use 0 (greedy) or more")
        require(self.top_k >= 0, "sampling.top_k", self.top_k, "use 0 (all) or more")
        require(0 < self.top_p <= 1, "sampling.top_p", self.top_p, "use a probability, 0 < top_p <= 1")
        require(self.max_seconds > 0, "sampling.max_seconds", self.max_seconds, "use a positive number of seconds")


@dataclass
class InferConfig:
    """`python infer.py`: a checkpoint and text in, speech out."""

    checkpoint: str = MISSING
    text: str | None = None
    texts: str | None = None
    """File with a sentence a line; `output` is then a folder."""
    output: str = "speech.wav"
    language: str | None = None
    """ISO code for the spoken form of numbers and symbols; none = the checkpoint's first language."""
    voice: str | None = None
    """A recording to imitate, with its transcript in `voice_text`."""
    voice_text: str | None = None
    codec: Any = None
    """none = the codec the checkpoint names."""
    engine: Any = MISSING
    sampling: SamplingConfig = MISSING
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**32, "seed", self.seed, "use 0 to 4294967295")
        if (self.text is None) == (self.texts is None):
            raise UserError("infer needs something to say", remedy='pass either text="…" or texts=FILE')
        if (self.voice is None) != (self.voice_text is None):
            raise UserError("a voice needs its transcript", remedy='pass both voice=FILE.wav and voice_text="…"')


ROOTS: dict[str, type] = {"train": TrainConfig, "preprocess": PreprocessConfig, "infer": InferConfig}

RAW_TEXT_KEYS = ("text", "texts", "voice", "voice_text", "output", "checkpoint", "store", "output_dir", "dataset.path")
"""Values the shell hands over as they are: free text and paths, in which Hydra's override grammar would
otherwise read a comma as a sweep and a bracket as a list."""
