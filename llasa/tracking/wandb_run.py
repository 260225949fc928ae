"""A Weights & Biases run: online with a key, else offline in the run folder, for `wandb sync` later.

Every call is a row of its own with `step` in it, by which W&B is told to draw: its own counter would drop a row of
an earlier step. A resumed run goes on as the same one; rows that its files hold already are not logged twice, and
those that were lost with a killed process (W&B writes 32 KiB at a time) are logged again from `metrics.jsonl`.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llasa.config import LoggerConfig
from llasa.provenance import RECORD, write_atomically
from llasa.tracking.wandb_records import history, repair

if TYPE_CHECKING:
    import numpy as np

ID = "wandb_id"
"""File of the run folder with W&B's id of the run."""
OFFLINE = "offline-"
"""Begins the names of the folders of what was not uploaded."""
FINISH_SECONDS, FINISH_SECONDS_ARTIFACTS = 300, 3600
"""How long the end of a run waits for an upload. All is on disk then: `wandb sync` uploads the rest."""
START_SECONDS = 30
NAME_LENGTH = 128
"""What W&B's server allows."""


class WandbRun:
    """One segment of a run, from its start or a resume to its end.

    Args:
        rows: the lines of `metrics.jsonl` before this segment.
        resumed: go on with the run whose id is in the folder.

    Raises:
        Exception: whatever W&B raises when it refuses a name, and its package is missing.
    """

    name = "W&B"

    def __init__(
        self,
        folder: Path,
        logger: LoggerConfig,
        config: Mapping[str, Any],
        rows: Sequence[Mapping[str, Any]] = (),
        *,
        resumed: bool = False,
    ) -> None:
        # Reports of W&B's own errors and timings go over the network also in a run that is offline.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._folder = folder
        self._id = _run_id(folder, resumed)
        for path in _files(folder, self._id):
            if path.parent.name.startswith(OFFLINE):
                repair(path)
        logged = [row for path in _files(folder, self._id) for row in history(path)]
        self._run = self._start(wandb, logger, dict(config) | _record(folder), resumed)
        self._uploaded = 0
        if not self._run.settings._offline:
            # What counts is what the server has: rows in the order in which they were logged, as in the files.
            known = self._run.starting_step
            self._uploaded = max(0, known - len(logged))
            logged = logged[:known]
        self._held = {(row.get("step"), _keys(row)) for row in logged}
        self._run.define_metric("*", step_metric="step")
        for row in rows:
            self.log({key: value for key, value in row.items() if key != "step" and value is not None}, row["step"])
        if (folder / "git.diff").is_file():
            self._run.save(str(folder / "git.diff"), base_path=str(folder), policy="now")

    def _start(self, wandb: Any, logger: LoggerConfig, config: Mapping[str, Any], resumed: bool) -> Any:
        # Without this, a key is reason enough for wandb.login to print a greeting with the name it asks the server for.
        wandb.setup(wandb.Settings(silent=True))
        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False, verify=False) else "offline")
        settings: dict[str, Any] = {
            "silent": True,
            "console": "off",
            "disable_git": True,  # of the folder that the command was typed in, which may be another project's
            "disable_code": True,
            "finish_timeout_raises": True,
        }
        finish = FINISH_SECONDS_ARTIFACTS if logger.artifacts else FINISH_SECONDS
        for key, seconds in {"init_timeout": START_SECONDS, "finish_timeout": finish}.items():
            if f"WANDB_{key.upper()}" not in os.environ:
                settings[key] = seconds
        common = {
            "project": logger.project,
            "name": (logger.run_name or self._folder.name)[:NAME_LENGTH],
            "group": logger.group and logger.group[:NAME_LENGTH],
            "dir": str(self._folder),
            "config": config,
            "id": self._id,
            "resume": "allow" if resumed else None,
            "settings": wandb.Settings(**settings),
        }
        try:
            return wandb.init(mode=mode, **common)
        except wandb.errors.CommError as error:
            if mode != "online":
                raise
            print(f"warning: W&B cannot be reached, so the run is recorded offline: {error}", file=sys.stderr)
            wandb.teardown()  # its service still holds the id
            return wandb.init(mode="offline", **common)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        if self._is_new(values, step):
            self._run.log({"step": step, **values})

    def log_media(
        self, audio: Mapping[str, tuple[np.ndarray, int, str]], images: Mapping[str, np.ndarray], step: int
    ) -> None:
        if not self._is_new({**audio, **images}, step):
            return
        import wandb

        values: dict[str, Any] = {
            key: wandb.Audio(waveform, sample_rate=sample_rate, caption=caption)
            for key, (waveform, sample_rate, caption) in audio.items()
        }
        self._run.log({"step": step, **values, **{key: wandb.Image(picture) for key, picture in images.items()}})

    def _is_new(self, values: Mapping[str, Any], step: int) -> bool:
        """Whether W&B lacks a row; each of those that a resumed run has in common with its past is asked for once."""
        if not values or (step, _keys(values)) in self._held:
            return False
        if self._uploaded:
            self._uploaded -= 1
            return False
        return True

    def log_artifact(self, folder: Path, kind: str) -> None:
        import wandb

        name = re.sub(r"[^\w.-]", "-", f"{folder.name}-{self._id}", flags=re.ASCII)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        print(f"W&B artifact {name}: {folder}, {size / 1e6:,.1f} MB", flush=True)
        artifact = wandb.Artifact(name, type=kind)
        # Uploaded from where they are, by `wandb sync` too, wherever that is typed in; the other policy first copies
        # gigabytes into a cache.
        artifact.add_dir(str(folder.resolve()), policy="immutable")
        self._run.log_artifact(artifact, aliases=["latest", folder.name])

    def close(self, failed: bool) -> None:
        segment = Path(self._run.settings.sync_dir)
        late = False
        try:
            self._run.finish(exit_code=1 if failed else 0)
        except TimeoutError:
            late = True
            print("warning: W&B did not take everything in time", file=sys.stderr)
        if late:
            print(f"to upload the rest to W&B: wandb sync --include-online {segment}", flush=True)
        elif segment.name.startswith(OFFLINE):
            files = [path.parent for path in _files(self._folder, self._id)]
            offline = [str(place) for place in files if place.name.startswith(OFFLINE)]
            print(f"to upload the run to W&B: wandb sync {' '.join(offline)}", flush=True)


def _run_id(folder: Path, resumed: bool) -> str:
    """The id of the folder's run, new unless it is resumed."""
    path = folder / ID
    if resumed and path.is_file() and (known := path.read_text(encoding="utf-8").strip()):
        return known
    fresh = os.urandom(6).hex()
    write_atomically(path, f"{fresh}\n".encode())
    return fresh


def _record(folder: Path) -> dict[str, Any]:
    """What the folder says of where the run comes from: commit, versions, stores."""
    path = folder / RECORD
    return {"provenance": json.loads(path.read_text(encoding="utf-8"))} if path.is_file() else {}


def _files(folder: Path, run_id: str) -> list[Path]:
    """The files of all segments of a run, oldest first."""
    found = (folder / "wandb").glob(f"*run-*-{run_id}/run-{run_id}.wandb")
    return sorted(found, key=lambda path: path.parent.name.removeprefix(OFFLINE))


def _keys(row: Mapping[str, Any]) -> frozenset[str]:
    """What tells two rows of a step apart; W&B's own keys begin with an underscore."""
    return frozenset(key for key in row if key != "step" and not key.startswith("_"))
