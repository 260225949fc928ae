"""Kaldi filter-bank features, batched in torch: the input of the codec's semantic encoder.

In: waveforms at 16 kHz, in [-1, 1], float32 [batch, samples], zeros behind a clip that is shorter than the batch.
Out: float32 [batch, frames // 2, 160]. The result is that of transformers' ``SeamlessM4TFeatureExtractor``, which
loops over clips and frames in numpy on the CPU; the tests hold the two together.

Everything up to the last step is computed in float64, as numpy does there. It costs nothing beside the codec's
encoder (7 MFLOP against 73 GFLOP per second of audio), and it is what makes a clip's features independent of the
batch it stands in: a float32 sum in another order would differ in its last bits, those of float64 vanish in the
final rounding.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.audio_utils import mel_filter_bank, window_function

SAMPLE_RATE = 16_000
FRAME_LENGTH = 400
FRAME_SHIFT = 160
FFT_LENGTH = 512
NUM_MEL_BINS = 80
STRIDE = 2
"""Neighbouring frames that stand side by side in one feature vector."""

_PREEMPHASIS = 0.97
_SAMPLE_SCALE = 2.0**15  # Kaldi works on 16-bit integers
_MEL_FLOOR = 1.192092955078125e-07  # float32's machine epsilon, as in Kaldi
_VARIANCE_FLOOR = 1e-7


class KaldiFilterBank(nn.Module):
    """Log-mel features, normalised per clip and bin, two frames to a vector.

    Holds the window and the mel filters as float64 buffers: move it with ``.to(device)``, never to another dtype.
    Runs on every device that has float64 (all but Apple's MPS).
    """

    def __init__(self) -> None:
        super().__init__()
        filters = mel_filter_bank(
            num_frequency_bins=FFT_LENGTH // 2 + 1,
            num_mel_filters=NUM_MEL_BINS,
            min_frequency=20,
            max_frequency=SAMPLE_RATE // 2,
            sampling_rate=SAMPLE_RATE,
            norm=None,
            mel_scale="kaldi",
            triangularize_in_mel_space=True,
        )
        window = window_function(FRAME_LENGTH, "povey", periodic=False)
        self.mel_filters = nn.Buffer(torch.from_numpy(filters).double(), persistent=False)
        self.window = nn.Buffer(torch.from_numpy(window).double(), persistent=False)

    def forward(self, waveforms: torch.Tensor, num_vectors: torch.Tensor | None = None) -> torch.Tensor:
        """float [batch, samples] at 16 kHz → float32 [batch, frames // 2, 160].

        ``frames = (samples - 400) // 160 + 1``; the last one is dropped where their number is odd. ``num_vectors``
        int64 [batch] says how many of the vectors are each clip's own, all if it is None: mean and variance are
        taken over these alone, and the others are 0.

        Raises:
            ValueError: another number of dimensions, or fewer than the 560 samples of two frames (one frame
                has no variance).
        """
        if waveforms.ndim != 2 or waveforms.shape[1] < FRAME_LENGTH + FRAME_SHIFT:
            raise ValueError(f"expected [batch, samples >= {FRAME_LENGTH + FRAME_SHIFT}], got {list(waveforms.shape)}")
        frames = (waveforms.double() * _SAMPLE_SCALE).unfold(1, FRAME_LENGTH, FRAME_SHIFT)
        frames = frames - frames.mean(dim=-1, keepdim=True)
        previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
        spectrum = torch.fft.rfft((frames - _PREEMPHASIS * previous) * self.window, n=FFT_LENGTH)
        power = spectrum.real.square() + spectrum.imag.square()
        log_mel = (power @ self.mel_filters).clamp_min(_MEL_FLOOR).log()  # [batch, frames, 80]

        count = torch.full_like(log_mel[:, :1, :1], log_mel.shape[1])
        if num_vectors is not None:
            count = STRIDE * num_vectors[:, None, None].double()
        own = torch.arange(log_mel.shape[1], device=log_mel.device)[:, None] < count  # [batch, frames, 1]
        shifted = (log_mel - log_mel[:, :1]) * own  # by the first frame, so that what never changes becomes exactly 0
        centred = (shifted - shifted.sum(dim=1, keepdim=True) / count) * own
        variance = centred.square().sum(dim=1, keepdim=True) / (count - 1)
        features = (centred / (variance + _VARIANCE_FLOOR).sqrt()).float()
        pairs = features.shape[1] // STRIDE
        return features[:, : pairs * STRIDE].reshape(len(features), pairs, STRIDE * NUM_MEL_BINS)
