"""Metrics of a run: `metrics.jsonl` always, Weights & Biases or TensorBoard as configured.

The JSON lines are on disk before a service is told anything, and a service that fails while training (the network
dies, a disk is full) is switched off with a warning: it never ends a run.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llasa.config import LoggerConfig
from llasa.provenance import write_atomically

METRICS = "metrics.jsonl"


class Tracker:
    """Writes one JSON object per line, and the same values to the configured service.

    Args:
        folder: the run folder. config: the resolved config, for the service.
        start_step: a resumed run's first step is the one after; later lines of the interrupted run are dropped.
    """

    def __init__(self, folder: Path, logger: LoggerConfig, config: dict[str, Any], *, start_step: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / METRICS
        _keep_steps(self.path, start_step)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - open for the whole run
        self._service: WandbRun | TensorBoardRun | None = None
        if logger.name == "wandb":
            try:
                self._service = WandbRun(folder, logger, config)
            except Exception as error:  # as in _tell; a wrong key or no network must not cost the run either
                print(f"warning: W&B cannot be used and is switched off: {error}", file=sys.stderr)
        elif logger.name == "tensorboard":
            self._service = TensorBoardRun(folder)

    def log(self, metrics: dict[str, float | int]) -> None:
        """Record metrics; `step` is among them. What is not finite becomes null: JSON has no NaN."""
        finite = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        self._file.write(json.dumps(finite, allow_nan=False) + "\n")
        self._file.flush()
        if self._service is not None:
            step = int(metrics["step"])
            self._tell(lambda service: service.log({k: v for k, v in metrics.items() if k != "step"}, step))

    def close(self, failed: bool = False) -> None:
        self._file.close()
        if self._service is not None:
            self._tell(lambda service: service.close(failed))

    def _tell(self, call: Callable[[Any], None]) -> None:
        try:
            call(self._service)
        except Exception as error:  # a service has many ways to fail, and none may end the training
            print(f"warning: {type(self._service).__name__} failed and is switched off: {error}", file=sys.stderr)
            self._service = None


class WandbRun:
    """A Weights & Biases run: online with a key, else offline in the run folder, for `wandb sync` later."""

    def __init__(self, folder: Path, logger: LoggerConfig, config: dict[str, Any]) -> None:
        import wandb

        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False, verify=False) else "offline")
        self._run = wandb.init(
            project=logger.project,
            name=logger.run_name or folder.name,
            group=logger.group,
            dir=str(folder),
            config=config,
            mode=mode,
            settings=wandb.Settings(silent=True),
        )

    def log(self, values: dict[str, float | int], step: int) -> None:
        self._run.log(values, step=step)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=1 if failed else 0)


class TensorBoardRun:
    """Event files in the run folder."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, values: dict[str, float | int], step: int) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def close(self, failed: bool) -> None:
        self._writer.close()


def _keep_steps(path: Path, last: int) -> None:
    """Drop the lines after step ``last`` and one that was cut off by a crash."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= last:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    write_atomically(path, "".join(kept).encode())
