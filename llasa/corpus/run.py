"""The job behind `preprocess.py`: plan the store, make the shards that are missing, write the manifest."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from llasa.build import build
from llasa.config import PreprocessConfig
from llasa.corpus.runners import RUNNERS
from llasa.corpus.store import (
    FORMAT_VERSION,
    MANIFEST,
    plan_shards,
    read_json,
    shard_is_whole,
    write_manifest,
    write_plan,
)
from llasa.errors import UserError
from llasa.provenance import provenance


def preprocess(config: PreprocessConfig) -> dict[str, Any]:
    """Make the store of ``config`` and return its manifest. What is there already is kept.

    Raises:
        UserError: the corpus or the store's folder cannot be used, or no row of the corpus can.
    """
    root = Path(config.store)
    source = build(config.dataset)
    codec = build(config.codec)
    shards = plan_shards(source.splits(), config.shard_rows)
    plan = {
        "format_version": FORMAT_VERSION,
        "source": source.describe(),
        "splits": source.splits(),
        "language": config.lang.code,
        "codec": codec.spec.to_dict(),
        "filters": asdict(config.filters),
        "shard_rows": config.shard_rows,
    }
    write_plan(root, plan)
    missing = [shard for shard in shards if not shard_is_whole(root / shard.file)]
    if not missing and (root / MANIFEST).is_file():
        manifest = read_json(root / MANIFEST)
        print("the store is complete, nothing to do")
    else:
        # A manifest says that the store is complete; while shards are missing it must not.
        (root / MANIFEST).unlink(missing_ok=True)
        RUNNERS[config.runner.name](root, missing, source, codec, config)
        manifest = write_manifest(root, shards, plan, provenance())
    report(root, manifest)
    if manifest["rows"] == 0:
        raise UserError(f"no row of the corpus is usable ({summary(manifest)})", remedy=f"see {root}/rejects.jsonl")
    return manifest


def summary(manifest: dict[str, Any]) -> str:
    dropped = ", ".join(f"{count} {reason}" for reason, count in manifest["dropped"].items())
    return f"dropped: {dropped or 'none'}"


def report(root: Path, manifest: dict[str, Any]) -> None:
    hours = manifest["seconds"] / 3600
    length = f"{hours:.1f} h" if hours >= 1 else f"{manifest['seconds']:.1f} s"
    print(f"{root}: {manifest['rows']:,} rows, {length}, {manifest['codes']:,} codes; {summary(manifest)}")
