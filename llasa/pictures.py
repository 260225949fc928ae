"""Pictures of sound, for a person who looks at many clips: log-mel spectrograms as arrays and as PNG files.

    waveform ─► power spectrogram ─► mel filters ─► dB ─► colours ─► uint8 [height, width, 3] ─► PNG

A second is as wide in every picture, and a ruler under it has a tick every 0.1 s and a long one every second.
Cost: about 4 ms per second of audio on one CPU core, and 0.2 s to import the colours once.
"""

from __future__ import annotations

import functools
import io

import numpy as np

SECONDS_PER_PIXEL = 0.01
COLOURS = "magma"
"""Perceptually uniform, as matplotlib names it: a step in dB looks alike at any level."""
RANGE_DB = 70.0
"""From the loudest to black."""
SILENCE_DB = -20.0
"""Power of a mel band, in dB, that counts as the loudest where nothing is louder: silence stays black."""
RULER = 8
"""Pixels under the spectrogram."""
RULER_SHADE, TICK_SHADE = 0x18, 0xC8


def mel_picture(
    waveform: np.ndarray, sample_rate: int, *, height: int = 160, seconds_per_pixel: float = SECONDS_PER_PIXEL
) -> np.ndarray:
    """float32 [samples] → uint8 [height, seconds / seconds_per_pixel + 1, 3], low frequencies at the bottom.

    Colours are relative to the clip's own loudest. Column ``i`` is centred on ``i * seconds_per_pixel``. A waveform
    that is empty, or not finite, gives a picture too.
    """
    assert height > 2 * RULER, f"no room for a picture in {height} pixels"
    window = 1 << round(np.log2(0.032 * sample_rate))
    # Padded with zeros, as the narrowest mel filters would fall between two frequencies of the plain transform.
    power = spectrogram(
        np.nan_to_num(waveform, posinf=0.0, neginf=0.0), window, seconds_per_pixel * sample_rate, fft_length=4 * window
    )
    mel = power @ mel_filters(sample_rate, 4 * window, height - RULER).T
    decibels = 10 * np.log10(mel + 1e-10)
    shades = 1 + (decibels - max(decibels.max(), SILENCE_DB)) / RANGE_DB
    picture = np.full((height, len(shades), 3), RULER_SHADE, dtype=np.uint8)
    picture[: height - RULER] = colours()[np.rint(255 * np.clip(shades, 0, 1)).astype(np.uint8).T[::-1]]
    for tick in range(1 + int((len(shades) - 1) * seconds_per_pixel / 0.1 + 1e-6)):
        length = RULER if tick % 10 == 0 else RULER // 2
        picture[height - RULER : height - RULER + length, round(tick * 0.1 / seconds_per_pixel)] = TICK_SHADE
    return picture


def png_bytes(picture: np.ndarray) -> bytes:
    """uint8 [height, width, 3] → a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


@functools.cache
def colours() -> np.ndarray:
    """uint8 [256, 3], from silence to the loudest."""
    import matplotlib

    return matplotlib.colormaps[COLOURS](np.arange(256), bytes=True)[:, :3].copy()


def spectrogram(waveform: np.ndarray, window: int, hop: float, fft_length: int | None = None) -> np.ndarray:
    """float32 [samples] → power [samples // hop + 1, fft_length // 2 + 1], frame ``i`` centred on sample ``i * hop``.

    Args:
        window: length of the Hann window in samples.
        hop: in samples, not necessarily a whole number.
        fft_length: of the transform, zeros behind the window; none = the window's.
    """
    padded = np.pad(waveform.astype(np.float32, copy=False), (window // 2, window - window // 2))
    centres = np.rint(np.arange(int(len(waveform) / hop) + 1) * hop).astype(np.int64)
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[centres]
    return np.abs(np.fft.rfft(frames * np.hanning(window + 1)[:-1].astype(np.float32), n=fft_length, axis=1)) ** 2


@functools.cache
def mel_filters(sample_rate: int, fft_length: int, bands: int, lowest_hz: float = 60.0) -> np.ndarray:
    """Triangles evenly spaced on the mel scale (O'Shaughnessy, 2595 log10(1 + f/700)): [bands, fft_length // 2 + 1]."""
    lowest, highest = (2595 * np.log10(1 + hertz / 700) for hertz in (lowest_hz, sample_rate / 2))
    edges = 700 * (10 ** (np.linspace(lowest, highest, bands + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(fft_length, 1 / sample_rate)
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    return np.clip(np.minimum(rising, falling), 0, None)
