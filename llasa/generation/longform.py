"""Text of any length, spoken chunk by chunk in one voice, and joined.

    text ─split_text─► chunks ─voice, tail of the chunk before─► codes ─► waveform ─trim, fade─► LongPart, LongPart, …

A chunk continues the voice and the whole chunk before it, text and codes, so timbre and pace go on; a part of that
chunk would not do, as nothing tells which codes belong to which words. Without a voice the first chunk is the voice of
those after it. What ended badly ("length", "loop") is never continued.

Memory: one chunk at a time (``engine.batch_size`` without continuity), however long the text. Time: that of the
chunks, whose prompts are about three times as long; without continuity they are generated together.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Literal

import numpy as np
from tqdm import tqdm

from llasa.config import SamplingConfig, require
from llasa.corpus.filters import frame_powers, frame_size, loud_power
from llasa.errors import UserError
from llasa.generation.limits import require_speakable, shown
from llasa.generation.retries import generate_with_retries
from llasa.generation.synthesizer import Synthesizer
from llasa.generation.voices import Voice
from llasa.model.llama import TokenContract
from llasa.text import characters_per_second
from llasa.text.chunks import Break, Chunk, split_text
from llasa.types import Speech

UNKNOWN_PACE = 5.0
"""Characters per second of a language without rules: Mandarin has some five syllables a second (Pellegrino et al.,
"Across-language perspective on speech information rate", 2011), and chunks that are too short do no harm."""
WORTH_SHARING = 60
"""Characters of a short sentence. Room is shared with a tail only if so much is left: whole sentences come first."""
FEWEST_CHARACTERS = 10
SILENT_DB = 40.0
"""What lies so far below the level of a chunk is silence, at its ends."""
EDGE_SECONDS = 0.06
"""Silence that a chunk keeps at each end; soft consonants may hide in it."""
FADE_SECONDS = 0.008


@dataclass(frozen=True)
class Pauses:
    """Seconds of silence between two chunks, with what silence their speech has at its ends."""

    comma: float = 0.12
    sentence: float = 0.3
    paragraph: float = 0.7
    chapter: float = 1.5

    def __post_init__(self) -> None:
        for name, seconds in vars(self).items():
            require(0 <= seconds <= 60, f"pauses.{name}", seconds, "use 0 to 60 seconds")

    def seconds(self, before: Break) -> float:
        return (0.0, self.comma, self.sentence, self.paragraph, self.chapter)[before]


@dataclass(frozen=True)
class LongPart:
    """A piece of a long text's waveform, float32 [samples]; the pieces follow each other without a gap.

    ``chunk`` counts from 1 to ``num_chunks``; a pause belongs to the chunk that it stands before. ``start`` is where
    the piece begins, in seconds from the beginning. ``text`` (the spoken form), ``finish_reason`` and ``chapter`` (the
    title of the chapter that begins here) are those of speech; a pause has none.
    """

    kind: Literal["speech", "pause"]
    waveform: np.ndarray
    sample_rate: int
    start: float
    chunk: int
    num_chunks: int
    text: str = ""
    finish_reason: str | None = None
    chapter: str | None = None


def speak_long(
    synthesizer: Synthesizer,
    text: str,
    sampling: SamplingConfig,
    *,
    voice: Voice | None = None,
    seed: int = 0,
    language: str | None = None,
    speaker: str | None = None,
    pauses: Pauses | None = None,
    continuous: bool = True,
    max_characters: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[LongPart]:
    """Speak a text of any length, see :func:`~llasa.text.chunks.split_text` for its paragraphs and chapters.

    The same seed gives the same waveform. A chunk that did not end by itself is spoken as far as it went, one in
    letters that the checkpoint's languages do not have is left out; each is told in a line on standard error.

    Args:
        continuous: whether a chunk continues the one before it. If not, only a given voice or speaker holds the
            chunks together, and they are generated together.
        max_characters: of a chunk, none = :func:`chunk_characters`.
        on_progress: called with the characters that are done, and all, after each chunk.

    Raises:
        UserError: at once: nothing to say, or no room for it; before a chunk: no room for this one.
    """
    language = language or synthesizer.language
    speech = synthesizer.speech
    require_speakable(text, language, trained=speech.card.languages)
    # Settled for the whole text: a chunk that becomes the voice of others must not take its speaker's tag from them.
    speaker = speech.card.speaker_for(speaker, has_voice=voice is not None)
    settings = {"voice": voice, "language": language, "speaker": speaker}
    if max_characters is None:
        max_characters = chunk_characters(speech, text, sampling, continuous=continuous, **settings)
    require(max_characters >= FEWEST_CHARACTERS, "max_characters", max_characters, f"use {FEWEST_CHARACTERS} or more")
    chunks = _readable(split_text(text, language, max_characters), language, speech.card.languages)
    generate = _one_after_the_other if continuous else _in_batches
    spoken = generate(synthesizer, chunks, sampling, seed=seed, **settings)
    return join_speech(chunks, spoken, pauses or Pauses(), on_progress)


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


def chapters(parts: Iterable[LongPart]) -> list[tuple[str, float]]:
    """Title and start in seconds of each chapter, in order."""
    return [(part.chapter, part.start) for part in parts if part.chapter is not None]


def chapter_lines(found: Iterable[tuple[str, float]]) -> str:
    """A list of chapters as tools for audio books read it: lines of ``HH:MM:SS.mmm Title``."""
    lines = []
    for title, start in found:
        minutes, milliseconds = divmod(round(start * 1000), 60_000)
        lines.append(f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds / 1000:06.3f} {title}\n")
    return "".join(lines)


def _readable(chunks: Sequence[Chunk], language: str, trained: Sequence[str]) -> list[Chunk]:
    """The chunks but for those in foreign letters; what parted them from the text before goes on to the next."""
    readable, before, chapter = [], Break.NONE, None
    for chunk in chunks:
        before, chapter = max(before, chunk.before), chunk.chapter or chapter
        try:
            require_speakable(chunk.text, language, trained=trained)
        except UserError as mistake:
            tqdm.write(f"warning: left out: {mistake}", file=sys.stderr)
            continue
        readable.append(Chunk(chunk.text, before, chapter))
        before, chapter = Break.NONE, None
    return readable


# --- codes ------------------------------------------------------------------------------------------------------------


def _one_after_the_other(
    synthesizer: Synthesizer,
    chunks: Sequence[Chunk],
    sampling: SamplingConfig,
    *,
    voice: Voice | None,
    seed: int,
    language: str,
    speaker: str,
) -> Iterator[Speech]:
    anchor, tail = voice, None
    for index, chunk in enumerate(chunks):
        anchors = [anchor] if anchor is not None else []
        tails = [tail] if tail is not None and tail is not anchor else []
        # A voice that the user gave is never left out; where it leaves no room, the request says so.
        options = [anchors + tails, anchors, *([tails, []] if voice is None else [])]
        context = fitting_context(synthesizer.speech, chunk.text, options, language, speaker)
        settings = {"voice": context, "seed": chunk_seed(seed, index), "language": language, "speaker": speaker}
        request = synthesizer.request(chunk.text, sampling, **settings)
        generated = generate_with_retries(synthesizer.engine, synthesizer.speech, [request], sampling)
        tail = Voice(chunk.text, generated[0].codes) if generated[0].finish_reason == "stop" else None
        anchor = anchor or tail
        yield from synthesizer.decode(generated)


def _in_batches(
    synthesizer: Synthesizer,
    chunks: Sequence[Chunk],
    sampling: SamplingConfig,
    *,
    seed: int,
    **settings: Voice | str | None,
) -> Iterator[Speech]:
    engine = copy(synthesizer.engine)
    engine.progress = False  # the bar is ours
    for start in range(0, len(chunks), engine.batch_size):
        requests = [
            synthesizer.request(chunk.text, sampling, seed=chunk_seed(seed, index), **settings)
            for index, chunk in enumerate(chunks[start : start + engine.batch_size], start)
        ]
        yield from synthesizer.decode(generate_with_retries(engine, synthesizer.speech, requests, sampling))


def fitting_context(
    speech: TokenContract, text: str, options: Sequence[list[Voice]], language: str, speaker: str
) -> Voice | None:
    """The first of ``options``, joined, that leaves room to read ``text``; the last in any case."""
    needed = len(text) * speech.card.codec.tokens_per_second / _pace(language)
    for option in options:
        joined = _continued(option)
        if _room(speech, text, joined, speaker) >= needed:
            break
    return joined


def _continued(voices: list[Voice]) -> Voice | None:
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


# --- waveform ---------------------------------------------------------------------------------------------------------


def join_speech(
    chunks: Sequence[Chunk],
    spoken: Iterable[Speech],
    pauses: Pauses,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[LongPart]:
    """The chunks' speech, trimmed and faded, and the pauses between; what did not end by itself is told."""
    done, total = 0, sum(len(chunk.text) for chunk in chunks)
    num_samples, silence = 0, 0
    with tqdm(total=total, unit=" characters", desc="speaking", disable=None) as bar:
        for number, (chunk, speech) in enumerate(zip(chunks, spoken, strict=True), 1):
            if speech.finish_reason != "stop":
                why = "repeated itself" if speech.finish_reason == "loop" else "did not end"
                tqdm.write(
                    f"warning: chunk {number} of {len(chunks)} {why} and was cut at {speech.seconds:.1f} s: "
                    f"{shown(chunk.text)}",
                    file=sys.stderr,
                )
            waveform, before, after = shaped(speech.waveform, speech.sample_rate)
            place = {"sample_rate": speech.sample_rate, "chunk": number, "num_chunks": len(chunks)}
            missing = round(pauses.seconds(chunk.before) * speech.sample_rate) - silence - before
            if number > 1 and missing > 0:
                start = num_samples / speech.sample_rate
                yield LongPart("pause", np.zeros(missing, np.float32), start=start, **place)
                num_samples += missing
            start = num_samples / speech.sample_rate
            told = {"text": chunk.text, "finish_reason": speech.finish_reason, "chapter": chunk.chapter}
            yield LongPart("speech", waveform, start=start, **place, **told)
            num_samples, silence = num_samples + len(waveform), after
            done += len(chunk.text)
            bar.update(len(chunk.text))
            if on_progress is not None:
                on_progress(done, total)


def shaped(waveform: np.ndarray, rate: int) -> tuple[np.ndarray, int, int]:
    """A chunk ready to be joined: its silence cut to ``EDGE_SECONDS`` at each end, both ends faded to zero.

    The fades are raised cosines of ``FADE_SECONDS``, so no join clicks.

    Returns:
        float32 [samples], and how many samples of silence are left at its start and its end.
    """
    powers = frame_powers(waveform, rate)
    loud = np.flatnonzero(powers > loud_power(powers) * 10 ** (-SILENT_DB / 10))
    size, kept = frame_size(waveform, rate), round(EDGE_SECONDS * rate)
    first, last = (loud[0] * size, (loud[-1] + 1) * size) if len(loud) else (0, len(waveform))
    start, end = max(0, first - kept), min(len(waveform), last + kept)
    piece = waveform[start:end].astype(np.float32)
    num_fade = min(round(FADE_SECONDS * rate), len(piece) // 2)
    ramp = (np.sin(np.pi / 2 * np.arange(num_fade) / max(1, num_fade)) ** 2).astype(np.float32)
    piece[:num_fade] *= ramp
    piece[len(piece) - num_fade :] *= ramp[::-1]
    return piece, first - start, end - last
