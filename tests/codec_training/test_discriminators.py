"""Judges and their losses."""

from __future__ import annotations

import pytest
import torch

from llasa.codec_training.discriminators import (
    Discriminators,
    PeriodDiscriminator,
    SpectrogramDiscriminator,
    adversarial_loss,
    discriminator_loss,
    feature_matching_loss,
)
from tests.codec_training.speech_like import speech_like


def _verdicts(*scores: float) -> list[tuple[torch.Tensor, list[torch.Tensor]]]:
    return [(torch.full((2, 1, 3 + index, 1), score), []) for index, score in enumerate(scores)]


def test_losses_are_their_formulas() -> None:
    """Fails when recordings and reconstructions change places, or when a judge with a larger map counts more."""
    assert float(discriminator_loss(_verdicts(1, 1), _verdicts(0, 0))) == 0
    assert float(discriminator_loss(_verdicts(0, 0), _verdicts(1, 1))) == 2
    assert float(discriminator_loss(_verdicts(0.5, 0.5), _verdicts(0.5, 0.5))) == 0.5
    assert float(discriminator_loss(_verdicts(1, 0), _verdicts(0, 0))) == 0.5
    assert float(adversarial_loss(_verdicts(1, 1))) == 0
    assert float(adversarial_loss(_verdicts(0, 1))) == 0.5


def test_features_are_matched_relative_to_their_size() -> None:
    """Fails when loud layers count more, when layers are summed, or when the recording's side gets a gradient."""
    real = [torch.full((2, 4), 10.0, requires_grad=True), torch.full((3,), 0.1, requires_grad=True)]
    fake = [torch.full((2, 4), 9.0, requires_grad=True), torch.full((3,), 0.13, requires_grad=True)]
    loss = feature_matching_loss([(torch.zeros(1), real)], [(torch.zeros(1), fake)])
    assert float(loss.detach()) == pytest.approx((0.1 + 0.3) / 2, rel=1e-4)
    loss.backward()
    assert real[0].grad is None
    assert fake[0].grad is not None
    same = feature_matching_loss([(torch.zeros(1), real)], [(torch.zeros(1), real)])
    assert float(same.detach()) == 0


@pytest.mark.parametrize("length", [16_000, 15_999, 2_001])
def test_every_judge_has_a_verdict_on_any_length(length: int) -> None:
    """Fails when a length that no period divides breaks the fold."""
    judges = Discriminators(channels=2)
    verdicts = judges(speech_like(2, 1.0)[:, :length])
    assert len(verdicts) == 8
    for score, features in verdicts:
        assert score.shape[:2] == (2, 1)
        assert len(features) == 5
        assert all(torch.isfinite(feature).all() for feature in features)


def test_a_period_judge_never_mixes_rows() -> None:
    """Fails when samples are folded the other way: a change at one sample would reach other phases of the period."""
    torch.manual_seed(0)
    judge = PeriodDiscriminator(period=3, channels=2)
    waveform = speech_like(1, 0.05)
    changed = waveform.clone()
    changed[0, 3 * 100 + 1] += 0.1
    with torch.no_grad():
        differences = (judge(waveform)[1][-1] - judge(changed)[1][-1]).abs().amax(dim=(0, 1, 2))
    assert differences[1] > 0
    assert differences[0] == differences[2] == 0


def test_a_spectrogram_judge_hears_phase() -> None:
    """Fails when magnitudes alone are judged: a reversed sign would go unheard."""
    torch.manual_seed(0)
    judge = SpectrogramDiscriminator(window=512, channels=2)
    waveform = speech_like(1, 0.2)
    with torch.no_grad():
        assert (judge(waveform)[0] - judge(-waveform)[0]).abs().max() > 1e-4


def test_in_the_papers_width_they_have_the_papers_size() -> None:
    """Fails when a layer is lost: HiFi-GAN's five have 41.1 M parameters, beside EnCodec's small ones."""
    parameters = sum(parameter.numel() for parameter in Discriminators(channels=32).parameters())
    periods = sum(parameter.numel() for parameter in Discriminators(channels=32, windows=()).parameters())
    assert periods == pytest.approx(41.1e6, rel=0.01)
    assert 0.2e6 < parameters - periods < 0.5e6
    assert sum(parameter.numel() for parameter in Discriminators(channels=4).parameters()) < 1e6


def test_judges_learn_to_tell() -> None:
    """Fails when their gradient does not reach their weights, or has the wrong sign."""
    torch.manual_seed(0)
    judges = Discriminators(channels=4, periods=(3,), windows=(512,))
    optimizer = torch.optim.AdamW(judges.parameters(), lr=2e-3, betas=(0.8, 0.95))
    generator = torch.Generator().manual_seed(0)
    recordings = speech_like(4, 0.5)
    for _ in range(50):
        loss = discriminator_loss(judges(recordings), judges(_noisy(recordings, generator)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(parameter.grad.abs().max() > 0 for parameter in judges.parameters())
    unseen = speech_like(4, 0.5, seed=1)
    with torch.no_grad():
        for real, fake in zip(judges(unseen), judges(_noisy(unseen, generator)), strict=True):
            assert float(discriminator_loss([real], [fake])) < 0.4
            assert float(adversarial_loss([fake])) > float(adversarial_loss([real])) + 0.1


def _noisy(waveforms: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return waveforms + 0.2 * torch.randn(waveforms.shape, generator=generator)


def test_the_codec_is_led_towards_recordings() -> None:
    """Fails when the codec's losses pull away from the recording: a step against the gradient must be judged better."""
    torch.manual_seed(0)
    judges = Discriminators(channels=2).requires_grad_(False)
    recordings = speech_like(2, 0.5)
    with torch.no_grad():
        real = judges(recordings)
    made = (recordings + 0.02 * torch.randn(recordings.shape)).requires_grad_()
    loss = feature_matching_loss(real, judges(made))
    loss.backward()
    with torch.no_grad():
        moved = made - 1e-3 * made.grad / made.grad.square().mean().sqrt()
        assert feature_matching_loss(real, judges(moved)) < 0.99 * loss
        assert (moved - recordings).square().mean() < (made - recordings).square().mean()
