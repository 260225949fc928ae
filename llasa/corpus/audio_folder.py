"""Recordings without transcripts: a folder of audio files. Enough for `train_codec.py`; a token store needs text."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from llasa.corpus.folder import AUDIO_SUFFIXES
from llasa.corpus.sources import IndexedSource, SourceRow, require_limit
from llasa.errors import UserError


class AudioFolderSource(IndexedSource):
    """Every audio file of a local folder and its subfolders, by name; a row's id is the file's path in the folder.

    Where files lie in subfolders, the first one's name is the speaker's (`p225/p225_001.flac`).

    Raises:
        UserError: no such folder, or no audio files in it.
    """

    def __init__(self, *, path: str, language: str, name: str = "audio_folder", limit: int | None = None) -> None:
        require_limit(limit)
        self.name, self.language = name, language
        self.folder = Path(path).expanduser()
        if not self.folder.is_dir():
            raise UserError(f"there is no folder at {path}", remedy="pass dataset.path=FOLDER")
        found = []
        for folder, _, names in os.walk(self.folder, followlinks=True):
            found += [Path(folder, name) for name in names if name.lower().endswith(AUDIO_SUFFIXES)]
        self.files = sorted(file.relative_to(self.folder).as_posix() for file in found)[:limit]
        if not self.files:
            raise UserError(
                f"there are no audio files in {path} ({', '.join(AUDIO_SUFFIXES)})", remedy="check dataset.path"
            )
        digest = hashlib.sha256()
        for file in self.files:
            facts = (self.folder / file).stat()
            digest.update(f"{file} {facts.st_size} {facts.st_mtime_ns}\n".encode())
        self.fingerprint = digest.hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "rows": len(self.files), "fingerprint": self.fingerprint}

    def splits(self) -> dict[str, int]:
        return {"train": len(self.files)}

    def row(self, split: str, index: int) -> SourceRow:
        file = self.files[index]
        speaker = file.partition("/")[0] if "/" in file else ""
        return SourceRow(
            id=file.rpartition(".")[0],
            text="",
            audio=self.folder / file,
            speaker=speaker,
            language=self.language,
        )
