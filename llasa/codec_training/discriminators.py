"""Judges that learn to tell recordings from reconstructions, and what codec and judges pay for the verdict.

In: waveforms [clips, samples] at any rate. Out: of each judge its scores (a map: near 1 where it hears a recording,
near 0 where a codec) and the features of its inner layers, which the codec is to match. Two kinds:

- Of periods (HiFi-GAN: Kong et al. 2020, arXiv 2010.05646): the samples, folded at 2, 3, 5, 7 or 11 a row, so that
  each sees what repeats at its period. It hears a buzz.
- Of resolutions (EnCodec: Défossez et al. 2022, arXiv 2210.13438; UnivNet, arXiv 2106.07889): the complex
  spectrogram, phase and all, at window lengths of 2,048, 1,024 and 512 samples. It hears what spectral losses cannot.

Losses are of least squares (LSGAN: Mao et al. 2017, arXiv 1611.04076). Features are matched relative to their own
size (EnCodec), and all losses are means over judges and layers: their weights mean the same for any set of judges.

Cost: 32 channels, the papers' width, are 41 M parameters and for a GPU. 4 are 0.65 M: on one CPU core 1.25 s a step of
8 clips of 1 s (8 channels 2.1 s, 16 channels 5 s), which is twice the nano codec's own step.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn.functional import leaky_relu, pad
from torch.nn.utils.parametrizations import weight_norm

PERIODS = (2, 3, 5, 7, 11)
WINDOWS = (2048, 1024, 512)
OVERLAP = 4

_SLOPE = 0.1
_GAIN = 10.0
"""Brings speech to about unit scale. The same for every clip: judges hear loudness, and no sample sets the scale."""

Verdict = tuple[torch.Tensor, list[torch.Tensor]]
"""Scores of any shape, and the features of the inner layers, first to last."""


class Discriminators(nn.Module):
    """One judge for each period and each window; ``channels`` is the width of their first layers.

    Clips must be longer than half the longest window.
    """

    def __init__(
        self, channels: int = 32, *, periods: tuple[int, ...] = PERIODS, windows: tuple[int, ...] = WINDOWS
    ) -> None:
        super().__init__()
        self.judges = nn.ModuleList(PeriodDiscriminator(period, channels) for period in periods)
        self.judges.extend(SpectrogramDiscriminator(window, channels) for window in windows)

    def forward(self, waveforms: torch.Tensor) -> list[Verdict]:
        """[clips, samples] → the verdict of each judge, periods first."""
        return [judge(_GAIN * waveforms) for judge in self.judges]


class PeriodDiscriminator(nn.Module):
    """Convolutions along columns of samples that lie ``period`` apart; rows never mix (HiFi-GAN, section 2.3)."""

    def __init__(self, period: int, channels: int) -> None:
        super().__init__()
        self.period = period
        widths = [1, channels, 4 * channels, 16 * channels, 32 * channels, 32 * channels]
        layers = [
            nn.Conv2d(before, after, (5, 1), stride=(3 if index < 4 else 1, 1), padding=(2, 0))
            for index, (before, after) in enumerate(pairwise(widths))
        ]
        self.layers = nn.ModuleList(_prepared(layer) for layer in layers)
        self.score = _undecided(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, waveforms: torch.Tensor) -> Verdict:
        """[clips, samples], padded by reflection to whole rows"""
        lacking = -waveforms.shape[1] % self.period
        hidden = pad(waveforms[:, None], (0, lacking), mode="reflect").unflatten(2, (-1, self.period))
        return _judged(hidden, self.layers, self.score)


class SpectrogramDiscriminator(nn.Module):
    """Convolutions over the complex spectrogram, dilated in time, halving its frequencies (EnCodec, section 3.4)."""

    def __init__(self, window: int, channels: int) -> None:
        super().__init__()
        self.length = window
        hann = torch.hann_window(window)
        self.window: torch.Tensor
        self.register_buffer("window", hann / hann.square().sum().sqrt(), persistent=False)
        layers = [nn.Conv2d(2, channels, (3, 9), padding=(1, 4))]
        for dilation in (1, 2, 4):
            padding = (dilation, 4)
            layers.append(nn.Conv2d(channels, channels, (3, 9), (1, 2), padding, (dilation, 1)))
        layers.append(nn.Conv2d(channels, channels, (3, 3), padding=1))
        self.layers = nn.ModuleList(_prepared(layer) for layer in layers)
        self.score = _undecided(nn.Conv2d(channels, 1, (3, 3), padding=1))

    def forward(self, waveforms: torch.Tensor) -> Verdict:
        """[clips, samples]; the transform is float32's also under autocast"""
        hop = self.length // OVERLAP
        with torch.autocast(waveforms.device.type, enabled=False):
            spectrum = torch.stft(waveforms.float(), self.length, hop, window=self.window, return_complex=True)
        hidden = torch.stack([spectrum.real, spectrum.imag], dim=1).transpose(2, 3)  # [clips, 2, frames, frequencies]
        return _judged(hidden, self.layers, self.score)


def _prepared(layer: nn.Conv2d) -> nn.Module:
    """Weight-normalised, and drawn so that a signal keeps its size from layer to layer.

    From torch's own weights it would shrink to a hundredth, and the features would be the biases'; the papers' long
    trainings get over that, a short one would not.
    """
    nn.init.kaiming_normal_(layer.weight, a=_SLOPE)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return weight_norm(layer)


def _undecided(layer: nn.Conv2d) -> nn.Module:
    """A layer of scores that begins near one half, where least squares have it that cannot tell."""
    nn.init.kaiming_normal_(layer.weight, a=_SLOPE)
    with torch.no_grad():
        layer.weight.mul_(0.1)
    assert layer.bias is not None
    nn.init.constant_(layer.bias, 0.5)
    return weight_norm(layer)


def _judged(hidden: torch.Tensor, layers: nn.ModuleList, score: nn.Module) -> Verdict:
    features = []
    for layer in layers:
        hidden = leaky_relu(layer(hidden), _SLOPE)
        features.append(hidden)
    return score(hidden), features


def discriminator_loss(real: list[Verdict], fake: list[Verdict]) -> torch.Tensor:
    """The judges': 0 if they score recordings 1 and reconstructions 0; 0.5 if they cannot tell. Mean over judges."""
    terms = [
        (1 - recording.float()).square().mean() + made.float().square().mean()
        for (recording, _), (made, _) in zip(real, fake, strict=True)
    ]
    return torch.stack(terms).mean()


def adversarial_loss(fake: list[Verdict]) -> torch.Tensor:
    """The codec's: 0 if its reconstructions are scored 1. Mean over judges."""
    return torch.stack([(1 - made.float()).square().mean() for made, _ in fake]).mean()


def feature_matching_loss(real: list[Verdict], fake: list[Verdict]) -> torch.Tensor:
    """The codec's: mean distance of its features from the recording's, relative to these; mean over layers and judges.

    No gradient goes to the recording's side.
    """
    terms = []
    for (_, recording), (_, made) in zip(real, fake, strict=True):
        for wanted, found in zip(recording, made, strict=True):
            wanted = wanted.detach().float()
            terms.append((wanted - found.float()).abs().mean() / wanted.abs().mean().clamp_min(1e-6))
    return torch.stack(terms).mean()
