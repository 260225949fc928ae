"""Text to speech with one checkpoint: spoken form, prompt, codes, waveform."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llasa.audio import read_audio
from llasa.codec.base import Codec
from llasa.config import SamplingConfig
from llasa.errors import RejectedRow, UserError
from llasa.generation.engine_hf import GeneratedCodes, TransformersEngine
from llasa.model.llama import SpeechModel
from llasa.text import has_speakable_text, spoken_form
from llasa.types import Speech


@dataclass(frozen=True)
class Voice:
    """A recording to imitate: its transcript in spoken form and its codes [num_codes]."""

    text: str
    codes: np.ndarray


class Synthesizer:
    """Speaks sentences. ``language`` decides how numbers and symbols are read.

    Args:
        codec: none = :meth:`prompt` and :meth:`generate` work, waveforms have to wait for one.
    """

    def __init__(self, speech: SpeechModel, codec: Codec | None, engine: TransformersEngine, language: str) -> None:
        self.speech, self.codec, self.engine, self.language = speech, codec, engine, language

    def load_voice(self, file: str, text: str) -> Voice:
        """Encode a recording (any rate, any number of channels) for cloning.

        Raises:
            UserError: the file cannot be read, or the transcript is empty.
        """
        assert self.codec is not None
        try:
            waveform = read_audio(Path(file), self.codec.spec.sample_rate)
        except RejectedRow as reason:
            raise UserError(f"voice={file} cannot be used ({reason})", remedy="pass a readable recording") from None
        return Voice(self._spoken(text, "voice_text"), self.codec.encode([waveform])[0])

    def speak(
        self,
        texts: Sequence[str],
        sampling: SamplingConfig,
        *,
        voice: Voice | None = None,
        seed: int = 0,
        languages: Sequence[str] | None = None,
    ) -> list[Speech]:
        """One :class:`Speech` for each text, in order. The same seed gives the same codes.

        With a voice the model continues its recording (transcript and codes in front); the result holds only what
        follows it.

        Args:
            languages: of each text, where it is not the synthesizer's.

        Raises:
            UserError: a text without a letter, or so long that no room is left for speech.
        """
        return self.decode(self.generate(texts, sampling, voice=voice, seed=seed, languages=languages))

    def generate(
        self,
        texts: Sequence[str],
        sampling: SamplingConfig,
        *,
        voice: Voice | None = None,
        seed: int = 0,
        languages: Sequence[str] | None = None,
    ) -> list[GeneratedCodes]:
        """The first half of :meth:`speak`, which needs no codec."""
        languages = languages or [self.language] * len(texts)
        prompts, limits = [], []
        for text, language in zip(texts, languages, strict=True):
            prompt, limit = self.prompt(text, sampling, voice=voice, language=language)
            prompts.append(prompt)
            limits.append(limit)
        return self.engine.generate(self.speech, prompts, sampling, limits, seed)

    def decode(self, generated: Sequence[GeneratedCodes]) -> list[Speech]:
        """The second half of :meth:`speak`: waveforms of the codes."""
        assert self.codec is not None
        rate = self.speech.card.codec.sample_rate
        waveforms = self.codec.decode([result.codes for result in generated])
        return [
            Speech(waveform, rate, result.codes, result.finish_reason, len(waveform) / rate)
            for waveform, result in zip(waveforms, generated, strict=True)
        ]

    def prompt(
        self, text: str, sampling: SamplingConfig, *, voice: Voice | None = None, language: str | None = None
    ) -> tuple[np.ndarray, int]:
        """Token ids [n] of a text's prompt, and how many codes may follow it at most.

        Raises:
            UserError: as :meth:`speak`.
        """
        spec, context = self.speech.card.codec, self.speech.card.max_length
        frame = len(spec.code_ranges)
        spoken = self._spoken(text, "text", language)
        if voice is not None:
            prompt = self.speech.prompt.prompt(f"{voice.text} {spoken}", voice.codes)
        else:
            prompt = self.speech.prompt.prompt(spoken)
        room = (context - len(prompt) - 1) // frame * frame
        if room < frame:
            raise UserError(
                f"the prompt alone has {len(prompt):,} tokens, the model was trained on {context:,} in all",
                remedy="split the text into shorter pieces" + (" or use a shorter voice" if voice else ""),
            )
        return prompt, min(room, max(1, int(sampling.max_seconds * spec.tokens_per_second / frame)) * frame)

    def _spoken(self, text: str, key: str, language: str | None = None) -> str:
        spoken = spoken_form(text, language or self.language)
        if not has_speakable_text(spoken):
            raise UserError(f"{key}={text!r} has nothing to say", remedy="pass text with letters in it")
        return spoken
