"""The shape of ``xcodec2_nano``: XCodec2's architecture, small enough to lie in the package and to learn on a CPU.

In: nothing. Out: an untrained ``Xcodec2Model`` of 5.8 M parameters (3.6 MB encoder, 19 MB decoder; 11.7 MB as fp16,
which is how it is stored). Cost: 0.4 GFLOP per second of audio to encode and 0.5 to decode; on one core of a CPU
27 times faster than real time together, 0.8 s a training step of 8 clips of 1 s.

Where the parameters and the time go, and why:

- The published encoder halves its rate twice before it goes faster (ratios 2, 2, 4, 4, 5). Nearly all its time is
  spent on activations at those rates. Here it begins with the large ratios, which makes twice the width (8 channels
  to 256) as cheap as width 4 was, gives it three times the parameters, and lets its last block (100 values a second,
  dilations to 9) see 0.8 s, where that of the published order would see 0.3 s.
- The decoder runs at 50 frames a second: nearly free. It gets what the package's 12 MB have left.
- **There is no semantic encoder.** That of the published model has 580 M parameters and was trained on 4.5 M hours
  of speech. Here the branch has no layer, and a projection of zeros: whatever features come in, the same zeros go
  out, so :func:`llasa.codec.xcodec2.uses_features` says no and nobody computes them.
"""

from __future__ import annotations

import torch
from transformers import Wav2Vec2BertConfig, Xcodec2Config, Xcodec2Model

from llasa.codec.features import NUM_MEL_BINS, STRIDE

_SEMANTIC_SIZE = 32


def nano_config() -> Xcodec2Config:
    """16 kHz, 50 codes a second of 65,536, all as in the published model; only widths and depths differ."""
    hidden_size = 256  # a multiple of 64: the decoder's 32 group norms want two channels each
    return Xcodec2Config(
        hidden_size=hidden_size,
        intermediate_size=1024,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=64,
        activation_dropout=0.0,  # 5.8 M parameters do not overfit hours of speech
        encoder_hidden_size=8,
        downsampling_ratios=[5, 4, 4, 2, 2],
        quantization_levels=[4] * 8,
        quantization_dim=hidden_size + _SEMANTIC_SIZE,
        semantic_model_config=Wav2Vec2BertConfig(
            hidden_size=_SEMANTIC_SIZE,
            output_hidden_size=_SEMANTIC_SIZE,
            num_hidden_layers=0,
            num_attention_heads=1,
            intermediate_size=_SEMANTIC_SIZE,
            feature_projection_input_dim=STRIDE * NUM_MEL_BINS,
            position_embeddings_type=None,
            mask_time_prob=0.0,
        ),
    )


def new_nano(seed: int) -> Xcodec2Model:
    """The untrained model in float32; the same seed gives the same weights. The global generator stays as it was.

    It learns nothing before :func:`llasa.codec_training.initialise.initialise`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Xcodec2Model(nano_config())
    projection = model.semantic_encoder.feature_projection.projection
    with torch.no_grad():
        projection.weight.zero_()
        projection.bias.zero_()
        for parameter in model.semantic_adapter.parameters():
            parameter.zero_()
    return model
