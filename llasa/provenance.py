"""Where a result comes from: commit, versions, seeds and the resolved config, into every run folder and store.

Nothing here depends on the time or the machine's paths, so that the same inputs give the same bytes. What a machine
is made of goes into the record of a run alone (:func:`write_run_record`).
"""

from __future__ import annotations

import dataclasses
import glob
import json
import os
import platform
import subprocess
import uuid
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llasa.paths import is_local

PACKAGES = (
    "numpy",
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "peft",
    "soundfile",
    "soxr",
    "pycodec2",
    "liger-kernel",
    "bitsandbytes",
    "flash-attn",
)
RUN_PACKAGES = ("hydra-core", "omegaconf", "wandb", "tensorboard")
"""Of a run's record only: they change no result."""
CONFIG, RECORD = "config.yaml", "provenance.json"
REPOSITORY = Path(__file__).resolve().parent.parent


def provenance() -> dict[str, Any]:
    """Git commit (with `-dirty` when files differ from it) and the versions of what computes."""
    return {"commit": git_commit(), "python": platform.python_version(), "packages": package_versions()}


def package_versions(names: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Of those that are installed."""
    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def git_commit() -> str:
    """The commit of this code, or "unknown" where it is no git checkout."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return "unknown"
    return commit.decode().strip() + ("-dirty" if _git("status", "--porcelain", "--untracked-files=no") else "")


def git_diff() -> bytes:
    """What `git apply` needs to get from the commit to the code that ran (files git does not track excepted)."""
    return _git("diff", "--no-color", "--no-ext-diff", "--binary", "HEAD") or b""


def untracked_files() -> list[str]:
    """Code and configs that git does not know, so that neither commit nor diff holds them."""
    names = _git("ls-files", "--others", "--exclude-standard", "-z", "--", "*.py", "*.yaml") or b""
    return sorted(name.decode(errors="replace") for name in names.split(b"\0") if name)


def machine() -> dict[str, Any]:
    """What a run had to compute with: system, processors, GPUs and their driver. No names, no paths."""
    facts: dict[str, Any] = {"system": platform.platform(), "cpus": os.cpu_count()}
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    lines = (_output(*query) or b"").decode(errors="replace").splitlines()
    gpus = [line.split(", ") for line in lines if line.count(", ") == 2]
    if gpus:
        facts["gpus"] = [f"{name}, {memory}" for name, memory, _ in gpus]
        facts["driver"] = gpus[0][2]
    return facts


def _git(*arguments: str) -> bytes | None:
    return _output("git", "-C", str(REPOSITORY), *arguments)


def _output(*command: str) -> bytes | None:
    """What a command prints, none where it is not there or fails."""
    try:
        result = subprocess.run(command, capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout if result.returncode == 0 else None


def differing_keys(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Dotted keys under which two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = old.keys() | new.keys()
        return [k for key in keys for k in differing_keys(old.get(key), new.get(key), f"{prefix}{key}.")]
    return [] if old == new else [prefix.rstrip(".")]


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file appears whole or not at all."""
    write_atomically(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Write to a temporary name, sync, rename: a reader sees the old file or the new one, never a part.

    Two processes may write the same file at once: each has a temporary name of its own. A killed one leaves it,
    see :func:`remove_temporary`. Object stores (`s3://`, …) show a file only when it is whole, without a rename.
    """
    if not is_local(path):
        path.write_bytes(content)
        return
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove_temporary(path: Path) -> None:
    """Remove what killed processes left while they wrote ``path``. Nobody else may be writing it."""
    if is_local(path):
        for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            temporary.unlink(missing_ok=True)


def write_run_record(folder: Path, config: Any, **facts: Any) -> dict[str, Any]:
    """`config.yaml` (resolved), `provenance.json` and, when the code differs from its commit, `git.diff`.

    Returns:
        What is in `provenance.json`: of :func:`provenance`, the machine, and ``facts``.
    """
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    resolved = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)
    write_atomically(folder / CONFIG, resolved.encode())
    record = provenance() | {"machine": machine()}
    record["packages"] |= package_versions(RUN_PACKAGES)
    if untracked := untracked_files():
        record["untracked"] = untracked
    record |= facts
    write_json(folder / RECORD, record)
    diff = git_diff()
    if diff:
        write_atomically(folder / "git.diff", diff)
    else:
        (folder / "git.diff").unlink(missing_ok=True)
    return record
