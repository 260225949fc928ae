"""Random weights of the full size, from the authors' package, in the layout of HKUSTAudio/xcodec2. Its environment.

    .venv-xcodec2/bin/python experiments/xcodec2_native_vs_package/make_weights.py FOLDER

FOLDER gets `facebook/w2v-bert-2.0` (a random semantic model of 24 layers, with its feature extractor), `published`
(config.json and model.safetensors with the published spelling: `weight_g`, `weight_v`, `act.beta`) and `clips.npz`
(ten clips of 0.3 to 3 s). About 6 GB.

Random weights of the usual initialisation prove little: norms are 1, Snake's exponents 0, attention almost even, and
the values that are rounded hardly move. So all of these get a spread of their own, and the quantizer's projection is
scaled until its eight outputs have mean 0 and standard deviation 1 over a noise of changing loudness.
"""

import os
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2BertConfig, Wav2Vec2BertModel
from xcodec2.configuration_bigcodec import BigCodecConfig
from xcodec2.modeling_xcodec2 import XCodec2Model

SAMPLE_RATE = 16_000
LENGTHS = (4_800, 8_000, 8_001, 11_999, 16_000, 20_001, 25_599, 32_000, 37_123, 48_000)
PUBLISHED = (
    ("act.bias", "act.beta"),
    ("parametrizations.weight.original0", "weight_g"),
    ("parametrizations.weight.original1", "weight_v"),
)


def sound(num_samples: int, generator: np.random.Generator) -> np.ndarray:
    """float32 [num_samples]: a gliding tone of ten harmonics and noise, both of changing loudness."""
    knots = np.linspace(0, num_samples, 2 + num_samples // 1_600)

    def curve(low: float, high: float) -> np.ndarray:
        return np.interp(np.arange(num_samples), knots, generator.uniform(low, high, len(knots)))

    phase = 2 * np.pi * np.cumsum(curve(80, 250)) / SAMPLE_RATE
    tone = sum(np.sin(k * phase + k) / k for k in range(1, 11))
    return (curve(0, 0.3) * tone + curve(0, 0.1) * generator.standard_normal(num_samples)).astype(np.float32)


def spread(model: XCodec2Model) -> None:
    """Give what the initialisation leaves constant, or nearly so, values that a mix-up would show in."""
    for name, parameter in model.named_parameters():
        if name.endswith(("act.alpha", "act.bias")):
            parameter.normal_(0, 0.3)
        elif "norm" in name and name.endswith("weight") and parameter.ndim == 1:
            parameter.normal_(1, 0.2)
        elif name.endswith("bias"):
            parameter.normal_(0, 0.05)
        elif name.endswith("original0"):
            parameter.mul_(torch.empty_like(parameter).uniform_(0.7, 1.4))
        elif ".att.c_attn." in name or ".linear_q." in name or ".linear_k." in name:
            parameter.mul_(3)


def calibrate(model: XCodec2Model, generator: np.random.Generator) -> None:
    projection = model.generator.quantizer.project_in
    outputs = []
    hook = projection.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    model.encode_code(torch.from_numpy(sound(3 * SAMPLE_RATE, generator))[None])
    hook.remove()
    values = outputs[0].flatten(0, 1)  # [frames, 8]
    scale = 1 / values.std(dim=0)
    projection.weight.mul_(scale[:, None])
    projection.bias.sub_(values.mean(dim=0)).mul_(scale)


def main() -> None:
    folder = Path(sys.argv[1])
    (folder / "facebook").mkdir(parents=True, exist_ok=True)
    os.chdir(folder)  # where the package's "facebook/w2v-bert-2.0" is a folder
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    with torch.no_grad():
        Wav2Vec2BertModel(Wav2Vec2BertConfig()).save_pretrained("facebook/w2v-bert-2.0")
        SeamlessM4TFeatureExtractor(padding_value=1.0).save_pretrained("facebook/w2v-bert-2.0")
        config = BigCodecConfig(architectures=["XCodec2Model"])
        model = XCodec2Model(config).eval()
        spread(model)
        calibrate(model, generator)

    weights = {}
    for name, tensor in model.state_dict().items():
        for here, published in PUBLISHED:
            name = name.replace(here, published)
        weights[name] = tensor.contiguous()
    config.save_pretrained("published")
    save_file(weights, "published/model.safetensors", metadata={"format": "pt"})
    np.savez("clips.npz", *(sound(length, generator) for length in LENGTHS))
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.0f} M parameters in {len(weights)} tensors")


if __name__ == "__main__":
    main()
