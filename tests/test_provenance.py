"""Where a result comes from, and files that are whole or not there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from llasa.entry import compose_config
from llasa.provenance import (
    RUN_PACKAGES,
    machine,
    package_versions,
    provenance,
    write_atomically,
    write_json,
    write_run_record,
)

ROOT = Path(__file__).parents[1]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Files


def test_a_file_is_replaced_and_no_temporary_one_is_left(tmp_path):
    path = tmp_path / "file.bin"
    write_atomically(path, b"old")
    assert path.read_bytes() == b"old"
    write_atomically(path, b"new, and longer\x00\xff")
    assert path.read_bytes() == b"new, and longer\x00\xff"
    assert names(tmp_path) == ["file.bin"]


def test_a_reader_keeps_the_old_file_whole(tmp_path):
    """The file is renamed over, not written into: an open reader never sees a part."""
    path = tmp_path / "file.txt"
    write_atomically(path, b"old content")
    with open(path, "rb") as reader:
        assert reader.read(3) == b"old"
        write_atomically(path, b"NEW")
        assert reader.read() == b" content"
    assert path.read_bytes() == b"NEW"


def test_a_failed_write_harms_nothing(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"step": 1})
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_json(path, {"step": object()})
    with pytest.raises(TypeError):
        write_atomically(path, "text, not bytes")
    assert path.read_bytes() == before
    write_json(path, {"step": 2})  # what the failed write left behind is no obstacle
    assert json.loads(path.read_text()) == {"step": 2}
    assert names(tmp_path) == ["file.json"]


def test_json_keeps_letters_and_ends_in_a_newline(tmp_path):
    value = {"text": "perché, Straße, 你好", "list": [1, 2.5, None, True]}
    write_json(tmp_path / "a.json", value)
    content = (tmp_path / "a.json").read_bytes()
    assert json.loads(content) == value
    assert "perché, Straße, 你好".encode() in content
    assert content.endswith(b"}\n")


# Versions


def test_versions_are_those_installed():
    versions = package_versions()
    assert {"torch", "transformers"} <= set(versions)
    assert all(versions[name] == version(name) for name in versions)
    record = provenance()
    assert set(record) == {"commit", "python", "packages"}  # of stores too, whose bytes no machine may change
    assert "wandb" not in record["packages"]
    assert record["python"] == ".".join(map(str, sys.version_info[:3]))
    assert json.loads(json.dumps(record)) == record


# Git. The module looks at the checkout that it lies in, so it is copied into one made for the test.


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    result = subprocess.run(["git", "-C", str(folder), *identity, *arguments], capture_output=True, check=True)
    return result.stdout.decode()


@pytest.fixture
def copy(tmp_path) -> Path:
    """A folder with a copy of the module and of what it imports, outside any checkout."""
    (tmp_path / "code" / "llasa").mkdir(parents=True)
    for name in ("__init__.py", "provenance.py", "paths.py", "errors.py"):
        shutil.copy(ROOT / "llasa" / name, tmp_path / "code" / "llasa")
    return tmp_path / "code"


@pytest.fixture
def checkout(copy) -> Path:
    (copy / ".gitignore").write_text("__pycache__/\n")
    (copy / "notes.txt").write_text("first line\nperché\n")
    git(copy, "init", "--quiet")
    git(copy, "add", ".")
    git(copy, "commit", "--quiet", "-m", "start")
    return copy


def in_copy(folder: Path, expression: str) -> str:
    """The JSON of an expression over the copied module, evaluated where git finds no checkout above it."""
    code = f"import dataclasses, json, os; from llasa.provenance import *; print(json.dumps({expression}))"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    environment |= {"PYTHONPATH": str(folder), "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(result.stdout)


def test_the_commit_of_a_checkout(checkout):
    commit = git(checkout, "rev-parse", "HEAD").strip()
    assert len(commit) == 40
    assert in_copy(checkout, "[git_commit(), git_diff().decode()]") == [commit, ""]


def test_untracked_files_are_not_a_change(checkout):
    (checkout / "untracked.txt").write_text("x")
    assert in_copy(checkout, "git_commit()") == git(checkout, "rev-parse", "HEAD").strip()


def test_the_run_record_names_the_code_that_git_does_not_know(checkout):
    """Fails when files that git ignores are named, or others than code and configs."""
    record = "write_run_record(Path({!r}), dataclasses.make_dataclass('Config', ['seed'])(7))"
    assert "untracked" not in in_copy(checkout, record.format(str(checkout.parent / "known")))
    (checkout / ".gitignore").write_text("__pycache__/\nignored.py\n")
    git(checkout, "commit", "--quiet", "-am", "ignore")
    for name in ("perché.py", "ignored.py", "notes.md", "llasa/own.yaml"):
        (checkout / name).write_text("x")
    written = in_copy(checkout, record.format(str(checkout.parent / "own")))
    assert written["untracked"] == ["llasa/own.yaml", "perché.py"]
    assert written == json.loads((checkout.parent / "own" / "provenance.json").read_text())


@pytest.mark.gpu
@pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="no NVIDIA driver")
def test_the_gpu_is_the_one_that_torch_sees():
    import torch

    assert any(gpu.startswith(torch.cuda.get_device_name()) for gpu in machine()["gpus"])


@pytest.mark.parametrize("staged", [False, True])
def test_a_changed_checkout_is_dirty_and_its_diff_restores_it(checkout, staged, tmp_path):
    commit = git(checkout, "rev-parse", "HEAD").strip()
    (checkout / "notes.txt").write_text("first line\nperché no\n")
    if staged:
        git(checkout, "add", ".")
    found, diff = in_copy(checkout, "[git_commit(), git_diff().decode()]")
    assert found == f"{commit}-dirty"
    assert "+perché no" in diff
    (tmp_path / "git.diff").write_text(diff)
    git(tmp_path, "clone", "--quiet", str(checkout), "clone")
    assert (tmp_path / "clone/notes.txt").read_text() == "first line\nperché\n"
    git(tmp_path / "clone", "apply", str(tmp_path / "git.diff"))
    assert (tmp_path / "clone/notes.txt").read_text() == "first line\nperché no\n"


def test_outside_a_checkout_the_commit_is_unknown(copy):
    assert in_copy(copy, "[git_commit(), git_diff().decode()]") == ["unknown", ""]


def test_without_git_the_commit_is_unknown(checkout):
    assert in_copy(checkout, "[os.environ.update(PATH=''), git_commit(), git_diff().decode()]") == [None, "unknown", ""]


# The record of a run


def test_the_run_record_holds_the_resolved_config(tmp_path):
    config = compose_config("train", ["model.lr=3e-4", "lang=de", "store=Körper, 1", "logger=none"])
    write_run_record(tmp_path / "runs" / "one", config, resolved={"device": "cpu"}, store={"rows": 3})
    folder = tmp_path / "runs" / "one"
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    assert "${" not in text
    assert "???" not in text
    assert "Körper, 1" in text
    record = yaml.safe_load(text)
    assert record["optimizer"]["lr"] == record["model"]["lr"] == 3e-4
    assert record["packing"]["max_length"] == record["model"]["max_length"] == config.model.max_length
    assert (record["lang"]["code"], record["logger"]["name"], record["store"]) == ("de", "none", "Körper, 1")
    assert list(record)[:2] == ["model", "lang"]
    facts = json.loads((folder / "provenance.json").read_text())
    base = provenance()
    assert facts["packages"] == base["packages"] | package_versions(RUN_PACKAGES)
    assert {"wandb", "hydra-core", "numpy", "soundfile"} <= set(facts["packages"])
    assert facts["machine"] == machine()
    assert facts["machine"]["cpus"] == os.cpu_count()
    facts.pop("untracked", None)
    expected = {**base, "machine": machine(), "resolved": {"device": "cpu"}, "store": {"rows": 3}}
    assert {**facts, "packages": base["packages"]} == expected
    assert set(names(folder)) - {"git.diff"} == {"config.yaml", "provenance.json"}


def test_the_same_config_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_run_record(tmp_path / name, compose_config("train", ["output_dir=x"]), rows=1)
    for file in ("config.yaml", "provenance.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_run_record_holds_the_diff_of_a_changed_checkout_only(checkout):
    record = "write_run_record(Path({!r}), dataclasses.make_dataclass('Config', ['seed'])(7))"
    folder = checkout.parent / "clean"
    in_copy(checkout, record.format(str(folder)))
    assert names(folder) == ["config.yaml", "provenance.json"]
    (checkout / "notes.txt").write_text("changed\n")
    folder = checkout.parent / "dirty"
    in_copy(checkout, record.format(str(folder)))
    assert names(folder) == ["config.yaml", "git.diff", "provenance.json"]
    assert (folder / "config.yaml").read_text() == "seed: 7\n"
    assert (folder / "git.diff").read_text() == git(checkout, "diff", "HEAD")
    assert json.loads((folder / "provenance.json").read_text())["commit"].endswith("-dirty")
