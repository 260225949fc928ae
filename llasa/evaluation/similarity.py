"""Whether two recordings are of one voice: cosine of the speaker embeddings of two waveforms.

``resemblyzer`` carries its weights (GE2E, Wan et al. 2018; 256 numbers, none negative, so similarities lie between 0
and 1: measured on espeak's voices, 0.89 within a voice and 0.72 between two). ``WavLMForXVector`` models (Chen et al.
2022) tell voices better and come from a folder or the hub, such as ``microsoft/wavlm-base-plus-sv``. Numbers of the
two cannot be compared; nor can those of 8 kHz and 16 kHz recordings, for the band that is missing: look at the
codec's own row. Cost on one core: 20 ms a clip of 3 s with resemblyzer, whose first clip on a new installation waits
20 s for librosa to be compiled; 0.6 s a clip of 3 s for WavLM base.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np

from llasa.audio import resample
from llasa.device import resolve_device
from llasa.errors import UserError, first_line
from llasa.evaluation import optional_packages

SAMPLE_RATE = 16_000
"""That of both kinds of model."""

LEVEL = -20.0
"""dB of full scale. The package only raises quiet clips, to -30, so a clip's gain would count (a cosine of 0.95 between
a clip and its tenth). At -20 for all it does not, and voices of espeak lie as far apart as before."""

SHORTEST = 1.6
"""Seconds, the window of resemblyzer. A shorter clip is repeated: that told voices apart better than added silence."""

QUIETEST = 1e-4
"""Of full scale, 3 steps of 16 bits: a clip that stays below has no voice."""


class SpeakerEncoder:
    """The same recording gives the same vector. Nothing is downloaded, unless ``model`` names one of the hub.

    Args:
        model: ``resemblyzer``, or a folder or hub name of a WavLM with an x-vector head.

    Raises:
        UserError: a package is missing, or there is no such model.
    """

    def __init__(self, model: str = "resemblyzer", device: str = "auto") -> None:
        self.name = model
        load = _resemblyzer if model == "resemblyzer" else _wavlm
        self._encode, self.size = load(model, resolve_device(device))

    def embed(self, waveform: np.ndarray, sample_rate: int) -> np.ndarray:
        """float32 [samples] → float32 [size] of length 1; zeros, which resemble nothing, for a clip without sound."""
        samples = resample(np.asarray(waveform, dtype=np.float32), sample_rate, SAMPLE_RATE)
        if len(samples) == 0 or np.abs(samples).max() < QUIETEST:
            return np.zeros(self.size, dtype=np.float32)
        vector = self._encode(samples)
        return (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32)


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of two embeddings of :meth:`SpeakerEncoder.embed`, at most 1."""
    return float(np.clip(np.dot(a, b), -1.0, 1.0))


def _resemblyzer(model: str, device: str) -> tuple[Callable[[np.ndarray], np.ndarray], int]:
    with optional_packages("speaker similarity"):
        import librosa.feature  # noqa: F401  # lazily loaded by resemblyzer: a broken install should show here
        from resemblyzer import VoiceEncoder, trim_long_silences

    encoder = VoiceEncoder(device, verbose=False)

    def encode(samples: np.ndarray) -> np.ndarray:
        # Its detector of speech listens at the package's own level, and may find none in a short clip.
        voiced = trim_long_silences(np.clip(at_level(samples, -30.0), -1.0, 1.0))
        if np.abs(voiced).max(initial=0) < QUIETEST:
            voiced = samples
        return encoder.embed_utterance(at_level(at_least(voiced, SHORTEST), LEVEL))

    return encode, encoder.linear.out_features


def _wavlm(model: str, device: str) -> tuple[Callable[[np.ndarray], np.ndarray], int]:
    import torch
    from transformers import AutoFeatureExtractor, WavLMForXVector

    from llasa.model.loading import quiet_libraries

    quiet_libraries()
    folder = os.path.expanduser(model)
    remedy = "use resemblyzer, or a folder or hub name of a WavLM for x-vectors such as microsoft/wavlm-base-plus-sv"
    if model.startswith((".", "/", "~")) and not os.path.isdir(folder):
        raise UserError(f"no speaker model in {model}", remedy=remedy)
    try:
        extractor = AutoFeatureExtractor.from_pretrained(folder)
        network, report = WavLMForXVector.from_pretrained(folder, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"the speaker model {model} cannot be loaded ({first_line(error)})", remedy=remedy) from error
    # A WavLM without the head would be given a random one, and so random similarities.
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("objective"))
    if missing:
        raise UserError(f"the speaker model {model} has no {missing[0]}", remedy=remedy)
    network.to(device).eval()

    def encode(samples: np.ndarray) -> np.ndarray:
        samples = at_level(at_least(samples, SHORTEST), LEVEL)
        features = extractor(samples, sampling_rate=SAMPLE_RATE, return_tensors="pt").to(device)
        with torch.inference_mode():
            return network(**features).embeddings[0].float().cpu().numpy()

    return encode, network.config.xvector_output_dim


def at_least(samples: np.ndarray, seconds: float) -> np.ndarray:
    """The clip, repeated if it is shorter than that."""
    return np.resize(samples, max(len(samples), round(seconds * SAMPLE_RATE)))


def at_level(samples: np.ndarray, decibels: float) -> np.ndarray:
    """Scaled to a root mean square of so many dB of full scale; peaks may pass it. Not for silence."""
    rms = np.sqrt(np.mean(np.square(samples, dtype=np.float64)))
    return (samples * (10 ** (decibels / 20) / rms)).astype(np.float32)
