"""Small corpora and runs for the tests of codec training."""

from __future__ import annotations

import json
from pathlib import Path

from llasa.codec_training.run import train_codec
from llasa.entry import compose_config
from tests.corpus.recordings import speech_like, write_audio

RATE = 16_000


def write_recordings(folder: Path, lengths: dict[str, float], speakers: dict[str, str] | None = None) -> Path:
    """A folder corpus: recordings by id and seconds, without words, at 16 kHz."""
    lines = []
    for number, (name, seconds) in enumerate(lengths.items()):
        write_audio(folder / f"{name}.wav", speech_like(seconds, number), RATE)
        row = {"file_name": f"{name}.wav", "text": "", "id": name, "speaker": (speakers or {}).get(name, "")}
        lines.append(json.dumps(row) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def arguments(corpus: Path, folder: Path, *overrides: str) -> list[str]:
    """Of `train_codec.py`, for ten steps in seconds."""
    return [f"dataset.path={corpus}", "dataset=folder", f"output_dir={folder}", "adversary=none", "logger=none",
            "device=cpu", "trainer.max_steps=10", "trainer.clips_per_step=2", "trainer.clips_per_device=2",
            "trainer.log_every=1", "checkpoint.every=5", "checkpoint.keep=5", "heldout.every=0",
            "recordings.clip_seconds=0.4", *overrides]  # fmt: skip


def run(corpus: Path, folder: Path, *overrides: str) -> float:
    return train_codec(compose_config("train_codec", arguments(corpus, folder, *overrides)))


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def column(folder: Path, key: str) -> list[float]:
    return [line[key] for line in metrics(folder) if key in line]
