"""An XCodec2 as deep as the published one where padding is felt, narrow, with lively random weights.

The acoustic encoder has the published depth and ratios (five blocks, 36 anti-aliased activations), the semantic one
six layers. transformers initialises biases and snakes with zeros, so a silent tail would stay silent by itself and a
forgotten tail would go unnoticed; here they are random, and so is the attention's distance embedding.
"""

from __future__ import annotations

from pathlib import Path

from tests.codec.tiny_xcodec2 import spread_codes


def save_deep_xcodec2(folder: str | Path, seed: int = 0) -> Path:
    """Build the model from ``seed`` and ``save_pretrained`` it to ``folder``; 0.8 M parameters.

    As in :func:`tests.codec.tiny_xcodec2.save_tiny_xcodec2`, the quantizer's input projection is scaled so that the
    codes vary.
    """
    import torch
    from transformers import Wav2Vec2BertConfig, Xcodec2Config, Xcodec2Model

    config = Xcodec2Config(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        encoder_hidden_size=2,
        downsampling_ratios=[2, 2, 4, 4, 5],
        quantization_levels=[4] * 8,
        quantization_dim=128,
        semantic_model_config=Wav2Vec2BertConfig(
            hidden_size=64,
            num_hidden_layers=6,
            num_attention_heads=4,
            intermediate_size=128,
            feature_projection_input_dim=160,
            output_hidden_size=64,
        ),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Xcodec2Model(config).eval().requires_grad_(False)
        for name, parameter in model.named_parameters():
            if name.startswith(("acoustic_decoder", "quantizer")):
                continue
            if "norm" in name or name.endswith((".alpha", ".beta")):
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif name.endswith("bias"):
                parameter.normal_(std=0.3)
            elif parameter.ndim > 1:
                # Damped where a residual unit adds: rounding errors must not grow as in no trained model.
                gain = 0.25 if "res_unit" in name or "ffn" in name or "linear_" in name else 1.0
                parameter.normal_(std=gain * parameter[0].numel() ** -0.5)
        noise = torch.randn(4, 100 * config.hop_length) * torch.rand(4, 100).repeat_interleave(config.hop_length, 1)
    spread_codes(model, 0.3 * noise)
    model.save_pretrained(folder)
    return Path(folder)
