"""A Llama of a few thousand parameters with its tokenizer and prompt, and examples for it."""

from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llasa.codec.base import CodecSpec
from llasa.config import ArchitectureConfig, FinetuneConfig, KernelsConfig, ModelConfig
from llasa.model.checkpoint import save_checkpoint
from llasa.model.llama import SpeechModel, build_for_training
from llasa.tokens.byte_tokenizer import byte_tokenizer

CODEC = CodecSpec("toy", "toy-1", 16_000, 50.0, 64, ((0, 16), (16, 64)))


def tiny_speech_model(
    *, attn: str = "sdpa", chunk: int = 7, spread: float = 0.02, tied: bool = True, parameters: str = "fp32"
) -> SpeechModel:
    return build_tiny(CODEC, attn=attn, chunk=chunk, spread=spread, tied=tied, parameters=parameters)


def build_tiny(
    codec: CodecSpec,
    *,
    attn: str = "sdpa",
    chunk: int = 7,
    spread: float = 0.02,
    tied: bool = True,
    parameters: str = "fp32",
) -> SpeechModel:
    """``spread``: standard deviation of the weights. At the usual 0.02 an untrained model says the same to any
    prompt; tests of generation need one that does not."""
    torch.manual_seed(0)
    architecture = ArchitectureConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=spread,
        tie_word_embeddings=tied,
    )
    config = ModelConfig(name="tiny", architecture=architecture, lr=1e-3, max_length=256)
    kernels = KernelsConfig(name="torch", attn=attn, loss_chunk_size=chunk)
    return build_for_training(config, kernels, codec, "cpu", "fp32", parameters=parameters)


def save_tiny(folder: Path, *, tied: bool = True) -> Path:
    """A checkpoint of the tiny model that says something else to each prompt."""
    speech = tiny_speech_model(spread=0.2, tied=tied)
    save_checkpoint(folder, speech.model, speech.tokenizer, speech.card)
    return folder


def tiny_text_model(folder: Path, *, tied: bool = True, padding_rows: int = 0) -> Path:
    """A text Llama without speech tokens: byte tokenizer, and perhaps more rows than tokens."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    rows = len(tokenizer) + padding_rows
    config = LlamaConfig(vocab_size=rows, tie_word_embeddings=tied, initializer_range=0.2, **shape)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build_from(folder: Path, finetune: FinetuneConfig | None = None, **settings: str) -> SpeechModel:
    """The model of a checkpoint folder, for training on the CPU."""
    torch.manual_seed(0)
    config = ModelConfig(name="own", checkpoint=str(folder), lr=1e-3, max_length=256)
    kernels = KernelsConfig(name="torch", attn="sdpa", loss_chunk_size=7)
    return build_for_training(
        config, kernels, CODEC, "cpu", "fp32", finetune or FinetuneConfig(name="full"), **settings
    )


def random_codes(count: int, generator: np.random.Generator) -> np.ndarray:
    """Whole frames of the toy codec: one code below 16, one from 16 to 63."""
    return np.stack([generator.integers(0, 16, count // 2), generator.integers(16, 64, count // 2)], axis=1).reshape(-1)


def examples(speech: SpeechModel, count: int, seed: int = 0):
    generator = np.random.default_rng(seed)
    letters = np.array(list("abcdefgh èù"))
    return [
        speech.prompt.example(
            "".join(generator.choice(letters, generator.integers(1, 20))),
            random_codes(2 * int(generator.integers(1, 15)), generator),
        )
        for _ in range(count)
    ]
