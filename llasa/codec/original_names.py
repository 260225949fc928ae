"""The tensors of the authors' XCodec2, under their names → the tensors of transformers' ``Xcodec2Model``.

    weight_g, weight_v ─fold─► weight ─► native name ─► c_attn split in three, rows of queries and keys reordered

Pure: no file is read here (:mod:`llasa.codec.original_weights` does), sizes are checked when the model is filled.
Sources: the package xcodec2 0.1.5 (PyPI), and which tensor goes where in transformers'
``convert_xcodec2_checkpoint.py``. Shown equal in ``experiments/xcodec2_native_vs_package``.
"""

from __future__ import annotations

import re

import torch

from llasa.errors import UserError

REMEDY = "use HKUSTAudio/xcodec2, a fine-tune in its format, or a checkpoint of X-Codec-2.0's training"

SEMANTIC_LAYERS = 16
"""The codec uses the output of this layer of w2v-bert; the 8 later ones are in the files for nothing."""

HEAD_DIM = 64
"""Of the decoder's attention, which the package's rotary embedding is made for."""

_WEIGHT_NORM = (("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1"))

_ENCODER_UNIT = re.compile(r"CodecEnc\.conv_blocks\.([1-9]\d*)\.block\.([012])\.block\.([0123])\.")
_UNIT_PARTS = ("snake1", "conv1", "snake2", "conv2")
_ENCODER_BLOCK = re.compile(r"CodecEnc\.conv_blocks\.([1-9]\d*)\.block\.([34])\.")
_BLOCK_PARTS = {"3": "snake1", "4": "conv1"}
_DECODER_LAYER = re.compile(
    r"generator\.backbone\.transformers\.(\d+)\.(att_norm|ffn_norm|att\.c_attn|att\.c_proj|mlp)\."
)
_LAYER_PARTS = {
    "att_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "att.c_attn": "self_attn.qkv_proj",
    "att.c_proj": "self_attn.o_proj",
    "mlp": "mlp",
}
_BEGINNINGS = {
    "semantic_model.": "semantic_encoder.",
    "SemanticEncoder_module.initial_conv.": "semantic_adapter.conv1.",
    "SemanticEncoder_module.residual_blocks.1.": "semantic_adapter.conv2.",
    "SemanticEncoder_module.residual_blocks.3.": "semantic_adapter.conv3.",
    "SemanticEncoder_module.final_conv.": "semantic_adapter.conv4.",
    "CodecEnc.conv_blocks.0.": "acoustic_encoder.conv1.",
    "CodecEnc.conv_final_block.0.": "acoustic_encoder.snake1.",
    "CodecEnc.conv_final_block.1.": "acoustic_encoder.conv2.",
    "fc_prior.": "fc_encoder.",
    "fc_post_a.": "acoustic_decoder.fc.",
    "generator.quantizer.project_": "quantizer.project_",
    "generator.backbone.embed.": "acoustic_decoder.embed.",
    "generator.backbone.prior_net.": "acoustic_decoder.prior_net.",
    "generator.backbone.post_net.": "acoustic_decoder.post_net.",
    "generator.backbone.final_layer_norm.": "acoustic_decoder.norm.",
    "generator.head.out.": "acoustic_decoder.head.linear.",
    "generator.head.istft.window": "acoustic_decoder.head.window",
}
_SEMANTIC_LAYER = re.compile(r"semantic_encoder\.encoder\.layers\.(\d+)\.")


def native_weights(tensors: dict[str, torch.Tensor], field: str) -> dict[str, torch.Tensor]:
    """All of the package's tensors → the native model's, in float32. ``field`` opens the messages.

    Raises:
        UserError: a name that has no counterpart, fewer semantic layers than the codec uses, or a c_attn that
            cannot be split.
    """
    folded = fold_weight_norm(tensors)
    names = {name: native for name in folded if (native := native_name(name))}
    unknown = sorted(folded.keys() - names.keys())
    if any(name.startswith("generator.upsampler.") for name in unknown):
        raise UserError(
            f"{field}: its decoder has an upsampler, which neither the native model nor xcodec2 0.1.5 has",
            remedy=REMEDY,
        )
    if unknown:
        raise UserError(
            f"{field}: {len(unknown)} tensors have no place in the native model, first {unknown[0]}", remedy=REMEDY
        )
    layers = {int(match[1]) for native in names.values() if (match := _SEMANTIC_LAYER.match(native))}
    if not layers >= set(range(SEMANTIC_LAYERS)):
        raise UserError(f"{field}: {len(layers)} semantic layers, but the codec needs {SEMANTIC_LAYERS}", remedy=REMEDY)
    weights: dict[str, torch.Tensor] = {}
    for name, native in names.items():
        tensor = folded[name].float()
        match = _SEMANTIC_LAYER.match(native)
        if match and int(match[1]) >= SEMANTIC_LAYERS:
            continue
        if "qkv_proj" in native:
            if len(tensor) % (3 * HEAD_DIM):
                raise UserError(
                    f"{field}: {name} has {len(tensor)} rows, not three times whole heads of {HEAD_DIM}", remedy=REMEDY
                )
            query, key, value = tensor.chunk(3)
            weights[native.replace("qkv_proj", "q_proj")] = rotary_halves(query)
            weights[native.replace("qkv_proj", "k_proj")] = rotary_halves(key)
            weights[native.replace("qkv_proj", "v_proj")] = value
        else:
            weights[native] = tensor
    return weights


def native_name(name: str) -> str | None:
    """The native model's name of one of the package's (folded) tensors; None where it can have none.

    ``qkv_proj`` in it stands for three. What follows a known beginning is taken as it is, known to the model or not.
    """
    if name.endswith(tuple(half for pair in _WEIGHT_NORM for half in pair)):
        return None
    if match := _ENCODER_UNIT.match(name):
        unit = f"res_unit{int(match[2]) + 1}.{_UNIT_PARTS[int(match[3])]}."
        native = f"acoustic_encoder.block.{int(match[1]) - 1}.{unit}{name[match.end() :]}"
    elif match := _ENCODER_BLOCK.match(name):
        native = f"acoustic_encoder.block.{int(match[1]) - 1}.{_BLOCK_PARTS[match[2]]}.{name[match.end() :]}"
    elif match := _DECODER_LAYER.match(name):
        native = f"acoustic_decoder.layers.{match[1]}.{_LAYER_PARTS[match[2]]}.{name[match.end() :]}"
    else:
        beginning = next((beginning for beginning in _BEGINNINGS if name.startswith(beginning)), None)
        if beginning is None:
            return None
        native = _BEGINNINGS[beginning] + name[len(beginning) :]
    if native.startswith("acoustic_encoder."):  # Snake's second parameter has changed its name between versions
        native = native.replace(".downsample.lowpass.filter", ".downsample.filter").replace(".act.bias", ".act.beta")
    return native


def fold_weight_norm(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each pair of length g [out, 1, 1] and direction v [out, in, kernel] → one weight, ``g * v / |v|`` row by row.

    Both of PyTorch's spellings. A length or a direction alone stays as it is, and has no place.
    Source: Salimans and Kingma, "Weight Normalization" (2016).
    """
    folded = dict(tensors)
    for length_name, direction_name in _WEIGHT_NORM:
        for name in tensors:
            module = name.removesuffix(length_name)
            if module == name or module + direction_name not in tensors:
                continue
            length, direction = folded.pop(name).float(), folded.pop(module + direction_name).float()
            folded[module + "weight"] = direction * (length / torch.norm_except_dim(direction, 2, 0))
    return folded


def rotary_halves(weight: torch.Tensor) -> torch.Tensor:
    """[heads * 64, in], its rows reordered within each head: 0, 2, 4, …, 1, 3, 5, ….

    The package's rotary embedding (torchtune's) turns neighbouring rows together, the native one turns row i with
    row i + 32. Queries and keys are reordered alike, so their products stay the same. (In this decoder the turn
    cancels as well: its position is the head, the same for both. So only a difference between the two would show.)
    """
    return weight.unflatten(0, (-1, HEAD_DIM // 2, 2)).transpose(1, 2).flatten(0, 2)
