"""One shard of a store: read, decode, check, encode, write. The unit of work of every runner.

Reading and decoding run in threads ahead of the codec (libsndfile and soxr release the interpreter lock); the
codec sees pieces of at most ``PIECE_SECONDS`` of audio, so memory does not grow with the shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from llasa.codec.base import Codec
from llasa.config import FiltersConfig
from llasa.corpus.filters import prepare
from llasa.corpus.sources import Source
from llasa.corpus.store import Shard, ShardRecord, write_shard
from llasa.errors import RejectedRow
from llasa.types import EncodedUtterance, Utterance

PIECE_SECONDS = 1800.0
READ_AHEAD = 32
"""Rows that wait decoded for each thread."""


def encode_shard(
    root: Path,
    shard: Shard,
    source: Source,
    codec: Codec,
    filters: FiltersConfig,
    threads: int,
    on_row: Callable[[int], object],
) -> ShardRecord:
    """Make one shard. ``on_row`` is called with the number of source rows that are done."""
    rows: list[EncodedUtterance] = []
    rejects: list[dict[str, str]] = []
    piece: list[Utterance] = []

    def flush() -> None:
        rows.extend(encode_piece(piece, codec))
        piece.clear()

    for index, result in prepared_rows(shard, source, codec.spec.sample_rate, filters, threads):
        if isinstance(result, RejectedRow):
            rejects.append({"row": str(index), "reason": result.reason, "detail": result.detail})
        else:
            piece.append(result)
        if sum(utterance.seconds for utterance in piece) >= PIECE_SECONDS:
            flush()
        on_row(1)
    flush()
    return write_shard(root, shard, codec.spec, rows, rejects)


def encode_piece(piece: list[Utterance], codec: Codec) -> list[EncodedUtterance]:
    codes = codec.encode([utterance.waveform for utterance in piece]) if piece else []
    return [
        EncodedUtterance(
            id=utterance.id,
            text=utterance.text,
            text_given=utterance.text_given,
            speaker=utterance.speaker,
            language=utterance.language,
            seconds=utterance.seconds,
            codes=clip_codes,
        )
        for utterance, clip_codes in zip(piece, codes, strict=True)
    ]


def prepared_rows(
    shard: Shard, source: Source, sample_rate: int, filters: FiltersConfig, threads: int
) -> Iterator[tuple[int, Utterance | RejectedRow]]:
    """The shard's rows in order, decoded ahead by a bounded number of rows."""

    def load(index: int) -> Utterance | RejectedRow:
        try:
            return prepare(source.row(shard.split, index), sample_rate, filters)
        except RejectedRow as reason:
            return reason

    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        waiting: list[tuple[int, Future[Utterance | RejectedRow]]] = []
        for index in range(shard.start, shard.stop):
            waiting.append((index, pool.submit(load, index)))
            if len(waiting) >= threads * READ_AHEAD:
                first, future = waiting.pop(0)
                yield first, future.result()
        for index, future in waiting:
            yield index, future.result()
