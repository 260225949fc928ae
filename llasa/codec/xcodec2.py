"""XCodec2 through transformers' native ``Xcodec2Model``: 16 kHz speech, 50 codes a second, one codebook of 65,536.

    waveform ─pad─► [batch, frames x hop] ─┬─► acoustic encoder ────────────────┬─► quantizer ─► codes [frames]
                                           └─► filter bank ─► semantic encoder ─┘
    codes ─► codebook ─► decoder ─► inverse STFT ─► waveform [frames x hop]

**The frame rule**, the same everywhere: a waveform is padded with ``hop - len % hop`` zeros at its end (a whole
extra frame when it divides), the semantic features are computed on that padded waveform with ``hop // 2`` more
zeros at both ends, and the codes are one per frame: ``len // hop + 1``. (transformers' ``audio_codes_mask`` counts
one fewer.)

**Batches hold clips of one exact number of frames**, so none is padded more than it would be alone; padding to the
longest changes codes, and right-padded decoding changes samples from the first on. The more clips a call gets,
the fuller its batches. What remains is the order of summation, which BLAS chooses by the batch's shape; see
``ROUNDING_MARGIN``.

Cost of the published model: 629 M parameters; 73.5 GFLOP per second of audio to encode and 20 to decode.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import Xcodec2Config, Xcodec2Model

from llasa.codec.base import CodecSpec
from llasa.codec.features import FRAME_SHIFT, SAMPLE_RATE, STRIDE, KaldiFilterBank
from llasa.device import resolve_device
from llasa.errors import UserError

ROUNDING_MARGIN = 2e-5
"""A batched clip with a value this close to one of the quantizer's rounding boundaries is encoded again, alone.

Batched and single values differ in their last bits: measured on a CPU, for random models of 2 to 16 layers, by
5e-7 to 1.3e-6 rms and 1e-5 at most, on values from -2 to 1. By that, some 2 to 10 codes in a million would flip.
The margin is twice the largest difference seen; within it lie about 0.03 % of the codes, which is one in seven of
the 10 s clips that share a batch. Not yet measured on CUDA or with the published weights.
"""

_CONFIG_FIELDS = (
    "sampling_rate",
    "downsampling_ratios",
    "quantization_levels",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
)
_SEMANTIC_CONFIG_FIELDS = (
    "model_type",
    "hidden_act",
    "layer_norm_eps",
    "num_attention_heads",
    "position_embeddings_type",
    "left_max_position_embeddings",
    "right_max_position_embeddings",
    "add_adapter",
)


class XCodec2:
    """The codec of the published Llasa models; implements :class:`llasa.codec.base.Codec`.

    ``checkpoint`` is a hub name (``HKUSTAudio/xcodec2-hf``) or a local folder in transformers' format.
    ``device`` is "auto" (CUDA where there is one, else the CPU), "cuda" or "cpu". ``batch_seconds`` bounds
    the audio of one batch; a longer clip is a batch of its own. Always float32, without TF32: codes are the
    result of rounding, and a coarser arithmetic moves them.

    Raises:
        UserError: no such folder, hub not reachable, not an XCodec2 model in transformers' format, weights
            missing or damaged, or no such device.
    """

    def __init__(
        self,
        *,
        checkpoint: str,
        name: str = "xcodec2",
        device: str = "auto",
        batch_seconds: float = 120.0,
    ) -> None:
        self.device = torch.device(resolve_device(device))
        self.model = load_model(checkpoint).to(self.device)
        self.features = KaldiFilterBank().to(self.device)
        self.batch_seconds = batch_seconds

        config = self.model.config
        self.hop = config.hop_length
        codebook_size = int(np.prod(config.quantization_levels))
        self.spec = CodecSpec(
            name=name,
            fingerprint=fingerprint(self.model),
            sample_rate=config.sampling_rate,
            tokens_per_second=config.sampling_rate / self.hop,
            codebook_size=codebook_size,
            code_ranges=((0, codebook_size),),
            checkpoint=str(checkpoint),
        )

    def num_codes(self, num_samples: int) -> int:
        """Codes of a clip of ``num_samples`` samples: the frame rule of this module."""
        return num_samples // self.hop + 1

    def encode(self, waveforms: list[np.ndarray]) -> list[np.ndarray]:
        """float32 [samples] each at ``spec.sample_rate`` Hz → codes [samples // hop + 1] each, in the same order.

        Raises:
            ValueError: a waveform that is not one-dimensional.
        """
        for index, waveform in enumerate(waveforms):
            if waveform.ndim != 1:
                raise ValueError(f"waveform {index} has shape {waveform.shape}, expected [samples]")
        codes: dict[int, np.ndarray] = {}
        for num_codes, indices in self._batches([self.num_codes(len(waveform)) for waveform in waveforms]):
            padded = np.zeros((len(indices), num_codes * self.hop), dtype=np.float32)
            for row, index in zip(padded, indices, strict=True):
                row[: len(waveforms[index])] = waveforms[index]
            codes.update(zip(indices, self._encode_batch(padded), strict=True))
        return [codes[index] for index in range(len(waveforms))]

    def decode(self, codes: list[np.ndarray]) -> list[np.ndarray]:
        """Codes [num_codes] each → float32 [num_codes * hop] each at ``spec.sample_rate`` Hz, in the same order.

        Raises:
            ValueError: codes that are not one-dimensional integers in [0, codebook_size).
        """
        checked = [self._checked_codes(index, clip) for index, clip in enumerate(codes)]
        waveforms: dict[int, np.ndarray] = {}
        for num_codes, indices in self._batches([len(clip) for clip in checked]):
            if num_codes == 0:
                waveforms.update((index, np.zeros(0, dtype=np.float32)) for index in indices)
                continue
            stacked = torch.from_numpy(np.stack([checked[index] for index in indices])).to(self.device)
            with torch.inference_mode(), _undisturbed_float32(self.device):
                decoded = self.model.decode(stacked[:, None]).audio_values[:, 0].cpu().numpy()
            waveforms.update(zip(indices, decoded, strict=True))
        return [waveforms[index] for index in range(len(codes))]

    def _batches(self, lengths: list[int]) -> Iterator[tuple[int, list[int]]]:
        """Group clips by exact number of codes, within ``batch_seconds``: (number of codes, indices of the clips).

        Longest first: if the memory does not suffice, that shows at once.
        """
        buckets: dict[int, list[int]] = {}
        for index, length in enumerate(lengths):
            buckets.setdefault(length, []).append(index)
        for length, indices in sorted(buckets.items(), reverse=True):
            size = max(1, int(self.batch_seconds * self.spec.tokens_per_second / max(1, length)))
            for start in range(0, len(indices), size):
                yield length, indices[start : start + size]

    def _encode_batch(self, padded: np.ndarray) -> np.ndarray:
        """float32 [batch, frames * hop] → codes [batch, frames]."""
        with torch.inference_mode(), _undisturbed_float32(self.device):
            waveforms = torch.from_numpy(padded).to(self.device)
            codes, undecided = self._quantize(waveforms)
            if len(waveforms) > 1:
                for index in undecided.any(dim=1).nonzero().flatten().tolist():
                    codes[index] = self._quantize(waveforms[index : index + 1])[0][0]
            result = codes.cpu().numpy()
        assert result.min() >= 0, "codes below 0: the waveform or the weights are not finite"
        assert result.max() < self.spec.codebook_size, "a code beyond the codebook"
        return result.astype(self.spec.code_dtype)

    def _quantize(self, waveforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 [batch, frames * hop] → codes and whether each is within the margin, both [batch, frames].

        ``Xcodec2Model.encode``, taken apart because it does not return the values that it rounds. No attention
        mask: all clips of a batch have one length.
        """
        model, quantizer = self.model, self.model.quantizer.quantizer
        margin = self.hop // 2
        features = self.features(torch.nn.functional.pad(waveforms, (margin, margin)))
        semantic = model.semantic_adapter(model.semantic_encoder(features).last_hidden_state.transpose(1, 2))
        acoustic = model.acoustic_encoder(waveforms[:, None])
        hidden = model.fc_encoder(torch.cat([semantic, acoustic], dim=1).transpose(1, 2))
        bounded = quantizer.bound(model.quantizer.project_in(hidden))  # bounded twice, as it was trained
        _, codes = quantizer(bounded)
        fraction = quantizer.bound(bounded).remainder(1.0)  # [batch, frames, levels]; rounds up from 0.5
        return codes, ((fraction - 0.5).abs() < ROUNDING_MARGIN).any(dim=-1)

    def _checked_codes(self, index: int, codes: np.ndarray) -> np.ndarray:
        codes = np.asarray(codes)
        if codes.ndim != 1 or not np.issubdtype(codes.dtype, np.integer):
            raise ValueError(f"codes {index} are {codes.dtype} {codes.shape}, expected integers [num_codes]")
        if len(codes) and (codes.min() < 0 or codes.max() >= self.spec.codebook_size):
            raise ValueError(
                f"codes {index} span {codes.min()} to {codes.max()}, expected 0 to {self.spec.codebook_size - 1}"
            )
        return codes.astype(np.int64)


def load_model(checkpoint: str) -> Xcodec2Model:
    """The model in float32 on the CPU, in eval mode, without gradients.

    Raises:
        UserError: see :class:`XCodec2`.
    """
    remedy = "set codec.checkpoint=FOLDER to an XCodec2 model in transformers' format (HKUSTAudio/xcodec2-hf)"
    field = f"codec.checkpoint={checkpoint}"
    source = Path(checkpoint).expanduser()
    if source.is_dir():
        if not (source / "config.json").is_file():
            raise UserError(f"{field}: the folder has no config.json", remedy=remedy)
    elif checkpoint.startswith((".", "/", "~")) or checkpoint.count("/") > 1:
        raise UserError(f"{field}: no such folder", remedy=remedy)
    try:
        config, _ = Xcodec2Config.get_config_dict(str(source))
    except OSError as error:
        problem = "the config.json is damaged" if source.is_dir() else "no such folder, and none from the hub"
        raise UserError(f"{field}: {problem} ({_first_line(error)})", remedy=remedy) from error
    if config.get("model_type") != Xcodec2Config.model_type:
        raise UserError(f"{field}: a model of type {config.get('model_type')!r}, not 'xcodec2'", remedy=remedy)
    try:
        model, loading = Xcodec2Model.from_pretrained(
            str(source), dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, RuntimeError, ValueError, SafetensorError, StrictDataclassError) as error:
        raise UserError(f"{field}: cannot be loaded ({_first_line(error)})", remedy=remedy) from error
    absent = sorted({*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])})
    if absent:  # transformers would go on with random values in their place
        raise UserError(f"{field}: {len(absent)} weights are missing or misshapen, first {absent[0]}", remedy=remedy)
    if model.config.sampling_rate != SAMPLE_RATE or model.config.hop_length != FRAME_SHIFT * STRIDE:
        raise UserError(
            f"{field}: frames of {model.config.hop_length} samples at {model.config.sampling_rate} Hz, but the "
            f"semantic features come every {FRAME_SHIFT * STRIDE} samples at {SAMPLE_RATE} Hz",
            remedy=remedy,
        )
    return model.eval().requires_grad_(False)


def fingerprint(model: Xcodec2Model) -> str:
    """sha256 of what decides the codes and the sound; the same for the same weights wherever they lie.

    Cheap rather than complete: the configuration fields that the tensors' shapes do not show, every tensor's
    name, shape and first 64 values, and the quantizer's tensors whole.
    """
    config = model.config
    fields: dict[str, Any] = {name: getattr(config, name) for name in _CONFIG_FIELDS}
    fields["rope_theta"] = config.rope_parameters["rope_theta"]
    fields["semantic"] = {name: getattr(config.semantic_model_config, name) for name in _SEMANTIC_CONFIG_FIELDS}
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().flatten()
        values = values if name.startswith("quantizer.") else values[:64]
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(values.cpu().float().numpy().astype("<f4").tobytes())
    return digest.hexdigest()


@contextmanager
def _undisturbed_float32(device: torch.device) -> Iterator[None]:
    """Float32 throughout, whatever a training run in this process has switched on, and no trace left in it.

    On CUDA, convolutions use TF32 by default. The new names (``fp32_precision``) are used alone, because the old
    ones raise once the two are mixed. The semantic encoder draws a random number per layer even in eval mode,
    which would shift the seeds of everything after it.
    """
    switches = (
        (torch.backends.cuda.matmul, "fp32_precision", "ieee"),
        (torch.backends.cudnn.conv, "fp32_precision", "ieee"),
        (torch.backends.cudnn, "deterministic", True),
        (torch.backends.cudnn, "benchmark", False),  # it may choose another algorithm every time
    )
    before = [getattr(module, name) for module, name, _ in switches]
    try:
        for module, name, value in switches:
            setattr(module, name, value)
        with torch.random.fork_rng(devices=[]), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for (module, name, _), value in zip(switches, before, strict=True):
            setattr(module, name, value)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
