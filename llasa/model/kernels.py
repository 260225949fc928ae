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


def resolve_attention(config: KernelsConfig, device: str, precision: str) -> str:
    """The attention implementation: FlashAttention 2 where it is installed and can work, else sdpa."""
    flash = device == "cuda" and precision == "bf16" and find_spec("flash_attn") is not None
    if config.attn == "flash_attention_2" and not flash:
        raise UserError(
            "kernels.attn=flash_attention_2 needs a CUDA device, bf16 and the package flash-attn",
            remedy="see requirements/gpu.txt, or use kernels.attn=auto",
        )
    if config.attn != "auto":
        return config.attn
    return "flash_attention_2" if flash else "sdpa"


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
        weight = self.lm_head.weight
        if torch.is_autocast_enabled(hidden.device.type):  # which does not reach this operator
            dtype = torch.get_autocast_dtype(hidden.device.type)
            hidden, weight = hidden.to(dtype), weight.to(dtype)
        total = linear_cross_entropy(hidden, weight, targets, reduction="sum", options=options).float()
        return CausalLMOutputWithPast(loss=total / (len(targets) if num_items_in_batch is None else num_items_in_batch))

    model.forward = types.MethodType(forward, model)
    return model
