"""The job behind `train.py`: store, model, packed rows, trainer, checkpoint.

RUN/config.yaml, provenance.json   what ran
RUN/metrics.jsonl                  a line every `trainer.log_every` steps
RUN/state/checkpoint-N             what `resume=true` continues from
RUN/checkpoint                     the result: weights, tokenizer, llasa.json
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path

import torch
from transformers import set_seed
from transformers.trainer_callback import PrinterCallback

from llasa.config import TrainConfig
from llasa.device import agree, is_first_process, part_processes, resolve_device, resolve_precision
from llasa.model.checkpoint import CheckpointCard, save_checkpoint
from llasa.model.llama import SpeechModel, build_for_training
from llasa.packing.collate import PackingCollator
from llasa.packing.dataset import PackedRows
from llasa.provenance import write_run_record
from llasa.tracking import METRICS, Tracker
from llasa.training.arguments import training_arguments
from llasa.training.callbacks import InterruptCallback, MetricsCallback
from llasa.training.data import open_store, packed_rows
from llasa.training.optim import build_optimizer_factory, optimizer_name
from llasa.training.state import resumable_state, step_of
from llasa.training.trainer import SpeechTrainer


def train(config: TrainConfig) -> float:
    """Train as configured and return the last logged loss (what a sweep minimises).

    Raises:
        UserError: no usable store, a store of another codec, a folder that holds another run, …
    """
    store = open_store(config)
    device = resolve_device(config.device)
    precision = resolve_precision(config.trainer.precision, device)
    settings = dataclasses.asdict(config)
    store_facts = {"codec": store.codec.to_dict(), "splits": store.manifest["splits"]}
    # The default folder has the time in it, and a run's own files must not look like another run's to a process
    # that starts later: the first process decides for all.
    run = Path(agree(config.output_dir, device))
    state = agree(resumable_state(run, config.resume, settings, store_facts) if is_first_process() else None, device)
    set_seed(config.seed)
    speech = build_for_training(config.model, config.kernels, store.codec, device, precision)
    data = packed_rows(config, store, speech.prompt)
    rows_per_step = config.trainer.rows_per_step
    num_steps = config.trainer.max_steps or math.ceil(data.rows_in(config.trainer.epochs) / rows_per_step)
    data.num_rows = num_steps * rows_per_step
    arguments = training_arguments(config, run, num_steps, device, precision)
    optimizer_factory = build_optimizer_factory(config.optimizer)

    resolved = {"device": device, "precision": precision, "kernels": speech.kernels, "attn": speech.attn}
    resolved["optimizer"] = optimizer_name(config.optimizer, device)
    tracker = None
    if is_first_process():
        write_run_record(run, config, resolved=resolved, store=store_facts)
        tracker = Tracker(run, config.logger, settings, start_step=step_of(state))
        print(describe(config, speech, data, num_steps, resolved), flush=True)
    metrics, interrupt = MetricsCallback(tracker, data, rows_per_step), InterruptCallback()
    finished = False
    try:
        trainer = SpeechTrainer(
            model=speech.model,
            args=arguments,
            train_dataset=data,
            data_collator=PackingCollator(
                pad_token_id=pad_token_id(speech), flatten=speech.attn == "flash_attention_2"
            ),
            optimizer_factory=optimizer_factory,
            schedule=config.schedule,
            callbacks=[metrics, interrupt],
        )
        trainer.remove_callback(PrinterCallback)
        with interrupt:
            trainer.train(resume_from_checkpoint=str(state) if state else None)
        if trainer.state.global_step < num_steps:
            print(f"continue with resume=true output_dir={run}", file=sys.stderr)
            raise KeyboardInterrupt
        finished = True
    finally:
        if tracker is not None:
            tracker.close(failed=not finished)
    if is_first_process():
        card = CheckpointCard(
            speech.card.rules,
            store.codec,
            tuple(dict.fromkeys([config.lang.code, *speech.card.languages])),
            max(speech.card.max_length, int(data.plan.lengths.max())),
        )
        dtype = torch.bfloat16 if precision == "bf16" else None
        save_checkpoint(run / "checkpoint", speech.model, speech.tokenizer, card, dtype)
        print(f"checkpoint: {run / 'checkpoint'}")
    part_processes()
    return last_loss(run)


def last_loss(run: Path) -> float:
    """The loss on the last line of a run's metrics: what a sweep compares, also when the run was finished before."""
    lines = (run / METRICS).read_text(encoding="utf-8").splitlines()
    return float(json.loads(lines[-1])["loss"]) if lines else math.nan


def pad_token_id(speech: SpeechModel) -> int:
    """Any valid id: padding is never attended to by an example and never supervised."""
    return speech.tokenizer.pad_token_id if speech.tokenizer.pad_token_id is not None else speech.vocabulary.speech_end


def describe(
    config: TrainConfig, speech: SpeechModel, data: PackedRows, num_steps: int, resolved: dict[str, str]
) -> str:
    parameters = sum(p.numel() for p in speech.model.parameters())
    dropped = f", {data.num_dropped:,} longer than {config.packing.max_length} left out" if data.num_dropped else ""
    return (
        f"{config.model.name}: {parameters / 1e6:,.1f} M parameters; {data.num_examples:,} examples{dropped}, "
        f"rows of {config.packing.max_length} tokens filled to {data.plan.efficiency():.0%}; {num_steps:,} steps; "
        f"{', '.join(f'{key} {value}' for key, value in resolved.items())}"
    )
