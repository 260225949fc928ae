"""The recording of a voice: read, checked as a corpus' recordings are, without silence at its ends, encoded.

    file ─decode─► level, trim, length ─► waveform ─resample, codec─► codes
                                             └─► what a recogniser hears, where there is no transcript

Silence at the ends is cut down to ``MARGIN_SECONDS``: in training a long silence stands after the last word and is
followed by END, so a prompt that ends in one looks like a sentence that is over.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llasa.audio import decode_audio, read_file, resample
from llasa.codec.base import CodecSpec
from llasa.config import FiltersConfig
from llasa.corpus.filters import check_length, check_level, check_speaking_rate, clipped_share, trimmed
from llasa.corpus.recognition import Recognizer
from llasa.errors import RejectedRow, UserError
from llasa.paths import is_local
from llasa.text import has_speakable_text, spoken_form

MAX_FILE_SECONDS = 120.0
"""Of the file with its silence; a longer one is refused before it is decoded."""

MARGIN_SECONDS = 0.1
"""Of silence that is left at both ends: what is soft there belongs to the words."""

FILTERS = FiltersConfig(max_seconds=None)


class VoiceEncoder(Protocol):
    """What of a :class:`llasa.codec.base.Codec` a voice needs."""

    @property
    def spec(self) -> CodecSpec: ...

    def encode(self, waveforms: list[np.ndarray]) -> list[np.ndarray]: ...

    def encoding_facts(self) -> dict[str, Any]: ...


def read_content(file: Path, field: str) -> bytes:
    if is_local(file) and os.path.isdir(file):
        raise UserError(f"{field} is a folder", remedy="name a recording, such as voice=FILE.wav")
    try:
        return read_file(file)
    except RejectedRow as reason:
        raise UserError(f"{field} cannot be used ({reason})", remedy="pass a readable recording") from None


def read_recording(content: bytes, field: str, max_seconds: float) -> tuple[np.ndarray, int]:
    """Mono float32 [samples] without the silence at its ends, and its rate in Hz.

    Raises:
        UserError: it cannot be decoded, is silent, too short or too long.
    """
    try:
        waveform, rate = decode_audio(content, MAX_FILE_SECONDS)
        check_level(waveform, rate, FILTERS)
        waveform = trimmed(waveform, rate, MARGIN_SECONDS, FILTERS.trim_threshold)
        check_length(len(waveform) / rate, FILTERS)
    except RejectedRow as reason:
        remedies = {
            "too_short": "record a sentence or two, 3 to 15 s",
            "too_long": f"cut it to a sentence or two, at most {max_seconds:.3g} s",
            "silent": "record it louder",
            "too_quiet": "record it louder",
        }
        remedy = remedies.get(reason.reason, "pass a readable recording (wav, flac, mp3 or ogg)")
        raise UserError(f"{field} cannot be used ({reason})", remedy=remedy) from None
    require_room(len(waveform) / rate, field, max_seconds)
    return waveform, rate


def require_room(seconds: float, field: str, max_seconds: float) -> None:
    # Codecs fill up the last frame.
    if seconds > max_seconds + 0.1:
        raise UserError(
            f"{field} has {seconds:.1f} s, which leaves the model too little room to speak",
            remedy=f"cut it to a sentence or two, at most {max_seconds:.3g} s",
        )


def heard(
    waveform: np.ndarray, rate: int, field: str, language: str, recognizer_name: str | None, otherwise: str
) -> str:
    """What a recogniser hears in it."""
    if recognizer_name is None:
        raise UserError(f"{field} has no transcript", remedy=f"{otherwise}, or let asr=MODEL hear it")
    text = Recognizer(recognizer_name).transcribe(waveform, rate, language)
    print(f"{field}: {text.strip()!r} was heard", file=sys.stderr)
    if not has_speakable_text(text):
        raise UserError(f"asr={recognizer_name} hears no words in {field}", remedy=otherwise)
    return text


def spoken_text(text: str, field: str, language: str, remedy: str) -> str:
    spoken = spoken_form(text, language)
    if not has_speakable_text(spoken):
        raise UserError(f"{field} has nothing to say", remedy=remedy)
    return spoken


def warn_of_oddities(waveform: np.ndarray, rate: int, spoken: str, field: str, language: str) -> None:
    most = FILTERS.max_clipped
    if most is not None and (share := clipped_share(waveform)) > most:
        warn(f"{field} is clipped ({share:.1%} of its samples): speech in this voice will be harsh too")
    try:
        check_speaking_rate(spoken, len(waveform) / rate, language, FILTERS)
    except RejectedRow as reason:
        warn(f"{field} may have the wrong transcript ({reason}): its words may be repeated or left out")


def encode(waveform: np.ndarray, rate: int, codec: VoiceEncoder) -> np.ndarray:
    return codec.encode([resample(waveform, rate, codec.spec.sample_rate)])[0]


def warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)
