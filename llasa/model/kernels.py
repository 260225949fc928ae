"""The loss of a 193,800-token vocabulary without its logits, on any device.

On CUDA, Liger's patched Llama computes it fused. Elsewhere :func:`use_chunked_loss` gives a model a forward that
sends only supervised positions through the head, ``chunk_size`` of them at a time: at V = 193,800 that is 0.13 of
the memory of full logits at the same speed (see `torch.nn.functional.linear_cross_entropy`).
"""

from __future__ import annotations

import types
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import linear_cross_entropy

from llasa.config import KernelsConfig
from llasa.errors import UserError
from llasa.tokens.prompt import IGNORE_INDEX

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


def resolve_kernels(name: str, device: str) -> str:
    """liger or torch. Liger's kernels are Triton's: they need CUDA."""
    if name == "auto":
        return "liger" if device == "cuda" and find_spec("liger_kernel") else "torch"
    if name == "liger" and device != "cuda":
        raise UserError("kernels=liger needs a CUDA device", remedy="use kernels=torch (or auto)")
    return name


def resolve_attention(config: KernelsConfig, device: str) -> str:
    """The attention implementation: FlashAttention 2 where it is installed and the device is CUDA, else sdpa."""
    if config.attn == "flash_attention_2" and not (device == "cuda" and find_spec("flash_attn")):
        raise UserError(
            "kernels.attn=flash_attention_2 needs a CUDA device and the package flash-attn",
            remedy="pip install -r requirements/gpu.txt, or use kernels.attn=auto",
        )
    if config.attn != "auto":
        return config.attn
    return "flash_attention_2" if device == "cuda" and find_spec("flash_attn") else "sdpa"


def use_chunked_loss(model: LlamaForCausalLM, chunk_size: int) -> LlamaForCausalLM:
    """Give this one model a `forward` whose loss never holds more than ``chunk_size`` positions' logits.

    Without `labels` the forward is the model's own. The class is untouched, so a saved checkpoint is a plain
    Llama's.
    """
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk_size)
    plain_forward = model.forward

    def forward(
        self: LlamaForCausalLM,
        input_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> Any:
        if labels is None:
            return plain_forward(input_ids=input_ids, **kwargs)
        from transformers.modeling_outputs import CausalLMOutputWithPast

        hidden = self.model(input_ids=input_ids, **kwargs).last_hidden_state
        targets = labels[:, 1:]
        supervised = targets != IGNORE_INDEX
        hidden, targets = hidden[:, :-1][supervised], targets[supervised]
        total = linear_cross_entropy(hidden, self.lm_head.weight, targets, reduction="sum", options=options)
        return CausalLMOutputWithPast(loss=total / (len(targets) if num_items_in_batch is None else num_items_in_batch))

    model.forward = types.MethodType(forward, model)
    return model
