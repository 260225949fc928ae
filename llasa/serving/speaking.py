"""The answer of POST /v1/audio/speech: speech is sent while it is spoken, and ends when the client leaves.

    SpeechService.open ─► SpeechStream ─SpeechEncoder─► audio: the file's bytes, in pieces
                                                        sse: events with base64 pieces, then speech.audio.done

Nothing is sent before the first audio is there (for FLAC: all of it), so what fails until then has a status of its own.
That costs no time: before it there is nothing to hear. What fails later is told by an event; a file is broken off, in
that the connection closes without the end of the body, for a file that only stops would look whole.

A client that leaves gives its place in the batch back at once, and so does one that takes nothing for
`limits.request_seconds`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llasa.errors import UserError
from llasa.serving.encoding import MEDIA_TYPES, SpeechEncoder
from llasa.serving.metrics import Metrics
from llasa.serving.problems import Problem, internal_error
from llasa.serving.service import Busy, Failed, SpeechOrder, SpeechService, SpeechStream, Stopping, TimedOut

SECONDS_IN_LOOP = 0.5
"""Of speech that is encoded in the event loop, in some milliseconds; more goes to a thread."""
RESTART_SECONDS = 5.0
"""After which to ask a server again that stops: another may have taken its place."""

_log = logging.getLogger(__name__)


class SpeechResponse(Response):
    """See this module.

    Args:
        encoder: made for this answer alone.
        format, sample_rate: of what it makes.
        events: whether to send server-sent events instead of the file itself.
        send_seconds: that the client may take for each piece.
    """

    def __init__(
        self,
        service: SpeechService,
        order: SpeechOrder,
        encoder: SpeechEncoder,
        *,
        format: str,
        sample_rate: int,
        events: bool,
        send_seconds: float,
        metrics: Metrics,
    ) -> None:
        super().__init__(media_type="text/event-stream" if events else MEDIA_TYPES[format])
        del self.headers["content-length"]
        self.headers.update(
            {
                "X-Sample-Rate": str(sample_rate),
                "X-Seed": str(order.seed),
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",  # nginx would else collect the pieces
            }
        )
        self._service, self._order, self._encoder = service, order, encoder
        self._format, self._events = format, events
        self._send_seconds, self._metrics = send_seconds, metrics
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = Request(scope).state.request_id
        speaking = asyncio.create_task(self._speak(send, request_id))
        leaving = asyncio.create_task(_left(receive))
        try:
            await asyncio.wait((speaking, leaving), return_when=asyncio.FIRST_COMPLETED)
            if speaking.done():
                speaking.result()
        finally:
            for task in (speaking, leaving):
                task.cancel()
            await asyncio.gather(speaking, leaving, return_exceptions=True)

    async def _speak(self, send: Send, request_id: str) -> None:
        arrived = time.monotonic()
        try:
            async with await self._service.open(self._order) as stream:
                async for piece in self._encoded(stream):
                    if not self._started:
                        self._metrics.began(self._format, time.monotonic() - arrived)
                        await self._start(send, stream)
                    await self._send(send, self._delta(piece) if self._events else piece)
                if not self._started:  # a model that said nothing at all, in a format without a header
                    await self._start(send, stream)
                if self._events:
                    await self._send(send, self._done(stream))
            await self._send(send, b"", more=False)
        except TimeoutError:
            _log.warning("request %s: the client took nothing for %g s", request_id, self._send_seconds)
        except (UserError, Busy, Stopping, Failed, TimedOut) as error:
            problem = problem_with(error, request_id)
            if not self._started:
                raise problem from None
            _log.warning("request %s was broken off: %s", request_id, type(error).__name__)
            if self._events:
                await self._send(send, event("error", **problem.body()), more=False)

    async def _encoded(self, stream: SpeechStream) -> AsyncIterator[bytes]:
        async for waveform in stream:
            if len(waveform) > SECONDS_IN_LOOP * stream.sample_rate:
                encoded = await asyncio.to_thread(self._encoder.encode, waveform)
            else:
                encoded = self._encoder.encode(waveform)
            if encoded:
                yield encoded
        rest = await asyncio.to_thread(self._encoder.finish)
        if rest:
            yield rest

    async def _start(self, send: Send, stream: SpeechStream) -> None:
        if stream.finish_reason is not None:
            self.headers["X-Finish-Reason"] = stream.finish_reason
        self._started = True
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})

    async def _send(self, send: Send, body: bytes, *, more: bool = True) -> None:
        async with asyncio.timeout(self._send_seconds):  # uvicorn waits here while the client does not read
            await send({"type": "http.response.body", "body": body, "more_body": more})

    def _delta(self, piece: bytes) -> bytes:
        return event("speech.audio.delta", audio=base64.b64encode(piece).decode())

    def _done(self, stream: SpeechStream) -> bytes:
        spoken, codes = len(self._order.text), stream.num_codes
        return event(
            "speech.audio.done",
            usage={"input_tokens": spoken, "output_tokens": codes, "total_tokens": spoken + codes},
            finish_reason=stream.finish_reason,
            seconds=round(stream.seconds, 3),
        )


def event(type: str, **content: Any) -> bytes:
    """A server-sent event in OpenAI's form."""
    return b"data: " + json.dumps({"type": type, **content}).encode() + b"\n\n"


def problem_with(error: Exception, request_id: str) -> Problem:
    """What a client is told of what :class:`SpeechService` raised."""
    if isinstance(error, UserError):
        return Problem(400, str(error), code="invalid_value")
    if isinstance(error, Busy):
        return Problem(429, "all places are taken; try again later", code="busy", retry_after=error.retry_after)
    if isinstance(error, Stopping):
        return Problem(503, "the server is stopping or not ready", code="unavailable", retry_after=RESTART_SECONDS)
    if isinstance(error, TimedOut):
        return Problem(
            503,
            "this took longer than the server allows; try again later, or send less text",
            code="timed_out",
            retry_after=RESTART_SECONDS,
        )
    return internal_error(request_id)


async def _left(receive: Receive) -> None:
    """Until the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
