"""Padding against none: what is rounded, clip by clip, on a model with the published depth and ratios."""

import numpy as np
import pytest
import torch
from torch import nn

from llasa.codec.features import KaldiFilterBank
from llasa.codec.padding import BUCKET_FRAMES, ClipEnds, bucket_length
from llasa.codec.xcodec2 import XCodec2
from tests.codec.deep_xcodec2 import save_deep_xcodec2

HOP = 320
TOLERANCE = 2e-5
"""Of the values before the two tanh, from -3 to 3. Padded and alone differ by 1e-5 at most, see ROUNDING_MARGIN."""


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    return XCodec2(checkpoint=str(save_deep_xcodec2(tmp_path_factory.mktemp("deep_xcodec2"))), device="cpu")


def noise(num_frames: int, seed: int = 0) -> torch.Tensor:
    """float32 [num_frames * HOP], of changing loudness, loud up to its last sample."""
    generator = torch.Generator().manual_seed(seed)
    loudness = 0.05 + 0.3 * torch.rand(num_frames, generator=generator).repeat_interleave(HOP)
    return loudness * torch.randn(num_frames * HOP, generator=generator)


def values_in_batch(codec: XCodec2, lengths: list[int], total: int, precision: str = "fp32") -> list[torch.Tensor]:
    """The values of clips of ``lengths`` frames in a batch of ``total`` frames, each cut to its own frames."""
    padded = torch.zeros(len(lengths), total * HOP)
    for row, length in enumerate(lengths):
        padded[row, : length * HOP] = noise(length, seed=row)
    with torch.inference_mode():
        values = codec._values(padded, torch.tensor(lengths), precision)
    return [row[:length] for row, length in zip(values, lengths, strict=True)]


def values_alone(codec: XCodec2, length: int, seed: int, precision: str = "fp32") -> torch.Tensor:
    with torch.inference_mode():
        return codec._values(noise(length, seed)[None], None, precision)[0]


def test_bucket_lengths():
    assert [bucket_length(frames) for frames in (1, 49, 50, 51, 99, 100, 1500)] == [50, 50, 100, 100, 100, 150, 1550]
    for frames in range(1, 2000):
        assert 1 <= bucket_length(frames) - frames <= BUCKET_FRAMES == 50


@pytest.mark.parametrize("total", [50, 100])
def test_padded_values_are_those_of_the_clip_alone(codec, total):
    shortest = max(1, total - BUCKET_FRAMES)
    lengths = [shortest, total, *range(shortest, total, 15), total - 1]
    for seed, (length, batched) in enumerate(zip(lengths, values_in_batch(codec, lengths, total), strict=True)):
        alone = values_alone(codec, length, seed)
        torch.testing.assert_close(batched, alone, rtol=0, atol=TOLERANCE)
        assert batched.shape == (length, 8)
        assert length == 1 or alone.std() > 0.3


def test_coarse_precision_does_not_hide_a_wrong_tail(codec):
    """In bf16, values of another shape differ by 0.05 rms; at the clip's end they must not differ by more."""
    (values,) = values_in_batch(codec, [71], 100, "bf16")
    error = (values - values_alone(codec, 71, 0)).square().mean(dim=1).sqrt()
    assert 1e-3 < error.mean() < 0.15
    assert error[-5:].mean() < 3 * error.mean()


def test_every_hook_is_needed(codec):
    """Takes the hooks off one layer after the other: a tail that is forgotten anywhere must change the last frames.

    In float64, where a right tail leaves a difference of 1e-14, and a wrong one 1e-8 at least. Only the first
    convolution needs no hook, as its input is the padded waveform.
    """
    hooked = codec._ends.hooked
    kinds = [type(layer).__name__ for layer in hooked.values()]
    # A block has three units of one convolution and two activations, a third activation and a strided convolution.
    assert kinds.count("Xcodec2UpSample1d") == kinds.count("Xcodec2DownSample1d") == 5 * 7 + 1
    assert kinds.count("Conv1d") == 1 + 5 * (3 + 1) + 1 + 4
    length, total = 5, 8
    waveform = noise(length).double()[None]
    features = codec.features(nn.functional.pad(waveform, (HOP // 2, HOP // 2))).double()
    padded = [nn.functional.pad(waveform, (0, 3 * HOP)), nn.functional.pad(features, (0, 0, 0, 3))]
    codec.model.double()

    def difference() -> float:
        with torch.inference_mode(), codec._ends.at(torch.tensor([length]), total):
            hidden = codec._hidden(*padded, torch.arange(total)[None] < length)
        return float((hidden[:, :length] - alone).abs().max())

    try:
        with torch.inference_mode():
            alone = codec._hidden(waveform, features, None)
        assert alone.std() > 0.3
        exact = difference()
        assert exact < 1e-12
        changes = {}
        for name, layer in hooked.items():
            hooks = dict(layer._forward_pre_hooks)
            assert len(hooks) == 1
            layer._forward_pre_hooks.clear()
            changes[name] = difference()
            layer._forward_pre_hooks.update(hooks)
    finally:
        codec.model.float()
    assert [name for name, change in changes.items() if change < 1e-9] == ["acoustic_encoder.conv1"]


def test_hooks_rest_outside_of_a_batch(codec):
    before = values_alone(codec, 40, 3)
    values_in_batch(codec, [40, 10], 50)
    assert torch.equal(values_alone(codec, 40, 3), before)


def test_refuses_layers_that_it_does_not_know():
    with pytest.raises(TypeError, match=r"part\.1: no rule for what a GroupNorm finds beyond the end of a clip"):
        ClipEnds({"part": nn.Sequential(nn.ReLU(), nn.GroupNorm(1, 4))}, [2])
    with pytest.raises(TypeError, match=r"part: no rule for what a Conv1d"):
        ClipEnds({"part": nn.Conv1d(1, 1, 3, padding=1, padding_mode="reflect")}, [2])


def test_features_are_normalised_over_the_clips_own_frames():
    filter_bank = KaldiFilterBank()
    rng = np.random.default_rng(0)
    lengths = [1, 2, 30, 49, 50, *rng.integers(1, 50, 30).tolist()]
    padded = torch.zeros(len(lengths), 52 * HOP)
    for row, length in enumerate(lengths):
        padded[row, HOP // 2 : HOP // 2 + length * HOP] = noise(length, seed=row)
    batched = filter_bank(padded, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        alone = filter_bank(padded[row : row + 1, : (length + 1) * HOP])[0]
        assert alone.shape == (length, 160)
        assert alone.std() > 0.1
        assert torch.equal(batched[row, :length], alone)
        assert not batched[row, length:].any()
