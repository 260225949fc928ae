"""The shape of a config's model, without its weights, and for the shipped options without a download.

The published shapes are those of `config.json` in the repositories of meta-llama (Llama 3.1 and 3.2) and HKUSTAudio,
whose Llasa models are these Llamas with 193,800 rows; Llasa-1B-Multilingual is said to have a head of its own (by the
size of its file).
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llasa.config import ModelConfig
from llasa.errors import UserError, first_line
from llasa.model.loading import ADAPTER_CONFIG, is_adapter, load_tokenizer
from llasa.tokens.byte_tokenizer import byte_tokenizer
from llasa.tokens.vocabulary import MARKERS

if TYPE_CHECKING:
    from transformers import LlamaConfig

TEXT_TOKENS = 128_256
"""Llama 3's vocabulary."""
XCODEC2_CODES = 65_536

LLAMA_1B = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
}
LLAMA_3B = {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
}
LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
SPEAKING = {"vocab_size": TEXT_TOKENS + len(MARKERS) + XCODEC2_CODES}
TEXT_ONLY = {"vocab_size": TEXT_TOKENS}
PUBLISHED: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-3.2-1B-Instruct": LLAMA_1B | TEXT_ONLY,
    "meta-llama/Llama-3.2-3B-Instruct": LLAMA_3B | TEXT_ONLY,
    "meta-llama/Llama-3.1-8B-Instruct": LLAMA_8B | TEXT_ONLY,
    "HKUSTAudio/Llasa-1B": LLAMA_1B | SPEAKING,
    "HKUSTAudio/Llasa-1B-Multilingual": LLAMA_1B | SPEAKING | {"tie_word_embeddings": False},
    "HKUSTAudio/Llasa-3B": LLAMA_3B | SPEAKING,
    "HKUSTAudio/Llasa-8B": LLAMA_8B | SPEAKING,
}


def model_shape(config: ModelConfig, num_codes: int) -> tuple[LlamaConfig, bool]:
    """The `LlamaConfig` that training would have, and whether the vocabulary is extended for it.

    Args:
        num_codes: of the codec, for a model that does not speak yet.

    Raises:
        UserError: the checkpoint is no Llama, or its config cannot be read.
    """
    from transformers import LlamaConfig

    if config.checkpoint is None:
        assert config.architecture is not None
        shape = asdict(config.architecture)
        del shape["rope_theta"]
        return LlamaConfig(vocab_size=len(byte_tokenizer()) + len(MARKERS) + num_codes, **shape), True
    published = PUBLISHED.get(config.checkpoint)
    if published is not None:
        llama, speaks = LlamaConfig(**published), published["vocab_size"] > TEXT_TOKENS
        num_tokens = TEXT_TOKENS
    else:
        llama, tokenizer = read_config(config.checkpoint), load_tokenizer(config.checkpoint)
        num_tokens, speaks = len(tokenizer), MARKERS[0] in tokenizer.get_vocab()
    if not speaks:
        llama.vocab_size = num_tokens + len(MARKERS) + num_codes
    return llama, not speaks


def read_config(checkpoint: str) -> LlamaConfig:
    """The config of a checkpoint or adapter folder, or of a hub repository."""
    from transformers import AutoConfig

    if is_adapter(checkpoint):
        base = json.loads((Path(checkpoint) / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
        llama, _ = model_shape(ModelConfig(name="base", checkpoint=base, lr=1, max_length=64), 0)
        llama.vocab_size = len(load_tokenizer(checkpoint))
        return llama
    try:
        llama = AutoConfig.from_pretrained(checkpoint)
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read the config of {checkpoint}: {first_line(error)}",
            remedy="check the name, the network and `hf auth login`, or pass a folder",
        ) from error
    if llama.model_type != "llama":
        raise UserError(f"{checkpoint} is a {llama.model_type} model", remedy="use a Llama")
    return llama
