"""Tar files of the WebDataset kind: `KEY.json` and `KEY.mp3` (or .wav, .flac, …) side by side; Emilia is made of them.

A tar is read once from its start, over the network too, and holds one sample in memory. What is damaged ends its tar:
the rows before it are kept, one more line among the rejects says where the file ends.
"""

from __future__ import annotations

import json
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Self

from llasa.corpus.access import listing_fingerprint, locate, unreadable
from llasa.corpus.sources import (
    MEASURES,
    Fetch,
    SourceRow,
    StreamedSource,
    as_measures,
    refuse,
    require_language,
    require_limit,
)
from llasa.errors import RejectedRow, UserError, first_line
from llasa.paths import file_system

AUDIO_SUFFIXES = (".mp3", ".wav", ".flac", ".ogg", ".opus", ".m4a")
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")

MAX_MEMBER_BYTES = 2**29
"""A larger member is not read: an hour of 16-bit mono at 48 kHz has 346 MB."""

BUFFER_BYTES = 2**16


@dataclass(slots=True)
class Sample:
    """The members of a tar that share a key, as far as they are there."""

    key: str
    json: bytes | None = None
    audio: bytes | None = None
    too_large: int | None = None
    """Bytes of a member that was not read for its size."""


class WebDatasetSource(StreamedSource):
    """Samples of tar files, each a JSON object (``text``, and where they are there ``id``, ``speaker``, ``language``
    and any of ``MEASURES``) with a recording. The unit is the tar; all of it is the train split.

    Args:
        path: a folder (searched with its subfolders), a pattern with `*`, or a tar; here, in an object store or on the
            hub (`hf://datasets/OWNER/NAME/…`). `{LANGUAGE}` in it stands for the language in capitals.
        language: rows of another one are rejected; none keeps all. languages: those that the corpus has, if known.
        limit: keep only the first so many rows.

    Raises:
        UserError: there are no tar files, or no way to them, or the corpus lacks the language.
    """

    def __init__(
        self,
        *,
        path: str,
        language: str | None,
        languages: list[str] | None = None,
        name: str = "webdataset",
        limit: int | None = None,
    ) -> None:
        require_limit(limit)
        require_language(name, language, languages, "choose another lang=, or dataset=webdataset for tars of your own")
        self.name, self.language, self.limit = name, language, limit
        self.path = path.replace("{LANGUAGE}", language.upper()) if language else path.partition("{LANGUAGE}")[0]
        self.files, self.fingerprint = self._find()

    def _find(self) -> tuple[list[str], str]:
        self.fs, root = file_system(locate(self.path))
        try:
            if self.fs.isdir(root):
                found = self.fs.find(root, detail=True)
            elif "*" in root:
                found = self.fs.glob(root, detail=True)
            else:
                found = {root: self.fs.info(root)} if self.fs.exists(root) else {}
        except Exception as error:  # each file system has its own
            raise unreadable(self.path, error) from error
        found = {file: facts for file, facts in found.items() if file.endswith(TAR_SUFFIXES)}
        if not found:
            raise UserError(f"there are no tar files at {self.path}", remedy="check dataset.path")
        folder = root.partition("*")[0].rpartition("/")[0] if "*" in root else root
        relative = {file.removeprefix(folder).lstrip("/"): facts for file, facts in found.items()}
        return sorted(found), listing_fingerprint(relative)

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "language": self.language,
            "files": len(self.files),
            "fingerprint": self.fingerprint,
            "limit": self.limit,
        }

    def file_counts(self) -> dict[str, int]:
        return {"train": len(self.files)}

    def file_rows(self, split: str, index: int) -> Iterator[Fetch]:
        file = self.files[index]
        try:
            with self.fs.open(file, "rb") as stream:
                for sample in read_samples(stream):
                    yield partial(self._row, sample)
        except DamagedTar as damage:
            yield partial(refuse, "damaged_file", f"{PurePosixPath(file).name} ends here: {damage}")
        except Exception as error:  # each file system has its own; a network that failed must not cost rows
            raise unreadable(file, error) from error

    def _row(self, sample: Sample) -> SourceRow:
        if sample.too_large is not None:
            raise RejectedRow("unreadable_audio", f"{sample.key} has a member of {sample.too_large:,} bytes")
        if sample.json is None:
            raise RejectedRow("missing_text", f"no {sample.key}.json beside the recording")
        if sample.audio is None:
            raise RejectedRow("missing_audio", f"no recording beside {sample.key}.json")
        try:
            fields = json.loads(sample.json)
        except (ValueError, RecursionError) as error:
            raise RejectedRow("malformed_row", f"{sample.key}.json: {first_line(error)}") from None
        if not isinstance(fields, dict) or not isinstance(fields.get("text"), str):
            raise RejectedRow("malformed_row", f"{sample.key}.json has no text")
        language = str(fields.get("language") or self.language or "").lower()
        if self.language is not None and language != self.language:
            raise RejectedRow("other_language", f"{sample.key} is in {language[:20]!r}")
        return SourceRow(
            id=str(fields.get("id") or fields.get("_id") or sample.key),
            text=fields["text"],
            audio=sample.audio,
            speaker="" if fields.get("speaker") is None else str(fields["speaker"]),
            language=language,
            measures=as_measures({key: fields[key] for key in MEASURES if key in fields}),
        )


class DamagedTar(Exception):
    """Nothing can be read from here on."""


class _Member(tarfile.TarInfo):
    """Remembers why the last header could not be read: `tarfile` takes any but the first for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: Any) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            archive.ended_by = error
            raise


class _Archive(tarfile.TarFile):
    """Of such members; ``ended_by`` is what the last header lacked."""

    tarinfo = _Member
    members: list[tarfile.TarInfo]
    ended_by: tarfile.HeaderError | None = None


def read_samples(stream: BinaryIO) -> Iterator[Sample]:
    """The samples of a tar (or .tar.gz) in its order: neighbours of one key, the name up to its last suffix.

    Raises:
        DamagedTar: the archive ends before its end mark, or is none. Whole samples before that were handed out.
    """
    sample: Sample | None = None
    why: Exception | None = None
    try:
        with _Archive.open(fileobj=stream, mode="r|*", bufsize=BUFFER_BYTES) as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # or the list grows with the archive
                path = PurePosixPath(member.name)
                suffix = path.suffix.lower()
                if not member.isreg() or path.name.startswith(".") or suffix not in (".json", *AUDIO_SUFFIXES):
                    continue
                field = "json" if suffix == ".json" else "audio"
                key = str(path.with_suffix(""))
                if sample is not None and (sample.key != key or getattr(sample, field) is not None):
                    yield sample
                    sample = None
                sample = sample or Sample(key)
                if member.size > MAX_MEMBER_BYTES:
                    sample.too_large = member.size
                    continue
                content = archive.extractfile(member)
                assert content is not None, "it is a regular file"
                setattr(sample, field, content.read())
            if not isinstance(archive.ended_by, tarfile.EOFHeaderError):  # type: ignore[attr-defined]  # typeshed has none
                why = archive.ended_by
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        why = error
    if sample is not None and (why is None or None not in (sample.json, sample.audio)):
        yield sample
    if why is not None:
        raise DamagedTar(first_line(why)) from why
