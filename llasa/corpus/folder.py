"""Corpora of loose files: a folder with a metadata file, or a JSONL manifest; here or in an object store.

Only metadata is read up front. A row that lacks something is rejected by its own number; a corpus that cannot be
understood at all is a :class:`UserError`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import os
from pathlib import Path
from typing import Any

from llasa.corpus.access import locate, read_if_there, unreadable
from llasa.corpus.sources import MEASURES, IndexedSource, SourceRow, as_measures, recording, require_limit, text_or
from llasa.errors import RejectedRow, UserError
from llasa.paths import is_local

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus")
AUDIO_KEYS = ("audio", "file_name", "audio_filepath", "path")
TEXT_KEYS = ("text", "sentence", "transcript")


class ManifestSource(IndexedSource):
    """A JSONL file: ``audio`` (relative to the file, absolute, or an address such as `s3://…`) and ``text``, optionally
    ``id``, ``speaker``, ``language`` and any of ``MEASURES``. ``duration`` may be there; it is not needed."""

    def __init__(self, *, path: str, language: str, name: str = "manifest", limit: int | None = None) -> None:
        self.name, self.language = name, language
        self.file = locate(path)
        self.folder = self.file.parent
        content = read_if_there(self.file)
        if content is None:
            raise UserError(f"there is no manifest at {path}", remedy="pass dataset.path=FILE.jsonl")
        self._load(content, limit)

    def _load(self, content: bytes, limit: int | None) -> None:
        require_limit(limit)
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{self.file} is not UTF-8 ({error.reason} at byte {error.start})") from None
        self.records = self._parse(text)[:limit]
        if not self.records:
            raise UserError(f"{self.file} lists no recordings", remedy="give it a line for each recording")
        self.fingerprint = hashlib.sha256(content).hexdigest()[:16]

    def _parse(self, text: str) -> list[dict[str, Any]]:
        return parse_json_lines(text)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "rows": len(self.records), "fingerprint": self.fingerprint}

    def splits(self) -> dict[str, int]:
        return {"train": len(self.records)}

    def row(self, split: str, index: int) -> SourceRow:
        fields = self.records[index]
        if "malformed" in fields:
            raise RejectedRow("malformed_row", fields["malformed"])
        audio = first_of(fields, AUDIO_KEYS)
        text = first_of(fields, TEXT_KEYS)
        if audio is None:
            raise RejectedRow("missing_column", f"no {' or '.join(AUDIO_KEYS)} in row {index}")
        if text is None:
            raise RejectedRow("missing_column", f"no {' or '.join(TEXT_KEYS)} in row {index}")
        if not str(audio).strip():
            raise RejectedRow("missing_audio", f"row {index} names no file")
        return SourceRow(
            id=text_or(fields.get("id"), Path(str(audio)).stem),
            text=str(text),
            audio=self._locate(str(audio)),
            speaker=text_or(fields.get("speaker"), ""),
            language=text_or(fields.get("language"), self.language),
            measures=as_measures({key: fields[key] for key in MEASURES if key in fields}),
        )

    def _locate(self, audio: str) -> Path:
        return recording(audio, self.folder)


class FolderSource(ManifestSource):
    """A folder with ``metadata.csv`` or ``metadata.jsonl``.

    ``metadata.csv`` is either LJSpeech's form (``id|text`` or ``id|raw|normalised``, no header, no quotes, audio at
    ``wavs/id.wav`` or ``id.wav``) or has a header with ``file_name`` and ``text``, optionally ``speaker``. Under a
    header, values between commas or semicolons may be quoted; between bars or tabs a quote is part of the text.
    """

    def __init__(self, *, path: str, language: str, name: str = "folder", limit: int | None = None) -> None:
        self.name, self.language = name, language
        self.folder = locate(path)
        self._names: dict[Path, set[str]] = {}
        for metadata in ("metadata.csv", "metadata.jsonl"):
            self.file = self.folder / metadata
            content = read_if_there(self.file)
            if content is not None:
                self._load(content, limit)
                return
        if is_local(self.folder) and not self.folder.is_dir():
            raise UserError(f"there is no folder at {path}", remedy="pass dataset.path=FOLDER")
        raise UserError(
            f"{path} has no metadata.csv and no metadata.jsonl",
            remedy="add metadata.csv with a line `id|text` for each wavs/id.wav",
        )

    def _parse(self, text: str) -> list[dict[str, Any]]:
        if self.file.suffix == ".jsonl":
            return parse_json_lines(text)
        # Not str.splitlines, which would also cut a transcript at a U+2028 or a form feed.
        lines = [line for line in io.StringIO(text, newline=None) if line.strip()]
        first = lines[0].strip() if lines else ""
        for delimiter in (",", "|", "\t", ";"):
            header = [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]
            if set(header) & set(AUDIO_KEYS) and set(header) & set(TEXT_KEYS):
                return parse_csv_lines(lines[1:], header, delimiter)
        if lines and "|" not in first:
            raise UserError(
                f"{self.file} has neither LJSpeech lines `id|text` nor a header with file_name and text",
                remedy=f"its first line is {first[:80]!r}",
            )
        return [parse_ljspeech_line(line) for line in lines]

    def _locate(self, audio: str) -> Path:
        direct = recording(audio, self.folder)
        if direct.suffix.lower() in AUDIO_SUFFIXES or "://" in audio:
            return direct
        bases = (direct, recording(audio, self.folder / "wavs"))
        places = [base.with_name(base.name + suffix) for suffix in AUDIO_SUFFIXES for base in bases if base.name]
        return next((place for place in places if self._is_file(place)), self.folder / "wavs" / f"{audio}.wav")

    def _is_file(self, place: Path) -> bool:
        """In an object store by one listing of its folder, not one question for each suffix of each row."""
        if is_local(place):
            return os.path.isfile(place)
        if place.parent not in self._names:
            try:
                self._names[place.parent] = {file.name for file in place.parent.iterdir()}
            except (FileNotFoundError, NotADirectoryError):
                self._names[place.parent] = set()
            except Exception as error:  # each file system has its own
                raise unreadable(str(place.parent), error) from error
        return place.name in self._names[place.parent]


def first_of(fields: dict[str, Any], keys: tuple[str, ...]) -> Any:
    return next((fields[key] for key in keys if fields.get(key) is not None), None)


def parse_ljspeech_line(line: str) -> dict[str, Any]:
    """``id|text`` or ``id|raw|normalised``; of the latter the normalised text is taken."""
    identifier, *texts = (part.strip() for part in line.split("|"))
    if not 1 <= len(texts) <= 2:
        return {"malformed": f"{len(texts) + 1} values where two or three belong: {line.strip()[:80]!r}"}
    return {"id": identifier, "audio": identifier, "text": texts[-1] or texts[0]}


def parse_csv_lines(lines: list[str], header: list[str], delimiter: str) -> list[dict[str, Any]]:
    """A dictionary for each row; one that does not fit the header becomes ``{"malformed": why}``.

    A quote that is never closed would make one row of all the lines up to the next quote, so after a bad row reading
    goes on with the line after the one where it began.
    """
    quoting = csv.QUOTE_MINIMAL if delimiter in ",;" else csv.QUOTE_NONE
    style: dict[str, Any] = {"delimiter": delimiter, "quoting": quoting, "skipinitialspace": True, "strict": True}
    rows: list[dict[str, Any]] = []
    start = 0
    while start < len(lines):
        reader = csv.reader(itertools.islice(lines, start, None), **style)
        done = 0
        try:
            for values in reader:
                if len(values) > len(header):
                    line = delimiter.join(values)[:80]
                    rows.append({"malformed": f"{len(values)} values for {len(header)} columns: {line!r}"})
                else:
                    rows.append(dict(zip(header, values, strict=False)))
                done = reader.line_num
            break
        except csv.Error as error:
            rows.append({"malformed": f"{error}: {lines[start + done].strip()[:80]!r}"})
            start += done + 1
    return rows


def parse_json_lines(text: str) -> list[dict[str, Any]]:
    """A dictionary for each line that is not blank; one that cannot be read becomes ``{"malformed": why}``."""
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            json.dumps(fields, ensure_ascii=False).encode()  # raises for half a surrogate pair, which no file can hold
        except (ValueError, RecursionError) as error:
            fields = {"malformed": f"line {number} cannot be read: {getattr(error, 'msg', error)}"}
        rows.append(fields if isinstance(fields, dict) else {"malformed": f"line {number} is not a JSON object"})
    return rows
