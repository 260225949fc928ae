"""Where speech goes while it is made: a file or standard output, as WAV or raw PCM.

    float32 pieces ─► 16-bit PCM ─► output=FILE.wav, FILE.pcm, FILE.raw, or - (standard output)

- A WAV file's header is right after every piece, so a killed run leaves a file that plays to where it came; closed,
  it is byte for byte what :func:`llasa.audio.write_wav` makes of the pieces joined. It grows under its own name.
- A WAV that cannot be gone back in (standard output, a named pipe) says 0xFFFFFFFF for its lengths, as ffmpeg and
  others do: "until the end". Players and :mod:`llasa.audio` read that.
- Raw PCM is signed 16-bit little-endian, mono, without a header: `aplay -f S16_LE -r RATE`.

Every piece is written at once, and nothing is kept.
"""

from __future__ import annotations

import io
import os
import signal
import stat
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from llasa.errors import UserError

STANDARD_OUTPUT = "-"
SUFFIXES = {".wav": "wav", ".pcm": "pcm", ".raw": "pcm"}
FORMATS = ("wav", "pcm")
BYTES_PER_SAMPLE = 2
UNKNOWN_SIZE = 0xFFFFFFFF


def output_format(output: str) -> str:
    """ "wav" or "pcm", by the suffix; "wav" for standard output.

    Raises:
        UserError: another suffix.
    """
    if output == STANDARD_OUTPUT:
        return "wav"
    suffix = Path(output).suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(
            f"output={output!r} is neither WAV nor raw PCM", remedy="pass output=FILE.wav, FILE.pcm, FILE.raw or -"
        )
    return SUFFIXES[suffix]


class SpeechWriter:
    """Takes a waveform piece by piece; a context manager.

    A file is made by the first piece, or by a clean end without one: what fails before does not cost the file that
    was there. While it writes to standard output, all else that is printed there goes to standard error: one line of
    a library between two samples would be heard as noise for the rest of the stream.

    If the reader goes away (`… | head -c 1000`), :meth:`write` raises ``SystemExit(141)``: the process ends without
    a word, with the status that a shell gives a program that SIGPIPE ended.

    Args:
        output: a path, or "-".
        format: "wav" or "pcm"; None = see :func:`output_format`.

    Raises:
        UserError: the format is neither; standard output is a terminal, or closed (on entering); the output cannot be
            opened, no room is left on the device, or it fails otherwise (from :meth:`write`, and on leaving).
    """

    def __init__(self, output: str | Path, sample_rate: int, *, format: str | None = None) -> None:
        self.output, self.sample_rate = str(output), sample_rate
        self.format = format or output_format(self.output)
        if self.format not in FORMATS:
            raise UserError(f"format={self.format!r} is not valid", remedy=f"choose one of {', '.join(FORMATS)}")
        self._file: int | None = None
        self._started, self._is_file, self._num_bytes = False, False, 0

    @property
    def seconds(self) -> float:
        """Of audio, written so far."""
        return self._num_bytes / BYTES_PER_SAMPLE / self.sample_rate

    def __enter__(self) -> Self:
        if self.output == STANDARD_OUTPUT:
            if os.isatty(1):
                raise UserError("output=- would fill the terminal", remedy="pass output=FILE.wav, or pipe it on")
            sys.stdout.flush()
            with self._failures_explained():
                self._file = os.dup(1)
            os.dup2(2, 1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._begun()
        finally:
            if self._file is not None:
                if self.output == STANDARD_OUTPUT:
                    sys.stdout.flush()
                    os.dup2(self._file, 1)
                os.close(self._file)

    def write(self, waveform: np.ndarray) -> None:
        """Append float32 [samples >= 0]; a reader finds them there when this returns."""
        pcm = as_pcm(waveform)
        if not pcm:
            return
        file = self._begun()
        self._put(file, pcm)
        self._num_bytes += len(pcm)
        if self.format == "wav" and self._is_file:  # after the samples: a header must not promise what is not there
            with self._failures_explained():
                os.pwrite(file, wav_header(self._num_bytes, self.sample_rate), 0)

    def _begun(self) -> int:
        """The open file, with a header if it has one."""
        if self._file is None:
            with self._failures_explained():
                Path(self.output).parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
                self._is_file = stat.S_ISREG(os.fstat(self._file).st_mode)
        if not self._started:
            self._started = True
            if self.format == "wav":
                self._put(self._file, wav_header(0 if self._is_file else None, self.sample_rate))
        return self._file

    def _put(self, file: int, content: bytes) -> None:
        rest = memoryview(content)
        with self._failures_explained():
            while rest:  # a device that is nearly full takes a part
                rest = rest[os.write(file, rest) :]

    @contextmanager
    def _failures_explained(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise SystemExit(128 + signal.SIGPIPE) from None
        except OSError as error:
            after = f" after {self.seconds:.2f} s" if self._num_bytes else ""
            raise UserError(
                f"cannot write output={self.output}: {error.strerror}{after}",
                remedy="make room, or choose another output=",
            ) from None


def as_pcm(waveform: np.ndarray) -> bytes:
    """float32 [samples] → 16-bit little-endian, rounded and clipped by libsndfile as :func:`llasa.audio.write_wav`."""
    import soundfile

    content = io.BytesIO()
    soundfile.write(content, np.clip(waveform, -1.0, 1.0), 8000, format="RAW", subtype="PCM_16", endian="LITTLE")
    return content.getvalue()


def wav_header(num_bytes: int | None, sample_rate: int) -> bytes:
    """The 44 bytes before ``num_bytes`` of 16-bit mono samples; None = until the end, however many come.

    Beyond 4 GB (37 hours at 16 kHz) the fields cannot say it, and say the same as for None.
    """
    size = UNKNOWN_SIZE if num_bytes is None else num_bytes
    pcm, channels = 1, 1
    layout = (16, pcm, channels, sample_rate, sample_rate * BYTES_PER_SAMPLE, BYTES_PER_SAMPLE, 8 * BYTES_PER_SAMPLE)
    return (
        struct.pack("<4sI4s", b"RIFF", min(36 + size, UNKNOWN_SIZE), b"WAVE")
        + struct.pack("<4sIHHIIHH", b"fmt ", *layout)
        + struct.pack("<4sI", b"data", min(size, UNKNOWN_SIZE))
    )
