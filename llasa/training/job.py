"""What a run of `train.py` is made of before its first step: folder, saved state, model, data, the result's card."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, set_seed

from llasa.config import TrainConfig
from llasa.device import agree, first_decides, num_processes, resolve_device, resolve_precision
from llasa.errors import UserError
from llasa.model.activation_checkpointing import apply_activation_checkpointing
from llasa.model.checkpoint import CheckpointCard, save_checkpoint
from llasa.model.llama import SpeechModel, build_for_training
from llasa.packing.dataset import PackedRows
from llasa.provenance import write_run_record
from llasa.tracking import Tracker
from llasa.training.data import (
    Stores,
    open_stores,
    packed_rows,
    trained_languages,
    trained_speakers,
    with_speaker_tags,
)
from llasa.training.heldout_rows import HeldOutRows, heldout_rows
from llasa.training.optim import check_optimizer, optimizer_name
from llasa.training.overfit import overfit_batch
from llasa.training.parallel import resolve_parallel
from llasa.training.state import SavedState, continue_data, resumable_state, steps_to_train


@dataclass(frozen=True)
class TrainingJob:
    """All of a run but its steps.

    Attributes:
        run: the folder, the same in all processes.
        saved: what it goes on from.
        card: of the checkpoint that comes out.
        measured: held-out rows, where there are any to measure.
        precision, parallel: resolved, no longer auto.
    """

    config: TrainConfig
    run: Path
    saved: SavedState | None
    device: str
    precision: str
    parallel: str
    stores: Stores
    speech: SpeechModel
    data: PackedRows
    measured: HeldOutRows | None
    num_steps: int
    card: CheckpointCard

    @property
    def resolved(self) -> dict[str, str | int]:
        """What the config left open, for people and the record."""
        return {
            "device": self.device,
            "precision": self.precision,
            "kernels": self.speech.kernels,
            "attn": self.speech.attn,
            "parallel": self.parallel,
            "processes": num_processes(),
            "optimizer": optimizer_name(self.config.optimizer, self.device, self.parallel),
        }

    def record(self) -> Tracker:
        """Begin the run's record, and say what is about to happen. Of the first process."""
        config, store = self.config, self.stores.facts()
        sources = [asdict(source) for source in self.data.sources]
        notes: dict[str, Any] = {"store": store, "model": self.speech.notes, "sources": sources}
        write_run_record(self.run, config, resolved=self.resolved, **notes)
        if self.measured is not None:
            print(self.measured.describe(), flush=True)
        print(describe(config, self.speech, self.data, self.num_steps, self.resolved), flush=True)
        return Tracker(self.run, config.logger, asdict(config), start_step=self.saved.step if self.saved else 0)

    def save(self, folder: Path, model: PreTrainedModel) -> None:
        """Write ``model`` as a checkpoint that speaks."""
        dtype = torch.bfloat16 if self.precision == "bf16" else None
        save_checkpoint(folder, model, self.speech.tokenizer, self.card, dtype)


def prepare(config: TrainConfig) -> TrainingJob:
    """Open and build what ``config`` names.

    Raises:
        UserError: no usable store, a store of another codec, a folder that holds another run, …
    """
    device = resolve_device(config.device)
    parallel = resolve_parallel(config, device)
    stores = open_stores(config)
    precision = resolve_precision(config.trainer.precision, device)
    # The default folder has the time in it, and a run's own files must not look like another run's to a process
    # that starts later: the first process decides for all.
    run = Path(agree(config.output_dir, device))
    saved = first_decides(lambda: resumable_state(run, asdict(config), stores.facts()), device)
    check_optimizer(config.optimizer, device, parallel)
    set_seed(config.seed)
    speech = build_for_training(
        config.model, config.kernels, stores.codec, device, precision, config.finetune, config.trainer.parameters
    )
    speech = with_speaker_tags(speech, config.speaker_tags)
    apply_activation_checkpointing(speech.model, config.trainer.activation_checkpointing)
    data = packed_rows(config, stores, speech.prompt)
    rows_per_step = config.trainer.rows_per_step
    if config.debug == "overfit_batch":
        overfit_batch(data, rows_per_step)
    if saved is not None:
        continue_data(data, saved, rows_per_step, config.force)
    measuring = config.heldout.every and config.debug is None
    measured = heldout_rows(config, stores, speech.prompt, data) if measuring else None
    if config.objective.startswith("heldout/") and measured is None:
        raise UserError(
            f"objective={config.objective} is measured on held-out speech, of which this run has none",
            remedy="use a store with a held-out split and heldout.every above 0, or objective=loss",
        )
    num_steps = steps_to_train(data, config.trainer.max_steps, config.trainer.epochs, rows_per_step, saved)
    data.num_rows = num_steps * rows_per_step
    card = replace(
        speech.card,
        codec=stores.codec,
        languages=tuple(dict.fromkeys([*trained_languages(data), *speech.card.languages])),
        max_length=max(speech.card.max_length, int(data.plan.lengths.max())),
    ).with_speakers(trained_speakers(data))
    return TrainingJob(config, run, saved, device, precision, parallel, stores, speech, data, measured, num_steps, card)


def describe(
    config: TrainConfig, speech: SpeechModel, data: PackedRows, num_steps: int, resolved: dict[str, str | int]
) -> str:
    """What is about to be trained on what, for the person who waits: a line, and one for each of several sources."""
    weights = speech.notes["finetune"]
    learn = "" if weights["trainable"] == weights["all"] else f" ({weights['trainable'] / 1e6:,.1f} M of them learn)"
    dropped = f", {data.num_dropped:,} longer than {config.packing.max_length} left out" if data.num_dropped else ""
    lines = [
        f"{config.model.name}: {weights['all'] / 1e6:,.1f} M parameters{learn}; "
        f"{data.num_examples:,} examples{dropped}, rows of {config.packing.max_length} tokens "
        f"filled to {data.plan.efficiency():.0%}; {num_steps:,} steps; "
        f"{', '.join(f'{key} {value}' for key, value in resolved.items())}"
    ]
    if len(data.sources) > 1:
        lines += [
            f"{source.name}: {source.num_examples:,} examples, {source.share:.1%} of the tokens, "
            f"{source.repeats:.2f} times an epoch"
            for source in data.sources
        ]
    return "\n".join(lines)
