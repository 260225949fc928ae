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
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from llasa.config import KernelsConfig
from llasa.errors import UserError

SDPA, FLEX = "sdpa", "flex_attention"
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

    auto: on CUDA in bf16 the newest FlashAttention that is installed and made for the GPU, else flex attention; sdpa in
    fp32 and elsewhere.

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
        flex = precision == "bf16" and obstacle(FLEX, device, precision, major, installed) is None
        return FLEX if flex else SDPA
    reason = obstacle(requested, device, precision, major, installed)
    if reason is not None:
        raise UserError(
            f"kernels.attn={requested} {reason}",
            remedy="use kernels.attn=auto, or see requirements/gpu.txt",
        )
    return requested


def obstacle(name: str, device: str, precision: str, major: int, installed: set[str]) -> str | None:
    """Why an attention cannot train here, or none."""
    if name in (SDPA, "eager"):
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
    return attn in FLASH


def variable_lengths(attn: str, position_ids: torch.Tensor | None) -> dict[str, Any]:
    """What a FlashAttention needs to keep examples apart, as arguments for the model's forward; else nothing.

    Args:
        position_ids: [rows, length], restarting at 0 with each example (padding counts as one). Rows are laid end to
            end, so an example never spans two.

    Returns:
        The boundaries of the examples as int32 [examples + 1], twice (queries, keys), and the longest, in tokens. Waits
        for the device once.
    """
    if attn not in FLASH or position_ids is None:
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
