"""States on disk: whole or not there, and damage is noticed.

trainer writes RUN/state/.partial/checkpoint-N ─sizes, check sums─► state.json ─sync─► renamed to RUN/state/checkpoint-N

A process that is killed at any moment leaves the states before, and a `.partial` that the next start removes.

Cost: the disk is waited for (a state is on it when it has its name), and up to 1 MB of each file is read again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint import CheckpointException

from llasa.errors import UserError, first_line

PARTIAL = ".partial"
MANIFEST = "state.json"
BLOCKS, BLOCK_BYTES = 16, 65_536


class DamagedStateError(Exception):
    """A state is not what was written; says which file and why."""


def complete_state(partial: Path, facts: dict[str, Any], keep: int) -> None:
    """Give a state its manifest and its name, then remove all but the ``keep`` newest.

    The states before stay until this one has its name. What lies there under the same name or a later one is from a
    future that this run has replaced (a damaged state, steps before a resume).

    Args:
        partial: the files of `.partial/checkpoint-N`, all written.
        facts: what the manifest holds beside the files.
    """
    files = {str(path.relative_to(partial)): describe_file(path) for path in files_of(partial)}
    manifest = partial / MANIFEST
    manifest.write_text(json.dumps(facts | {"files": files}, indent=1) + "\n", encoding="utf-8")
    folders = {path.parent for path in files_of(partial)} | {partial.parent}
    for path in (*files_of(partial), *folders):
        sync(path)
    state, final = partial.parent.parent, partial.parent.parent / partial.name
    if final.exists():
        discard(final)
    os.replace(partial, final)
    sync(state)
    others = sorted((folder for folder in state.glob("checkpoint-*") if folder != final), key=step_of, reverse=True)
    earlier = [folder for folder in others if step_of(folder) < step_of(final)]
    for folder in others:
        if folder not in earlier[: keep - 1]:
            discard(folder)
    shutil.rmtree(partial.parent, ignore_errors=True)


def discard(folder: Path) -> None:
    """Remove a state; if that is cut short, what is left does not look like one."""
    grave = folder.parent / PARTIAL / f"removed-{folder.name}"
    shutil.rmtree(grave, ignore_errors=True)
    grave.parent.mkdir(exist_ok=True)
    os.replace(folder, grave)
    shutil.rmtree(grave, ignore_errors=True)


def step_of(folder: Path) -> int:
    """N of checkpoint-N; -1 for another name."""
    number = folder.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def read_state(folder: Path) -> dict[str, Any]:
    """The facts in a state's manifest, if all its files are what they were.

    Raises:
        DamagedStateError: a file is missing, of another size, or of other content.
    """
    try:
        facts: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = facts.pop("files")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DamagedStateError(f"{MANIFEST} cannot be read: {first_line(error)}") from None
    for name, (size, digest) in files.items():
        try:
            found, content = describe_file(folder / name)
        except OSError as error:
            raise DamagedStateError(f"{name}: {error.strerror}") from None
        if found != size:
            raise DamagedStateError(f"{name} is {found:,} bytes, not {size:,}")
        if content != digest:
            raise DamagedStateError(f"the content of {name} has changed")
    return facts


def describe_file(path: Path) -> tuple[int, str]:
    """(bytes, BLAKE2 of the content); of a file over 1 MB 16 blocks are hashed, spread evenly from first to last.

    A file that was cut off or whose end is zeros is found so without reading 100 GB.
    """
    size = path.stat().st_size
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        if size <= BLOCKS * BLOCK_BYTES:
            digest.update(file.read())
        else:
            for block in range(BLOCKS):
                file.seek(block * (size - BLOCK_BYTES) // (BLOCKS - 1))
                digest.update(file.read(BLOCK_BYTES))
    return size, digest.hexdigest()


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_disk_failure(error: BaseException) -> bool:
    """Whether writing failed, whoever wrote: safetensors and torch have errors of their own for a full disk."""
    if isinstance(error, OSError):
        return True
    if isinstance(error, CheckpointException):  # of several processes, each with its own
        return all(is_disk_failure(failure[0]) for failure in error.failures.values())
    text = str(error)
    return ("I/O error" in text and type(error).__name__ == "SafetensorError") or (
        isinstance(error, RuntimeError) and ("inline_container" in text or "PytorchStreamWriter" in text)
    )


def disk_failure(error: BaseException, folder: Path) -> str:
    """Why writing failed, in a few words, with the space that is left."""
    if isinstance(error, CheckpointException):
        return disk_failure(next(iter(error.failures.values()))[0], folder)
    free = shutil.disk_usage(folder).free
    reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
    if isinstance(error, RuntimeError):  # "[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"
        reason = "torch could not write a file"
    return f"{reason}; {free / 1e9:,.2f} GB free"


@contextmanager
def final_checkpoint(run: Path, step: int, saved_step: int) -> Iterator[None]:
    """A checkpoint that cannot be written is the user's to fix, and costs no training if there is a state.

    Raises:
        UserError: the disk is full.
    """
    try:
        yield
    except Exception as error:  # safetensors and tokenizers have errors of their own for a full disk; others go on
        cause = error.__cause__ if isinstance(error, UserError) else error
        if cause is None or not is_disk_failure(cause):
            raise
        remedy = "there is no state to go on from, so make room and start again"
        if saved_step:
            rest = "writes it without training" if saved_step == step else f"goes on from step {saved_step}"
            remedy = f"make room; then resume=true output_dir={run} {rest}"
        raise UserError(
            f"{run / 'checkpoint'} could not be written ({disk_failure(cause, run)})", remedy=remedy
        ) from cause
