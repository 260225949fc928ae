"""What a reconstruction costs: its distance from the original in several spectra, and the shape of its latents.

In: float32 waveforms [clips, samples], estimate and target. Out: scalars, smaller is better. No phase is compared;
overlapping frames of many lengths leave little freedom in it, and the discriminators judge the rest.

- ``mel``: multi-scale mel loss (Kumar et al. 2023, "DAC", arXiv 2306.06546): seven window lengths, 32 to 2,048
  samples, with 5 to 320 mel bands; the mean distance in decades.
- ``stft``: multi-resolution STFT loss (Yamamoto et al. 2020, "Parallel WaveGAN", arXiv 1910.11480): spectral
  convergence plus the mean distance in nepers, of every frequency alike.

Both spectra are of the scale of the samples whatever the window's length: a tone or a hiss of amplitude a gives
magnitudes of about a. So ``epsilon`` is a loudness: what lies far below it counts as silence. It is added, not a
floor, which would pass no gradient to an estimate that is still silent.

Cost: a tenth of a training step of the nano codec; see ``SpectralLosses``.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers.audio_utils import mel_filter_bank

MEL_BANDS = {32: 5, 64: 10, 128: 20, 256: 40, 512: 80, 1024: 160, 2048: 320}
"""Window length in samples → mel bands, as in DAC; at 16 kHz each band holds a frequency, if barely."""
STFT_WINDOWS = (256, 512, 1024, 2048)
OVERLAP = 4
"""Windows over each sample."""
EPSILON = 1e-4

LATENT_MEAN = -0.2
LATENT_SPREAD = 1.2
"""Where normally distributed latents use the four levels about alike: after two tanh, values are rounded apart at
-0.81, -0.24 and 0.41. A spread of 0.9 would make it exactly alike; at 1.2 fewer values stand near a boundary."""


class SpectralLosses(nn.Module):
    """Mel and STFT losses at ``sample_rate`` Hz; they share the spectra of windows that both use.

    ``mel_bands`` maps window lengths to numbers of mel bands, ``stft_windows`` are those of the STFT loss (empty for
    neither); hops are a quarter of a window. Clips must be longer than half the longest window. Float32 in and out
    also under autocast. Takes 0.08 s for 8 clips of 1 s on one CPU core, forward and backward.
    """

    def __init__(
        self,
        sample_rate: int,
        *,
        mel_bands: dict[int, int] = MEL_BANDS,
        stft_windows: tuple[int, ...] = STFT_WINDOWS,
        epsilon: float = EPSILON,
    ) -> None:
        super().__init__()
        self.stft_windows = tuple(stft_windows)
        self.windows = sorted({*mel_bands, *stft_windows})
        self.epsilon = epsilon
        for length in self.windows:
            window = torch.hann_window(length)
            self.register_buffer(f"window_{length}", window / window.square().sum().sqrt(), persistent=False)
        self.mel_windows = sorted(mel_bands)
        for length, bands in mel_bands.items():
            banks = mel_filter_bank(length // 2 + 1, bands, 0.0, sample_rate / 2, sample_rate, mel_scale="slaney")
            filters = torch.from_numpy(banks)
            sums = filters.sum(dim=0)
            assert sums.min() > 0, f"{bands} mel bands are too many for a window of {length} samples"
            self.register_buffer(f"filters_{length}", (filters / sums).float(), persistent=False)

    def forward(self, estimate: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """[clips, samples] twice → {"mel": decades, "stft": convergence plus nepers}, each a mean over its windows."""
        mel, stft = [], []
        with torch.autocast(estimate.device.type, enabled=False):
            for length in self.windows:
                guess = self._magnitudes(estimate.float(), length)
                with torch.no_grad():
                    truth = self._magnitudes(target.float(), length)
                if length in self.mel_windows:
                    filters = getattr(self, f"filters_{length}")
                    mel.append((self._log(guess @ filters) - self._log(truth @ filters)).abs().mean() / math.log(10))
                if length in self.stft_windows:
                    convergence = (guess - truth).norm() / truth.norm().clamp_min(self.epsilon)
                    stft.append(convergence + (self._log(guess) - self._log(truth)).abs().mean())
        zero = estimate.new_zeros(())
        return {name: sum(parts, zero) / max(1, len(parts)) for name, parts in (("mel", mel), ("stft", stft))}

    def _magnitudes(self, waveforms: torch.Tensor, length: int) -> torch.Tensor:
        """[clips, samples] → [clips, frames, length // 2 + 1]"""
        window = getattr(self, f"window_{length}")
        spectrum = torch.stft(waveforms, length, length // OVERLAP, window=window, return_complex=True).transpose(1, 2)
        # The gradient of a magnitude at exactly 0 is not a number.
        return (spectrum.real.square() + spectrum.imag.square() + 1e-14).sqrt()

    def _log(self, magnitudes: torch.Tensor) -> torch.Tensor:
        return (magnitudes + self.epsilon).log()


def latent_penalty(latents: torch.Tensor, mean: float = LATENT_MEAN, spread: float = LATENT_SPREAD) -> torch.Tensor:
    """How far latents [clips, frames, levels] are from using every level of every dimension; 0 is best.

    The mean square, over dimensions, of what the mean lacks to ``mean`` and the standard deviation to ``spread``,
    plus the mean square of the correlations between dimensions (as Barlow Twins', arXiv 2103.03230). Statistics are
    those of the batch, so a few hundred frames are needed: of fewer, correlations look large by chance.
    """
    values = latents.flatten(0, -2).float()
    deviations = values - values.mean(dim=0)
    spreads = (deviations.square().mean(dim=0) + 1e-8).sqrt()
    normal = deviations / spreads
    correlations = normal.T @ normal / len(values)
    dimensions = values.shape[-1]
    others = correlations[~torch.eye(dimensions, dtype=torch.bool, device=values.device)]
    off = (values.mean(dim=0) - mean).square().mean() + (spreads - spread).square().mean()
    return off + (others.square().mean() if dimensions > 1 else 0.0)
