"""The checks of a proof-read store, each with the reason for its threshold.

Numbers in the comments are of 64 Italian prompts (8 kHz) through Codec2, and of the same codes made worthless: given
to other rows, offset by a constant, rotated by a quarter, frames permuted, reversed. XCodec2 is closer to its source
than Codec2, a vocoder, so its thresholds are wide.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from llasa.codec.base import CodecSpec
from llasa.config import VerifyConfig
from llasa.corpus.acoustics import HOP_SECONDS
from llasa.corpus.census import Census
from llasa.corpus.proofs import Proof, Sound

T = TypeVar("T")

MIN_ENVELOPE = 0.8
"""Correlation of the loudness over time: at least 0.93 with the own source, at most 0.72 with another."""

MAX_GAIN_DB = 10.0
"""Codec2 keeps the level within 1.4 dB. Beyond 10, a listener asks what happened to the recording."""

MIN_LEVEL_DB = -60.0
"""A decoded row below this is silence."""

MAX_DELAY = 6
"""Frames of 10 ms, either way. Codec2's own delay is 2."""

MAX_JITTER = 2
"""Frames by which a row's delay may differ from the median row's: a codec's delay is constant."""

MIN_HEARD = 0.6
"""Share of rows whose own text the recogniser must come nearest to. It errs itself, most of all on a word or two: with
Whisper base 0.9 to 1 of good rows pass, 0.25 (of 12) where the texts are on other recordings."""

FEWEST_ROWS = 4
"""For fewer, "nearer to its own source than to the others" says too little."""


@dataclass(frozen=True, slots=True)
class Check:
    """``passed`` is none where the check could not be done; ``found`` then says why."""

    name: str
    question: str
    passed: bool | None
    found: str
    expected: str
    failing: Sequence[Proof] = ()
    """Sampled rows that fail it; a few of them may not be enough to fail the store."""


def all_checks(
    proofs: Sequence[Proof], census: Census, spec: CodecSpec, stored: CodecSpec, settings: VerifyConfig
) -> list[Check]:
    return [
        codec_check(spec, stored),
        lengths_check(census),
        codes_check(proofs),
        corpus_check(proofs),
        encoding_check(proofs, settings.min_equal_codes),
        contrast_check(proofs, settings.min_share),
        mel_check(proofs, settings.max_mel_distance, settings.min_share),
        envelope_check(proofs, settings.min_share),
        delay_check(proofs, settings.min_share),
        level_check(proofs, settings.min_share),
        words_check(proofs),
    ]


def codec_check(spec: CodecSpec, stored: CodecSpec) -> Check:
    same = spec.fingerprint == stored.fingerprint
    found = f"fingerprint {stored.fingerprint[:24]}" + ("" if same else f", but this codec has {spec.fingerprint[:24]}")
    return Check("codec", "Is this the codec that made the store?", same, found, "the same fingerprint")


def lengths_check(census: Census) -> Check:
    wrong = census.wrong_lengths
    found = f"{wrong:,} of {census.rows:,} rows do not: {census.first_wrong_length}"
    found = found if wrong else f"all {census.rows:,} rows"
    question = "Does every row of the store have as many codes as its seconds ask for?"
    return Check("lengths", question, wrong == 0, found, "every row of the store")


def codes_check(proofs: Sequence[Proof]) -> Check:
    broken = [proof for proof in proofs if proof.broken]
    found = f"{len(proofs) - len(broken)} of {len(proofs)} rows" + first(broken, lambda proof: proof.broken)
    question = "Are the codes those that were written, each in its place's range?"
    return Check("codes", question, not broken, found, "every sampled row", broken)


def corpus_check(proofs: Sequence[Proof]) -> Check:
    question = "Does the corpus have this row, with the same id, speaker and text?"
    if not any_source(proofs):
        return missing("corpus", question, "every sampled row")
    unlike = [proof for proof in proofs if proof.unlike]
    found = f"{len(proofs) - len(unlike)} of {len(proofs)} rows" + first(unlike, lambda proof: proof.unlike)
    return Check("corpus", question, not unlike, found, "every sampled row", unlike)


def encoding_check(proofs: Sequence[Proof], wanted: float) -> Check:
    """1 for a codec that repeats itself. In float32, another machine flips a few codes in a million; in bf16 more, and
    the config says how many. Worthless codes reach 0.13 in a row at most, so half of what is wanted of all is wanted
    of each: a single bad row is found among many good ones."""
    question = "Does encoding the corpus's row again give the same codes?"
    expected = f"{percent(wanted)} of all codes, {percent(wanted / 2)} in each row"
    rows = known(proofs, lambda proof: proof.again)
    if not rows:
        return missing("encoding", question, expected)
    total = sum(again.total for _, again in rows)
    share = sum(again.equal for _, again in rows) / total
    worst, least = min(rows, key=lambda row: row[1].share)
    found = f"{percent(share)} of all codes, {percent(least.share)} in {name(worst)}"
    if share == 1:
        found = f"all {total:,} codes"
    failing = [proof for proof, again in rows if again.share < wanted / 2]
    return Check("encoding", question, share >= wanted and not failing, found, expected, failing)


def contrast_check(proofs: Sequence[Proof], share: float) -> Check:
    """Needs no threshold of its own: by chance, one row in the number of rows is nearest to its source."""
    question = "Is each decoded row nearer to its own source than to any other row's?"
    rows = known(proofs, own_and_nearest_other)
    if 0 < len(rows) < FEWEST_ROWS:
        return missing("contrast", question, f"{percent(share)} of the rows", "too few rows to compare")
    own, other = np.median([distances for _, distances in rows], axis=0) if rows else (0.0, 0.0)
    found = f"own source {own:.1f} dB away, nearest other {other:.1f} dB (medians)"
    return share_check("contrast", question, rows, lambda distances: distances[0] < distances[1], share, found)


def own_and_nearest_other(proof: Proof) -> tuple[float, float] | None:
    if proof.mel_distance is None or proof.nearest_other is None:
        return None
    return proof.mel_distance, proof.nearest_other


def mel_check(proofs: Sequence[Proof], limit: float, share: float) -> Check:
    """The own source is 3.6 to 5.1 dB away, worthless codes are 12 to 19 dB (medians)."""
    question = "Does each decoded row sound like its source?"
    rows = known(proofs, lambda proof: proof.mel_distance)
    rule = f"mel distance of {limit:g} dB at most"
    return share_check("mel", question, rows, lambda distance: distance <= limit, share, spread(rows, "dB"), rule)


def envelope_check(proofs: Sequence[Proof], share: float) -> Check:
    question = "Does its loudness rise and fall with the source's?"
    rows = known(proofs, lambda proof: proof.envelope)
    rule = f"correlation of {MIN_ENVELOPE} at least"
    return share_check("energy", question, rows, lambda envelope: envelope >= MIN_ENVELOPE, share, spread(rows), rule)


def delay_check(proofs: Sequence[Proof], share: float) -> Check:
    question = "Does it begin when the source does?"
    rows = known(proofs, lambda proof: proof.delay)
    usual = statistics.median_low(delay for _, delay in rows) if rows else 0

    def is_well(delay: int) -> bool:
        return abs(delay - usual) <= MAX_JITTER and abs(delay) <= MAX_DELAY

    milliseconds = 1000 * HOP_SECONDS
    found, rule = f"median {usual * milliseconds:.0f} ms", f"within {MAX_DELAY * milliseconds:.0f} ms"
    return share_check("delay", question, rows, is_well, share, found, rule)


def level_check(proofs: Sequence[Proof], share: float) -> Check:
    question = "Is it as loud as the source?"
    decoded = known(proofs, lambda proof: (proof.decoded, proof.gain) if proof.decoded else None)
    rows = [row for row in decoded if row[1][1] is not None] or decoded
    gains = known(proofs, lambda proof: proof.gain)

    def is_well(row: tuple[Sound, float | None]) -> bool:
        sound, gain = row
        return sound.finite and sound.level >= MIN_LEVEL_DB and abs(gain or 0.0) <= MAX_GAIN_DB

    found = spread(gains, "dB") if gains else "only silence and broken sound were looked for"
    return share_check("level", question, rows, is_well, share, found, f"within {MAX_GAIN_DB:g} dB")


def words_check(proofs: Sequence[Proof]) -> Check:
    """As for the contrast of sound: the heard words must be nearer to the row's own text than to any other's."""
    question = "Does a speech recogniser hear the row's own text in it?"
    heard = known(proofs, lambda proof: proof.text_is_nearest)
    if not heard:
        return missing("words", question, f"{percent(MIN_HEARD)} of the rows", "no recogniser was given (asr=)")
    found = f"character error rate {percent(np.median(error_rates(proof.decoded for proof, _ in heard)))}"
    if sources := error_rates(proof.source for proof, _ in heard):
        own = sum(bool(proof.source_text_is_nearest) for proof, _ in heard)
        found += f", of the source {percent(np.median(sources))} (medians); {own} in the sources"
    return share_check("words", question, heard, bool, MIN_HEARD, found)


def error_rates(sounds: Iterable[Sound | None]) -> list[float]:
    return [sound.cer for sound in sounds if sound is not None and sound.cer is not None]


def known(proofs: Sequence[Proof], value: Callable[[Proof], T | None]) -> list[tuple[Proof, T]]:
    """The rows of which there is such a value, each with it."""
    return [(proof, found) for proof in proofs if (found := value(proof)) is not None]


def share_check(
    slug: str,
    question: str,
    rows: Sequence[tuple[Proof, T]],
    passes: Callable[[T], bool],
    share: float,
    found: str,
    rule: str = "",
) -> Check:
    """That enough of the rows pass."""
    expected = f"{rule}, {percent(share)} of the rows" if rule else f"{percent(share)} of the rows"
    if not rows:
        return missing(slug, question, expected)
    failing = [proof for proof, value in rows if not passes(value)]
    passing = len(rows) - len(failing)
    found = f"{passing} of {len(rows)} rows; {found}"
    return Check(slug, question, passing >= share * len(rows), found, expected, failing)


def missing(slug: str, question: str, expected: str, why: str = "nothing of the corpus to compare with") -> Check:
    return Check(slug, question, None, why, expected)


def any_source(proofs: Sequence[Proof]) -> bool:
    return any(proof.unlike or proof.again for proof in proofs)


def name(proof: Proof) -> str:
    return f"{proof.split}/{proof.file.stem} row {proof.row}"


def first(proofs: Sequence[Proof], what: Callable[[Proof], str]) -> str:
    return f"; {name(proofs[0])}: {what(proofs[0])}" if proofs else ""


def percent(share: float) -> str:
    """Rounded down, so that 99.99 % is not called 100."""
    return f"{np.floor(1000 * share + 1e-9) / 10:g} %"


def spread(rows: Sequence[tuple[Proof, float]], unit: str = "") -> str:
    if not rows:
        return ""
    values = np.array([value for _, value in rows])
    digits = 1 if unit else 2
    return (
        f"median {np.median(values):.{digits}f}, {values.min():.{digits}f} to {values.max():.{digits}f} {unit}".strip()
    )
