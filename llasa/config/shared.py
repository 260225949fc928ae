"""Schemas of groups that several roots have."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from llasa.config.validation import require, require_choice

MULTILINGUAL = "mul"
"""Code of ISO 639-2 for several languages: all that the stores have."""


@dataclass
class LangConfig:
    """A language: ISO 639-1 ``code``, English ``name`` and what the corpora call it.

    `lang=multilingual`, whose code is ``MULTILINGUAL``, stands for every language of the stores.
    """

    code: str = MISSING
    name: str = MISSING
    corpus_config: str = MISSING
    """Name of the language's configuration in CML-TTS and MLS, such as `italian`."""

    def __post_init__(self) -> None:
        require(len(self.code) in (2, 3), "lang.code", self.code, "use an ISO 639 code such as it")


@dataclass
class LoggerConfig:
    name: str = MISSING
    project: str = "llasa"
    run_name: str | None = None
    """none = the name of the run folder, and in a sweep what differs between its jobs."""
    group: str | None = None
    """none = in a sweep, the name of the sweep's folder."""
    artifacts: bool = False
    """wandb only: upload the final checkpoint, and the best one, when the run ends."""

    def __post_init__(self) -> None:
        require_choice("logger.name", self.name, ("none", "tensorboard", "wandb"))
        require(
            not self.artifacts or self.name == "wandb",
            "logger.artifacts",
            self.artifacts,
            "only Weights & Biases takes files; use logger=wandb with it",
        )
