"""How a long text holds together: which chunks it is cut into, and what each of them continues.

    text ─is_long?─► split_text ─readable_chunks─► Chunk, Chunk, … ─Continuation.context─► the Voice in front of each

A chunk continues the voice and the whole chunk before it, text and codes, so timbre and pace go on; a part of that
chunk would not do, as nothing tells which codes belong to which words. Without a voice the first chunk is the voice of
those after it. What ended badly ("length", "loop") is never continued.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from llasa.config import SamplingConfig
from llasa.errors import UserError
from llasa.generation.limits import require_speakable
from llasa.generation.synthesizer import Synthesizer
from llasa.generation.voices import Voice
from llasa.model.llama import TokenContract
from llasa.text import characters_per_second
from llasa.text.chunks import Break, Chunk, split_text

UNKNOWN_PACE = 5.0
"""Characters per second of a language without rules: Mandarin has some five syllables a second (Pellegrino et al.,
"Across-language perspective on speech information rate", 2011), and chunks that are too short do no harm."""
WORTH_SHARING = 60
"""Characters of a short sentence. Room is shared with a tail only if so much is left: whole sentences come first."""
FEWEST_CHARACTERS = 10
ONE_BREATH = 1.35
"""Texts so many times longer than a chunk are still tried in one go: most voices are quicker than chunks assume."""


def is_long(
    text: str,
    synthesizer: Synthesizer,
    sampling: SamplingConfig,
    *,
    voice: Voice | None,
    speaker: str | None,
    max_characters: int | None = None,
) -> bool:
    """Whether a text has to be spoken in chunks: it has paragraphs, or is too long to be said in one go.

    A `sampling.max_seconds` below its default is a wish to cut speech short, not to have it in small pieces.
    """
    speech, language = synthesizer.speech, synthesizer.language
    require_speakable(text, language, trained=speech.card.languages)
    if max_characters is None:
        tag = speech.card.speaker_for(speaker, has_voice=voice is not None)

        def most(sampling: SamplingConfig) -> int:
            return chunk_characters(
                speech, text, sampling, language=language, voice=voice, speaker=tag, continuous=False
            )

        patient = replace(sampling, max_seconds=max(sampling.max_seconds, SamplingConfig.max_seconds))
        try:
            most(sampling)
            max_characters = int(ONE_BREATH * most(patient))
        except UserError:
            return False  # no room for chunks either
    return len(split_text(text, language, max_characters)) > 1


def chunk_characters(
    speech: TokenContract,
    text: str,
    sampling: SamplingConfig,
    *,
    language: str,
    voice: Voice | None = None,
    speaker: str = "",
    continuous: bool = True,
) -> int:
    """How many characters of ``text`` a chunk may have, so that it fits into the model beside what it continues.

    A character takes its text tokens and, at an unhurried pace (the geometric mean of the language's bounds, 11.4
    characters/s in Italian), its codes. The training length, less the template and the voice, is shared by the chunk,
    its tail and, where the first chunk has to be the voice, that; fewer share it if less than ``WORTH_SHARING``
    characters would be left. ``sampling.max_seconds`` is a limit too.

        codec, length         tokens per character          no voice        5 s of voice       not continuous
        Codec2, 1,024         1 text + 200/11.4 codes       52 (alone)      too much voice     52 = 4.6 s
        XCodec2, 2,048        0.3 text + 50/11.4 codes      141 = 12 s      183 = 16 s         228 = max_seconds

    Raises:
        UserError: not even ``FEWEST_CHARACTERS`` fit.
    """
    pace = _pace(language)
    sample = text[:10_000]
    [text_ids] = speech.prompt.text_ids([sample])
    per_character = len(text_ids) / len(sample) + speech.card.codec.tokens_per_second / pace
    room = _room(speech, "", voice, speaker)
    shares = 1 + continuous + (continuous and voice is None)
    while shares > 1 and room / shares / per_character < WORTH_SHARING:
        shares -= 1
    characters = int(min(room / shares / per_character, sampling.max_seconds * pace))
    if characters < FEWEST_CHARACTERS:
        raise UserError(
            f"of the {speech.card.max_length:,} tokens that the model was trained on, {max(0, room):,} are left for "
            f"text and speech, and sampling.max_seconds is {sampling.max_seconds:g}",
            remedy="use a shorter voice" if voice else "use a model of longer sequences",
        )
    return characters


def readable_chunks(
    text: str, language: str, max_characters: int, trained: Sequence[str]
) -> tuple[list[Chunk], list[UserError]]:
    """A text's chunks but for those in letters that no ``trained`` language has, and what is wrong with these.

    What parted such a chunk from the text before goes on to the next.
    """
    readable, mistakes = [], []
    before, chapter = Break.NONE, None
    for chunk in split_text(text, language, max_characters):
        before, chapter = max(before, chunk.before), chunk.chapter or chapter
        try:
            require_speakable(chunk.text, language, trained=trained)
        except UserError as mistake:
            mistakes.append(mistake)
            continue
        readable.append(Chunk(chunk.text, before, chapter))
        before, chapter = Break.NONE, None
    return readable, mistakes


class Continuation:
    """What the chunks of one text continue, see this module.

    Args:
        voice: never left out; where it leaves no room, the request says so. None = the first chunk's.
    """

    def __init__(self, speech: TokenContract, voice: Voice | None, language: str, speaker: str) -> None:
        self._speech, self._language, self._speaker = speech, language, speaker
        self._has_voice, self._anchor = voice is not None, voice
        self._tail: Voice | None = None

    def context(self, text: str) -> Voice | None:
        """As much of the voice and of the chunk before as leaves room to read the next chunk's ``text``."""
        anchors = [self._anchor] if self._anchor is not None else []
        tails = [self._tail] if self._tail is not None and self._tail is not self._anchor else []
        needed = len(text) * self._speech.card.codec.tokens_per_second / _pace(self._language)
        for option in [anchors + tails, anchors, *([] if self._has_voice else [tails, []])]:
            joined = _joined(option)
            if _room(self._speech, text, joined, self._speaker) >= needed:
                break
        return joined

    def heard(self, text: str, codes: np.ndarray, finish_reason: str) -> None:
        """What the next chunk became, for those after it."""
        self._tail = Voice(text, codes) if finish_reason == "stop" else None
        self._anchor = self._anchor or self._tail


def _joined(voices: list[Voice]) -> Voice | None:
    if not voices:
        return None
    return Voice(" ".join(voice.text for voice in voices), np.concatenate([voice.codes for voice in voices]))


def _room(speech: TokenContract, text: str, voice: Voice | None, speaker: str) -> int:
    """Codes that may follow this prompt, END apart; below 0 where there is no room."""
    words = text if voice is None else f"{voice.text} {text}"
    num_codes = 0 if voice is None else len(voice.codes)
    return speech.card.max_length - int(speech.prompt.lengths([words], np.array([num_codes]), [speaker])[0])


def _pace(language: str) -> float:
    bounds = characters_per_second(language)
    return UNKNOWN_PACE if bounds is None else math.sqrt(bounds[0] * bounds[1])


def chunk_seed(seed: int, index: int) -> int:
    """The seed of chunk ``index``, in [0, 2**32)."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
