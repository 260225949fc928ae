"""Runners: who makes which shard. All of them call :func:`llasa.corpus.encode.encode_shard`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llasa.codec.base import Codec
from llasa.config import PreprocessConfig
from llasa.corpus.encode import encode_shard
from llasa.corpus.sources import Source
from llasa.corpus.store import Shard


def run_local(root: Path, shards: Sequence[Shard], source: Source, codec: Codec, config: PreprocessConfig) -> None:
    """Make the shards one after another in this process, on the codec's device."""
    total = sum(shard.stop - shard.start for shard in shards)
    with tqdm(total=total, unit=" rows", desc="encoding", disable=None, smoothing=0.05) as progress:
        for shard in shards:
            encode_shard(root, shard, source, codec, config.filters, config.decode_threads, progress.update)


RUNNERS: dict[str, Callable[[Path, Sequence[Shard], Source, Codec, PreprocessConfig], Any]] = {"local": run_local}
