"""Corpora on disk: a folder with a metadata file, or a JSONL manifest.

Only metadata is read up front. A row that lacks something is rejected by its own number; a corpus that cannot be
understood at all is a :class:`UserError`.
"""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

from llasa.corpus.sources import SourceRow
from llasa.errors import RejectedRow, UserError

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus")
AUDIO_KEYS = ("audio", "file_name", "audio_filepath", "path")
TEXT_KEYS = ("text", "sentence", "transcript")


class ManifestSource:
    """A JSONL file: ``audio`` (absolute, or relative to the file) and ``text``, optionally ``id``, ``speaker``,
    ``language``. ``duration`` may be there; it is not needed."""

    def __init__(self, *, path: str, language: str, name: str = "manifest", limit: int | None = None) -> None:
        self.name = name
        self.file = Path(path)
        self.folder = self.file.parent
        self.language = language
        if not self.file.is_file():
            raise UserError(f"there is no manifest at {path}", remedy="pass dataset.path=FILE.jsonl")
        self._load(limit)

    def _load(self, limit: int | None) -> None:
        content = self.file.read_bytes()
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{self.file} is not UTF-8 ({error.reason} at byte {error.start})") from None
        self.rows = self._parse(text)[:limit]
        if not self.rows:
            raise UserError(f"{self.file} lists no recordings", remedy="give it a line for each recording")
        self.fingerprint = hashlib.sha256(content).hexdigest()[:16]

    def _parse(self, text: str) -> list[dict[str, Any]]:
        return parse_json_lines(text)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "rows": len(self.rows), "fingerprint": self.fingerprint}

    def splits(self) -> dict[str, int]:
        return {"train": len(self.rows)}

    def row(self, split: str, index: int) -> SourceRow:
        fields = self.rows[index]
        if "malformed" in fields:
            raise RejectedRow("malformed_row", fields["malformed"])
        audio = first_of(fields, AUDIO_KEYS)
        text = first_of(fields, TEXT_KEYS)
        if audio is None:
            raise RejectedRow("missing_column", f"no {' or '.join(AUDIO_KEYS)} in row {index}")
        if text is None:
            raise RejectedRow("missing_column", f"no {' or '.join(TEXT_KEYS)} in row {index}")
        return SourceRow(
            id=str(fields.get("id") or Path(str(audio)).stem),
            text=str(text),
            audio=self._locate(str(audio)),
            speaker=str(fields.get("speaker") or ""),
            language=str(fields.get("language") or self.language),
        )

    def _locate(self, audio: str) -> Path:
        return self.folder / audio


class FolderSource(ManifestSource):
    """A folder with ``metadata.csv`` or ``metadata.jsonl``.

    ``metadata.csv`` is either LJSpeech's form (``id|text`` or ``id|raw|normalised``, no header, no quotes, audio at
    ``wavs/id.wav`` or ``id.wav``) or has a header with ``file_name`` and ``text``, optionally ``speaker``.
    """

    def __init__(self, *, path: str, language: str, name: str = "folder", limit: int | None = None) -> None:
        self.name = name
        self.folder = Path(path)
        self.language = language
        if not self.folder.is_dir():
            raise UserError(f"there is no folder at {path}", remedy="pass dataset.path=FOLDER")
        candidates = [self.folder / "metadata.csv", self.folder / "metadata.jsonl"]
        found = [file for file in candidates if file.is_file()]
        if not found:
            raise UserError(
                f"{path} has no metadata.csv and no metadata.jsonl",
                remedy="add metadata.csv with a line `id|text` for each wavs/id.wav",
            )
        self.file = found[0]
        self._load(limit)

    def _parse(self, text: str) -> list[dict[str, Any]]:
        if self.file.suffix == ".jsonl":
            return parse_json_lines(text)
        lines = text.splitlines()
        first = next((line for line in lines if line.strip()), "")
        for delimiter in (",", "|", "\t", ";"):
            header = next(csv.reader([first], delimiter=delimiter), [])
            header = [name.strip() for name in header]
            if set(header) & set(AUDIO_KEYS) and set(header) & set(TEXT_KEYS):
                rows = csv.DictReader(lines, fieldnames=header, delimiter=delimiter)
                next(rows)
                return [{k: v for k, v in row.items() if k is not None and v} for row in rows]
        if "|" not in first:
            raise UserError(
                f"{self.file} has neither LJSpeech lines `id|text` nor a header with file_name and text",
                remedy=f"its first line is {first[:80]!r}",
            )
        return [parse_ljspeech_line(line) for line in lines if line.strip()]

    def _locate(self, audio: str) -> Path:
        direct = self.folder / audio
        if direct.suffix.lower() in AUDIO_SUFFIXES:
            return direct
        places = [
            base.with_name(base.name + suffix) for suffix in AUDIO_SUFFIXES for base in (direct, self._wavs(audio))
        ]
        return next((place for place in places if place.is_file()), self._wavs(audio + ".wav"))

    def _wavs(self, audio: str) -> Path:
        return self.folder / "wavs" / audio


def first_of(fields: dict[str, Any], keys: tuple[str, ...]) -> Any:
    return next((fields[key] for key in keys if fields.get(key) is not None), None)


def parse_ljspeech_line(line: str) -> dict[str, Any]:
    """``id|text`` or ``id|raw|normalised``; of the latter the normalised text is taken."""
    identifier, *texts = (part.strip() for part in line.split("|"))
    if not texts:
        return {"malformed": f"no `|` in {line[:80]!r}"}
    return {"id": identifier, "audio": identifier, "text": texts[1] if len(texts) > 1 and texts[1] else texts[0]}


def parse_json_lines(text: str) -> list[dict[str, Any]]:
    """A dictionary for each line that is not blank; one that cannot be read becomes ``{"malformed": why}``."""
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            fields = {"malformed": f"line {number} is not JSON: {error.msg}"}
        rows.append(fields if isinstance(fields, dict) else {"malformed": f"line {number} is not a JSON object"})
    return rows
