"""The batched filter bank against its slow twin, transformers' numpy loop."""

import numpy as np
import pytest
import torch
from transformers import SeamlessM4TFeatureExtractor

from llasa.codec.features import KaldiFilterBank

SAMPLE_RATE = 16_000
SECONDS = np.arange(3 * SAMPLE_RATE) / SAMPLE_RATE


@pytest.fixture(scope="module")
def filter_bank() -> KaldiFilterBank:
    return KaldiFilterBank()


def reference(waveform: np.ndarray) -> np.ndarray:
    """[samples] → [frames // 2, 160], an odd last frame dropped as in the model's own extractor for odd frames."""
    extractor = SeamlessM4TFeatureExtractor()
    outputs = extractor(waveform, sampling_rate=SAMPLE_RATE, pad_to_multiple_of=None, return_tensors="np")
    return outputs["input_features"][0]


def noise(num_samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(num_samples).astype(np.float32)


SIGNALS = {
    "noise": 0.1 * noise(48_000),
    "long": 0.1 * noise(20 * SAMPLE_RATE),
    "quiet": 1e-5 * noise(48_000),
    "clipping": np.clip(3 * noise(48_000), -1, 1),
    "half silent": np.concatenate([np.zeros(24_000), 0.1 * noise(24_000)]),
    "offset": 0.5 + 1e-3 * noise(48_000),
    "chirp": np.sin(3_000 * SECONDS**2),
    "impulse": np.eye(1, 48_000, 24_000)[0],
}


# 5e-5: the twin normalises in float32, so it is off by up to 1e-5 on values up to 12.
@pytest.mark.parametrize("name", SIGNALS)
def test_equals_the_numpy_extractor(filter_bank, name):
    waveform = SIGNALS[name].astype(np.float32)
    expected = reference(waveform)
    features = filter_bank(torch.from_numpy(waveform)[None])
    assert features.dtype == torch.float32
    assert features.shape == (1, *expected.shape)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(features[0].numpy(), expected, rtol=0, atol=5e-5)


# 1e-3: over two to six frames a bin may vary little, and its standard deviation divides the twin's float32 error.
@pytest.mark.parametrize("num_samples", [560, 561, 719, 720, 721, 879, 880, 881, 1039, 1040, 1360])
def test_equals_the_numpy_extractor_at_the_shortest_lengths(filter_bank, num_samples):
    waveform = 0.1 * noise(num_samples, seed=num_samples)
    features = filter_bank(torch.from_numpy(waveform)[None])[0]
    assert features.shape == ((1 + (num_samples - 400) // 160) // 2, 160)
    np.testing.assert_allclose(features.numpy(), reference(waveform), rtol=0, atol=1e-3)


def test_a_batch_equals_its_clips_bit_for_bit(filter_bank):
    batch = torch.from_numpy(0.1 * noise(23 * 7_040)).reshape(23, 7_040) * torch.linspace(1e-4, 3, 23)[:, None]
    batched = filter_bank(batch)
    assert len(batched.flatten(1).unique(dim=0)) == 23
    for index, clip in enumerate(batch):
        assert torch.equal(filter_bank(clip[None])[0], batched[index])


def test_silence_and_constant_offset_give_zeros(filter_bank):
    assert torch.equal(filter_bank(torch.tensor([[0.0], [0.5]]).expand(2, 3_200)), torch.zeros(2, 9, 160))


@pytest.mark.parametrize("shape", [(559,), (1, 559), (1, 1, 16_000), (2, 0)])
def test_refuses_other_shapes_and_clips_of_less_than_two_frames(filter_bank, shape):
    with pytest.raises(ValueError, match="samples >= 560"):
        filter_bank(torch.zeros(shape))
