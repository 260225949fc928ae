"""The result: a folder that `codec.checkpoint=` takes, with a card that says what it was trained on.

    RUN/checkpoint/config.json, model.safetensors   the averaged weights, in transformers' format
    RUN/checkpoint/README.md                        what, from what, on what, how far

Written whole under another name, then renamed: who reads the folder finds the old one or the new one.
"""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import Xcodec2Model

from llasa.codec.xcodec2 import fingerprint
from llasa.codec_training.heldout import Division
from llasa.codec_training.recordings import Recordings
from llasa.config import TrainCodecConfig
from llasa.provenance import provenance

CARD = "README.md"
DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


def save_codec(folder: Path, model: Xcodec2Model, dtype: str, card: str) -> None:
    """Write ``model`` (float32, with the weights that count) to ``folder``, in place of what is there."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    saved = model if dtype == "fp32" else copy.deepcopy(model).to(DTYPES[dtype])
    saved.save_pretrained(partial)
    (partial / CARD).write_text(card, encoding="utf-8")
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


def write_card(
    config: TrainCodecConfig,
    model: Xcodec2Model,
    recordings: Recordings,
    division: Division,
    step: int,
    measured: dict[str, float],
) -> str:
    """Markdown: facts of the run, none guessed. Who publishes it has to add the recordings' licence."""
    rate = recordings.sample_rate
    hours: dict[str, float] = {}
    for row in division.train:
        key = " / ".join(filter(None, (row.language, row.speaker))) or "unnamed"
        hours[key] = hours.get(key, 0.0) + row.length / rate / 3600
    largest = sorted(hours.items(), key=lambda item: -item[1])
    table = [f"| {name} | {value:.2f} |" for name, value in largest[:40]]
    if len(largest) > 40:
        table.append(f"| {len(largest) - 40:,} more | {sum(value for _, value in largest[40:]):.2f} |")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    start = config.codec_model.checkpoint or "scratch"
    part = "its decoder" if config.codec_model.train == "decoder" else "it"
    facts: dict[str, Any] = {
        "model": f"{config.codec_model.name}: transformers' `Xcodec2Model`, {parameters / 1e6:,.2f} M parameters",
        "codes": f"{rate / model.config.hop_length:g} a second at {rate:,} Hz",
        "trained from": start if start == "scratch" else f"{start} ({part})",
        "steps": f"{step:,} of {config.trainer.max_steps:,}, {config.trainer.clips_per_step} clips of "
        f"{config.recordings.clip_seconds:g} s each",
        "losses": ", ".join(
            f"{name} {value:g}" for name, value in vars(config.losses).items() if isinstance(value, float)
        )
        + (f" ({Path(config.losses.recognizer).name})" if config.losses.recognizer else ""),
        "discriminators": config.adversary.name
        if config.adversary.name == "none"
        else f"{config.adversary.name}, from step {config.adversary.start:,} on",
        "weights": f"running mean, decay {config.trainer.ema_decay:g}; stored in {config.codec_model.dtype}",
        "corpus": str(recordings.facts["source"].get("name", "")),
        "held out": f"{division.num_heldout:,} recordings"
        + (f"; voices {', '.join(config.heldout.speakers)}" if config.heldout.speakers else ""),
        "code": f"commit {provenance()['commit']}",
        "fingerprint before storing": fingerprint(model)[:16],
    }
    lines = [
        "# A speech codec",
        "",
        "Use it with `codec=xcodec2 codec.checkpoint=THIS_FOLDER`.",
        "",
        "| | |",
        "|---|---|",
    ]
    lines += [f"| {key} | {value} |" for key, value in facts.items()]
    lines += ["", "Trained on:", "", "| language / speaker | hours |", "|---|---|", *table]
    if measured:
        lines += ["", "On recordings it did not learn from, before it was stored:", "", "| | |", "|---|---|"]
        lines += [f"| {key} | {value} |" for key, value in measured.items() if key != "step"]
    return "\n".join(lines) + "\n"
