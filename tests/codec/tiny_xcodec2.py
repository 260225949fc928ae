"""A tiny XCodec2 with random weights: the real architecture, 65,536 codes at 50 per second, nothing downloaded.

It is no codec for listening (its weights are random), but its codes depend on the sound: see the tests.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import Xcodec2Model

PROJECTION_GAIN = 1.0
"""Standard deviation, over a noisy clip, of the values that the quantizer rounds (before its two tanh)."""


def save_tiny_xcodec2(folder: str | Path, seed: int = 0) -> Path:
    """Build the model from ``seed`` and ``save_pretrained`` it to ``folder``; the same seed gives the same weights.

    A plainly initialised model emits one and the same code throughout, because the values before the quantizer
    hardly move. So the quantizer's input projection is rescaled on a noise of changing loudness: each of its eight
    outputs then has mean 0 and standard deviation ``PROJECTION_GAIN`` over the frames.
    """
    import torch
    from transformers import Wav2Vec2BertConfig, Xcodec2Config, Xcodec2Model

    hidden_size = 64  # the decoder's 32 group norms want two channels each, or a single frame has no variance
    config = Xcodec2Config(
        hidden_size=hidden_size,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        encoder_hidden_size=1,
        downsampling_ratios=[5, 4, 4, 2, 2],
        quantization_levels=[4] * 8,
        quantization_dim=2 * hidden_size,
        semantic_model_config=Wav2Vec2BertConfig(
            hidden_size=hidden_size,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            feature_projection_input_dim=160,
            output_hidden_size=hidden_size,
        ),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Xcodec2Model(config).eval()
        noise = torch.randn(4, 100 * config.hop_length) * torch.rand(4, 100).repeat_interleave(config.hop_length, 1)
    spread_codes(model, 0.3 * noise)
    model.save_pretrained(folder)
    return Path(folder)


def spread_codes(model: Xcodec2Model, waveforms: torch.Tensor) -> None:
    """Rescale the quantizer's input projection for float32 [batch, samples] of whole frames."""
    import torch

    from llasa.codec.features import KaldiFilterBank

    projection, margin = model.quantizer.project_in, model.config.hop_length // 2
    inputs = []
    hook = projection.register_forward_hook(lambda module, args, output: inputs.append(output))
    with torch.inference_mode():
        features = KaldiFilterBank()(torch.nn.functional.pad(waveforms, (margin, margin)))
        model.encode(waveforms[:, None], input_features=features)
    hook.remove()
    values = inputs[0].flatten(0, 1)  # [frames, 8]
    with torch.no_grad():
        scale = PROJECTION_GAIN / values.std(dim=0)
        projection.weight.mul_(scale[:, None])
        projection.bias.sub_(values.mean(dim=0)).mul_(scale)
