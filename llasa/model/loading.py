"""Tokenizer and weights of a checkpoint folder, a hub repository, or an adapter folder.

A checkpoint is a plain Llama. An adapter folder names its base in `adapter_config.json`: the base is loaded (in
4 bits if the adapter was trained on those), given the adapter's vocabulary, and the adapter is merged into it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llasa.errors import UserError, first_line
from llasa.model.checkpoint import CheckpointCard
from llasa.model.finetune import is_tied, merged_model, quantised

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

ADAPTER_CONFIG = "adapter_config.json"


def quiet_libraries() -> None:
    """No progress bars of transformers in a log file."""
    from transformers.utils.logging import disable_progress_bar

    if not sys.stderr.isatty():
        disable_progress_bar()


def is_adapter(checkpoint: str) -> bool:
    """Whether a checkpoint is a local folder that holds an adapter alone."""
    return (Path(checkpoint) / ADAPTER_CONFIG).is_file() and not (Path(checkpoint) / "config.json").is_file()


def load_tokenizer(checkpoint: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    _require_folder_or_hub_name(checkpoint)
    try:
        return AutoTokenizer.from_pretrained(checkpoint)
    except (OSError, ValueError) as error:
        raise _cannot_load(checkpoint, "tokenizer", error) from error


def load_model(checkpoint: str, attn: str, dtype: torch.dtype, device: str) -> LlamaForCausalLM:
    """The Llama of a checkpoint or adapter folder, on the CPU, weights held in ``dtype``.

    Raises:
        UserError: it cannot be loaded, is incomplete, or is no Llama.
    """
    return (
        load_adapter(checkpoint, attn, dtype, device)
        if is_adapter(checkpoint)
        else load_weights(checkpoint, attn, dtype)
    )


def load_weights(
    checkpoint: str, attn: str, dtype: torch.dtype, *, compute: torch.dtype | None = None, device: str = "cpu"
) -> LlamaForCausalLM:
    """A plain Llama; with ``compute``, its linear layers in 4 bits, on ``device``, calculating in that type.

    A head is tied to the embeddings if, and only if, the file has no other: its config is made to agree.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    settings: dict[str, Any] = {"dtype": dtype, "attn_implementation": attn}
    if compute is not None:
        place = torch.cuda.current_device() if device == "cuda" else device
        settings |= {"quantization_config": quantised(compute), "device_map": {"": place}}
    try:
        model, report = AutoModelForCausalLM.from_pretrained(checkpoint, output_loading_info=True, **settings)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _cannot_load(checkpoint, "model", error) from error
    if model.config.model_type != "llama":
        raise UserError(f"{checkpoint} is a {model.config.model_type} model", remedy="use a Llama")
    if report["missing_keys"]:  # transformers draws them at random and goes on
        raise UserError(
            f"the weights of {checkpoint} lack {', '.join(sorted(report['missing_keys'])[:3])}",
            remedy="the folder is damaged or incomplete, or its config.json has a wrong tie_word_embeddings",
        )
    if compute is not None:
        _keep_as_loaded(model)
    model.config.tie_word_embeddings = is_tied(model)  # or a later change of the vocabulary ties what is not
    return model


def _keep_as_loaded(model: LlamaForCausalLM) -> None:
    """Forbid bitsandbytes to repack 4-bit weights for a faster evaluation on a CPU with bf16 instructions.

    That rounds their scales, so the model evaluated would not be the one trained (0.50; and it fails where a layer has
    fewer than 64 inputs).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def load_adapter(folder: str, attn: str, dtype: torch.dtype, device: str) -> LlamaForCausalLM:
    """The base that an adapter folder names, with the adapter merged.

    An adapter that was trained on 4-bit weights is merged into the values that these stand for: it has learned to
    make up for their rounding.
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    try:
        settings = json.loads((Path(folder) / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        base_name, kind = settings["base_model_name_or_path"], settings["peft_type"]
    except (json.JSONDecodeError, KeyError) as error:
        raise _cannot_load(folder, "adapter", error) from error
    if kind != "LORA" or settings.get("use_dora") or settings.get("bias", "none") != "none":
        raise UserError(f"{folder} is not a plain LoRA adapter", remedy="merge it with peft first")
    try:
        _require_folder_or_hub_name(str(base_name))
    except UserError as error:
        raise UserError(
            f"the adapter in {folder} was trained on {base_name}, which is not there",
            remedy=f"correct base_model_name_or_path in its {ADAPTER_CONFIG}, or use its merged checkpoint",
        ) from error
    four_bit = CheckpointCard.load(folder).quantisation is not None
    base = load_weights(base_name, attn, dtype, compute=dtype if four_bit else None, device=device)
    rows = len(load_tokenizer(folder))
    if rows > base.get_input_embeddings().num_embeddings:  # the new rows are in the adapter
        base.resize_token_embeddings(rows, mean_resizing=False)
    try:
        adapted = PeftModel.from_pretrained(base, folder, torch_device="cpu")
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _cannot_load(folder, "adapter", error) from error
    merged = merged_model(adapted, dtype)
    merged.set_attn_implementation(attn)
    return merged


def _require_folder_or_hub_name(checkpoint: str) -> None:
    path = Path(checkpoint)
    if path.is_dir():
        if not (path / "config.json").is_file() and not is_adapter(checkpoint):
            inner = " (its subfolder checkpoint is one)" if (path / "checkpoint" / "config.json").is_file() else ""
            raise UserError(
                f"{checkpoint} is no checkpoint: it has no config.json{inner}", remedy="pass checkpoint=FOLDER"
            )
    elif path.is_absolute() or checkpoint.count("/") != 1 or checkpoint.startswith("."):
        raise UserError(
            f"there is no checkpoint folder at {checkpoint}", remedy="pass a folder, or a hub name OWNER/NAME"
        )


def _cannot_load(checkpoint: str, what: str, error: Exception) -> UserError:
    remedy = (
        "the folder is damaged or incomplete"
        if Path(checkpoint).is_dir()
        else "check the name, the network and `hf auth login`"
    )
    return UserError(f"cannot load the {what} of {checkpoint}: {first_line(error)}", remedy=remedy)
