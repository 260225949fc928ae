"""The best checkpoint so far, by a metric of the run's.

RUN/best             a checkpoint as RUN/checkpoint is, whole: it is replaced when all of the next one is written
RUN/best/best.json   its step, the metric and its value, and everything else that was measured at that step

What was measured is read from the run's metrics, so any key will do that is logged before this callback's turn: put it
after those that measure. Cost: a checkpoint is written whenever the metric improves, while the devices wait.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llasa.config import TrainConfig
from llasa.device import agree, is_first_process
from llasa.model.checkpoint import replaced_folder
from llasa.provenance import write_json
from llasa.sweep import direction
from llasa.tracking import METRICS
from llasa.training.saving import disk_failure, is_disk_failure

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FOLDER, FILE = "best", "best.json"
TAIL_BYTES = 1 << 20
"""Of the metrics' file, in which the lines of the last step are."""


@dataclass(frozen=True)
class Best:
    """What RUN/best is."""

    step: int
    metric: str
    value: float
    metrics: dict[str, Any]

    def describe(self, run: Path) -> str:
        return f"best: {run / FOLDER} (step {self.step}, {self.metric} {self.value:.4g})"


def is_better(metric: str, value: float, than: float) -> bool:
    return value > than if direction(metric) == "maximize" else value < than


def metrics_at(path: Path, step: int) -> dict[str, Any]:
    """All that was logged at the newest step, from the last lines of a run's metrics; empty if it is another step."""
    with open(path, "rb") as file:
        file.seek(max(os.fstat(file.fileno()).st_size - TAIL_BYTES, 0))
        lines = file.read().splitlines()
    found: dict[str, Any] = {}
    for line in reversed(lines):
        try:
            metrics = json.loads(line)
        except ValueError:  # the first one of the tail, or one that a full disk cut off for now
            continue
        if metrics["step"] != step:
            break
        found = metrics | found
    return found


def read_best(run: Path) -> Best | None:
    """What RUN/best says of itself, none where there is nothing that can be read."""
    try:
        return Best(**json.loads((run / FOLDER / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


class BestCallback(TrainerCallback):
    """Writes RUN/best when the metric is better than ever; one that cannot be written costs no more than itself.

    It looks when the metric is due: every `heldout.every` steps, `samples.every` for what is measured on samples, and
    at the last step.

    Args:
        whole: the model with whole weights; all processes call it together (see `whole_model`).
        save: writes a model as a checkpoint into a folder; only the first process calls it.

    Attributes:
        kept: what RUN/best is, as the first process knows it.
        seconds: spent here so far, which are not the training's.
    """

    def __init__(
        self,
        config: TrainConfig,
        run: Path,
        whole: Callable[[], PreTrainedModel],
        save: Callable[[Path, PreTrainedModel], None],
    ) -> None:
        self.metric = config.heldout.metric
        self.every = config.samples.every if self.metric.startswith("samples/") else config.heldout.every
        self.run, self.whole, self.save = run, whole, save
        self.seconds = 0.0
        self.kept: Best | None = None
        self._told = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remember the best of a resumed run. One from a step after the resume is of a future that is replaced."""
        if not is_first_process():
            return
        folder, earlier = self.run / FOLDER, self.run / f".{FOLDER}.old"
        if earlier.exists() and not folder.exists():  # killed between the two renames that replace it
            os.replace(earlier, folder)
        for leftover in self.run.glob(f".*{FOLDER}.*"):
            shutil.rmtree(leftover, ignore_errors=True)
        self.kept = read_best(self.run)
        if self.kept is None or self.kept.step > state.global_step:
            self.kept = None
            shutil.rmtree(folder, ignore_errors=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        step = state.global_step
        if state.max_steps > step and (not self.every or step % self.every):
            return
        began = time.perf_counter()
        better = agree(self._better(step) if is_first_process() else None, args.device.type)
        if better is None:
            return
        model = self.whole()
        if is_first_process():
            self._keep(better, model)
        self.seconds += time.perf_counter() - began

    def _better(self, step: int) -> Best | None:
        """What this step would be as the best one, if it is."""
        metrics = metrics_at(self.run / METRICS, step)
        value = metrics.get(self.metric)
        if metrics and self.metric not in metrics and not self._told:
            known = ", ".join(sorted(metrics.keys() - {"step"}))
            tell(
                f"heldout.metric={self.metric} was not measured at step {step}, so no checkpoint is the best one "
                f"(measured: {known or 'nothing'})"
            )
        self._told = True
        if value is None:
            return None
        best = Best(step, self.metric, value, metrics)
        return best if self.kept is None or self._is_improvement(best, self.kept) else None

    def _is_improvement(self, new: Best, old: Best) -> bool:
        """A resumed run may have another metric, or measure other rows; then the new one counts."""
        before = old.metrics.get(new.metric)
        same_rows = old.metrics.get("heldout/tokens") == new.metrics.get("heldout/tokens")
        if before is None or not (same_rows or not new.metric.startswith("heldout/")):
            return True
        return is_better(new.metric, new.value, before)

    def _keep(self, best: Best, model: PreTrainedModel) -> None:
        try:
            with replaced_folder(self.run / FOLDER) as folder:
                self.save(folder, model)
                write_json(folder / FILE, asdict(best))
        except Exception as error:
            # A full disk arrives as a UserError around what the writer said.
            cause: BaseException = error
            while not is_disk_failure(cause) and cause.__cause__ is not None:
                cause = cause.__cause__
            if not is_disk_failure(cause):
                raise
            tell(
                f"the best checkpoint so far, of step {best.step}, could not be written "
                f"({disk_failure(cause, self.run)}); training goes on, make room in {self.run}"
            )
        else:
            self.kept = best


def tell(warning: str) -> None:
    tqdm.write(f"warning: {warning}", file=sys.stderr)
