"""Schema of `preprocess.py`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from llasa.config.shared import MULTILINGUAL, LangConfig
from llasa.config.validation import is_positive_range, is_range, require, require_choice
from llasa.errors import UserError


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


@dataclass
class SplitConfig:
    """Which rows are held out to measure on, where a corpus has nothing but a training split."""

    heldout: float = 0.02
    """Share of the rows; 0 = none."""
    rows: int | None = None
    """At most so many; none = whatever the share gives."""
    name: str = "dev"
    by: str = "auto"
    """speaker: whole speakers; row: single rows; auto: speakers where the corpus names enough of them; or off."""
    seed: int = 0
    """Decides who."""
    again: bool = False
    """Cut a finished store anew, with other settings of these; nothing is encoded again."""

    def __post_init__(self) -> None:
        require(0 <= self.heldout <= 0.2, "split.heldout", self.heldout, "use a share of the rows, 0 to 0.2")
        require(self.rows is None or self.rows >= 1, "split.rows", self.rows, "use 1 or more, or null")
        require(
            re.fullmatch(r"[a-z][a-z0-9_]*", self.name) is not None and self.name != "train",
            "split.name",
            self.name,
            "use a name such as dev: letters, digits and _",
        )
        if self.by == "False":  # how YAML reads off
            self.by = "off"
        require_choice("split.by", self.by, ("auto", "off", "row", "speaker"))


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


@dataclass
class PreprocessConfig:
    """`python preprocess.py`: a corpus in, a token store out."""

    dataset: Any = MISSING
    lang: LangConfig = MISSING
    codec: Any = MISSING
    runner: RunnerConfig = MISSING
    filters: FiltersConfig = field(default_factory=FiltersConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
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
        if isinstance(self.lang, LangConfig) and self.lang.code == MULTILINGUAL:
            raise UserError(
                "a store is made of one language at a time, lang=multilingual is for training",
                remedy="pass lang=it, lang=de, … in turn, and train on them together with stores=",
            )
        require(self.shard_rows >= 1, "shard_rows", self.shard_rows, "use 1 or more")
        require(self.decode_threads >= 1, "decode_threads", self.decode_threads, "use 1 or more")
        if self.decode_processes is not None:
            require(self.decode_processes >= 0, "decode_processes", self.decode_processes, "use 0 or more, or null")
        if self.shards is not None:
            require(is_range(self.shards), "shards", self.shards, "use a range such as 0-99, or a part such as 2/8")
