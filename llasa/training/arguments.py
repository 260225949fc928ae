"""From our config to the trainer's own settings: batch sizes, precision, what is saved when, several devices."""

from __future__ import annotations

from pathlib import Path

from transformers import TrainingArguments

from llasa.config import TrainConfig
from llasa.device import num_processes
from llasa.errors import UserError
from llasa.training.parallel import finish_fsdp, fsdp_settings
from llasa.training.state import STATE


def training_arguments(
    config: TrainConfig, run: Path, num_steps: int, device: str, precision: str, parallel: str
) -> TrainingArguments:
    """Args:
        parallel: single, ddp or fsdp, see :func:`resolve_parallel`.

    Raises:
        UserError: a step's rows cannot be shared by the processes.
    """
    settings = config.trainer
    world_size = num_processes()
    per_pass = settings.rows_per_device * world_size
    if settings.rows_per_step % per_pass:
        raise UserError(
            f"trainer.rows_per_step={settings.rows_per_step} cannot be shared by {world_size} devices with "
            f"trainer.rows_per_device={settings.rows_per_device}",
            remedy=f"use a multiple of {per_pass}",
        )
    arguments = TrainingArguments(
        output_dir=str(run / STATE),
        max_steps=num_steps,
        per_device_train_batch_size=settings.rows_per_device,
        gradient_accumulation_steps=settings.rows_per_step // per_pass,
        max_grad_norm=settings.max_grad_norm,
        bf16=precision == "bf16",
        use_cpu=device == "cpu",
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
        **(fsdp_settings(config.parallel, device) if parallel == "fsdp" else {}),
    )
    if parallel == "fsdp":
        finish_fsdp(arguments, device, precision)
    if arguments.n_gpu > 1:
        # Left alone, the trainer would wrap the model in DataParallel and take several times the rows a step.
        print(
            f"training on one of {arguments.n_gpu} GPUs; for all: torchrun --nproc_per_node={arguments.n_gpu} train.py"
        )
        arguments._n_gpu = 1
    return arguments
