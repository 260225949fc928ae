"""Text of any length, spoken chunk by chunk in one voice, and joined.

    text ─split_text─► chunks ─voice, tail of the chunk before─► codes ─► waveform ─trim, fade─► LongPart, LongPart, …

Which chunks, and what each of them continues: :mod:`llasa.generation.continuation`.

Memory: one chunk at a time (``engine.batch_size`` without continuity), however long the text. Time: that of the
chunks, whose prompts are about three times as long; without continuity they are generated together.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from tqdm import tqdm

from llasa.config import SamplingConfig, require
from llasa.corpus.filters import frame_powers, frame_size, loud_power
from llasa.generation.continuation import (
    FEWEST_CHARACTERS,
    Continuation,
    chunk_characters,
    chunk_seed,
    readable_chunks,
)
from llasa.generation.limits import require_speakable, shown
from llasa.generation.retries import generate_with_retries
from llasa.generation.synthesizer import Synthesizer
from llasa.generation.voices import Voice
from llasa.text.chunks import Break, Chunk
from llasa.types import Speech

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
) -> Iterator[LongPart]:
    """Speak a text of any length, see :func:`~llasa.text.chunks.split_text` for its paragraphs and chapters.

    The same seed gives the same waveform. A chunk that did not end by itself is spoken as far as it went, one in
    letters that the checkpoint's languages do not have is left out; each is told in a line on standard error.

    Args:
        continuous: whether a chunk continues the one before it. If not, only a given voice or speaker holds the
            chunks together, and they are generated together.
        max_characters: of a chunk, none = :func:`chunk_characters`.

    Raises:
        UserError: at once: nothing to say, or no room for it; before a chunk: no room for this one.
    """
    language = language or synthesizer.language
    speech = synthesizer.speech
    require_speakable(text, language, trained=speech.card.languages)
    # Settled for the whole text: a chunk that becomes the voice of others must not take its speaker's tag from them.
    speaker = speech.card.speaker_for(speaker, has_voice=voice is not None)
    if max_characters is None:
        max_characters = chunk_characters(
            speech, text, sampling, language=language, voice=voice, speaker=speaker, continuous=continuous
        )
    require(max_characters >= FEWEST_CHARACTERS, "max_characters", max_characters, f"use {FEWEST_CHARACTERS} or more")
    chunks, mistakes = readable_chunks(text, language, max_characters, speech.card.languages)
    for mistake in mistakes:
        tqdm.write(f"warning: left out: {mistake}", file=sys.stderr)
    spoken = _spoken(
        synthesizer,
        chunks,
        sampling,
        continuous=continuous,
        voice=voice,
        seed=seed,
        language=language,
        speaker=speaker,
    )
    return join_speech(chunks, spoken, pauses or Pauses())


def chapter_lines(found: Iterable[tuple[str, float]]) -> str:
    """A list of chapters as tools for audio books read it: lines of ``HH:MM:SS.mmm Title``."""
    lines = []
    for title, start in found:
        minutes, milliseconds = divmod(round(start * 1000), 60_000)
        lines.append(f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds / 1000:06.3f} {title}\n")
    return "".join(lines)


# --- codes ------------------------------------------------------------------------------------------------------------


def _spoken(
    synthesizer: Synthesizer,
    chunks: Sequence[Chunk],
    sampling: SamplingConfig,
    *,
    continuous: bool,
    voice: Voice | None,
    seed: int,
    language: str,
    speaker: str,
) -> Iterator[Speech]:
    """One after the other where each continues what was said before it, else in batches."""
    engine = copy(synthesizer.engine)
    engine.progress = False  # the bar is ours
    continuation = Continuation(synthesizer.speech, voice, language, speaker) if continuous else None
    size = 1 if continuous else engine.batch_size
    for start in range(0, len(chunks), size):
        batch = chunks[start : start + size]
        requests = []
        for index, chunk in enumerate(batch, start):
            context = voice if continuation is None else continuation.context(chunk.text)
            own = chunk_seed(seed, index)
            requests.append(
                synthesizer.request(chunk.text, sampling, voice=context, seed=own, language=language, speaker=speaker)
            )
        generated = generate_with_retries(engine, synthesizer.speech, requests, sampling)
        if continuation is not None:
            continuation.heard(batch[0].text, generated[0].codes, generated[0].finish_reason)
        yield from synthesizer.decode(generated)


# --- waveform ---------------------------------------------------------------------------------------------------------


def join_speech(chunks: Sequence[Chunk], spoken: Iterable[Speech], pauses: Pauses) -> Iterator[LongPart]:
    """The chunks' speech, trimmed and faded, and the pauses between; what did not end by itself is told."""
    total = sum(len(chunk.text) for chunk in chunks)
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
            part = partial(LongPart, sample_rate=speech.sample_rate, chunk=number, num_chunks=len(chunks))
            missing = round(pauses.seconds(chunk.before) * speech.sample_rate) - silence - before
            if number > 1 and missing > 0:
                yield part("pause", np.zeros(missing, np.float32), start=num_samples / speech.sample_rate)
                num_samples += missing
            yield part(
                "speech",
                waveform,
                start=num_samples / speech.sample_rate,
                text=chunk.text,
                finish_reason=speech.finish_reason,
                chapter=chunk.chapter,
            )
            num_samples, silence = num_samples + len(waveform), after
            bar.update(len(chunk.text))


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
