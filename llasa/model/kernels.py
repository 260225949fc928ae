"""The fast parts of a model: which ones a run uses, and how one instance gets them.

liger    Liger's Triton kernels for RMSNorm, SwiGLU, rotary embedding and the fused loss. CUDA
torch    transformers' own layers and the chunked loss of :mod:`llasa.model.loss`. Any device
compile  `torch.compile` of each decoder layer, with either. The compiler fuses what Liger's layer kernels fuse, and
         sees through transformers' layers but not through those kernels, so with it only Liger's loss is used

Everything here belongs to one instance: transformers' classes and module globals stay as they are, and so does every
other model of the process.
"""

from __future__ import annotations

import os
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from llasa.config import KernelsConfig
from llasa.errors import UserError
from llasa.model.loss import use_fused_loss

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM


def resolve_kernels(name: str, device: str) -> str:
    """liger or torch. Liger's kernels are Triton's: they need CUDA.

    Raises:
        UserError: liger was asked for and cannot work here.
    """
    installed = find_spec("liger_kernel") is not None
    if name == "auto":
        return "liger" if device == "cuda" and installed else "torch"
    if name == "liger" and device != "cuda":
        raise UserError("kernels=liger needs a CUDA device", remedy="use kernels=torch (or auto)")
    if name == "liger" and not installed:
        raise UserError("kernels=liger needs the package liger-kernel", remedy="install it, or use kernels=torch")
    return name


def apply_kernels(model: LlamaForCausalLM, kernel: str, config: KernelsConfig) -> None:
    """Give this one model, in place, the loss and the layers of ``kernel`` (as :func:`resolve_kernels` returns it).

    Call it before adapters, activation checkpointing or FSDP2 are put around its parts.

    Raises:
        UserError: `kernels.compile` without a C++ compiler.
    """
    use_fused_loss(model, kernel, config)
    if config.compile:
        compile_layers(model)
    elif kernel == "liger":
        use_liger_layers(model)


def compile_layers(model: LlamaForCausalLM) -> None:
    """`torch.compile` each decoder layer; they share what is compiled, at the first step and for a second length.

    Raises:
        UserError: there is no C++ compiler, which the compiled code's launchers need on CUDA too.
    """
    import torch

    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise UserError(
            f"kernels.compile=true needs a C++ compiler, and there is no {compiler}",
            remedy="install one (Debian: apt-get install g++), name it in CXX, or use kernels.compile=false",
        )
    # With FlashAttention a layer's number is part of what it is compiled for, so each layer is compiled; past the limit
    # the rest would run uncompiled, with no more than a warning.
    layers = model.model.layers
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 2 * len(layers))
    for layer in layers:
        layer.compile()


def use_liger_layers(model: LlamaForCausalLM) -> None:
    """RMSNorm, SwiGLU and rotary embedding of Liger for this one model."""
    from liger_kernel.transformers import apply_liger_kernel_to_llama
    from transformers.models.llama import modeling_llama

    # Beside the instance's modules it exchanges the classes that later models would be built from.
    with globals_kept(modeling_llama):
        apply_liger_kernel_to_llama(
            model=model,
            rms_norm=True,
            swiglu=model.config.hidden_act in ("silu", "swish"),
            rope=False,
            cross_entropy=False,
            fused_linear_cross_entropy=False,
        )
    for layer in model.model.layers:
        attention = layer.self_attn
        attention.forward = types.MethodType(with_rotary_embedding(type(attention).forward, liger_rotary), attention)


@contextmanager
def globals_kept(module: types.ModuleType) -> Iterator[None]:
    """Undo what the block does to a module's names."""
    before = dict(vars(module))
    try:
        yield
    finally:
        vars(module).update(before)


def with_rotary_embedding(
    forward: Callable[..., Any], rotary: Callable[..., tuple[torch.Tensor, torch.Tensor]]
) -> Callable[..., Any]:
    """An attention's `forward` that rotates with another function.

    transformers' attention takes `apply_rotary_pos_emb` from its module's globals, which all models share; so this is
    the same function with globals of its own.
    """
    name = "apply_rotary_pos_emb"
    assert name in forward.__code__.co_names, f"{forward.__qualname__} does not call {name}"
    own = types.FunctionType(
        forward.__code__,
        {**forward.__globals__, name: rotary},
        forward.__name__,
        forward.__defaults__,
        forward.__closure__,
    )
    own.__kwdefaults__ = forward.__kwdefaults__
    return own


def liger_rotary(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Liger's rotary embedding, of copies: it writes over its input, and activation checkpointing may have kept that.

    Unlike transformers' function it returns bf16 for bf16 queries also when cos and sin are fp32 (autocast).
    """
    from liger_kernel.transformers.rope import liger_rotary_pos_emb

    return liger_rotary_pos_emb(q.clone(), k.clone(), cos, sin)
