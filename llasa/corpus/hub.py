"""Any data set that `datasets.load_dataset` reads: the Hugging Face hub, or a local folder of Parquet files.

Audio stays undecoded bytes (`Audio(decode=False)`): the decoder of `datasets` needs torchcodec, which we do not.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from llasa.config import require
from llasa.corpus.sources import SourceRow
from llasa.errors import RejectedRow, UserError


class HubSource:
    """Rows of a data set, with its columns mapped to ours.

    Args:
        path: hub name or local folder. config: the data set's configuration, if it has several.
        splits: our name of a split → the data set's. columns: ``audio``, ``text``, ``speaker``, ``id`` → its names;
            the last two may be none. limit: keep only the first so many rows of each split.

    Raises:
        UserError: the data set cannot be loaded, or has other columns.
    """

    def __init__(
        self,
        *,
        path: str,
        config: str | None,
        language: str,
        splits: dict[str, str],
        columns: dict[str, str | None],
        name: str = "hub",
        limit: int | None = None,
    ) -> None:
        require(limit is None or limit >= 1, "dataset.limit", limit, "use 1 or more, or null for all rows")
        for key in ("audio", "text"):
            require(bool(columns[key]), f"dataset.columns.{key}", columns[key], "name the column of the data set")
        self.name, self.path, self.config, self.language = name, path, config, language
        self.split_names, self.columns = splits, columns
        self.fingerprint = folder_fingerprint(Path(path)) if Path(path).is_dir() else None
        self.datasets = {
            ours: self._with_our_columns(self._load(f"{theirs}[:{limit}]" if limit else theirs))
            for ours, theirs in splits.items()
        }

    def _load(self, split: str) -> Any:
        import datasets

        if self.fingerprint is None and datasets.config.HF_HUB_OFFLINE:
            raise UserError(
                f"{self.path} is no local folder and the hub is switched off",
                remedy="check dataset.path, or unset HF_HUB_OFFLINE",
            )
        cache = None
        if self.fingerprint is not None:
            # `datasets` knows a local folder by its name and configuration only: another folder of that name, or the
            # same one with new files, would give the old rows. So each state of a folder has a cache of its own.
            cache = str(Path(datasets.config.HF_DATASETS_CACHE) / "llasa" / self.fingerprint)
        try:
            return datasets.load_dataset(self.path, self.config, split=split, cache_dir=cache)
        except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
            told = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else error
            if isinstance(told, ImportError):  # it asks for torchcodec, which must not be installed here
                raise UserError(
                    f"{self.path} holds its recordings as loose files",
                    remedy="download it and use dataset=folder or dataset=manifest",
                ) from error
            why = next(iter(str(told).strip().splitlines()), "") or type(error).__name__
            raise UserError(
                f"cannot load {self.path}, configuration {self.config}, split {split}: {why}",
                remedy="check the names and the network; for a gated data set accept its terms and run `hf auth login`",
            ) from error

    def _with_our_columns(self, rows: Any) -> Any:
        import datasets
        import pyarrow as pa

        wanted = [column for column in self.columns.values() if column]
        missing = [column for column in wanted if column not in rows.column_names]
        if missing:
            raise UserError(
                f"{self.path} has no column {missing[0]!r}; it has {', '.join(rows.column_names)}",
                remedy="map the columns with dataset.columns.text=… and dataset.columns.audio=…",
            )
        try:
            rows = rows.cast_column(self.columns["audio"], datasets.Audio(decode=False))
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise UserError(
                f"the column {self.columns['audio']!r} of {self.path} holds no audio: {error}",
                remedy=f"set dataset.columns.audio=… to one of {', '.join(rows.column_names)}",
            ) from error
        return rows.select_columns(wanted)

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "path": self.path,
            "config": self.config,
            "fingerprint": self.fingerprint,
            "splits": dict(self.split_names),
            "columns": dict(self.columns),
            "rows": self.splits(),
        }

    def splits(self) -> dict[str, int]:
        return {name: len(rows) for name, rows in self.datasets.items()}

    def row(self, split: str, index: int) -> SourceRow:
        fields = self.datasets[split][index]
        audio, text = fields[self.columns["audio"]], fields[self.columns["text"]]
        if text is None:
            raise RejectedRow("empty_text", "no transcript")
        if not isinstance(text, str):
            raise RejectedRow("malformed_row", f"the transcript is no text but {type(text).__name__}")
        if audio is None or (audio.get("bytes") is None and not audio.get("path")):
            raise RejectedRow("missing_audio", "no bytes and no path")
        content = audio["bytes"] if audio.get("bytes") is not None else Path(audio["path"])
        return SourceRow(
            id=self._optional(fields, "id", f"{split}-{index}"),
            text=text,
            audio=content,
            speaker=self._optional(fields, "speaker", ""),
            language=self.language,
        )

    def _optional(self, fields: dict[str, Any], key: str, default: str) -> str:
        column = self.columns.get(key)
        value = fields[column] if column else None
        return default if value is None or value == "" else str(value)  # the number 0 is a name too


def folder_fingerprint(folder: Path) -> str:
    """Changes with the place of a folder and with the names, sizes and times of its files."""
    facts = [str(folder.resolve())]
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            facts.append(f"{file.relative_to(folder)} {file.stat().st_size} {file.stat().st_mtime_ns}")
    return hashlib.sha256("\n".join(facts).encode(errors="surrogateescape")).hexdigest()[:16]
