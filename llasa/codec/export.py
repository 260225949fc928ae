"""XCodec2's decoder as a file that needs none of this code: codes in, waveform out, any batch and any length.

    codes int64 [batch, frames] ─► waveform float32 [batch, frames x hop]

onnx           `decoder.onnx`, one file with the weights, for ONNX Runtime and others (`requirements/export.txt`)
torch.export   `decoder.pt2`, for torch (`torch.export.load`, AOTInductor, C++)

The clips of a batch must have the same number of frames: the decoder's norms average over the whole clip, so padding
would be heard. Cost: the decoder's weights in float32 (about 0.8 GB for the published model) twice over, and a minute.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.xcodec2.modeling_xcodec2 import Xcodec2ISTFTHead

from llasa.codec.base import Codec
from llasa.codec.xcodec2 import XCodec2
from llasa.errors import UserError
from llasa.provenance import write_json

FILES = {"onnx": "decoder.onnx", "torch_export": "decoder.pt2"}
CARD = "codec.json"
INPUT, OUTPUT = "codes", "waveform"
TOLERANCE = 1e-4
"""Largest difference to the codec's own decoding, as a share of the peak: three steps of 16-bit sound."""
CHECKED_SHAPES = ((3, 7), (1, 120))
"""[batch, frames]. Not of one frame: a norm over a single frame of a small model has two values and magnifies rounding
without bound."""


class InverseSTFTHead(nn.Module):
    """The model's `Xcodec2ISTFTHead` as one transposed convolution: frames of sines, windowed, added up.

    The same sums in another form. ONNX has a DFT, but with ONNX Runtime's the whole decoder differed by 7e-5 of the
    peak (with this by 3e-6) and took more than twice the time: 1,280 samples are no power of two.
    """

    def __init__(self, head: Xcodec2ISTFTHead) -> None:
        super().__init__()
        self.linear, self.hop, self.padding = head.linear, head.hop_length, head.padding
        window = head.window.double().cpu()
        bins = torch.eye(head.n_fft // 2 + 1, dtype=torch.complex128)
        frames = torch.cat([torch.fft.irfft(unit * bins, head.n_fft) for unit in (1, 1j)]) * window
        self.frames = nn.Buffer(frames.float()[:, None])  # [2 x bins, 1, n_fft]: real parts first
        self.window_power = nn.Buffer(window.square().float()[None, None])  # [1, 1, n_fft]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[batch, frames, hidden] → [batch, 1, frames x hop]."""
        log_magnitude, phase = self.linear(hidden_states).transpose(1, 2).chunk(2, dim=1)
        magnitude = log_magnitude.exp().clamp(max=1e2)
        spectrum = torch.cat([magnitude * phase.cos(), magnitude * phase.sin()], dim=1)
        audio = F.conv_transpose1d(spectrum, self.frames, stride=self.hop)
        envelope = F.conv_transpose1d(torch.ones_like(spectrum[:1, :1]), self.window_power, stride=self.hop)
        return (audio / envelope.clamp(min=1e-11))[..., self.padding : -self.padding]


class Decoder(nn.Module):
    """What is exported: shares the weights of the codec's model and leaves that as it is."""

    def __init__(self, codec: XCodec2) -> None:
        super().__init__()
        self.quantizer, decoder = codec.model.quantizer, codec.model.acoustic_decoder
        self.decoder = copy.deepcopy(decoder, {id(weight): weight for weight in decoder.parameters()})
        self.decoder.head = InverseSTFTHead(decoder.head)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """int64 [batch, frames] → float32 [batch, frames x hop]."""
        return self.decoder(self.quantizer.from_codes(codes[..., None]))[:, 0]


def export_decoder(codec: Codec, form: str, folder: Path) -> float:
    """Write the decoder as ``form``, "onnx" or "torch_export", and the codec's card into a folder.

    The file is read back and run, on other shapes than it was made with, before this returns.

    Returns:
        The largest difference to ``codec.decode``, as a share of the waveform's peak.

    Raises:
        UserError: the codec has no decoder that could be exported, a package is missing, or the difference is above
            ``TOLERANCE``.
    """
    if not isinstance(codec, XCodec2):
        raise UserError(
            f"the codec {codec.spec.name} cannot be exported: only codec=xcodec2 has weights that this code holds",
            remedy="pass a checkpoint that speaks xcodec2, or codec=xcodec2",
        )
    if form == "onnx" and not has_onnx():
        raise UserError(
            "format=codec_onnx needs onnxscript and onnxruntime", remedy="pip install -r requirements/export.txt"
        )
    decoder = Decoder(codec).cpu().eval()
    example = torch.zeros(2, 50, dtype=torch.int64)
    shapes = ({0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("frames", min=1)},)
    path = folder / FILES[form]
    with torch.no_grad():
        if form == "onnx":
            torch.onnx.export(
                decoder,
                (example,),
                path,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamo=True,
                dynamic_shapes=shapes,
                external_data=False,
                verbose=False,
            )
        else:
            torch.export.save(torch.export.export(decoder, (example,), dynamic_shapes=shapes), path)
    difference = largest_difference(codec, read_decoder(path))
    if not difference <= TOLERANCE:
        raise UserError(
            f"the exported decoder differs from the codec by {difference:.1e} of the peak, allowed are {TOLERANCE:g}",
            remedy="try the other format, and report it",
        )
    write_json(folder / CARD, codec.spec.to_dict() | {"hop": codec.hop, "largest_difference": difference})
    return difference


def read_decoder(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """An exported decoder on the CPU: a function of codes int64 [batch, frames]."""
    if path.name == FILES["onnx"]:
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda codes: session.run([OUTPUT], {INPUT: codes})[0]
    decoder = torch.export.load(path).module()
    return lambda codes: decoder(torch.from_numpy(codes)).detach().numpy()


def largest_difference(codec: XCodec2, decoder: Callable[[np.ndarray], np.ndarray]) -> float:
    """Of the two's waveforms of random codes, as a share of the peak; infinite where one is not finite."""
    generator = np.random.default_rng(0)
    worst = 0.0
    for shape in CHECKED_SHAPES:
        codes = generator.integers(0, codec.spec.codebook_size, shape)
        expected = np.stack(codec.decode(list(codes)))
        difference = np.nan_to_num(np.abs(decoder(codes) - expected), nan=np.inf)
        worst = max(worst, float(difference.max() / np.abs(expected).max()))
    return worst


def has_onnx() -> bool:
    """Whether the packages are there that write the file and check it."""
    return all(importlib.util.find_spec(package) for package in ("onnxscript", "onnxruntime"))
