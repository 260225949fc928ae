"""Mozilla's Common Voice as it is handed out: `train.tsv`, `dev.tsv`, `test.tsv` and `clips/*.mp3` in a folder.

Mozilla took the corpus off the Hugging Face hub in October 2025; since then its releases are downloaded from
https://mozilladatacollective.com and unpacked to `cv-corpus-…/LANGUAGE`. The tables stay as text in memory
(about 300 bytes a row), for the English one has over a million rows.
"""

from __future__ import annotations

import hashlib
from typing import Any

from llasa.corpus.access import locate, read_if_there
from llasa.corpus.sources import (
    IndexedSource,
    SourceRow,
    as_measures,
    recording,
    require_limit,
    require_splits,
)
from llasa.errors import RejectedRow, UserError

DOWNLOAD = "download a release from https://mozilladatacollective.com, unpack it, pass dataset.path=FOLDER"


class CommonVoiceSource(IndexedSource):
    """Rows of a release.

    Args:
        path: the folder of the language, or the one above it; here or in an object store.
        splits: our name of a split → the table's, without `.tsv`. Beside the three there is `validated`, all rows that
            listeners confirmed: many more, but those of `dev` and `test` are among them.
        limit: keep only the first so many rows of each split.

    Raises:
        UserError: there is no such table, or it is of another language.
    """

    def __init__(
        self,
        *,
        path: str,
        language: str,
        splits: dict[str, str | None],
        name: str = "common_voice",
        limit: int | None = None,
    ) -> None:
        require_limit(limit)
        self.name, self.language, self.split_names = name, language, require_splits(splits)
        tables: dict[str, bytes] = {}
        above = locate(path)
        for folder in (above / language, above):
            self.folder = folder
            found = {split: read_if_there(self.folder / f"{table}.tsv") for split, table in self.split_names.items()}
            tables = {split: content for split, content in found.items() if content is not None}
            if tables:
                break
        missing = [f"{table}.tsv" for split, table in self.split_names.items() if split not in tables]
        if missing:
            raise UserError(f"{path} has no {' and no '.join(missing)}", remedy=DOWNLOAD)
        self.fingerprint = hashlib.sha256(b"\n".join(tables.values())).hexdigest()[:16]
        self.columns: dict[str, list[str]] = {}
        self.lines: dict[str, list[str]] = {}
        for split, content in tables.items():
            self.columns[split], self.lines[split] = self._parse(f"{self.split_names[split]}.tsv", content, limit)

    def _parse(self, table: str, content: bytes, limit: int | None) -> tuple[list[str], list[str]]:
        try:
            # Cut at line feeds alone: sentences hold U+2028 and the like. No quoting: a quote is part of the sentence.
            header, *lines = content.decode("utf-8-sig").replace("\r\n", "\n").split("\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{self.folder / table} is not UTF-8 ({error.reason} at byte {error.start})") from None
        columns = header.split("\t")
        for column in ("client_id", "path", "sentence"):
            if column not in columns:
                raise UserError(
                    f"{self.folder / table} has no column {column!r}; it has {', '.join(columns)[:200]}",
                    remedy="other tables than Common Voice's are read by dataset=folder",
                )
        lines = [line for line in lines if line][:limit]
        if lines and "locale" in columns:
            values = lines[0].split("\t")
            locale = values[columns.index("locale")] if len(values) == len(columns) else self.language
            if locale.split("-")[0].lower() != self.language:
                raise UserError(
                    f"{self.folder} holds the language {locale}, not {self.language}",
                    remedy=f"pass lang={locale.split('-')[0]}, or the folder of {self.language}",
                )
        return columns, lines

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "splits": dict(self.split_names),
            "rows": self.splits(),
            "fingerprint": self.fingerprint,
        }

    def splits(self) -> dict[str, int]:
        return {split: len(lines) for split, lines in self.lines.items()}

    def row(self, split: str, index: int) -> SourceRow:
        columns, values = self.columns[split], self.lines[split][index].split("\t")
        if len(values) != len(columns):
            raise RejectedRow("malformed_row", f"{len(values)} values for {len(columns)} columns")
        fields = dict(zip(columns, values, strict=True))
        name = fields["path"].strip()
        if not name:
            raise RejectedRow("missing_audio", f"row {index} names no file")
        stem, _, suffix = name.rpartition(".")
        return SourceRow(
            id=stem if suffix == "mp3" else name,
            text=fields["sentence"],
            audio=recording(name if suffix == "mp3" else f"{name}.mp3", self.folder / "clips"),
            speaker=fields["client_id"],
            language=self.language,
            measures=as_measures({key: fields.get(key) for key in ("up_votes", "down_votes")}),
        )
