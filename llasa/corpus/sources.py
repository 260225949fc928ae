"""Where recorded sentences come from: the first step of the flow.

A source knows how many rows each split has and hands out row ``i`` of a split, always the same one, so that
the plan of a store is a list of index ranges and any worker can make any shard.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A row as the corpus has it: transcript not normalised, audio not decoded (file content or path)."""

    id: str
    text: str
    audio: bytes | Path
    speaker: str
    language: str


class Source(Protocol):
    """A corpus with numbered rows."""

    def describe(self) -> dict[str, Any]:
        """What identifies the corpus and changes when its rows or their order do (plain JSON values); written into
        the store's manifest, and compared when a store is continued."""
        ...

    def splits(self) -> dict[str, int]:
        """Number of rows of each split, under the store's names: train, validation, test."""
        ...

    def row(self, split: str, index: int) -> SourceRow:
        """Row ``index`` of ``split``.

        Raises:
            RejectedRow: this row lacks something; the others are not touched.
        """
        ...
