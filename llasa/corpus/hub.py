"""Any data set that `datasets` reads: the Hugging Face hub, or a folder of Parquet files here or in an object store.

    OWNER/NAME ─► opened (configuration, splits, files) ─┬─► prepared: all on this disk, rows by their number
                                                         └─► streamed: file by file, a row group in memory

Audio stays undecoded bytes (`Audio(decode=False)`): the decoder of `datasets` needs torchcodec, which we do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from llasa.config import require, require_choice
from llasa.corpus.access import is_damage, unreadable
from llasa.corpus.hub_builder import open_data_set
from llasa.corpus.sources import (
    MEASURES,
    Fetch,
    IndexedSource,
    SourceRow,
    StreamedSource,
    as_measures,
    choose_splits,
    recording,
    refuse,
    require_language,
    require_limit,
    text_or,
)
from llasa.errors import RejectedRow, UserError, first_line

COLUMNS = ("audio", "text", "speaker", "id", *MEASURES)


class HubSource(StreamedSource, IndexedSource):
    """Rows of a data set, with its columns mapped to ours.

    Args:
        path: OWNER/NAME on the hub, a local folder, or the address of a folder of Parquet files (`s3://…`).
        config: the data set's configuration, if it has several.
        splits: our name of a split → the data set's; none: by the usual names. columns: ours (``COLUMNS``) → the data
            set's; all but ``audio`` and ``text`` may be none. limit: keep only the first so many rows of each split.
        streaming: read a file when its turn comes and keep nothing; the unit is then the file.
        revision: commit, tag or branch of the hub's data set. languages: those that it has, where that is known.

    Raises:
        UserError: the data set cannot be opened, or has other languages, splits or columns.
    """

    def __init__(
        self,
        *,
        path: str,
        config: str | None,
        language: str,
        splits: dict[str, str | None] | None,
        columns: dict[str, str | None],
        name: str = "hub",
        limit: int | None = None,
        streaming: bool = False,
        revision: str | None = None,
        languages: list[str] | None = None,
    ) -> None:
        require_limit(limit)
        require_language(name, language, languages, "choose another lang= or dataset=")
        for key in columns:
            require_choice("dataset.columns", key, COLUMNS)
        for key in ("audio", "text"):
            require(bool(columns.get(key)), f"dataset.columns.{key}", columns.get(key), "name the data set's column")
        self.name, self.path, self.config, self.language = name, path, config, language
        self.columns = {ours: theirs for ours, theirs in columns.items() if theirs}
        self.limit, self.streaming = limit, streaming
        self.unit = "file" if streaming else "row"
        opened = open_data_set(path, config, revision)
        self.title, self.revision, self.fingerprint = opened.title, opened.revision, opened.fingerprint
        self.folder = opened.folder
        self.split_names = choose_splits(opened.title, opened.splits(), splits)
        rows = opened.stream(self.split_names) if streaming else opened.prepare(self.split_names, limit)
        self.datasets = {split: self._with_our_columns(rows[split]) for split in self.split_names}

    def _with_our_columns(self, rows: Any) -> Any:
        import datasets
        import pyarrow as pa

        names = rows.column_names or list(next(iter(rows), {}))  # a stream of JSON knows them from its first row
        missing = [column for column in self.columns.values() if column not in names]
        if missing:
            raise UserError(
                f"{self.path} has no column {missing[0]!r}; it has {', '.join(names)}",
                remedy="map the columns with dataset.columns.text=… and dataset.columns.audio=…",
            )
        audio = self.columns["audio"]
        try:
            if rows.features:  # a stream would only be cast when it is read
                kind = datasets.Features({audio: rows.features[audio]}).arrow_schema.field(audio).type
                datasets.Audio(decode=False).cast_storage(pa.array([], type=kind))
            rows = rows.cast_column(audio, datasets.Audio(decode=False))
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise UserError(
                f"the column {audio!r} of {self.path} holds no audio: {first_line(error)}",
                remedy=f"set dataset.columns.audio=… to one of {', '.join(names)}",
            ) from error
        return rows.select_columns(list(self.columns.values()))

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "path": self.path,
            "config": self.config,
            "revision": self.revision,
            "fingerprint": self.fingerprint,
            "splits": dict(self.split_names),
            "columns": dict(self.columns),
            f"{self.unit}s": self.splits(),
        } | ({"limit": self.limit} if self.streaming else {})

    def splits(self) -> dict[str, int]:
        if self.streaming:
            return StreamedSource.splits(self)
        return {split: len(rows) for split, rows in self.datasets.items()}

    def rows(self, split: str, start: int, stop: int) -> Iterator[tuple[int, Fetch]]:
        return (StreamedSource if self.streaming else IndexedSource).rows(self, split, start, stop)

    def row(self, split: str, index: int) -> SourceRow:
        return self._source_row(self.datasets[split][index], f"{split}-{index}")

    def file_counts(self) -> dict[str, int]:
        return {split: rows.num_shards for split, rows in self.datasets.items()}

    def file_rows(self, split: str, index: int) -> Iterator[Fetch]:
        place = f"file {index} of {self.title}, {self.split_names[split]}"
        for number, fields in enumerate(self._read_file(self.datasets[split], index, place)):
            if isinstance(fields, str):
                yield partial(refuse, "damaged_file", fields)
            else:
                yield partial(self._source_row, fields, f"{split}-{index}-{number}")

    def _read_file(self, stream: Any, index: int, place: str) -> Iterator[dict[str, Any] | str]:
        """The rows of a file and, where there should be others, why they cannot be read.

        A Parquet file is asked for one row group at a time: asked for all of it, Arrow reads a group ahead, and a
        damaged one takes the rows of the group before with it, or not, as the threads run.
        """

        def damage(error: Exception) -> str:
            if not is_damage(error):
                raise unreadable(place, error) from error
            return f"{place}: {first_line(error)}"

        try:
            groups = stream.shard(num_shards=stream.num_shards, index=index).reshard()
        except Exception as error:  # of `datasets`, Arrow, httpx and every file system
            yield damage(error)
            return
        for group in range(groups.num_shards):
            try:
                yield from groups.shard(num_shards=groups.num_shards, index=group)
            except Exception as error:  # the same; what is no damage ends the run
                yield damage(error)

    def _source_row(self, fields: dict[str, Any], default_id: str) -> SourceRow:
        audio, text = fields[self.columns["audio"]], fields[self.columns["text"]]
        if text is None:
            raise RejectedRow("empty_text", "no transcript")
        if not isinstance(text, str):
            raise RejectedRow("malformed_row", f"the transcript is no text but {type(text).__name__}")
        if audio is None or (audio.get("bytes") is None and not audio.get("path")):
            raise RejectedRow("missing_audio", "no bytes and no path")
        return SourceRow(
            id=text_or(fields.get(self.columns.get("id", "")), default_id),
            text=text,
            audio=audio["bytes"] if audio.get("bytes") is not None else recording(audio["path"], self.folder),
            speaker=text_or(fields.get(self.columns.get("speaker", "")), ""),
            language=self.language,
            measures=as_measures({key: fields[self.columns[key]] for key in MEASURES if key in self.columns}),
        )
