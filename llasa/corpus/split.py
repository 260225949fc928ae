"""A held-out split for a corpus that has none: the last step before a store's manifest is written.

    STORE/train/NNNNN.parquet ─choose─► STORE/train/NNNNN.parquet  without the held-out rows
                                        STORE/dev/NNNNN.parquet    those rows, a shard for each of train's

No speaker is on both sides where the corpus names its speakers; where it does not, rows are held out one by one, and
the manifest says so. Who is held out follows from a hash of the speaker's name, or of the row's id, so rows that a
corpus gets later move no old ones, and stores of one corpus in several codecs hold out the same.

A row is never lost on the way: the held-out shard is written first, then the shard of train without its rows and with
a note of how many went. So a killed run is taken up where it was, and a finished store can be cut anew
(``split.again``) without its corpus. One process at a time does this: the caller has claimed the manifest.

Cost: two columns of all rows are read, and the shards that lose rows written again; the rows of one shard in memory.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from llasa.config import SplitConfig
from llasa.corpus.store import Shard, in_threads, read_shard_record, whole_record, write_table
from llasa.errors import UserError

TRAIN = "train"

MIN_ROWS = 4
"""A measurement on fewer rows says nothing; a corpus so small is trained on whole."""
MIN_SPEAKERS = 5
LARGEST_SPEAKER = 0.1
"""Share of the rows that a single speaker may have to be held out, where all have more than was asked for."""

OWN = "the corpus has one of its own"

COLUMNS = {"speaker": "speaker", "row": "id"}
"""Rule → the column whose values stay together."""


@dataclass(frozen=True)
class HeldOut:
    """Which rows go to the split ``name``: those with one of ``values`` in the column of ``rule``."""

    name: str
    rule: str
    values: frozenset[str]
    groups: int
    """Of how many speakers, or rows, they are."""
    reason: str = ""
    """Why rows and not speakers, where speakers were preferred."""

    def mask(self, table: pa.Table) -> pa.Array:
        """True where a row is held out."""
        wanted = pa.array(sorted(self.values), pa.string())
        return pc.is_in(table[COLUMNS[self.rule]], value_set=wanted)


def hold_out(root: Path, shards: Sequence[Shard], config: SplitConfig) -> tuple[list[Shard], dict[str, Any]]:
    """Cut the finished shards of a store and return its held-out shards and what the manifest says of them.

    Doing it again changes nothing; with another ``config`` it cuts anew.

    Raises:
        UserError: ``split.by=speaker``, and there are not two speakers.
    """
    settings = settings_of(config)
    chosen = choose(root, shards, config)
    if isinstance(chosen, str):
        settle(root, shards, None)
        return [], {"settings": settings, "rule": "none", "reason": chosen}
    held = settle(root, shards, chosen)
    records = in_threads(lambda shard: read_shard_record(root / shard.file), [*shards, *held])
    rows, total = sum(r.rows for r in records[len(shards) :]), sum(r.rows for r in records)
    facts: dict[str, Any] = {
        "settings": settings,
        "split": chosen.name,
        "from": TRAIN,
        "rule": chosen.rule,
        "rows": rows,
        "share": round(rows / total, 6),
        "digest": hashlib.sha256("\n".join([chosen.rule, *sorted(chosen.values)]).encode()).hexdigest()[:16],
    }
    if chosen.rule == "speaker":
        facts |= {"speakers": sorted(chosen.values), "of_speakers": chosen.groups}
    if chosen.reason:
        facts["reason"] = chosen.reason
    return held, facts


def in_words(facts: dict[str, Any]) -> str:
    """What the manifest says of the held-out split, for people; empty where there is nothing to say."""
    reason = facts.get("reason", "")
    if not facts or reason == OWN:
        return ""
    if facts["rule"] == "none":
        return f"no held-out split: {reason}"
    who = (
        "row by row"
        if facts["rule"] == "row"
        else f"all of {len(facts['speakers']):,} of the {facts['of_speakers']:,} speakers"
    )
    because = f" ({reason})" if reason else ""
    return f"held out as the split {facts['split']}: {facts['rows']:,} rows ({facts['share']:.1%}), {who}{because}"


def settings_of(config: SplitConfig) -> dict[str, Any]:
    """What decides which rows are held out."""
    return {key: value for key, value in asdict(config).items() if key != "again"}


def choose(root: Path, shards: Sequence[Shard], config: SplitConfig) -> HeldOut | str:
    """Who is held out; or why nobody is."""
    if config.by == "off" or config.heldout == 0:
        return "split.by=off" if config.by == "off" else "split.heldout=0"
    if any(shard.split != TRAIN for shard in shards):
        return OWN
    speakers, ids = count_rows(root, shards)
    total = sum(ids.values())
    target = min(config.heldout * total, config.rows or total)
    if target < MIN_ROWS:
        few = f"{config.heldout:.1%} of {total:,} rows would be fewer than {MIN_ROWS}"
        return f"{few}; split.heldout=0.1 split.again=true holds a tenth out"
    unnamed = speakers.pop("", 0)
    if config.by == "speaker" and len(speakers) < 2:
        raise UserError(
            f"split.by='speaker' is not possible: the corpus names {len(speakers)} speakers",
            remedy="use split.by=row, or split.by=off; no audio is read again",
        )
    reason = why_not_speakers(speakers, unnamed, target, total) if config.by == "auto" else ""
    limit = min(2 * target, config.rows or total)
    if config.by == "row" or reason:
        values = draw(ids, target / total, target, limit, config.seed)
        return HeldOut(config.name, "row", frozenset(values), len(ids), reason)
    values = draw(speakers, target / total, target, limit, config.seed)
    values = values or {min(speakers, key=lambda speaker: (speakers[speaker], hash_of(speaker, config.seed)))}
    return HeldOut(config.name, "speaker", frozenset(values), len(speakers))


def why_not_speakers(speakers: Mapping[str, int], unnamed: int, target: float, total: int) -> str:
    """Why rows of these speakers are held out one by one; empty where whole speakers are."""
    if not speakers:
        return "the corpus names no speakers"
    if len(speakers) < MIN_SPEAKERS:
        return f"the corpus has fewer than {MIN_SPEAKERS} speakers"
    if unnamed > total / 2:
        return f"{unnamed:,} of {total:,} rows have no speaker"
    if (smallest := min(speakers.values())) > max(2 * target, LARGEST_SPEAKER * total):
        return f"each speaker has {smallest / total:.0%} of the rows or more"
    return ""


def count_rows(root: Path, shards: Sequence[Shard]) -> tuple[Counter[str], Counter[str]]:
    """Number of rows by speaker and by id, held-out ones included."""
    speakers: Counter[str] = Counter()
    ids: Counter[str] = Counter()
    for table in in_threads(lambda shard: read_rows(root, shard, ["speaker", "id"]), shards):
        speakers.update(table["speaker"].to_pylist())
        ids.update(table["id"].to_pylist())
    return speakers, ids


def draw(groups: Mapping[str, int], share: float, target: float, limit: float, seed: int) -> set[str]:
    """Those of ``groups`` (name → rows) whose hash is below ``share``: about that share of the rows, whatever others
    there are.

    Where that gives less than half of ``target`` rows the next ones by hash are taken too, and a group is left out
    with which they would be more than ``limit``; so the choice depends on the others only in small corpora.
    """
    chosen, rows = set(), 0
    for number, name in sorted((hash_of(name, seed), name) for name in groups):
        if number >= share and rows >= target / 2:
            break
        if rows + groups[name] <= limit:
            chosen.add(name)
            rows += groups[name]
    return chosen


def hash_of(name: str, seed: int) -> float:
    """0 to 1, evenly spread over names."""
    digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def read_rows(root: Path, shard: Shard, columns: list[str] | None = None) -> pa.Table:
    """The rows of a shard of train as the corpus has them: with those that are held out."""
    # Train first: a process that takes rows from it has already written where they went.
    heldout = read_shard_record(root / shard.file).heldout
    tables = [_read(root / shard.file, columns)]
    if not heldout:
        return tables[0]
    tables += [_read(root / partner(shard, name).file, columns) for name in heldout]
    table = pa.concat_tables(tables)
    return table.sort_by("row") if columns is None else table


def _read(path: Path, columns: list[str] | None) -> pa.Table:
    with path.open("rb") as file:
        return pq.read_table(file, columns=columns).replace_schema_metadata(None)


def partner(shard: Shard, name: str) -> Shard:
    """The shard of the held-out split ``name`` that belongs to one of train."""
    return Shard(name, shard.number, shard.start, shard.stop)


def settle(root: Path, shards: Sequence[Shard], chosen: HeldOut | None) -> list[Shard]:
    """Make the files say what ``chosen`` says (none: no row is held out); return the held-out shards.

    Shards that say it already are not touched.
    """
    held = [partner(shard, chosen.name) for shard in shards] if chosen else []
    for shard in tqdm(shards, unit=" shards", desc="holding out", disable=None):
        record = read_shard_record(root / shard.file)
        if chosen is None and not record.heldout:
            continue
        table = read_rows(root, shard)
        if chosen is None:
            write_table(root, shard, table, record.rejects)
            continue
        mask = chosen.mask(table)
        out = table.filter(mask)
        if list(record.heldout) == [chosen.name] and is_held(root, shard, chosen.name, out):
            continue
        if record.heldout:  # all rows back first: a half-made new cut beside half an old one would lose some
            write_table(root, shard, table, record.rejects)
        write_table(root, partner(shard, chosen.name), out, [])
        write_table(root, shard, table.filter(pc.invert(mask)), record.rejects, {chosen.name: len(out)})
    remove_strays(root, {shard.split for shard in shards} | {shard.split for shard in held})
    return held


def is_held(root: Path, shard: Shard, name: str, out: pa.Table) -> bool:
    """Whether the held-out shard holds these very rows."""
    return _read(root / partner(shard, name).file, ["row"])["row"].equals(out["row"])


def partner_is_lost(root: Path, shard: Shard) -> bool:
    """Whether rows were held out of a shard and are not there any more."""
    record = whole_record(root / shard.file)
    if record is None:
        return False
    others = {name: whole_record(root / partner(shard, name).file) for name in record.heldout}
    return any(other is None or other.rows != record.heldout[name] for name, other in others.items())


def restore(root: Path, shards: Sequence[Shard]) -> None:
    """Before shards are made again: put held-out rows back, so that duplicates are looked for among all rows.

    A shard whose held-out rows are lost is removed, to be made again.
    """
    there = [shard for shard in shards if (record := whole_record(root / shard.file)) and record.heldout]
    lost = [shard for shard in there if partner_is_lost(root, shard)]
    for shard in lost:
        (root / shard.file).unlink(missing_ok=True)
    if there:
        whole = [shard for shard in there if shard not in lost]
        settle(root, whole, None)
        remove_strays(root, {shard.split for shard in shards})


def remove_strays(root: Path, splits: set[str]) -> None:
    """Remove held-out shards of another cut."""
    for folder in [folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith(".")]:
        files = [file for file in folder.iterdir() if re.fullmatch(r"\d{5}\.parquet", file.name)]
        if folder.name in splits or not files:
            continue
        for file in files:
            file.unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()
