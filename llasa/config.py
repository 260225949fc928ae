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
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from llasa.errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent
CONF_DIR = REPOSITORY / "conf"


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
    """Which rows of a corpus are fit for training. Each reason is counted and named in rejects.jsonl.

    None switches a check off. What a corpus says of its rows is checked only where it says it.
    """

    min_seconds: float | None = 0.3
    max_seconds: float | None = 30.0
    """Both after the trim, if there is one."""
    trim_silence: float | None = None
    """Cut silence at both ends down to this many seconds; none = leave it."""
    trim_threshold: float = 40.0
    """Silence for the trim: this many dB below the loud parts of the recording."""
    min_sample_rate: int | None = 8000
    """Hz of the file as it was recorded: what is lost above half of it does not come back."""
    min_peak: float | None = 1e-3
    """Quieter recordings (peak of the absolute samples, 1 = full scale) are silence."""
    min_level: float | None = -60.0
    """dBFS that the loud parts of a recording reach; less is silence too, with a click in it or beside zero."""
    max_clipped: float | None = 0.01
    """Share of the samples that lie three or more in a row at the recording's own peak."""
    characters_per_second: Any = "auto"
    """Spoken text against the recording's length: [lowest, highest], or auto = the language's, if it is known."""
    max_foreign_letters: int | None = 2
    """Different letters outside the language's alphabet, as foreign names have; never half of all letters."""
    min_levenshtein: float | None = 0.9
    """Likeness (1 = equal) of the transcript and what a recogniser heard, as CML-TTS gives it."""
    min_dnsmos: float | None = 3.0
    """Predicted quality of the sound, 1 to 5, as Emilia gives it."""
    min_votes: int | None = 0
    """Listeners who approved a clip minus those who did not, as Common Voice counts them."""
    duplicates: str = "audio"
    """Drop all but the first of rows with the same audio, with the same text by one speaker, either (both), or off."""

    def __post_init__(self) -> None:
        if self.max_seconds is not None:
            require(self.max_seconds > 0, "filters.max_seconds", self.max_seconds, "use a positive number, or null")
        if self.min_seconds is not None:
            limit = math.inf if self.max_seconds is None else self.max_seconds
            require(
                0 <= self.min_seconds < limit,
                "filters.min_seconds",
                self.min_seconds,
                f"use 0 or more, and less than filters.max_seconds={self.max_seconds}, or null",
            )
        if self.trim_silence is not None:
            require(
                0 <= self.trim_silence <= 10,
                "filters.trim_silence",
                self.trim_silence,
                "use 0 to 10 seconds, or null to trim nothing",
            )
        require(0 < self.trim_threshold <= 100, "filters.trim_threshold", self.trim_threshold, "use dB, up to 100")
        if self.min_sample_rate is not None:
            require(self.min_sample_rate >= 1, "filters.min_sample_rate", self.min_sample_rate, "use Hz, or null")
        if self.min_peak is not None:
            require(0 <= self.min_peak < 1, "filters.min_peak", self.min_peak, "use 0 to 1, or null")
        if self.min_level is not None:
            require(-150 <= self.min_level < 0, "filters.min_level", self.min_level, "use dBFS, -150 to 0, or null")
        if self.max_clipped is not None:
            require(0 <= self.max_clipped <= 1, "filters.max_clipped", self.max_clipped, "use a share, 0 to 1, or null")
        require(
            self.characters_per_second in (None, "auto") or is_positive_range(self.characters_per_second),
            "filters.characters_per_second",
            self.characters_per_second,
            "use auto, two numbers such as [5,25], or null",
        )
        if self.max_foreign_letters is not None:
            require(
                self.max_foreign_letters >= 0,
                "filters.max_foreign_letters",
                self.max_foreign_letters,
                "use 0 or more, or null",
            )
        if self.min_levenshtein is not None:
            require(
                0 <= self.min_levenshtein <= 1, "filters.min_levenshtein", self.min_levenshtein, "use 0 to 1, or null"
            )
        if self.min_dnsmos is not None:
            require(1 <= self.min_dnsmos <= 5, "filters.min_dnsmos", self.min_dnsmos, "use 1 to 5, or null")
        if self.duplicates == "False":  # how YAML reads off
            self.duplicates = "off"
        require_choice("filters.duplicates", self.duplicates, ("audio", "both", "off", "text"))


def is_positive_range(value: object) -> bool:
    """Two numbers, the second larger."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(bound, int | float) and not isinstance(bound, bool) for bound in value)
        and 0 <= value[0] < value[1]
    )


@dataclass
class RunnerConfig:
    """Who makes the shards of a store."""

    name: str = MISSING
    workers: int | None = None
    """local: processes; none = one for each GPU, or one. ray: tasks at a time; none = all the cluster has room for."""
    address: str | None = None
    """ray: the cluster (`auto` = the one this machine is part of); none = one of its own, on this machine."""
    retries: int = 3
    """ray: how often a task is started again whose worker was lost."""

    def __post_init__(self) -> None:
        require_choice("runner.name", self.name, ("local", "ray"))
        require(self.workers is None or self.workers >= 1, "runner.workers", self.workers, "use 1 or more, or null")
        require(self.retries >= 0, "runner.retries", self.retries, "use 0 or more")


@dataclass
class VerifyConfig:
    """How a finished store is proof-read (`verify=true`)."""

    rows: int = 32
    """Rows that are decoded and compared, spread over splits and shards."""
    seed: int = 0
    """Decides which rows those are."""
    output: str | None = None
    """Folder of the report; none = the store's folder with `-report` after its name."""
    min_equal_codes: float = 0.98
    """Share of the sampled codes that encoding the corpus again must give. A store made in bf16 needs less."""
    max_mel_distance: float = 9.0
    """dB between a decoded row and its source; Codec2 gives 4 to 5, another sentence 12 to 15."""
    min_share: float = 0.9
    """Share of the sampled rows that must pass each check of their sound."""

    def __post_init__(self) -> None:
        require(1 <= self.rows <= 128, "verification.rows", self.rows, "use 1 to 128: the page holds the sound of each")
        require(0 <= self.seed < 2**32, "verification.seed", self.seed, "use 0 to 4294967295")
        require(
            0 <= self.min_equal_codes <= 1,
            "verification.min_equal_codes",
            self.min_equal_codes,
            "use a share of the codes, 0 to 1",
        )
        require(
            self.max_mel_distance > 0,
            "verification.max_mel_distance",
            self.max_mel_distance,
            "use a positive number of dB",
        )
        require(0 < self.min_share <= 1, "verification.min_share", self.min_share, "use a share of the rows, 0 to 1")


@dataclass
class PublicationConfig:
    """How a store is published (`push_to_hub=OWNER/NAME`)."""

    private: bool = True
    """Only where the repository is new."""
    license: str | None = None
    """The recordings', an identifier of the hub's list such as cc-by-4.0; none = the card says that it is not told."""


def is_range(text: str) -> bool:
    """`7`, `0-99` or `2/8`."""
    numbers = re.fullmatch(r"(\d+)(?:([-/])(\d+))?", text, re.ASCII)
    if numbers is None or numbers[2] is None:
        return numbers is not None
    first, last = int(numbers[1]), int(numbers[3])
    return first <= last and (numbers[2] == "-" or first >= 1)


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
    shards: str | None = None
    """Only these: `0-99`, or `2/8`, the second of eight equal parts; for arrays of jobs. None = all."""
    retry: bool = False
    """Make the shards again in which rows were rejected because their audio was missing or unreadable."""
    decode_threads: int = 2
    """Threads of each process that read and decode audio ahead of the codec, where no processes do."""
    decode_processes: int | None = None
    """Processes that decode for each that encodes; none = up to eight for each GPU, 0 (threads) on the CPU."""
    verify: bool = False
    """Proof-read the finished store instead of making it: decode a sample of rows and compare it with the corpus."""
    asr: str | None = None
    """With `verify`: a faster-whisper model, by name or folder, that listens to the sample (character error rate)."""
    verification: VerifyConfig = field(default_factory=VerifyConfig)
    push_to_hub: str | None = None
    """Publish the finished store on the Hugging Face hub as the data set OWNER/NAME."""
    publication: PublicationConfig = field(default_factory=PublicationConfig)

    def __post_init__(self) -> None:
        require(self.shard_rows >= 1, "shard_rows", self.shard_rows, "use 1 or more")
        require(self.decode_threads >= 1, "decode_threads", self.decode_threads, "use 1 or more")
        if self.decode_processes is not None:
            require(self.decode_processes >= 0, "decode_processes", self.decode_processes, "use 0 or more, or null")
        if self.shards is not None:
            require(is_range(self.shards), "shards", self.shards, "use a range such as 0-99, or a part such as 2/8")


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

RAW_TEXT_KEYS = (
    "text",
    "texts",
    "voice",
    "voice_text",
    "output",
    "checkpoint",
    "store",
    "output_dir",
    "dataset.path",
    "dataset.tokenizer",
    "dataset.folders",
    "asr",
    "verification.output",
)
"""Values the shell hands over as they are: free text and paths, in which Hydra's override grammar would
otherwise read a comma as a sweep and a bracket as a list."""
