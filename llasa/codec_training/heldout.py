"""Which recordings are not trained on: whole voices, named ones, a split of the corpus, or a share of the rest.

The choice depends on names alone, so that a corpus that grows holds out what it held out before.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llasa.codec_training.recordings import Recording, Recordings
from llasa.config import CodecHeldOutConfig
from llasa.corpus.split import hash_of
from llasa.errors import UserError
from llasa.explain import nearest

SHORTEST = 0.5
"""Seconds: a shorter recording says little of a codec."""
HELDOUT, NEW_VOICES = "heldout", "heldout_voices"
"""Names of what is measured: other sentences, and voices that were never heard."""


@dataclass(frozen=True)
class Measured:
    """Recordings to measure on: ``rows`` of ``recordings``."""

    recordings: Recordings
    rows: list[Recording]


@dataclass(frozen=True)
class Division:
    """``train`` to learn from, ``measured`` by name (some of what is not trained on), ``left`` out altogether."""

    train: list[Recording]
    measured: dict[str, Measured]
    num_heldout: int

    def describe(self) -> str:
        measured = ", ".join(f"{len(part.rows)} as {name}" for name, part in self.measured.items())
        return f"{self.num_heldout:,} recordings are held out" + (f" (measured: {measured})" if measured else "")


def divide(recordings: Recordings, folders: Mapping[str, Recordings], config: CodecHeldOutConfig) -> Division:
    """Tell what is trained on from what is not.

    Args:
        folders: further recordings to measure on, by the name of their folder.

    Raises:
        UserError: a speaker or an id that the corpus does not have, or nothing left to train on.
    """
    rows = recordings.rows
    known = {row.speaker for row in rows if row.speaker}
    for speaker in config.speakers:
        if speaker not in known:
            raise UserError(
                f"heldout.speakers: the recordings have no speaker {speaker!r}",
                remedy=nearest(speaker, sorted(known)) if known else "the corpus names no speakers",
            )
    voices = [row for row in rows if row.speaker in config.speakers]
    rest = [row for row in rows if row.speaker not in config.speakers]
    named = read_ids(config.ids, rows)
    if named:
        heldout = [row for row in rest if row.id in named]
    else:
        heldout = [row for row in rest if row.split != "train"]
        if not heldout and not folders:
            heldout = [row for row in rest if hash_of(row.id, 0) < config.share]
    out = {row.start for row in (*voices, *heldout)}
    train = [row for row in rows if row.start not in out and row.split == "train"]
    if not train:
        raise UserError(
            "all recordings are held out, and none is left to train on", remedy="check heldout.speakers and heldout.ids"
        )
    parts = {HELDOUT: (recordings, heldout), NEW_VOICES: (recordings, voices)}
    parts |= {name: (others, others.rows) for name, others in folders.items()}
    measured = {name: some(*part, config.recordings) for name, part in parts.items() if part[1]}
    return Division(train, measured, len(out) + sum(len(others.rows) for others in folders.values()))


def some(recordings: Recordings, rows: Sequence[Recording], number: int) -> Measured:
    """So many as are measured: always the same ones."""
    enough = [row for row in rows if row.length >= SHORTEST * recordings.sample_rate] or list(rows)
    return Measured(recordings, sorted(enough, key=lambda row: (hash_of(row.id, 1), row.start))[:number])


def read_ids(path: str | None, rows: Sequence[Recording]) -> set[str]:
    if path is None:
        return set()
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"heldout.ids={path} cannot be read: {error}", remedy="name a file with an id a line") from None
    wanted = {line.strip() for line in lines if line.strip()}
    missing = sorted(wanted - {row.id for row in rows})
    if len(missing) == len(wanted):
        raise UserError(
            f"heldout.ids={path}: none of its {len(wanted):,} ids is among the recordings",
            remedy=f"they look like {rows[0].id!r}",
        )
    if missing:  # the filters may have left them out, or max_hours
        print(
            f"note: {len(missing):,} of the {len(wanted):,} ids of heldout.ids={path} are not among the recordings, "
            f"first {missing[0]!r}",
            file=sys.stderr,
        )
    return wanted
