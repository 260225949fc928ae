"""What happens around the steps of a codec training: lines, measurements, states, the result, an interruption."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tqdm import tqdm
from transformers import TrainerControl

from llasa.codec_training.clips import note_short_recordings
from llasa.codec_training.evaluate import Measurement
from llasa.codec_training.heldout import Division
from llasa.codec_training.recordings import Recordings
from llasa.codec_training.result import save_codec, write_card
from llasa.codec_training.state import save_state
from llasa.codec_training.trainer import CodecTrainer
from llasa.config import TrainCodecConfig
from llasa.device import is_first_process, num_processes
from llasa.errors import UserError
from llasa.provenance import write_run_record
from llasa.tracking import Tracker
from llasa.training.interrupt import InterruptCallback
from llasa.training.saving import final_checkpoint
from llasa.training.state import SavedState

CHECKPOINT = "checkpoint"


class CodecJob:
    """The steps, and what happens beside them: lines, measurements, states, the result."""

    def __init__(
        self,
        config: TrainCodecConfig,
        run: Path,
        trainer: CodecTrainer,
        recordings: Recordings,
        division: Division,
        start: str | None,
        saved: SavedState | None,
        device: str,
    ) -> None:
        self.config, self.run_folder, self.trainer = config, run, trainer
        self.recordings, self.division, self.start, self.device = recordings, division, start, device
        self.saved_step = saved.step if saved else 0
        self.measured: dict[str, float] = {}
        self.tracker: Tracker | None = None
        self.measurement: Measurement | None = None
        self.pauses = 0.0
        """Seconds that were no training."""

    def run(self, resolved: dict[str, Any], settings: dict[str, Any]) -> None:
        trainer, config = self.trainer, self.config
        if is_first_process():
            facts = {"recordings": self.recordings.facts, "start": self.start}
            write_run_record(self.run_folder, config, resolved=resolved, **facts)
            self.tracker = Tracker(self.run_folder, config.logger, settings, start_step=trainer.step)
            if self.division.measured and config.heldout.every:
                self.measurement = Measurement(
                    self.division.measured,
                    config.heldout.heard,
                    trainer.filter_bank,
                    trainer.spectral,
                    self.run_folder,
                    self.tracker,
                )
            print(self.describe(resolved), flush=True)
            note_short_recordings(trainer.clips)
        finished = False
        try:
            self.train()
            if self.tracker is not None:
                with final_checkpoint(self.run_folder, trainer.step, self.saved_step):
                    self.save_result()
                print(f"checkpoint: {self.run_folder / CHECKPOINT}")
                self.tracker.log_artifact(self.run_folder / CHECKPOINT, "model")
            finished = True
        finally:
            if self.tracker is not None:
                self.tracker.close(failed=not finished)

    def train(self) -> None:
        """All steps that are left; leaves after an interruption, with a state."""
        trainer, config = self.trainer, self.config
        last = config.trainer.max_steps
        interrupt, control = InterruptCallback(), TrainerControl()
        interrupt.on_train_begin(SimpleNamespace(world_size=num_processes()), None, control)
        bar = tqdm(
            total=last, initial=trainer.step, unit=" steps", desc="training", disable=None if self.tracker else True
        )
        self._mark = (trainer.step, time.perf_counter() - self.pauses)
        with interrupt, bar:
            while trainer.step < last:
                trainer.train_step()
                bar.update(1)
                self.refuse_too_many_skipped()
                if trainer.step % config.trainer.log_every == 0 or trainer.step == last:
                    self.log(bar)
                if config.heldout.every and (trainer.step % config.heldout.every == 0 or trainer.step == last):
                    self.measure()
                interrupt.on_step_end(SimpleNamespace(world_size=num_processes()), None, control)
                due = config.checkpoint.every and trainer.step % config.checkpoint.every == 0
                if due or interrupt.stopping or (config.checkpoint.every and trainer.step == last):
                    self.save()
                if interrupt.stopping:
                    break
        if interrupt.stopping and trainer.step < last:
            interrupt.leave(self.run_folder, trainer.step, self.saved_step)

    def log(self, bar: tqdm) -> None:
        trainer = self.trainer
        losses = trainer.take_losses()
        now = time.perf_counter() - self.pauses
        step, since = self._mark
        self._mark = (trainer.step, now)
        speed = (trainer.step - step) / max(now - since, 1e-9)
        if self.tracker is None:
            return
        config = self.config
        audio = config.trainer.clips_per_step * trainer.clips.clip_samples / self.recordings.sample_rate
        row = {"step": trainer.step, "loss": None, **losses}
        row |= {
            "lr": trainer.lr(),
            "rounding": round(trainer.last_rounding, 4),
            **trainer.usage.metrics(),
            "skipped": trainer.skipped,
            "steps_per_second": round(speed, 4),
            "audio_per_second": round(speed * audio, 2),
            "audio_hours": round(trainer.step * audio / 3600, 5),
        }
        self.tracker.log(row)
        left = (config.trainer.max_steps - trainer.step) / max(speed, 1e-9)
        shown = f"loss {row['loss'] or float('nan'):.3f}, {row['codes']:,} codes, {speed:.2f} steps/s"
        bar.set_postfix_str(shown)
        if bar.disable:
            print(
                f"step {trainer.step}/{config.trainer.max_steps}: {shown}, {hours_and_minutes(left)} left", flush=True
            )

    def measure(self) -> None:
        """The first process does; the others wait for it in the next step."""
        if self.tracker is None:
            return
        start = time.perf_counter()
        self.tracker.log_media(self.trainer.step, images={"codes/levels": self.trainer.usage.picture()})
        if self.measurement is not None:
            with self.trainer.averaged_weights() as model:
                self.measured = self.measurement(model, self.trainer.step, self.device)
            shown = ", ".join(f"{key} {value:g}" for key, value in self.measured.items() if key != "step")
            tqdm.write(f"step {self.trainer.step}: {shown}")
        self.pauses += time.perf_counter() - start

    def save(self) -> None:
        """A state, and beside it the result so far."""
        start = time.perf_counter()
        if save_state(self.run_folder, self.trainer.state_dict() | {"start": self.start}, self.config.checkpoint.keep):
            self.saved_step = self.trainer.step
        if self.tracker is not None and self.trainer.step < self.config.trainer.max_steps:
            try:
                self.save_result()
            except OSError as error:
                print(f"warning: {self.run_folder / CHECKPOINT} could not be renewed: {error}", file=sys.stderr)
        self.pauses += time.perf_counter() - start

    def save_result(self) -> None:
        with self.trainer.averaged_weights() as model:
            card = write_card(self.config, model, self.recordings, self.division, self.trainer.step, self.measured)
            save_codec(self.run_folder / CHECKPOINT, model, self.config.codec_model.dtype, card)

    def refuse_too_many_skipped(self) -> None:
        if self.trainer.skipped_in_a_row >= self.config.trainer.max_skipped:
            raise UserError(
                f"the losses or gradients of {self.trainer.skipped_in_a_row} steps in a row, up to step "
                f"{self.trainer.step}, are not numbers",
                remedy="lower codec_model.lr or raise schedule.warmup; resume=true force=true goes on with them from "
                "the last state",
            )

    def describe(self, resolved: dict[str, Any]) -> str:
        """What is about to be trained on what, for the person who waits."""
        trainer, config = self.trainer, self.config
        learning = sum(parameter.numel() for parameter in trainer.learning.values())
        parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
        judges = sum(p.numel() for p in trainer.discriminators.parameters()) if trainer.discriminators else 0
        judged = f", discriminators {judges / 1e6:,.1f} M from step {config.adversary.start:,} on" if judges else ""
        return "\n".join(
            [
                self.recordings.describe(),
                self.division.describe(),
                f"{config.codec_model.name}: {parameters / 1e6:,.2f} M parameters, {learning / 1e6:,.2f} M learn"
                f"{judged}; "
                f"{config.trainer.max_steps:,} steps of {config.trainer.clips_per_step} clips of "
                f"{trainer.clips.clip_samples / self.recordings.sample_rate:g} s; "
                f"{', '.join(f'{key} {value}' for key, value in resolved.items())}",
            ]
        )


def hours_and_minutes(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
