"""The speech of one order, as it is spoken: codes of the scheduler become pieces of a waveform.

    Ticket ─parts─► codes that wait ─at most PUSH_SECONDS─► StreamDecoder ─► Joiner ─► piece      (chunk after chunk)
    └─ a task, as fast as codes come     └─ when the reader asks, in the codec's thread

Codes are taken as they come, so a place in the batch is free as soon as they are spoken, however slowly they are heard;
they wait here as two bytes each, at most ``limits.audio_seconds`` of them (240 KB for ten minutes of 200 codes/s).
Waveforms are made when the reader asks for the next piece, so no more than a piece of them waits. A watermark comes
last: it marks what is heard, pauses included.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

import numpy as np

from llasa.codec.base import Codec, StreamDecoder
from llasa.errors import UserError
from llasa.generation.streaming import open_stream
from llasa.serving.joining import Joiner
from llasa.serving.scheduler import Scheduler
from llasa.serving.script import Script
from llasa.serving.ticket import Failed, Stopping, Ticket, TimedOut
from llasa.serving.watermark import WatermarkStream
from llasa.text.chunks import Break

PUSH_SECONDS = 2.0
"""Of codes that are decoded in one go. The codec's thread serves all streams, and none for longer."""
PIECE_SECONDS = 0.2
"""That a piece has at least, after the first sound. A piece costs the event loop, the codec's thread and the connection
the same whatever its length, and holds up the scheduler's thread, which shares Python's lock with them: with a piece
for each frame of 20 ms a server on two cores kept one stream in real time, with 0.1 s three, with 0.2 s four."""

_log = logging.getLogger(__name__)


@dataclass
class Threads:
    """One thread each, for what would hold up the event loop.

    ``text``: a tokenizer is not for two threads at once. ``codec``: neither is every codec; and a decoder takes all
    cores, or the one GPU, anyway, so that two at a time would be no faster, and late both.
    """

    text: Executor
    codec: Executor


class _End:
    """Stands behind the codes of a chunk; ``next``: what parts the following chunk from it, none if it is the last."""

    def __init__(self, following: Break | None) -> None:
        self.next = following


class SpeechStream:
    """An asynchronous iterator of float32 [samples] pieces; a context manager that ends what is under way.

    Attributes:
        sample_rate: in Hz.
        finish_reason: once the last piece is there: "stop", or of a text's chunks the worst of "length" and "loop".
        seconds, num_codes: given out, and spoken, so far.

    Raises:
        TimedOut, Failed, Stopping: from the iterator, after the pieces that came before.
    """

    def __init__(
        self,
        script: Script,
        first: Ticket,
        scheduler: Scheduler,
        codec: Codec,
        threads: Threads,
        ended: Callable[[SpeechStream, str], None],
        watermark: WatermarkStream | None = None,
    ) -> None:
        self.sample_rate = codec.spec.sample_rate
        self.finish_reason: str | None = None
        self.seconds, self.num_codes = 0.0, 0
        self._script, self._ticket, self._scheduler = script, first, scheduler
        self._codec, self._threads, self._ended = codec, threads, ended
        self._watermark = watermark
        self._deadline = first.deadline
        self._most = max(1, int(PUSH_SECONDS * codec.spec.tokens_per_second))
        self._enough = max(1, int(PIECE_SECONDS * codec.spec.tokens_per_second))
        self._spoken: deque[np.ndarray | _End] = deque()
        self._num_waiting = 0  # codes in it
        self._changed = asyncio.Event()
        self._error: Exception | None = None
        self._decoder: StreamDecoder | None = None
        self._joiner = Joiner(self.sample_rate) if script.more else None
        self._outcome: str | None = None
        self.closed = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._speak())

    async def __aenter__(self) -> SpeechStream:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()

    def __aiter__(self) -> SpeechStream:
        return self

    async def __anext__(self) -> np.ndarray:
        while self._outcome is None:
            while not self._is_enough():
                self._changed.clear()
                await self._changed.wait()
            if self._outcome is not None:  # closed by somebody else meanwhile
                break
            if time.monotonic() > self._deadline:
                raise self._end(TimedOut())
            if not self._spoken:
                assert self._error is not None
                raise self._end(self._error)
            codes, end = self._take()
            try:
                decode = partial(self._decode, codes, end)
                piece = await asyncio.get_running_loop().run_in_executor(self._threads.codec, decode)
            except Exception as error:  # a codec may fail in any way: it costs this stream alone
                if isinstance(error, RuntimeError) and "shutdown" in str(error):
                    raise self._end(Stopping()) from None
                _log.exception("the codec failed")
                raise self._end(Failed()) from None
            self.seconds += len(piece) / self.sample_rate
            if end is not None and end.next is None:
                self.finish_reason = self._script.finish_reason
                self._close(self.finish_reason)
            if len(piece):
                return piece
        raise StopAsyncIteration

    def _is_enough(self) -> bool:
        """Whether to go on: with a piece, the first sound, a chunk's end, or that nothing comes any more."""
        if self._error is not None or self._outcome is not None:
            return True
        if self._spoken and isinstance(self._spoken[-1], _End):
            return True
        return self._num_waiting >= (self._enough if self.seconds else 1)

    def close(self) -> None:
        """Give the place in the batch back before the next step. At any moment, also after the end."""
        self._close("cancelled")

    def _end(self, error: Exception) -> Exception:
        reasons = {TimedOut: "timed_out", Stopping: "stopped"}
        self._close(reasons.get(type(error), "failed"))
        return error

    def _close(self, outcome: str) -> None:
        if self._outcome is None:
            self._outcome = outcome
            self._ticket.cancel()
            self._task.cancel()
            self._spoken.clear()
            self.closed.set()
            self._changed.set()
            self._ended(self, outcome)

    # --- codes: a task that is never slower than the batch ------------------------------------------------------------

    async def _speak(self) -> None:
        try:
            # The scheduler ends what is late by itself, unless its engine hangs.
            async with asyncio.timeout(max(0.0, self._deadline - time.monotonic()) + 1):
                while True:
                    await self._speak_chunk()
                    if not self._script.more:
                        break
                    following = await asyncio.get_running_loop().run_in_executor(
                        self._threads.text, self._script.request
                    )
                    self._put(_End(self._script.pause))
                    self._ticket = self._scheduler.follow(self._ticket, following, keep_place=self._script.more)
            self._put(_End(None))
        except TimeoutError:
            self._error = TimedOut()
        except (TimedOut, Failed, Stopping) as error:
            self._error = error
        except Exception as error:  # nobody awaits this task: what it raised would be lost, and the reader wait
            # A UserError too: whatever is wrong with an order was told before its first request.
            _log.error("a stream failed: %r", error, exc_info=not isinstance(error, UserError))
            self._error = Failed()
        finally:
            self._ticket.cancel()  # after the end this is nothing
            self._changed.set()

    async def _speak_chunk(self) -> None:
        codes, reason = [], "stop"
        async for part in self._ticket:
            if len(part.codes):
                codes.append(part.codes)
                self.num_codes += len(part.codes)
                self._put(part.codes)
            reason = part.finish_reason or reason
        self._script.heard(np.concatenate(codes) if codes else np.zeros(0, np.int64), reason)

    def _put(self, spoken: np.ndarray | _End) -> None:
        self._spoken.append(spoken)
        self._num_waiting += 0 if isinstance(spoken, _End) else len(spoken)
        self._changed.set()

    # --- waveforms ---------------------------------------------------------------------------------------------------

    def _take(self) -> tuple[np.ndarray, _End | None]:
        """Of the codes that wait: those of one chunk, at most ``PUSH_SECONDS``, and its end if they reach it."""
        taken, count = [np.zeros(0, np.int64)], 0
        while self._spoken and count < self._most:
            spoken = self._spoken.popleft()
            if isinstance(spoken, _End):
                return np.concatenate(taken), spoken
            taken.append(spoken)
            count += len(spoken)
            self._num_waiting -= len(spoken)
        return np.concatenate(taken), None

    def _decode(self, codes: np.ndarray, end: _End | None) -> np.ndarray:
        """In the codec's thread: the samples that are certain now, float32 [samples >= 0]."""
        if self._decoder is None:
            self._decoder = open_stream(self._codec)
        piece = self._decoder.push(codes)
        if end is not None:
            piece = np.concatenate([piece, self._decoder.finish()])
            self._decoder = None
        if self._joiner is not None:
            piece = self._joiner.push(piece)
            if end is not None:
                piece = np.concatenate([piece, self._joiner.end()])
                if end.next is not None:
                    self._joiner.next_chunk(end.next)
        if self._watermark is not None:
            piece = self._watermark.push(piece)
            if end is not None and end.next is None:
                piece = np.concatenate([piece, self._watermark.finish()])
        return piece
