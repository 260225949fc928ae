"""An earlier run in the same folder: what to continue from, and whether it is the same run.

RUN/state/checkpoint-N   weights, optimizer, schedule, random numbers after step N, written by the trainer
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from llasa.errors import UserError
from llasa.provenance import CONFIG, RECORD, differing_keys

STATE = "state"
MAY_CHANGE = ("checkpoint", "device", "logger", "output_dir", "packing.workers", "resume", "trainer.log_every")
"""Config keys that a resumed run may have otherwise: they change neither what is learned nor its order."""


def resumable_state(run: Path, resume: bool, config: dict[str, Any], store: dict[str, Any]) -> Path | None:
    """The newest complete state of a run folder if it is to be continued, none for a new run.

    A folder whose run ended before its first state may be started again.

    Raises:
        UserError: resume with nothing to continue or another config or store; a new run in a folder that holds one.
    """
    state = newest_state(run)
    if not resume:
        if state is not None or (run / "checkpoint").exists():
            raise UserError(
                f"{run} holds a run already",
                remedy=f"continue it with resume=true output_dir={run}, or choose another output_dir=",
            )
        return None
    if state is None:
        raise UserError(
            f"there is nothing to resume in {run}", remedy="name the run with output_dir=, or leave out resume"
        )
    require_same_run(run, config, store)
    return state


def newest_state(run: Path) -> Path | None:
    """The last state that was written whole: the trainer writes `trainer_state.json` last."""
    whole = [path.parent for path in (run / STATE).glob("checkpoint-*/trainer_state.json") if is_json(path)]
    return max(whole, key=step_of, default=None)


def step_of(state: Path | None) -> int:
    return int(state.name.rpartition("-")[2]) if state else 0


def is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True


def require_same_run(run: Path, config: dict[str, Any], store: dict[str, Any]) -> None:
    """Refuse to continue a run with settings or a store that make it another one."""
    before = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
    now = json.loads(json.dumps(config))
    changed = [
        key
        for key in sorted(differing_keys(before, now))
        if not any(key == allowed or key.startswith(f"{allowed}.") for allowed in MAY_CHANGE)
    ]
    if changed:
        raise UserError(
            f"{run} was started with other values of {', '.join(changed)}",
            remedy="resume it with the same ones, or start a new run in another output_dir=",
        )
    if differing_keys(json.loads((run / RECORD).read_text())["store"], json.loads(json.dumps(store))):
        raise UserError(f"the store has changed since {run} was started", remedy="start a new run")
