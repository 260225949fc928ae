"""The job behind `train.py`: store, model, packed rows, trainer, checkpoint.

RUN/config.yaml, provenance.json   what ran
RUN/metrics.jsonl                  a line every `trainer.log_every` steps, and for each measurement and sample
RUN/heldout, samples, best         every speaker's loss; what the model said; the best checkpoint so far
RUN/state/checkpoint-N             what `resume=true` continues from
RUN/checkpoint                     the result: weights (of LoRA, merged), tokenizer, llasa.json
RUN/adapter                        of LoRA and QLoRA, the adapter alone
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import torch
from transformers.trainer_callback import PrinterCallback

from llasa.config import TrainConfig
from llasa.device import first_decides, is_first_process, join_launcher, num_processes, part_processes
from llasa.errors import UserError
from llasa.model.attention import needs_flat_rows
from llasa.model.checkpoint import save_adapter
from llasa.model.llama import SpeechModel
from llasa.packing.collate import PackingCollator
from llasa.packing.dataset import PackedRows
from llasa.tracking import Tracker, last_value, read_metrics
from llasa.training.arguments import training_arguments
from llasa.training.best import BestCallback
from llasa.training.callbacks import MetricsCallback, speech_hours
from llasa.training.cost import flops_per_token, mfu
from llasa.training.data import trained_languages
from llasa.training.heldout import HeldOutCallback
from llasa.training.interrupt import InterruptCallback
from llasa.training.job import TrainingJob, prepare
from llasa.training.optim import build_optimizer
from llasa.training.parallel import whole_model
from llasa.training.planner import print_plan
from llasa.training.samples import SamplesCallback, build_samples
from llasa.training.sanity import SanityCallback, first_loss_band
from llasa.training.saving import final_checkpoint
from llasa.training.trainer import SpeechTrainer


def train(config: TrainConfig) -> float | None:
    """Train as configured and return `config.objective`, the last value of that metric; none for a plan.

    Raises:
        UserError: see :func:`~llasa.training.job.prepare`; and what ends a run, such as a loss that is no number.
    """
    if config.plan:
        print_plan(config)
        return None
    join_launcher()
    job = prepare(config)
    samples = build_samples(
        config, job.speech, job.card, trained_languages(job.data), job.run,
        device=job.device, precision=job.precision, parallel=job.parallel,
    )  # fmt: skip
    tracker = job.record() if is_first_process() else None
    finished = False
    try:
        fit(job, samples, tracker)
        finished = True
    finally:
        if tracker is not None:
            tracker.close(failed=not finished)
    value = first_decides(lambda: objective(job.run, config.objective), job.device)
    part_processes()
    return value


def fit(job: TrainingJob, samples: SamplesCallback | None, tracker: Tracker | None) -> None:
    """Take the steps and write the checkpoint.

    Args:
        tracker: of the first process, which alone writes.
    """
    config, speech, data, run = job.config, job.speech, job.data, job.run
    if samples is not None:
        samples.tracker = tracker
    heldout = HeldOutCallback(job.measured, speech, config, run, tracker) if job.measured is not None else None
    best = None
    if heldout is not None and config.heldout.keep_best:
        best = BestCallback(config, run, lambda: whole_model(trainer, speech.model), job.save)
    listeners = [callback for callback in (heldout, samples, best) if callback is not None]  # the best comes last
    metrics = MetricsCallback(
        tracker,
        data,
        config.trainer.rows_per_step,
        utilisation(speech, data, job.device),
        speech_hours(data.plan, data.num_codes, job.stores.codec.tokens_per_second),
        pauses=lambda: sum(callback.seconds for callback in listeners),
    )
    interrupt = InterruptCallback()
    trainer = SpeechTrainer(
        model=speech.model,
        args=training_arguments(config, run, job.num_steps, job.device, job.precision, job.parallel),
        train_dataset=data,
        data_collator=PackingCollator(
            pad_token_id=pad_token_id(speech),
            flatten=needs_flat_rows(speech.attn),
            length=config.packing.max_length if config.packing.mode == "pad_to_max" else None,
        ),
        optimizer_factory=functools.partial(
            build_optimizer, node=config.optimizer, device=job.device, parallel=job.parallel
        ),
        schedule=config.schedule,
        rows_per_step=config.trainer.rows_per_step,
        saved=job.saved,
        callbacks=[
            metrics,
            *listeners,
            SanityCallback(config.sanity, first_loss_band(len(speech.tokenizer), start_of(config, speech))),
            interrupt,
        ],
    )
    trainer.remove_callback(PrinterCallback)
    with interrupt:
        trainer.train(resume_from_checkpoint=str(job.saved.folder) if job.saved else None)
    if interrupt.stopping and trainer.state.global_step < job.num_steps:
        interrupt.leave(run, trainer.state.global_step, trainer.saved_step)
    model = whole_model(trainer, speech.model)
    if tracker is None:
        return
    with final_checkpoint(run, job.num_steps, trainer.saved_step):
        job.save(run / "checkpoint", model)
        if config.finetune.name != "full":
            save_adapter(run / "adapter", model, speech.tokenizer, job.card)
    print(f"checkpoint: {run / 'checkpoint'}")
    if best is not None and best.kept is not None:
        print(best.kept.describe(run))
    for folder in ("checkpoint", "best"):
        tracker.log_artifact(run / folder, "model")


def start_of(config: TrainConfig, speech: SpeechModel) -> str:
    """What the weights know before the first step, in the words of :func:`first_loss_band`."""
    if config.model.checkpoint is None:
        return "scratch"
    return "extended" if "initialisation" in speech.notes["vocabulary"] else "speaks"


def utilisation(speech: SpeechModel, data: PackedRows, device: str) -> Callable[[float], float | None] | None:
    """Tokens a second → model FLOPs utilisation; none without a GPU."""
    if device != "cuda":
        return None
    lengths = data.plan.lengths.astype(float)
    flops = flops_per_token(speech.model.config, float((lengths**2).sum() / lengths.sum()))
    name, devices = torch.cuda.get_device_name(), num_processes()
    return lambda tokens_per_second: mfu(tokens_per_second, flops, name, devices)


def objective(run: Path, key: str) -> float:
    """What a sweep compares: the last value of a metric, also when the run was finished before.

    Raises:
        UserError: it was never measured.
    """
    lines = read_metrics(run)
    if lines and not any(key in line for line in lines):
        known = ", ".join(sorted({name for line in lines for name in line} - {"step"}))
        raise UserError(f"objective={key} is not among the metrics of {run}", remedy=f"known: {known}")
    return last_value(run, key)


def pad_token_id(speech: SpeechModel) -> int:
    """Any valid id: padding is never attended to by an example and never supervised."""
    return speech.tokenizer.pad_token_id if speech.tokenizer.pad_token_id is not None else speech.vocabulary.speech_end
