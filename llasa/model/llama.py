"""Build the model, tokenizer and prompt of a run: load, extend the vocabulary, choose the kernels and what learns.

model=llasa_*    a published or own LLaSA checkpoint: loaded as it is
model=llama_*    a text Llama: its vocabulary is extended with the codec's codes
model=llasa_nano from scratch, with the byte tokenizer
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llasa.codec.base import CodecSpec
from llasa.config import FinetuneConfig, KernelsConfig, ModelConfig
from llasa.errors import UserError
from llasa.model.attention import resolve_attention
from llasa.model.checkpoint import CheckpointCard, require_same_codec
from llasa.model.finetune import apply_finetune, count_weights, is_tied, require_trainable
from llasa.model.kernels import apply_kernels, resolve_kernels
from llasa.model.loading import is_adapter, load_model, load_tokenizer, load_weights, quiet_libraries
from llasa.model.vocabulary_init import extend_vocabulary
from llasa.tokens.byte_tokenizer import byte_tokenizer
from llasa.tokens.prompt import PromptBuilder, PromptRules
from llasa.tokens.vocabulary import MARKERS, SpeechVocabulary, extend_tokenizer

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
FULL = FinetuneConfig(name="full")


@dataclass
class TokenContract:
    """What a checkpoint is besides its weights: everything that belongs to its tokens."""

    tokenizer: PreTrainedTokenizerBase
    vocabulary: SpeechVocabulary
    prompt: PromptBuilder
    card: CheckpointCard


@dataclass
class SpeechModel(TokenContract):
    """A Llama that speaks."""

    model: LlamaForCausalLM | PeftModel
    """What the trainer or the engine gets: the Llama, or the adapters around it."""
    kernels: str
    attn: str
    notes: dict[str, Any] = field(default_factory=dict)
    """For the run's record: what was done to the vocabulary, and how many weights learn."""


def build_for_training(
    config: ModelConfig,
    kernels: KernelsConfig,
    codec: CodecSpec,
    device: str,
    precision: str,
    finetune: FinetuneConfig = FULL,
    parameters: str = "fp32",
) -> SpeechModel:
    """The model of a config for codes of ``codec``, ready to compute the loss on ``device``.

    New rows and adapters are drawn with torch's seed, so set it before, alike in all processes.

    Args:
        precision: fp32 or bf16, of the arithmetic.
        parameters: fp32 or bf16, the type in which weights are held (adapters: always fp32).

    Raises:
        UserError: the checkpoint cannot be loaded, speaks another codec, or cannot be trained as ``finetune`` says.
    """
    if config.codec is not None and config.codec != codec.name:
        raise UserError(
            f"model={config.name} speaks {config.codec}, the store holds codes of {codec.name}",
            remedy=f"make a store with `python preprocess.py codec={config.codec}`, or use model=llasa_nano",
        )
    quiet_libraries()
    kernel = resolve_kernels(kernels.name, device)
    attn = resolve_attention(kernels, device, precision)
    dtype = DTYPES[parameters]
    tokenizer = byte_tokenizer() if config.checkpoint is None else load_tokenizer(config.checkpoint)
    num_text_tokens, speaks = len(tokenizer), MARKERS[0] in tokenizer.get_vocab()
    adapter = config.checkpoint is not None and is_adapter(config.checkpoint)
    require_trainable(finetune, config.name, config.checkpoint, adapter=adapter, extended=not speaks)
    card = CheckpointCard(PromptRules(), codec, max_length=0)
    if speaks and config.checkpoint is not None:
        card = replace(CheckpointCard.load(config.checkpoint), quantisation=None)
        require_same_codec(card.codec, codec, config.checkpoint, "the store")
    else:
        extend_tokenizer(tokenizer, codec.codebook_size)
    notes: dict[str, Any] = {}
    if config.checkpoint is None:
        model = _from_scratch(config, tokenizer, attn, dtype)
        notes["vocabulary"] = {"initialisation": f"normal, deviation {model.config.initializer_range:g}"}
    else:
        if finetune.name == "qlora":
            model = load_weights(config.checkpoint, attn, dtype, compute=DTYPES[precision], device=device)
        else:
            model = load_model(config.checkpoint, attn, dtype, device)
        if not speaks:
            notes["vocabulary"] = extend_vocabulary(model, num_text_tokens, len(tokenizer))
    vocabulary = SpeechVocabulary.from_tokenizer(tokenizer, codec.codebook_size)
    rows = model.get_input_embeddings().num_embeddings
    if rows < vocabulary.first_code + vocabulary.num_codes:
        raise UserError(f"the weights of {config.checkpoint} have fewer rows than its tokenizer has tokens")
    model.config.use_cache = False  # a cache makes packed examples leak into each other
    model.generation_config.eos_token_id = vocabulary.speech_end
    notes["vocabulary"] = {"rows_after": rows, "tied": is_tied(model)} | notes.get("vocabulary", {})
    apply_kernels(model, kernel, kernels)
    trained = apply_finetune(model, finetune, _lasting_name(config.checkpoint))
    notes["finetune"] = count_weights(trained)
    card = replace(card, codec=codec)
    prompt = PromptBuilder(tokenizer, vocabulary, card.rules)
    return SpeechModel(tokenizer, vocabulary, prompt, card, trained, kernel, attn, notes)


def load_for_inference(checkpoint: str, device: str) -> SpeechModel:
    """A checkpoint folder, adapter folder or hub name, in bf16 on CUDA and fp32 elsewhere, in evaluation mode.

    Raises:
        UserError: it is no checkpoint that speaks.
    """
    contract = load_contract(checkpoint)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = load_model(checkpoint, "sdpa", dtype, device).to(device).eval()
    return SpeechModel(**vars(contract), model=model, kernels="torch", attn="sdpa")


def load_contract(checkpoint: str) -> TokenContract:
    """What a checkpoint says of its tokens, without its weights.

    Raises:
        UserError: it is no checkpoint that speaks.
    """
    quiet_libraries()
    tokenizer = load_tokenizer(checkpoint)
    card = CheckpointCard.load(checkpoint)
    vocabulary = SpeechVocabulary.from_tokenizer(tokenizer, card.codec.codebook_size)
    return TokenContract(tokenizer, vocabulary, PromptBuilder(tokenizer, vocabulary, card.rules), card)


def _from_scratch(
    config: ModelConfig, tokenizer: PreTrainedTokenizerBase, attn: str, dtype: torch.dtype
) -> LlamaForCausalLM:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(_llama_config(config, tokenizer), attn_implementation=attn, dtype=dtype)


def _llama_config(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> Any:
    from transformers import LlamaConfig

    assert config.architecture is not None
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


def _lasting_name(checkpoint: str | None) -> str | None:
    """A hub name as it is, a folder so that it is found from elsewhere: an adapter records it."""
    return str(Path(checkpoint).resolve()) if checkpoint is not None and Path(checkpoint).is_dir() else checkpoint
