"""The one place that chooses a device and a precision, and that knows of other processes."""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
from collections.abc import Callable
from typing import TypeVar

import torch

from llasa.errors import UserError


def resolve_device(device: str) -> str:
    """cuda where there is one, else cpu; asking for a CUDA device that is not there is a mistake."""
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"device={device} is not valid", remedy="choose one of auto, cpu, cuda")
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise UserError("device=cuda, but torch sees no CUDA device", remedy="use device=cpu (or auto)")
    return "cuda" if device != "cpu" and available else "cpu"


def visible_cuda_devices() -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls the devices that this process sees."""
    count = torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return [name.strip() for name in names[:count]] if names[0] else [str(index) for index in range(count)]


T = TypeVar("T")


def num_processes() -> int:
    """Processes that `torchrun`, `accelerate launch` or :func:`join_launcher` has counted; 1 without them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join_launcher() -> None:
    """Let the tasks of a SLURM step or of a submitit job be one group of processes, as those of `torchrun` are.

    Exports RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT where they are missing and the
    launcher has started several tasks. To be called before anything asks who else there is.

    Raises:
        UserError: tasks of a SLURM step whose first host nobody tells.
    """
    if "WORLD_SIZE" in os.environ:
        return
    if os.environ.get("SUBMITIT_EXECUTOR"):
        from submitit import JobEnvironment
        from submitit.helpers import TorchDistributedEnvironment

        if JobEnvironment().num_tasks > 1:
            # accelerate takes the device by local rank among those that the task sees, be it all or its own one.
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
    elif int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:  # srun; a batch script itself has no step
        os.environ |= slurm_step()


def slurm_step() -> dict[str, str]:
    """What `torchrun` would export, from what `srun` does.

    The port is the same in all tasks of a step, and another one for a step beside it on the same machine.
    """
    step = {name: os.environ[f"SLURM_{name}"] for name in ("STEP_NUM_TASKS", "STEP_NUM_NODES", "PROCID", "LOCALID")}
    port = 20_000 + (int(os.environ["SLURM_JOB_ID"]) * 61 + int(os.environ["SLURM_STEP_ID"])) % 40_000
    return {
        "RANK": step["PROCID"],
        "WORLD_SIZE": step["STEP_NUM_TASKS"],
        "LOCAL_RANK": step["LOCALID"],
        "LOCAL_WORLD_SIZE": str(int(step["STEP_NUM_TASKS"]) // int(step["STEP_NUM_NODES"])),
        "MASTER_ADDR": os.environ.get("MASTER_ADDR") or first_host(int(step["STEP_NUM_NODES"])),
        "MASTER_PORT": os.environ.get("MASTER_PORT") or str(port),
    }


def first_host(num_nodes: int) -> str:
    """The machine of the step's first task."""
    if num_nodes == 1:
        return socket.gethostname()
    try:
        command = ["scontrol", "show", "hostnames", os.environ["SLURM_STEP_NODELIST"]]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        raise UserError(
            f"several tasks of SLURM, and `scontrol show hostnames` does not tell their machines ({error})",
            remedy="export MASTER_ADDR=FIRST_HOST before srun",
        ) from error


def agree(value: T, device: str) -> T:
    """The first process's value, in every process that was started together (the value itself in a single one)."""
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState(cpu=device == "cpu")
    return broadcast_object_list([value])[0]


def first_decides(decide: Callable[[], T], device: str) -> T:
    """What ``decide`` returns in the first process, where alone it is called, in all of them.

    Raises:
        UserError: the one that it raised, in all of them: otherwise the others would wait for a value.
    """
    decided: list[T] = []
    mistake = ""
    if is_first_process(device):
        try:
            decided.append(decide())
        except UserError as error:
            mistake = str(error)
    decided, mistake = agree((decided, mistake), device)
    if mistake:
        raise UserError(mistake)
    return decided[0]


def part_processes() -> None:
    """Wait for all processes, and leave the group when this one ends: one that just exits can abort the others.

    Not before: the next job of a sweep in these processes goes on with the group.
    """
    from accelerate import PartialState

    PartialState().wait_for_everyone()
    atexit.unregister(_leave_group)
    atexit.register(_leave_group)


def _leave_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def is_first_process(device: str | None = None) -> bool:
    """Args:
    device: needed in the first question about other processes, which makes them a group.
    """
    from accelerate import PartialState

    return PartialState(**({"cpu": device == "cpu"} if device else {})).is_main_process


def resolve_precision(precision: str, device: str) -> str:
    """bf16 autocast on a GPU that has it, fp32 elsewhere, unless it was chosen."""
    bf16 = device == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16" and not bf16:
        raise UserError(
            "trainer.precision=bf16, but this GPU has no bf16", remedy="use trainer.precision=fp32 (or auto)"
        )
    if precision != "auto":
        return precision
    return "bf16" if device == "cuda" and bf16 else "fp32"
