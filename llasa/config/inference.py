"""Schema of `infer.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from llasa.config.validation import require
from llasa.errors import UserError


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
