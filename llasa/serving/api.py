"""The HTTP application: OpenAI's speech API, voices, health and numbers, and the page.

    request ─► Envelope (id, bugs, count) ─► CORS ─► Gate (key, rate, length) ─► routes ─► SpeechService

It follows OpenAI's audio/speech and models; what differs is in the schemas' descriptions. The service starts and ends
with the application.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, File, Form, UploadFile
from fastapi.responses import Response
from fastapi.security import HTTPBearer
from starlette.middleware.cors import CORSMiddleware

from llasa.config import ServeConfig
from llasa.errors import UserError
from llasa.generation.voices import VoiceInfo
from llasa.serving.access import Gate, RateLimiter, load_keys
from llasa.serving.docs import docs_router
from llasa.serving.encoding import MEDIA_TYPES, SpeechEncoder, output_rate
from llasa.serving.envelope import Envelope
from llasa.serving.metrics import CONTENT_TYPE, Metrics
from llasa.serving.page import page_router
from llasa.serving.page_settings import page_settings
from llasa.serving.problems import Problem, install_handlers
from llasa.serving.schemas import (
    DEFAULT_VOICE,
    ErrorBody,
    Health,
    Model,
    ModelList,
    SpeechRequest,
    Voice,
    VoiceList,
)
from llasa.serving.service import SpeechOrder, SpeechService, Stopping
from llasa.serving.speaking import SpeechResponse, problem_with

SPEECH_PATH, VOICES_PATH = "/v1/audio/speech", "/v1/voices"
FORM_BYTES = 16 * 1024
"""Of an upload beside its recording: the other fields and what stands between them."""
EXPOSED = ["X-Request-ID", "X-Sample-Rate", "X-Seed", "X-Finish-Reason", "Retry-After"]
DESCRIPTION = """\
Speech from text, as OpenAI's clients ask for it: point `base_url` at this server's `/v1`.

Audio is sent while it is spoken. Errors are `{"error": {"message", "type", "param", "code"}}`, and every answer bears
an `X-Request-ID`. A full queue and a client that asks too often are answered 429 with `Retry-After`.
"""
PROBLEM: dict[int | str, dict[str, Any]] = {"default": {"model": ErrorBody, "description": "What went wrong."}}
SPEECH: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The speech. With `stream_format=sse` the events `speech.audio.delta` {audio} and "
        "`speech.audio.done` {usage, finish_reason, seconds}; in `usage`, input is counted in characters and output in "
        "codes. What fails on the way is an event `error`, or a body without its end.",
        "headers": {
            "X-Sample-Rate": {"schema": {"type": "integer"}, "description": "Hz"},
            "X-Seed": {"schema": {"type": "integer"}, "description": "Gives the same speech again."},
            "X-Finish-Reason": {
                "schema": {"type": "string"},
                "description": "stop, length or loop, where it is known before the body (flac).",
            },
        },
        "content": {
            **{media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in MEDIA_TYPES.values()},
            "text/event-stream": {
                "schema": {  # of one event
                    "type": "object",
                    "required": ["data"],
                    "properties": {"data": {"type": "string", "contentMediaType": "application/json"}},
                }
            },
        },
    },
    **PROBLEM,
}


def create_app(service: SpeechService, config: ServeConfig) -> FastAPI:
    """The application around a service, which it starts and closes.

    Raises:
        UserError: the file of API keys cannot be used.
    """
    keys = load_keys(config.api_keys) if config.api_keys is not None else []
    metrics, names = Metrics(service), model_names(config)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.close()

    app = FastAPI(
        title="Speech",
        summary="Text in, speech out, in the form of OpenAI's API.",
        description=DESCRIPTION,
        version="1",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    install_handlers(app, {SPEECH_PATH: list(SpeechRequest.model_fields)})
    bearer = [Depends(HTTPBearer(auto_error=False, description="One of the server's API keys."))] if keys else []
    app.include_router(speech_router(service, config, metrics, names), dependencies=bearer)
    app.include_router(voices_router(service, config), dependencies=bearer)
    app.include_router(status_router(service, metrics))
    app.include_router(docs_router(app.title))
    app.include_router(page_router(page_settings(service, config, names[0])))
    limits = config.limits
    # The last one added is the outermost.
    app.add_middleware(
        Gate,
        keys=keys,
        limiter=RateLimiter(limits.requests_per_minute),
        origins=config.origins,
        body_bytes={None: limits.body_bytes, VOICES_PATH: limits.upload_bytes + FORM_BYTES},
    )
    if config.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=EXPOSED,
        )
    app.add_middleware(Envelope, metrics=metrics)
    return app


def model_names(config: ServeConfig) -> list[str]:
    """What clients may call the model: training calls every result "checkpoint", and its folder says which."""
    folder = Path(config.checkpoint).resolve()
    return config.model_names or [(folder.parent if folder.name == "checkpoint" else folder).name or "llasa"]


def speech_router(service: SpeechService, config: ServeConfig, metrics: Metrics, names: list[str]) -> APIRouter:
    """POST /v1/audio/speech, GET /v1/models."""
    router = APIRouter(tags=["speech"])
    models = [
        Model(
            id=name,
            created=int(time.time()),
            sample_rate=service.sample_rate,
            codec=service.codec_name,
            languages=service.languages,
            speakers=service.speakers,
        )
        for name in names
    ]

    @router.post(SPEECH_PATH, response_class=Response, responses=SPEECH, summary="Speak a text")
    async def speak(asked: SpeechRequest) -> Response:
        require_model(asked.model, names)
        require_short(asked.input, config.limits.characters)
        seed = secrets.randbelow(2**32) if asked.seed is None else asked.seed
        sampling = asked.sampling(config.sampling)
        try:
            rate = output_rate(asked.response_format, service.sample_rate, asked.sample_rate)
        except UserError as error:
            raise Problem(400, str(error), code="invalid_value", param="sample_rate") from None
        try:
            encoder = SpeechEncoder(asked.response_format, service.sample_rate, output_rate=rate, speed=asked.speed)
        except UserError as error:
            raise Problem(400, str(error), code="unsupported_value") from None
        return SpeechResponse(
            service,
            SpeechOrder(asked.input, asked.voice_name, asked.language, asked.speaker, sampling, seed),
            encoder,
            format=asked.response_format,
            sample_rate=rate,
            events=asked.stream_format == "sse",
            send_seconds=config.limits.request_seconds,
            metrics=metrics,
        )

    @router.get("/v1/models", responses=PROBLEM, summary="List the names of the model")
    async def list_models() -> ModelList:
        return ModelList(data=models)

    @router.get("/v1/models/{model}", responses=PROBLEM, summary="Describe the model")
    async def retrieve_model(model: str) -> Model:
        require_model(model, names)
        return models[names.index(model)]

    return router


def require_model(name: str, names: list[str]) -> None:
    if name not in names:
        raise Problem(
            404,
            f"there is no model {ascii(name)[:200]} here; there is {' and '.join(names)}",
            code="model_not_found",
            param="model",
        )


def require_short(text: str, limit: int) -> None:
    if len(text) > limit:
        raise Problem(
            400,
            f"input has {len(text):,} characters, more than {limit:,}; send it in parts",
            code="string_above_max_length",
            param="input",
        )


def voices_router(service: SpeechService, config: ServeConfig) -> APIRouter:
    """GET and POST /v1/voices."""
    router = APIRouter(tags=["voices"])

    @router.get(VOICES_PATH, responses=PROBLEM, summary="List the voices")
    async def list_voices() -> VoiceList:
        own = Voice(id=DEFAULT_VOICE, seconds=None, text=None)
        try:
            voices = await asyncio.to_thread(service.voices)
        except UserError as error:  # the operator's mistake, and nothing that the client could send otherwise
            raise Problem(503, str(error), code="unavailable") from None
        return VoiceList(data=[own, *map(described, voices)])

    if not config.voice_uploads:

        @router.post(VOICES_PATH, responses=PROBLEM, status_code=403, summary="Add a voice (off on this server)")
        async def refuse_voice() -> None:
            raise Problem(
                403,
                "this server takes no voices; its operator may start it with voice_uploads=true",
                code="uploads_off",
            )

        return router

    @router.post(VOICES_PATH, responses=PROBLEM, status_code=201, summary="Add a voice")
    async def add_voice(
        name: Annotated[str, Form(max_length=64, description="Letters, digits, - and _.")],
        recording: Annotated[
            UploadFile, File(description="WAV, FLAC, MP3 or Ogg; 3 to 15 s of one person. Its file name is not used.")
        ],
        consent: Annotated[
            bool, Form(description="true: I have the speaker's consent to have their voice imitated.")
        ] = False,
        text: Annotated[
            str | None, Form(description="What is said in it; none = it is heard, if the server can.")
        ] = None,
        language: Annotated[str | None, Form(max_length=20, description="ISO code; none = the server's own.")] = None,
    ) -> Voice:
        if not consent:
            raise Problem(
                400,
                "consent has to be true: only clone a voice whose speaker has agreed to it",
                code="consent_required",
                param="consent",
            )
        try:
            voice = await service.add_voice(name, await recording.read(), text or None, language or None)
        except (UserError, Stopping) as error:
            raise problem_with(error, "") from None
        return described(voice)

    return router


def described(voice: VoiceInfo) -> Voice:
    return Voice(id=voice.name, seconds=round(voice.seconds, 2), text=voice.text.strip() if voice.text else None)


def status_router(service: SpeechService, metrics: Metrics) -> APIRouter:
    """GET /health, /ready, /metrics."""
    router = APIRouter(tags=["status"])

    @router.get("/health", responses=PROBLEM, summary="Whether the process lives")
    async def health() -> Health:
        if not service.alive:
            raise Problem(503, "the engine failed; the process has to be started anew", code="unavailable")
        return Health(status="ok")

    @router.get("/ready", responses=PROBLEM, summary="Whether it can speak: 503 while it starts and stops")
    async def ready() -> Health:
        if not service.ready:
            raise Problem(503, "the server starts or stops", code="unavailable", retry_after=1)
        return Health(status="ready")

    @router.get("/metrics", response_class=Response, responses=PROBLEM, summary="Numbers for Prometheus")
    async def numbers() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    return router
