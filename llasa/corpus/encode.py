"""The work of one process on a store: read, decode, check, encode, write, shard after shard.

    source ─reader thread─► decode threads or processes ─► bounded queue ─this thread─► codec ─► shard

The reader takes rows in order and runs on into the next shard while this thread drives the codec, so the codec
waits only for the first rows. Threads start at once, but a good part of decoding holds the interpreter lock, which the
thread that drives the codec then waits for at its next call; a GPU is fed by processes. The codec sees pieces of
``PIECE_SECONDS`` of audio, within a shard: the fuller they are, the fuller its batches. Memory: a piece (230 MB at
16 kHz), the rows ahead of it (at most ``READ_AHEAD``) and the codes of a shard, whatever the corpus.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from llasa.codec.base import Codec, CodecSpec, code_problem
from llasa.config import FiltersConfig
from llasa.corpus.claims import Claim, claim
from llasa.corpus.filters import check_length, check_speaking_rate, checked_text, prepare
from llasa.corpus.sources import EncodedRow, Fetch, Source, SourceRow
from llasa.corpus.store import Shard, shard_is_whole, write_shard
from llasa.errors import RejectedRow, UserError
from llasa.provenance import remove_temporary
from llasa.types import EncodedUtterance, Utterance

PIECE_SECONDS = 3600.0
READ_AHEAD = 512
"""Rows that are decoded, or about to be, ahead of the codec."""

SHARDS_AHEAD = 2
"""Shards that a process claims at a time: the one it encodes, and the one it reads ahead for."""

Prepared = Utterance | EncodedUtterance | RejectedRow


def make_shards(
    root: Path,
    shards: Iterable[Shard],
    source: Source,
    codec: Codec,
    filters: FiltersConfig,
    threads: int,
    processes: int = 0,
    on_rows: Callable[[int], object] = lambda count: None,
) -> None:
    """Make those of ``shards`` that are missing and that no other process is making, then wait for the others' and
    make what they left. ``on_rows`` is called with the number of source rows that are done.

    Raises:
        UserError: one of the ``processes`` that decode died.
    """
    try:
        with decode_pool(threads, processes) as pool:
            make_with(Pipeline(source, codec.spec, filters, pool), root, shards, codec, on_rows)
    except BrokenExecutor:
        raise UserError(
            "a process that decodes died, most often for lack of memory",
            remedy="use fewer decode_processes; the same command goes on",
        ) from None


def make_with(
    pipeline: Pipeline, root: Path, shards: Iterable[Shard], codec: Codec, on_rows: Callable[[int], object]
) -> None:
    taken: list[Shard] = []

    def make(claims: Iterable[tuple[Shard, Claim | None]]) -> None:
        with contextlib.closing(pipeline.run(to_make(root, claims, taken))) as prepared:
            for shard, mine, rows in prepared:
                encode_shard(root, shard, rows, codec, on_rows)
                mine.release()

    make((shard, claim(root, shard.file)) for shard in shards)
    for shard in list(taken):  # done by now, or left by a process that died
        make([(shard, claim(root, shard.file, wait=True))])


def to_make(
    root: Path, claims: Iterable[tuple[Shard, Claim | None]], taken: list[Shard]
) -> Iterator[tuple[Shard, Claim]]:
    """Those of the shards that are ours and missing; the ones of other processes are added to ``taken``."""
    for shard, mine in claims:
        if mine is None:
            taken.append(shard)
        elif shard_is_whole(root / shard.file):  # another process made it in the meantime
            mine.release()
        else:
            remove_temporary(root / shard.file)
            yield shard, mine


def decode_pool(threads: int, processes: int) -> Executor:
    """So many processes, or where there are none, threads."""
    if not processes:
        return ThreadPoolExecutor(threads, thread_name_prefix="decode")
    context = multiprocessing.get_context("spawn")  # a forked process would inherit CUDA and other threads' locks
    return ProcessPoolExecutor(processes, mp_context=context, initializer=_watch_parent, initargs=(os.getpid(),))


def _watch_parent(parent: int) -> None:
    """In a decoding process: Ctrl-C is the parent's affair, and without it there is nothing to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Pipeline:
    """Rows prepared ahead of the codec by a bounded number, in order, from one shard into the next."""

    def __init__(self, source: Source, spec: CodecSpec, filters: FiltersConfig, pool: Executor) -> None:
        self.source, self.spec, self.filters, self.pool = source, spec, filters, pool

    def run(
        self, shards: Iterator[tuple[Shard, Claim]]
    ) -> Generator[tuple[Shard, Claim, Iterator[tuple[int, Prepared]]], None, None]:
        """Each shard with its rows, which must be used up before the next shard is asked for."""
        waiting: queue.Queue[Any] = queue.Queue(READ_AHEAD)
        ahead = threading.Semaphore(SHARDS_AHEAD)
        stopped = threading.Event()

        def read() -> None:
            try:
                self._read(shards, lambda item: _put(waiting, item, stopped), ahead, stopped)
            except _Stopped:
                pass
            except BaseException as error:  # shown in the thread that waits for the rows
                with contextlib.suppress(_Stopped):
                    _put(waiting, error, stopped)

        def rows() -> Iterator[tuple[int, Prepared]]:
            while (item := _raised(waiting.get())) is not _END:
                number, future = item
                yield number, future.result()

        reader = threading.Thread(target=read, name="read", daemon=True)
        reader.start()
        try:
            while (item := _raised(waiting.get())) is not _END:
                yield *item, rows()
                ahead.release()
        finally:
            stopped.set()
            reader.join()
            for item in waiting.queue:
                if isinstance(item, tuple) and isinstance(item[1], Future):
                    item[1].cancel()
                elif isinstance(item, tuple):
                    item[1].release()

    def _read(
        self,
        shards: Iterator[tuple[Shard, Claim]],
        put: Callable[[Any], None],
        ahead: threading.Semaphore,
        stopped: threading.Event,
    ) -> None:
        while True:
            while not ahead.acquire(timeout=0.1):
                if stopped.is_set():
                    raise _Stopped
            if (claimed := next(shards, None)) is None:
                break
            put(claimed)
            shard = claimed[0]
            for number, fetch in self.source.rows(shard.split, shard.start, shard.stop):
                put((number, self._submit(fetch, f"row {number} of {shard.file}")))
            put(_END)
        put(_END)

    def _submit(self, fetch: Fetch, name: str) -> Future[Prepared]:
        if isinstance(self.pool, ProcessPoolExecutor):
            # The source stays here, its row is sent: a path, or the bytes of a file.
            try:
                fetch = partial(_itself, fetch())
            except RejectedRow as reason:
                refused: Future[Prepared] = Future()
                refused.set_result(reason)
                return refused
            except Exception as error:  # whatever it is goes on, with the row's name
                error.add_note(f"in {name}")
                raise
        return self.pool.submit(prepared, fetch, self.spec, self.filters, name)


def _itself(row: SourceRow | EncodedRow) -> SourceRow | EncodedRow:
    return row


def prepared(fetch: Fetch, spec: CodecSpec, filters: FiltersConfig, name: str) -> Prepared:
    """A row as the codec takes it, or why it does not. A bug's message gets the row's name."""
    try:
        return fit_row(fetch(), spec, filters)
    except RejectedRow as reason:
        return reason
    except Exception as error:  # whatever it is goes on, with the row's name
        error.add_note(f"in {name}")
        raise


def fit_row(row: SourceRow | EncodedRow, spec: CodecSpec, filters: FiltersConfig) -> Utterance | EncodedUtterance:
    """A row that passes the filters.

    Raises:
        RejectedRow: it does not.
    """
    if isinstance(row, EncodedRow):
        return check_encoded(row, spec, filters)
    return prepare(row, spec.sample_rate, filters)


class _Stopped(Exception):
    """The consumer is gone."""


_END = object()
"""Of a shard's rows, or of all shards."""


def _put(waiting: queue.Queue[Any], item: Any, stopped: threading.Event) -> None:
    while not stopped.is_set():
        with contextlib.suppress(queue.Full):
            waiting.put(item, timeout=0.1)
            return
    raise _Stopped


def _raised(item: Any) -> Any:
    if isinstance(item, BaseException):
        raise item
    return item


def encode_shard(
    root: Path,
    shard: Shard,
    prepared: Iterator[tuple[int, Prepared]],
    codec: Codec,
    on_rows: Callable[[int], object],
) -> None:
    """Encode the rows of one shard and write it."""
    encoded: list[EncodedUtterance] = []
    piece: list[Utterance | EncodedUtterance] = []
    numbers: list[int] = []
    rejects: list[dict[str, str]] = []
    piece_seconds = 0.0
    for number, result in prepared:
        if isinstance(result, RejectedRow):
            rejects.append({"row": str(number), "reason": result.reason, "detail": result.detail})
        else:
            piece.append(result)
            numbers.append(number)
            piece_seconds += result.seconds
        if piece_seconds >= PIECE_SECONDS:
            encoded += encode_rows(piece, codec)
            piece, piece_seconds = [], 0.0
        on_rows(1)
    write_shard(root, shard, codec.spec, [*encoded, *encode_rows(piece, codec)], rejects, numbers)


def encode_rows(rows: list[Utterance | EncodedUtterance], codec: Codec) -> list[EncodedUtterance]:
    """The same rows with codes; those that have them stay as they are."""
    waveforms = [row.waveform for row in rows if isinstance(row, Utterance)]
    codes = iter(codec.encode(waveforms) if waveforms else [])
    return [
        EncodedUtterance(
            id=row.id,
            text=row.text,
            text_given=row.text_given,
            speaker=row.speaker,
            language=row.language,
            seconds=row.seconds,
            codes=next(codes),
        )
        if isinstance(row, Utterance)
        else row
        for row in rows
    ]


def check_encoded(row: EncodedRow, spec: CodecSpec, filters: FiltersConfig) -> EncodedUtterance:
    """A row of codes, checked as far as codes can be.

    Raises:
        RejectedRow: no text, codes that are not the codec's, or a length that the filters refuse.
    """
    text = checked_text(row.text, row.language, filters)
    if problem := code_problem(row.codes, spec):
        raise RejectedRow("broken_codes", problem)
    seconds = len(row.codes) / spec.tokens_per_second
    check_length(seconds, filters)
    check_speaking_rate(text, seconds, row.language, filters)
    return EncodedUtterance(
        id=row.id,
        text=text,
        text_given=row.text,
        speaker=row.speaker,
        language=row.language,
        seconds=seconds,
        codes=row.codes.astype(spec.code_dtype),
    )
