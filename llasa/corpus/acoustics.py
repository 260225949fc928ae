"""How alike two recordings of one sentence sound, in numbers: mel distance, delay, envelope and level.

For proof-reading, not for listening: the distances tell the right sentence from another one or from noise. Measured
on 64 Italian telephone prompts (8 kHz, one voice) through Codec2: mel distance 3.6 to 5.1 dB to the clip's own source
and 8.1 dB or more to the nearest other one, 12 to 19 dB for garbage; envelope correlation 0.93 or more to the own
source, at most 0.72 to another. Cost: about 1 ms per second of audio.
"""

from __future__ import annotations

import functools

import numpy as np

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
    decibels = 10 * np.log10(power @ mel_filters(sample_rate, window).T + 1e-10)
    return np.maximum(decibels - decibels.max(), -RANGE_DB).astype(np.float32)


def spectrogram(waveform: np.ndarray, window: int, hop: int) -> np.ndarray:
    """float32 [samples] → power [samples // hop + 1, window // 2 + 1], frame ``i`` centred on sample ``i * hop``."""
    padded = np.pad(waveform, (window // 2, window - window // 2))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    return np.abs(np.fft.rfft(frames * np.hanning(window + 1)[:-1].astype(np.float32), axis=1)) ** 2


@functools.cache
def mel_filters(sample_rate: int, window: int) -> np.ndarray:
    """Triangles evenly spaced on the mel scale (O'Shaughnessy, 2595 log10(1 + f/700)): [BANDS, window // 2 + 1]."""
    lowest, highest = (2595 * np.log10(1 + hertz / 700) for hertz in (LOWEST_HZ, sample_rate / 2))
    edges = 700 * (10 ** (np.linspace(lowest, highest, BANDS + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(window, 1 / sample_rate)
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    return np.clip(np.minimum(rising, falling), 0, None)


def mel_distances(decoded: np.ndarray, source: np.ndarray, delays: range) -> np.ndarray:
    """Mean absolute difference in dB of two log-mel spectrograms, for each delay of ``decoded`` in frames.

    Over the frames that both have; infinite where that is less than half of the shorter one.
    """
    enough = max(1, min(len(decoded), len(source)) // 2)
    distances = np.full(len(delays), np.inf)
    for index, delay in enumerate(delays):
        ours, theirs = decoded[max(0, delay) :], source[max(0, -delay) :]
        overlap = min(len(ours), len(theirs))
        if overlap >= enough:
            distances[index] = np.abs(ours[:overlap] - theirs[:overlap]).mean()
    return distances


def envelope_correlation(decoded: np.ndarray, source: np.ndarray, delay: int) -> float:
    """Pearson's correlation of the loudness in dB of two log-mel spectrograms; 0 where one does not change."""
    ours, theirs = envelope(decoded)[max(0, delay) :], envelope(source)[max(0, -delay) :]
    overlap = min(len(ours), len(theirs))
    if overlap < 2:
        return 0.0
    ours, theirs = ours[:overlap] - ours[:overlap].mean(), theirs[:overlap] - theirs[:overlap].mean()
    scale = np.sqrt((ours**2).sum() * (theirs**2).sum())
    return float((ours * theirs).sum() / scale) if scale > 0 else 0.0


def envelope(mel: np.ndarray) -> np.ndarray:
    """Log-mel [frames, BANDS] → loudness in dB [frames]."""
    return 10 * np.log10((10 ** (mel.astype(np.float64) / 10)).sum(axis=1))


def level(waveform: np.ndarray) -> float:
    """Root mean square in dB under full scale; -100 for silence."""
    return float(10 * np.log10(np.mean(np.square(waveform, dtype=np.float64)) + 1e-10)) if len(waveform) else -100.0
