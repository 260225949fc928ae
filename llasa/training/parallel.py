"""Several processes that train one model: who holds what, and the whole weights at the end.

single   one process
ddp      each holds weights, gradients and optimizer states whole, and gradients are averaged
fsdp     FSDP2: each holds a share of them, and a layer's weights are gathered while the layer computes

A step sees the same rows and gives the same loss and weights in all three. Per process, fsdp needs
`16 bytes x parameters / processes` for fp32 weights, gradients and Adam's states, and one gathered layer.
"""

from __future__ import annotations

import copy
import logging
import os
from typing import TYPE_CHECKING, Any

import torch

from llasa.config import ParallelConfig, TrainConfig
from llasa.device import num_processes
from llasa.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer, TrainingArguments

TORCHRUN = "torchrun --nproc_per_node=GPUS train.py …"
FSDP_VARIABLES = ("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING", "FSDP_OFFLOAD_PARAMS")


def resolve_parallel(config: TrainConfig, device: str) -> str:
    """single, ddp or fsdp: what `config.parallel` means for the processes that were started.

    To be called before the process group exists.

    Raises:
        UserError: the number of processes, or another part of the config, does not go with it.
    """
    name, processes = config.parallel.name, num_processes()
    if name == "single" and processes > 1:
        raise UserError(
            f"parallel=single, but {processes} processes were started",
            remedy="use parallel=ddp or fsdp (or auto), or start train.py with python",
        )
    if name == "fsdp" and processes == 1:
        raise UserError(
            "parallel=fsdp shares a model among several processes, and there is one", remedy=f"start it with {TORCHRUN}"
        )
    if name == "fsdp":
        require_shardable(config)
    announce_offload(name == "fsdp" and offloads(config.parallel, device))
    return name if name == "fsdp" else "ddp" if processes > 1 else "single"


def require_shardable(config: TrainConfig) -> None:
    """Refuse what FSDP2 cannot do, or would quietly do otherwise.

    Raises:
        UserError: adapters, or bf16 weights (accelerate would hold them in fp32). Optimizers: see `check_optimizer`.
    """
    if config.finetune.name != "full":
        raise UserError(
            f"finetune={config.finetune.name} does not go with parallel=fsdp",
            remedy="use parallel=ddp: adapters have small gradients and states",
        )
    if config.trainer.parameters == "bf16":
        raise UserError(
            "trainer.parameters=bf16 does not go with parallel=fsdp, whose weights are held in fp32, in shares",
            remedy="use trainer.parameters=fp32 (the arithmetic is bf16 all the same), or parallel=ddp",
        )


def announce_offload(wanted: bool) -> None:
    """Let accelerate make a process group that moves tensors of the host's memory too, or not.

    It reads the environment for that, and for other things later on: what an earlier job in this process (or its
    trainer) has left there is taken back first. One of them would make transformers fill the weights of all processes
    but the first with zeros while it loads a model, which costs more memory than the file, which is mapped.
    """
    for name in FSDP_VARIABLES:
        os.environ.pop(name, None)
    if wanted:
        os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_OFFLOAD_PARAMS": "true"}


def offloads(config: ParallelConfig, device: str) -> bool:
    """Whether weights wait in the host's memory: on a CPU they are there anyway."""
    return config.cpu_offload and device != "cpu"


def fsdp_settings(config: ParallelConfig, device: str) -> dict[str, Any]:
    """FSDP2 in the words of :class:`TrainingArguments`: a unit for each decoder layer.

    States are written in shares (torch.distributed.checkpoint), so that no process ever holds them whole.
    Gradients are shared out after each micro-batch: accumulated whole, as is the default, they would take what
    sharding has saved.
    """
    return {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
            "reshard_after_forward": config.reshard_after_forward,
            "cpu_offload": offloads(config, device),
            "cpu_ram_efficient_loading": True,  # the first process's weights, layer by layer: no GPU holds all
            "state_dict_type": "SHARDED_STATE_DICT",
        },
        "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
    }


def finish_fsdp(arguments: TrainingArguments, device: str, precision: str) -> None:
    """What `TrainingArguments` has no field for."""
    from accelerate.utils import DistributedType
    from torch.distributed.fsdp import MixedPrecisionPolicy

    logging.getLogger("accelerate").setLevel(logging.WARNING)  # two lines for each file of a state
    if precision == "bf16":
        # accelerate's own policy also adds gradients up in bf16, and rounds the loss to it.
        arguments.fsdp_plugin_args["mixed_precision_policy"] = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32
        )
    if device == "cpu":
        # On a CPU accelerate would ignore the settings and train with ddp, although FSDP2 works there.
        arguments.distributed_state.distributed_type = DistributedType.MULTI_GPU


def whole_model(trainer: Trainer, model: PreTrainedModel) -> PreTrainedModel:
    """The trained model with whole weights, ready to be saved: itself, unless they are shared among processes.

    With fsdp all processes must call it: each sends its shares. The first gets an ordinary model in the host's memory
    (4 bytes a parameter; no buffers, so it cannot compute), the others the sharded one back.
    """
    if not trainer.is_fsdp_enabled:
        return model
    from transformers import LlamaForCausalLM

    weights = trainer.accelerator.get_state_dict(trainer.model)
    if not trainer.is_world_process_zero():
        return model
    with torch.device("meta"):
        whole = LlamaForCausalLM(copy.deepcopy(model.config))
    whole.load_state_dict(weights, assign=True)
    whole.tie_weights()
    whole.generation_config = copy.deepcopy(model.generation_config)
    return whole
