"""What an interrupted run goes on from: choosing the newest whole state, and whether it is the same run.

RUN/state/checkpoint-N             weights, optimizer, schedule, random numbers after step N
RUN/state/checkpoint-N/state.json  position in the data, and every file's size and check sum (see saving.py)
RUN/state/.partial                 a state that is being written, or was when its process was killed

Cost: at most 1 MB is read of each file of the state that is chosen.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from llasa.errors import UserError
from llasa.packing.dataset import PackedRows
from llasa.provenance import CONFIG, RECORD, differing_keys
from llasa.training.saving import PARTIAL, DamagedStateError, read_state, step_of

STATE = "state"
MAY_CHANGE = (
    "checkpoint", "device", "force", "heldout", "logger", "objective", "output_dir", "packing.workers", "plan",
    "resume", "samples", "sanity", "trainer.log_every",
)  # fmt: skip
"""Config keys that a resumed run may have otherwise: they change neither what is learned nor its order."""
ROUNDING = ("kernels", "parallel", "trainer.activation_checkpointing", "trainer.rows_per_device")
"""May change too, with a note: the same arithmetic in another order."""
FIXED = (
    "finetune.embeddings", "finetune.name", "finetune.rank", "finetune.train", "model.architecture",
    "model.checkpoint", "model.codec", "optimizer._target_",
)  # fmt: skip
"""May not change by force either: weights and optimizer states would not fit."""


@dataclass(frozen=True)
class SavedState:
    """A state to go on from.

    Attributes:
        step: optimizer steps done.
        position: the row that comes next, see :meth:`PackedRows.position`.
        logged_step: the step of the last line in the metrics.
        unlogged_losses: each process's sum of the losses since then.
        changed: config keys that differ from those the state was trained with.
    """

    folder: Path
    step: int
    position: dict[str, Any]
    logged_step: int
    unlogged_losses: list[float]
    changed: tuple[str, ...] = field(default=())

    def has_changed(self, key: str) -> bool:
        return any(is_within(changed, (key,)) for changed in self.changed)


def resumable_state(run: Path, config: dict[str, Any], store: dict[str, Any]) -> SavedState | None:
    """The newest whole state of a run folder if it is to be continued, none for a new run.

    A folder whose run ended before its first state may be started again. Only the first process may call this: it
    removes what a killed run was writing.

    Args:
        config: the resolved config, with ``resume`` and ``force``. store: facts that tell one store from another.

    Raises:
        UserError: resume with nothing to continue or another config or store; a new run in a folder that holds one.
    """
    saved = wanted_state(run, config["resume"])
    if saved is not None:
        saved = replace(saved, changed=accepted_changes(run, saved, config, store))
    shutil.rmtree(run / STATE / PARTIAL, ignore_errors=True)
    return saved


def wanted_state(run: Path, resume: bool | str) -> SavedState | None:
    """What ``resume`` (true, false or auto) asks for in a run folder: its newest whole state, or none for a new run.

    Raises:
        UserError: nothing to continue, or a new run in a folder that holds one.
    """
    states = any((run / STATE).glob("checkpoint-*"))
    if not (states if resume == "auto" else resume):
        if states or (run / "checkpoint").exists():
            raise UserError(
                f"{run} holds a run already",
                remedy=f"continue it with resume=true output_dir={run}, or choose another output_dir=",
            )
        return None
    saved = newest_state(run)
    if saved is None:
        raise UserError(
            f"there is nothing to resume in {run}", remedy="name the run with output_dir=, or leave out resume"
        )
    return saved


def newest_state(run: Path) -> SavedState | None:
    """The last state that is whole; a damaged one is named and passed over."""
    damaged: list[tuple[Path, str]] = []
    whole = None
    for folder in sorted((run / STATE).glob("checkpoint-*"), key=step_of, reverse=True):
        try:
            whole = SavedState(folder, **read_state(folder))
            break
        except DamagedStateError as error:
            damaged.append((folder, str(error)))
    instead = f"going on from {whole.folder.name}" if whole else "no other is left"
    for folder, reason in damaged:
        print(f"warning: {folder} is damaged ({reason}); {instead}", file=sys.stderr, flush=True)
    return whole


def accepted_changes(run: Path, saved: SavedState, config: dict[str, Any], store: dict[str, Any]) -> tuple[str, ...]:
    """The keys that differ from the run's own, if it may be continued with them.

    Raises:
        UserError: settings or a store that make it another run.
    """
    before = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
    before.setdefault("speaker_tags", False)  # a run of before there were any
    now = json.loads(json.dumps(config))
    keys = [key for key in sorted(differing_keys(before, now)) if not is_within(key, MAY_CHANGE)]
    require_fitting_weights(run, saved, keys, before, now)
    rounding = [key for key in keys if is_within(key, ROUNDING)]
    changed = [key for key in keys if key not in rounding]
    same_store = not differing_keys(json.loads((run / RECORD).read_text())["store"], json.loads(json.dumps(store)))
    if not config["force"]:
        if changed:
            longer = all(key in ("trainer.epochs", "trainer.max_steps") for key in changed)
            meaning = " (the schedule is then stretched over all steps)" if longer else ""
            raise UserError(
                f"{run} was started with {comparison(changed, now, before, 'not')}",
                remedy=f"resume it as it was, go on with the new values with force=true{meaning}, or start a new run "
                "in another output_dir=",
            )
        if not same_store:
            raise UserError(
                f"the store has changed since {run} was started",
                remedy="start a new run, or go on with what it holds now with force=true",
            )
    if rounding:
        print(f"note: {run} goes on with {comparison(rounding, before, now)}: equal up to rounding", file=sys.stderr)
    if changed or not same_store:
        parts = [comparison(changed, before, now)] if changed else []
        parts += [] if same_store else ["another store"]
        print(f"warning: {run} goes on with {', '.join(parts)}", file=sys.stderr, flush=True)
    return tuple(keys)


def require_fitting_weights(
    run: Path, saved: SavedState, keys: list[str], before: dict[str, Any], now: dict[str, Any]
) -> None:
    """Refuse what no force can make fit: other weights, other optimizer states, another way to store them."""
    fixed = [key for key in keys if is_within(key, FIXED)]
    sharded = any(saved.folder.glob("pytorch_model_fsdp*"))
    if fixed:
        raise UserError(
            f"{run} was started with {comparison(fixed, now, before, 'not')}, and its weights fit nothing else",
            remedy="resume it as it was, or start a new run in another output_dir=",
        )
    if sharded != (now["parallel"]["name"] == "fsdp"):
        raise UserError(
            f"{saved.folder} was {'' if sharded else 'not '}written with parallel=fsdp",
            remedy=f"resume it with parallel={before['parallel']['name']}",
        )


def comparison(keys: list[str], before: dict[str, Any], now: dict[str, Any], word: str = "was") -> str:
    """`optimizer.lr=0.1 (was 0.2), seed=1 (was 0)`."""
    return ", ".join(f"{key}={value_at(now, key)} ({word} {value_at(before, key)})" for key in keys)


def value_at(config: Any, key: str) -> str:
    """The value under a dotted key as one would type it."""
    for part in key.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return "null" if config is None else str(config).lower() if isinstance(config, bool) else str(config)


def is_within(key: str, groups: tuple[str, ...]) -> bool:
    return any(key == group or key.startswith(f"{group}.") for group in groups)


def continue_data(data: PackedRows, saved: SavedState, rows_per_step: int, force: bool) -> None:
    """Let ``data`` go on at the row that comes next, also when a step has another number of rows now.

    Raises:
        UserError: the plan has changed, and nobody forces it.
    """
    exact = data.continue_from(saved.position, saved.step * rows_per_step)
    if not exact and not force:
        raise UserError(
            f"the rows to train on are not those that {saved.folder} was in the middle of",
            remedy="the store or the code that packs it has changed: start a new run, or go on at the same part of "
            "the epoch with force=true",
        )


def steps_to_train(
    data: PackedRows, max_steps: int | None, epochs: float, rows_per_step: int, saved: SavedState | None
) -> int:
    """Optimizer steps of the whole run, those before ``saved`` included.

    Raises:
        UserError: the run has done more of them.
    """
    num_steps = max_steps or math.ceil((data.rows_in(epochs) - data.shift) / rows_per_step)
    if saved is not None and num_steps < saved.step:
        raise UserError(
            f"{saved.folder} has {saved.step} steps behind it, and this config ends after {num_steps}",
            remedy=f"use trainer.max_steps={saved.step} or more",
        )
    return num_steps
