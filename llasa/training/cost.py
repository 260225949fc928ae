"""Arithmetic of training: parameters, FLOPs per token, and what share of a GPU's peak they are (MFU).

Conventions: a multiply-add is two FLOPs; the backward pass costs twice the forward; what activation checkpointing
computes again is not counted, so that model FLOPs utilisation falls when it is used (Chowdhery et al. 2022, PaLM,
arXiv 2204.02311, appendix B).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM

PEAK_BF16 = (
    ("GB200", 2500e12),
    ("B200", 2250e12),
    ("GH200", 989e12),
    ("H200 NVL", 835e12),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("A800", 312e12),
    ("A40", 149.7e12),
    ("A30", 165e12),
    ("A10G", 70e12),
    ("A10", 125e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
    ("RTX 6000 Ada", 364e12),
    ("RTX A6000", 154.8e12),
    ("RTX 5090", 209.5e12),
    ("RTX 4090", 165.2e12),
    ("RTX 4080", 97.5e12),
    ("RTX 3090 Ti", 80e12),
    ("RTX 3090", 71e12),
)
"""Dense bf16 FLOP/s with fp32 accumulation, from NVIDIA's data sheets, by a part of the device's name; the first that
is found counts. Sheets that give the figure with sparsity are halved."""


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of a Llama's parameters. ``head`` is counted also when it is the embeddings' own matrix."""

    layer_matrices: int
    """Of all layers together."""
    norms: int
    embeddings: int
    head: int
    tied: bool

    @property
    def total(self) -> int:
        return self.layer_matrices + self.norms + self.embeddings + (0 if self.tied else self.head)


def meta_model(config: LlamaConfig, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """The model of a config without memory for its weights: names, shapes and types are right, nothing else."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def count_parameters(config: LlamaConfig) -> ParameterCount:
    model = meta_model(config)
    layers = [p.numel() for p in model.model.layers.parameters() if p.ndim > 1]
    vectors = [p.numel() for p in model.parameters() if p.ndim == 1]
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return ParameterCount(sum(layers), sum(vectors), embeddings.numel(), head.numel(), head is embeddings)


def flops_per_token(config: LlamaConfig, example_length: float, count: ParameterCount | None = None) -> float:
    """Model FLOPs of a training step, forward and backward, for each token.

    6 N + 6 L H S: N parameters of the matrices that tokens pass through (layers and head; looking up an embedding is
    free), L layers, H the width of all heads, S the mean length of what attends, an example in packed rows. PaLM's
    appendix has 12 L H S for full attention; a causal one needs half of it, which is also what FlashAttention
    computes.

    Args:
        example_length: in tokens. Where lengths differ it is the mean over tokens, sum(n^2) / sum(n).
    """
    count = count or count_parameters(config)
    return 6 * (count.layer_matrices + count.head) + attention_flops(config, example_length)


def attention_flops(config: LlamaConfig, example_length: float) -> float:
    """FLOPs of queries times keys and weights times values for each token, forward and backward, causal."""
    return 6 * config.num_hidden_layers * config.num_attention_heads * head_width(config) * example_length


def head_width(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 FLOP/s of a GPU by the name that `torch.cuda.get_device_name` gives; none = not known.

    A part of a GPU (MIG) has an unknown share of the peak.
    """
    if "MIG" in device_name.split():
        return None
    return next((peak for part, peak in PEAK_BF16 if part.lower() in device_name.lower()), None)


def mfu(tokens_per_second: float, flops_per_token: float, device_name: str, num_devices: int) -> float | None:
    """Model FLOPs utilisation, 0 to 1, of ``num_devices`` alike; none = the device's peak is not known.

    Args:
        tokens_per_second: over all devices, padding not counted.
    """
    peak = peak_flops(device_name)
    return None if peak is None else tokens_per_second * flops_per_token / (peak * num_devices)
