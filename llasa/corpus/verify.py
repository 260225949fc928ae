"""Proof-reading: `preprocess.py verify=true` decodes rows of a finished store and holds them against the corpus.

    store ─census─► lengths, texts, speakers of all rows (no codes)
    store ─sample─► rows ─decode─► sound ─┐
    corpus ───the same rows, prepared─────┴─► proofs ─► checks ─► verify.json and index.html; an error if one fails

The strongest check encodes the corpus's rows again: a codec repeats itself, so the codes must come back. The others
do not need that: a decoded row must be nearer to its own source than to other rows' sources, begin when it does and
be as loud. Where the corpus is gone, what is left are lengths, ranges of codes and silence, and the report says so.
That a text and its recording never belonged together, in the corpus itself, only a recogniser can hear (``asr``).

Cost: the codec's for ``verification.rows`` rows both ways, and 3.5 s for each million rows of the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from llasa.build import build
from llasa.codec.base import CodecSpec
from llasa.config import FiltersConfig, PreprocessConfig
from llasa.corpus.census import Census, take_census
from llasa.corpus.proofs import Proof, compare_with_source, decode_proofs, mel_distance, read_proofs
from llasa.corpus.recognition import Recognizer, character_error_rate, edit_distance, plain_words
from llasa.corpus.sources import Source
from llasa.corpus.store import PLAN, TokenStore, read_json
from llasa.corpus.verify_checks import Check, all_checks
from llasa.corpus.verify_page import write_page
from llasa.errors import UserError
from llasa.paths import location
from llasa.provenance import differing_keys, provenance, write_json

REPORT, PAGE = "verify.json", "index.html"
OTHERS = 31
"""Rows with which each row is contrasted."""


def verify_store(config: PreprocessConfig) -> dict[str, Any]:
    """Proof-read the store of ``config``, write the report beside it and return it.

    Raises:
        UserError: there is no finished store, it was made with another codec, ``asr`` cannot be used, or a check
            failed: then the report is there too.
    """
    settings = config.verification
    store = TokenStore(config.store, command=command(config))
    output = report_folder(config)
    recognizer = Recognizer(config.asr) if config.asr else None
    codec = build(config.codec)
    require_same_kind(codec.spec, store)
    source, notes = open_source(config, store)
    filters = filters_of(store, config.filters)

    census = take_census(store, codec)
    if census.rows == 0:
        raise UserError(f"{config.store} has no rows", remedy=f"see {config.store}/rejects.jsonl for the reasons")
    places = sample_rows(census, store, settings.rows, settings.seed)
    proofs: list[Proof] = []
    with tqdm(total=len(places), unit=" rows", desc="proof-reading", disable=None) as progress:
        for (split, file), rows in groupby(places, key=lambda place: place[:2]):
            shard = read_proofs(split, file, [index for *_, index in rows], store.codec)
            for proof in shard:
                proof.corpus_split = store.corpus_split(split)
            if source is not None:
                compare_with_source(shard, source, codec, filters)
            decode_proofs(shard, codec)
            proofs += shard
            progress.update(len(shard))
    contrast(proofs)
    if recognizer is not None:
        listen(proofs, recognizer, codec.spec.sample_rate)

    checks = all_checks(proofs, census, codec.spec, store.codec, settings)
    failed = [check for check in checks if check.passed is False]
    report = {
        "store": str(config.store),
        "passed": not failed,
        "notes": notes + remarks(census),
        "checks": [
            {key: getattr(check, key) for key in ("name", "question", "passed", "found", "expected")}
            for check in checks
        ],
        "rows": [describe(proof, checks) for proof in proofs],
        "census": census.to_dict(),
        "seconds": store.manifest["seconds"],
        "codes": store.manifest["codes"],
        "dropped": store.manifest["dropped"],
        "asr": config.asr,
        "settings": vars(settings),
        "codec": store.codec.to_dict(),
        "source": store.manifest["source"],
        "provenance": provenance(),
    }
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / REPORT, report)
    write_page(output / PAGE, report, proofs, codec.spec.sample_rate)
    done = sum(check.passed is not None for check in checks)
    if failed:
        found = "; ".join(f"{check.name}: {check.found} (expected: {check.expected})" for check in failed)
        raise UserError(
            f"{config.store} does not hold what its corpus says: {len(failed)} of {done} checks failed. {found}"
            + "".join(f". {note}" for note in notes),
            remedy=f"see {output / PAGE}",
        )
    print(f"{config.store}: {len(proofs)} rows proof-read, {done} of {len(checks)} checks done, all passed")
    for note in report["notes"]:
        print(f"note: {note}")
    print(f"report: {output / PAGE}")
    return report


def command(config: PreprocessConfig) -> str:
    """What makes the store, to be shown where there is none."""
    parts = [f"{key}={node['name']}" for key, node in (("dataset", config.dataset), ("codec", config.codec))]
    return f"python preprocess.py {parts[0]} lang={config.lang.code} {parts[1]}"


def report_folder(config: PreprocessConfig) -> Path:
    """Beside the store, not in it: the same inputs give the same bytes there, and a report has rows of its own."""
    root, given = location(config.store), config.verification.output
    output = location(given) if given else root.with_name(f"{root.name}-report")
    if output == root or root in output.parents:
        raise UserError(f"verification.output={given} is inside the store", remedy="choose a folder outside it")
    return output


def require_same_kind(spec: CodecSpec, store: TokenStore) -> None:
    """Other weights are a finding of the checks; another kind of codec cannot even decode the codes."""
    stored = store.codec
    if (spec.sample_rate, spec.code_ranges) != (stored.sample_rate, stored.code_ranges):
        raise UserError(
            f"{store.root} was made with the codec {stored.name}, not {spec.name}", remedy=f"pass codec={stored.name}"
        )


def open_source(config: PreprocessConfig, store: TokenStore) -> tuple[Source | None, list[str]]:
    """The corpus, if it is still there, and what has to be said about it."""
    try:
        source = build(config.dataset)
        described = source.describe()
    except UserError as error:
        return None, [
            f"The corpus cannot be read ({error}), so no row was compared with its recording: wrong codes that are in "
            "range are not found."
        ]
    differing = differing_keys(store.manifest["source"], described)
    if not differing:
        return source, []
    return source, [
        f"The corpus is not as it was when the store was made: {', '.join(sorted(differing))} differ. Rows are looked "
        "up by their old numbers."
    ]


def filters_of(store: TokenStore, default: FiltersConfig) -> FiltersConfig:
    """The filters that the store was made with: they decide what is cut off a recording before it is encoded."""
    path = store.root / PLAN
    made_with = read_json(path).get("filters", {}) if path.is_file() else {}
    known = {field.name for field in fields(FiltersConfig)}
    return replace(default, **{key: value for key, value in made_with.items() if key in known})


def sample_rows(census: Census, store: TokenStore, count: int, seed: int) -> list[tuple[str, Path, int]]:
    """(split, shard, place in it) of ``count`` rows, in order: each split by its share and at least once, and within a
    split one row from each of so many equal stretches, so that all parts of a long store are looked at."""
    rng = np.random.default_rng(seed)
    places: list[tuple[str, Path, int]] = []
    for split in store.splits:
        files = store.files(split)
        ends = np.cumsum([census.shard_rows[file] for file in files])
        rows = int(ends[-1]) if len(ends) else 0
        wanted = min(rows, max(1, round(count * rows / census.rows)))
        for stretch in range(wanted):
            number = int(rng.integers(stretch * rows // wanted, (stretch + 1) * rows // wanted))
            shard = int(np.searchsorted(ends, number, side="right"))
            places.append((split, files[shard], number - int(ends[shard - 1] if shard else 0)))
    return places


def contrast(proofs: Sequence[Proof]) -> None:
    """How near each decoded row is to the nearest of other rows' sources. The same recording twice does not count."""
    sounding = [(proof, proof.decoded, proof.source) for proof in proofs if proof.decoded and proof.source]
    for index, (proof, decoded, source) in enumerate(sounding):
        others = [sounding[(index + step) % len(sounding)][2] for step in range(1, min(OTHERS + 1, len(sounding)))]
        distances = [mel_distance(decoded, other) for other in others if not np.array_equal(other.pcm, source.pcm)]
        proof.nearest_other = min(distances, default=None)


def listen(proofs: Sequence[Proof], recognizer: Recognizer, sample_rate: int) -> None:
    """Let the recogniser write down each row and its source, and compare with the texts of all rows."""
    texts = [(proof, plain_words(proof.text, proof.language)) for proof in proofs]
    with tqdm(total=len(proofs), unit=" rows", desc="listening", disable=None) as progress:
        for index, (proof, text) in enumerate(texts):
            others = {texts[(index + step) % len(texts)][1] for step in range(1, min(OTHERS + 1, len(texts)))} - {text}
            nearest = {}
            for kind, sound in (("decoded", proof.decoded), ("source", proof.source)):
                if sound is None:
                    continue
                waveform = sound.pcm.astype(np.float32) / 32767
                sound.heard = recognizer.transcribe(waveform, sample_rate, proof.language)
                sound.cer = character_error_rate(proof.text, sound.heard, proof.language)
                words = plain_words(sound.heard, proof.language)
                nearest[kind] = all(distance(words, text) < distance(words, other) for other in others)
            proof.text_is_nearest = nearest.get("decoded")
            proof.source_text_is_nearest = nearest.get("source")
            progress.update()


def distance(first: str, second: str) -> float:
    """Edits per character of the longer text, 0 to 1: a short text is no nearer to everything than a long one."""
    return edit_distance(first, second) / max(1, len(first), len(second))


def remarks(census: Census) -> list[str]:
    """What looks odd in the whole store without being wrong for certain."""
    correlation = census.text_correlation
    if census.rows < 100 or correlation is None or correlation >= 0.3:
        return []
    return [
        f"The lengths of texts and recordings hardly go together (correlation {correlation:.2f}, speech has 0.8 and "
        "more): texts may belong to other recordings. Listen, or pass asr= to be sure."
    ]


def describe(proof: Proof, checks: Sequence[Check]) -> dict[str, Any]:
    """A row of the report."""
    numbers = {
        "seconds": proof.seconds,
        "num_codes": len(proof.codes),
        "characters_per_second": proof.characters_per_second,
        "equal_codes": proof.again.share if proof.again else None,
        "mel_distance": proof.mel_distance,
        "nearest_other": proof.nearest_other,
        "envelope": proof.envelope,
        "delay_seconds": None if proof.delay is None else proof.delay / 100,
        "level": proof.decoded.level if proof.decoded else None,
        "gain": proof.gain,
        "cer": proof.decoded.cer if proof.decoded else None,
        "source_cer": proof.source.cer if proof.source else None,
    }
    return {
        **{key: getattr(proof, key) for key in ("split", "index", "row", "id", "speaker", "language")},
        "shard": f"{proof.split}/{proof.file.name}",
        "text": proof.text,
        "text_given": proof.text_given,
        **{key: round(value, 4) if isinstance(value, float) else value for key, value in numbers.items()},
        "heard": proof.decoded.heard if proof.decoded else None,
        "source_heard": proof.source.heard if proof.source else None,
        "fails": [check.name for check in checks if any(proof is failing for failing in check.failing)],
        "problems": [problem for problem in (proof.broken, proof.unlike) if problem],
    }
