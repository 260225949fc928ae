"""Which utterances are fit for training: pure checks, each with a reason that is counted."""

from __future__ import annotations

import numpy as np

from llasa.audio import read_audio
from llasa.config import FiltersConfig
from llasa.corpus.sources import SourceRow
from llasa.errors import RejectedRow
from llasa.text import has_speakable_text, spoken_form
from llasa.types import Utterance


def prepare(row: SourceRow, sample_rate: int, filters: FiltersConfig) -> Utterance:
    """Decode, resample and normalise a row, and check it.

    Raises:
        RejectedRow: the row is not usable, with the reason.
    """
    text = spoken_form(row.text, row.language)
    if not has_speakable_text(text):
        raise RejectedRow("empty_text", repr(row.text[:80]))
    waveform = read_audio(row.audio, sample_rate)
    seconds = len(waveform) / sample_rate
    if seconds < filters.min_seconds:
        raise RejectedRow("too_short", f"{seconds:.2f} s, at least {filters.min_seconds:g} s wanted")
    if seconds > filters.max_seconds:
        raise RejectedRow("too_long", f"{seconds:.2f} s, at most {filters.max_seconds:g} s wanted")
    peak = float(np.abs(waveform).max())
    if peak < filters.min_peak:
        raise RejectedRow("silent", f"peak {peak:.1e}, at least {filters.min_peak:g} wanted")
    return Utterance(
        id=row.id,
        text=text,
        text_given=row.text,
        waveform=waveform,
        sample_rate=sample_rate,
        speaker=row.speaker,
        language=row.language,
    )
