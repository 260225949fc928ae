"""Schema of `serve.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from llasa.config.inference import SamplingConfig
from llasa.config.validation import require
from llasa.errors import UserError


@dataclass
class ServiceLimitsConfig:
    """`limits.*`: what a client may ask for, and how many may ask."""

    characters: int = 4096
    """Of a text."""
    audio_seconds: float = 600.0
    """Of the speech of one request; it ends there (finish_reason "length")."""
    request_seconds: float = 300.0
    """From a request's arrival to its last sample; then it is ended."""
    queue: int = 64
    """Requests that wait for a place in the batch; further ones are told to come back (429)."""
    requests_per_minute: int = 0
    """Of a client: an API key, or where there are none an address. 0 = any number."""
    body_bytes: int = 64 * 1024
    """Of a request without a recording."""
    upload_bytes: int = 10 * 1024 * 1024
    """Of a request with a recording."""

    def __post_init__(self) -> None:
        for name in ("characters", "audio_seconds", "request_seconds", "body_bytes", "upload_bytes"):
            value = getattr(self, name)
            require(value > 0, f"limits.{name}", value, "use a positive number")
        require(self.queue >= 0, "limits.queue", self.queue, "use 0 (none may wait) or more")
        require(
            self.requests_per_minute >= 0,
            "limits.requests_per_minute",
            self.requests_per_minute,
            "use 0 (any number) or more",
        )


@dataclass
class ServeConfig:
    """`python serve.py`: a checkpoint behind HTTP."""

    checkpoint: str = MISSING
    host: str = "127.0.0.1"
    """0.0.0.0 = every network of this machine; then give `api_keys`."""
    port: int = 8000
    """0 = any free one, which is told."""
    workers: int = 1
    """Processes behind the port, each with a model of its own; one that dies is replaced."""
    model_names: list[str] = field(default_factory=list)
    """What clients may call the model; none = the checkpoint's folder."""
    language: str | None = None
    """ISO code of requests that name none; none = the checkpoint's first language."""
    voices_folder: str = "voices"
    """NAME.wav and NAME.txt of each voice; its codes are kept beside them."""
    voice_uploads: bool = False
    """Whether clients may add voices to the folder."""
    asr: str | None = None
    """Hears a voice that has no transcript: a name such as base, or a folder of a Whisper model (CTranslate2)."""
    api_keys: str | None = None
    """File with an API key a line, of which a request has to bring one; none = whoever reaches the port may speak."""
    origins: list[str] = field(default_factory=list)
    """Of web pages elsewhere that may call this server, such as https://example.org."""
    limits: ServiceLimitsConfig = field(default_factory=ServiceLimitsConfig)
    shutdown_seconds: float = 30.0
    """That requests under way have to end in when the server is told to stop."""
    examples: str | None = None
    """File with a sentence a line, of which the page offers the first eight; none = its own."""
    watermark: Any = None
    """What marks speech as made by a machine, inaudibly; none = nothing."""
    codec: Any = None
    """none = the codec the checkpoint names."""
    engine: Any = MISSING
    sampling: SamplingConfig = MISSING
    """Of requests that do not say otherwise."""
    device: str = "auto"

    def __post_init__(self) -> None:
        require(0 <= self.port < 65536, "port", self.port, "use 1 to 65535, or 0 for any free one")
        require(self.workers >= 1, "workers", self.workers, "use 1 or more")
        require(self.shutdown_seconds >= 0, "shutdown_seconds", self.shutdown_seconds, "use 0 or more")
        if self.workers > 1 and self.port == 0:
            raise UserError("port=0 is for one worker", remedy="name a port, or leave workers= out")
