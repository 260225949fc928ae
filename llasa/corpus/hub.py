"""Any data set that `datasets.load_dataset` reads: the Hugging Face hub, or a local folder of Parquet files.

Audio stays undecoded bytes (`Audio(decode=False)`): the decoder of `datasets` needs torchcodec, which we do not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llasa.corpus.sources import SourceRow
from llasa.errors import RejectedRow, UserError


class HubSource:
    """Rows of a data set, with its columns mapped to ours.

    Args:
        path: hub name or local folder. config: the data set's configuration, if it has several.
        splits: our name of a split → the data set's. columns: ``audio``, ``text``, ``speaker``, ``id`` → its names;
            the last two may be none.
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
        import datasets

        self.name, self.path, self.config, self.language = name, path, config, language
        self.columns = columns
        if not Path(path).exists() and datasets.config.HF_HUB_OFFLINE:
            raise UserError(f"{path} is no local folder and the hub is switched off", remedy="unset HF_HUB_OFFLINE")
        self.datasets: dict[str, Any] = {}
        for ours, theirs in splits.items():
            split = f"{theirs}[:{limit}]" if limit else theirs
            try:
                rows = datasets.load_dataset(path, config, split=split)
            except (
                ValueError,
                FileNotFoundError,
                ConnectionError,
                OSError,
                datasets.exceptions.DatasetsError,
            ) as error:
                where = f"{path}, configuration {config}, split {theirs}"
                why = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
                raise UserError(
                    f"cannot load {where}: {why}",
                    remedy="check the names and the network; for a gated data set accept its terms and run `hf auth login`",
                ) from error
            wanted = [column for column in columns.values() if column]
            missing = [column for column in wanted if column not in rows.column_names]
            if missing:
                raise UserError(
                    f"{path} has no column {missing[0]!r}; it has {', '.join(rows.column_names)}",
                    remedy="map the columns with dataset.columns.text=… and dataset.columns.audio=…",
                )
            self.datasets[ours] = rows.cast_column(columns["audio"], datasets.Audio(decode=False)).select_columns(
                wanted
            )

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "path": self.path,
            "config": self.config,
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
        if audio is None or (audio.get("bytes") is None and not audio.get("path")):
            raise RejectedRow("missing_audio", "no bytes and no path")
        content = audio["bytes"] if audio.get("bytes") is not None else Path(audio["path"])
        return SourceRow(
            id=str(self._optional(fields, "id") or f"{split}-{index}"),
            text=text,
            audio=content,
            speaker=str(self._optional(fields, "speaker") or ""),
            language=self.language,
        )

    def _optional(self, fields: dict[str, Any], key: str) -> Any:
        column = self.columns.get(key)
        return fields[column] if column else None
