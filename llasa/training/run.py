"""The job behind `train.py`: store, model, packed rows, trainer, checkpoint.

RUN/config.yaml, provenance.json   what ran
RUN/metrics.jsonl                  a line every `trainer.log_every` steps
RUN/state/checkpoint-N             what `resume=true` continues from
RUN/checkpoint                     the result: weights, tokenizer, llasa.json
"""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path

import torch
from transformers import TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint

from llasa.build import build
from llasa.config import TrainConfig
from llasa.corpus.store import TokenStore
from llasa.device import agree, is_first_process, part_processes, resolve_device, resolve_precision
from llasa.errors import UserError
from llasa.model.checkpoint import CheckpointCard, save_checkpoint
from llasa.model.llama import SpeechModel, build_for_training
from llasa.packing.collate import PackingCollator
from llasa.packing.dataset import PackedRows
from llasa.provenance import write_run_record
from llasa.tracking import METRICS, Tracker
from llasa.training.callbacks import MetricsCallback
from llasa.training.optim import optimizer_name
from llasa.training.trainer import SpeechTrainer


def train(config: TrainConfig) -> float:
    """Train as configured and return the last logged loss (what a sweep minimises).

    Raises:
        UserError: no usable store, a store of another codec, a folder that holds another run, …
    """
    codec = f" codec={config.model.codec or 'codec2'}" if config.model.codec != "xcodec2" else ""
    store = TokenStore(config.store, command=f"python preprocess.py lang={config.lang.code}{codec}")
    if config.lang.code not in store.manifest["languages"]:
        raise UserError(
            f"lang={config.lang.code} is not in {config.store}, which holds {', '.join(store.manifest['languages'])}",
            remedy="pass the store's language",
        )
    device = resolve_device(config.device)
    precision = resolve_precision(config.trainer.precision, device)
    # The default folder has the time in it, and a run's own files must not look like another run's to a process
    # that starts later: the first process decides for all.
    run = Path(agree(config.output_dir, device))
    state = agree(resumable_state(run, config.resume) if is_first_process() else None, device)
    set_seed(config.seed)
    speech = build_for_training(config.model, config.kernels, store.codec, device)
    data = PackedRows(
        store.rows("train"),
        speech.prompt,
        max_length=config.packing.max_length,
        window=config.packing.window,
        seed=config.seed,
    )
    rows_per_step = config.trainer.rows_per_step
    num_steps = config.trainer.max_steps or math.ceil(data.rows_in(config.trainer.epochs) / rows_per_step)
    data.num_rows = num_steps * rows_per_step

    resolved = {"device": device, "precision": precision, "kernels": speech.kernels, "attn": speech.attn}
    resolved["optimizer"] = optimizer_name(config.optimizer, device)
    tracker = None
    if is_first_process():
        write_run_record(
            run, config, resolved=resolved, store={"codec": store.codec.to_dict(), "rows": data.num_examples}
        )
        tracker = Tracker(run, config.logger, dataclasses.asdict(config), start_step=step_of(state))
        print(describe(config, speech, data, num_steps, resolved), flush=True)
    metrics = MetricsCallback(tracker, data, rows_per_step)
    trainer = SpeechTrainer(
        model=speech.model,
        args=training_arguments(config, run, num_steps, device, precision),
        train_dataset=data,
        data_collator=PackingCollator(pad_token_id=pad_token_id(speech)),
        optimizer_factory=build(config.optimizer),
        schedule=config.schedule,
        callbacks=[metrics],
    )
    trainer.remove_callback(PrinterCallback)
    finished = False
    try:
        trainer.train(resume_from_checkpoint=state)
        finished = True
    finally:
        if tracker is not None:
            tracker.close(failed=not finished)
    if is_first_process():
        languages = tuple(sorted({*speech.card.languages, *store.manifest["languages"]}))
        card = CheckpointCard(speech.card.rules, store.codec, languages, config.packing.max_length)
        dtype = torch.bfloat16 if precision == "bf16" else None
        save_checkpoint(run / "checkpoint", speech.model, speech.tokenizer, card, dtype)
        print(f"checkpoint: {run / 'checkpoint'}")
    part_processes()
    return float(metrics.last.get("loss", math.nan))


def resumable_state(run: Path, resume: bool) -> str | None:
    """The newest state in a run folder, if it is to be continued.

    Raises:
        UserError: resume without anything to continue, or a folder with a run that would be overwritten.
    """
    if resume:
        state = get_last_checkpoint(str(run / "state")) if (run / "state").is_dir() else None
        if state is None:
            raise UserError(f"there is nothing to resume in {run}", remedy="start it with resume=false")
        return state
    if (run / METRICS).exists() or (run / "checkpoint").exists():
        raise UserError(
            f"{run} holds a run already", remedy="continue it with resume=true or choose another output_dir="
        )
    return None


def step_of(state: str | None) -> int:
    return int(state.rpartition("-")[2]) if state else 0


def pad_token_id(speech: SpeechModel) -> int:
    """Any valid id: padding is never attended to by an example and never supervised."""
    return speech.tokenizer.pad_token_id if speech.tokenizer.pad_token_id is not None else speech.vocabulary.speech_end


def training_arguments(
    config: TrainConfig, run: Path, num_steps: int, device: str, precision: str
) -> TrainingArguments:
    settings = config.trainer
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    per_pass = settings.rows_per_device * world_size
    if settings.rows_per_step % per_pass:
        raise UserError(
            f"trainer.rows_per_step={settings.rows_per_step} cannot be shared by {world_size} devices with "
            f"trainer.rows_per_device={settings.rows_per_device}",
            remedy=f"use a multiple of {per_pass}",
        )
    return TrainingArguments(
        output_dir=str(run / "state"),
        max_steps=num_steps,
        per_device_train_batch_size=settings.rows_per_device,
        gradient_accumulation_steps=settings.rows_per_step // per_pass,
        max_grad_norm=settings.max_grad_norm,
        bf16=precision == "bf16",
        use_cpu=device == "cpu",
        gradient_checkpointing=settings.gradient_checkpointing,
        logging_steps=settings.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="steps" if config.checkpoint.every else "no",
        save_steps=config.checkpoint.every or 500,
        save_total_limit=config.checkpoint.keep,
        dataloader_num_workers=config.packing.workers,
        remove_unused_columns=False,
        average_tokens_across_devices=True,
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
        report_to=[],
        seed=config.seed,
    )


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
