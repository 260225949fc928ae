"""Who makes which shard, where several processes work on one store.

A claim is a file lock in the store's folder `.claims`: the system frees it when its process ends, however it ends.
Claims save work, they do not guard the data: where a file system has no locks (object stores, some network mounts),
two processes may make the same shard, each writes it whole, and both write the same bytes.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from llasa.corpus.store import CLAIMS
from llasa.paths import is_local


class Claim:
    """The right to make one thing in a store; release it with :meth:`release`, in any thread."""

    def __init__(self, lock: FileLock | None) -> None:
        self._lock = lock

    def release(self) -> None:
        if self._lock is not None:
            self._lock.release()


def claim(root: Path, name: str, *, wait: bool = False) -> Claim | None:
    """Claim ``name`` in the store at ``root``; none where another process holds it and ``wait`` is false."""
    if not is_local(root):
        return Claim(None)
    file = root / CLAIMS / f"{name.replace('/', '-')}.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file, thread_local=False)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        return None
    except (NotImplementedError, OSError):  # a file system without locks
        return Claim(None)
    return Claim(lock)


@contextlib.contextmanager
def claimed(root: Path, name: str) -> Iterator[None]:
    """Wait for ``name`` and hold it for the block."""
    mine = claim(root, name, wait=True)
    assert mine is not None
    try:
        yield
    finally:
        mine.release()


def remove_claims(root: Path) -> None:
    """The store is complete: nothing is left to claim."""
    if is_local(root):
        shutil.rmtree(root / CLAIMS, ignore_errors=True)
