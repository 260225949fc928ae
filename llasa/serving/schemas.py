"""What comes in and goes out as JSON: OpenAI's fields, and those that only this server has.

OpenAI's clients pass fields of our own by `extra_body={"language": "it"}`. A field that does not exist is a mistake
and not ignored: a misspelt `temperatur` would else be heard as a bad model.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic.config import JsonDict

from llasa.config import SamplingConfig
from llasa.serving.encoding import MEDIA_TYPES
from llasa.serving.tempo import MAX_SPEED, MIN_SPEED

DEFAULT_VOICE = "default"
"""The model's own."""

EXAMPLE: JsonDict = {"model": "llasa", "input": "Ciao, come stai?", "voice": "default", "response_format": "wav"}


class VoiceReference(BaseModel):
    """OpenAI's other way to name a voice."""

    model_config = ConfigDict(extra="forbid")

    id: Annotated[str, Field(strict=True, min_length=1, max_length=200)]


class SpeechRequest(BaseModel):
    """A text to speak. `model`, `input` and `voice` to `stream_format` are OpenAI's; the rest is this server's own."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, json_schema_extra={"example": EXAMPLE})

    model: str = Field(min_length=1, max_length=200, description="One of `GET /v1/models`.")
    input: str = Field(
        min_length=1,
        description="The text. No longer than the server allows, which an error says (4096 characters unless set).",
    )
    voice: str | Annotated[VoiceReference, Field(strict=False)] = Field(
        default=DEFAULT_VOICE,
        description='`default` (the model\'s own), or one of `GET /v1/voices`; also as `{"id": NAME}`.',
    )
    response_format: Literal["mp3", "opus", "flac", "wav", "pcm"] = Field(
        default="mp3",
        description="All are mono. All but `flac` are sent while they are spoken. `pcm` is signed 16-bit little-endian "
        "at the rate that the header `X-Sample-Rate` says; for OpenAI's 24 kHz pass `sample_rate`. AAC is not offered.",
    )
    speed: float = Field(
        default=1.0, ge=MIN_SPEED, le=MAX_SPEED, description="2 = in half the time, at the same pitch."
    )
    stream_format: Literal["audio", "sse"] = Field(
        default="audio",
        description="`audio`: the file's bytes. `sse`: events `speech.audio.delta` with base64 pieces of the same "
        "file, then `speech.audio.done`.",
    )
    instructions: str | None = Field(
        default=None,
        description="OpenAI's way to describe how to speak. This model cannot follow it: only an empty one is taken.",
    )
    language: str | None = Field(
        default=None,
        max_length=20,
        description="ISO code, for the spoken form of numbers and symbols; none = the server's own.",
    )
    speaker: str | None = Field(
        default=None, max_length=200, description="One that the model was trained with: `speakers` of its entry."
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        lt=2**32,
        description="The same seed gives the same speech; none = another each time. The header `X-Seed` says which.",
    )
    temperature: float | None = Field(default=None, ge=0, le=10, description="0 = greedy.")
    top_k: int | None = Field(default=None, ge=0, le=1_000_000, description="0 = all.")
    top_p: float | None = Field(default=None, gt=0, le=1)
    min_p: float | None = Field(default=None, ge=0, lt=1)
    repetition_penalty: float | None = Field(default=None, ge=0.01, lt=100, description="1 = none.")
    sample_rate: Literal[8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000] | None = Field(
        default=None, description="Hz of the file; none = the model's. `opus` has only 8, 12, 16, 24 and 48 kHz."
    )

    @field_validator("response_format", mode="before")
    @classmethod
    def _aac(cls, value: Any) -> Any:
        if value == "aac":
            raise ValueError(f"this server cannot make aac; choose one of {', '.join(MEDIA_TYPES)}")
        return value

    @field_validator("input", mode="after")
    @classmethod
    def _something(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("there is nothing to say")
        return value

    @field_validator("instructions", mode="after")
    @classmethod
    def _none(cls, value: str | None) -> str | None:
        if value and value.strip():
            raise ValueError("this model cannot follow instructions; leave them out, and choose a voice= instead")
        return value

    @property
    def voice_name(self) -> str | None:
        """None = the model's own."""
        name = self.voice if isinstance(self.voice, str) else self.voice.id
        return None if name == DEFAULT_VOICE else name

    def sampling(self, defaults: SamplingConfig) -> SamplingConfig:
        """The server's, with what the client says."""
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return dataclasses.replace(defaults, **given)


class Model(BaseModel):
    """As OpenAI's, and what this model can speak."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Seconds since 1970: when the server loaded it.")
    owned_by: str = "llasa"
    sample_rate: int = Field(description="Hz")
    codec: str
    languages: list[str] = Field(description="ISO codes that it was trained on; the first is the default.")
    speakers: list[str] = Field(description="For `speaker`; none = it knows no speakers by name.")


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class Voice(BaseModel):
    id: str = Field(description="For `voice`.")
    object: Literal["voice"] = "voice"
    seconds: float | None = Field(description="Of its recording; none for the model's own voice.")
    text: str | None = Field(description="What is said in the recording, if it has been written down or heard.")


class VoiceList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Voice]


class Health(BaseModel):
    status: Literal["ok", "ready"]


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """As OpenAI's."""

    error: ErrorDetail
