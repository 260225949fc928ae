"""A Llama of a few thousand parameters with its tokenizer and prompt, and examples for it."""

import numpy as np
import torch

from llasa.codec.base import CodecSpec
from llasa.config import ArchitectureConfig, KernelsConfig, ModelConfig
from llasa.model.llama import SpeechModel, build_for_training

CODEC = CodecSpec("toy", "toy-1", 16_000, 50.0, 64, ((0, 16), (16, 64)))


def tiny_speech_model(*, attn: str = "sdpa", chunk: int = 7, spread: float = 0.02) -> SpeechModel:
    return build_tiny(CODEC, attn=attn, chunk=chunk, spread=spread)


def build_tiny(codec: CodecSpec, *, attn: str = "sdpa", chunk: int = 7, spread: float = 0.02) -> SpeechModel:
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
    )
    config = ModelConfig(name="tiny", architecture=architecture, lr=1e-3, max_length=256)
    kernels = KernelsConfig(name="torch", attn=attn, loss_chunk_size=chunk)
    return build_for_training(config, kernels, codec, "cpu", "fp32")


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
