"""Places of files: on this machine, or anywhere fsspec reaches (`s3://`, `gs://`, `hf://`, `memory://`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llasa.errors import UserError

if TYPE_CHECKING:
    from upath import UPath


def location(path: str | Path) -> Path:
    """A path as people write it. One with a protocol becomes a `upath.UPath`, which has the methods of `Path`.

    Raises:
        UserError: the protocol is unknown, or its package is not installed.
    """
    text = str(path).removeprefix("file://")
    if "://" not in text:
        try:
            return Path(text).expanduser()
        except RuntimeError:  # ~NAME of a user whom the system does not know: a folder may be called so
            return Path(text)
    from upath import UPath

    try:
        place = UPath(text)
        _ = place.fs  # what it needs is imported here, not at the first read
        return place  # type: ignore[return-value]  # it has the methods of a Path without being one
    except (ValueError, ImportError) as error:  # an unknown protocol, or s3fs, gcsfs, … are not there
        raise UserError(f"cannot reach {text}: {error}", remedy="see requirements/cloud.txt") from None


def is_local(path: Path) -> bool:
    """Whether ``path`` is in this machine's file system, where files can be renamed and locked."""
    return isinstance(path, Path)


def file_system(place: Path | UPath) -> tuple[Any, str]:
    """fsspec's file system of a place, and the place's name there."""
    import fsspec

    if isinstance(place, Path):
        return fsspec.filesystem("file"), str(place.absolute())
    return place.fs, place.path
