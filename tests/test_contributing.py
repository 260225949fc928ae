"""The worked examples of CONTRIBUTING.md: their files are written into a copy of the tree, and their commands run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llasa.corpus.store import TokenStore

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"<!-- (?P<kind>file|run|output)(?:: (?P<path>\S+))? -->\n```\w+\n(?P<content>.*?)```\n", re.DOTALL)


def examples() -> list[tuple[str, str | None, str]]:
    """(kind, path, content) of each marked block, in order."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return [(match["kind"], match["path"], match["content"]) for match in BLOCK.finditer(text)]


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("contributing")
    for name in ("conf", "llasa"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("preprocess.py", "train.py"):
        shutil.copy(ROOT / name, folder / name)
    for kind, path, content in examples():
        if kind == "file":
            assert not (folder / path).exists(), f"{path} is there already: choose another example"
            (folder / path).write_text(content, encoding="utf-8")
    return folder


def test_the_examples_work(copy):
    """Fails when an example no longer fits the code: a field that was renamed, a method that a protocol gained."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(copy),
        "OMP_NUM_THREADS": "1",
    }
    printed, counts = "", {"file": 0, "run": 0, "output": 0}
    for kind, _, content in examples():
        counts[kind] += 1
        if kind == "run":
            done = subprocess.run(
                ["bash", "-e", "-c", content], cwd=copy, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{content}\n{done.stdout}\n{done.stderr}"
            printed = done.stdout
        if kind == "output":
            assert printed == content
    assert counts == {"file": 7, "run": 4, "output": 1}

    assert TokenStore(copy / "data/mu_law").codec.name == "mu_law"
    assert sorted(row["id"] for row in TokenStore(copy / "data/pairs").rows("train")) == ["0", "1"]
    assert (copy / "outputs/radam/checkpoint/llasa.json").is_file()


def test_the_files_are_as_the_house_wants_them(copy):
    """The examples pass the linter with the project's own settings."""
    files = [path for kind, path, _ in examples() if kind == "file" and path.endswith(".py")]
    assert len(files) == 3
    for command in (["check"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--config", str(ROOT / "pyproject.toml"), *files]
        done = subprocess.run(ruff, cwd=copy, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
