"""Which attention a model runs, resolved once, before it is built.

All of them must keep the examples of a packed row apart. A batch (:class:`llasa.types.PackedBatch`) says where they
start by `position_ids` that restart at 0, and by nothing else. What becomes of that in transformers 5.17 to 5.19, when
there is no `attention_mask` and no cache:

sdpa, eager         `create_causal_mask` builds a dense block-diagonal mask, [rows, 1, length, length]
flex_attention      the same rule as a `BlockMask`: blocks of 128 x 128 without a permitted pair are skipped. The kernel
                    is compiled at its first call; on the CPU it has no backward pass
flash_attention_N   no mask at all: the kernel's variable lengths. From `position_ids` alone transformers finds them in
                    a batch of one row only, and in every layer again, which waits for the device each time. So the
                    forward that computes the loss passes :func:`variable_lengths`, found once

and one of our own, the CPU's default:

sdpa_varlen         no mask either: torch's causal kernel for one example after another. Work grows with the sum of
                    the squared lengths, as FlashAttention's does; a mask costs the square of the row
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from llasa.config import KernelsConfig
from llasa.errors import UserError

SDPA, FLEX, SDPA_VARLEN = "sdpa", "flex_attention", "sdpa_varlen"
AMPERE, HOPPER = 8, 9


@dataclass(frozen=True)
class Flash:
    """A FlashAttention: its package, and the generations of GPUs (major compute capability) that it was made for."""

    package: str
    oldest: int
    newest: int | None = None


# Newest first: the order of preference.
FLASH = {
    "flash_attention_4": Flash("flash-attn-4", HOPPER),
    "flash_attention_3": Flash("flash-attn-3", HOPPER, HOPPER),
    "flash_attention_2": Flash("flash-attn", AMPERE),
}


def resolve_attention(config: KernelsConfig, device: str, precision: str) -> str:
    """The attention implementation, by its name in transformers.

    auto: on CUDA in bf16 the newest FlashAttention that is installed and made for the GPU, else flex attention, and
    sdpa in fp32; on the CPU sdpa_varlen; sdpa elsewhere.

    Raises:
        UserError: the one that was asked for cannot work here.
    """
    cuda = device == "cuda" and torch.cuda.is_available()
    major = torch.cuda.get_device_capability()[0] if cuda else 0
    return choose_attention(config.attn, device, precision, major, installed_kernels() if device == "cuda" else set())


def installed_kernels() -> set[str]:
    """Which of FlashAttention 2, 3, 4 and Triton (which flex attention is compiled to) this environment has.

    transformers' own checks are asked, since it is transformers that imports them: versions 2 and 4 install a package
    of the same name, and 2 brings a part of 4 that does not work alone.
    """
    from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available, is_flash_attn_4_available

    found = {
        "flash_attention_2": is_flash_attn_2_available(),
        "flash_attention_3": is_flash_attn_3_available(),
        "flash_attention_4": is_flash_attn_4_available(),
        "triton": find_spec("triton") is not None,
    }
    return {name for name, available in found.items() if available}


def choose_attention(requested: str, device: str, precision: str, major: int, installed: set[str]) -> str:
    """:func:`resolve_attention` with the facts of the machine given: GPU generation and installed kernels."""
    if requested == "auto":
        for name in FLASH:
            if obstacle(name, device, precision, major, installed) is None:
                return name
        if precision == "bf16" and obstacle(FLEX, device, precision, major, installed) is None:
            return FLEX
        return SDPA_VARLEN if device == "cpu" else SDPA
    reason = obstacle(requested, device, precision, major, installed)
    if reason is not None:
        raise UserError(
            f"kernels.attn={requested} {reason}",
            remedy="use kernels.attn=auto, or see requirements/gpu.txt",
        )
    return requested


def obstacle(name: str, device: str, precision: str, major: int, installed: set[str]) -> str | None:
    """Why an attention cannot train here, or none."""
    if name in (SDPA, SDPA_VARLEN, "eager"):
        return None
    if device != "cuda":
        return "needs a CUDA device: it has no backward pass elsewhere"
    if name == FLEX:
        if "triton" not in installed:
            return "needs the package triton"
        return None if major >= AMPERE else "needs an NVIDIA GPU of the Ampere generation or later"
    flash = FLASH[name]
    if precision != "bf16":
        return "needs trainer.precision=bf16"
    if name not in installed:
        return f"needs the package {flash.package}"
    if major < flash.oldest or (flash.newest is not None and major > flash.newest):
        wanted = "a Hopper GPU" if flash.newest else f"a GPU of compute capability {flash.oldest}.0 or later"
        return f"needs {wanted}, this one has {major}.x"
    return None


def needs_flat_rows(attn: str) -> bool:
    """Whether a batch must be a single row of all examples for transformers to keep them apart by itself."""
    return attn in FLASH or attn == SDPA_VARLEN


def variable_lengths(attn: str, position_ids: torch.Tensor | None) -> dict[str, Any]:
    """What FlashAttention and sdpa_varlen need to keep examples apart, as arguments of the forward; else nothing.

    Args:
        position_ids: [rows, length], restarting at 0 with each example (padding counts as one). Rows are laid end to
            end, so an example never spans two.

    Returns:
        The boundaries of the examples as int32 [examples + 1], twice (queries, keys), and the longest, in tokens. Waits
        for the device once.
    """
    if not needs_flat_rows(attn) or position_ids is None:
        return {}
    positions = position_ids.reshape(-1)
    starts = (positions == 0).nonzero().reshape(-1)
    boundaries = torch.cat([starts, starts.new_tensor([len(positions)])]).to(torch.int32)
    longest = int(boundaries.diff().max())
    return {
        "cu_seq_lens_q": boundaries,
        "cu_seq_lens_k": boundaries,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def attend_by_example(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """sdpa_varlen: causal attention within each example of packed rows; elsewhere what `sdpa` does.

    Args:
        query, key, value: [rows, heads, length, head width]; keys and values may have fewer heads.
        cu_seq_lens_q: boundaries of the examples, [examples + 1], from :func:`variable_lengths`. A caller that
            leaves them out (a plain forward of packed rows) has them found here, in every layer again.

    Returns:
        [rows, length, heads, head width], and no weights.
    """
    rows, _, length, _ = query.shape
    whole = attention_mask is None and length == key.shape[2]
    if cu_seq_lens_q is None and whole and position_ids is not None:
        starts = torch.eq(position_ids, 0)
        if int(starts.sum()) > len(starts):
            cu_seq_lens_q = variable_lengths(SDPA_VARLEN, position_ids.expand(rows, -1))["cu_seq_lens_q"]
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    if rows > 1:
        query, key, value = (states.transpose(0, 1).flatten(1, 2)[None] for states in (query, key, value))
    sizes = cu_seq_lens_q.diff().tolist()
    examples = zip(query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2), strict=True)
    grouped = query.shape[1] != key.shape[1]
    outputs = [
        scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=grouped)
        for q, k, v in examples
    ]
    output = torch.cat([output.transpose(1, 2) for output in outputs], dim=1)
    return output.view(rows, length, *output.shape[2:]), None


def mask_of_padding(*args: Any, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor | None:
    """The mask of `sdpa` for a batch that says what is padding; none for packed rows."""
    return None if attention_mask is None else sdpa_mask(*args, attention_mask=attention_mask, **kwargs)


AttentionInterface.register(SDPA_VARLEN, attend_by_example)
AttentionMaskInterface.register(SDPA_VARLEN, mask_of_padding)
