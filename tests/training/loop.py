"""The real trainer over rows in their order, without the files of a run: for tests of what happens in its loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from llasa.packing.collate import PackingCollator


class InOrder(Trainer):
    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def train_in_order(
    folder: Path,
    model: torch.nn.Module,
    rows: Any,
    *,
    lr: float = 1e-2,
    rows_per_step: int = 1,
    log_every: int = 1,
    callbacks: tuple[TrainerCallback, ...] = (),
    collator: Any = None,
) -> InOrder:
    """One step for each ``rows_per_step`` rows, with AdamW; the trainer's `state.log_history` has the losses."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=len(rows) // rows_per_step,
        per_device_train_batch_size=rows_per_step,
        learning_rate=lr,
        lr_scheduler_type="constant",
        logging_steps=log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        report_to=[],
    )
    trainer = InOrder(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=collator or PackingCollator(pad_token_id=0),
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer


def losses(trainer: Trainer) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]
