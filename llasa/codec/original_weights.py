"""XCodec2 weights in their authors' format → transformers' ``Xcodec2Model``.

    model.safetensors | pytorch_model.bin | *.ckpt ─► tensors ─► original_names.py ─► Xcodec2Model

Three kinds of source have this format: ``HKUSTAudio/xcodec2``; a fine-tune of it such as Anime-XCodec2; a training
checkpoint of X-Codec-2.0 (Lightning), whose discriminators and the like are left out. They differ in spelling, and all
are read: weight norm as ``weight_g`` and ``weight_v`` or as parametrizations, Snake's ``beta`` or ``bias``.

Every tensor of the native model must be filled, and every tensor of the source used, or compared with what the native
model computes in its place (filters, the window), or named below as one to leave out. Sizes are read off the tensors;
what no tensor shows is a constant in the authors' code, and here.

Source: github.com/zhenye234/X-Codec-2.0 (what a checkpoint holds), and those of :mod:`llasa.codec.original_names`.
Cost: 3.3 GB read for the published model, a few seconds. The optimizer states of a training checkpoint are not read.
"""

from __future__ import annotations

import collections
import pickle
import re
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import Wav2Vec2BertConfig, Wav2Vec2BertModel, Xcodec2Config, Xcodec2Model

from llasa.codec.original_names import HEAD_DIM, REMEDY, SEMANTIC_LAYERS, native_weights
from llasa.errors import UserError, first_line

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
SEMANTIC_NAME = "facebook/w2v-bert-2.0"

LEVELS = 4
"""Of every dimension of the quantizer."""

TRAINING_ONLY = (
    "discriminator.",
    "spec_discriminator.",
    "model_spk.",  # the speaker model of its validation
    "criteria.",
    "fc_post_s.",  # this and the next predict semantic features, for a loss
    "SemanticDecoder_module.",
)
TABLES = re.compile(
    r"generator\.quantizer\.(scales|layers\.0\.(_levels|_basis|implicit_codebook))|.*\.rotary_embed\.(theta|cache)"
)
"""Of the quantizer and the rotary embedding, in the files of some library versions; they follow from the constants."""

CONSTANTS = ("upsample.filter", "downsample.filter", "head.window")
"""Endings of what the native model computes itself; a source that has them must agree."""


def is_original(config: dict[str, Any]) -> bool:
    """Whether a ``config.json`` is the package's. Its model type is no sign: files say xcodec, bigcodec or xcodec2."""
    return "codec_decoder_hidden_size" in config or "XCodec2Model" in (config.get("architectures") or ())


def load_original(checkpoint: str, field: str, semantic_checkpoint: str = SEMANTIC_NAME) -> Xcodec2Model:
    """The native model in float32 on the CPU, with the weights of ``checkpoint``: a file, a folder or a hub name.

    ``field`` opens the messages. ``semantic_checkpoint`` (hub name or folder) is read only where the weights have no
    semantic model.

    Raises:
        UserError: no weights, weights that hold more than tensors, or that are not all of this model's and no others.
    """
    tensors = read_tensors(weights_file(checkpoint, field), field)
    if not any(name.startswith("semantic_model.") for name in tensors):
        tensors |= semantic_tensors(semantic_checkpoint, field)
    weights = native_weights(tensors, field)
    constants = {name: weights.pop(name) for name in list(weights) if name.endswith(CONSTANTS)}
    try:
        model, loading = Xcodec2Model.from_pretrained(
            None,
            config=configuration(weights, field),
            state_dict=weights,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{field}: cannot be loaded ({first_line(error)})", remedy=REMEDY) from error
    _require_none(field, "have no place in the native model", loading["unexpected_keys"])
    _require_none(field, "are misshapen", [name for name, *_ in loading["mismatched_keys"]])
    _require_none(field, "are missing", loading["missing_keys"])
    buffers = dict(model.named_buffers())
    others = [name for name, tensor in constants.items() if not _same(tensor, buffers.get(name))]
    _require_none(field, "are not the native model's filters or window", others)
    return model


def weights_file(checkpoint: str, field: str) -> Path:
    """The file with the weights of a file, a folder or a hub name (from where it is downloaded, or its cache)."""
    source = Path(checkpoint).expanduser()
    if source.is_file():
        return source
    for name in WEIGHT_FILES:
        if source.is_dir():
            if (source / name).is_file():
                return source / name
            continue
        try:
            return Path(hf_hub_download(checkpoint, name))
        except LocalEntryNotFoundError as error:
            raise UserError(
                f"{field}: {name} is not in the hub's cache, and the hub cannot be reached", remedy=REMEDY
            ) from error
        except EntryNotFoundError:
            continue
        except OSError as error:
            raise UserError(f"{field}: cannot be downloaded ({first_line(error)})", remedy=REMEDY) from error
    raise UserError(f"{field}: there is no {' or '.join(WEIGHT_FILES)}", remedy=REMEDY)


def read_tensors(path: Path, field: str) -> dict[str, torch.Tensor]:
    """The model's tensors under the package's names, without what training adds: prefixes, other modules.

    Never unpickles: a pickled file is read with ``weights_only``, plus the classes of the configuration that
    X-Codec-2.0's training saves with its weights.
    """
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            with torch.serialization.safe_globals(_configuration_classes()):
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{field}: {path.name} holds more than tensors, and reading that could run anything",
            remedy="where you trust it, load it and torch.save its state_dict alone",
        ) from error
    except (OSError, RuntimeError, EOFError, SafetensorError) as error:
        raise UserError(
            f"{field}: {path.name} is damaged, or no weights ({first_line(error)})", remedy=REMEDY
        ) from error
    tensors = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise UserError(
            f"{field}: {path.name} is no dictionary of tensors, nor has one as its state_dict", remedy=REMEDY
        )
    tensors = {str(name).replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}  # of torch.compile
    prefixes = [name.removesuffix("fc_prior.weight") for name in tensors if name.endswith("fc_prior.weight")]
    if not prefixes:
        raise UserError(
            f"{field}: {path.name} has no fc_prior.weight, so it is no XCodec2 in its authors' format", remedy=REMEDY
        )
    shortened = {name.removeprefix(prefixes[0]): tensor for name, tensor in tensors.items()}
    return {
        name: tensor
        for name, tensor in shortened.items()
        if not name.startswith(TRAINING_ONLY) and not TABLES.fullmatch(name)
    }


def semantic_tensors(semantic_checkpoint: str, field: str) -> dict[str, torch.Tensor]:
    """The layers of w2v-bert that the codec uses, under the package's names."""
    try:
        model = Wav2Vec2BertModel.from_pretrained(
            str(Path(semantic_checkpoint).expanduser()), num_hidden_layers=SEMANTIC_LAYERS, dtype=torch.float32
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{field}: it has no semantic model, and {semantic_checkpoint} cannot be loaded ({first_line(error)})",
            remedy=f"let {SEMANTIC_NAME} be downloaded once",
        ) from error
    return {f"semantic_model.{name}": tensor for name, tensor in model.state_dict().items()}


def configuration(weights: dict[str, torch.Tensor], field: str) -> Xcodec2Config:
    """Sizes as the (native) weights have them, the rest as in the authors' code."""

    def size(name: str, dimension: int) -> int:
        if name not in weights or weights[name].ndim <= dimension:
            raise UserError(f"{field}: {name} is missing or misshapen", remedy=REMEDY)
        return weights[name].shape[dimension]

    def count(prefix: str) -> int:
        return len({name[len(prefix) :].split(".")[0] for name in weights if name.startswith(prefix)})

    hidden_size = size("acoustic_decoder.fc.weight", 0)
    semantic_size = size("semantic_adapter.conv1.weight", 0)
    semantic_layer = "semantic_encoder.encoder.layers.0."
    strides = [
        size(f"acoustic_encoder.block.{number}.conv1.weight", 2) // 2  # the kernels are twice as long
        for number in range(count("acoustic_encoder.block."))
    ]
    masked = "semantic_encoder.masked_spec_embed" in weights  # for training; a model whose chance is 0 has none
    return Xcodec2Config(
        hidden_size=hidden_size,
        intermediate_size=size("acoustic_decoder.layers.0.mlp.fc1.weight", 0),
        num_hidden_layers=count("acoustic_decoder.layers."),
        num_attention_heads=hidden_size // HEAD_DIM,
        num_key_value_heads=hidden_size // HEAD_DIM,
        head_dim=HEAD_DIM,
        encoder_hidden_size=size("acoustic_encoder.conv1.weight", 0),
        downsampling_ratios=strides,
        quantization_dim=size("quantizer.project_in.weight", 1),
        quantization_levels=[LEVELS] * size("quantizer.project_in.weight", 0),
        semantic_model_config=Wav2Vec2BertConfig(
            hidden_size=semantic_size,
            num_hidden_layers=SEMANTIC_LAYERS,
            num_attention_heads=semantic_size // size(semantic_layer + "self_attn.distance_embedding.weight", 1),
            intermediate_size=size(semantic_layer + "ffn1.intermediate_dense.weight", 0),
            feature_projection_input_dim=size("semantic_encoder.feature_projection.projection.weight", 1),
            conv_depthwise_kernel_size=size(semantic_layer + "conv_module.depthwise_conv.weight", 2),
            output_hidden_size=semantic_size,
            mask_time_prob=0.05 if masked else 0.0,
        ),
    )


def _configuration_classes() -> list[Any]:
    """What a saved OmegaConf configuration is made of: containers, which run nothing when they are made."""
    from omegaconf import DictConfig, ListConfig
    from omegaconf.base import ContainerMetadata, Metadata
    from omegaconf.nodes import AnyNode

    plain = [dict, list, int, collections.defaultdict, typing.Any]
    return [DictConfig, ListConfig, ContainerMetadata, Metadata, AnyNode, *plain]


def _same(tensor: torch.Tensor, buffer: torch.Tensor | None) -> bool:
    """Up to the rounding of half precision, in which a file may have been saved."""
    return buffer is not None and tensor.shape == buffer.shape and torch.allclose(tensor, buffer, rtol=0, atol=1e-3)


def _require_none(field: str, problem: str, names: Iterable[str]) -> None:
    names = sorted(names)
    if names:
        raise UserError(f"{field}: {len(names)} weights {problem}, first {names[0]}", remedy=REMEDY)
