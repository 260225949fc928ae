"""Opens a data set of the hub, a local folder or an object store with `datasets`, or says in one line why not."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llasa.corpus.access import (
    folder_fingerprint,
    hub_commit,
    hub_is_off,
    is_hub_name,
    listing_fingerprint,
    locate,
    unreadable,
)
from llasa.errors import UserError, first_line
from llasa.paths import file_system, is_local

INSTEAD = {
    "audiofolder": "download it and use dataset=folder or dataset=manifest",
    "webdataset": "use dataset=webdataset",
}
"""Readers of `datasets` that do not hand over a recording as it is, for which they need torchcodec → what to use."""


@dataclass(frozen=True)
class OpenedDataSet:
    """A data set before any of its rows is read."""

    builder: Any
    title: str
    """What messages call it."""
    folder: Path | None
    """None on the hub."""
    revision: str | None
    """Its commit, on the hub."""
    fingerprint: str | None
    """Of the files in its folder."""

    def splits(self) -> list[str]:
        """The data set's names of its splits, known before anything is downloaded."""
        return [str(name) for name in self.builder.info.splits or self.builder.config.data_files or {}]

    def prepare(self, splits: dict[str, str], limit: int | None) -> dict[str, Any]:
        """`datasets.Dataset` of each split: everything on this disk, memory-mapped."""
        slice_ = f"[:{limit}]" if limit else ""
        try:
            self.builder.download_and_prepare()
            return {ours: self.builder.as_dataset(split=theirs + slice_) for ours, theirs in splits.items()}
        except Exception as error:  # of `datasets`, Arrow, httpx and every file system
            raise cannot_load(self.title, self.folder, error) from error

    def stream(self, splits: dict[str, str]) -> dict[str, Any]:
        """`datasets.IterableDataset` of each split: nothing is kept."""
        try:
            streams = self.builder.as_streaming_dataset()
        except Exception as error:  # the same
            raise cannot_load(self.title, self.folder, error) from error
        return {ours: streams[theirs] for ours, theirs in splits.items()}


def open_data_set(path: str, config: str | None, revision: str | None) -> OpenedDataSet:
    """
    Args:
        path: OWNER/NAME on the hub, a local folder, or the address of a folder of Parquet files (`s3://…`), in which
            ``config`` is a folder again.

    Raises:
        UserError: there is no such data set, configuration or revision, or no way to it.
    """
    import datasets
    import huggingface_hub

    # They log what they are about to raise, which is told here.
    logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
        huggingface_hub.utils.disable_progress_bars()
    title = f"{path}, configuration {config}" if config else path
    if not is_hub_name(path) or Path(path).is_dir():
        folder = locate(path)
        if is_local(folder):
            return _open_folder(folder, config, title)
        return _open_remote(folder / config if config else folder, title)
    return _open_hub(path, config, revision, title)


def _open_folder(folder: Path, config: str | None, title: str) -> OpenedDataSet:
    if not folder.is_dir():
        raise UserError(f"there is no folder at {folder}", remedy="pass dataset.path=FOLDER, or OWNER/NAME on the hub")
    fingerprint = folder_fingerprint(folder)
    builder = _builder(title, folder, path=str(folder), name=config, cache_dir=_cache(fingerprint))
    return OpenedDataSet(builder, title, folder, None, fingerprint)


def _open_remote(folder: Path, title: str) -> OpenedDataSet:
    import datasets

    try:
        fs, root = file_system(folder)
        files = fs.find(root, detail=True)
        parquet = any(file.endswith(".parquet") for file in files)
        patterns = datasets.data_files.get_data_patterns(str(folder)) if parquet else {}
    except Exception as error:  # each file system has its own
        raise unreadable(title, error) from error
    if not parquet:
        raise UserError(f"there are no Parquet files in {folder}", remedy="check dataset.path and dataset.config")
    fingerprint = listing_fingerprint(files)
    data_files = {str(split): [f"{folder}/{pattern}" for pattern in found] for split, found in patterns.items()}
    builder = _builder(title, folder, path="parquet", data_files=data_files, cache_dir=_cache(fingerprint))
    return OpenedDataSet(builder, title, folder, None, fingerprint)


def _open_hub(path: str, config: str | None, revision: str | None, title: str) -> OpenedDataSet:
    if not hub_is_off():
        revision = hub_commit(path, revision)
    try:
        builder = _builder(title, None, path=path, name=config, revision=revision)
    except UserError as error:
        if hub_is_off():  # then it is only found if it was prepared here before
            raise UserError(
                f"{path} is no local folder and the hub is switched off",
                remedy="check dataset.path, or unset HF_HUB_OFFLINE",
            ) from error
        raise
    return OpenedDataSet(builder, title, None, builder.hash, None)  # the hash is the commit, without a network too


def _cache(fingerprint: str) -> str:
    """`datasets` knows a folder by its name and configuration only: another folder of that name, or the same one with
    new files, would give the old rows. So each state of a folder has a cache of its own."""
    import datasets

    return str(Path(datasets.config.HF_DATASETS_CACHE) / "llasa" / fingerprint)


def _builder(title: str, folder: Path | None, **arguments: Any) -> Any:
    import datasets

    try:
        builder = datasets.load_dataset_builder(**arguments)
    except Exception as error:  # of `datasets`, httpx, YAML in the data set's card, …
        names = _configurations(error, arguments)
        if names:
            config = arguments["name"]
            listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
            what = f"{arguments['path']} has {f'no configuration {config!r}' if config else 'several configurations'}"
            raise UserError(what, remedy=f"set dataset.config to one of {listed}") from error
        raise cannot_load(title, folder, error) from error
    reader = type(builder).__module__.rpartition(".")[2]
    if reader in INSTEAD:
        raise UserError(f"{title} holds its recordings as loose files", remedy=INSTEAD[reader])
    return builder


def _configurations(error: Exception, arguments: dict[str, Any]) -> list[str]:
    """The data set's configurations, where a missing one is what ``error`` says."""
    import datasets

    if not isinstance(error, ValueError) or "config" not in str(error).lower() or "name" not in arguments:
        return []
    place = {key: arguments[key] for key in ("path", "revision") if key in arguments}
    try:
        names = datasets.get_dataset_config_names(**place)
    except Exception:  # then the first error says more
        return []
    return [] if arguments["name"] in names else names


def cannot_load(title: str, folder: Path | None, error: BaseException) -> UserError:
    import datasets

    while isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__ is not None:
        error = error.__cause__
    if folder is None or not is_local(folder):
        return unreadable(title, error)
    return UserError(f"cannot load {title}: {first_line(error)}", remedy="check dataset.path and its files")
