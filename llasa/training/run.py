"""The job behind `train.py`: store, model, packed rows, trainer, checkpoint.

RUN/config.yaml, provenance.json   what ran
RUN/metrics.jsonl                  a line every `trainer.log_every` steps, and for each measurement and sample
RUN/heldout, samples, best         every speaker's loss; what the model said; the best checkpoint so far
RUN/state/checkpoint-N             what `resume=true` continues from
RUN/checkpoint                     the result: weights (of LoRA, merged), tokenizer, llasa.json
RUN/adapter                        of LoRA and QLoRA, the adapter alone
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedModel, set_seed
from transformers.trainer_callback import PrinterCallback

from llasa.config import TrainConfig
from llasa.device import (
    agree,
    first_decides,
    is_first_process,
    join_launcher,
    num_processes,
    part_processes,
    resolve_device,
    resolve_precision,
)
from llasa.errors import UserError
from llasa.model.activation_checkpointing import apply_activation_checkpointing
from llasa.model.attention import needs_flat_rows
from llasa.model.checkpoint import save_adapter, save_checkpoint
from llasa.model.llama import SpeechModel, build_for_training
from llasa.packing.collate import PackingCollator
from llasa.packing.dataset import PackedRows
from llasa.provenance import write_run_record
from llasa.tracking import Tracker, last_value, read_metrics
from llasa.training.arguments import training_arguments
from llasa.training.best import BestCallback
from llasa.training.callbacks import MetricsCallback, speech_hours
from llasa.training.cost import flops_per_token, mfu
from llasa.training.data import open_stores, packed_rows, trained_languages, trained_speakers, with_speaker_tags
from llasa.training.heldout import HeldOutCallback
from llasa.training.heldout_rows import heldout_rows
from llasa.training.interrupt import InterruptCallback
from llasa.training.optim import build_optimizer, check_optimizer, optimizer_name
from llasa.training.overfit import overfit_batch
from llasa.training.parallel import resolve_parallel, whole_model
from llasa.training.planner import print_plan
from llasa.training.samples import build_samples
from llasa.training.sanity import SanityCallback, first_loss_band
from llasa.training.saving import final_checkpoint
from llasa.training.state import continue_data, resumable_state, steps_to_train
from llasa.training.trainer import SpeechTrainer


def train(config: TrainConfig) -> float | None:
    """Train as configured and return `config.objective`, the last value of that metric; none for a plan.

    Raises:
        UserError: no usable store, a store of another codec, a folder that holds another run, …
    """
    if config.plan:
        print_plan(config)
        return None
    join_launcher()
    device = resolve_device(config.device)
    parallel = resolve_parallel(config, device)
    stores = open_stores(config)
    precision = resolve_precision(config.trainer.precision, device)
    settings = dataclasses.asdict(config)
    # The default folder has the time in it, and a run's own files must not look like another run's to a process
    # that starts later: the first process decides for all.
    run = Path(agree(config.output_dir, device))
    saved = first_decides(lambda: resumable_state(run, settings, stores.facts()), device)
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
    arguments = training_arguments(config, run, num_steps, device, precision, parallel)
    languages = trained_languages(data)
    card = dataclasses.replace(
        speech.card,
        codec=stores.codec,
        languages=tuple(dict.fromkeys([*languages, *speech.card.languages])),
        max_length=max(speech.card.max_length, int(data.plan.lengths.max())),
    ).with_speakers(trained_speakers(data))
    samples = build_samples(config, speech, card, languages, run, device=device, precision=precision, parallel=parallel)

    resolved = {"device": device, "precision": precision, "kernels": speech.kernels, "attn": speech.attn}
    resolved |= {"parallel": parallel, "processes": num_processes()}
    resolved["optimizer"] = optimizer_name(config.optimizer, device, parallel)

    def save_result(folder: Path, model: PreTrainedModel) -> None:
        dtype = torch.bfloat16 if precision == "bf16" else None
        save_checkpoint(folder, model, speech.tokenizer, card, dtype)

    tracker = None
    if is_first_process():
        sources = [dataclasses.asdict(source) for source in data.sources]
        write_run_record(run, config, resolved=resolved, store=stores.facts(), model=speech.notes, sources=sources)
        tracker = Tracker(run, config.logger, settings, start_step=saved.step if saved else 0)
        if samples is not None:
            samples.tracker = tracker
        if measured is not None:
            print(measured.describe(), flush=True)
        print(describe(config, speech, data, num_steps, resolved), flush=True)
    interrupt = InterruptCallback()
    heldout = HeldOutCallback(measured, speech, config, run, tracker) if measured is not None else None
    best = None
    if heldout is not None and config.heldout.keep_best:
        best = BestCallback(config, run, lambda: whole_model(trainer, speech.model), save_result)
    listeners = [callback for callback in (heldout, samples, best) if callback is not None]  # the best comes last
    metrics = MetricsCallback(
        tracker,
        data,
        rows_per_step,
        utilisation(speech, data, device),
        speech_hours(data.plan, data.num_codes, stores.codec.tokens_per_second),
        pauses=lambda: sum(callback.seconds for callback in listeners),
    )
    finished = False
    try:
        trainer = SpeechTrainer(
            model=speech.model,
            args=arguments,
            train_dataset=data,
            data_collator=PackingCollator(
                pad_token_id=pad_token_id(speech),
                flatten=needs_flat_rows(speech.attn),
                length=config.packing.max_length if config.packing.mode == "pad_to_max" else None,
            ),
            optimizer_factory=functools.partial(
                build_optimizer, node=config.optimizer, device=device, parallel=parallel
            ),
            schedule=config.schedule,
            rows_per_step=rows_per_step,
            saved=saved,
            callbacks=[
                metrics,
                *listeners,
                SanityCallback(config.sanity, first_loss_band(len(speech.tokenizer), start_of(config, speech))),
                interrupt,
            ],
        )
        trainer.remove_callback(PrinterCallback)
        with interrupt:
            trainer.train(resume_from_checkpoint=str(saved.folder) if saved else None)
        if interrupt.stopping and trainer.state.global_step < num_steps:
            interrupt.leave(run, trainer.state.global_step, trainer.saved_step)
        model = whole_model(trainer, speech.model)
        if tracker is not None:
            with final_checkpoint(run, num_steps, trainer.saved_step):
                save_result(run / "checkpoint", model)
                if config.finetune.name != "full":
                    save_adapter(run / "adapter", model, speech.tokenizer, card)
            print(f"checkpoint: {run / 'checkpoint'}")
            if best is not None and best.kept is not None:
                print(best.kept.describe(run))
            for folder in ("checkpoint", "best"):
                tracker.log_artifact(run / folder, "model")
        finished = True
    finally:
        if tracker is not None:
            tracker.close(failed=not finished)
    value = first_decides(lambda: objective(run, config.objective), device)
    part_processes()
    return value


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
