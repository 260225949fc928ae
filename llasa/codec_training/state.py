"""What an interrupted codec training goes on from: the same states on disk as `train.py`'s, one file in each.

RUN/state/checkpoint-N/training.pt   weights, their running mean, optimizers, discriminators, sums (torch.save)
RUN/state/checkpoint-N/state.json    the step, and every file's size and check sum (:mod:`llasa.training.saving`)

Everything random follows from the seed and the step, so no generator is saved.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from llasa.device import is_first_process
from llasa.errors import UserError
from llasa.provenance import CONFIG, differing_keys
from llasa.training.saving import PARTIAL, complete_state, disk_failure, is_disk_failure
from llasa.training.state import STATE, SavedState, comparison, is_within, wanted_state

TRAINING = "training.pt"
MAY_CHANGE = (
    "checkpoint", "codec_model.dtype", "device", "force", "heldout.every", "heldout.heard", "heldout.recordings",
    "logger", "objective", "output_dir", "recordings.folder", "resume", "trainer.log_every", "trainer.max_skipped",
)  # fmt: skip
"""Config keys that a resumed run may have otherwise: they change nothing that is learned."""
FIXED = ("codec_model.checkpoint", "codec_model.name", "codec_model.train")
"""May not change by force either: the weights would not fit."""


def resumable_state(run: Path, config: dict[str, Any]) -> SavedState | None:
    """The newest whole state of a run folder if it is to be continued, none for a new run.

    Only the first process may call this: it removes what a killed run was writing.

    Raises:
        UserError: resume with nothing to continue or another config; a new run in a folder that holds one.
    """
    saved = wanted_state(run, config["resume"])
    if saved is not None:
        refuse_other_config(run, saved, config)
    shutil.rmtree(run / STATE / PARTIAL, ignore_errors=True)
    return saved


def refuse_other_config(run: Path, saved: SavedState, config: dict[str, Any]) -> None:
    """Go on with the run as it was, unless the user insists.

    Raises:
        UserError: settings that make it another run.
    """
    before = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
    now = json.loads(json.dumps(config))
    changed = [key for key in sorted(differing_keys(before, now)) if not is_within(key, MAY_CHANGE)]
    fixed = [key for key in changed if is_within(key, FIXED)]
    if fixed or (changed and not config["force"]):
        told = fixed or changed
        remedy = "resume it as it was, or start a new run in another output_dir="
        if not fixed:
            remedy = "resume it as it was, go on with the new values with force=true, or start a new run"
        raise UserError(f"{run} was started with {comparison(told, now, before, 'not')}", remedy=remedy)
    if config["trainer"]["max_steps"] < saved.step:
        raise UserError(
            f"{saved.folder} has {saved.step} steps behind it, and this config ends after "
            f"{config['trainer']['max_steps']}",
            remedy=f"use trainer.max_steps={saved.step} or more",
        )
    if changed:
        print(f"warning: {run} goes on with {comparison(changed, before, now)}", file=sys.stderr, flush=True)


def load_state(saved: SavedState, device: str) -> dict[str, Any]:
    return torch.load(saved.folder / TRAINING, map_location=device, weights_only=True)


def save_state(run: Path, state: dict[str, Any], keep: int) -> bool:
    """Write a state, whole or not at all, and remove all but the ``keep`` newest; whether it is there.

    A disk that is full costs this state, not the run. Processes but the first write nothing.
    """
    if not is_first_process():
        return True
    step = state["step"]
    partial = run / STATE / PARTIAL / f"checkpoint-{step}"
    try:
        shutil.rmtree(partial.parent, ignore_errors=True)
        partial.mkdir(parents=True)
        torch.save(state, partial / TRAINING)
        facts = {"step": step, "position": {}, "logged_step": 0, "unlogged_losses": []}
        complete_state(partial, facts, keep)
    except Exception as error:  # torch has errors of its own for a full disk; others go on
        if not is_disk_failure(error):
            raise
        shutil.rmtree(partial.parent, ignore_errors=True)
        print(
            f"warning: the state of step {step} could not be written ({disk_failure(error, run)}); training goes on, "
            f"make room in {run} before the next one",
            file=sys.stderr,
            flush=True,
        )
        return False
    return True
