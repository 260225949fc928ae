"""The job behind `preprocess.py`: plan the store, make the shards that are missing, write the manifest."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from llasa.build import build
from llasa.codec.base import Codec
from llasa.config import PreprocessConfig
from llasa.corpus.claims import claimed, remove_claims
from llasa.corpus.duplicates import drop_duplicates
from llasa.corpus.filters import prepare
from llasa.corpus.publish import check_access, hours, publish_store
from llasa.corpus.runners import RUNNERS, Job
from llasa.corpus.sources import Source, SourceRow
from llasa.corpus.split import TRAIN, hold_out, in_words, partner_is_lost, restore, settings_of
from llasa.corpus.store import (
    FORMAT_VERSION,
    MANIFEST,
    PLAN,
    REJECTS,
    Shard,
    describe_difference,
    in_threads,
    plan_shards,
    read_json,
    whole_record,
    write_manifest,
    write_plan,
)
from llasa.corpus.verify import verify_store
from llasa.errors import RejectedRow, UserError
from llasa.paths import location
from llasa.provenance import differing_keys, provenance, remove_temporary

RETRIED = {"missing_audio", "empty_audio", "unreadable_audio", "truncated_audio", "damaged_file"}
"""Rejected for the sake of a file, which may have come or been mended since (`retry=true`)."""

AGREEMENT_CLIPS = 32


def run(config: PreprocessConfig) -> None:
    """All that a command can ask for: make the store, proof-read it, publish it.

    Raises:
        UserError: see :func:`preprocess`, :func:`~llasa.corpus.verify.verify_store` and
            :func:`~llasa.corpus.publish.publish_store`.
    """
    if config.push_to_hub is not None:
        check_access(config.push_to_hub)
    finished = preprocess(config) is not None
    if config.verify and finished:
        verify_store(config)
    if config.push_to_hub is not None and finished:
        publication = config.publication
        publish_store(
            location(config.store), config.push_to_hub, private=publication.private, license=publication.license
        )


def preprocess(config: PreprocessConfig) -> dict[str, Any] | None:
    """Make the store of ``config`` and return its manifest. What is there already is kept.

    Returns none where shards are left to do for others (``config.shards``).

    Raises:
        UserError: the corpus or the store's folder cannot be used, or no row of the corpus can.
    """
    root = location(config.store)
    source = build(config.dataset)
    codec = build(config.codec)
    splits = source.splits()
    shards = plan_shards(splits, config.shard_rows if source.unit == "row" else 1)
    plan = {
        "format_version": FORMAT_VERSION,
        "source": source.describe(),
        "unit": source.unit,
        "splits": splits,
        "language": config.lang.code,
        "codec": codec.spec.to_dict(),
        "encoding": codec.encoding_facts(),
        "filters": asdict(config.filters),
        "shard_rows": config.shard_rows,
    }
    write_plan(root, plan)
    mine = shards[parse_range(config.shards, len(shards))] if config.shards else shards
    missing = missing_shards(root, mine, RETRIED if config.retry else ())
    if not missing and (root / MANIFEST).is_file():
        manifest = read_json(root / MANIFEST)
        if not cut_anew(root, manifest, splits, config):
            print("the store is complete, nothing to do")
            return told(root, manifest)
        (root / MANIFEST).unlink(missing_ok=True)
    if missing:
        # A manifest says that the store is complete; while shards are missing it must not.
        (root / MANIFEST).unlink(missing_ok=True)
        with claimed(root, MANIFEST):
            restore(root, shards)
        RUNNERS[config.runner.name](Job(config, plan, missing), source, codec)
    left = len(missing_shards(root, shards))
    if left:
        print(f"{root}: {len(shards) - left:,} of {len(shards):,} shards are done; the last job completes the store")
        return None
    with claimed(root, MANIFEST):
        if not (root / MANIFEST).is_file():  # else another process was quicker
            drop_duplicates(root, shards, config.filters.duplicates)
            held, heldout = hold_out(root, shards, config.split)
            for name in (PLAN, REJECTS, MANIFEST):
                remove_temporary(root / name)
            facts = {"encoding": plan["encoding"] | agreement(source, codec, shards, config)}
            write_manifest(root, [*shards, *held], plan, provenance() | facts, heldout)
            remove_claims(root)
    return told(root, read_json(root / MANIFEST))


def cut_anew(root: Path, manifest: dict[str, Any], splits: dict[str, int], config: PreprocessConfig) -> bool:
    """Whether a complete store is to get another held-out split.

    Raises:
        UserError: it was made with another one, and it was not asked for.
    """
    if [split for split, units in splits.items() if units] != [TRAIN]:
        return False
    before = manifest.get("heldout", {}).get("settings", {})
    now = settings_of(config.split)
    differing = differing_keys(before, now)
    if differing and before and not config.split.again:
        names = [describe_difference(f"split.{key}", {"split": before}, {"split": now}) for key in sorted(differing)]
        raise UserError(
            f"{root} was cut with other settings: {', '.join(names)}",
            remedy="give those of before, or split.again=true to cut it anew, without reading the corpus again",
        )
    if not before and not config.split.again:
        print("the store is of a time before held-out splits; split.again=true makes one")
    return bool(differing) and config.split.again


def agreement(source: Source, codec: Codec, shards: Sequence[Shard], config: PreprocessConfig) -> dict[str, Any]:
    """How the codec's arithmetic compares with float32's on the first rows that are fit, always the same ones."""
    if codec.encoding_facts().get("precision", "fp32") == "fp32":
        return {}
    waveforms: list[np.ndarray] = []
    for fetch in (fetch for s in shards for _, fetch in source.rows(s.split, s.start, s.stop)):
        with contextlib.suppress(RejectedRow):
            row = fetch()
            if not isinstance(row, SourceRow):  # codes from elsewhere
                return {}
            waveforms.append(prepare(row, codec.spec.sample_rate, config.filters).waveform)
        if len(waveforms) == AGREEMENT_CLIPS:
            break
    measured = codec.agreement(waveforms)
    if measured.get("equal_in_another_order", 1.0) < 1.0:
        print("warning: on this device the codes depend on a clip's neighbours; codec.precision=fp32 has none of it")
    return {"agreement": measured}


def missing_shards(root: Path, shards: Sequence[Shard], retried: Collection[str] = ()) -> list[Shard]:
    """Shards that are not there or damaged, and those with rows that were rejected for one of these reasons."""

    def is_missing(shard: Shard) -> bool:
        record = whole_record(root / shard.file)
        if record is None or any(reject["reason"] in retried for reject in record.rejects):
            return True
        return partner_is_lost(root, shard)

    missing = [shard for shard, is_so in zip(shards, in_threads(is_missing, shards), strict=True) if is_so]
    if retried:
        for shard in missing:
            (root / shard.file).unlink(missing_ok=True)
    return missing


def parse_range(text: str, count: int) -> slice:
    """`0-99` (both included), `7`, or `2/8`: the second of eight equal parts.

    Raises:
        UserError: beyond the ``count`` shards that there are.
    """
    first, _, last = text.partition("-")
    if "/" in text:
        part, _, parts = text.partition("/")
        mine = slice(count * (int(part) - 1) // int(parts), count * int(part) // int(parts))
        if mine.start == mine.stop:
            print(f"shards={text}: none of the {count:,} shards is in this part; a smaller shard_rows makes more")
        return mine
    if int(first) >= count:
        raise UserError(f"shards={text}: there are {count:,} shards", remedy=f"they are 0 to {count - 1}")
    return slice(int(first), int(last or first) + 1)


def told(root: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest, when its summary has been printed.

    Raises:
        UserError: the store has no rows.
    """
    reasons = ", ".join(f"{count} {reason}" for reason, count in manifest["dropped"].items())
    dropped = f"dropped: {reasons or 'none'}"
    rows, codes = manifest["rows"], manifest["codes"]
    print(f"{root}: {rows:,} rows, {hours(manifest['seconds'])}, {codes:,} codes; {dropped}")
    if heldout := in_words(manifest.get("heldout", {})):
        print(heldout)
    again = "retry=true tries those again whose files have been mended" if manifest["dropped"].keys() & RETRIED else ""
    if rows == 0:
        remedy = ", ".join(filter(None, [f"see {root}/rejects.jsonl", again]))
        raise UserError(f"no row of the corpus is usable ({dropped})", remedy=remedy)
    if again:
        print(again)
    return manifest
