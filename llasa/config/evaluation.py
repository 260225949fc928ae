"""Schema of `evaluate.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from llasa.config.inference import SamplingConfig
from llasa.config.validation import require
from llasa.errors import UserError


@dataclass
class MetricsConfig:
    """What is measured. none = where its package and what it compares with are there; true = or it is a mistake."""

    words: bool | None = None
    """Word and character errors, repeated and skipped words: needs `asr`."""
    similarity: bool | None = None
    """Of the voice to the reference's: needs a store with references, and `speaker_model`'s package."""
    dnsmos: bool | None = None
    """Predicted opinion scores of the sound: needs speechmos."""


@dataclass
class PushConfig:
    """How a checkpoint is published (`push_to_hub=OWNER/NAME`)."""

    private: bool = True
    """Only where the repository is new."""
    dry_run: bool = False
    """Say which files would be sent and what the card warns of, and send nothing."""


@dataclass
class EvaluateConfig:
    """`python evaluate.py`: checkpoints and sentences in, a report and a page to listen to out."""

    checkpoint: str | None = None
    checkpoints: list[str] | None = None
    """Several, all measured on the same sentences and compared in pairs."""
    store: str | None = None
    split: str | None = None
    """Of the store; none = test, or dev where there is no test."""
    texts: str | None = None
    """File with a sentence a line, instead of a store: nothing to compare voice and speed with."""
    language: str | None = None
    """ISO code of `texts`; none = the first language of the first checkpoint."""
    limit: int | None = 100
    """So many sentences, always the same ones, and those of a smaller limit among them; none = all."""
    reference: str | None = None
    """Folder with the recordings that the store was made of, ID.wav (or .flac, .mp3, …): the ground truth."""
    asr: str | None = None
    """A Whisper model (folder, or a name of the hub's) that writes down what it hears."""
    speaker_model: str = "resemblyzer"
    output: str = MISSING
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    confidence: float = 0.95
    resamples: int = 2000
    """Of the bootstrap."""
    page_clips: int = 50
    """Sentences with sound on the page; all of them stand in report.json."""
    card: bool = False
    """Write a model card too."""
    license: str | None = None
    """Of the model, for its card: an identifier of the hub's list; none = what follows from its parts, if all of
    theirs are known."""
    push_to_hub: str | None = None
    """Publish the checkpoint with its card on the Hugging Face hub as the model OWNER/NAME."""
    push: PushConfig = field(default_factory=PushConfig)
    codec: Any = None
    """none = the codec the checkpoint names."""
    engine: Any = MISSING
    sampling: SamplingConfig = MISSING
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**32, "seed", self.seed, "use 0 to 4294967295")
        require(self.limit is None or self.limit >= 1, "limit", self.limit, "use 1 or more, or null for all")
        require(0 < self.confidence < 1, "confidence", self.confidence, "use a share such as 0.95")
        require(self.resamples >= 100, "resamples", self.resamples, "use 100 or more")
        require(self.page_clips >= 0, "page_clips", self.page_clips, "use 0 or more")
        if (self.checkpoint is None) == (not self.checkpoints):
            raise UserError(
                "evaluate needs something to evaluate", remedy="pass either checkpoint=DIR or checkpoints=[DIR,DIR]"
            )
        if self.push_to_hub is not None and len(self.every_checkpoint) > 1:
            raise UserError(f"push_to_hub={self.push_to_hub} is for one checkpoint", remedy="pass checkpoint=DIR")
        if (self.store is None) == (self.texts is None):
            raise UserError("evaluate needs something to say", remedy="pass either store=DIR or texts=FILE")
        if self.texts is not None and self.reference is not None:
            raise UserError(
                f"reference={self.reference} has no sentences to belong to", remedy="pass store=DIR, not texts=FILE"
            )
        if self.metrics.words and self.asr is None:
            raise UserError("metrics.words=true needs a recogniser", remedy="pass asr=FOLDER, or a name such as base")
        if self.metrics.similarity and self.texts is not None:
            raise UserError(
                "metrics.similarity=true needs recordings to compare with", remedy="pass store=DIR, not texts=FILE"
            )

    @property
    def every_checkpoint(self) -> list[str]:
        if self.checkpoints:
            return self.checkpoints
        assert self.checkpoint is not None, "refused above"
        return [self.checkpoint]
