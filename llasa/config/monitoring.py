"""Schemas of what is measured and heard while a model trains."""

from __future__ import annotations

from dataclasses import dataclass

from llasa.config.validation import require


@dataclass
class HeldOutConfig:
    """Loss and accuracy on speech that is not trained on, and the best checkpoint so far."""

    every: int = 500
    """Steps between measurements; the last step has one too. 0 = never."""
    split: str | None = None
    """none = dev, validation or test, the first that the stores have."""
    rows: int = 32
    """Packed rows that are measured, always the same ones; a row is `packing.max_length` tokens."""
    metric: str = "heldout/loss"
    """Decides which checkpoint is best: any key of the metrics; accuracies and `samples/stopped` are to
    grow, all else to fall."""
    keep_best: bool = True
    """Keep the best checkpoint in RUN/best, ready for infer.py."""

    def __post_init__(self) -> None:
        require(self.every >= 0, "heldout.every", self.every, "use a number of steps, or 0 for never")
        require(self.rows >= 1, "heldout.rows", self.rows, "use 1 or more")


@dataclass
class SamplesConfig:
    """Fixed sentences that the model speaks while it trains, to hear it learn."""

    every: int = 1000
    """Steps between samples. 0 = never; the codec is loaded at the first ones."""
    texts: list[str] | None = None
    """none = three sentences of the language."""
    max_seconds: float = 15.0
    asr: str | None = None
    """A Whisper model (folder, or a name of the hub's) that gives each sample a character error rate."""
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.every >= 0, "samples.every", self.every, "use a number of steps, or 0 for never")
        require(self.max_seconds > 0, "samples.max_seconds", self.max_seconds, "use a positive number of seconds")
        require(self.texts is None or len(self.texts) > 0, "samples.texts", self.texts, "name a text, or null")
