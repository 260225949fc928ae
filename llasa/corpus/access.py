"""Why a corpus cannot be read, in one line: the hub, object stores and networks each fail in their own words."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from llasa.errors import UserError, first_line
from llasa.paths import location

HUB_TIMEOUT = 10.0
"""Seconds to wait for the hub's first answer."""

NETWORK_ERRORS = {"ConnectionError", "TimeoutError", "TransportError", "ClientConnectionError"}
"""Names, because every client has its own: Python's and botocore's, httpx's, aiohttp's."""

HUB_ADDRESS = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?(/.*)?")
"""Data set, revision and path in it."""

LOG_IN = "accept its terms on its page and run `hf auth login`"


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or following.__context__


def unreadable(place: str, error: BaseException) -> UserError:
    """What to tell the user who asked for ``place``: a data set of the hub, a folder or a file anywhere."""
    from huggingface_hub import errors as hub

    for cause in causes(error):
        if isinstance(cause, hub.GatedRepoError) or "is a gated dataset" in str(cause):  # in the words of `datasets`
            return UserError(f"{place} is gated: its owner wants to know who reads it", remedy=LOG_IN)
        if isinstance(cause, hub.RevisionNotFoundError):
            return UserError(f"{place} has no such revision", remedy="check dataset.revision, or set it to null")
        if isinstance(cause, hub.RepositoryNotFoundError):
            return UserError(
                f"there is no {place}, or it is private", remedy="check dataset.path, or run `hf auth login`"
            )
        if any(base.__name__ in NETWORK_ERRORS for base in type(cause).__mro__):
            return UserError(
                f"cannot reach {place}: {first_line(cause)}",
                remedy="check the network; what was downloaded before is read with HF_HUB_OFFLINE=1",
            )
    return UserError(f"cannot read {place}: {first_line(error)}", remedy="check the path, the rights and the network")


def is_damage(error: BaseException) -> bool:
    """Whether a file's own content is at fault, not the way to it: Arrow raises a plain OSError without a number."""
    import pyarrow as pa

    return isinstance(error, pa.ArrowException) or (type(error) is OSError and error.errno is None)


def hub_commit(path: str, revision: str | None) -> str:
    """The commit of a data set of the hub. The first thing asked, once and without repeats: huggingface_hub tries
    everything else six times, 25 s and 12 lines on a machine without a network.

    Raises:
        UserError: there is no network, no such data set or revision, or it is not for this user.
    """
    from huggingface_hub import HfApi

    try:
        found = HfApi().dataset_info(path, revision=revision, timeout=HUB_TIMEOUT)
    except Exception as error:  # of httpx2, huggingface_hub, or the JSON of a proxy's log-in page
        raise unreadable(f"{path} on the hub", error) from error
    assert found.sha is not None, "the hub gives a data set without a commit"
    return found.sha


def locate(path: str) -> Path:
    """``llasa.paths.location`` for a corpus. One on the hub (`hf://datasets/OWNER/NAME/…`) is held to the commit that
    it has now, so that all its files are of one state.

    Raises:
        UserError: as :func:`hub_commit`, or there is no such protocol.
    """
    on_hub = HUB_ADDRESS.fullmatch(path)
    if on_hub:
        if hub_is_off():
            raise UserError(f"{path} is on the hub, which is switched off", remedy="unset HF_HUB_OFFLINE")
        name, revision, rest = on_hub.groups()
        revision = revision and unquote(revision)  # refs/convert/parquet is written refs%2Fconvert%2Fparquet
        path = f"hf://datasets/{name}@{hub_commit(name, revision)}{rest or ''}"
    return location(path)


def hub_is_off() -> bool:
    import datasets

    return datasets.config.HF_HUB_OFFLINE


def fingerprint(facts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(facts).encode(errors="surrogateescape")).hexdigest()[:16]


def folder_fingerprint(folder: Path) -> str:
    """Changes with the place of a folder and with the names, sizes and times of its files."""
    facts = [str(folder.resolve())]
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            facts.append(f"{file.relative_to(folder)} {file.stat().st_size} {file.stat().st_mtime_ns}")
    return fingerprint(facts)


def listing_fingerprint(files: dict[str, dict[str, Any]]) -> str:
    """The same of an fsspec listing: path → its facts. Object stores name a file's content by a tag."""
    tags = ("ETag", "etag", "md5Hash", "blob_id", "mtime")
    return fingerprint(
        f"{path} {facts.get('size')} {next((facts[tag] for tag in tags if facts.get(tag)), '')}"
        for path, facts in sorted(files.items())
    )


def is_hub_name(path: str) -> bool:
    """Whether `datasets` would look for ``path`` on the hub: OWNER/NAME, or one of the few old names without owner."""
    return "://" not in path and path.count("/") <= 1 and not path.startswith((".", "~", "/"))


def read_if_there(file: Path) -> bytes | None:
    """The content of a file here or in an object store; none where there is no such file.

    Raises:
        UserError: there may be one, but it cannot be read.
    """
    try:
        return file.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
    except Exception as error:  # each file system has its own
        raise unreadable(str(file), error) from error
