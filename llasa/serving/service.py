"""A checkpoint that speaks for many clients at once; what the API calls.

    SpeechOrder ─voice, spoken form, tokens (threads)─► Script ─submit─► Scheduler ─► SpeechStream ─► pieces of waveform

The model, the codec and the engine are loaded once, by :meth:`SpeechService.from_config`; everything else happens in
one event loop and never holds it up. The same order gives the same samples, whatever else is spoken meanwhile, up to
the order in which the engine adds.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np

from llasa.build import build
from llasa.codec.base import Codec, CodecSpec
from llasa.config import ServeConfig
from llasa.device import resolve_device
from llasa.errors import UserError
from llasa.generation.run import build_codec
from llasa.generation.synthesizer import Synthesizer
from llasa.generation.voices import VoiceInfo
from llasa.model.checkpoint import CheckpointCard, require_same_codec
from llasa.serving.scheduler import Scheduler
from llasa.serving.script import Script, SpeechOrder
from llasa.serving.stream import SpeechStream, Threads
from llasa.serving.ticket import Busy, Failed, Stopping, TimedOut
from llasa.serving.voices import Voices
from llasa.serving.watermark import Watermark

__all__ = ["Busy", "Failed", "SpeechOrder", "SpeechService", "SpeechStream", "Stopping", "TimedOut"]

READERS_PER_PLACE = 4
"""Streams that may be open for each request that may run or wait: most are spoken, and only being read. Beyond it slow
readers take more memory (codes, and a decoder of some MB) than those who speak."""

T = TypeVar("T")


class SpeechService:
    """See this module.

    Attributes:
        sample_rate: of the speech, in Hz.
        languages: of the checkpoint, maybe none; ``default_language`` is that of orders without one.
        speakers: whom the model knows by name; maybe none.
        card: of the checkpoint.
        ended: orders by how they ended: stop, length, loop, cancelled, timed_out, failed, stopped; busy, mistake for
            those that were refused.
        audio_seconds: that clients were given.
    """

    def __init__(self, synthesizer: Synthesizer, config: ServeConfig, watermark: Watermark | None = None) -> None:
        assert synthesizer.codec is not None
        self.config, self.codec = config, synthesizer.codec
        self.card: CheckpointCard = synthesizer.speech.card
        self.sample_rate = self.codec.spec.sample_rate
        self._watermark = watermark
        if watermark is not None:
            watermark.open_stream(self.sample_rate)  # or the first order would find out that it cannot
        self.codec_name = self.codec.spec.name
        self.languages = list(self.card.languages)
        self.default_language = synthesizer.language
        self.speakers = list(self.card.speakers)
        self.ended: Counter[str] = Counter()
        self.audio_seconds = 0.0

        self._synthesizer, engine = synthesizer, synthesizer.engine
        opened = partial(engine.open, synthesizer.speech, capacity=self.card.max_length)
        self._scheduler = Scheduler(opened, batch_size=engine.batch_size, queue=config.limits.queue)
        self._threads = Threads(ThreadPoolExecutor(1, "text"), ThreadPoolExecutor(1, "codec"))
        self._voices_thread = ThreadPoolExecutor(1, "voices")
        codec = _CodecInThread(self.codec, self._threads.codec)
        self._voices = Voices(config.voices_folder, codec, self.card, config.asr, config.limits.upload_bytes)
        self._streams: weakref.WeakSet[SpeechStream] = weakref.WeakSet()
        self._preparing = 0
        self._started = self._stopping = False

    @classmethod
    def from_config(cls, config: ServeConfig) -> SpeechService:
        """Load the checkpoint, its codec and the engine.

        Raises:
            UserError: no such checkpoint, another codec than its own, an engine or a watermark that is not installed
                or not for this codec.
        """
        device = resolve_device(config.device)
        watermark = build(config.watermark) if config.watermark is not None else None
        engine = build(config.engine)
        speech = engine.load(config.checkpoint, device)
        codec = build_codec(speech.card.codec, config.codec, device)
        require_same_codec(speech.card.codec, codec.spec, config.checkpoint, "the codec")
        language = config.language or next(iter(speech.card.languages), "en")
        return cls(Synthesizer(speech, codec, engine, language), config, watermark)

    # --- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Open the batch; from now on orders are taken."""
        self._scheduler.start()
        self._started = True

    def stop(self) -> None:
        """Take no orders any more; those under way go on. :meth:`close` comes after it."""
        self._stopping = True
        self._scheduler.stop()

    async def close(self) -> None:
        """:meth:`stop`, wait ``config.shutdown_seconds`` at most until all is spoken and read, end the rest."""
        self.stop()
        until = time.monotonic() + self.config.shutdown_seconds
        await self._scheduler.close(self.config.shutdown_seconds)
        reading = [asyncio.ensure_future(stream.closed.wait()) for stream in self._streams]
        if reading:
            _, unread = await asyncio.wait(reading, timeout=max(0.0, until - time.monotonic()))
            for waiter in unread:
                waiter.cancel()
        for executor in (self._threads.text, self._threads.codec, self._voices_thread):
            executor.shutdown(wait=False)  # who still reads is told at the next piece

    @property
    def ready(self) -> bool:
        """Whether orders are taken."""
        return self._started and not self._stopping and self.alive

    @property
    def alive(self) -> bool:
        """False once the engine fails again and again, or hangs: the process should be started anew."""
        return not self._started or self._stopping or self._scheduler.alive

    # --- speech ------------------------------------------------------------------------------------------------------

    async def open(self, order: SpeechOrder) -> SpeechStream:
        """Begin to speak. The stream is to be used in an ``async with``.

        Raises:
            UserError: the client's mistake; without a path of this machine.
            Busy, Stopping
        """
        deadline = time.monotonic() + self.config.limits.request_seconds
        try:
            if not self._started or self._stopping:
                raise Stopping
            # Before any work is done for it: what is refused has to cost little.
            self._scheduler.require_room(self._preparing)
            if len(self._streams) >= READERS_PER_PLACE * (self._scheduler.batch_size + self.config.limits.queue):
                raise Busy(self._scheduler.seconds_to_wait())
            self._preparing += 1
            try:
                script, request = await self._prepare(order)
            finally:
                self._preparing -= 1
            ticket = self._scheduler.submit(request, order.sampling, deadline, keep_place=script.more)
        except (UserError, Busy) as refused:
            self.ended["busy" if isinstance(refused, Busy) else "mistake"] += 1
            raise
        watermark = self._watermark.open_stream(self.sample_rate) if self._watermark is not None else None
        stream = SpeechStream(script, ticket, self._scheduler, self.codec, self._threads, self._note, watermark)
        self._streams.add(stream)
        return stream

    async def _prepare(self, order: SpeechOrder) -> tuple[Script, Any]:
        limits = self.config.limits
        if len(order.text) > limits.characters:
            raise UserError(
                f"the text has {len(order.text):,} characters, more than {limits.characters:,}",
                remedy="send it in parts",
            )
        try:
            order.text.encode()
        except UnicodeEncodeError:  # JSON can say so, and no tokenizer takes it
            raise UserError("the text has half of a surrogate pair", remedy="send Unicode text") from None
        language = self._language(order.language)
        voice = None
        if order.voice is not None:
            voice = await self._run(self._voices_thread, self._voices.voice, order.voice, language)
        speech, engine = self._synthesizer.speech, self._synthesizer.engine
        synthesizer = Synthesizer(speech, self.codec, engine, language)

        def write() -> tuple[Script, Any]:
            script = Script(synthesizer, order, voice, limits.audio_seconds)
            return script, script.request()

        return await self._run(self._threads.text, write)

    def _language(self, language: str | None) -> str:
        if language is None:
            return self.default_language
        if self.languages and language not in self.languages:
            known = ", ".join(self.languages)
            raise UserError(f"language {language[:20]!r} is none of this model's", remedy=f"choose one of {known}")
        return language

    def _note(self, stream: SpeechStream, outcome: str) -> None:
        self.ended[outcome] += 1
        self.audio_seconds += stream.seconds
        self._streams.discard(stream)

    # --- voices ------------------------------------------------------------------------------------------------------

    def voices(self) -> list[VoiceInfo]:
        """The voices that orders may name; not "default", which needs none.

        Cost: that of decoding every recording where one has changed, so better in a thread. Raises ``UserError`` where
        the folder cannot be read.
        """
        return self._voices.known()

    async def add_voice(self, name: str, recording: bytes, text: str | None, language: str | None) -> VoiceInfo:
        """Add a recording to the voices.

        Args:
            text: what is said in it; none = what `asr` hears.

        Raises:
            UserError: voices are not taken here, or see :meth:`llasa.serving.voices.Voices.add`.
            Stopping
        """
        if not self.config.voice_uploads:
            raise UserError("this server takes no voices", remedy="choose one that it has")
        if self._stopping:
            raise Stopping
        language = self._language(language)
        return await self._run(self._voices_thread, self._voices.add, name, recording, text, language)

    # --- numbers -----------------------------------------------------------------------------------------------------

    @property
    def batch_size(self) -> int:
        return self._scheduler.batch_size

    @property
    def num_running(self) -> int:
        """Requests that have a place in the batch."""
        return self._scheduler.num_running

    @property
    def num_waiting(self) -> int:
        """Requests that wait for one."""
        return self._scheduler.num_waiting

    @property
    def num_streams(self) -> int:
        """Orders that are spoken or read."""
        return len(self._streams)

    @property
    def num_steps(self) -> int:
        """Of the batch, since the start."""
        return self._scheduler.num_steps

    @property
    def num_codes(self) -> int:
        """Spoken since the start."""
        return self._scheduler.num_codes

    async def _run(self, executor: Executor, call: Callable[..., T], *arguments: Any) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, call, *arguments)
        except RuntimeError as error:
            if "shutdown" in str(error):
                raise Stopping from None
            raise


class _CodecInThread:
    """A codec whose :meth:`encode` happens in the codec's thread, for callers in others: nothing says that a codec may
    be used by two at once. A voice is encoded once, and the streams wait for it that long."""

    def __init__(self, codec: Codec, thread: Executor) -> None:
        self._codec, self._thread = codec, thread
        self.spec: CodecSpec = codec.spec

    def encode(self, waveforms: list[np.ndarray]) -> list[np.ndarray]:
        return self._thread.submit(self._codec.encode, waveforms).result()

    def encoding_facts(self) -> dict[str, Any]:
        return self._codec.encoding_facts()
