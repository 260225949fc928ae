"""Text to speech with one checkpoint: spoken form, prompt, codes, waveform.

text ─spoken_form─► prompt ─Request─► engine ─GeneratedCodes─► codec ─► Speech      all at the end
                                      engine ─CodesPart─► StreamDecoder ─► pieces   as it is spoken
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypedDict, Unpack

import numpy as np

from llasa.codec.base import Codec
from llasa.config import SamplingConfig
from llasa.errors import UserError
from llasa.generation.engine import Engine, GeneratedCodes, Request
from llasa.generation.limits import code_bounds, require_speakable
from llasa.generation.retries import TriedCodes, generate_with_retries
from llasa.generation.streaming import open_stream
from llasa.generation.voices import Voice
from llasa.model.llama import TokenContract
from llasa.types import Speech


class Manner(TypedDict, total=False):
    """How a text is said: the arguments of :meth:`Synthesizer.request` that searches and long texts hand on."""

    voice: Voice | None
    seed: int
    language: str | None
    speaker: str | None


class Synthesizer:
    """Speaks sentences. ``language`` decides how numbers and symbols are read.

    Args:
        codec: none = :meth:`request` and :meth:`generate` work, waveforms have to wait for one.
    """

    def __init__(self, speech: TokenContract, codec: Codec | None, engine: Engine, language: str) -> None:
        self.speech, self.codec, self.engine, self.language = speech, codec, engine, language

    def speak(
        self,
        texts: Sequence[str],
        sampling: SamplingConfig,
        *,
        voice: Voice | None = None,
        seed: int = 0,
        languages: Sequence[str] | None = None,
        speakers: Sequence[str | None] | None = None,
    ) -> list[Speech]:
        """One :class:`Speech` for each text, in order. The same seed gives the same codes.

        With a voice the model continues its recording (transcript and codes in front); the result holds only what
        follows it.

        Args:
            languages: of each text, where it is not the synthesizer's.
            speakers: of each text, see :meth:`request`.

        Raises:
            UserError: a text without a letter or in foreign ones, so long that no room is left for speech, or a speaker
                that the model does not know.
        """
        generated = self.generate(texts, sampling, voice=voice, seed=seed, languages=languages, speakers=speakers)
        return self.decode(generated)

    def generate(
        self,
        texts: Sequence[str],
        sampling: SamplingConfig,
        *,
        voice: Voice | None = None,
        seed: int = 0,
        languages: Sequence[str] | None = None,
        speakers: Sequence[str | None] | None = None,
    ) -> list[TriedCodes]:
        """The first half of :meth:`speak`, which needs no codec."""
        languages, speakers = languages or [self.language] * len(texts), speakers or [None] * len(texts)
        requests = [
            self.request(text, sampling, voice=voice, seed=seed, language=language, speaker=speaker)
            for text, language, speaker in zip(texts, languages, speakers, strict=True)
        ]
        return generate_with_retries(self.engine, self.speech, requests, sampling)

    def decode(self, generated: Sequence[GeneratedCodes]) -> list[Speech]:
        """The second half of :meth:`speak`: waveforms of the codes."""
        rate = self.speech.card.codec.sample_rate
        waveforms = self.waveforms([result.codes for result in generated])
        return [
            Speech(waveform, rate, result.codes, result.finish_reason, len(waveform) / rate)
            for waveform, result in zip(waveforms, generated, strict=True)
        ]

    def waveforms(self, codes: list[np.ndarray]) -> list[np.ndarray]:
        """Codes [num_codes] each → float32 [samples] each."""
        assert self.codec is not None, "made without a codec"
        return self.codec.decode(codes)

    def stream(self, text: str, sampling: SamplingConfig, **said: Unpack[Manner]) -> Iterator[np.ndarray]:
        """Pieces of the waveform, float32 [samples] each, as they are spoken; nothing that was heard is taken back,
        so nothing is tried again. Closing the iterator ends the generation.

        Raises:
            UserError: as :meth:`speak`, at the first piece.
        """
        assert self.codec is not None, "made without a codec"
        request = self.request(text, sampling, **said)
        decoder = open_stream(self.codec)
        for part in self.engine.stream(self.speech, [request], sampling):
            piece = decoder.push(part.codes)
            if len(piece):
                yield piece
        piece = decoder.finish()
        if len(piece):
            yield piece

    def request(
        self,
        text: str,
        sampling: SamplingConfig,
        *,
        voice: Voice | None = None,
        seed: int = 0,
        language: str | None = None,
        speaker: str | None = None,
        spoken: np.ndarray | None = None,
    ) -> Request:
        """What the engine gets of a text: its prompt, and how many codes may follow, by its length and the model's.

        Args:
            speaker: one that the model was trained with, by its tag; none = :meth:`CheckpointCard.speaker_for`.
            spoken: codes [num_codes] of this very utterance, which it is to continue.

        Raises:
            UserError: as :meth:`speak`.
        """
        spec, context = self.speech.card.codec, self.speech.card.max_length
        frame = spec.codes_per_frame
        spoken = np.empty(0, spec.code_dtype) if spoken is None else spoken
        language = language or self.language
        words = require_speakable(text, language, trained=self.speech.card.languages)
        tag = self.speech.card.speaker_for(speaker, has_voice=voice is not None)
        fewest, most = code_bounds(words, language, spec, sampling)
        if voice is not None:
            prompt = self.speech.prompt.prompt(f"{voice.text} {words}", np.concatenate([voice.codes, spoken]), tag)
        else:
            prompt = self.speech.prompt.prompt(words, spoken, tag)
        room = (context - len(prompt) - 1) // frame * frame
        if room < frame:
            raise UserError(
                f"the prompt alone has {len(prompt):,} tokens, the model was trained on {context:,} in all",
                remedy="split the text into shorter pieces" + (" or use a shorter voice" if voice else ""),
            )
        most = max(frame, min(room, most - len(spoken)))
        return Request(prompt, most, min(most, max(0, fewest - len(spoken))), seed, len(spoken))
