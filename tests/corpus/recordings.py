"""Recordings and corpora for tests, made from a seed: the same arguments give the same samples."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from llasa.corpus.espeak import SENTENCES


def tone(frequency: float, seconds: float, sample_rate: int, amplitude: float = 0.3) -> np.ndarray:
    """A sine of ``frequency`` Hz: float32 [samples]."""
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    return (amplitude * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


def speech_like(seconds: float, seed: int, sample_rate: int = 16_000) -> np.ndarray:
    """float32 [samples], peak 0.5: harmonics of a gliding pitch under moving formants, in four syllables a second,
    with a hiss between them. No words, but a speech codec has voiced and unvoiced sound to work on."""
    rng = np.random.default_rng(seed)
    samples = round(seconds * sample_rate)
    time = np.arange(samples) / sample_rate
    knots = np.arange(0, seconds + 0.5, 0.25)

    def glide(low: float, high: float) -> np.ndarray:
        return np.interp(time, knots, rng.uniform(low, high, len(knots)))

    pitch = glide(90, 180)
    phase = 2 * np.pi * np.cumsum(pitch) / sample_rate
    formants = [(glide(300, 800), 100.0), (glide(900, 2200), 150.0), (glide(2300, 3200), 200.0)]
    voice = np.zeros(samples)
    for harmonic in range(1, 30):
        frequency = harmonic * pitch
        gain = sum(1 / (1 + ((frequency - center) / width) ** 2) for center, width in formants)
        voice += np.where(frequency < 0.45 * sample_rate, gain / harmonic**0.5, 0) * np.sin(harmonic * phase)
    syllables = np.clip(np.sin(2 * np.pi * 4 * time) + 0.3, 0, None)
    hiss = 0.1 * rng.standard_normal(samples) * np.clip(-np.sin(2 * np.pi * 4 * time) - 0.5, 0, None)
    sound = voice * syllables + hiss * np.abs(voice).max(initial=0)
    return (0.5 * sound / np.abs(sound).max(initial=1e-9)).astype(np.float32)


def audio_bytes(waveform: np.ndarray, sample_rate: int, format: str = "WAV", subtype: str | None = None) -> bytes:
    """A file's content; ``waveform`` is [samples] or [samples, channels], ``format`` and ``subtype`` libsndfile's."""
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, sample_rate, format=format, subtype=subtype)
    return buffer.getvalue()


def write_audio(path: Path, waveform: np.ndarray, sample_rate: int = 16_000) -> Path:
    """Write a file in the format of its suffix (.wav, .flac, .mp3, .ogg)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(audio_bytes(waveform, sample_rate, path.suffix[1:].upper()))
    return path


def sentences(count: int, seed: int) -> list[str]:
    """Shipped Italian sentences, drawn with repetition."""
    shipped = (SENTENCES / "it.txt").read_text(encoding="utf-8").splitlines()
    return [str(text) for text in np.random.default_rng(seed).choice([line for line in shipped if line], count)]


def write_folder_corpus(
    folder: Path, count: int, seed: int, *, seconds: float = 0.6, sample_rate: int = 16_000, suffix: str = ".wav"
) -> Path:
    """An LJSpeech-form corpus: ``metadata.csv`` with lines ``clip-0000|text`` and ``wavs/clip-0000.wav``.

    Clip ``i`` lasts ``seconds`` plus 0 to 9 tenths of it.
    """
    lines = []
    for index, text in enumerate(sentences(count, seed)):
        clip = speech_like(seconds * (1 + index % 10 / 10), seed + index, sample_rate)
        write_audio(folder / "wavs" / f"clip-{index:04d}{suffix}", clip, sample_rate)
        lines.append(f"clip-{index:04d}|{text}\n")
    (folder / "metadata.csv").write_text("".join(lines), encoding="utf-8")
    return folder


def write_hub_corpus(folder: Path, layout: str, splits: dict[str, int], seed: int, sample_rate: int = 24_000) -> Path:
    """A data set as the hub stores it, with one configuration, ``italian``.

    Args:
        layout: whose columns, ``cml_tts`` or ``mls``. splits: the data set's names for them, and their rows.
    """
    rows = {name: [hub_row(layout, name, i, seed, sample_rate) for i in range(count)] for name, count in splits.items()}
    write_parquet_corpus(folder, rows, sample_rate, config="italian")
    files = "".join(f"  - split: {split}\n    path: italian/{split}-*\n" for split in splits)
    card = f"---\nconfigs:\n- config_name: italian\n  data_files:\n{files}---\n# A test's data set\n"
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def hub_row(layout: str, split: str, index: int, seed: int, sample_rate: int) -> dict[str, Any]:
    seconds = 0.5 + index / 10
    seed += 1000 * len(split) + index
    text = sentences(1, seed)[0]
    content = audio_bytes(speech_like(seconds, seed, sample_rate), sample_rate)
    row = {
        "audio": {"bytes": content, "path": f"{index}.wav"},
        "speaker_id": index % 2,
    }  # 0 is a speaker like any other
    if layout == "cml_tts":
        return row | {
            "wav_filesize": len(content),
            "text": text,
            "transcript_wav2vec": text.lower(),
            "levenshtein": 0.97,
            "duration": seconds,
            "num_words": len(text.split()),
        }
    assert layout == "mls"
    return row | {
        "original_path": f"http://example.org/{index}",
        "begin_time": 0.0,
        "end_time": seconds,
        "transcript": text,
        "audio_duration": seconds,
        "chapter_id": str(index),
        "file": f"{index}.flac",
        "id": f"{split}_{index:06d}",
    }


def write_parquet_corpus(
    folder: Path, rows: dict[str, list[dict[str, Any]]], sample_rate: int = 24_000, config: str = "data"
) -> Path:
    """Write each split's rows to ``CONFIG/SPLIT-00000-of-00001.parquet``, ``audio`` a struct of bytes and path."""
    import datasets

    datasets.disable_progress_bars()
    (folder / config).mkdir(parents=True)
    for split, split_rows in rows.items():
        data = datasets.Dataset.from_list(split_rows).cast_column("audio", datasets.Audio(sample_rate, decode=False))
        data.to_parquet(folder / config / f"{split}-00000-of-00001.parquet")
    return folder
