"""How alike two recordings of one sentence sound, in numbers: mel distance, delay, envelope and level.

For proof-reading, not for listening: the distances tell the right sentence from another one or from noise. Measured
on 64 Italian telephone prompts (8 kHz, one voice) through Codec2: mel distance 3.6 to 5.1 dB to the clip's own source
and 8.1 dB or more to the nearest other one, 12 to 19 dB for garbage; envelope correlation 0.93 or more to the own
source, at most 0.72 to another. Cost: about 1 ms per second of audio.
"""

from __future__ import annotations

import numpy as np

from llasa.pictures import mel_filters, spectrogram

HOP_SECONDS = 0.010
WINDOW_SECONDS = 0.032
BANDS = 40
LOWEST_HZ = 60.0
RANGE_DB = 60.0
"""Below a clip's loudest band by more than this, there is nothing to hear and nothing to compare."""


def log_mel(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """float32 [samples] → float32 [frames, BANDS] in dB under the loudest of them, ``-RANGE_DB`` at least.

    Relative to its own loudest, so that a codec's gain does not count.
    """
    window = 1 << round(np.log2(WINDOW_SECONDS * sample_rate))
    power = spectrogram(waveform, window, round(HOP_SECONDS * sample_rate))
    decibels = 10 * np.log10(power @ mel_filters(sample_rate, window, BANDS, LOWEST_HZ).T + 1e-10)
    return np.maximum(decibels - decibels.max(), -RANGE_DB).astype(np.float32)


def mel_distances(decoded: np.ndarray, source: np.ndarray, delays: range) -> np.ndarray:
    """Mean absolute difference in dB of two log-mel spectrograms, for each delay of ``decoded`` in frames.

    Over the frames that both have; infinite where that is less than half of the shorter one.
    """
    enough = max(1, min(len(decoded), len(source)) // 2)
    distances = np.full(len(delays), np.inf)
    for index, delay in enumerate(delays):
        ours, theirs = overlap(decoded, source, delay)
        if len(ours) >= enough:
            distances[index] = np.abs(ours - theirs).mean()
    return distances


def envelope_correlation(decoded: np.ndarray, source: np.ndarray, delay: int) -> float:
    """Pearson's correlation of the loudness in dB of two log-mel spectrograms; 0 where one does not change."""
    ours, theirs = overlap(envelope(decoded), envelope(source), delay)
    if len(ours) < 2:
        return 0.0
    ours, theirs = ours - ours.mean(), theirs - theirs.mean()
    scale = np.sqrt((ours**2).sum() * (theirs**2).sum())
    return float((ours * theirs).sum() / scale) if scale > 0 else 0.0


def overlap(decoded: np.ndarray, source: np.ndarray, delay: int) -> tuple[np.ndarray, np.ndarray]:
    """The frames that both have where ``decoded`` comes ``delay`` frames late."""
    ours, theirs = decoded[max(0, delay) :], source[max(0, -delay) :]
    return ours[: len(theirs)], theirs[: len(ours)]


def envelope(mel: np.ndarray) -> np.ndarray:
    """Log-mel [frames, BANDS] → loudness in dB [frames]."""
    return 10 * np.log10((10 ** (mel.astype(np.float64) / 10)).sum(axis=1))


def level(waveform: np.ndarray) -> float:
    """Root mean square in dB under full scale; -100 for silence."""
    return float(10 * np.log10(np.mean(np.square(waveform, dtype=np.float64)) + 1e-10)) if len(waveform) else -100.0
