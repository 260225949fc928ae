"""Waveforms in and out: decode bytes, mix to mono, resample, write.

Reads whatever libsndfile reads (wav, flac, mp3, ogg, …) from bytes, so a corpus may live in a folder, a
Parquet column or a tar file alike. torchaudio and torchcodec are deliberately not used (see requirements.txt).
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np

from llasa.errors import RejectedRow

MAX_SECONDS = 3600.0
"""Longer files are refused before they are decoded, so a forged header cannot exhaust the memory."""

MAX_PEAK = 16.0
"""A float file may pass full scale (1) a little; this far beyond, it holds integers or rubbish."""


def decode_audio(source: bytes | str | Path) -> tuple[np.ndarray, int]:
    """Decode a file (by path or content) into mono float32 [samples] and its sample rate in Hz.

    Raises:
        RejectedRow: ``missing_audio``, ``empty_audio`` or ``unreadable_audio``.
    """
    import soundfile

    if isinstance(source, str | Path):
        if not os.path.isfile(source):  # unlike Path.is_file, also False for a name too long for the system
            raise RejectedRow("missing_audio", f"no file at {source}")
        if os.path.getsize(source) == 0:
            raise RejectedRow("empty_audio", f"{source} has no bytes")
        handle = source
    else:
        if not source:
            raise RejectedRow("empty_audio", "no bytes")
        handle = io.BytesIO(source)
    try:
        with soundfile.SoundFile(handle) as file:
            if file.frames == 0:
                raise RejectedRow("empty_audio", "no samples")
            if file.frames > MAX_SECONDS * file.samplerate:
                raise RejectedRow("unreadable_audio", f"the header claims {file.frames / file.samplerate:.0f} s")
            samples = file.read(dtype="float32", always_2d=True)
            rate = file.samplerate
    except (soundfile.SoundFileError, OSError, ValueError, TypeError) as error:
        # error_string leaves out what was opened: for bytes, that is an address in memory, another in every run.
        raise RejectedRow("unreadable_audio", str(getattr(error, "error_string", error))) from error
    if len(samples) == 0:
        raise RejectedRow("empty_audio", "no samples")
    waveform = samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0]
    peak = float(np.abs(waveform).max())
    if not peak <= MAX_PEAK:  # nor if it is no number
        raise RejectedRow("unreadable_audio", f"samples up to {peak:g}, where full scale is 1")
    return np.ascontiguousarray(waveform, dtype=np.float32), rate


def resample(waveform: np.ndarray, rate: int, target_rate: int) -> np.ndarray:
    """Resample mono float32 [samples] from ``rate`` to ``target_rate`` Hz with soxr at its high quality."""
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
