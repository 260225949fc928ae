"""Build the model, tokenizer and prompt of a run: load, extend the vocabulary, choose the kernels.

model=llasa_*    a published or own LLaSA checkpoint: loaded as it is
model=llama_*    a text Llama: its vocabulary is extended with the codec's codes
model=llasa_nano from scratch, with the byte tokenizer
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llasa.codec.base import CodecSpec
from llasa.config import KernelsConfig, ModelConfig
from llasa.errors import UserError
from llasa.model.checkpoint import CheckpointCard, require_same_codec
from llasa.model.kernels import resolve_attention, resolve_kernels, use_chunked_loss
from llasa.tokens.byte_tokenizer import byte_tokenizer
from llasa.tokens.prompt import PromptBuilder, PromptRules
from llasa.tokens.vocabulary import MARKERS, SpeechVocabulary, extend_tokenizer

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase


@dataclass
class SpeechModel:
    """A Llama that speaks, with everything that belongs to its tokens."""

    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerBase
    vocabulary: SpeechVocabulary
    prompt: PromptBuilder
    card: CheckpointCard
    kernels: str
    attn: str


def build_for_training(
    config: ModelConfig, kernels: KernelsConfig, codec: CodecSpec, device: str, precision: str
) -> SpeechModel:
    """The model of a config for codes of ``codec``, in fp32, ready to compute the loss on ``device``.

    Raises:
        UserError: the checkpoint cannot be loaded, or speaks another codec.
    """
    if config.codec is not None and config.codec != codec.name:
        raise UserError(
            f"model={config.name} speaks {config.codec}, the store holds codes of {codec.name}",
            remedy=f"make a store with `python preprocess.py codec={config.codec}`, or use model=llasa_nano",
        )
    quiet_libraries()
    kernel = resolve_kernels(kernels.name, device)
    attn = resolve_attention(kernels, device, precision)
    auto_class = _auto_class(kernel)
    if config.checkpoint is None:
        tokenizer, card = byte_tokenizer(), CheckpointCard(PromptRules(), codec, max_length=0)
        extend_tokenizer(tokenizer, codec.codebook_size)
        model = auto_class.from_config(_llama_config(config, tokenizer), attn_implementation=attn)
    else:
        tokenizer = load_tokenizer(config.checkpoint)
        speaks = MARKERS[0] in tokenizer.get_vocab()
        card = CheckpointCard.load(config.checkpoint) if speaks else CheckpointCard(PromptRules(), codec, max_length=0)
        require_same_codec(card.codec, codec, config.checkpoint, "the store")
        model = load_weights(config.checkpoint, auto_class, attn)
        if not speaks:
            # The new rows are drawn from the mean and covariance of the old ones (transformers' default), which
            # keeps the first logits of new tokens in the range of the others.
            extend_tokenizer(tokenizer, codec.codebook_size)
            model.resize_token_embeddings(len(tokenizer), mean_resizing=True)
    vocabulary = SpeechVocabulary.from_tokenizer(tokenizer, codec.codebook_size)
    if model.get_input_embeddings().num_embeddings < vocabulary.first_code + vocabulary.num_codes:
        raise UserError(f"the weights of {config.checkpoint} have fewer rows than its tokenizer has tokens")
    model.config.use_cache = False  # a cache makes packed examples leak into each other
    model.generation_config.eos_token_id = vocabulary.speech_end
    if kernel == "torch":
        use_chunked_loss(model, kernels.loss_chunk_size)
    card = replace(card, codec=codec)
    prompt = PromptBuilder(tokenizer, vocabulary, card.rules)
    return SpeechModel(model, tokenizer, vocabulary, prompt, card, kernel, attn)


def load_for_inference(checkpoint: str, device: str) -> SpeechModel:
    """A checkpoint folder or hub name, in bf16 on CUDA and fp32 elsewhere, in evaluation mode.

    Raises:
        UserError: it is no checkpoint that speaks.
    """
    import torch
    from transformers import AutoModelForCausalLM

    quiet_libraries()
    tokenizer = load_tokenizer(checkpoint)
    card = CheckpointCard.load(checkpoint)
    vocabulary = SpeechVocabulary.from_tokenizer(tokenizer, card.codec.codebook_size)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = load_weights(checkpoint, AutoModelForCausalLM, "sdpa", dtype).to(device).eval()
    return SpeechModel(
        model, tokenizer, vocabulary, PromptBuilder(tokenizer, vocabulary, card.rules), card, "torch", "sdpa"
    )


def quiet_libraries() -> None:
    """No progress bars of transformers in a log file."""
    from transformers.utils.logging import disable_progress_bar

    if not sys.stderr.isatty():
        disable_progress_bar()


def load_tokenizer(checkpoint: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    _require_folder_or_hub_name(checkpoint)
    try:
        return AutoTokenizer.from_pretrained(checkpoint)
    except (OSError, ValueError) as error:
        raise _cannot_load(checkpoint, "tokenizer", error) from error


def load_weights(checkpoint: str, auto_class: Any, attn: str, dtype: Any = None) -> LlamaForCausalLM:
    import torch
    from safetensors import SafetensorError

    try:
        model = auto_class.from_pretrained(checkpoint, dtype=dtype or torch.float32, attn_implementation=attn)
    except (OSError, ValueError, SafetensorError) as error:
        raise _cannot_load(checkpoint, "model", error) from error
    if model.config.model_type != "llama":
        raise UserError(f"{checkpoint} is a {model.config.model_type} model", remedy="use a Llama")
    return model


def _auto_class(kernel: str) -> Any:
    """Liger's class patches transformers' Llama for the whole process, so one process is either with or without it."""
    if kernel == "liger":
        from liger_kernel.transformers import AutoLigerKernelForCausalLM

        return AutoLigerKernelForCausalLM
    from transformers import AutoModelForCausalLM
    from transformers.models.llama import modeling_llama

    if modeling_llama.LlamaRMSNorm.__name__.startswith("Liger"):
        raise UserError(
            "an earlier job in this process patched Llama with Liger's kernels",
            remedy="sweep over kernels with a process for each job (hydra/launcher=joblib)",
        )
    return AutoModelForCausalLM


def _llama_config(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> Any:
    from transformers import LlamaConfig

    shape = asdict(config.architecture)
    theta = shape.pop("rope_theta")
    return LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=max(8192, config.max_length),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        **shape,
    )


def _require_folder_or_hub_name(checkpoint: str) -> None:
    path = Path(checkpoint)
    if path.is_dir():
        if not (path / "config.json").is_file():
            inner = " (its subfolder checkpoint is one)" if (path / "checkpoint" / "config.json").is_file() else ""
            raise UserError(
                f"{checkpoint} is no checkpoint: it has no config.json{inner}", remedy="pass checkpoint=FOLDER"
            )
    elif path.is_absolute() or checkpoint.count("/") != 1 or checkpoint.startswith("."):
        raise UserError(
            f"there is no checkpoint folder at {checkpoint}", remedy="pass a folder, or a hub name OWNER/NAME"
        )


def _cannot_load(checkpoint: str, what: str, error: Exception) -> UserError:
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    remedy = (
        "the folder is damaged or incomplete"
        if Path(checkpoint).is_dir()
        else "check the name, the network and `hf auth login`"
    )
    return UserError(f"cannot load the {what} of {checkpoint}: {first}", remedy=remedy)
