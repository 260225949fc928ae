"""A model that draws on every generator of random numbers in training: who disturbs one of them changes its losses."""

import random

import numpy as np
import torch

from llasa.model.llama import SpeechModel, build_for_training


def noise(module, inputs, output):
    """As dropout does: in training alone."""
    if not module.training:
        return output
    scale = 0.5 + random.random() + np.random.random()  # noqa: NPY002 - the global generator is the point
    return torch.nn.functional.dropout(output, 0.2) * scale


def build_noisy_model(*args, **kwargs) -> SpeechModel:
    speech = build_for_training(*args, **kwargs)
    speech.model.get_input_embeddings().register_forward_hook(noise)
    return speech
