"""The scripts as a person runs them: exit codes, one line on stderr, nothing left behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ("train.py", "preprocess.py", "infer.py")
HEAVY = {"torch", "transformers", "datasets", "bitsandbytes", "accelerate", "wandb", "soundfile", "pandas"}


def run_python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HYDRA_", "WANDB_"))}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def run_script(script: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run_python(str(ROOT / script), *arguments, cwd=cwd)


def write_entry(folder: Path, root: str, body: str, *imports: str) -> str:
    """A program like the shipped ones whose job is ``body``."""
    lines = ["from llasa.entry import entry", *imports, f'@entry("{root}")', "def main(config):"]
    lines += [f"    {line}" for line in body.splitlines()]
    script = folder / "program.py"
    script.write_text("\n".join([*lines, "main()", ""]))
    return str(script)


def assert_user_error(result: subprocess.CompletedProcess[str], *expected: str) -> None:
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    for text in expected:
        assert re.search(text, line), line


# Mistakes


@pytest.mark.parametrize(
    ("script", "arguments", "expected"),
    [
        ("train.py", ["trainer.max_step=3"], [r"'trainer\.max_step'", r"did you mean trainer\.max_steps\b"]),
        ("train.py", ["optimizer.lrr=1"], [r"'optimizer\.lrr'", r"did you mean optimizer\.lr\b"]),
        ("train.py", ["model=llasa_1"], [r"'llasa_1'", r"did you mean llasa_1b\b"]),
        ("train.py", ["trainer.max_steps=soon"], [r"trainer\.max_steps", "soon", "Integer"]),
        ("train.py", ["+foo=1"], ["'foo'", r"valid names: .*\btrainer\b"]),
        ("train.py", ["+trainer.max_step=1"], [r"'trainer\.max_step'", r"did you mean trainer\.max_steps\b"]),
        ("train.py", ["trainer.log_every=0"], [r"trainer\.log_every=0 is not valid; use 1 or more"]),
        ("train.py", ["store=${no.key}"], [r"store: Interpolation key 'no\.key' not found"]),
        ("train.py", ["-m", "trainer.max_step=1,2"], [r"did you mean trainer\.max_steps\b"]),
        ("preprocess.py", ["dataset=folder"], [r"dataset\.path is required; pass dataset\.path="]),
        ("preprocess.py", ["dataset=foldr"], [r"did you mean folder\?"]),
        ("preprocess.py", ["shard_row=3"], [r"did you mean shard_rows\b"]),
        ("preprocess.py", ["shard_rows=three"], [r"shard_rows: .*'three'"]),
        ("preprocess.py", ["+foo=1"], ["'foo'", r"valid names: .*\bdataset|valid names: .*\bshard_rows"]),
        ("infer.py", [], [r"checkpoint is required; pass checkpoint="]),
        ("infer.py", ["checkpoint=x"], [r'pass text="…", text_file=FILE or texts=FILE']),
        ("infer.py", ["checkpont=x", "text=Ciao"], [r"'checkpont'", r"did you mean checkpoint\?"]),
        ("infer.py", ["checkpoint=x", "text=Ciao", "sampling=gredy"], [r"did you mean greedy\?"]),
        ("infer.py", ["checkpoint=x", "text=Ciao", "sampling.top_k=many"], [r"sampling\.top_k: .*'many'"]),
        ("infer.py", ["checkpoint=x", "text=Ciao", "+foo=1"], ["'foo'", r"valid names: .*\bcheckpoint\b"]),
        ("infer.py", ["checkpoint=x", "text=Ciao", "codec=null"], [r"must be a string", r"pass GROUP=OPTION"]),
        ("infer.py", ["Ciao"], [r"'Ciao'; write KEY=VALUE"]),
        ("infer.py", ["checkpoint=x", "--text", "Ciao"], [r"unrecognized arguments: --text", "write KEY=VALUE"]),
        ("infer.py", ["checkpoint=x", "text=Ciao", "optimizr=muon"], [r"'optimizr'.*; valid names: (?!.*optimizer)"]),
        ("train.py", ["output_dir="], [r"output_dir is empty; name a folder"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_a_mistake_is_one_line_with_the_remedy(script, arguments, expected, tmp_path):
    result = run_script(script, *arguments, cwd=tmp_path)
    assert_user_error(result, *expected)
    assert result.stdout == ""
    if script != "train.py":
        assert list(tmp_path.iterdir()) == []


def test_a_mistake_found_while_building_the_corpus_keeps_its_message(tmp_path):
    arguments = ["dataset=folder", "dataset.path=no, such folder", "codec=codec2", "store=store"]
    result = run_script("preprocess.py", *arguments, cwd=tmp_path)
    assert_user_error(result, r"no folder at no, such folder; pass dataset\.path=")
    assert list(tmp_path.iterdir()) == []


# Help


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"]], ids=" ".join)
def test_help_and_cfg_answer_without_anything_heavy(script, arguments, tmp_path):
    """In this process the script's modules can be seen at its end, whatever imported them."""
    code = f"""
import atexit, runpy, sys
atexit.register(lambda: print("modules:", *sorted(name for name in sys.modules if "." not in name)))
sys.argv = {[str(ROOT / script), *arguments]!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    result = run_python("-c", code, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    output, _, modules = result.stdout.rpartition("modules: ")
    loaded = set(modules.split())
    assert {"hydra", "llasa", "omegaconf"} <= loaded
    assert loaded & HEAVY == set()
    if arguments == ["--help"]:
        assert "Configuration groups" in output
        assert re.search(r"^lang: de, en, .*it", output, re.MULTILINE) or script == "infer.py"
    assert {"train.py": "trainer:", "preprocess.py": "shard_rows:", "infer.py": "checkpoint: ???"}[script] in output
    assert list(tmp_path.iterdir()) == []


def test_a_reader_of_the_help_may_stop_reading(tmp_path):
    """Fails when `--help | head` ends in a traceback."""
    command = f"set -o pipefail; {sys.executable} -u {ROOT / 'train.py'} --help | head -n 1"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1


# Exit codes of what happens in the job


def test_a_job_gets_the_typed_config_and_exits_0(tmp_path):
    script = write_entry(tmp_path, "infer", "print(type(config).__name__, repr(config.text), config.seed)")
    result = run_python(script, "checkpoint=x", "text=L'ho detto, [sì]: ${x}", "seed=3", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == 'InferConfig "L\'ho detto, [sì]: ${x}" 3\n'


@pytest.mark.parametrize(
    "body",
    ["raise KeyboardInterrupt", "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)"],
    ids=["raised", "signal"],
)
def test_ctrl_c_exits_130_without_a_traceback(body, tmp_path):
    script = write_entry(tmp_path, "infer", body)
    result = run_python(script, "checkpoint=x", "text=Ciao", cwd=tmp_path)
    assert (result.returncode, result.stderr, result.stdout) == (130, "interrupted\n", "")
    assert [path.name for path in tmp_path.iterdir()] == ["program.py"]


def test_a_user_error_of_the_job_is_one_line(tmp_path):
    body = 'raise UserError("two\\nlines", remedy="try\\n  again")'
    script = write_entry(tmp_path, "infer", body, "from llasa.errors import UserError")
    result = run_python(script, "checkpoint=x", "text=Ciao", cwd=tmp_path)
    assert_user_error(result, r"^error: two lines; try again$")
    assert [path.name for path in tmp_path.iterdir()] == ["program.py"]


@pytest.mark.parametrize("bug", ["RuntimeError", "ValueError", "PermissionError"])
def test_a_bug_keeps_its_traceback(bug, tmp_path):
    script = write_entry(tmp_path, "infer", f'raise {bug}("the cause")')
    result = run_python(script, "checkpoint=x", "text=Ciao", cwd=tmp_path)
    assert result.returncode == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert re.search(rf"^{bug}: '?the cause'?$", result.stderr, re.MULTILINE)
    assert f'raise {bug}("the cause")' in result.stderr
    assert "error: " not in result.stderr.replace("Error: ", "")


LEAVES = """
from llasa.errors import UserError

class Fails:
    def __init__(self, name, checkpoint=None):
        if checkpoint == "user":
            raise UserError("there is no codec here", remedy="look there")
        self.name = self.misspelled

def within(name):
    return dict(name=name).get(nmae=1)
"""


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["codec._target_=leaves.Fails", "+codec.checkpoint=user"], r"^error: there is no codec here; look there$"),
        (["codec._target_=leaves.Fails", "+codec.chekpoint=user"], r"unexpected keyword argument 'chekpoint'"),
        (["codec._target_=leaves.Missing"], r"cannot import leaves\.Missing"),
        (["codec._target_=no_such_package.Codec"], r"cannot import no_such_package\.Codec: No module named"),
    ],
)
def test_what_a_person_can_fix_about_a_leaf_is_one_line(overrides, expected, tmp_path):
    (tmp_path / "leaves.py").write_text(LEAVES)
    script = write_entry(tmp_path, "preprocess", "build(config.codec)", "from llasa.build import build")
    result = run_python(script, "dataset=espeak", "codec=codec2", *overrides, cwd=tmp_path)
    assert_user_error(result, expected)


@pytest.mark.parametrize(
    ("target", "cause"), [("leaves.Fails", "AttributeError"), ("leaves.within", "TypeError")], ids=["class", "function"]
)
def test_a_bug_in_a_leaf_keeps_its_traceback(target, cause, tmp_path):
    (tmp_path / "leaves.py").write_text(LEAVES)
    script = write_entry(tmp_path, "preprocess", "build(config.codec)", "from llasa.build import build")
    result = run_python(script, "dataset=espeak", "codec=codec2", f"codec._target_={target}", cwd=tmp_path)
    assert result.returncode == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert re.search(rf"^{cause}: .*(misspelled|nmae|keyword)", result.stderr, re.MULTILINE)
    assert re.search(r"leaves\.py\", line \d+, in (__init__|within)", result.stderr)


@pytest.mark.parametrize("folder", ["file/run", "n" * 300], ids=["inside a file", "too long a name"])
def test_a_run_folder_that_cannot_be_made_is_a_mistake(folder, tmp_path):
    (tmp_path / "file").write_text("kept")
    script = write_entry(tmp_path, "train", "print(config.output_dir)")
    result = run_python(script, "store=x", f"output_dir={folder}", cwd=tmp_path)
    assert_user_error(result, f"cannot use {folder}: ", "choose another folder")
    assert (tmp_path / "file").read_text() == "kept"


# Run folders


def test_the_run_folder_is_the_one_that_was_asked_for(tmp_path):
    script = write_entry(tmp_path, "train", "print(config.output_dir)")
    result = run_python(script, "store=x", "output_dir=runs/my, run [1]", cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "runs/my, run [1]\n", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["program.py", "runs"]
    assert not any((tmp_path / "runs/my, run [1]").iterdir())


def test_a_sweep_gives_each_job_its_own_run_folder(tmp_path):
    body = 'print("job", config.output_dir, config.optimizer["lr"], config.store)'
    script = write_entry(tmp_path, "train", body)
    result = run_python(script, "-m", "optimizer.lr=1e-5,5e-5", "store=x", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    jobs = [line.split()[1:] for line in result.stdout.splitlines() if line.startswith("job ")]
    assert [(rate, store) for _, rate, store in jobs] == [("1e-05", "x"), ("5e-05", "x")]
    first, second = (Path(folder) for folder, _, _ in jobs)
    assert first != second
    assert (first.parent, first.name, second.name) == (second.parent, "0", "1")
    assert all((tmp_path / folder).is_dir() for folder in (first, second))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outputs", "program.py"]


@pytest.mark.parametrize("flag", ["-m", "--multirun"])
def test_the_flag_of_a_sweep_may_stand_anywhere(flag, tmp_path):
    script = write_entry(tmp_path, "train", 'print("job", config.seed)')
    result = run_python(script, "store=x", flag, "seed=1,2", "output_dir=sweep", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert re.findall(r"^job (\d)$", result.stdout, re.MULTILINE) == ["1", "2"]


def test_a_sweep_goes_on_after_a_mistake_and_tells_it_in_the_end(tmp_path):
    body = 'print("job", config.seed)\nif config.seed == 1: raise UserError("no store", remedy="make one")'
    script = write_entry(tmp_path, "train", body, "from llasa.errors import UserError")
    result = run_python(script, "-m", "seed=1,2", "store=x", "output_dir=sweep", cwd=tmp_path)
    assert result.returncode == 3
    assert result.stderr == "job 0 failed: no store; make one\nerror: in a job of the sweep: no store; make one\n"
    assert re.findall(r"^job (\d)$", result.stdout, re.MULTILINE) == ["1", "2"]
    assert "sweep sweep: 1 of 2 jobs finished" in result.stdout
