"""The mark: it is there, it changes nothing else, and a stream gets the same as a whole utterance."""

from importlib import metadata

import numpy as np
import pytest
import soxr
import torch

from llasa.corpus.espeak import synthesize
from llasa.entry import compose_config
from llasa.errors import UserError
from llasa.serving import watermark
from llasa.serving.watermark import BINS, ConvolutionStream, PerthStream, PerthWatermark, decibels, detect


def installed() -> bool:
    try:
        metadata.distribution(watermark.PACKAGE)
    except metadata.PackageNotFoundError:
        return False
    return True


needs_weights = pytest.mark.skipif(not installed(), reason="resemble-perth is not installed")
RATES = (8_000, 16_000, 24_000)


@pytest.fixture(scope="module")
def spoken() -> dict[int, np.ndarray]:
    """Some seconds of speech at each rate of our codecs."""
    samples, rate = synthesize("La luna è alta nel cielo e la notte è ancora lunga.", voice="it", words_per_minute=175)
    waveform = samples.astype(np.float32) / 32768
    return {wanted: soxr.resample(waveform, rate, wanted).astype(np.float32) for wanted in RATES}


def random_layers() -> watermark.Layers:
    """Of the network's form, a twentieth as wide: a change of some dB."""
    generator = torch.Generator().manual_seed(0)
    widths = [(12, BINS, 1), *[(12, 12, 7)] * 5, (BINS, 12, 1)]
    layers = [(torch.randn(w, generator=generator) / (w[1] * w[2]) ** 0.5, 0.1 * torch.ones(w[0])) for w in widths]
    return [*layers[:-1], (layers[-1][0] / 50, layers[-1][1] / 50)]


def in_pieces(stream: watermark.WatermarkStream, waveform: np.ndarray, size: int) -> np.ndarray:
    pieces = [stream.push(waveform[start : start + size]) for start in range(0, len(waveform), size)]
    return np.concatenate([*pieces, stream.finish()])


def naive_mark(layers: watermark.Layers, strength: float, waveform: np.ndarray, rate: int) -> np.ndarray:
    """The whole at once, window by window: the slow twin of :class:`PerthStream`."""
    size, hop = round(0.064 * rate), rate // 100
    padded = np.pad(waveform, (size // 2, 2 * size))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    starts = range(0, len(waveform) + size // 2 + 1, hop)
    spectra = np.stack([np.fft.rfft(padded[start : start + size] * window)[:BINS] for start in starts], axis=1)
    values = decibels(torch.from_numpy(np.abs(spectra)).float(), rate)
    for number, (weight, bias) in enumerate(layers):
        values = torch.nn.functional.conv1d(values[None], weight, bias, padding=weight.shape[2] // 2)[0]
        values = torch.nn.functional.leaky_relu(values) if number < 6 else values
    changed = spectra * (10 ** (strength * values.numpy().astype(np.float64) * 195 / 20) - 1)
    change, weights = np.zeros(len(padded)), np.zeros(len(padded))
    for column, start in enumerate(starts):
        change[start : start + size] += np.fft.irfft(changed[:, column], n=size) * window
        weights[start : start + size] += window**2
    inside = slice(size // 2, size // 2 + len(waveform))
    return waveform + change[inside] / weights[inside]


@pytest.mark.parametrize("rate", RATES)
def test_stream_equals_the_naive_whole(spoken, rate):
    """Fails when the network's stream forgets a window, or a sample leaves before all windows changed it."""
    waveform, layers = spoken[rate][: 2 * rate], random_layers()
    expected = naive_mark(layers, 0.5, waveform, rate)
    assert np.abs(expected - waveform).max() > 0.01  # it is changed at all
    for size in (len(waveform), 3001, 160):
        marked = in_pieces(PerthStream(layers, 0.5, rate), waveform, size)
        assert marked.dtype == np.float32
        np.testing.assert_allclose(marked, expected, atol=2e-6)


@pytest.mark.parametrize("length", [0, 1, 79, 80, 81, 512, 1000, 5000])
def test_as_many_samples_come_out_as_go_in(length):
    """Fails when the silence before or after the utterance is not taken off again."""
    waveform = np.random.default_rng(0).normal(0, 0.1, length).astype(np.float32)
    assert len(in_pieces(PerthStream(random_layers(), 1.0, 8000), waveform, 300)) == length


def test_samples_wait_a_third_of_a_second_at_most():
    """Fails when a stream keeps what it could give."""
    stream = PerthStream(random_layers(), 1.0, 16_000)
    given, least = 0, []
    for _ in range(100):
        given += len(stream.push(np.zeros(320, dtype=np.float32)))
        least.append(given)
    assert 100 * 320 - given <= 0.335 * 16_000
    assert max(np.diff(least)) <= 0.1 * 16_000  # and none comes in a rush


def test_network_as_a_stream_pads_every_layer():
    """Fails when a layer's edges are padded with what another layer's zeros became."""
    layers, values = random_layers(), torch.randn(BINS, 40, generator=torch.Generator().manual_seed(1))
    whole = ConvolutionStream(layers).push(values, last=True)
    assert whole.shape == (BINS, 40)
    stream = ConvolutionStream(layers)
    parts = [stream.push(values[:, i : i + 3], last=False) for i in range(0, 39, 3)]
    assert [part.shape[1] for part in parts[:6]] == [0, 0, 0, 0, 0, 3]
    parts.append(stream.push(values[:, 39:], last=True))
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rate", [*RATES, 32_000])
def test_network_meets_the_levels_of_its_training_at_any_rate(rate):
    """Fails without the factor for the rate. A tone of amplitude 0.5 stands at 256 in a window of 2,048: 48.2 dB."""
    size, _ = watermark.window_sizes(rate)
    tone = 0.5 * torch.sin(2 * torch.pi * 500 / rate * torch.arange(size))
    peak = torch.fft.rfft(tone * torch.hann_window(size)).abs().max()
    assert float(decibels(peak, rate)) == pytest.approx((180 + 48.2) / 195, abs=0.001)


@needs_weights
@pytest.mark.parametrize("rate", RATES)
def test_mark_is_found_and_below_2_khz(spoken, rate):
    """Fails when other bins are changed than the network has seen."""
    waveform = spoken[rate]
    marked = in_pieces(PerthWatermark().open_stream(rate), waveform, 3200)
    assert detect(waveform, rate) < 0.3
    assert detect(marked, rate) > 0.95
    change = np.abs(np.fft.rfft(marked - waveform)) ** 2
    above = np.fft.rfftfreq(len(waveform), 1 / rate) > 2100
    assert change[above].sum() < 1e-4 * change.sum()
    assert 12 < 10 * np.log10((waveform**2).sum() / ((marked - waveform) ** 2).sum()) < 22


@needs_weights
def test_less_strength_changes_less(spoken):
    """Fails when strength is not used."""
    waveform = spoken[16_000]
    weak, strong = (
        np.abs(in_pieces(PerthWatermark(strength).open_stream(16_000), waveform, 16_000) - waveform).sum()
        for strength in (0.5, 1.0)
    )
    assert 0.4 < weak / strong < 0.6


@needs_weights
def test_option_builds_it(tmp_path):
    """Fails when conf/watermark/perth.yaml names another class or key."""
    from llasa.build import build

    config = compose_config("serve", [f"checkpoint={tmp_path}", "watermark=perth", "watermark.strength=0.5"])
    assert build(config.watermark).strength == 0.5


@pytest.mark.parametrize("rate", [11_025, 22_050, 44_100])
def test_rates_without_such_windows_are_refused(rate):
    """Fails when the window is rounded: the bins are then others than those of the training."""
    with pytest.raises(UserError, match=f"{rate} Hz"):
        PerthStream(random_layers(), 1.0, rate)


@pytest.mark.parametrize("strength", [0, -1, 1.5, float("nan")])
def test_strength_outside_its_range_is_refused(strength):
    with pytest.raises(UserError, match=r"watermark\.strength"):
        PerthWatermark(strength)


def test_without_the_package_it_says_what_it_needs(monkeypatch):
    """Fails when importlib's own error gets out."""
    monkeypatch.setattr(watermark, "PACKAGE", "resemble-perth-that-nobody-installed")
    with pytest.raises(UserError, match="pip install"):
        PerthWatermark()


def test_other_weights_are_not_loaded(monkeypatch, tmp_path):
    """Fails when the file is unpickled before its sum is compared: this one is no file of tensors at all."""
    information = tmp_path / "resemble_perth-1.0.1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: resemble-perth\nVersion: 1.0.1\n")
    (tmp_path / watermark.WEIGHTS).parent.mkdir(parents=True)
    (tmp_path / watermark.WEIGHTS).write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"not those of its version 1\.0\.1"):
        PerthWatermark()
