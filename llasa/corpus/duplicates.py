"""Recordings that a corpus holds twice: found when all shards are there, dropped but for the first.

Evaluation splits come first, so that what stands in one of them is dropped from train and not the other way round.
Doing it again, or by two processes at once, changes nothing: the first of each is never dropped.

Cost: 8 bytes a row are read; 90 million rows (250,000 hours) take about 3 GB while they are sorted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llasa.corpus.store import Shard, in_threads, read_shard_record, write_table

MODES: dict[str, tuple[str, ...]] = {
    "off": (),
    "audio": ("duplicate_audio",),
    "text": ("duplicate_text",),
    "both": ("duplicate_audio", "duplicate_text"),
}
"""`filters.duplicates` → the reasons for which rows are dropped."""


def drop_duplicates(root: Path, shards: Sequence[Shard], mode: str) -> int:
    """Write the shards with duplicates again without them, and return how many rows went.

    Two rows have the same audio if they have the same codes, and the same text if one speaker says the same words.
    """
    ordered = sorted(shards, key=lambda shard: shard.split == "train")  # stable
    return sum(_drop(root, ordered, reason) for reason in MODES[mode])


def audio_keys(table: pa.Table) -> np.ndarray:
    """uint64 [rows]: equal where the codes are."""
    return table["codes_hash"].to_numpy()


def text_keys(table: pa.Table) -> np.ndarray:
    """uint64 [rows]: equal where speaker, language and spoken text are, whatever their case and punctuation."""
    rows = zip(*(table[name].to_pylist() for name in ("text", "speaker", "language")), strict=True)
    return np.array([_text_key(*row) for row in rows], dtype=np.uint64)


KEYS: dict[str, tuple[list[str], Callable[[pa.Table], np.ndarray]]] = {
    "duplicate_audio": (["codes_hash"], audio_keys),
    "duplicate_text": (["text", "speaker", "language"], text_keys),
}


def _text_key(text: str, speaker: str, language: str) -> int:
    words = "".join(c if c.isalnum() else " " for c in text.casefold()).split()
    content = json.dumps([words, speaker, language]).encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _drop(root: Path, shards: Sequence[Shard], reason: str) -> int:
    columns, keys_of = KEYS[reason]

    def read(shard: Shard) -> tuple[np.ndarray, np.ndarray]:
        with (root / shard.file).open("rb") as file:
            table = pq.read_table(file, columns=[*columns, "row"])
        return keys_of(table), table["row"].to_numpy()

    parts = in_threads(read, shards)
    ends = np.cumsum([len(keys) for keys, _ in parts], dtype=np.int64)
    first = first_of_each(np.concatenate([keys for keys, _ in parts])) if parts else np.zeros(0, dtype=np.int64)
    numbers = np.concatenate([rows for _, rows in parts]) if parts else first
    duplicates = np.flatnonzero(first != np.arange(len(first)))
    owners = np.searchsorted(ends, duplicates, side="right")
    for owner in np.unique(owners):
        dropped = {
            int(numbers[index]): f"the same as row {numbers[first[index]]} of {shards[original].file}"
            for index in duplicates[owners == owner]
            for original in [np.searchsorted(ends, first[index], side="right")]
        }
        _rewrite(root, shards[owner], dropped, reason)
    return len(duplicates)


def first_of_each(keys: np.ndarray) -> np.ndarray:
    """For each key the index of the first that equals it: int64 [rows]."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return first[inverse]


def _rewrite(root: Path, shard: Shard, dropped: dict[int, str], reason: str) -> None:
    """Write a shard again without the rows of these numbers."""
    record = read_shard_record(root / shard.file)
    with (root / shard.file).open("rb") as file:
        table = pq.read_table(file)
    rejects = [{"row": str(number), "reason": reason, "detail": detail} for number, detail in dropped.items()]
    keep = pa.array([number not in dropped for number in table["row"].to_pylist()])
    rejects = sorted(record.rejects + rejects, key=lambda reject: int(reject["row"]))
    write_table(root, shard, table.filter(keep), rejects, record.heldout)
