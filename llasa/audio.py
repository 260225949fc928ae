"""Waveforms in and out: decode bytes, mix to mono, resample, write.

Reads whatever libsndfile reads (wav, flac, mp3, ogg, …) from bytes, so a corpus may live in a folder, a
Parquet column or a tar file alike. torchaudio and torchcodec are deliberately not used (see requirements.txt).

libsndfile forgives: of a file that was cut it decodes what is left, and of an MP3 it believes the index. So what is
in a file is compared with what the file says of itself, and a recording that lost its end is refused.

Memory: the file, and its mono samples up to ``MAX_SECONDS`` and ``MAX_SAMPLES``, whatever a header claims.
"""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import numpy as np

from llasa.audio_headers import mended
from llasa.errors import RejectedRow, UserError, first_line

MAX_SECONDS = 3600.0
"""Longer files are refused before they are decoded, so a forged header cannot exhaust the memory."""

MAX_SAMPLES = round(MAX_SECONDS * 48_000)
"""The same where the rate is forged, or very high."""

MAX_BYTES = 2**31
"""Of a file: an hour of float samples in stereo at 48 kHz has 1.4 GB."""

MAX_SAMPLE_RATE = 768_000

MAX_MISSING_SECONDS = 0.1
"""A file may lack this much of what its header claims: some writers count the header too, or lose an MP3 frame."""

MAX_PEAK = 16.0
"""A float file may pass full scale (1) a little; this far beyond, it holds integers or rubbish."""

BLOCK_SAMPLES = 2**20
"""Of all channels, decoded at a time."""


def decode_audio(source: bytes | str | Path, max_seconds: float = MAX_SECONDS) -> tuple[np.ndarray, int]:
    """Decode a file (by path, here or elsewhere, or by content) into mono float32 [samples] and its rate in Hz.

    Raises:
        RejectedRow: ``missing_audio``, ``empty_audio``, ``unreadable_audio``, ``truncated_audio`` (the file lacks
            what its header claims), or ``too_long`` (more than ``max_seconds``; it is not decoded then).
    """
    import soundfile

    content = source if isinstance(source, bytes) else read_file(source)
    if not content:
        raise RejectedRow("empty_audio", "no bytes" if isinstance(source, bytes) else f"{source} has no bytes")
    try:
        with soundfile.SoundFile(_File(mended(content))) as file:
            # After each block soundfile moves to where libsndfile is already; a FLAC stream without a length cannot.
            file.seekable = lambda: False
            if not 1 <= file.samplerate <= MAX_SAMPLE_RATE:
                raise RejectedRow("unreadable_audio", f"the header claims {file.samplerate} Hz")
            check_length(file, max_seconds)
            waveform = read_mono(file, max_seconds)
            rate = file.samplerate
    except (soundfile.SoundFileError, OSError, ValueError, TypeError) as error:
        # error_string leaves out what was opened: for bytes, that is an address in memory, another in every run.
        raise RejectedRow("unreadable_audio", str(getattr(error, "error_string", error))) from error
    if len(waveform) == 0:
        raise RejectedRow("empty_audio", "no samples")
    peak = peak_of(waveform)
    if not peak <= MAX_PEAK:  # nor if it is no number
        raise RejectedRow("unreadable_audio", f"samples up to {peak:g}, where full scale is 1")
    return waveform, rate


def read_file(path: str | Path) -> bytes:
    """The content of a file.

    Raises:
        RejectedRow: ``missing_audio``, or ``unreadable_audio`` where it cannot be opened or is beyond ``MAX_BYTES``.
        UserError: as :func:`fetch`.
    """
    if not isinstance(path, str | Path):
        return fetch(path)
    if not os.path.isfile(path):  # unlike Path.is_file, also False for a name too long for the system
        raise RejectedRow("missing_audio", f"no file at {shown(path)}")
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise RejectedRow("unreadable_audio", f"{size:,} bytes, at most {MAX_BYTES:,} wanted")
            return file.read()
    except OSError as error:
        raise RejectedRow("unreadable_audio", f"{error.strerror}: {path}") from error


def fetch(place: Path) -> bytes:
    """The content of a file that is not on this machine (a `upath.UPath`, see :mod:`llasa.paths`).

    Raises:
        RejectedRow: ``missing_audio``.
        UserError: it cannot be reached. That costs the run and not the row: with the network gone, every row.
    """
    try:
        return place.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise RejectedRow("missing_audio", f"no file at {shown(place)}") from None
    except Exception as error:  # each file system has its own
        raise UserError(
            f"cannot read {place}: {first_line(error)}",
            remedy="check the network and the rights, then run the same command again",
        ) from error


def shown(path: str | Path) -> str:
    """A path for a message: damaged metadata may hold a text of any length."""
    text = str(path)
    return text if len(text) <= 300 else f"{text[:300]}…"


class _File(io.BytesIO):
    """A damaged header may send libsndfile before the start, where ``seek`` would raise, and cffi print a traceback."""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: len(self.getbuffer())}[whence]
        return super().seek(max(0, min(start + offset, len(self.getbuffer()))))


def check_length(file, max_seconds: float) -> None:
    """Compare what a header claims with the file and with our limits, before anything is decoded."""
    for claimed, present in _CLAIMS.findall(file.extra_info):
        if int(claimed) >= _STREAMED:
            continue
        share = 1 - int(present) / max(1, int(claimed))
        lost = file.frames / file.samplerate * share / max(1 - share, 1e-9)
        if share == 1 or lost > MAX_MISSING_SECONDS:
            raise RejectedRow("truncated_audio", f"{present} bytes, where the header claims {claimed}")
    if file.frames == _UNKNOWN:
        return
    seconds = file.frames / file.samplerate
    if seconds > MAX_SECONDS or file.frames > MAX_SAMPLES:
        raise RejectedRow("unreadable_audio", f"the header claims {seconds:.0f} s")
    if seconds > max_seconds:
        raise RejectedRow("too_long", f"{seconds:.2f} s, at most {max_seconds:g} s wanted")


_CLAIMS = re.compile(r"\b(?:data|Data Size|SSND|BODY|riff|Riff size) *: (\d+) \(should be (\d+)\)")
"""In libsndfile's log of a header: the size of the chunk with the samples, and how much of it there is. Of W64 and RF64
it compares the whole file only. A WAV's or an AIFF's own size is often wrong, and of no account."""

_STREAMED = 0x7FFF0000
"""A size of 2 GB and more, up to 0xFFFFFFFF, stands for "unknown" where the writer could not go back to fill it in."""

_UNKNOWN = 2**63 - 1
"""libsndfile's number of samples for a FLAC stream that does not say."""


def read_mono(file, max_seconds: float) -> np.ndarray:
    """The mean of the channels, float32 [samples], in blocks; a file without a length is left at its limit."""
    block = max(1, BLOCK_SAMPLES // file.channels)
    limit = min(max_seconds * file.samplerate, MAX_SAMPLES)
    parts, count = [], 0
    while count < file.frames:
        samples = file.read(min(block, file.frames - count), dtype="float32", always_2d=True)
        with np.errstate(all="ignore"):  # of infinities; they are refused later
            parts.append(samples.mean(axis=1) if file.channels > 1 else samples[:, 0])
        count += len(samples)
        if len(samples) < block:
            break
        if count > limit:
            raise RejectedRow("too_long", f"more than {limit / file.samplerate:g} s")
    if file.frames != _UNKNOWN and file.frames - count > MAX_MISSING_SECONDS * file.samplerate:
        claimed, found = file.frames / file.samplerate, count / file.samplerate
        raise RejectedRow("truncated_audio", f"{found:.2f} s, where the header claims {claimed:.2f} s")
    if len(parts) == 1:
        return np.ascontiguousarray(parts[0])
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)


def peak_of(waveform: np.ndarray) -> float:
    """Largest absolute sample; nan where there is one."""
    return float(max(np.abs(waveform.max()), np.abs(waveform.min())))


# --- resampling and writing -------------------------------------------------------------------------------------------


def resample(waveform: np.ndarray, rate: int, target_rate: int) -> np.ndarray:
    """Resample mono float32 [samples] from ``rate`` to ``target_rate`` Hz with soxr at its high quality.

    A waveform near full scale may pass it a little afterwards; it is not clipped.
    """
    if rate == target_rate:
        return waveform
    import soxr

    return soxr.resample(waveform, rate, target_rate, quality="HQ").astype(np.float32, copy=False)


def read_audio(source: bytes | str | Path, target_rate: int) -> np.ndarray:
    """Decode, mix to mono and resample: float32 [samples] at ``target_rate`` Hz, at least one.

    Raises:
        RejectedRow: as :func:`decode_audio`.
    """
    waveform, rate = decode_audio(source)
    resampled = resample(waveform, rate, target_rate)
    if len(resampled) == 0:
        raise RejectedRow("empty_audio", f"{len(waveform)} samples at {rate} Hz are none at {target_rate} Hz")
    return resampled


def wav_bytes(samples: np.ndarray, sample_rate: int) -> bytes:
    """Mono samples, int16 or float32 in [-1, 1], as a WAV file of 16-bit PCM."""
    import soundfile

    content = io.BytesIO()
    soundfile.write(content, samples, sample_rate, format="WAV", subtype="PCM_16")
    return content.getvalue()


def write_wav(path: str | Path, waveform: np.ndarray, sample_rate: int) -> None:
    """Write mono float32 [samples] as 16-bit PCM. The file appears whole or not at all."""
    import soundfile

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        soundfile.write(temporary, np.clip(waveform, -1.0, 1.0), sample_rate, format="WAV", subtype="PCM_16")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
