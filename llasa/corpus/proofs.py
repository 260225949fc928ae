"""A row of a store under proof: as it is stored, as it sounds, and as the corpus has it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from llasa.codec.base import Codec, CodecSpec, code_problem
from llasa.config import FiltersConfig
from llasa.corpus.acoustics import HOP_SECONDS, envelope_correlation, level, log_mel, mel_distances
from llasa.corpus.encode import fit_row
from llasa.corpus.sources import Fetch, Source
from llasa.corpus.store import codes_hash
from llasa.errors import RejectedRow, UserError
from llasa.types import EncodedUtterance, Utterance

SEARCHED = range(-40, 41)
"""Delays in frames of 10 ms in which a decoded row is looked for in its source."""

ALLOWED = range(-5, 11)
"""Delays within which two rows are compared: a codec's own, with room."""


@dataclass(slots=True)
class Sound:
    """A recording as the page plays it (16-bit [samples]) and as it is compared."""

    pcm: np.ndarray
    mel: np.ndarray
    level: float
    finite: bool
    heard: str | None = None
    cer: float | None = None

    @classmethod
    def of(cls, waveform: np.ndarray, sample_rate: int) -> Sound:
        finite = bool(np.isfinite(waveform).all())
        waveform = np.clip(np.nan_to_num(waveform), -1, 1).astype(np.float32)
        pcm = np.rint(waveform * 32767).astype(np.int16)
        return cls(pcm, log_mel(waveform, sample_rate), level(waveform), finite)


class Again(NamedTuple):
    """A row's codes beside those of its source, encoded once more."""

    equal: int
    """Codes that are the same in the same place."""
    total: int
    """Codes of the longer of the two."""

    @property
    def share(self) -> float:
        return self.equal / max(1, self.total)


@dataclass(slots=True)
class Proof:
    """What is known of one sampled row. ``None`` where there is nothing to compare with."""

    split: str
    file: Path
    index: int
    """In its shard; ``row`` is its number in the source."""
    row: int
    id: str
    text: str
    text_given: str
    speaker: str
    language: str
    seconds: float
    codes: np.ndarray
    corpus_split: str = ""
    """Where the corpus has the row, if not in ``split``: it was held out by us."""
    broken: str = ""
    """What is wrong with the codes themselves."""
    unlike: str = ""
    """How the row differs from the corpus's row of that number, or why there is none."""
    decoded: Sound | None = None
    source: Sound | None = None
    again: Again | None = None
    """What encoding the source again gives."""
    delay: int | None = None
    """Of the decoded sound, in frames of 10 ms."""
    mel_distance: float | None = None
    envelope: float | None = None
    nearest_other: float | None = None
    """Mel distance to the nearest of other rows' sources."""
    text_is_nearest: bool | None = None
    source_text_is_nearest: bool | None = None

    @property
    def gain(self) -> float | None:
        """Level of the decoded sound over the source's, dB."""
        return self.decoded.level - self.source.level if self.decoded and self.source else None

    @property
    def characters_per_second(self) -> float:
        return len(self.text) / max(self.seconds, 1e-3)


def read_proofs(split: str, file: Path, indices: Sequence[int], spec: CodecSpec) -> list[Proof]:
    """Rows of a shard by their place in it (ascending). Reads the row groups that hold them."""
    proofs: list[Proof] = []
    with file.open("rb") as handle:
        parquet = pq.ParquetFile(handle)
        start = 0
        for group in range(parquet.metadata.num_row_groups):
            stop = start + parquet.metadata.row_group(group).num_rows
            wanted = [index for index in indices if start <= index < stop]
            if wanted:
                table = parquet.read_row_group(group)
                proofs += [_read(split, file, index, table.slice(index - start, 1), spec) for index in wanted]
            start = stop
    return proofs


def _read(split: str, file: Path, index: int, table: pq.Table, spec: CodecSpec) -> Proof:
    codes = table["codes"].combine_chunks().flatten().to_numpy()
    row = table.drop_columns("codes").to_pylist()[0]
    names = ("row", "id", "text", "text_given", "speaker", "language", "seconds")
    proof = Proof(split=split, file=file, index=index, codes=codes, **{name: row[name] for name in names})
    proof.broken = code_problem(codes, spec)
    if row["num_codes"] != len(codes):
        proof.broken = f"num_codes says {row['num_codes']}, there are {len(codes)}"
    elif row["codes_hash"] != codes_hash(codes):
        proof.broken = "the codes are not those that were written (codes_hash)"
    return proof


def find_rows(source: Source, proofs: Sequence[Proof]) -> Iterator[tuple[Proof, Fetch]]:
    """The corpus's rows for rows of one shard; those that it does not have are left out."""
    split, splits = proofs[0].corpus_split or proofs[0].split, source.splits()
    if source.unit == "row":
        for proof in proofs:
            if proof.row < splits.get(split, 0):
                for _, fetch in source.rows(split, proof.row, proof.row + 1):
                    yield proof, fetch
        return
    file = int(proofs[0].file.stem)  # a shard for each file
    wanted = {proof.row: proof for proof in proofs}
    if file < splits.get(split, 0):
        for number, fetch in source.rows(split, file, file + 1):
            if number in wanted:
                yield wanted.pop(number), fetch
            if not wanted:
                return


def compare_with_source(proofs: Sequence[Proof], source: Source, codec: Codec, filters: FiltersConfig) -> None:
    """Fill in what can be said of rows of one shard, with the corpus's rows of the same numbers beside them."""
    found: list[tuple[Proof, Utterance | EncodedUtterance]] = []
    for proof in proofs:
        proof.unlike = f"the corpus has no row {proof.row} in {proof.corpus_split or proof.split}"
    try:
        for proof, fetch in find_rows(source, proofs):
            try:
                prepared = fit_row(fetch(), codec.spec, filters)
            except RejectedRow as reason:
                proof.unlike = f"the corpus's row {proof.row} would be dropped now ({reason})"
                continue
            proof.unlike = difference(proof, prepared)
            found.append((proof, prepared))
    except (UserError, OSError) as error:
        for proof in proofs:
            if not any(proof is other for other, _ in found):
                proof.unlike = f"the corpus's row {proof.row} cannot be read ({error})"
    again = iter(codec.encode([prepared.waveform for _, prepared in found if isinstance(prepared, Utterance)]))
    for proof, prepared in found:
        codes = next(again) if isinstance(prepared, Utterance) else prepared.codes
        both = min(len(codes), len(proof.codes))
        proof.again = Again(int((codes[:both] == proof.codes[:both]).sum()), max(len(codes), len(proof.codes)))
        if isinstance(prepared, Utterance):
            proof.source = Sound.of(prepared.waveform, codec.spec.sample_rate)


def difference(proof: Proof, prepared: Utterance | EncodedUtterance) -> str:
    """How the corpus's row differs from the stored one, but for the codes; empty where it does not."""
    for name in ("id", "speaker", "language", "text_given", "text"):
        stored, theirs = getattr(proof, name), getattr(prepared, name)
        if stored != theirs:
            return f"{name} is {stored[:60]!r} in the store and {theirs[:60]!r} in the corpus"
    if abs(proof.seconds - prepared.seconds) > HOP_SECONDS:
        return f"it lasts {proof.seconds:.3f} s in the store and {prepared.seconds:.3f} s in the corpus"
    return ""


def decode_proofs(proofs: Sequence[Proof], codec: Codec) -> None:
    """Decode the rows whose codes can be, and measure them against their sources."""
    sound = [proof for proof in proofs if not code_problem(proof.codes, codec.spec)]
    for proof, waveform in zip(sound, codec.decode([proof.codes for proof in sound]), strict=True):
        proof.decoded = Sound.of(waveform, codec.spec.sample_rate)
        if proof.source is not None:
            distances = mel_distances(proof.decoded.mel, proof.source.mel, SEARCHED)
            proof.delay = SEARCHED[int(distances.argmin())]
            proof.mel_distance = mel_distance(proof.decoded, proof.source)
            allowed = min(max(proof.delay, ALLOWED.start), ALLOWED.stop - 1)
            proof.envelope = envelope_correlation(proof.decoded.mel, proof.source.mel, allowed)


def mel_distance(decoded: Sound, source: Sound) -> float:
    return float(mel_distances(decoded.mel, source.mel, ALLOWED).min())
