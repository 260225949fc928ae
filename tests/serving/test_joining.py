"""Chunks joined piece by piece against what `infer.py` does with whole ones."""

from __future__ import annotations

import numpy as np
import pytest

from llasa.generation.longform import EDGE_SECONDS, FADE_SECONDS, Pauses, join_speech
from llasa.serving.joining import Joiner
from llasa.text.chunks import Break, Chunk
from llasa.types import Speech
from tests.generation.test_longform import tone

RATE = 8000
KINDS = [Break.NONE, Break.NONE, Break.COMMA, Break.SENTENCE, Break.PARAGRAPH, Break.CHAPTER]
EDGES = [(0.0, 0.04), (0.02, 0.0), (0.0, 0.3), (0.04, 0.04), (0.3, 0.02), (0.0, 0.0)]
PAUSES = Pauses(comma=0.2, sentence=0.3, paragraph=0.8, chapter=1.5)


def joined(chunks, size):
    joiner, pieces = Joiner(RATE, PAUSES), []
    for number, (kind, waveform) in enumerate(chunks):
        if number:
            joiner.next_chunk(kind)
        pieces += [joiner.push(waveform[start : start + size]) for start in range(0, len(waveform), size)]
        pieces.append(joiner.end())
    return pieces


@pytest.mark.parametrize("size", [160, 333, 100_000])
def test_pauses_are_those_of_whole_chunks(size):
    """Fails when silence at either end is not counted, or a pause is another's."""
    chunks = [(kind, tone(0.5, *edge)) for kind, edge in zip(KINDS, EDGES, strict=True)]
    whole = np.concatenate(joined(chunks, size))
    loud = np.flatnonzero(np.abs(whole) > 1e-3)
    gaps = np.diff(loud)[np.diff(loud) > 300] / RATE
    np.testing.assert_allclose(gaps, [0.06, 0.2, 0.3, 0.8, 1.5], atol=0.022)
    spoken = [Speech(waveform, RATE, np.zeros(0, np.uint16), "stop", 0.0) for _, waveform in chunks]
    parts = join_speech([Chunk("a", kind) for kind in KINDS], spoken, PAUSES)
    offline = np.concatenate([part.waveform for part in parts])
    assert len(whole) == pytest.approx(len(offline), abs=0.02 * RATE * len(chunks))


def test_how_a_chunk_is_divided_does_not_matter():
    """Fails when what is silent is decided piece by piece."""
    rng = np.random.default_rng(0)
    chunks = []
    for kind in KINDS:
        level = np.repeat(rng.choice([0.0, 1e-4, 0.3, 1.0], 40), 100)
        chunks.append((kind, (level * rng.standard_normal(4000)).astype(np.float32)))
    expected = np.concatenate(joined(chunks, 4000))
    for size in (1, 7, 160, 1000):
        np.testing.assert_array_equal(np.concatenate(joined(chunks, size)), expected)


def test_only_silence_and_the_last_milliseconds_are_held_back():
    """Fails when speech waits for the chunk's end."""
    joiner = Joiner(RATE)
    sound = np.full(800, 0.5, np.float32)
    assert len(joiner.push(sound)) == 800 - round(FADE_SECONDS * RATE)
    assert len(joiner.push(np.zeros(1600, np.float32))) == 0
    assert len(joiner.push(sound)) == 1600 + 800, "silence within a chunk is speech"
    end = joiner.end()
    assert end[-1] == 0
    assert len(end) == round(FADE_SECONDS * RATE)


@pytest.mark.parametrize("length", [0, 1, 50, 160, 4000])
def test_a_silent_or_tiny_chunk_is_no_exception(length):
    for level in (0.0, 0.5):
        joiner = Joiner(RATE)
        pieces = [joiner.push(np.full(length, level, np.float32)), joiner.end()]
        joiner.next_chunk(Break.SENTENCE)
        pieces += [joiner.push(np.full(length, level, np.float32)), joiner.end()]
        joiner.next_chunk(Break.SENTENCE)
        pieces += [joiner.push(np.full(800, 0.5, np.float32)), joiner.end()]
        whole = np.concatenate(pieces)
        assert np.isfinite(whole).all()
        assert 800 <= len(whole) <= 800 + 2 * length + 2 * 0.3 * RATE + 4 * EDGE_SECONDS * RATE
