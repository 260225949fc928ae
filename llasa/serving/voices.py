"""The voices that clients may name and add: a folder of recordings, behind names that never become a path.

    name ─looked up in a list of the folder─► VoiceReader ─► Voice        kept in memory while its files are the same
    name, recording, text ─checked, decoded, written anew─► NAME.txt, NAME.wav

What :mod:`llasa.generation.voices` says of a voice names files of this machine. That goes to the log; the client gets a
message of ours. Memory: the codes of ``MOST_KEPT`` voices, some kilobytes each, and one recording while it is added.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import logging
import os
import re
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
import soundfile

from llasa.audio_headers import mended
from llasa.errors import RejectedRow, UserError
from llasa.generation.voice_recording import VoiceEncoder, heard, read_recording, spoken_text
from llasa.generation.voices import (
    Voice,
    VoiceInfo,
    VoiceReader,
    find_voice,
    list_voices,
    longest_voice,
    recordings_in,
)
from llasa.model.checkpoint import CheckpointCard
from llasa.paths import location
from llasa.provenance import write_atomically

MOST_VOICES = 1000
"""In the folder, before it takes no more from clients."""
MOST_KEPT = 64
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""Of a voice that a client adds."""
RESERVED = re.compile(r"default|con|prn|aux|nul|(com|lpt)[0-9]", re.IGNORECASE)
"""The model's own voice, and what Windows takes for devices."""
MOST_TEXT = 1000
"""Characters of a transcript: of 30 s, and a lot."""
MOST_RATE = 192_000
"""Hz. With ``MAX_FILE_SECONDS`` it bounds what a few bytes of a header can make us hold."""
NAMED = 20
"""Voices that a message lists."""

_log = logging.getLogger(__name__)


class Voices:
    """See this module. Any thread; one voice is read or written at a time.

    Args:
        recognizer_name: hears voices without a transcript; none = such a voice is a mistake.
        max_bytes: of a recording that is added.
    """

    def __init__(
        self, folder: str | Path, codec: VoiceEncoder, card: CheckpointCard, recognizer_name: str | None, max_bytes: int
    ) -> None:
        self._folder, self._codec, self._recognizer, self._max_bytes = folder, codec, recognizer_name, max_bytes
        self._max_seconds = longest_voice(card)
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[object, ...], Voice] = OrderedDict()
        self._listed: tuple[list[object], list[VoiceInfo]] = ([], [])

    def known(self) -> list[VoiceInfo]:
        """All usable ones by name. Every recording is decoded, when one has changed.

        Raises:
            UserError: the folder cannot be read; without a path.
        """
        with self._lock:
            files = self._files()
            if files != self._listed[0]:
                try:
                    self._listed = files, list_voices(self._folder)
                except UserError as mistake:
                    raise _unreadable(mistake) from None
            return list(self._listed[1])

    def voice(self, name: str, language: str) -> Voice:
        """A named voice's text and codes.

        Raises:
            UserError: there is none of that name, or it cannot be used; without a path.
        """
        name = name[:256]  # longer than any file's
        with self._lock:
            try:
                file = find_voice(name, self._folder)
            except UserError:
                raise UserError(f"there is no voice {name[:100]!r}", remedy=self._others(name[:100])) from None
            key = (file.name, language, *_state(file), *_state(file.with_suffix(".txt")))
            found = self._kept.pop(key, None) or self._read(name, language)
            self._kept[key] = found
            if len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
            return found

    def add(self, name: str, recording: bytes, text: str | None, language: str) -> VoiceInfo:
        """Write a voice into the folder, the recording as 16-bit WAV without the silence at its ends.

        Args:
            text: what is said in it; none = what the recogniser hears.

        Raises:
            UserError: the name, the recording or the text cannot be used, or the name is taken; nothing is written.
        """
        if not NAME.fullmatch(name) or RESERVED.fullmatch(name):
            raise UserError(
                f"{name[:100]!r} cannot be the name of a voice",
                remedy="use 1 to 64 letters (a to z, A to Z), digits, - and _, a letter or digit first",
            )
        if len(recording) > self._max_bytes:
            raise UserError(
                f"the recording has {len(recording):,} bytes, more than {self._max_bytes:,}",
                remedy="send a sentence or two, 3 to 15 s",
            )
        if text is not None and len(text) > MOST_TEXT:
            raise UserError(
                f"the text has {len(text):,} characters, more than {MOST_TEXT:,}",
                remedy="send what is said in the recording, a sentence or two",
            )
        _require_plain(recording)
        waveform, rate = read_recording(recording, "the recording", self._max_seconds)
        if text is None:
            if self._recognizer is None:
                raise UserError("the recording has no text", remedy="send what is said in it as text")
            text = heard(waveform, rate, "the recording", language, self._recognizer, "send its text as well")
        spoken_text(text, "the text", language, "send what is said in the recording")
        with self._lock:
            self._write(name, waveform, rate, text)
            try:
                self._read(name, language)  # encodes it, so that the first who names it does not wait
            except BaseException:
                self._remove(name)
                raise
        return VoiceInfo(name, len(waveform) / rate, text.strip() + "\n")

    # --- with the lock -----------------------------------------------------------------------------------------------

    def _read(self, name: str, language: str) -> Voice:
        try:
            return VoiceReader(self._codec, language, self._recognizer, self._max_seconds).named(name, self._folder)
        except UserError as mistake:
            _log.warning("a voice cannot be used: %s", mistake)
            raise UserError(
                f"the voice {name[:100]!r} cannot be used with this model", remedy="choose another one"
            ) from None

    def _others(self, name: str) -> str:
        names = ["default", *self._recordings()]
        close = difflib.get_close_matches(name, names, n=3)
        if close:
            return f"did you mean {' or '.join(close)}?"
        return f"known voices: {', '.join(names[:NAMED])}{', …' if len(names) > NAMED else ''}"

    def _files(self) -> list[object]:
        return [(file.name, *_state(file), *_state(file.with_suffix(".txt"))) for file in self._recordings().values()]

    def _recordings(self) -> dict[str, Path]:
        try:
            return recordings_in(location(self._folder))
        except UserError as mistake:
            raise _unreadable(mistake) from None

    def _write(self, name: str, waveform: np.ndarray, rate: int, text: str) -> None:
        known = self._recordings()
        if name.casefold() in {other.casefold() for other in known}:  # some file systems know no case
            raise UserError(f"there is a voice {name!r} already", remedy="choose another name")
        if len(known) >= MOST_VOICES:
            raise UserError(f"this server has {MOST_VOICES:,} voices and takes no more", remedy="ask who runs it")
        content = io.BytesIO()
        soundfile.write(content, np.clip(waveform, -1, 1), rate, format="WAV", subtype="PCM_16")
        folder = location(self._folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(error) from None
        try:
            # The transcript first and only if it is new: of two processes one has the name, and a recording that
            # others see has its text.
            transcript = open(folder / f"{name}.txt", "xb")  # noqa: SIM115 - what fails after it has to be removed
        except FileExistsError:
            raise UserError(f"there is a voice {name!r} already", remedy="choose another name") from None
        except OSError as error:
            raise _unwritable(error) from None
        try:
            with transcript:
                transcript.write((text.strip() + "\n").encode())
            write_atomically(folder / f"{name}.wav", content.getvalue())
        except OSError as error:
            self._remove(name)
            raise _unwritable(error) from None

    def _remove(self, name: str) -> None:
        """What :meth:`_write` wrote just now."""
        for suffix in (".wav", ".txt"):
            with contextlib.suppress(OSError):
                (location(self._folder) / f"{name}{suffix}").unlink()


def _unreadable(mistake: UserError) -> UserError:
    _log.warning("the voices cannot be read: %s", mistake)
    return UserError("the voices of this server cannot be read", remedy="ask who runs it")


def _unwritable(error: OSError) -> UserError:
    _log.warning("a voice cannot be written: %s", error)
    return UserError("the voice cannot be kept on this server", remedy="ask who runs it")


def _state(file: Path) -> tuple[int, int]:
    """Changes whenever the file does."""
    try:
        found = os.stat(file)
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


def _require_plain(recording: bytes) -> None:
    """Raises ``UserError`` for a recording whose header asks for more memory than speech takes."""
    try:
        with soundfile.SoundFile(io.BytesIO(mended(recording))) as file:
            rate, channels = file.samplerate, file.channels
    except (RejectedRow, soundfile.SoundFileError, OSError, ValueError, TypeError):
        return  # read_recording says what is wrong with it
    if rate > MOST_RATE or channels > 8:
        raise UserError(
            f"the recording claims {rate:,} Hz in {channels} channels", remedy="send a WAV file at 16,000 to 48,000 Hz"
        )
