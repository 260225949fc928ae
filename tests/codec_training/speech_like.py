"""Sounds that change as speech does: a buzz or a hiss through moving resonances, in syllables, with pauses."""

from __future__ import annotations

import numpy as np
import torch
from scipy.signal import lfilter

SAMPLE_RATE = 16_000
_SYLLABLE = 2_400
_BLOCK = 160


def speech_like(clips: int, seconds: float, seed: int = 0) -> torch.Tensor:
    """float32 [clips, samples] at 16 kHz, peaks at 0.5; the same seed gives the same sounds."""
    generator = np.random.default_rng(seed)
    samples = round(seconds * SAMPLE_RATE)
    return torch.from_numpy(np.stack([_clip(generator, samples) for _ in range(clips)]))


def _clip(generator: np.random.Generator, samples: int) -> np.ndarray:
    syllables = samples // _SYLLABLE + 2
    times = np.arange(samples) / _SYLLABLE
    knots = np.arange(syllables)
    pitch = np.interp(times, knots, generator.uniform(90, 280, syllables))
    loudness = np.interp(times, knots, generator.uniform(0.0, 1.0, syllables)) * np.sin(np.pi * (times % 1)) ** 0.5
    voiced = np.interp(times, knots, generator.integers(0, 2, syllables))
    buzz = np.diff(np.floor(np.cumsum(pitch) / SAMPLE_RATE), prepend=0) * 8.0
    source = (voiced * buzz + (1 - voiced) * generator.normal(0, 0.5, samples)) * loudness
    for low, high, width in ((250, 850, 80), (900, 2_500, 120), (2_500, 3_800, 200)):
        formant = np.interp(times, knots, generator.uniform(low, high, syllables))
        source = _resonance(source, formant, np.exp(-np.pi * width / SAMPLE_RATE))
    sound = source + 1e-4 * generator.normal(size=samples)
    return (0.5 * sound / np.abs(sound).max()).astype(np.float32)


def _resonance(sound: np.ndarray, frequency: np.ndarray, radius: float) -> np.ndarray:
    """A two-pole filter, set anew every 10 ms."""
    out, state = np.empty_like(sound), np.zeros(2)
    for start in range(0, len(sound), _BLOCK):
        part = slice(start, start + _BLOCK)
        poles = [1.0, -2 * radius * np.cos(2 * np.pi * frequency[start] / SAMPLE_RATE), radius**2]
        out[part], state = lfilter([1 - radius], poles, sound[part], zi=state)
    return out
