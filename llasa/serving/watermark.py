"""A mark in what the server speaks, which is not meant to be heard and says "made by a machine".

    waveform, piece by piece ─push─► spectrum ─► network ─► levels below 2 kHz, changed ─► waveform, 0.2 s behind

:class:`PerthWatermark` (`watermark=perth`) is Resemble AI's Perth: a network of convolutions reads the decibels of the
short-time spectrum below 2 kHz and says by how much each is to change; a second one, which :func:`detect` asks, tells
speech that was so changed from speech that was not. There is one mark, and it holds no message. Their weights come
inside the package `resemble-perth` (MIT licence, 34 MB). Of the package nothing else is used: its modules import
torchaudio and librosa, know 32 kHz only, and mark whole recordings. Here the network meets the same spectrum: windows
of 64 ms every 10 ms have the same bins at any rate that divides so. Nothing is resampled, and no sample waits for the
end: the stream equals the whole, to the last bits of floating point.

Cost on one core: 1 to 4 % of the time the speech takes to play; 9 MB; and 0.3 s of speech that the first sound waits
for. What it does to speech, and what the mark survives, was measured: docs/serving.md.
"""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch.nn import functional

from llasa.config import require
from llasa.errors import UserError

PACKAGE = "resemble-perth"
WEIGHTS = "perth/perth_net/pretrained/implicit/perth_net_250000.pth.tar"
SHA256 = "a15bce457ebc53ce5e6c9c3f11df78cf7ee2bf9cdab0a798902135b4c4027670"
NETWORK_RATE = 32_000  # Hz that the network was trained at
WINDOWS_PER_SECOND = 100
BINS = 128  # of 15.6 Hz that the network sees and changes: up to 2 kHz
WINDOWS_AT_ONCE = 10
"""That a stream waits for: the network takes as long for two as for ten, 3 ms."""
FLOOR, SPAN = 1e-9, 195.0  # of magnitudes; dB from that floor to the network's 1.0


class WatermarkStream(Protocol):
    """Marks one utterance while it comes. One thread at a time."""

    def push(self, piece: np.ndarray) -> np.ndarray:
        """The next samples, float32 [samples >= 0] → those that are ready, float32 [samples >= 0]."""
        ...

    def finish(self) -> np.ndarray:
        """The rest; in all there are as many samples as were pushed. Nothing may be pushed afterwards."""
        ...


class Watermark(Protocol):
    """`watermark=…` of `serve.py`: what marks speech. Loaded once; its streams may run in several threads."""

    def open_stream(self, sample_rate: int) -> WatermarkStream:
        """
        Raises:
            UserError: it cannot mark speech of this rate.
        """
        ...


class PerthWatermark:
    """See this module.

    Args:
        strength: share of the change that the network asks for; less is heard less and found less surely.

    Raises:
        UserError: the package is not installed, or holds other weights.
    """

    def __init__(self, strength: float = 1.0) -> None:
        require(0 < strength <= 1, "watermark.strength", strength, "use more than 0, up to 1")
        self.strength = strength
        self._layers = layers(read_weights(), "encoder.layers")

    def open_stream(self, sample_rate: int) -> PerthStream:
        return PerthStream(self._layers, self.strength, sample_rate)


Layers = list[tuple[torch.Tensor, torch.Tensor]]
"""Weight [out, in, width] and bias [out] of each convolution."""


def read_weights() -> dict[str, torch.Tensor]:
    """The tensors of the file in the package, whose content is known; nothing but tensors is read from it."""
    remedy = f"pip install --no-deps {PACKAGE}==1.0.1, or leave watermark= out"
    try:
        path = Path(str(metadata.distribution(PACKAGE).locate_file(WEIGHTS)))
        content = path.read_bytes()
    except (metadata.PackageNotFoundError, FileNotFoundError):
        raise UserError(f"watermark=perth takes its weights from the package {PACKAGE}", remedy=remedy) from None
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise UserError(f"the weights in the package {PACKAGE} are not those of its version 1.0.1", remedy=remedy)
    return torch.load(path, map_location="cpu", weights_only=True)["model"]


def layers(weights: dict[str, torch.Tensor], name: str) -> Layers:
    return [(weights[f"{name}.{i}.conv.weight"], weights[f"{name}.{i}.conv.bias"]) for i in range(7)]


def window_sizes(sample_rate: int) -> tuple[int, int]:
    """Samples of a window (64 ms) and from one to the next (10 ms)."""
    size, hop = round(sample_rate * 0.064), sample_rate // WINDOWS_PER_SECOND
    if size * 1000 != sample_rate * 64 or hop * WINDOWS_PER_SECOND != sample_rate or size % 2:
        raise UserError(f"watermark=perth cannot mark speech of {sample_rate} Hz", remedy="leave watermark= out")
    return size, hop


def decibels(magnitudes: torch.Tensor, sample_rate: int) -> torch.Tensor:
    """Magnitudes of a spectrum at this rate → what the network sees: 0 at the floor, 1 at 15 dB."""
    scaled = magnitudes * (NETWORK_RATE / sample_rate)  # a window with fewer samples sums to less
    return (20 * torch.log10(scaled.clamp(min=FLOOR)) - 20 * np.log10(FLOOR)) / SPAN


class PerthStream:
    """Overlapping windows in, overlapping windows out; between them the network, as a stream too."""

    def __init__(self, layers: Layers, strength: float, sample_rate: int) -> None:
        self._size, self._hop = window_sizes(sample_rate)
        self._rate, self._strength = sample_rate, strength
        self._window = torch.hann_window(self._size)
        self._network = ConvolutionStream(layers)
        self._samples = torch.zeros(self._size // 2)  # that have not left; half a window of silence comes before them
        self._silence = self._size // 2  # samples of it that have not left
        self._spectra = torch.zeros(BINS, 0, dtype=torch.complex64)  # of windows whose change the network still owes
        self._change = torch.zeros(self._size)  # of the first of `_samples` on, windows added up
        self._weight = torch.zeros(self._size)  # by which that is to be divided
        self._finished = False

    @torch.inference_mode()
    def push(self, piece: np.ndarray) -> np.ndarray:
        assert not self._finished, "the stream is finished"
        self._samples = torch.cat([self._samples, torch.from_numpy(np.array(piece, dtype=np.float32))])
        return self._advance(last=False)

    @torch.inference_mode()
    def finish(self) -> np.ndarray:
        assert not self._finished, "the stream is finished"
        self._finished = True
        rest = len(self._samples) - self._silence
        self._samples = functional.pad(self._samples, (0, self._size))  # so that windows reach over all that is left
        return self._advance(last=True)[:rest]

    def _advance(self, last: bool) -> np.ndarray:
        """The samples that every window over them has changed."""
        read = self._spectra.shape[1] * self._hop  # where the next window begins
        if not last and len(self._samples) < read + self._size + (WINDOWS_AT_ONCE - 1) * self._hop:
            return np.zeros(0, dtype=np.float32)
        windows = self._samples[read:].unfold(0, self._size, self._hop)
        spectra = torch.fft.rfft(windows * self._window)[:, :BINS].T
        levels = self._network.push(decibels(spectra.abs(), self._rate), last)
        self._spectra = torch.cat([self._spectra, spectra], dim=1)
        ready, self._spectra = self._spectra[:, : levels.shape[1]], self._spectra[:, levels.shape[1] :]
        if not ready.shape[1]:
            return np.zeros(0, dtype=np.float32)
        gain = 10 ** (self._strength * levels * (SPAN / 20)) - 1
        changes = torch.fft.irfft((ready * gain).T, n=self._size) * self._window  # bins above 2 kHz: no change
        out = len(changes) * self._hop
        self._change = functional.pad(self._change, (0, out))
        self._weight = functional.pad(self._weight, (0, out))
        for start, change in zip(range(0, out, self._hop), changes, strict=True):
            self._change[start : start + self._size] += change
            self._weight[start : start + self._size] += self._window**2
        # Only in the silence before all windows is there little weight.
        marked = self._samples[:out] + self._change[:out] / self._weight[:out].clamp(min=0.1)
        self._samples, self._change, self._weight = self._samples[out:], self._change[out:], self._weight[out:]
        skip = min(self._silence, out)
        self._silence -= skip
        return marked[skip:].numpy()


class ConvolutionStream:
    """The network, for as many windows as are there: equal to all at once, zeros at both ends of every layer."""

    def __init__(self, layers: Layers) -> None:
        self._layers = layers
        self._held = [torch.zeros(weight.shape[1], weight.shape[2] // 2) for weight, _ in layers]

    def push(self, values: torch.Tensor, last: bool) -> torch.Tensor:
        """[bins, windows >= 0] → [bins, windows >= 0], 15 windows behind unless it is the last time."""
        for i, (weight, bias) in enumerate(self._layers):
            width = weight.shape[2]
            values = torch.cat([self._held[i], values], dim=1)
            if last:
                values = functional.pad(values, (0, width // 2))
            self._held[i] = values[:, max(0, values.shape[1] - width + 1) :]
            if values.shape[1] < width:
                values = values.new_zeros(weight.shape[0], 0)
            else:
                values = functional.conv1d(values[None], weight, bias)[0]
            if i + 1 < len(self._layers):
                values = functional.leaky_relu(values)
        return values


@torch.inference_mode()
def detect(waveform: np.ndarray, sample_rate: int) -> float:
    """How surely float32 [samples] bears Perth's mark: below 0.5 not, 1 surely. For one or more seconds of speech.

    The second network reads the speech at three speeds, and asks those that it trusts most (as Perth does).

    Raises:
        UserError: the package is not installed, or a rate that has no such windows (resample it first).
    """
    size, hop = window_sizes(sample_rate)
    samples = functional.pad(torch.from_numpy(np.array(waveform, dtype=np.float32)), (size // 2, size // 2))
    spectra = torch.fft.rfft(samples.unfold(0, size, hop) * torch.hann_window(size)).T
    values = decibels(spectra.abs(), sample_rate)
    loudness = values.sum(dim=0)
    heard = (loudness > 0.05 * loudness.max()).float()[None, None]
    weights = read_weights()
    answers = []
    for name, pace in (("slow", 1.25), ("normal", 1.0), ("fast", 0.75)):
        length = int(values.shape[1] * pace)
        stretched = functional.interpolate(values[None, :BINS], size=length, mode="linear", align_corners=True)[0]
        answer = ConvolutionStream(layers(weights, f"decoder.{name}_layers")).push(stretched, last=True)
        mask = functional.interpolate(heard, size=length, mode="nearest")[0]
        answers.append((answer * mask).sum(dim=1) / mask.sum())
    trust, marked = torch.stack(answers, dim=1)
    return float((torch.softmax(trust, dim=0) * marked).sum().clamp(0, 1))
