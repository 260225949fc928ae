"""What a speech recogniser's ear makes of a reconstruction: the distance of its features from the original's.

In: float32 waveforms [clips, samples] at 16 kHz, estimate and target. Out: a scalar, smaller is better. A codec of a
few hundred bits a second gets the loud parts of a spectrum right long before it tells an f from an s, and spectral
losses hardly notice; the encoder of a recogniser was trained to hear just that ("deep feature losses": Germain et al.
2018, arXiv 1806.10522; of phones: Hsieh et al. 2020, arXiv 2010.15174). Its weights are frozen and leave no trace in
the codec but what they taught it. Who judges a codec by a recogniser should take another one.

Cost: with Whisper tiny as much as the nano codec's own step.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import WhisperModel
from transformers.audio_utils import mel_filter_bank

from llasa.errors import UserError, first_line

SAMPLE_RATE, WINDOW, HOP = 16_000, 400, 160
"""Whisper's own, in Hz and samples."""


class PhoneticLoss(nn.Module):
    """Mean distance of two sounds in every layer of a Whisper encoder, as shares of the layer's own deviation.

    Args:
        checkpoint: a Whisper model in transformers' form, a folder or a hub name.

    Raises:
        UserError: it cannot be read.
    """

    filters: torch.Tensor
    window: torch.Tensor

    def __init__(self, checkpoint: str) -> None:
        super().__init__()
        try:
            model = WhisperModel.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="sdpa")
        except (OSError, ValueError) as error:
            raise UserError(
                f"losses.recognizer={checkpoint} cannot be read: {first_line(error)}",
                remedy="name a Whisper model in transformers' form, such as openai/whisper-tiny, or its folder",
            ) from error
        self.encoder = model.encoder.requires_grad_(False).eval()
        bands = self.encoder.num_mel_bins
        filters = mel_filter_bank(WINDOW // 2 + 1, bands, 0.0, 8000.0, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
        self.register_buffer("filters", torch.from_numpy(filters).float(), persistent=False)
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)

    def forward(self, estimate: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """[clips, samples] twice, of at most 30 s → []; float32 also under autocast"""
        with torch.autocast(estimate.device.type, enabled=False):
            guesses = self.features(estimate.float())
            with torch.no_grad():
                truths = self.features(target.float())
            distances = [
                (guess - truth).abs().mean() / (truth - truth.mean(dim=(0, 1))).abs().mean()
                for guess, truth in zip(guesses, truths, strict=True)
            ]
        return torch.stack(distances).mean()

    def features(self, waveforms: torch.Tensor) -> list[torch.Tensor]:
        """[clips, samples] → after the convolutions and each layer, [clips, frames of 20 ms, width]

        Whisper pads every sound to 30 s; here the frames end with the clip, as silence would cost most of the time.
        """
        encoder = self.encoder
        hidden = nn.functional.gelu(encoder.conv1(self.log_mel(waveforms)))
        hidden = nn.functional.gelu(encoder.conv2(hidden)).transpose(1, 2)
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
        layers = [hidden]
        for layer in encoder.layers:
            hidden = layer(hidden, None)
            layers.append(hidden)
        layers[-1] = encoder.layer_norm(hidden)
        return layers

    def log_mel(self, waveforms: torch.Tensor) -> torch.Tensor:
        """[clips, samples] → Whisper's log-mel spectrogram [clips, bands, samples // 160], differentiable."""
        spectrum = torch.stft(waveforms, WINDOW, HOP, window=self.window, return_complex=True)[..., :-1]
        power = spectrum.real.square() + spectrum.imag.square()
        decades = (self.filters.T @ power).clamp_min(1e-10).log10()
        floor = decades.amax(dim=(1, 2), keepdim=True).detach() - 8.0
        return (torch.maximum(decades, floor) + 4.0) / 4.0
