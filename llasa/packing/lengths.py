"""How many tokens each row of a store becomes, without building the examples.

Every text has to be tokenised once, which for ten million rows takes minutes, so the result is kept on disk: a second
run, a resumed one and the other processes of a machine read it.

    $LLASA_CACHE/lengths/KEY.npy   (~/.cache/llasa without it) int32 [rows], then 16 bytes of checksum
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from llasa.provenance import write_atomically
from llasa.tokens.prompt import PromptBuilder

BATCH = 10_000
CHECKSUM = 16


def example_lengths(rows: Any, prompt: PromptBuilder) -> np.ndarray:
    """Tokens of the example that each row of a store becomes, int32 [rows].

    Equal to :meth:`PromptBuilder.lengths`, but token ids never become Python objects: several times as fast.
    """
    lengths = np.empty(len(rows), dtype=np.int32)
    columns = ["text", "num_codes", *(["speaker"] if prompt.rules.speaker_tags else [])]
    start = 0
    with token_counter(prompt) as count:
        for batch in rows.select_columns(columns).with_format("arrow").iter(BATCH):
            stop = start + len(batch)
            texts = batch["text"].to_pylist()
            if prompt.rules.speaker_tags:
                speakers = batch["speaker"].to_pylist()
                texts = [prompt.tagged(text, speaker) for text, speaker in zip(texts, speakers, strict=True)]
            lengths[start:stop] = count(texts)
            lengths[start:stop] += batch["num_codes"].to_numpy().astype(np.int32) + prompt.overhead
            start = stop
    assert start == len(rows)
    return lengths


@contextmanager
def token_counter(prompt: PromptBuilder) -> Iterator[Callable[[list[str]], list[int]]]:
    """A function from texts to their numbers of tokens, special tokens in them read as plain text."""
    backend = getattr(prompt.tokenizer, "backend_tokenizer", None)
    if backend is None:  # a tokenizer in Python
        yield lambda texts: [len(ids) for ids in prompt.text_ids(texts)]
        return
    before = backend.encode_special_tokens, backend.truncation, backend.padding
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    try:
        yield lambda texts: list(map(len, backend.encode_batch_fast(texts, add_special_tokens=False)))
    finally:
        backend.encode_special_tokens = before[0]
        if before[1]:
            backend.enable_truncation(**before[1])
        if before[2]:
            backend.enable_padding(**before[2])


def cached_lengths(rows: Any, prompt: PromptBuilder, identity: Any) -> np.ndarray:
    """:func:`example_lengths`, read from the cache if they are there.

    Args:
        identity: JSON that tells these rows from any others.
    """
    from filelock import FileLock

    path = cache_folder() / f"{cache_key(prompt, identity)}.npy"
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Of the processes of a machine one counts, the others wait for it.
            stack.enter_context(FileLock(f"{path}.lock"))
        except (OSError, NotImplementedError):  # no place for a cache, or no locks there: each counts for itself
            pass
        lengths = read_lengths(path, len(rows))
        if lengths is None:
            lengths = example_lengths(rows, prompt)
            write_lengths(path, lengths)
        return lengths


def cache_folder() -> Path:
    return Path(os.environ.get("LLASA_CACHE") or "~/.cache/llasa").expanduser() / "lengths"


def cache_key(prompt: PromptBuilder, identity: Any) -> str:
    """Whatever changes a length changes the key: the tokenizer, the prompt around the text, the rows."""
    backend = getattr(prompt.tokenizer, "backend_tokenizer", None)
    tokenizer = backend.to_str() if backend is not None else json.dumps(prompt.tokenizer.get_vocab(), sort_keys=True)
    facts = [prompt.rules.to_dict(), prompt.overhead, identity, hashlib.sha256(tokenizer.encode()).hexdigest()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def read_lengths(path: Path, count: int) -> np.ndarray | None:
    """The lengths in a file, none where it is missing, damaged or of another number of rows."""
    try:
        content = path.read_bytes()
        array, checksum = content[:-CHECKSUM], content[-CHECKSUM:]
        if hashlib.blake2b(array, digest_size=CHECKSUM).digest() != checksum:
            return None
        lengths = np.load(io.BytesIO(array), allow_pickle=False)
    except (OSError, ValueError):
        return None
    return lengths if lengths.shape == (count,) and lengths.dtype == np.int32 else None


def write_lengths(path: Path, lengths: np.ndarray) -> None:
    """A full disk costs the next run its time, not this one its life."""
    buffer = io.BytesIO()
    np.save(buffer, lengths, allow_pickle=False)
    content = buffer.getvalue()
    try:
        write_atomically(path, content + hashlib.blake2b(content, digest_size=CHECKSUM).digest())
    except OSError:
        return
