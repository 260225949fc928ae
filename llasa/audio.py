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


def decode_audio(source: bytes | str | Path) -> tuple[np.ndarray, int]:
    """Decode a file (by path or content) into mono float32 [samples] and its sample rate in Hz.

    Raises:
        RejectedRow: ``missing_audio``, ``empty_audio`` or ``unreadable_audio``.
    """
    import soundfile

    if isinstance(source, str | Path):
        if not Path(source).is_file():
            raise RejectedRow("missing_audio", f"no file at {source}")
        if Path(source).stat().st_size == 0:
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
        raise RejectedRow("unreadable_audio", str(error)) from error
    if len(samples) == 0:
        raise RejectedRow("empty_audio", "no samples")
    waveform = samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0]
    if not np.isfinite(waveform).all():
        raise RejectedRow("unreadable_audio", "samples that are not finite")
    return np.ascontiguousarray(waveform, dtype=np.float32), rate


def resample(waveform: np.ndarray, rate: int, target_rate: int) -> np.ndarray:
    """Resample mono float32 [samples] from ``rate`` to ``target_rate`` Hz with soxr at its high quality."""
    if rate == target_rate:
        return waveform
    import soxr

    return soxr.resample(waveform, rate, target_rate, quality="HQ").astype(np.float32, copy=False)


def read_audio(source: bytes | str | Path, target_rate: int) -> np.ndarray:
    """Decode, mix to mono and resample: float32 [samples] at ``target_rate`` Hz."""
    waveform, rate = decode_audio(source)
    return resample(waveform, rate, target_rate)


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
