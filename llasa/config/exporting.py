"""Schema of `export.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from llasa.config.validation import require, require_choice

WEIGHTS = ("merged", "gguf")
CODEC = ("codec_onnx", "codec_torch_export")


@dataclass
class ExportConfig:
    """`python export.py`: a checkpoint in, a folder for other programs out."""

    checkpoint: str | None = None
    """A folder, adapters too, or a hub name; the codec's formats do without one if there is `codec`."""
    format: str = "merged"
    """merged: plain transformers, for vLLM; gguf: for llama.cpp; codec_onnx, codec_torch_export: XCodec2 decoding."""
    output: str = MISSING
    """A folder."""
    dtype: str | None = None
    """Of the weights, bf16, fp16 or fp32; none = bf16. A codec's decoder is always fp32."""
    converter: str | None = None
    """llama.cpp's `convert_hf_to_gguf.py`, for format=gguf."""
    codec: Any = None
    """none = the codec the checkpoint names."""
    overwrite: bool = False
    """Replace an earlier export."""

    def __post_init__(self) -> None:
        require_choice("format", self.format, (*WEIGHTS, *CODEC))
        require_choice("dtype", self.dtype or "bf16", ("bf16", "fp16", "fp32"))
        weights = self.format in WEIGHTS
        require(
            self.checkpoint is not None or (not weights and self.codec is not None),
            "checkpoint",
            self.checkpoint,
            "pass checkpoint=DIR" if weights else "pass checkpoint=DIR, or codec=xcodec2",
        )
        require(weights or self.dtype is None, "dtype", self.dtype, "leave it out: a decoder is written in fp32")
        require(not weights or self.codec is None, "codec", self.codec, f"leave it out: format={self.format} has none")
        require(
            (self.format == "gguf") == (self.converter is not None),
            "converter",
            self.converter,
            "format=gguf needs converter=PATH/convert_hf_to_gguf.py, of llama.cpp, and no other format takes one",
        )
