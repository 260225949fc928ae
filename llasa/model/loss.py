"""The loss of a 193,800-token vocabulary without its logits.

hidden states [rows, length, hidden] ─► supervised positions only ─► head and cross entropy in chunks ─► sum / tokens

Full logits at 2,048 positions are 1.6 GB in fp32, and as much again for their gradient. Here logits exist for a chunk
of positions at a time, and their gradients are computed at once, in the forward pass, as in Liger (arXiv 2410.10989),
so that nothing but the gradients of hidden states and head is kept. Three ways:

torch    :class:`FusedLinearCrossEntropy`, any device. `torch.nn.functional.linear_cross_entropy` (2.13) does the same,
         but in bf16 it adds the loss up in bf16, which is 1 per cent off after 100 chunks
liger    Liger's Triton kernels, CUDA
module   a head that is more than a matrix (adapters on it): through its own forward, in chunks that the backward pass
         computes again, which takes the head a third more time
"""

from __future__ import annotations

import math
import types
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy, pad
from torch.utils.checkpoint import checkpoint

from llasa.config import KernelsConfig
from llasa.model.attention import variable_lengths
from llasa.tokens.prompt import IGNORE_INDEX

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


def use_fused_loss(model: LlamaForCausalLM, kernel: str, config: KernelsConfig) -> None:
    """Give this one model a `forward` that, with `labels`, returns the loss and never the logits.

    The loss is the sum over the supervised positions of the batch, divided by `num_items_in_batch` (those of the whole
    optimizer step), or without it by their own number. A batch without any has loss 0 and gradients of 0, so that
    processes that wait for each other's gradients get them.

    Without `labels` the forward is the model's own. The class is untouched, so a saved checkpoint is a plain Llama's.
    """
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

        # Either would switch the separation of packed examples off, silently.
        assert kwargs.get("attention_mask") is None, "a packed batch has no attention mask"
        kwargs["use_cache"] = False
        lengths = variable_lengths(self.config._attn_implementation, kwargs.get("position_ids"))
        hidden = self.model(input_ids=input_ids, **kwargs, **lengths).last_hidden_state
        targets = pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX).flatten()
        index = (targets != IGNORE_INDEX).nonzero().squeeze(1)
        count = len(index)
        if count == 0:
            index = index.new_zeros(1)
        hidden, targets = hidden.flatten(0, 1).index_select(0, index), targets[index].clamp(min=0)
        total = summed_loss(hidden, self.lm_head, targets, kernel, config)
        if count == 0:
            total = total * 0
        return CausalLMOutputWithPast(
            loss=total / (max(count, 1) if num_items_in_batch is None else num_items_in_batch)
        )

    model.forward = types.MethodType(forward, model)


def summed_loss(
    hidden: torch.Tensor, lm_head: nn.Module, targets: torch.Tensor, kernel: str, config: KernelsConfig
) -> torch.Tensor:
    """Summed cross entropy, fp32 [].

    Args:
        hidden: [positions, hidden]
        lm_head: hidden → logits of the vocabulary.
        targets: int64 [positions], all valid ids.
        kernel: torch or liger.
    """
    weight = plain_weight(lm_head)
    if weight is None:
        return module_cross_entropy(hidden, lm_head, targets, config.loss_chunk_size)
    device = hidden.device.type
    if torch.is_autocast_enabled(device):  # which does not reach into the fused functions
        hidden = hidden.to(torch.get_autocast_dtype(device))
    if kernel == "liger":
        return liger_cross_entropy(hidden, weight, targets, config.liger_chunk_memory)
    return FusedLinearCrossEntropy.apply(hidden, weight, targets, config.loss_chunk_size, torch.is_grad_enabled())


def plain_weight(lm_head: Any) -> torch.Tensor | None:
    """The matrix [vocabulary, hidden] if the head is just that, else none.

    peft's copy of a head that is trained beside adapters is one; a head with adapters, quantised, or with weights that
    its own forward gathers (FSDP2 on the head alone) is not.
    """
    copies = lm_head._modules.get("modules_to_save")
    if copies is not None:
        active = not lm_head.disable_adapters and lm_head.active_adapters
        lm_head = copies[lm_head.active_adapters[0]] if active else lm_head.original_module
    # By exact type: FSDP2 and bitsandbytes put classes of their own in the place of both.
    plain = type(lm_head) is nn.Linear and type(lm_head.weight) is nn.Parameter and lm_head.bias is None
    return lm_head.weight if plain else None


class FusedLinearCrossEntropy(torch.autograd.Function):
    """Summed cross entropy of `hidden @ weight.T`, with the gradients computed chunk by chunk in the forward pass.

    Products are in the type of ``hidden``; softmax, loss and the head's gradient in fp32 at least.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, chunk_size: int, gradients: bool
    ) -> torch.Tensor:
        needs_hidden, needs_weight = (needed and gradients for needed in ctx.needs_input_grad[:2])
        matrix = weight.to(hidden.dtype)
        precise = torch.promote_types(hidden.dtype, torch.float32)
        loss = hidden.new_zeros((), dtype=precise)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else hidden.new_empty(0)
        grad_weight = torch.zeros_like(weight, dtype=precise) if needs_weight else weight.new_empty(0)
        buffer = hidden.new_empty(min(chunk_size, len(hidden)), len(weight))
        precise_buffer = buffer if buffer.dtype == precise else torch.empty_like(buffer, dtype=precise)
        for start in range(0, len(hidden), chunk_size):
            chunk = hidden[start : start + chunk_size]
            target = targets[start : start + chunk_size, None]
            product, logits = buffer[: len(chunk)], precise_buffer[: len(chunk)]  # the same memory in fp32
            torch.mm(chunk, matrix.T, out=product)
            if logits.dtype != product.dtype:
                logits.copy_(product)
            logits -= logits.amax(-1, keepdim=True)
            target_logits = logits.gather(-1, target).squeeze(-1)
            totals = logits.exp_().sum(-1)
            loss += (totals.log() - target_logits).sum()
            if not (needs_hidden or needs_weight):
                continue
            # The gradient of the logits: probabilities, less 1 at the target.
            logits /= totals[:, None]
            logits.scatter_add_(-1, target, logits.new_full(target.shape, -1))
            gradient = product.copy_(logits) if logits.dtype != product.dtype else logits
            if needs_hidden:
                torch.mm(gradient, matrix, out=grad_hidden[start : start + chunk_size])
            if needs_weight and gradient.dtype != precise and hidden.is_cuda:
                torch.addmm(grad_weight, gradient.T, chunk, out_dtype=precise, out=grad_weight)
            elif needs_weight:  # without a GPU, products in bf16 are the slower ones
                grad_weight.addmm_(logits.T, chunk.to(precise))
        ctx.gradients = grad_hidden if needs_hidden else None, grad_weight.to(weight.dtype) if needs_weight else None
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        assert ctx.gradients is not None, "the gradients were given away by the first backward pass"
        gradients, ctx.gradients = ctx.gradients, None
        return *(None if gradient is None else gradient.mul_(grad_loss) for gradient in gradients), None, None, None


def liger_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, chunk_memory: int
) -> torch.Tensor:
    """The same with Liger's kernels.

    The head is brought to the type of ``hidden`` once: Liger under autocast would do it again for each chunk. Its
    gradient is added up in fp32.
    """
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    if torch.is_grad_enabled() and not hidden.requires_grad:  # else Liger leaves the head without a gradient
        hidden = hidden.detach().requires_grad_()
    return liger_fused_linear_cross_entropy(
        hidden,
        weight.to(hidden.dtype),
        targets,
        reduction="sum",
        accum_dtype=torch.float32 if hidden.dtype.itemsize < 4 else None,
        chunk_mem_const=chunk_memory,
    )


def module_cross_entropy(
    hidden: torch.Tensor, lm_head: nn.Module, targets: torch.Tensor, chunk_size: int
) -> torch.Tensor:
    """The same through the head's own forward, whatever it does; its logits are computed again in the backward pass."""

    def chunk_loss(chunk: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return cross_entropy(lm_head(chunk).float(), target, reduction="sum")

    return sum(
        checkpoint(chunk_loss, chunk, target, use_reentrant=False)
        for chunk, target in zip(hidden.split(chunk_size), targets.split(chunk_size), strict=True)
    )


def liger_chunk_size(tokens: int, vocab: int, hidden: int, chunk_memory: int) -> int:
    """Positions whose logits exist at a time in Liger 0.8.5: a power of two, so that they take about ``chunk_memory``
    times the memory of the hidden states, and twice that at most."""
    parts = math.ceil(vocab / (chunk_memory * hidden))
    return min(1 << (math.ceil(tokens / parts) - 1).bit_length(), tokens)


def liger_chunks(tokens: int, vocab: int, hidden: int, chunk_memory: int) -> int:
    """How many chunks Liger's fused loss makes of ``tokens`` supervised positions.

    Each chunk reads the head twice and reads and writes its gradient, so below some thousand positions a chunk the
    number of chunks, not that of positions, is what it costs.
    """
    return math.ceil(tokens / liger_chunk_size(tokens, vocab, hidden, chunk_memory))


def loss_bytes(
    kernel: str,
    tokens: int,
    vocab: int,
    hidden: int,
    config: KernelsConfig,
    bytes_per_element: int,
    *,
    trains_head: bool = True,
) -> int:
    """Peak memory of the loss, forward and backward, beside the model, its activations and its gradients.

    Args:
        kernel: torch, liger, or module: a head with adapters (see the module's docstring).
        tokens: supervised positions of a micro-batch.
        bytes_per_element: of the arithmetic, 4 in fp32, 2 in bf16 (autocast of fp32 weights, or weights in bf16).
        trains_head: whether the head's matrix gets a gradient.
    """
    low = bytes_per_element < 4
    chunk = liger_chunk_size(tokens, vocab, hidden, config.liger_chunk_memory) if kernel == "liger" else 0
    chunk = chunk or min(config.loss_chunk_size, tokens)
    matrix, logits = vocab * hidden, chunk * vocab
    positions = 2 * tokens * hidden * bytes_per_element  # the selected hidden states and their gradient
    if kernel == "module":
        # log-probabilities, their gradient and that of the logits; in bf16 the logits beside them
        return positions + logits * (3 * 4 + (bytes_per_element if low else 0))
    cast = matrix * bytes_per_element if low else 0
    gradient = 4 * matrix if trains_head else 0
    if kernel == "liger":
        # The gradient's copy in bf16 is made when the logits are gone.
        return positions + cast + gradient + max(logits * bytes_per_element, cast if trains_head else 0)
    return positions + cast + gradient + logits * (bytes_per_element + (4 if low else 0))
