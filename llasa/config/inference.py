"""Schema of `infer.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from llasa.config.validation import require, require_choice
from llasa.errors import UserError


@dataclass
class SamplingConfig:
    """How the next code is chosen. Codes in the wrong place and text tokens are never allowed."""

    temperature: float = 0.8
    """0 = greedy."""
    top_k: int = 0
    """0 = all."""
    top_p: float = 1.0
    min_p: float = 0.0
    """Codes less likely than this share of the likeliest one are left out; 0 = none."""
    repetition_penalty: float = 1.0
    """Of codes this utterance has said already, not of its text and not of the voice's; 1 = none."""
    max_seconds: float = 20.0
    """Speech is ended here if the model does not end it (finish_reason "length")."""
    text_bounds: bool = True
    """Whether the text's length bounds the speech's: no END at a fifth of the words, no minute for two."""
    loop_seconds: float = 2.0
    """Speech that only repeats itself for so long is ended (finish_reason "loop"); 0 = never."""
    retries: int = 2
    """Other seeds that are tried where speech did not end by itself (not with temperature 0)."""

    def __post_init__(self) -> None:
        require(self.temperature >= 0, "sampling.temperature", self.temperature, "use 0 (greedy) or more")
        require(self.top_k >= 0, "sampling.top_k", self.top_k, "use 0 (all) or more")
        require(0 < self.top_p <= 1, "sampling.top_p", self.top_p, "use a probability, 0 < top_p <= 1")
        require(0 <= self.min_p < 1, "sampling.min_p", self.min_p, "use a probability, 0 <= min_p < 1")
        require(
            0 < self.repetition_penalty < 100,
            "sampling.repetition_penalty",
            self.repetition_penalty,
            "use 1 (none) or a little more, such as 1.1",
        )
        require(self.loop_seconds >= 0, "sampling.loop_seconds", self.loop_seconds, "use 0 (never) or more")
        require(self.retries >= 0, "sampling.retries", self.retries, "use 0 or more")
        require(self.max_seconds > 0, "sampling.max_seconds", self.max_seconds, "use a positive number of seconds")


@dataclass
class LongConfig:
    """`long.*`: text that is too long for one breath of the model."""

    continuous: bool = True
    """Whether each piece continues the one before it. Otherwise they are spoken together, which is faster."""
    max_characters: int | None = None
    """Of a piece; none = what the model has room for."""
    pause_comma: float = 0.12
    pause_sentence: float = 0.3
    pause_paragraph: float = 0.7
    pause_chapter: float = 1.5
    """Seconds of silence between pieces. A blank line parts paragraphs, a line that begins with # is a chapter."""

    def __post_init__(self) -> None:
        for name in ("comma", "sentence", "paragraph", "chapter"):
            seconds = getattr(self, f"pause_{name}")
            require(0 <= seconds <= 60, f"long.pause_{name}", seconds, "use 0 to 60 seconds")
        require(
            self.max_characters is None or self.max_characters >= 10,
            "long.max_characters",
            self.max_characters,
            "use 10 or more",
        )


@dataclass
class InferConfig:
    """`python infer.py`: a checkpoint and text in, speech out."""

    checkpoint: str = MISSING
    text: str | None = None
    """A sentence, or a text of any length."""
    text_file: str | None = None
    """A file with a text of any length, with paragraphs and chapters."""
    texts: str | None = None
    """File with a sentence a line; `output` is then a folder."""
    output: str = "speech.wav"
    """A WAV file; with `stream` also .pcm (raw 16-bit samples) or - (standard output)."""
    language: str | None = None
    """ISO code for the spoken form of numbers and symbols; none = the checkpoint's first language."""
    voice: str | None = None
    """A recording to imitate, with its transcript in `voice_text`; or the name of one in `voices_folder`."""
    voice_text: str | None = None
    voices_folder: str = "voices"
    """NAME.wav and NAME.txt of each voice; its codes are kept beside them."""
    asr: str | None = None
    """Hears a voice that has no transcript: a name such as base, or a folder of a Whisper model (CTranslate2)."""
    speaker: str | None = None
    """One of the speakers that the model was trained with, by its tag (`speaker_tags`)."""
    stream: bool = False
    """Write the speech while it is spoken."""
    stream_format: str | None = None
    """wav or pcm (raw 16-bit samples); none = by the output's suffix, wav on standard output."""
    long: LongConfig = field(default_factory=LongConfig)
    codec: Any = None
    """none = the codec the checkpoint names."""
    engine: Any = MISSING
    sampling: SamplingConfig = MISSING
    search: Any = MISSING
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**32, "seed", self.seed, "use 0 to 4294967295")
        if self.stream_format is not None:
            require_choice("stream_format", self.stream_format, ("wav", "pcm"))
        given = [name for name in ("text", "text_file", "texts") if getattr(self, name) is not None]
        if not given:
            raise UserError("infer needs something to say", remedy='pass text="…", text_file=FILE or texts=FILE')
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} are given", remedy="pass text=, text_file= or texts=, one of them")
        if self.voice is None and self.voice_text is not None:
            raise UserError(
                "voice_text= is the transcript of no voice",
                remedy="pass voice=FILE.wav as well, or leave voice_text= out",
            )
        if self.stream and self.texts is not None:
            raise UserError("stream=True is for one text, texts= is a list", remedy="pass text=… or text_file=FILE")
        if self.output == "-" and not self.stream:
            raise UserError("stream=false cannot write to output=-", remedy="pass stream=true, or output=FILE.wav")
