"""Spectral losses against slow twins, and the penalty that keeps the codes alive."""

from __future__ import annotations

import librosa
import numpy as np
import pytest
import torch

from llasa.codec_training.losses import LATENT_MEAN, LATENT_SPREAD, SpectralLosses, latent_penalty
from tests.codec_training.speech_like import speech_like

EPSILON = 1e-4


def _slow_magnitudes(waveform: np.ndarray, length: int) -> np.ndarray:
    """One frame after the other by the definition of the Fourier transform: [frames, length // 2 + 1]."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
    window /= np.sqrt(np.sum(window**2))
    padded = np.pad(waveform, length // 2, mode="reflect")
    wave = np.exp(-2j * np.pi * np.outer(np.arange(length // 2 + 1), np.arange(length)) / length)
    starts = range(0, len(waveform) + 1, length // 4)
    return np.stack([np.abs(wave @ (window * padded[start : start + length])) for start in starts])


@pytest.fixture(scope="module")
def clips() -> tuple[torch.Tensor, torch.Tensor]:
    return speech_like(2, 0.3, seed=0), speech_like(2, 0.3, seed=1)


def test_mel_is_its_slow_twin(clips: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Fails when window, hop, padding, bands, their scale, epsilon or the unit (decades) change."""
    estimate, target = clips
    filters = librosa.filters.mel(sr=16_000, n_fft=256, n_mels=40, norm=None)
    filters /= filters.sum(axis=1, keepdims=True)
    logs = [
        np.log10([_slow_magnitudes(clip, 256) @ filters.T + EPSILON for clip in sounds.double().numpy()])
        for sounds in clips
    ]
    slow = np.abs(logs[0] - logs[1]).mean()
    losses = SpectralLosses(16_000, mel_bands={256: 40}, stft_windows=(), epsilon=EPSILON)
    assert slow > 0.2
    assert float(losses(estimate, target)["mel"]) == pytest.approx(slow, rel=1e-4)
    assert float(losses(estimate, target)["stft"]) == 0


def test_stft_is_its_slow_twin(clips: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Fails when the convergence, its norm, the logarithm's unit (nepers) or the mean over windows change."""
    estimate, target = clips
    slow = 0.0
    for length in (64, 256):
        guess, truth = ([_slow_magnitudes(clip, length) for clip in sounds.double().numpy()] for sounds in clips)
        convergence = np.linalg.norm(np.array(guess) - truth) / np.linalg.norm(truth)
        slow += convergence + np.abs(np.log(np.array(guess) + EPSILON) - np.log(np.array(truth) + EPSILON)).mean()
    losses = SpectralLosses(16_000, mel_bands={}, stft_windows=(64, 256), epsilon=EPSILON)
    assert float(losses(estimate, target)["stft"]) == pytest.approx(slow / 2, rel=1e-4)
    assert float(losses(estimate, target)["mel"]) == 0


def test_scales_are_weighted_alike(clips: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Fails when a window shared by both losses, or one of several, counts twice or not at all."""
    both = SpectralLosses(16_000, mel_bands={256: 40, 512: 80}, stft_windows=(256, 1024))(*clips)
    mel = [
        SpectralLosses(16_000, mel_bands={n: bands}, stft_windows=())(*clips)["mel"]
        for n, bands in ((256, 40), (512, 80))
    ]
    stft = [SpectralLosses(16_000, mel_bands={}, stft_windows=(n,))(*clips)["stft"] for n in (256, 1024)]
    torch.testing.assert_close(both["mel"], sum(mel) / 2)
    torch.testing.assert_close(both["stft"], sum(stft) / 2)


def test_nothing_is_nearest_to_itself(clips: tuple[torch.Tensor, torch.Tensor]) -> None:
    losses = SpectralLosses(16_000)
    same, other = losses(clips[0], clips[0]), losses(*clips)
    assert same["mel"] == 0
    assert same["stft"] == 0
    assert other["mel"] > 0.1
    assert other["stft"] > 0.5


def test_near_silence_learns_to_speak(clips: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Fails when logarithms are clamped instead of shifted: then a silent estimate gets no gradient from them."""
    silence = (1e-6 * torch.randn(2, 4_800, generator=torch.Generator().manual_seed(0))).requires_grad_()
    SpectralLosses(16_000, stft_windows=())(silence, clips[1])["mel"].backward()
    assert silence.grad.isfinite().all()
    assert (silence.grad != 0).float().mean() > 0.99
    zeros = torch.zeros(2, 4_800, requires_grad=True)
    sum(SpectralLosses(16_000)(zeros, clips[1]).values()).backward()
    assert zeros.grad.isfinite().all()


def test_epsilon_is_a_loudness() -> None:
    """Fails when magnitudes grow with the window's length: a hiss far below epsilon is silence at every scale."""
    hiss = torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0))
    for length in (64, 2048):
        losses = SpectralLosses(16_000, mel_bands={}, stft_windows=(length,), epsilon=1e-4)
        magnitudes = losses._magnitudes(0.1 * hiss, length)
        assert float(magnitudes[:, 4:-4].square().mean().sqrt()) == pytest.approx(0.1, rel=0.05)


def test_too_many_bands_are_refused() -> None:
    with pytest.raises(AssertionError, match="too many"):
        SpectralLosses(16_000, mel_bands={64: 80})


def _latents(mean: float, spread: float, correlation: float = 0.0) -> torch.Tensor:
    normal = torch.randn(8, 2_000, 8, generator=torch.Generator().manual_seed(0))
    normal[..., 1] = correlation * normal[..., 0] + (1 - correlation**2) ** 0.5 * normal[..., 1]
    return mean + spread * normal


def test_the_penalty_is_what_its_formula_says() -> None:
    """Fails when mean, spread or correlation go unpunished, or when what is wanted is punished."""
    assert float(latent_penalty(_latents(LATENT_MEAN, LATENT_SPREAD))) < 1e-3
    assert float(latent_penalty(_latents(LATENT_MEAN + 0.5, LATENT_SPREAD))) == pytest.approx(0.25, abs=0.02)
    assert float(latent_penalty(_latents(LATENT_MEAN, LATENT_SPREAD + 0.5))) == pytest.approx(0.25, abs=0.02)
    assert float(latent_penalty(_latents(LATENT_MEAN, LATENT_SPREAD, 0.9))) == pytest.approx(0.81 * 2 / 56, abs=0.003)


def test_the_penalty_revives_collapsed_latents() -> None:
    """Fails when a dimension without spread gets no gradient that widens it."""
    latents = (1e-3 * torch.randn(400, 8, generator=torch.Generator().manual_seed(0))).requires_grad_()
    latent_penalty(latents).backward()
    wider = latents - 0.5 * len(latents) * latents.grad
    assert (wider.std(dim=0) > 10 * latents.std(dim=0)).all()
    constant = torch.zeros(10, 8, requires_grad=True)
    latent_penalty(constant).backward()
    assert constant.grad.isfinite().all()
