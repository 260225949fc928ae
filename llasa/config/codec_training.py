"""Schema of `train_codec.py`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from llasa.config.preprocessing import FiltersConfig
from llasa.config.shared import LangConfig, LoggerConfig
from llasa.config.training import CheckpointConfig, ScheduleConfig
from llasa.config.validation import require, require_choice


@dataclass
class CodecModelConfig:
    """What is trained, and how its quantizer learns to round."""

    name: str = MISSING
    checkpoint: str | None = None
    """An XCodec2 model to go on from (folder or hub name); none = from scratch, in the small shape."""
    train: str = "all"
    """all but the semantic encoder, or decoder: then a recording's codes stay those of ``checkpoint``."""
    lr: float = MISSING
    noise_steps: int = 0
    """Steps with noise in place of rounding. From scratch it is needed, or a few codes are used for everything."""
    mixed_steps: int = 0
    """Steps after these over which rounding takes the noise's place."""
    latent_penalty: float = 0.0
    """Weight of what holds the values that are rounded near 0, spread out and uncorrelated."""
    dtype: str = "fp32"
    """Of the weights in RUN/checkpoint: fp16 halves the file; the codec computes in fp32 all the same."""

    def __post_init__(self) -> None:
        require_choice("codec_model.train", self.train, ("all", "decoder"))
        require(
            self.train == "all" or self.checkpoint is not None,
            "codec_model.train",
            self.train,
            "a model from scratch learns whole; name the one to go on from with codec_model.checkpoint=",
        )
        require_choice("codec_model.dtype", self.dtype, ("fp16", "fp32"))
        require(self.lr > 0, "codec_model.lr", self.lr, "use a positive number")
        require(self.noise_steps >= 0, "codec_model.noise_steps", self.noise_steps, "use 0 or more")
        require(self.mixed_steps >= 0, "codec_model.mixed_steps", self.mixed_steps, "use 0 or more")
        require(0 <= self.latent_penalty < math.inf, "codec_model.latent_penalty", self.latent_penalty, "use 0 or more")


@dataclass
class RecordingsConfig:
    """Recordings and the clips that are cut out of them."""

    clip_seconds: float = 1.0
    max_hours: float = 100.0
    """The first so many hours of the corpus are taken: 115 MB of disk each."""
    folder: str | None = None
    """Where the decoded recordings lie, for several runs to share; none = in the run folder."""
    gain_db: list[float] = field(default_factory=lambda: [-10.0, 2.0])
    """Each clip is made louder or quieter by something between these, at random."""
    min_level: float | None = -40.0
    """dBFS (root mean square) of a clip; quieter ones are silence and another is drawn. none = all are taken."""

    def __post_init__(self) -> None:
        require(0.2 <= self.clip_seconds <= 60, "recordings.clip_seconds", self.clip_seconds, "use 0.2 to 60 seconds")
        require(self.max_hours > 0, "recordings.max_hours", self.max_hours, "use a positive number")
        require(
            len(self.gain_db) == 2 and -60 <= self.gain_db[0] <= self.gain_db[1] <= 20,
            "recordings.gain_db",
            self.gain_db,
            "use two numbers of dB, such as [-10,2]; [0,0] changes nothing",
        )
        if self.min_level is not None:
            require(-150 <= self.min_level < 0, "recordings.min_level", self.min_level, "use dBFS, -150 to 0, or null")


@dataclass
class CodecHeldOutConfig:
    """What is not trained on. The splits that a corpus has besides train never are."""

    speakers: list[str] = field(default_factory=list)
    """Whole voices."""
    ids: str | None = None
    """A file with the id of a recording on each line."""
    folders: list[str] = field(default_factory=list)
    """Folder corpora to measure on, each under its folder's name; they are not trained on."""
    share: float = 0.02
    """Of the other recordings, by a hash of their ids; used where neither ``ids``, ``folders`` nor a split of the
    corpus holds out any."""
    every: int = 500
    """Steps between measurements; the last step has one too. 0 = never."""
    recordings: int = 16
    """That are measured, always the same ones; of the held-out voices and of each folder as many again."""
    heard: int = 4
    """Of each kind, that are written to RUN/samples and logged."""

    def __post_init__(self) -> None:
        require(0 <= self.share <= 0.5, "heldout.share", self.share, "use a share of the recordings, 0 to 0.5")
        require(self.every >= 0, "heldout.every", self.every, "use a number of steps, or 0 for never")
        require(self.recordings >= 1, "heldout.recordings", self.recordings, "use 1 or more")
        require(self.heard >= 0, "heldout.heard", self.heard, "use 0 or more")


@dataclass
class CodecLossesConfig:
    """Weights of what compares a reconstruction with its original; 0 leaves one out."""

    mel: float = 1.0
    stft: float = 1.0
    phonetic: float = 0.0
    """Of the distance that a speech recogniser's ear hears; consonants need it where bits are few."""
    recognizer: str | None = None
    """A Whisper model in transformers' form (folder or hub name, such as openai/whisper-tiny) for ``phonetic``."""

    def __post_init__(self) -> None:
        for name in ("mel", "stft", "phonetic"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"losses.{name}", value, "use 0 or more")
        require(self.mel + self.stft > 0, "losses.mel", self.mel, "mel or stft has to count")
        require(
            (self.phonetic > 0) == (self.recognizer is not None),
            "losses.recognizer",
            self.recognizer,
            "losses.phonetic needs one, such as openai/whisper-tiny; without it leave it out",
        )


@dataclass
class AdversaryConfig:
    """Discriminators: judges that learn to tell a reconstruction from a recording."""

    name: str = MISSING
    """none, small or full: see conf/adversary."""
    start: int = 0
    """Step from which on they learn and count."""
    lr: float = 1e-4
    adversarial: float = 1.0
    feature_matching: float = 2.0
    channels: int = 32
    """Of their first layers."""

    def __post_init__(self) -> None:
        require_choice("adversary.name", self.name, ("full", "none", "small"))
        require(self.start >= 0, "adversary.start", self.start, "use 0 or more")
        require(self.lr > 0, "adversary.lr", self.lr, "use a positive number")
        for name in ("adversarial", "feature_matching"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"adversary.{name}", value, "use 0 or more")
        require(self.channels >= 1, "adversary.channels", self.channels, "use 1 or more")


@dataclass
class CodecTrainerConfig:
    max_steps: int = 100_000
    clips_per_step: int = 16
    """Over all devices and accumulation."""
    clips_per_device: int = 16
    """That one device holds at a time; the rest is accumulated."""
    betas: list[float] = field(default_factory=lambda: [0.8, 0.95])
    """AdamW's, of the codec and of the discriminators."""
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    """Of the running mean of the weights, which is what is saved; 0 = the weights themselves."""
    max_skipped: int = 20
    """Steps in a row whose gradient is no number, after which the run ends; such a step changes nothing."""
    log_every: int = 10
    precision: str = "auto"
    """Of the arithmetic: auto = bf16 autocast on CUDA, fp32 elsewhere."""
    compile: bool = False
    """torch.compile of the encoder's activations: a step of the small codec takes 0.6 of its time, after half a minute.
    On a CPU it wants a C++ compiler."""

    def __post_init__(self) -> None:
        require(self.max_steps >= 1, "trainer.max_steps", self.max_steps, "use 1 or more")
        require(self.clips_per_device >= 1, "trainer.clips_per_device", self.clips_per_device, "use 1 or more")
        require(
            self.clips_per_step % self.clips_per_device == 0 and self.clips_per_step >= 1,
            "trainer.clips_per_step",
            self.clips_per_step,
            f"use a multiple of trainer.clips_per_device={self.clips_per_device}",
        )
        require(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            "trainer.betas",
            self.betas,
            "use two numbers from 0 to 1, such as [0.8,0.95]",
        )
        require(self.weight_decay >= 0, "trainer.weight_decay", self.weight_decay, "use 0 or more")
        require(self.max_grad_norm > 0, "trainer.max_grad_norm", self.max_grad_norm, "use a positive number")
        require(0 <= self.ema_decay < 1, "trainer.ema_decay", self.ema_decay, "use 0 to 1, such as 0.999")
        require(self.max_skipped >= 1, "trainer.max_skipped", self.max_skipped, "use 1 or more")
        require(self.log_every >= 1, "trainer.log_every", self.log_every, "use 1 or more")
        require_choice("trainer.precision", self.precision, ("auto", "bf16", "fp32"))


@dataclass
class TrainCodecConfig:
    """`python train_codec.py`: recordings in, an XCodec2 checkpoint out."""

    codec_model: CodecModelConfig = MISSING
    dataset: Any = MISSING
    lang: LangConfig = MISSING
    filters: FiltersConfig = field(default_factory=FiltersConfig)
    """Those of the sound and of what the corpus says of it; no text is looked at."""
    recordings: RecordingsConfig = field(default_factory=RecordingsConfig)
    losses: CodecLossesConfig = field(default_factory=CodecLossesConfig)
    adversary: AdversaryConfig = MISSING
    schedule: ScheduleConfig = MISSING
    logger: LoggerConfig = MISSING
    trainer: CodecTrainerConfig = field(default_factory=CodecTrainerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    heldout: CodecHeldOutConfig = field(default_factory=CodecHeldOutConfig)
    objective: str = "loss"
    """What a sweep minimises: a key of the metrics."""
    output_dir: str = MISSING
    resume: Any = False
    """true = go on from the last state in ``output_dir``; auto = if there is one, else start (for requeued jobs)."""
    force: bool = False
    """With ``resume``: go on although the config has changed."""
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**32, "seed", self.seed, "use 0 to 4294967295")
        require(self.resume in (True, False, "auto"), "resume", self.resume, "use true, false or auto")
