"""What is said in an evaluation: rows of a store's split, or lines of a file.

Every system says the same sentences. A limit takes those whose ids have the smallest hashes: the same ones for every
checkpoint and on every machine, and those of a smaller limit among them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llasa.config import InferConfig
from llasa.corpus.store import TokenStore
from llasa.generation.run import read_texts

MAX_NAME = 80
"""Characters of a file's name that come from an id."""


@dataclass(frozen=True, eq=False)
class Sentence:
    """``id`` is unique among the sentences; ``codes`` [num_codes] are those of its recording, none without a store."""

    id: str
    text: str
    language: str
    speaker: str = ""
    codes: np.ndarray | None = None

    @property
    def stem(self) -> str:
        """The name of its files: the id, and where that is no file name, what can be written of it and a hash."""
        plain = re.sub(r"[^\w.-]+", "_", self.id, flags=re.ASCII)[:MAX_NAME]
        if plain == self.id and not plain.startswith("."):
            return plain
        return f"{plain.lstrip('.')}-{hashlib.blake2b(self.id.encode(), digest_size=4).hexdigest()}"


def from_store(store: TokenStore, split: str, limit: int | None) -> list[Sentence]:
    """Rows of a split, in the store's order.

    Raises:
        UserError: there is no such split, or it has no rows.
    """
    rows = store.rows(split)
    ids = unique([str(name) for name in rows.with_format(None)["id"]])
    chosen = choose(ids, limit)
    return [
        Sentence(ids[index], str(row["text"]), str(row["language"]), str(row["speaker"]), row["codes"])
        for index, row in ((index, rows[index]) for index in chosen)
    ]


def from_texts(file: str, language: str, limit: int | None) -> list[Sentence]:
    """Lines of a file, called by their number among those that hold text.

    Raises:
        UserError: the file cannot be read, or has no text.
    """
    texts = read_texts(InferConfig(texts=file))
    width = max(2, len(str(len(texts))))
    ids = [f"{number:0{width}d}" for number in range(1, len(texts) + 1)]
    return [Sentence(ids[index], texts[index], language) for index in choose(ids, limit)]


def unique(ids: Sequence[str]) -> list[str]:
    """A store may have an id twice, of two speakers: the later one gets a number."""
    seen: set[str] = set()
    result = []
    for name in ids:
        number, candidate = 1, name
        while candidate in seen:
            number += 1
            candidate = f"{name}#{number}"
        seen.add(candidate)
        result.append(candidate)
    return result


def choose(ids: Sequence[str], limit: int | None) -> list[int]:
    """Places of at most ``limit`` ids, in order."""
    if limit is None or limit >= len(ids):
        return list(range(len(ids)))

    def rank(index: int) -> bytes:
        return hashlib.blake2b(ids[index].encode(), digest_size=16).digest()

    return sorted(sorted(range(len(ids)), key=rank)[:limit])
