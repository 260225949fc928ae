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
from llasa.generation.engine_hf import TransformersEngine
from llasa.model.llama import SpeechModel
from llasa.text import has_speakable_text, spoken_form
from llasa.types import Speech


@dataclass(frozen=True)
class Voice:
    """A recording to imitate: its transcript in spoken form and its codes [num_codes]."""

    text: str
    codes: np.ndarray


class Synthesizer:
    """Speaks sentences. ``language`` decides how numbers and symbols are read."""

    def __init__(self, speech: SpeechModel, codec: Codec, engine: TransformersEngine, language: str) -> None:
        self.speech, self.codec, self.engine, self.language = speech, codec, engine, language

    def load_voice(self, file: str, text: str) -> Voice:
        """Encode a recording (any rate, any number of channels) for cloning.

        Raises:
            UserError: the file cannot be read, or the transcript is empty.
        """
        try:
            waveform = read_audio(Path(file), self.codec.spec.sample_rate)
        except RejectedRow as reason:
            raise UserError(f"voice={file} cannot be used ({reason})", remedy="pass a readable recording") from None
        return Voice(self._spoken(text, "voice_text"), self.codec.encode([waveform])[0])

    def speak(
        self, texts: Sequence[str], sampling: SamplingConfig, *, voice: Voice | None = None, seed: int = 0
    ) -> list[Speech]:
        """One :class:`Speech` for each text, in order. The same seed gives the same codes.

        With a voice the model continues its recording (transcript and codes in front); the result holds only what
        follows it.

        Raises:
            UserError: a text without a letter, or so long that no room is left for speech.
        """
        prompts, limits = [], []
        spec, context = self.speech.card.codec, self.speech.card.max_length
        frame = len(spec.code_ranges)
        for text in texts:
            spoken = self._spoken(text, "text")
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
            prompts.append(prompt)
            limits.append(min(room, max(1, int(sampling.max_seconds * spec.tokens_per_second / frame)) * frame))
        generated = self.engine.generate(self.speech, prompts, sampling, limits, seed)
        waveforms = self.codec.decode([result.codes for result in generated])
        return [
            Speech(waveform, spec.sample_rate, result.codes, result.finish_reason, len(waveform) / spec.sample_rate)
            for waveform, result in zip(waveforms, generated, strict=True)
        ]

    def _spoken(self, text: str, key: str) -> str:
        spoken = spoken_form(text, self.language)
        if not has_speakable_text(spoken):
            raise UserError(f"{key}={text!r} has nothing to say", remedy="pass text with letters in it")
        return spoken
