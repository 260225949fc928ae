"""The checks of a proof-read store, each with the reason for its threshold.

Numbers in the comments are of 64 Italian prompts (8 kHz) through Codec2, and of the same codes made worthless: given
to other rows, offset by a constant, rotated by a quarter, frames permuted, reversed. XCodec2 is closer to its source
than Codec2, a vocoder, so its thresholds are wide.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from llasa.codec.base import CodecSpec
from llasa.config import VerifyConfig
from llasa.corpus.acoustics import HOP_SECONDS
from llasa.corpus.census import Census
from llasa.corpus.proofs import Proof

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
    again = [proof for proof in proofs if proof.equal_share is not None]
    if not again:
        return missing("encoding", question, expected)
    share = sum(proof.equal_codes for proof in again) / sum(proof.codes_again for proof in again)
    worst = min(again, key=lambda proof: proof.equal_share)
    found = f"{percent(share)} of all codes, {percent(worst.equal_share)} in {name(worst)}"
    if share == 1:
        found = f"all {sum(proof.codes_again for proof in again):,} codes"
    failing = [proof for proof in again if proof.equal_share < wanted / 2]
    return Check("encoding", question, share >= wanted and not failing, found, expected, failing)


def contrast_check(proofs: Sequence[Proof], share: float) -> Check:
    """Needs no threshold of its own: by chance, one row in the number of rows is nearest to its source."""
    question = "Is each decoded row nearer to its own source than to any other row's?"
    compared = [proof for proof in proofs if proof.nearest_other is not None]
    if 0 < len(compared) < FEWEST_ROWS:
        return missing("contrast", question, f"{percent(share)} of the rows", "too few rows to compare")
    own, other = median(compared, "mel_distance"), median(compared, "nearest_other")
    rows = Rows(compared, lambda proof: proof.mel_distance < proof.nearest_other, share)
    return rows.check("contrast", question, f"own source {own:.1f} dB away, nearest other {other:.1f} dB (medians)")


def mel_check(proofs: Sequence[Proof], limit: float, share: float) -> Check:
    """The own source is 3.6 to 5.1 dB away, worthless codes are 12 to 19 dB (medians)."""
    question = "Does each decoded row sound like its source?"
    compared = [proof for proof in proofs if proof.mel_distance is not None]
    rows = Rows(compared, lambda proof: proof.mel_distance <= limit, share)
    return rows.check("mel", question, spread(compared, "mel_distance", "dB"), f"mel distance of {limit:g} dB at most")


def envelope_check(proofs: Sequence[Proof], share: float) -> Check:
    question = "Does its loudness rise and fall with the source's?"
    compared = [proof for proof in proofs if proof.envelope is not None]
    rows = Rows(compared, lambda proof: proof.envelope >= MIN_ENVELOPE, share)
    return rows.check("energy", question, spread(compared, "envelope"), f"correlation of {MIN_ENVELOPE} at least")


def delay_check(proofs: Sequence[Proof], share: float) -> Check:
    question = "Does it begin when the source does?"
    compared = [proof for proof in proofs if proof.delay is not None]
    usual = statistics.median_low(proof.delay for proof in compared) if compared else 0
    rows = Rows(compared, lambda proof: abs(proof.delay - usual) <= MAX_JITTER and abs(proof.delay) <= MAX_DELAY, share)
    milliseconds = 1000 * HOP_SECONDS
    return rows.check(
        "delay", question, f"median {usual * milliseconds:.0f} ms", f"within {MAX_DELAY * milliseconds:.0f} ms"
    )


def level_check(proofs: Sequence[Proof], share: float) -> Check:
    question = "Is it as loud as the source?"
    decoded = [proof for proof in proofs if proof.decoded is not None]
    if any_source(proofs):
        decoded = [proof for proof in decoded if proof.gain is not None] or decoded

    def is_well(proof: Proof) -> bool:
        return proof.decoded.finite and proof.decoded.level >= MIN_LEVEL_DB and abs(proof.gain or 0.0) <= MAX_GAIN_DB

    with_source = [proof for proof in decoded if proof.gain is not None]
    found = spread(with_source, "gain", "dB") if with_source else "only silence and broken sound were looked for"
    return Rows(decoded, is_well, share).check("level", question, found, f"within {MAX_GAIN_DB:g} dB")


def words_check(proofs: Sequence[Proof]) -> Check:
    """As for the contrast of sound: the heard words must be nearer to the row's own text than to any other's."""
    question = "Does a speech recogniser hear the row's own text in it?"
    heard = [proof for proof in proofs if proof.text_is_nearest is not None]
    if not heard:
        return missing("words", question, f"{percent(MIN_HEARD)} of the rows", "no recogniser was given (asr=)")
    rows = Rows(heard, lambda proof: bool(proof.text_is_nearest), MIN_HEARD)
    found = f"character error rate {percent(np.median([proof.decoded.cer for proof in heard]))}"
    sources = [proof.source.cer for proof in heard if proof.source is not None and proof.source.cer is not None]
    if sources:
        own = sum(bool(proof.source_text_is_nearest) for proof in heard)
        found += f", of the source {percent(np.median(sources))} (medians); {own} in the sources"
    return rows.check("words", question, found)


class Rows:
    """Rows of which a share must pass."""

    def __init__(self, proofs: Sequence[Proof], passes: Callable[[Proof], bool], share: float) -> None:
        self.total, self.share = len(proofs), share
        self.failing = [proof for proof in proofs if not passes(proof)]

    def check(self, slug: str, question: str, found: str, rule: str = "") -> Check:
        expected = f"{rule}, {percent(self.share)} of the rows" if rule else f"{percent(self.share)} of the rows"
        if not self.total:
            return missing(slug, question, expected)
        passing = self.total - len(self.failing)
        found = f"{passing} of {self.total} rows; {found}"
        return Check(slug, question, passing >= self.share * self.total, found, expected, self.failing)


def missing(slug: str, question: str, expected: str, why: str = "nothing of the corpus to compare with") -> Check:
    return Check(slug, question, None, why, expected)


def any_source(proofs: Sequence[Proof]) -> bool:
    return any(proof.unlike or proof.equal_codes is not None for proof in proofs)


def name(proof: Proof) -> str:
    return f"{proof.split}/{proof.file.stem} row {proof.row}"


def first(proofs: Sequence[Proof], what: Callable[[Proof], str]) -> str:
    return f"; {name(proofs[0])}: {what(proofs[0])}" if proofs else ""


def percent(share: float) -> str:
    """Rounded down, so that 99.99 % is not called 100."""
    return f"{np.floor(1000 * share + 1e-9) / 10:g} %"


def median(proofs: Sequence[Proof], key: str) -> float:
    return float(np.median([getattr(proof, key) for proof in proofs])) if proofs else 0.0


def spread(proofs: Sequence[Proof], key: str, unit: str = "") -> str:
    if not proofs:
        return ""
    values = np.array([getattr(proof, key) for proof in proofs])
    digits = 1 if unit else 2
    return (
        f"median {np.median(values):.{digits}f}, {values.min():.{digits}f} to {values.max():.{digits}f} {unit}".strip()
    )
