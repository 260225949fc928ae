import io

import numpy as np
import pytest
from PIL import Image

from llasa.pictures import RULER, SECONDS_PER_PIXEL, mel_filters, mel_picture, png_bytes, spectrogram


def tone(hertz, seconds, rate):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def brightness(picture):
    """Of the spectrogram, without the ruler: [height, width]."""
    return picture[:-RULER].astype(int).sum(axis=2)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 24_000, 48_000])
def test_a_second_is_as_wide_at_every_rate(rate):
    """Fails when the hop is rounded to samples (22,050 Hz), and when the time axis is stretched to a width."""
    for seconds in (0.5, 2.0, 7.3):
        picture = mel_picture(tone(500, seconds, rate), rate)
        assert picture.shape == (160, round(seconds / SECONDS_PER_PIXEL) + 1, 3)
        assert picture.dtype == np.uint8
    assert mel_picture(tone(500, 2.0, rate), rate, height=80, seconds_per_pixel=0.02).shape == (80, 101, 3)


def test_sound_is_where_it_is_in_time_and_frequency():
    """Fails when the picture is upside down, mirrored, or its columns are not centred on their time."""
    rate = 16_000
    sound = np.concatenate([np.zeros(rate), tone(300, 0.5, rate), np.zeros(rate // 2), tone(5_000, 0.5, rate)])
    shades = brightness(mel_picture(sound.astype(np.float32), rate))
    loud = shades.max(axis=0) > 0.8 * shades.max()
    edges = np.flatnonzero(np.diff(loud.astype(int))) * SECONDS_PER_PIXEL
    assert edges[:3] == pytest.approx([1.0, 1.5, 2.0], abs=0.02)
    low, high = shades[:, 125].argmax(), shades[:, 225].argmax()
    assert high < 40 < 100 < low
    assert (shades[:, :90] == shades.min()).all(), "nothing sounds, and nothing is seen"


def test_a_tone_has_the_height_of_its_mel():
    """Fails with rows that are linear in Hz."""
    rate, bands = 16_000, 160 - RULER
    mel = lambda hertz: 2595 * np.log10(1 + hertz / 700)  # noqa: E731 - a formula
    for hertz in (200, 440, 1_000, 3_000, 7_000):
        row = brightness(mel_picture(tone(hertz, 1.0, rate), rate))[:, 50].argmax()
        share = (mel(hertz) - mel(60)) / (mel(8_000) - mel(60))
        assert bands - 1 - row == pytest.approx(share * (bands + 1) - 1, abs=1.5)


@pytest.mark.parametrize("samples", [0, 1, 2, 7, 100, 511])
def test_hardly_any_sound_gives_a_picture(samples):
    picture = mel_picture(np.ones(samples, dtype=np.float32), 16_000)
    assert picture.shape == (160, samples // 160 + 1, 3)
    assert png_bytes(picture).startswith(b"\x89PNG")


def test_silence_is_black_and_what_is_not_finite_is_silence():
    """Fails when a clip is always scaled to its own loudest, and when a nan spreads over the picture."""
    silent = brightness(mel_picture(np.zeros(8_000, dtype=np.float32), 8_000))
    assert silent.max() == silent.min() < 30
    broken = tone(500, 1.0, 8_000)
    broken[4_000], broken[4_001] = np.nan, np.inf
    shades = brightness(mel_picture(broken, 8_000))
    assert shades[:, 20].max() > 500
    assert shades[:, 80].max() > 500


def test_the_ruler_counts_tenths_and_seconds():
    strip = mel_picture(np.zeros(16_000 * 21 // 10, dtype=np.float32), 16_000)[-RULER:, :, 0]
    assert np.flatnonzero(strip[0] > 100).tolist() == list(range(0, 211, 10))
    assert np.flatnonzero(strip[-1] > 100).tolist() == [0, 100, 200]


def test_a_png_has_the_pixels():
    picture = mel_picture(tone(700, 0.6, 16_000), 16_000)
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(png_bytes(picture)))), picture)


def test_every_filter_hears_something():
    """Fails when a narrow filter falls between two frequencies of the transform: a black line in every picture."""
    for rate in (8_000, 16_000, 22_050, 24_000, 48_000):
        filters = mel_filters(rate, 4 << round(np.log2(0.032 * rate)), 152)
        assert (filters.max(axis=1) > 0.5).all()


def test_the_spectrogram_is_that_of_single_frames():
    """Against one frame after another. Fails with a window that is not centred, and with zeros in front of it."""
    sound = np.random.default_rng(0).standard_normal(1_000).astype(np.float32)
    hop = 88.2
    power = spectrogram(sound, 64, hop, fft_length=256)
    assert power.shape == (12, 129)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(64) / 64)
    for index in range(12):
        centre = round(index * hop)
        frame = [sound[i] if 0 <= i < 1_000 else 0.0 for i in range(centre - 32, centre + 32)]
        expected = np.abs(np.fft.rfft(np.concatenate([frame * hann, np.zeros(192)]))) ** 2
        np.testing.assert_allclose(power[index], expected, rtol=1e-3, atol=1e-3)
