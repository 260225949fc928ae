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

from llasa.config import InferConfig, SamplingConfig
from llasa.errors import UserError
from llasa.generation.engine import Request
from llasa.generation.limits import require_speakable
from llasa.generation.longform import chunk_characters, chunk_seed, fitting_context
from llasa.generation.retries import BEST_FIRST
from llasa.generation.run import is_long
from llasa.generation.synthesizer import Synthesizer
from llasa.generation.voices import Voice
from llasa.text.chunks import Break, Chunk, split_text


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
        self._synthesizer, self._order, self._voice = synthesizer, order, voice
        spec = synthesizer.speech.card.codec
        self._frame = len(spec.code_ranges)
        self._left = max(1, int(audio_seconds * spec.tokens_per_second / self._frame)) * self._frame
        self._anchor, self._tail = voice, None
        self.finish_reason = "stop"
        said = {"voice": voice, "speaker": order.speaker}
        config = InferConfig(text=order.text, language=synthesizer.language, sampling=order.sampling)
        self.is_long = is_long(order.text, synthesizer, config, said)
        self._chunks = self._split() if self.is_long else [Chunk(order.text)]
        self._next = 0

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
        chunk, seed, voice, speaker = self._chunks[index], order.seed, self._voice, order.speaker
        if self.is_long:
            voice, seed, speaker = self._context(chunk), chunk_seed(order.seed, index), self._speaker
        request = self._synthesizer.request(chunk.text, order.sampling, voice=voice, seed=seed, speaker=speaker)
        most = min(request.max_codes, self._left)
        self._next += 1
        return replace(request, max_codes=most, min_codes=min(most, request.min_codes))

    def heard(self, codes: np.ndarray, finish_reason: str) -> None:
        """What the last request became."""
        self._left -= len(codes)
        self.finish_reason = max(self.finish_reason, finish_reason, key=BEST_FIRST.index)
        self._tail = Voice(self._chunks[self._next - 1].text, codes) if finish_reason == "stop" else None
        self._anchor = self._anchor or self._tail
        if self._left < self._frame and self.more:
            self._next, self.finish_reason = len(self._chunks), max(self.finish_reason, "length", key=BEST_FIRST.index)

    def _split(self) -> list[Chunk]:
        synthesizer, order = self._synthesizer, self._order
        card, language = synthesizer.speech.card, synthesizer.language
        self._speaker = card.speaker_for(order.speaker, has_voice=self._voice is not None)
        settings = {"language": language, "voice": self._voice, "speaker": self._speaker}
        most = chunk_characters(synthesizer.speech, order.text, order.sampling, **settings)
        chunks, before = [], Break.NONE
        for chunk in split_text(order.text, language, most):
            before = max(before, chunk.before)
            try:
                require_speakable(chunk.text, language, trained=card.languages)
            except UserError:  # some words in other letters; the text as a whole is readable
                continue
            chunks.append(replace(chunk, before=before))
            before = Break.NONE
        return chunks

    def _context(self, chunk: Chunk) -> Voice | None:
        """What a chunk continues, by :func:`llasa.generation.longform.speak_long`'s rules."""
        anchors = [self._anchor] if self._anchor is not None else []
        tails = [self._tail] if self._tail is not None and self._tail is not self._anchor else []
        options = [anchors + tails, anchors, *([tails, []] if self._voice is None else [])]
        synthesizer = self._synthesizer
        return fitting_context(synthesizer.speech, chunk.text, options, synthesizer.language, self._speaker)
