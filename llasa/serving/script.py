"""What a client orders, and the requests that it becomes: one, or of a long text one after the other.

    SpeechOrder ─is_long?─► the text in one go ──────────────────────────► Request
                └─split_text─► chunks ─voice, the chunk before it─► Request, Request, …

A long text is spoken as `infer.py` speaks it (:mod:`llasa.generation.longform`), in the same chunks that continue each
other and with the same seeds. But nothing is tried again: what was heard is not taken back.

Cost: the spoken form and the tokens, some milliseconds; not for an event loop.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from llasa.config import SamplingConfig
from llasa.generation.continuation import Continuation, chunk_characters, chunk_seed, is_long, readable_chunks
from llasa.generation.engine import Request
from llasa.generation.retries import BEST_FIRST
from llasa.generation.synthesizer import Synthesizer
from llasa.generation.voices import Voice
from llasa.text.chunks import Break, Chunk


@dataclass(frozen=True)
class SpeechOrder:
    """What to say and how. ``voice``, ``language`` and ``speaker`` none: as the model does by itself."""

    text: str
    voice: str | None
    language: str | None
    speaker: str | None
    sampling: SamplingConfig
    seed: int


class Script:
    """The requests of an order, each of which may continue what the one before it said.

    Args:
        synthesizer: of the order's language.
        voice: the one that the order names.
        audio_seconds: of all requests together, at most.

    Attributes:
        finish_reason: of what was said so far; of several the worst.

    Raises:
        UserError: as :meth:`Synthesizer.request`, at once.
    """

    def __init__(self, synthesizer: Synthesizer, order: SpeechOrder, voice: Voice | None, audio_seconds: float) -> None:
        self._synthesizer, self._order, self._voice, self._speaker = synthesizer, order, voice, order.speaker
        spec = synthesizer.speech.card.codec
        self._frame = spec.codes_per_frame
        self._left = max(1, int(audio_seconds * spec.tokens_per_second / self._frame)) * self._frame
        self.finish_reason = "stop"
        self._chunks, self._next = [Chunk(order.text)], 0
        self._continuation: Continuation | None = None
        if is_long(order.text, synthesizer, order.sampling, voice=voice, speaker=order.speaker):
            self._split()

    @property
    def more(self) -> bool:
        """Whether a request follows the one that is made, or being made."""
        return self._next < len(self._chunks)

    @property
    def pause(self) -> Break:
        """What stands before the last request that was made."""
        return self._chunks[self._next - 1].before

    def request(self) -> Request:
        """The next one; :meth:`heard` has to have been told of the one before."""
        index, order = self._next, self._order
        chunk, voice, seed = self._chunks[index], self._voice, order.seed
        if self._continuation is not None:
            voice, seed = self._continuation.context(chunk.text), chunk_seed(seed, index)
        request = self._synthesizer.request(chunk.text, order.sampling, voice=voice, seed=seed, speaker=self._speaker)
        most = min(request.max_codes, self._left)
        self._next += 1
        return replace(request, max_codes=most, min_codes=min(most, request.min_codes))

    def heard(self, codes: np.ndarray, finish_reason: str) -> None:
        """What the last request became."""
        self._left -= len(codes)
        self.finish_reason = max(self.finish_reason, finish_reason, key=BEST_FIRST.index)
        if self._continuation is not None:
            self._continuation.heard(self._chunks[self._next - 1].text, codes, finish_reason)
        if self._left < self._frame and self.more:
            self._next, self.finish_reason = len(self._chunks), max(self.finish_reason, "length", key=BEST_FIRST.index)

    def _split(self) -> None:
        """Into chunks as :func:`llasa.generation.longform.speak_long` makes them; some words in other letters are left
        out, as the text as a whole is readable."""
        synthesizer, order, voice = self._synthesizer, self._order, self._voice
        speech, language = synthesizer.speech, synthesizer.language
        self._speaker = tag = speech.card.speaker_for(order.speaker, has_voice=voice is not None)
        most = chunk_characters(speech, order.text, order.sampling, language=language, voice=voice, speaker=tag)
        self._chunks, _ = readable_chunks(order.text, language, most, speech.card.languages)
        self._continuation = Continuation(speech, voice, language, tag)
