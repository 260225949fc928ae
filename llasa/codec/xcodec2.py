"""XCodec2 through transformers' native ``Xcodec2Model``: 16 kHz speech, 50 codes a second, one codebook of 65,536.

    waveform ─pad─► [batch, frames x hop] ─┬─► acoustic encoder ────────────────┬─► quantizer ─► codes [frames]
                                           └─► filter bank ─► semantic encoder ─┘
    codes ─► codebook ─► decoder ─► inverse STFT ─► waveform [frames x hop]

**The frame rule**, the same everywhere: a waveform is padded with ``hop - len % hop`` zeros at its end (a whole
extra frame when it divides), the semantic features are computed on that padded waveform with ``hop // 2`` more
zeros at both ends, and the codes are one per frame: ``len // hop + 1``. (transformers' ``audio_codes_mask`` counts
one fewer.)

**Batches are padded, and no clip can tell.** A clip is padded to the next second (its *bucket*, which depends on its
own length alone), and every layer that looks beyond the clip's end finds there what it would find alone: see
:mod:`llasa.codec.padding`; the features are normalised over the clip's own frames. What remains is the order of
summation, which BLAS chooses by the batch's shape. The two precisions meet it in different ways:

- fp32: a clip's codes are *by definition* those of the clip encoded alone, unpadded. Values of a batch differ from
  them in their last bits, so the clips with a value near a rounding boundary are encoded again, alone: see
  ``ROUNDING_MARGIN``. Batches may have any number of rows, and one voice prompt on a CPU costs no more than itself.
- bf16: last bits are now 2^-8, no margin can hold. The batch's *shape* is canonical instead, a function of the bucket
  (and of ``batch_seconds``): missing rows are silence, also when one clip comes alone. Then the same kernels add in
  the same order, whatever the neighbours and the row. That costs the silence: a fifth on top with 60 s batches of
  clips of 10 s on average, an hour of them to a call, and more where calls bring fewer.

Canonical shapes would serve float32 too, but a 3 s prompt would cost as much as 60 s; and only the margin keeps the
codes the same for another ``batch_seconds``, and for ``compile``, whose batches are canonical to keep shapes few.

Decoding is float32, clip by clip, so that no clip's samples depend on another's, to the last bit: its group norms
average over the whole clip, its attention takes no mask here, and batches sum in another order (4e-6 of the peak).
Batches would gain little: sentences hardly ever have one length (of 32 of 1.5 to 15 s, 30 differ; padding would add
70 %), and on a CPU 32 clips of one length take as long together as one after the other. A GPU was not measured.

Cost of the published model: 629 M parameters; 73.5 GFLOP per second of audio to encode and 20 to decode.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import Xcodec2Config, Xcodec2Model

from llasa.codec.arithmetic import checked_precision, compiled, memory_for, undisturbed
from llasa.codec.base import Codec, CodecSpec, check_waveforms, checked_codes
from llasa.codec.features import FRAME_SHIFT, NUM_MEL_BINS, SAMPLE_RATE, STRIDE, KaldiFilterBank
from llasa.codec.original_weights import SEMANTIC_NAME, is_original, load_original
from llasa.codec.padding import ClipEnds, bucket_length
from llasa.device import resolve_device
from llasa.errors import UserError, first_line

ROUNDING_MARGIN = 2e-5
"""A batched clip with a value this close to one of the quantizer's rounding boundaries is encoded again, alone.

Batched and single values differ in their last bits: measured on a CPU, for random models of 2 to 16 layers, by
5e-7 to 3e-6 rms and 1e-5 at most, on values from -2 to 1. By that, some 2 to 10 codes in a million would flip.
The margin is twice the largest difference seen; within it lie about 0.03 % of the codes, which is one in seven of
the 10 s clips that share a batch. How far rounding errors grow is the weights' affair and the device's, and those
of the published weights and of CUDA are not yet measured; so every clip that is encoded again is also measured, the
nearest of a call always is, and a codec's margin grows to twice the largest difference it has seen.
"""

CUDA_BATCH_SECONDS = 60.0
CPU_BATCH_SECONDS = 1.0
"""What ``batch_seconds=auto`` means. On a CPU every clip goes alone: measured on two cores, batches take 1.1 to 1.2
times as long, for padding and for the clips that are encoded again."""

PACKAGED = {"xcodec2_nano": Path(__file__).with_name("xcodec2_nano")}
"""Names of checkpoints that lie in this package, for ``checkpoint``: the same on every machine."""

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


class XCodec2(Codec):
    """The codec of the published Llasa models.

    ``checkpoint`` is a hub name (``HKUSTAudio/xcodec2-hf``) or a local folder in transformers' format, a name in
    ``PACKAGED``, or weights in their authors' format: a hub name, a folder or a file. ``semantic_checkpoint`` is
    where those of them get the semantic encoder that lack it (checkpoints of a training do).
    ``device`` is "auto" (CUDA where there is one, else the CPU), "cuda" or "cpu". ``precision`` is that of the
    encoder's layers, "fp32" (without TF32; the published codes are float32's) or "bf16" (autocast, for CUDA); the
    features, the projection that is rounded, and decoding are float32 or finer always. ``batch_seconds`` bounds the
    padded audio of one batch ("auto": what suits the device); a longer clip is a batch of its own. ``compile`` puts the
    encoder of batches through torch.compile, once for each bucket: a minute or more each, which only
    a large corpus pays back.

    Raises:
        UserError: no such folder, hub not reachable, not an XCodec2 model in transformers' format, weights
            missing or damaged, no such device or precision, or a value of another kind.
    """

    def __init__(
        self,
        *,
        checkpoint: str,
        name: str = "xcodec2",
        device: str = "auto",
        precision: str = "fp32",
        batch_seconds: float | str = 60.0,
        compile: bool = False,
        semantic_checkpoint: str = SEMANTIC_NAME,
    ) -> None:
        self.device = torch.device(resolve_device(device))
        if batch_seconds == "auto":
            batch_seconds = CUDA_BATCH_SECONDS if self.device.type == "cuda" else CPU_BATCH_SECONDS
        if isinstance(batch_seconds, bool) or not isinstance(batch_seconds, int | float) or not batch_seconds > 0:
            raise UserError(f"codec.batch_seconds={batch_seconds} is not valid", remedy="use a number above 0, or auto")
        if not isinstance(compile, bool):
            raise UserError(f"codec.compile={compile} is not valid", remedy="use true or false")
        self.precision = checked_precision(precision, self.device)
        self.model = load_model(checkpoint, semantic_checkpoint).to(self.device)
        self.features = KaldiFilterBank().to(self.device) if uses_features(self.model) else None
        self.batch_seconds = batch_seconds
        self.compile = compile
        self._margin = ROUNDING_MARGIN

        config = self.model.config
        self.hop = config.hop_length
        parts = {"acoustic_encoder": self.model.acoustic_encoder, "semantic_adapter": self.model.semantic_adapter}
        self._ends = ClipEnds(parts, config.downsampling_ratios)
        self._batched_hidden = compiled(self._hidden) if compile else self._hidden
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

    def encoding_facts(self) -> dict[str, Any]:
        """``{"precision": "fp32" or "bf16"}``: of one checkpoint, the two give different codes."""
        return {"precision": self.precision}

    def num_codes(self, num_samples: int) -> int:
        """Codes of a clip of ``num_samples`` samples: the frame rule of this module."""
        return num_samples // self.hop + 1

    def encode(self, waveforms: list[np.ndarray]) -> list[np.ndarray]:
        """float32 [samples] each at ``spec.sample_rate`` Hz → codes [samples // hop + 1] each, in the same order.

        Raises:
            ValueError: a waveform that is not one-dimensional.
            UserError: no memory left on the GPU.
        """
        return self._encode(waveforms, self.precision)

    def agreement(self, waveforms: list[np.ndarray]) -> dict[str, Any]:
        """How this bf16 encoder's codes compare with float32's on given clips; {} for fp32, or without clips.

        ``equal_to_fp32`` is the share of equal codes, ``equal_levels`` that of the eight digits a code is made of;
        ``equal_in_another_order`` must be 1.0: the clips backwards, so in other rows and beside other clips. With
        the clips' number, the codes' number, and what besides the weights decides bf16's last bits. Takes the time
        of encoding the clips twice, and once in float32.
        """
        if self.precision == "fp32" or not waveforms:
            return {}
        codes = np.concatenate(self.encode(waveforms)).astype(np.int64)
        again = np.concatenate(self.encode(waveforms[::-1])[::-1])
        exact = np.concatenate(self._encode(waveforms, "fp32")).astype(np.int64)
        levels = self.model.config.quantization_levels
        digits, exact_digits = np.array(np.unravel_index([codes, exact], levels[::-1])).swapaxes(0, 1)
        return {
            "clips": len(waveforms),
            "codes": len(codes),
            "equal_to_fp32": float((codes == exact).mean()),
            "equal_levels": float((digits == exact_digits).mean()),
            "equal_in_another_order": float((codes == again).mean()),
            "batch_seconds": self.batch_seconds,
            "compile": self.compile,
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type,
        }

    def decode(self, codes: list[np.ndarray]) -> list[np.ndarray]:
        """Codes [num_codes] each → float32 [num_codes * hop] each at ``spec.sample_rate`` Hz, in the same order.

        Raises:
            ValueError: codes that are not one-dimensional integers in [0, codebook_size).
            UserError: no memory left on the GPU.
        """
        checked = [checked_codes(index, clip, self.spec.codebook_size) for index, clip in enumerate(codes)]
        decoded = []  # on the device: it need not wait for one clip's way back before it begins the next
        with undisturbed(self.device):
            for clip in checked:
                if len(clip) == 0:
                    decoded.append(torch.zeros(0))
                    continue
                with self._memory_for(1, len(clip)):
                    row = torch.from_numpy(clip).to(self.device)[None, None]
                    decoded.append(self.model.decode(row).audio_values[0, 0])
            return [waveform.cpu().numpy() for waveform in decoded]

    def _encode(self, waveforms: list[np.ndarray], precision: str) -> list[np.ndarray]:
        check_waveforms(waveforms)
        lengths = [self.num_codes(len(waveform)) for waveform in waveforms]
        codes: dict[int, np.ndarray] = {}
        positions: dict[int, np.ndarray] = {}
        with undisturbed(self.device):
            waiting = []  # what is on its way: read only when all is under way, so that the GPU need not pause
            for total, indices in self._batches([bucket_length(length) for length in lengths]):
                if precision == "fp32" and len(indices) == 1:
                    codes[indices[0]], _ = self._alone(waveforms[indices[0]])
                else:
                    waiting.append((indices, *self._batch([waveforms[index] for index in indices], total, precision)))
            for indices, *results in waiting:
                for index, *rows in zip(indices, *(result.cpu().numpy() for result in results), strict=False):
                    codes[index], positions[index] = (row[: lengths[index]] for row in rows)
            if precision == "fp32":
                self._decide_near_ones_alone(waveforms, codes, positions)
        return [self._checked_result(codes[index]) for index in range(len(waveforms))]

    def _decide_near_ones_alone(
        self, waveforms: list[np.ndarray], codes: dict[int, np.ndarray], positions: dict[int, np.ndarray]
    ) -> None:
        """Replace the codes of batched clips that stand within the margin, nearest first; see ROUNDING_MARGIN."""
        distances = {index: np.abs(values - np.floor(values) - 0.5).min() for index, values in positions.items()}
        for rank, index in enumerate(sorted(distances, key=distances.__getitem__)):
            if rank > 0 and distances[index] >= self._margin:
                break
            codes[index], alone = self._alone(waveforms[index])
            self._margin = max(self._margin, 2 * float(np.abs(alone - positions[index]).max()))

    def _batches(self, lengths: list[int]) -> Iterator[tuple[int, list[int]]]:
        """Group clips by their (padded) number of codes, within ``batch_seconds``: (codes, indices of the clips).

        Longest first: if the memory does not suffice, that shows at once.
        """
        buckets: dict[int, list[int]] = {}
        for index, length in enumerate(lengths):
            buckets.setdefault(length, []).append(index)
        for length, indices in sorted(buckets.items(), reverse=True):
            size = self._batch_size(length)
            for start in range(0, len(indices), size):
                yield length, indices[start : start + size]

    def _batch_size(self, length: int) -> int:
        return max(1, int(self.batch_seconds * self.spec.tokens_per_second / max(1, length)))

    def _batch(self, clips: list[np.ndarray], total: int, precision: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Clips of one bucket, float32 [samples] each, in ``total`` frames → :meth:`_quantize`, maybe of more rows."""
        canonical = precision == "bf16" or self.compile
        rows = self._batch_size(total) if canonical else len(clips)
        padded = torch.zeros(rows, total * self.hop, pin_memory=self.device.type == "cuda")
        num_frames = torch.full((rows,), total)  # of silence, where there is no clip
        for row, clip in enumerate(clips):
            padded[row, : len(clip)] = torch.from_numpy(clip)
            num_frames[row] = self.num_codes(len(clip))
        with self._memory_for(rows, total):
            waveforms = padded.to(self.device, non_blocking=True)
            return self._quantize(waveforms, num_frames.to(self.device), precision)

    def _alone(self, waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float32 [samples] → :meth:`_quantize` of its whole frames alone: what float32 codes are by definition."""
        num_codes = self.num_codes(len(waveform))
        padded = np.zeros((1, num_codes * self.hop), dtype=np.float32)
        padded[0, : len(waveform)] = waveform
        with self._memory_for(1, num_codes):
            codes, positions = self._quantize(torch.from_numpy(padded).to(self.device), None, "fp32")
        return codes[0].cpu().numpy(), positions[0].cpu().numpy()

    def _quantize(
        self, waveforms: torch.Tensor, num_frames: torch.Tensor | None, precision: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 [batch, frames * hop] → codes [batch, frames] and what was rounded, float32 [batch, frames, levels].

        ``num_frames`` int64 [batch]: how many of the frames are each clip's own; None for all. The others' codes
        mean nothing.
        """
        quantizer = self.model.quantizer.quantizer
        bounded = quantizer.bound(self._values(waveforms, num_frames, precision))  # twice, as it was trained
        _, codes = quantizer(bounded)
        return codes, quantizer.bound(bounded)

    def _values(self, waveforms: torch.Tensor, num_frames: torch.Tensor | None, precision: str) -> torch.Tensor:
        """:meth:`_quantize`'s input → the projected values that its two tanh bound, float32 [batch, frames, levels].

        ``Xcodec2Model.encode``, taken apart because it does not return the values that it rounds.
        """
        features = self._features(waveforms, num_frames)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16"):
            if num_frames is None:
                hidden = self._hidden(waveforms, features, None)
            else:
                total = features.shape[1]
                own = torch.arange(total, device=self.device) < num_frames[:, None]
                with self._ends.at(num_frames, total):
                    hidden = self._batched_hidden(waveforms, features, own)
        return self.model.quantizer.project_in(hidden.float())

    def _features(self, waveforms: torch.Tensor, num_frames: torch.Tensor | None) -> torch.Tensor:
        """Whole frames, float32 [batch, frames * hop] → float32 [batch, frames, 160]; zeros where none are used."""
        if self.features is None:
            return waveforms.new_zeros(len(waveforms), waveforms.shape[1] // self.hop, STRIDE * NUM_MEL_BINS)
        margin = self.hop // 2
        return self.features(torch.nn.functional.pad(waveforms, (margin, margin)), num_frames)

    def _hidden(self, waveforms: torch.Tensor, features: torch.Tensor, own: torch.Tensor | None) -> torch.Tensor:
        """[batch, frames * hop], [batch, frames, 160] and bool [batch, frames] → [batch, frames, hidden]."""
        model = self.model
        semantic = model.semantic_encoder(features, attention_mask=own).last_hidden_state
        semantic = model.semantic_adapter(semantic.transpose(1, 2))
        acoustic = model.acoustic_encoder(waveforms[:, None])
        return model.fc_encoder(torch.cat([semantic, acoustic], dim=1).transpose(1, 2))

    def _memory_for(self, clips: int, num_codes: int) -> AbstractContextManager[None]:
        return memory_for(clips, num_codes / self.spec.tokens_per_second, self.batch_seconds)

    def _checked_result(self, codes: np.ndarray) -> np.ndarray:
        assert codes.min() >= 0, "codes below 0: the waveform or the weights are not finite"
        assert codes.max() < self.spec.codebook_size, "a code beyond the codebook"
        return codes.astype(self.spec.code_dtype)


def load_model(checkpoint: str, semantic_checkpoint: str = SEMANTIC_NAME) -> Xcodec2Model:
    """The model in float32 on the CPU, in eval mode, without gradients.

    ``checkpoint`` may also be weights in their authors' format: a folder, a hub name or a single file of them
    (:mod:`llasa.codec.original_weights`); ``semantic_checkpoint`` is for those that have no semantic model inside.

    Raises:
        UserError: see :class:`XCodec2`.
    """
    remedy = (
        "set codec.checkpoint=FOLDER to an XCodec2 model in transformers' format (HKUSTAudio/xcodec2-hf) or its "
        "authors' (HKUSTAudio/xcodec2)"
    )
    field = f"codec.checkpoint={checkpoint}"
    source = PACKAGED.get(checkpoint) or Path(checkpoint).expanduser()
    config: dict[str, Any] = {}
    if source.is_dir():
        if not (source / "config.json").is_file():
            raise UserError(f"{field}: the folder has no config.json", remedy=remedy)
    elif not source.is_file() and (checkpoint.startswith((".", "/", "~")) or checkpoint.count("/") > 1):
        raise UserError(f"{field}: no such folder", remedy=remedy)
    if not source.is_file():
        try:
            config, _ = Xcodec2Config.get_config_dict(str(source))
        except OSError as error:
            problem = "the config.json is damaged" if source.is_dir() else "no such folder, and none from the hub"
            raise UserError(f"{field}: {problem} ({first_line(error)})", remedy=remedy) from error
    if source.is_file() or is_original(config):
        model = load_original(checkpoint, field, semantic_checkpoint)
    elif config.get("model_type") != Xcodec2Config.model_type:
        raise UserError(f"{field}: a model of type {config.get('model_type')!r}, not 'xcodec2'", remedy=remedy)
    else:
        try:
            model, loading = Xcodec2Model.from_pretrained(
                str(source), dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
            )
        except (OSError, RuntimeError, ValueError, SafetensorError, StrictDataclassError) as error:
            raise UserError(f"{field}: cannot be loaded ({first_line(error)})", remedy=remedy) from error
        absent = sorted({*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])})
        if absent:  # transformers would go on with random values in their place
            problem = f"{len(absent)} weights are missing or misshapen, first {absent[0]}"
            raise UserError(f"{field}: {problem}", remedy=remedy)
    if model.config.sampling_rate != SAMPLE_RATE or model.config.hop_length != FRAME_SHIFT * STRIDE:
        raise UserError(
            f"{field}: frames of {model.config.hop_length} samples at {model.config.sampling_rate} Hz, but the "
            f"semantic features come every {FRAME_SHIFT * STRIDE} samples at {SAMPLE_RATE} Hz",
            remedy=remedy,
        )
    return model.eval().requires_grad_(False)


def uses_features(model: Xcodec2Model) -> bool:
    """Whether semantic features can change the codes: not where the semantic encoder's first projection is zero.

    Read from the weights, so it holds for every model: behind a projection of zeros all features look alike.
    """
    return bool(model.semantic_encoder.feature_projection.projection.weight.any())


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
