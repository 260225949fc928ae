"""Which weights learn: all, the embeddings, or adapters; and the plain Llama that comes out of each.

finetune=full                 every weight, or with `train=embeddings` the input embeddings and the head
finetune=lora                 low-rank adapters on every linear layer of the decoder (Hu et al. 2021, arXiv 2106.09685)
finetune=qlora                the same over weights in 4 bits (Dettmers et al. 2023, arXiv 2305.14314)
finetune.embeddings=lora|full adapters on embeddings and head too, or these learn as they are

:func:`merged_state_dict` undoes the wrapping by names: it works on a model, and on the full state dict that the
processes of a sharded run gathered. Cost of merging: one product of [out, rank] and [rank, in] a layer.
"""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from llasa.config import FinetuneConfig
from llasa.errors import UserError

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer
    from transformers import LlamaForCausalLM

ADAPTER = "default"
"""peft's name of the one adapter that a model has here."""
PREFIX = "base_model.model."
"""What peft puts before the names of the model that it wraps."""


def apply_finetune(model: LlamaForCausalLM, config: FinetuneConfig, base: str | None) -> LlamaForCausalLM | PeftModel:
    """Freeze what does not learn and add what does.

    Args:
        base: name or path of the weights, which an adapter records.

    Returns:
        The model itself, or for adapters a `PeftModel` around it; either goes to the trainer as it is.
    """
    if config.name != "full":
        return add_adapters(model, config, base)
    if config.train == "embeddings":
        model.requires_grad_(False)
        model.get_input_embeddings().requires_grad_(True)
        model.get_output_embeddings().requires_grad_(True)
    return model


def add_adapters(model: LlamaForCausalLM, config: FinetuneConfig, base: str | None) -> PeftModel:
    """Adapters on every linear layer but the head; embeddings and head as ``config.embeddings`` says.

    Tied weights stay tied in every mode. Adapters are held in fp32, whatever the type of the weights.
    """
    from peft import LoraConfig, get_peft_model

    embeddings = [_name_of(model, model.get_input_embeddings()), _name_of(model, model.get_output_embeddings())]
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)} - set(embeddings)
    targets = {name.rpartition(".")[2] for name in linear}
    settings = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=sorted(targets | {*embeddings} if config.embeddings == "lora" else targets),
        modules_to_save=embeddings if config.embeddings == "full" else None,
        ensure_weight_tying=is_tied(model) and config.embeddings != "none",
    )
    wrapped = get_peft_model(model, settings)
    wrapped.peft_config[ADAPTER].base_model_name_or_path = base
    if config.embeddings == "lora" and is_tied(model):
        _share_tied_adapter(model)
    return wrapped


def is_tied(model: LlamaForCausalLM | PeftModel) -> bool:
    """Whether the head of a Llama, wrapped or not, is the transposed embeddings: one parameter, not two alike."""
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


class TransposedFactor(nn.Module):
    """A linear layer without bias whose weight is the transpose of a factor that another module owns."""

    def __init__(self, factors: nn.ParameterDict) -> None:
        super().__init__()
        self._factors = (factors,)  # in a tuple, so that the parameter keeps its one name and its one owner

    @property
    def weight(self) -> torch.Tensor:
        return self._factors[0][ADAPTER].t()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(hidden, self.weight)


def _share_tied_adapter(model: LlamaForCausalLM) -> None:
    """Give a tied head the very factors of the embeddings' adapter.

    peft gives it parameters of its own over the same memory (`ensure_weight_tying`): the optimizer then counts and
    steps them twice, and a change of type or device parts them.
    """
    source, head = model.get_input_embeddings(), model.get_output_embeddings()
    head.lora_A[ADAPTER] = TransposedFactor(source.lora_embedding_B)
    head.lora_B[ADAPTER] = TransposedFactor(source.lora_embedding_A)


def quantised(dtype: torch.dtype) -> Any:
    """The setting of `from_pretrained` for NF4 weights with double quantisation that compute in ``dtype``.

    Embeddings, head and norms are not quantised.
    """
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def is_adapted(model: nn.Module) -> bool:
    """Whether the model is a `PeftModel`."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def merged_model(
    model: LlamaForCausalLM | PeftModel,
    dtype: torch.dtype | None = None,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> LlamaForCausalLM:
    """A plain Llama on the CPU with the weights of a trained model, adapters merged; the model stays as it is.

    Memory: that of the weights in ``dtype``, less those that are on the CPU and need no change, which are shared.

    Args:
        dtype: of all its weights; none = as they are held.
        state_dict: whole weights by name, instead of those that the model holds (a shard of them, perhaps).
    """
    from transformers import LlamaForCausalLM

    base = model.get_base_model() if is_adapted(model) else model
    config = copy.deepcopy(base.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.use_cache = True  # training switched it off; whoever loads the weights will want to generate
    dtype = dtype or base.get_input_embeddings().weight.dtype
    weights = merged_state_dict(model, dtype, state_dict)
    plain = LlamaForCausalLM.from_pretrained(None, config=config, state_dict=weights, dtype=dtype)
    plain.generation_config = copy.deepcopy(base.generation_config)
    return plain


def merged_state_dict(
    model: LlamaForCausalLM | PeftModel,
    dtype: torch.dtype | None = None,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """The weights under the names of a plain Llama, on the CPU; a tied head is left out.

    4-bit weights are dequantised first, so that the result is the model that was trained, not its rounded parent.
    """
    held = dict(model.state_dict() if state_dict is None else state_dict)
    base = model.get_base_model() if is_adapted(model) else model
    layers = {name: module for name, module in base.named_modules() if hasattr(module, "lora_A")}
    head = _name_of(base, base.get_output_embeddings())
    result: dict[str, torch.Tensor] = {}
    merged: set[str] = set()
    for key in held:
        name = plain_name(key)
        if name is None or name in result or (is_tied(base) and name == f"{head}.weight"):
            continue
        weight, layer = held[key], layers.get(name.removesuffix(".weight"))
        if layer is None:
            result[name] = weight.detach().to("cpu", dtype or weight.dtype)
            continue
        weight = _dequantised(layer, weight)
        delta = _delta(layer, held, key.partition(".base_layer.")[0]).to(weight.device)
        result[name] = (weight.float() + delta).detach().to("cpu", dtype or weight.dtype)
        merged.add(name.removesuffix(".weight"))
    assert merged == layers.keys() - ({head} if is_tied(base) else set()), "an adapter was left out"
    return result


def adapter_state_dict(model: PeftModel, state_dict: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """Weights by name for `PeftModel.save_pretrained`, which picks the adapter's: a tied head's factors added.

    They are the embeddings' own, transposed; without them another program that loads the file would start them anew.
    """
    held = dict(model.state_dict() if state_dict is None else state_dict)
    base = model.get_base_model()
    head = base.get_output_embeddings()
    if hasattr(head, "lora_A") and isinstance(head.lora_A[ADAPTER], TransposedFactor):
        source = PREFIX + _name_of(base, base.get_input_embeddings())
        target = PREFIX + _name_of(base, head)
        for mine, theirs in (("A", "B"), ("B", "A")):
            factor = held[f"{source}.lora_embedding_{theirs}.{ADAPTER}"]
            held[f"{target}.lora_{mine}.{ADAPTER}.weight"] = factor.t().contiguous()
    return held


def plain_name(key: str) -> str | None:
    """The name in a plain Llama of what a wrapped one's state dict calls ``key``; none = not one of its weights."""
    if re.search(r"\.(lora_\w+|original_module)\.", key) or ".base_layer.weight." in key:
        return None  # adapters, the weights that were replaced, and the scales of 4-bit weights
    return key.removeprefix(PREFIX).replace(".base_layer.", ".").replace(f".modules_to_save.{ADAPTER}.", ".")


def _delta(layer: LoraLayer, held: dict[str, torch.Tensor], prefix: str) -> torch.Tensor:
    """What an adapter adds to its layer's weight, in fp32: scale * B A, transposed for embeddings."""
    embedding = ADAPTER in layer.lora_embedding_A
    suffixes = [f"lora_embedding_{x}.{ADAPTER}" if embedding else f"lora_{x}.{ADAPTER}.weight" for x in "BA"]
    b, a = (held[f"{prefix}.{suffix}"].float() for suffix in suffixes)
    delta = (b @ a) * layer.scaling[ADAPTER]
    return delta.t() if embedding else delta


def _dequantised(layer: LoraLayer, held: torch.Tensor) -> torch.Tensor:
    weight = layer.get_base_layer().weight
    if getattr(weight, "quant_state", None) is None:
        return held
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, weight.quant_state)


def require_trainable(config: FinetuneConfig, name: str, checkpoint: str | None, adapter: bool, extended: bool) -> None:
    """Refuse adapters where they cannot work.

    Args:
        name: of the model, for the message.
        adapter: the checkpoint is itself an adapter.
        extended: the vocabulary gets new tokens in this run.

    Raises:
        UserError: adapters on weights that are random, not on disk as they are, or beside untrained embeddings.
    """
    if config.name == "full":
        return
    if checkpoint is None:
        raise UserError(
            f"finetune={config.name} adapts trained weights, and model={name} starts from random ones",
            remedy="use finetune=full, or a model with a checkpoint",
        )
    if adapter:
        raise UserError(
            f"finetune={config.name} cannot stack an adapter on the adapter in {checkpoint}",
            remedy="start from its merged weights (the folder `checkpoint` beside it), or use finetune=full",
        )
    if extended and config.embeddings != "full":
        raise UserError(
            f"model={name} gets new speech tokens in this run, and with finetune.embeddings={config.embeddings} "
            "their embeddings would stay random",
            remedy="use finetune.embeddings=full",
        )


def count_weights(model: nn.Module) -> dict[str, int]:
    """Weights that learn and all weights; 4-bit ones count as what they stand for, a tied head once."""
    trainable = total = 0
    for parameter in model.parameters():
        count = parameter.numel()
        if (quantised := getattr(parameter, "quant_state", None)) is not None:
            count = quantised.shape.numel()
        total += count
        trainable += count if parameter.requires_grad else 0
    return {"trainable": trainable, "all": total}


def _name_of(model: nn.Module, wanted: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)
