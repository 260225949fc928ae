"""Trade time for memory: parts of each decoder layer are computed again in the backward pass.

none       autograd keeps what it needs (:mod:`llasa.training.memory` lists it)
selective  the results of the large matrix products and of attention are kept, the rest (norms, rotary embedding,
           SiLU, casts) is computed again
full       a layer keeps its input alone, and is computed twice but for its last product

Activations of llasa_1b, 4 rows of 2,048 in bf16, by the planner: 17.7 GiB, 8.7, 2.9 (none with Liger's layers 13.7).
In FLOPs selective costs nothing, full a sixth of a step more.

A layer keeps its class, its parameter names and its `forward`'s signature: FSDP2 wraps layers by class, checkpoints
are read by name. The checkpoint lies inside `forward`, so what is hung around the module lies outside of it: FSDP2's
gathering of weights, and `layer.compile()`, which then traces the checkpoint and obeys its policy, called before or
after. (`torch.compile` *of* a checkpointed function would hide the layer's operators from the policy.)

transformers' own `gradient_checkpointing_enable` marks the embeddings' output as requiring a gradient, which the
re-entrant checkpoint needs where the embeddings are frozen. This one does not need it: with adapters no gradient is
computed below the first of them.

What has no operator that the dispatcher sees (FlashAttention 4, flex attention compiled by itself) is computed again
in selective mode too.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
)
from transformers.modeling_layers import GradientCheckpointingLayer

MODES = ("none", "selective", "full")


def apply_activation_checkpointing(model: torch.nn.Module, mode: str) -> None:
    """Give the decoder layers of a Llama, or of a `PeftModel` around one, a checkpointed `forward`.

    Call it once, after adapters are there. Without gradients, in evaluation, and with a cache, layers run as before.
    """
    assert mode in MODES, mode
    if mode == "none":
        return
    run = functools.partial(checkpoint, use_reentrant=False)
    if mode == "selective":
        run = functools.partial(run, context_fn=_selective_contexts(model.config))
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    assert layers, f"{type(model).__name__} has no decoder layers"
    for layer in layers:
        layer.forward = types.MethodType(_checkpointed(layer.forward, run), layer)


def _checkpointed(
    forward: Callable[..., torch.Tensor], run: Callable[..., torch.Tensor]
) -> Callable[..., torch.Tensor]:
    def checkpointed_forward(
        self: torch.nn.Module, hidden_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        # A cache would be written twice.
        if not self.training or not torch.is_grad_enabled() or kwargs.get("past_key_values") is not None:
            return forward(hidden_states, *args, **kwargs)
        return run(forward, hidden_states, *args, **kwargs)

    return checkpointed_forward


def _selective_contexts(config: Any) -> Callable[[], Any]:
    """The `context_fn` of a selective checkpoint for layers of this shape.

    A result that is kept costs memory for its elements and spares twice the inner dimension of the product in FLOPs
    for each, so products with a small inner dimension (the second of a low-rank adapter) are computed again. The
    MLP's last product is not kept either: nothing in the layer's backward pass needs it, and the recomputation ends
    before it.

    Nothing may write over what is kept, or it is read changed in the recomputation, without an error where a Triton
    kernel did it: Liger's rotary embedding, which does, is given copies (:func:`llasa.model.kernels.liger_rotary`).
    """
    hidden_size, intermediate_size = config.hidden_size, config.intermediate_size
    products = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)

    def policy(context: SelectiveCheckpointContext, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        if is_attention(operator):
            return CheckpointPolicy.MUST_SAVE
        if operator in products:
            inner, outer = args[-1].shape
            last = inner == intermediate_size and outer == hidden_size
            if 2 * inner >= hidden_size and not last:
                return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.PREFER_RECOMPUTE

    def contexts() -> Any:
        return create_selective_checkpoint_contexts(policy)

    return contexts


def is_attention(operator: Any) -> bool:
    """Whether this is the forward of a fused attention: sdpa's kernels, flash-attn's operators, flex attention.

    Eager attention is none: its scores are quadratic in the length, and are computed again.
    """
    name = operator.name()
    if "backward" in name or "bwd" in name:
        return False
    return "flash" in name or "_scaled_dot_product_" in name or name == "flex_attention"
