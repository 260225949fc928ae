"""Runs that are killed, interrupted or out of disk, and what they go on from.

The model of these tests is noisy: its embeddings go through dropout and are scaled by Python's and NumPy's random
numbers, so a resumed run gives the uninterrupted one's losses only if all three generators are where they were.

Processes that are killed are forked from a server that has imported everything once.
"""

import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import llasa.training.job
from llasa.entry import compose_config
from llasa.errors import UserError
from llasa.packing.dataset import PackedRows
from llasa.training.run import train
from llasa.training.saving import DamagedStateError, complete_state, read_state
from llasa.training.state import newest_state
from tests.conftest import SMALL_LLAMA, write_toy_store
from tests.training.noisy import build_noisy_model

ROOT = Path(__file__).resolve().parents[2]
FAST = [*SMALL_LLAMA, "optimizer=adamw", "packing.max_length=512", "trainer.log_every=1", "checkpoint.every=2",
        "trainer.max_steps=6", "trainer.rows_per_step=2", "trainer.rows_per_device=1"]  # fmt: skip
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])


def run(store, folder, *overrides):
    config = compose_config("train", [*FAST, f"store={store}", f"output_dir={folder}", *overrides])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llasa.training.job, "build_for_training", build_noisy_model)
        return train(config)


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def column(folder, key):
    return [line[key] for line in metrics(folder)]


def states(folder):
    return sorted(path.name for path in (folder / "state").iterdir())


def require_same(folder, whole):
    """The same metrics on the same lines, and the same weights, to the last bit."""
    for key in ("step", "loss", "lr", "grad_norm", "tokens", "epoch"):
        assert column(folder, key) == column(whole, key), key
    a, b = (load_file(path / "checkpoint" / "model.safetensors") for path in (whole, folder))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def rewind(folder, step):
    """Make a finished run one that was killed between ``step`` and the next state."""
    shutil.rmtree(folder / "checkpoint")
    for state in (folder / "state").iterdir():
        if int(state.name.rpartition("-")[2]) > step:
            shutil.rmtree(state)


@pytest.fixture(scope="module")
def whole(toy_store, tmp_path_factory):
    """An uninterrupted run, with all its states. Tests copy it."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(toy_store, folder, "checkpoint.keep=5")
    assert len(set(column(folder, "loss"))) == 6
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "run"))


def start(function, *arguments):
    process = PROCESSES.Process(target=function, args=arguments)
    process.start()
    return process


# --- killed ----------------------------------------------------------------------------------------------------------


def killed_at_operation(number, log, *arguments):
    """A run that is killed just before its ``number``-th operation on a file or folder of its states."""
    operations = ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.scandir", "shutil.rmtree")
    count = 0

    def hook(event, values):
        nonlocal count
        if event in operations and any("/state" in str(value) for value in values[:2]):
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT, 0o600), 2)
    sys.addaudithook(hook)
    run(*arguments)
    os.write(2, f"{count} operations".encode())


@pytest.mark.slow
def test_killed_at_any_moment_of_writing_a_state_and_resumed_equals_uninterrupted(toy_store, tmp_path):
    """Fails when the trainer writes under the final name, when the manifest is left out or written first, when old
    states go before the new one has its name, and when any of the three generators is not restored."""
    settings = ["trainer.max_steps=3", "checkpoint.every=1", "checkpoint.keep=1"]
    run(toy_store, tmp_path / "whole", *settings)
    log = tmp_path / "log"
    process = start(killed_at_operation, 0, log, toy_store, tmp_path / "counted", *settings)
    process.join()
    operations = int(log.read_text().split()[-2])
    assert operations > 30
    resumed_from = set()
    # Spread over the second state's operations: it is written and the first one removed.
    for number in np.linspace(operations // 3, operations * 2 // 3, 7).astype(int).tolist():
        folder = tmp_path / str(number)
        process = start(killed_at_operation, number, log, toy_store, folder, *settings)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        saved = newest_state(folder)
        resumed_from.add(saved.step)
        run(toy_store, folder, *settings, "resume=true")
        require_same(folder, tmp_path / "whole")
        assert states(folder) == ["checkpoint-3"]
    assert resumed_from >= {1, 2}


def two_processes(function, folder, *arguments):
    """Exit statuses of two processes of one job, which talk over gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [start(as_rank, rank, port, function, folder, *arguments) for rank in (0, 1)]
    deadline = time.monotonic() + 120
    for process in processes:
        process.join(max(deadline - time.monotonic(), 0))
        process.kill()  # one that waits for the other for ever
        process.join()
    return [process.exitcode for process in processes]


def as_rank(rank, port, function, folder, *arguments):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    log = open(f"{folder}.{rank}.log", "a")  # noqa: SIM115 - for the rest of the process
    os.dup2(log.fileno(), 2)
    function(rank, folder, *arguments)


def run_as_rank(rank, folder, store, *overrides):
    run(store, folder, *overrides)


def killed_as_rank(rank, folder, store, *overrides):
    """Killed in the middle of writing the second state: the first process before it names the state, the other one
    when it has left its part."""
    name = "complete_state" if rank == 0 else "gather_object"
    import llasa.training.trainer as module

    original, count = getattr(module, name), 0

    def killed(*arguments):
        nonlocal count
        count += 1
        if count == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)

    setattr(module, name, killed)
    run(store, folder, *overrides)


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_processes_killed_and_resumed_equal_uninterrupted(toy_store, tmp_path, parallel):
    """Fails when the processes' random numbers or their share of the unlogged losses are not restored."""
    settings = [toy_store, f"parallel={parallel}", "checkpoint.every=1", "trainer.max_steps=4", "trainer.log_every=3"]
    assert two_processes(run_as_rank, tmp_path / "whole", *settings) == [0, 0]
    exits = two_processes(killed_as_rank, tmp_path / "run", *settings)
    assert all(exits)
    assert -signal.SIGKILL in exits
    assert states(tmp_path / "run") == [".partial", "checkpoint-1"]
    assert two_processes(run_as_rank, tmp_path / "run", *settings, "resume=true") == [0, 0]
    require_same(tmp_path / "run", tmp_path / "whole")
    saved = {path.name for path in (tmp_path / "run/state/checkpoint-4").iterdir()}
    assert saved >= {"rng_state_0.pth", "rng_state_1.pth", "state.json"}


# --- damaged ---------------------------------------------------------------------------------------------------------


def cut(path):
    os.truncate(path, 12)


def zeroed(path):
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize(
    ("name", "damage", "told"),
    [
        ("optimizer.pt", cut, r"optimizer.pt is 12 bytes, not \d+,\d\d\d"),
        ("model.safetensors", zeroed, "the content of model.safetensors has changed"),
        ("trainer_state.json", Path.unlink, "trainer_state.json: No such file"),
        ("state.json", Path.unlink, "state.json cannot be read"),
        ("state.json", zeroed, "state.json cannot be read"),
    ],
)
def test_damage_is_noticed(copy, name, damage, told):
    folder = copy / "state" / "checkpoint-6"
    assert read_state(folder)["step"] == 6
    damage(folder / name)
    with pytest.raises(DamagedStateError, match=told):
        read_state(folder)


def test_zeros_in_a_large_file_are_noticed(tmp_path):
    partial = tmp_path / "state" / ".partial" / "checkpoint-1"
    partial.mkdir(parents=True)
    content = np.random.default_rng(0).integers(0, 256, 3_000_000, dtype=np.uint8)
    (partial / "weights").write_bytes(content.tobytes())
    complete_state(partial, {"step": 1}, keep=1)
    folder = tmp_path / "state" / "checkpoint-1"
    assert read_state(folder) == {"step": 1}
    for start_of_zeros, stop in ((0, 4096), (1_400_000, 1_800_000), (2_999_000, 3_000_000)):
        damaged = content.copy()
        damaged[start_of_zeros:stop] = 0
        (folder / "weights").write_bytes(damaged.tobytes())
        with pytest.raises(DamagedStateError, match="the content of weights has changed"):
            read_state(folder)


@pytest.mark.parametrize("optimizer", ["adamw", "adam8bit"])
def test_a_damaged_state_is_named_and_the_one_before_used(toy_store, tmp_path, capsys, optimizer):
    settings = [f"optimizer={optimizer}", "checkpoint.keep=5"]
    last = run(toy_store, tmp_path / "whole", *settings)
    folder = Path(shutil.copytree(tmp_path / "whole", tmp_path / "run"))
    cut(folder / "state/checkpoint-6/optimizer.pt")
    (folder / "state/checkpoint-4/state.json").write_text("{")
    capsys.readouterr()
    assert run(toy_store, folder, *settings, "resume=true") == last
    told = capsys.readouterr().err
    assert f"warning: {folder}/state/checkpoint-6 is damaged (optimizer.pt is 12 bytes, not " in told
    assert f"warning: {folder}/state/checkpoint-4 is damaged (state.json cannot be read: " in told
    assert told.count("; going on from checkpoint-2\n") == 2
    require_same(folder, tmp_path / "whole")
    assert [read_state(folder / "state" / name)["step"] for name in states(folder)] == [2, 4, 6]
    assert run(toy_store, folder, *settings, "resume=true") == last, "a finished run gives its loss again"
    require_same(folder, tmp_path / "whole")


def test_without_a_whole_state_there_is_nothing_to_resume_and_nothing_is_overwritten(toy_store, copy, capsys):
    for name in states(copy):
        cut(copy / "state" / name / "scheduler.pt")
    with pytest.raises(UserError, match="there is nothing to resume"):
        run(toy_store, copy, "resume=true")
    assert capsys.readouterr().err.count("no other is left") == 3
    with pytest.raises(UserError, match="holds a run already"):
        run(toy_store, copy)
    assert len(states(copy)) == 3


def test_the_newest_states_are_kept(toy_store, tmp_path):
    for keep, expected in ((1, ["checkpoint-6"]), (2, ["checkpoint-4", "checkpoint-6"])):
        run(toy_store, tmp_path / str(keep), f"checkpoint.keep={keep}")
        assert states(tmp_path / str(keep)) == expected


def test_a_run_that_left_no_state_may_be_started_again(toy_store, tmp_path):
    """What a killed run was writing is no state, and goes."""
    folder = tmp_path / "run"
    (folder / "state/.partial/checkpoint-2").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 9.0}\n{"step": 2, "lo')
    with pytest.raises(UserError, match="nothing to resume"):
        run(toy_store, folder, "resume=true")
    run(toy_store, folder, "checkpoint.every=0")
    assert column(folder, "step") == [1, 2, 3, 4, 5, 6]
    assert not list((folder / "state").glob("*"))


# --- the same run ----------------------------------------------------------------------------------------------------


def test_what_is_logged_does_not_depend_on_where_a_run_was_cut(toy_store, tmp_path):
    """A line is the mean since the last one: fails when the steps before the resume are not in it. Fails too when the
    last step is only logged if it is a multiple of `log_every`, and when a resume keeps the old `log_every`."""
    settings = ["trainer.log_every=4", "checkpoint.keep=5"]
    last = run(toy_store, tmp_path / "whole", *settings)
    assert column(tmp_path / "whole", "step") == [1, 4, 6]
    assert last == metrics(tmp_path / "whole")[-1]["loss"]
    folder = Path(shutil.copytree(tmp_path / "whole", tmp_path / "run"))
    rewind(folder, 2)
    run(toy_store, folder, *settings, "resume=true")
    require_same(folder, tmp_path / "whole")
    rewind(folder, 2)
    run(toy_store, folder, "resume=true", "trainer.log_every=1")
    assert column(folder, "step") == [1, 3, 4, 5, 6]


def record_rows(monkeypatch):
    asked, get = [], PackedRows.__getitem__

    def recorded(self, item):
        asked.append(item + self.shift)
        return get(self, item)

    monkeypatch.setattr(PackedRows, "__getitem__", recorded)
    return asked


def test_rows_before_the_resume_are_not_built(toy_store, copy, whole, monkeypatch):
    asked = []
    get = PackedRows.__getitem__
    monkeypatch.setattr(
        PackedRows, "__getitem__", lambda self, item: (asked.append(item + self.shift), get(self, item))[1]
    )
    rewind(copy, 4)
    run(toy_store, copy, "resume=true", "checkpoint.keep=5")
    assert asked == [8, 9, 10, 11]
    require_same(copy, whole)


def test_a_run_is_resumed_as_it_was_or_not_at_all(toy_store, copy, tmp_path, capsys):
    before = (copy / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"started with optimizer\.lr=0\.002 \(not 1\), seed=0 \(not 5\); .*force=true"):
        run(toy_store, copy, "resume=true", "optimizer.lr=1", "seed=5")
    with pytest.raises(UserError, match=r"trainer\.max_steps=6 \(not 9\); .*stretched over all steps"):
        run(toy_store, copy, "resume=true", "trainer.max_steps=9")
    with pytest.raises(UserError, match=r"architecture.hidden_size=32 \(not 64\), and its weights fit nothing else"):
        run(toy_store, copy, "resume=true", "force=true", "model.architecture.hidden_size=64")
    with pytest.raises(UserError, match="has 6 steps behind it, and this config ends after 5"):
        run(toy_store, copy, "resume=true", "force=true", "trainer.max_steps=5")
    shares = copy / "state" / "checkpoint-6" / "pytorch_model_fsdp_0"
    shares.mkdir()
    with pytest.raises(UserError, match="checkpoint-6 was written with parallel=fsdp"):
        run(toy_store, copy, "resume=true", "force=true")
    shares.rmdir()
    assert (copy / "metrics.jsonl").read_bytes() == before
    capsys.readouterr()
    free = ["trainer.log_every=2", "checkpoint.every=3", "sanity.stop=true", "force=true"]
    run(toy_store, copy, "resume=true", *free)
    assert capsys.readouterr().err == ""
    run(toy_store, copy, "resume=true", *free, "trainer.rows_per_device=2")
    assert "goes on with trainer.rows_per_device=2 (was 1): equal up to rounding" in capsys.readouterr().err


def test_another_store_in_the_same_place_is_noticed(toy_store, tmp_path, capsys):
    store = Path(shutil.copytree(toy_store, tmp_path / "store"))
    run(store, tmp_path / "run")
    shutil.rmtree(store)
    write_toy_store(store, count=10)
    with pytest.raises(UserError, match=r"the store has changed .*force=true"):
        run(store, tmp_path / "run", "resume=true")
    run(store, tmp_path / "run", "resume=true", "force=true", "trainer.max_steps=7")
    assert "goes on with trainer.max_steps=7 (was 6), another store" in capsys.readouterr().err
    assert column(tmp_path / "run", "step") == list(range(1, 8))


def test_other_rows_of_the_same_store_are_noticed(toy_store, copy):
    """Fails when the position in the plan is not compared."""
    state = copy / "state" / "checkpoint-6" / "state.json"
    facts = json.loads(state.read_text())
    facts["position"]["fingerprint"] = "other"
    state.write_text(json.dumps(facts))
    with pytest.raises(UserError, match="the rows to train on are not those"):
        run(toy_store, copy, "resume=true")
    run(toy_store, copy, "resume=true", "force=true")


def test_a_longer_schedule_is_followed_from_where_the_run_is(toy_store, copy, whole, tmp_path, capsys):
    """Fails when the learning rate of the first step after the resume is the old schedule's (0, at its end)."""
    run(toy_store, copy, "resume=true", "force=true", "trainer.max_steps=12")
    assert "goes on with trainer.max_steps=12 (was 6)" in capsys.readouterr().err
    run(toy_store, tmp_path / "long", "trainer.max_steps=12")
    assert column(copy, "step") == list(range(1, 13))
    assert column(copy, "lr") == [*column(whole, "lr"), *column(tmp_path / "long", "lr")[6:]]
    assert column(copy, "tokens") == column(tmp_path / "long", "tokens")
    assert "max_steps: 12" in (copy / "config.yaml").read_text()
    run(toy_store, copy, "resume=true", "trainer.max_steps=12")


def test_forced_settings_of_the_optimizer_count(toy_store, copy, whole):
    """Fails when the state's peak learning rate or weight decay stay."""
    rewind(copy, 2)
    run(toy_store, copy, "resume=true", "force=true", "optimizer.lr=4e-3", "schedule=constant", "schedule.warmup=0")
    assert column(copy, "lr") == [*column(whole, "lr")[:2], *[4e-3] * 4]


def test_steps_of_another_size_go_on_at_the_next_row(toy_store, copy, monkeypatch):
    """Fails when the data set is asked for the row number of the new steps (16) instead of the next one (8)."""
    asked = []
    get = PackedRows.__getitem__
    monkeypatch.setattr(
        PackedRows, "__getitem__", lambda self, item: (asked.append(item + self.shift), get(self, item))[1]
    )
    rewind(copy, 4)
    before = column(copy, "tokens")[3]
    run(toy_store, copy, "resume=true", "force=true", "trainer.rows_per_step=4")
    assert asked == list(range(8, 16))
    data_tokens = column(copy, "tokens")
    assert data_tokens[3] == before < data_tokens[4] < data_tokens[5]


# --- no room ---------------------------------------------------------------------------------------------------------


def without_room_as_rank(rank, folder, *arguments):
    without_room("__getitem__", 20_000, f"{folder}.{rank}.log", arguments[0], folder, *arguments[1:])


def without_room(name, limit, log, *arguments):
    """A run whose files may not be over ``limit`` bytes from the first call of a function on."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 2)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    module = PackedRows if name == "__getitem__" else llasa.training.job
    original = getattr(module, name)

    def no_room(*values, **named):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        return original(*values, **named)

    setattr(module, name, no_room)
    try:
        run(*arguments)
    except UserError as error:
        os.write(2, f"error: {error}".encode())
        os._exit(2)


@pytest.mark.parametrize(
    ("limit", "reason"),
    [(20_000, "File too large"), (200_000, "torch could not write a file")],
    ids=["weights", "states"],
)
def test_states_that_cannot_be_written_do_not_end_a_run(toy_store, tmp_path, limit, reason):
    """The weights (130 kB) by safetensors or the optimizer's states by torch: each has an error of its own, and the
    test fails when that one is not known."""
    folder, log = tmp_path / "run", tmp_path / "log"
    process = start(without_room, "__getitem__", limit, log, toy_store, folder)
    process.join()
    told = log.read_text()
    for step in (2, 4, 6):
        assert re.search(
            f"warning: the state of step {step} could not be written \\(.*{reason}.* GB free\\); training", told
        )
    assert column(folder, "step") == [1, 2, 3, 4, 5, 6]
    assert states(folder) == []
    assert "Traceback" not in told
    if limit > 130_000:
        assert process.exitcode == 0
        assert (folder / "checkpoint" / "model.safetensors").is_file()
    else:
        assert process.exitcode == 2
        assert f"error: {folder}/checkpoint could not be written (" in told
        assert "there is no state to go on from" in told
        assert not list(folder.glob(".checkpoint*"))


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_states_that_several_processes_cannot_write_do_not_end_a_run(toy_store, tmp_path, parallel):
    """Fails (hangs) when one process gives up a state and the others do not."""
    folder = tmp_path / "run"
    exits = two_processes(
        without_room_as_rank, folder, toy_store, f"parallel={parallel}", "model.architecture.hidden_size=128"
    )
    told = [Path(f"{folder}.{rank}.log").read_text() for rank in (0, 1)]
    assert exits[0] == 2, told[0]
    assert told[0].count("could not be written (") == 4
    assert "warning" not in told[1]
    assert column(folder, "step") == [1, 2, 3, 4, 5, 6]
    assert states(folder) == []


def test_a_final_checkpoint_that_cannot_be_written_costs_no_training(toy_store, whole, tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    process = start(without_room, "save_checkpoint", 20_000, log, toy_store, folder)
    process.join()
    assert process.exitcode == 2
    assert f"resume=true output_dir={folder} writes it without training" in log.read_text()
    lines = (folder / "metrics.jsonl").read_bytes()
    run(toy_store, folder, "resume=true")
    assert (folder / "metrics.jsonl").read_bytes() == lines
    require_same(folder, whole)


# --- interrupted -----------------------------------------------------------------------------------------------------


def signal_at(item, *numbers):
    """For PackedRows.__getitem__: the process that builds row ``item`` gets signals."""
    get = PackedRows.__getitem__

    def interrupted(self, asked):
        if asked == item:
            for number in numbers:
                os.kill(os.getpid(), number)
        return get(self, asked)

    return interrupted


@pytest.mark.parametrize(
    ("number", "ending"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit), (signal.SIGUSR1, SystemExit)],
)
def test_an_interrupted_run_saves_and_goes_on_the_same(toy_store, whole, tmp_path, capfd, monkeypatch, number, ending):
    handler = signal.signal(number, do_nothing := lambda *_: None)  # or a run that does not listen ends the tests
    get = PackedRows.__getitem__
    monkeypatch.setattr(PackedRows, "__getitem__", signal_at(4, number))
    with pytest.raises(ending) as raised:
        run(toy_store, tmp_path / "run", "checkpoint.every=0")
    monkeypatch.setattr(PackedRows, "__getitem__", get)
    assert getattr(raised.value, "code", 130) == (130 if number == signal.SIGINT else 0)
    assert signal.signal(number, handler) is do_nothing
    told = capfd.readouterr().err
    assert f"{number.name}: saving after this step" in told
    (step,) = (int(name.rpartition("-")[2]) for name in states(tmp_path / "run"))
    assert 1 <= step <= 3, "rows are built a step ahead"
    assert f"stopped after step {step}; continue with resume=true output_dir={tmp_path / 'run'}\n" in told
    assert column(tmp_path / "run", "step") == list(range(1, step + 1))
    run(toy_store, tmp_path / "run", "resume=true")
    require_same(tmp_path / "run", whole)


def test_a_second_ctrl_c_ends_at_once(toy_store, tmp_path, monkeypatch):
    monkeypatch.setattr(PackedRows, "__getitem__", signal_at(4, signal.SIGINT, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run(toy_store, tmp_path / "run", "checkpoint.every=0")
    assert not list((tmp_path / "run" / "state").glob("*"))


def preempted_as_rank(rank, folder, store, *overrides):
    if rank == 1:
        PackedRows.__getitem__ = signal_at(5, signal.SIGTERM)
    run(store, folder, *overrides)


def test_a_signal_to_one_process_stops_all_at_the_same_step(toy_store, tmp_path):
    """Fails (hangs) when each process decides for itself."""
    folder = tmp_path / "run"
    assert two_processes(preempted_as_rank, folder, toy_store, "checkpoint.every=0", "trainer.max_steps=50") == [0, 0]
    saved = newest_state(folder)
    assert 1 <= saved.step <= 4
    assert column(folder, "step")[-1] == saved.step
    told = [Path(f"{folder}.{rank}.log").read_text() for rank in (0, 1)]
    assert told[0].count(f"stopped after step {saved.step}; continue with resume=true output_dir={folder}") == 1
    assert "stopped" not in told[1]


def wait_for(path, process):
    deadline = time.monotonic() + 200
    while not path.is_file() or len(path.read_bytes()) < 500:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def command(*overrides):
    return subprocess.Popen(
        [sys.executable, "train.py", *FAST, "trainer.max_steps=3000", "checkpoint.every=0", *overrides],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_ctrl_c_saves_a_state_and_exits_130(toy_store, tmp_path):
    folder = tmp_path / "run"
    process = command(f"store={toy_store}", f"output_dir={folder}")
    wait_for(folder / "metrics.jsonl", process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 130
    last = column(folder, "step")[-1]
    assert 0 < last < 3000
    assert f"stopped after step {last}; continue with resume=true output_dir={folder}\ninterrupted\n" in errors
    assert "Traceback" not in errors
    assert newest_state(folder).step == last
    assert not (folder / "checkpoint").exists()


def test_preemption_ends_a_whole_sweep_with_status_0(toy_store, tmp_path):
    overrides = ["-m", "optimizer.lr=1e-3,1e-4", f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=${hydra.job.num}"]
    process = command(f"store={toy_store}", *overrides)
    wait_for(tmp_path / "0" / "metrics.jsonl", process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 0
    assert "continue with resume=true output_dir=" in errors
    assert "Traceback" not in errors
    assert newest_state(tmp_path / "0").step == column(tmp_path / "0", "step")[-1]
    assert not (tmp_path / "1").exists()
