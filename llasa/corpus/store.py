"""The token store: sharded Parquet files of codes, and a manifest that says what they are.

    STORE/plan.json              what the store will hold; written first
    STORE/SPLIT/NNNNN.parquet    a shard: written to a temporary name, synced, renamed
    STORE/manifest.json          written last: the store is complete
    STORE/rejects.jsonl          every dropped row and why

A shard carries its own counts and rejects in its Parquet metadata, so the manifest follows from the shards alone
and a killed run has nothing else to remember. The same inputs give the same bytes. Token ids are not stored:
one store serves every tokenizer. A store may lie wherever fsspec reaches (`s3://`, `gs://`, `hf://`).
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llasa.codec.base import CodecSpec
from llasa.errors import UserError
from llasa.paths import location
from llasa.provenance import differing_keys, write_atomically, write_json
from llasa.types import EncodedUtterance

FORMAT_VERSION = 2
PLAN, MANIFEST, REJECTS = "plan.json", "manifest.json", "rejects.jsonl"
CLAIMS = ".claims"
"""Folder of the locks of running processes; gone when the store is complete."""
METADATA_KEY = b"llasa"

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Shard:
    """Units ``start`` to ``stop`` (rows or files) of a split of the source, and the file they become."""

    split: str
    number: int
    start: int
    stop: int

    @property
    def file(self) -> str:
        return f"{self.split}/{self.number:05d}.parquet"


@dataclass
class ShardRecord:
    """What became of a shard's rows; stored inside the shard."""

    rows: int
    seconds: float
    codes: int
    languages: list[str]
    rejects: list[dict[str, str]] = field(default_factory=list)
    heldout: dict[str, int] = field(default_factory=dict)
    """Rows that were moved to the shard of the same number of these splits, see :mod:`llasa.corpus.split`."""

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "heldout" or value}


def plan_shards(splits: dict[str, int], units: int) -> list[Shard]:
    """Cut each split into shards of so many units of the source (rows, or files), in order."""
    return [
        Shard(split, number, start, min(start + units, count))
        for split, count in splits.items()
        for number, start in enumerate(range(0, count, units))
    ]


def schema(spec: CodecSpec) -> pa.Schema:
    return pa.schema(
        [
            ("id", pa.string()),
            ("text", pa.string()),
            ("text_given", pa.string()),
            ("speaker", pa.string()),
            ("language", pa.string()),
            ("seconds", pa.float32()),
            ("num_codes", pa.int32()),
            ("row", pa.int64()),
            ("codes_hash", pa.uint64()),
            ("codes", pa.list_(pa.from_numpy_dtype(np.dtype(spec.code_dtype)))),
        ]
    )


def write_shard(
    root: Path,
    shard: Shard,
    spec: CodecSpec,
    rows: Sequence[EncodedUtterance],
    rejects: list[dict[str, str]],
    numbers: Sequence[int] | None = None,
) -> ShardRecord:
    """Write a shard atomically. An empty one is written too: it records that its rows were all dropped.

    ``numbers`` are those of the rows in the source, ``0 …`` where they are not told.
    """
    fields = ("id", "text", "text_given", "speaker", "language", "seconds")
    table = pa.table(
        {
            **{name: [getattr(row, name) for row in rows] for name in fields},
            "num_codes": [len(row.codes) for row in rows],
            "row": list(range(len(rows)) if numbers is None else numbers),
            "codes_hash": np.array([codes_hash(row.codes) for row in rows], dtype=np.uint64),
            "codes": [row.codes for row in rows],
        },
        schema=schema(spec),
    )
    return write_table(root, shard, table, rejects)


def write_table(
    root: Path,
    shard: Shard,
    table: pa.Table,
    rejects: list[dict[str, str]],
    heldout: dict[str, int] | None = None,
) -> ShardRecord:
    """Write rows of the store's schema, with their record, as a shard."""
    record = ShardRecord(
        rows=len(table),
        seconds=round(float(table["seconds"].to_numpy().sum(dtype=np.float64)), 3),
        codes=int(table["num_codes"].to_numpy().sum(dtype=np.int64)),
        languages=sorted(table["language"].unique().to_pylist()),
        rejects=rejects,
        heldout=heldout or {},
    )
    content = json.dumps(record.to_dict(), ensure_ascii=False)
    # Parquet gives the field of a list another name than Arrow, and a shard that is written again must not tell.
    place = table.schema.get_field_index("codes")
    codes = pa.list_(table.schema.field(place).type.value_type)
    table = table.cast(table.schema.set(place, pa.field("codes", codes)))
    table = table.replace_schema_metadata({METADATA_KEY: content.encode()})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", use_dictionary=["speaker", "language"], row_group_size=1000)
    path = root / shard.file
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())
    return record


def codes_hash(codes: np.ndarray) -> int:
    """64 bits that tell one row of codes from another, the same for either width of them."""
    return int.from_bytes(hashlib.blake2b(codes.astype("<u4").tobytes(), digest_size=8).digest(), "little")


def read_shard_record(path: Path) -> ShardRecord:
    """The record inside a shard. Raises ``pa.ArrowInvalid`` or ``OSError`` for a damaged file."""
    with path.open("rb") as file:
        metadata = pq.read_schema(file).metadata or {}
    if METADATA_KEY not in metadata:
        raise pa.ArrowInvalid("no record in the file's metadata")
    return ShardRecord(**json.loads(metadata[METADATA_KEY]))


def in_threads(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """``map``, for many short waits on a file system."""
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(function, items))


def whole_record(path: Path) -> ShardRecord | None:
    """The record inside a shard, none where it is missing or damaged."""
    try:
        return read_shard_record(path)
    except (OSError, pa.ArrowInvalid):
        return None


def shard_is_whole(path: Path) -> bool:
    return whole_record(path) is not None


def write_plan(root: Path, plan: dict[str, Any]) -> None:
    """Record what the store will hold, or check that an existing store holds the same.

    Raises:
        UserError: the folder holds a store of other settings (the differing keys are named), or something else.
    """
    path = root / PLAN
    if path.is_file():
        existing = read_json(path)
        differing = [describe_difference(key, existing, plan) for key in sorted(differing_keys(existing, plan))]
        if differing:
            raise UserError(
                f"{root} holds a store made with other settings: {', '.join(differing)}",
                remedy="choose another folder with store=, or delete that one",
            )
        return
    # A run that was killed while it wrote the plan leaves its temporary file, and its claims.
    if root.is_dir() and any(not file.name.startswith((f".{PLAN}.", CLAIMS)) for file in root.iterdir()):
        raise UserError(f"{root} is not empty and no token store", remedy="choose another folder with store=")
    try:
        root.mkdir(parents=True, exist_ok=True)
        write_json(path, plan)
    except OSError as error:
        raise UserError(
            f"cannot write to {root}: {error.strerror}", remedy="choose another folder with store="
        ) from None


def describe_difference(key: str, old: dict[str, Any], new: dict[str, Any]) -> str:
    """`filters.max_seconds (30.0 there, 20.0 now)`: a key of the plan in the words of the config."""

    def value(plan: dict[str, Any]) -> Any:
        for part in key.split("."):
            plan = plan.get(part, "nothing") if isinstance(plan, dict) else "nothing"
        return plan

    if key == "source.fingerprint":
        return "the corpus (its files have changed)"
    group, dot, rest = key.partition(".")
    name = {"source": "dataset", "language": "lang", "encoding": "codec"}.get(group, group) + dot + rest
    before, now = value(old), value(new)
    if isinstance(before, dict | list) or isinstance(now, dict | list):
        return name
    return f"{name} ({before} there, {now} now)"


def read_json(path: Path) -> dict[str, Any]:
    """A plan or manifest. Raises ``UserError`` where it is damaged."""
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        # Without its plan, a store is a folder of unknown files.
        remedy = f"delete {path.parent if path.name == PLAN else path} and run preprocess.py again"
        raise UserError(f"{path} is damaged ({error})", remedy=remedy) from None


def write_manifest(
    root: Path,
    shards: Sequence[Shard],
    plan: dict[str, Any],
    provenance: dict[str, Any],
    heldout: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write `rejects.jsonl` and then `manifest.json`, both from the shards' own records.

    ``heldout`` is what :func:`llasa.corpus.split.hold_out` says of the held-out shards, which are among ``shards``.
    """
    records = list(zip(shards, in_threads(lambda shard: read_shard_record(root / shard.file), shards), strict=True))
    lines = [
        json.dumps({"split": shard.split, **reject}, ensure_ascii=False) + "\n"
        for shard, record in records
        for reject in record.rejects
    ]
    # Two cuts may have equal counts, and a training run that is resumed has to see that they differ.
    cut = {"cut": heldout["digest"]} if heldout and "digest" in heldout else {}
    splits = {}
    for split in dict.fromkeys(shard.split for shard in shards):
        mine = [record for shard, record in records if shard.split == split]
        splits[split] = cut | {
            "shards": len(mine),
            "rows": sum(record.rows for record in mine),
            "seconds": round(sum(record.seconds for record in mine), 3),
            "codes": sum(record.codes for record in mine),
        }
    manifest = {
        "format_version": FORMAT_VERSION,
        "codec": plan["codec"],
        "source": plan["source"],
        "languages": sorted({language for _, record in records for language in record.languages}),
        "rows": sum(split["rows"] for split in splits.values()),
        "seconds": round(sum(split["seconds"] for split in splits.values()), 3),
        "codes": sum(split["codes"] for split in splits.values()),
        "dropped": dict(sorted(Counter(r["reason"] for _, record in records for r in record.rejects).items())),
        "splits": splits,
        **({"heldout": heldout} if heldout else {}),
        "provenance": provenance,
    }
    write_atomically(root / REJECTS, "".join(lines).encode())
    write_json(root / MANIFEST, manifest)
    return manifest


class TokenStore:
    """A finished store, opened for reading.

    Opening checks the manifest and every shard's footer: it is there, whole, and its codes (by the column
    statistics) lie inside the codebook. No codes are read.
    """

    def __init__(self, root: str | Path, command: str = "python preprocess.py lang=…") -> None:
        """``command`` makes such a store; it is shown where there is none."""
        self.root = location(root)
        if not (self.root / MANIFEST).is_file():
            unfinished = (self.root / PLAN).is_file()
            raise UserError(
                f"the token store at {root} is not finished" if unfinished else f"there is no token store at {root}",
                remedy=f"{'finish' if unfinished else 'make'} it with `{command} store={root}`",
            )
        self.manifest: dict[str, Any] = read_json(self.root / MANIFEST)
        found = self.manifest.get("format_version")
        if found != FORMAT_VERSION:
            raise UserError(
                f"{root} has store format {found}, this code reads {FORMAT_VERSION}",
                remedy="make it again with preprocess.py",
            )
        self.codec = CodecSpec.from_dict(self.manifest["codec"])
        files = self.files()
        self._num_rows = dict(zip(files, in_threads(self._check, files), strict=True))

    @property
    def splits(self) -> list[str]:
        return list(self.manifest["splits"])

    def corpus_split(self, split: str) -> str:
        """The split of the corpus that the rows of a split are from: another one for rows that were held out."""
        heldout = self.manifest.get("heldout", {})
        return heldout["from"] if heldout.get("split") == split else split

    def files(self, split: str | None = None) -> list[Path]:
        """The shards of a split (or of all) in order, empty ones included."""
        return [
            self.root / f"{name}/{number:05d}.parquet"
            for name, facts in self.manifest["splits"].items()
            if split in (None, name)
            for number in range(facts["shards"])
        ]

    def rows(self, split: str) -> Any:
        """The rows of a split as a memory-mapped `datasets.Dataset` with the store's columns.

        Raises:
            UserError: there is no such split, or it has no rows.
        """
        if split not in self.splits:
            raise UserError(f"{self.root} has no split {split!r}", remedy=f"use one of {', '.join(self.splits)}")
        if self.manifest["splits"][split]["rows"] == 0:
            raise UserError(
                f"the split {split} of {self.root} is empty", remedy="see rejects.jsonl there for the reasons"
            )
        import datasets

        columns = [name for name in schema(self.codec).names if name != "text_given"]
        # `datasets` cannot read a Parquet file without rows.
        files = [str(file) for file in self.files(split) if self._num_rows[file]]
        progress = datasets.is_progress_bar_enabled()
        datasets.disable_progress_bars()
        try:
            return datasets.Dataset.from_parquet(files, columns=columns).with_format("numpy")
        finally:
            if progress:
                datasets.enable_progress_bars()

    def _check(self, file: Path) -> int:
        """The number of rows of a shard that is whole."""
        remedy = "delete that file and run preprocess.py again: it makes only what is missing"
        try:
            with file.open("rb") as handle:
                metadata = pq.read_metadata(handle)
        except (OSError, pa.ArrowInvalid) as error:
            reason = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged ({error})"
            raise UserError(f"shard {file} {reason}", remedy=remedy) from None
        columns = range(metadata.num_columns)
        leaf = next((i for i in columns if metadata.schema.column(i).path.startswith("codes.")), None)
        if leaf is None:
            raise UserError(f"shard {file} has no column of codes", remedy=remedy)
        for group in range(metadata.num_row_groups):
            statistics = metadata.row_group(group).column(leaf).statistics
            if statistics is not None and statistics.has_min_max and statistics.max >= self.codec.codebook_size:
                raise UserError(
                    f"shard {file} has the code {statistics.max}, but the codebook of {self.codec.name} ends at "
                    f"{self.codec.codebook_size - 1}",
                    remedy=remedy,
                )
        return metadata.num_rows
