"""Which utterances are fit for training: pure checks, each with a reason that is counted.

    row ─text, measures─► decode ─sample rate─► trim ─length, level, speaking rate, clipping─► resample ─► Utterance

What costs nothing comes first, and a recording is resampled only when it stays. Everything is measured on what was
recorded: resampling would round off clipped peaks, and hide the rate. A constant offset is left in the samples but
taken out of levels. Samples beyond full scale, in float files or after resampling, stay as they are; codecs of
16-bit samples clip them.

Cost for 10 s at 16 kHz on one core: text 0.02 ms, level 0.1 ms, clipping 0.06 ms, trim 0.1 ms, all in proportion to
the file's rate. Decoding is most of it: WAV 0.4 ms, FLAC 2.1 ms, MP3 2.6 ms, Vorbis 4 ms or more; resampling from
24 kHz takes 1.2 ms.
"""

from __future__ import annotations

import numpy as np

from llasa import text as texts
from llasa.audio import MAX_SECONDS, decode_audio, peak_of, resample
from llasa.config import FiltersConfig
from llasa.corpus.sources import SourceRow
from llasa.errors import RejectedRow
from llasa.text import has_speakable_text, spoken_form
from llasa.types import Utterance

FRAME_SECONDS = 0.02
LOUD = 0.95
"""The level of a recording is that of the frame which so many are not louder than: a click is not a voice."""

PAUSE_SECONDS = 1.0
"""Of a recording, around its words: not held against a speaker as slow."""

CLIPPED_RUN = 3
"""Samples; a sine of 100 Hz at 48 kHz has two so close to its peak."""

CLIPPED_TOLERANCE = 1e-4
"""Of the peak: what is left of equal samples after a change of volume in 16 bits."""


def prepare(row: SourceRow, sample_rate: int, filters: FiltersConfig) -> Utterance:
    """Check a row, decode and resample it.

    Raises:
        RejectedRow: the row is not usable, with the reason.
    """
    text = checked_text(row.text, row.language, filters)
    check_measures(row.measures, filters)
    limit = MAX_SECONDS if filters.max_seconds is None or filters.trim_silence is not None else filters.max_seconds
    waveform, rate = decode_audio(row.audio, limit)
    if filters.min_sample_rate is not None and rate < filters.min_sample_rate:
        raise RejectedRow("low_sample_rate", f"{rate} Hz, at least {filters.min_sample_rate} Hz wanted")
    if filters.trim_silence is not None:
        waveform = trimmed(waveform, rate, filters.trim_silence, filters.trim_threshold)
    check_length(len(waveform) / rate, filters)
    check_level(waveform, rate, filters)
    check_speaking_rate(text, len(waveform) / rate, row.language, filters)
    if filters.max_clipped is not None and (share := clipped_share(waveform)) > filters.max_clipped:
        raise RejectedRow("clipped", f"{share:.2%} of the samples, at most {filters.max_clipped:.2%} wanted")
    resampled = resample(waveform, rate, sample_rate)
    if len(resampled) == 0:
        raise RejectedRow("empty_audio", f"{len(waveform)} samples at {rate} Hz are none at {sample_rate} Hz")
    return Utterance(
        id=row.id,
        text=text,
        text_given=row.text,
        waveform=resampled,
        sample_rate=sample_rate,
        speaker=row.speaker,
        language=row.language,
    )


# --- what the corpus says ---------------------------------------------------------------------------------------------


def checked_text(text_given: str, language: str, filters: FiltersConfig) -> str:
    """The spoken form of a transcript.

    Raises:
        RejectedRow: ``empty_text``, or ``foreign_letters``: another script, or a text in another language.
    """
    text = spoken_form(text_given, language)
    if not has_speakable_text(text):
        raise RejectedRow("empty_text", repr(text_given[:80]))
    if filters.max_foreign_letters is not None and (foreign := texts.foreign_letters(text, language)):
        letters = [letter for letter in text.lower() if letter.isalpha()]
        share = sum(letter in foreign for letter in letters) / len(letters)
        if len(foreign) > filters.max_foreign_letters or share >= 0.5:
            raise RejectedRow(
                "foreign_letters",
                f"{foreign[:40]}: {len(foreign)} letters that {language!r} does not have, {share:.0%} of all, "
                f"at most {filters.max_foreign_letters} wanted",
            )
    return text


def check_measures(measures: dict[str, float], filters: FiltersConfig) -> None:
    """What the corpus lacks, or does not say of a row, is not checked.

    Raises:
        RejectedRow: ``low_levenshtein``, ``low_dnsmos`` or ``voted_down``.
    """
    for name, limit in (("levenshtein", filters.min_levenshtein), ("dnsmos", filters.min_dnsmos)):
        if limit is not None and name in measures and measures[name] < limit:
            raise RejectedRow(f"low_{name}", f"{measures[name]:.3g}, at least {limit:g} wanted")
    if filters.min_votes is not None and measures.keys() & {"up_votes", "down_votes"}:
        up, down = measures.get("up_votes", 0), measures.get("down_votes", 0)
        if up - down < filters.min_votes:
            raise RejectedRow("voted_down", f"{up:g} for, {down:g} against, {filters.min_votes:+d} wanted")


# --- what was recorded ------------------------------------------------------------------------------------------------


def check_length(seconds: float, filters: FiltersConfig) -> None:
    """Of a recording, or of a row that has codes already.

    Raises:
        RejectedRow: ``too_short`` or ``too_long``.
    """
    if filters.min_seconds is not None and seconds < filters.min_seconds:
        raise RejectedRow("too_short", f"{seconds:.2f} s, at least {filters.min_seconds:g} s wanted")
    if filters.max_seconds is not None and seconds > filters.max_seconds:
        raise RejectedRow("too_long", f"{seconds:.2f} s, at most {filters.max_seconds:g} s wanted")


def check_speaking_rate(text: str, seconds: float, language: str, filters: FiltersConfig) -> None:
    """Characters of the spoken form for each second of the recording: a transcript of something else, or of a part.

    For the lower bound ``PAUSE_SECONDS`` of the recording are no speech, which a clip of one word has as any other.

    Raises:
        RejectedRow: ``too_slow`` or ``too_fast``.
    """
    bounds = filters.characters_per_second
    if bounds == "auto":
        bounds = texts.characters_per_second(language)
    if bounds is None:
        return
    low, high = bounds
    is_slow = len(text) < low * (seconds - PAUSE_SECONDS)
    if is_slow or len(text) > high * seconds:
        raise RejectedRow(
            "too_slow" if is_slow else "too_fast",
            f"{len(text)} characters in {seconds:.2f} s, {len(text) / seconds:.1f} a second, "
            f"{low:g} to {high:g} wanted for {language!r}",
        )


def check_level(waveform: np.ndarray, rate: int, filters: FiltersConfig) -> None:
    """Less than a frame has no level.

    Raises:
        RejectedRow: ``silent`` by its peak, or ``too_quiet`` by its level.
    """
    if filters.min_peak is not None and (peak := peak_of(waveform)) < filters.min_peak:
        raise RejectedRow("silent", f"peak {peak:.1e}, at least {filters.min_peak:g} wanted")
    if filters.min_level is not None and len(waveform) >= FRAME_SECONDS * rate:
        level = 10 * np.log10(max(loud_power(frame_powers(waveform, rate)), 1e-20))
        if level < filters.min_level:
            raise RejectedRow("too_quiet", f"{level:.1f} dBFS, at least {filters.min_level:g} dBFS wanted")


def frame_size(waveform: np.ndarray, rate: int) -> int:
    return min(len(waveform), max(1, round(FRAME_SECONDS * rate)))


def frame_powers(waveform: np.ndarray, rate: int) -> np.ndarray:
    """Mean square of each 20 ms, float32 [frames], of the waveform less its mean. What is left at the end, less than a
    frame, is not looked at."""
    size = frame_size(waveform, rate)
    frames = (waveform - waveform.mean())[: len(waveform) // size * size].reshape(-1, size)
    return np.einsum("fs,fs->f", frames, frames) / size


def loud_power(powers: np.ndarray) -> float:
    index = int(LOUD * (len(powers) - 1))
    return float(np.partition(powers, index)[index])


def trimmed(waveform: np.ndarray, rate: int, margin: float, threshold: float) -> np.ndarray:
    """Cut what is ``threshold`` dB below the recording's level at both ends, but for ``margin`` seconds. A view.

    No samples change. The margin keeps soft consonants at the ends, which lie 30 to 40 dB below the vowels.
    """
    powers = frame_powers(waveform, rate)
    loud = np.flatnonzero(powers > loud_power(powers) * 10 ** (-threshold / 10))
    if len(loud) == 0:
        return waveform
    size, kept = frame_size(waveform, rate), round(margin * rate)
    return waveform[max(0, loud[0] * size - kept) : (loud[-1] + 1) * size + kept]


def clipped_share(waveform: np.ndarray) -> float:
    """Share of the samples that lie three or more in a row at the highest or the lowest value of the recording.

    Speech touches its peaks with one sample; cut off there, with many. The recording's own peak, not full scale,
    because the volume may have been changed since. MP3 and Vorbis bend such runs, so it is not seen in them.
    """
    highest, lowest = float(waveform.max()), float(waveform.min())
    peak = max(highest, -lowest)
    at_peak = np.zeros(len(waveform), dtype=bool)
    if highest >= peak / 2:  # else it is where a one-sided waveform rests, not where it is cut off
        at_peak |= waveform >= highest - CLIPPED_TOLERANCE * peak
    if -lowest >= peak / 2:
        at_peak |= waveform <= lowest + CLIPPED_TOLERANCE * peak
    if peak == 0 or np.count_nonzero(at_peak) < CLIPPED_RUN:
        return 0.0
    edges = np.flatnonzero(np.diff(at_peak, prepend=False, append=False))
    runs = edges[1::2] - edges[::2]
    return float(runs[runs >= CLIPPED_RUN].sum() / len(waveform))
