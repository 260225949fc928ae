"""What launchers tell their processes, and what follows from it. Real groups of processes: see test_distributed."""

import os
import socket

import pytest

from llasa.device import join_launcher, num_processes
from llasa.entry import compose_config
from llasa.errors import UserError
from llasa.training.parallel import FSDP_VARIABLES, require_shardable, resolve_parallel

GROUP = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
STEP = {"SLURM_JOB_ID": "1234567", "SLURM_STEP_ID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "1",
        "SLURM_PROCID": "3", "SLURM_LOCALID": "3", "SLURM_STEP_NODELIST": "gpu[07-08]"}  # fmt: skip


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No launcher's words, neither before nor after the test."""
    for name in [*GROUP, *FSDP_VARIABLES, *(name for name in os.environ if name.startswith(("SLURM_", "SUBMITIT_")))]:
        monkeypatch.setenv(name, "")  # so that what the code sets is taken back too
        monkeypatch.delenv(name)
    return monkeypatch


def group():
    return {name: os.environ.get(name) for name in GROUP}


def train_config(*overrides):
    return compose_config("train", ["model=llasa_nano", "store=none", "logger=none", *overrides])


def test_a_single_process_joins_nobody():
    join_launcher()
    assert set(group().values()) == {None}
    assert num_processes() == 1


def test_a_batch_script_of_slurm_is_no_task(environment):
    """Fails when SLURM_NTASKS counts: the script's own python would wait for tasks that srun never started."""
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}.items():
        environment.setenv(name, value)
    join_launcher()
    assert num_processes() == 1


def test_the_tasks_of_a_slurm_step_join(environment):
    for name, value in STEP.items():
        environment.setenv(name, value)
    join_launcher()
    port = 20_000 + (1_234_567 * 61 + 1) % 40_000
    assert group() == {
        "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": socket.gethostname(), "MASTER_PORT": str(port),
    }  # fmt: skip


def test_several_machines_meet_at_the_first(environment):
    for name, value in (STEP | {"SLURM_STEP_NUM_NODES": "2", "SLURM_LOCALID": "1", "PATH": "/nowhere"}).items():
        environment.setenv(name, value)
    with pytest.raises(UserError, match="export MASTER_ADDR=FIRST_HOST before srun"):
        join_launcher()
    environment.setenv("MASTER_ADDR", "gpu07")
    join_launcher()
    assert group() | {"MASTER_PORT": None} == {
        "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "gpu07", "MASTER_PORT": None,
    }  # fmt: skip


def test_torchrun_has_the_last_word(environment):
    for name, value in (STEP | {"WORLD_SIZE": "2", "RANK": "1"}).items():
        environment.setenv(name, value)
    join_launcher()
    assert group()["WORLD_SIZE"] == "2"
    assert group()["RANK"] == "1"
    assert group()["MASTER_ADDR"] is None


def test_parallel_is_resolved_by_the_number_of_processes(environment):
    assert [resolve_parallel(train_config(f"parallel={name}"), "cpu") for name in ("auto", "ddp", "single")] == [
        "single"
    ] * 3
    with pytest.raises(UserError, match="torchrun --nproc_per_node"):
        resolve_parallel(train_config("parallel=fsdp"), "cpu")
    environment.setenv("WORLD_SIZE", "2")
    assert [resolve_parallel(train_config(f"parallel={name}"), "cpu") for name in ("auto", "ddp", "fsdp")] == [
        "ddp", "ddp", "fsdp",
    ]  # fmt: skip
    with pytest.raises(UserError, match="parallel=single, but 2 processes"):
        resolve_parallel(train_config("parallel=single"), "cpu")


def test_offload_is_announced_and_taken_back(environment):
    """Fails when a job of a sweep inherits the last one's settings: its weights would be read by one process only."""
    environment.setenv("WORLD_SIZE", "2")
    environment.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "True")
    offload = train_config("parallel=fsdp", "parallel.cpu_offload=true")
    resolve_parallel(offload, "cuda")
    assert [os.environ.get(name) for name in FSDP_VARIABLES] == ["true", None, "true"]
    for config, device in [(offload, "cpu"), (train_config("parallel=ddp", "parallel.cpu_offload=true"), "cuda")]:
        resolve_parallel(config, device)
        assert not any(name in os.environ for name in FSDP_VARIABLES)


@pytest.mark.parametrize("override", ["finetune=lora", "finetune=qlora", "trainer.parameters=bf16"])
def test_fsdp_refuses_what_it_cannot_shard(override):
    with pytest.raises(UserError, match=override.replace(".", r"\.")):
        require_shardable(train_config(override))
    require_shardable(train_config("parallel=fsdp"))
