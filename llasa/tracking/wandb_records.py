"""Reading `.wandb` files, in which W&B keeps a run on disk: what of it is there already.

A header of 7 bytes, then a LevelDB log: blocks of 32 KiB of pieces, each with a header of 7 bytes (checksum 4, length
2, kind 1: full, first, middle, last). The records are W&B's own protocol buffers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEADER, BLOCK, PIECE = 7, 32_768, 7
MAGIC = b":W&B"
FULL, LAST = 1, 4


def records(path: Path) -> Iterator[Any]:
    """The records of a file up to its end, or to where a killed process left it."""
    from wandb.proto.wandb_internal_pb2 import Record

    for content, _ in _whole_records(path.read_bytes()):
        yield Record.FromString(content)


def repair(path: Path) -> None:
    """Cut off the record that a killed process left unfinished, and remove a file that holds none.

    `wandb sync` ends at such a file, and with it the upload of all that the run wrote after it was resumed.
    """
    data = path.read_bytes()
    end = max((end for _, end in _whole_records(data)), default=0)
    if end == 0:
        path.unlink()
    elif end < len(data):
        os.truncate(path, end)


def _whole_records(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Each whole record and the position after it."""
    if not data.startswith(MAGIC):
        return
    position, pieces = HEADER, b""
    while position + PIECE <= len(data):
        left = BLOCK - position % BLOCK
        if left < PIECE:
            position += left
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        end = position + PIECE + length
        if not FULL <= kind <= LAST or end > len(data):
            return
        pieces += data[position + PIECE : end]
        position = end
        if kind in (FULL, LAST):
            yield pieces, position
            pieces = b""


def history(path: Path) -> list[dict[str, Any]]:
    """The rows that were logged, in order; W&B's own keys begin with an underscore. Media are dictionaries."""
    return [_row(record) for record in records(path) if record.WhichOneof("record_type") == "history"]


def _row(record: Any) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for item in record.history.item:
        *parents, name = item.nested_key or [item.key]
        place = row
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = json.loads(item.value_json)
    return row
