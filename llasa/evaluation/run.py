"""The job of `evaluate.py`: checkpoints say the same sentences, and what they said is measured.

    store or texts ─► sentences ─► systems (checkpoints, codec, recordings) ─► clips ─► rows ─► report.json, index.html

OUTPUT/report.json   every number (:mod:`llasa.evaluation.report`)
OUTPUT/index.html    the same to read and to listen to (:mod:`llasa.evaluation.page`)
OUTPUT/audio/NAME/   the clips (:mod:`llasa.evaluation.systems`)

What can be wrong is found before a model is loaded; the same command again makes only the clips that are missing.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from llasa.config import EvaluateConfig
from llasa.corpus.store import TokenStore
from llasa.device import resolve_device
from llasa.errors import UserError
from llasa.evaluation.measure import Measures, load_measures, measure
from llasa.evaluation.page import write_page
from llasa.evaluation.publish import check_hand_over, hand_over
from llasa.evaluation.report import as_text, build_report, finite, measuring_versions
from llasa.evaluation.sentences import Sentence, from_store, from_texts
from llasa.evaluation.systems import (
    RECORDING,
    Codecs,
    System,
    find_recordings,
    names_of,
    resynthesise,
    speak,
)
from llasa.model.checkpoint import CheckpointCard, fingerprint, require_same_codec
from llasa.model.loading import load_tokenizer
from llasa.provenance import provenance, write_json

REPORT, PAGE = "report.json", "index.html"


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Measure the checkpoints of ``config``, write report and page, and return the report.

    Raises:
        UserError: no such checkpoint, store, split, recording or recogniser; a checkpoint of another codec than the
            store's; a measure that was asked for and is not there; an unwritable output.
    """
    check_hand_over(config)
    checkpoints = dict(zip(names_of(config.every_checkpoint), config.every_checkpoint, strict=True))
    cards = {name: read_card(path) for name, path in checkpoints.items()}
    store = open_store(config, cards)
    sentences = read_sentences(config, store, cards)
    recordings = find_recordings(sentences, config.reference) if config.reference is not None else None
    make_folder(Path(config.output))
    return evaluate_with(config, checkpoints, cards, store, sentences, recordings, load_measures(config))


def evaluate_with(
    config: EvaluateConfig,
    checkpoints: dict[str, str],
    cards: dict[str, CheckpointCard],
    store: TokenStore | None,
    sentences: list[Sentence],
    recordings: System | None,
    measures: Measures,
) -> dict[str, Any]:
    """:func:`evaluate` with its inputs opened: speak, measure, report."""
    output, device = Path(config.output), resolve_device(config.device)
    codecs = Codecs(config.codec, device)
    systems = [speak(name, path, sentences, config, codecs, device) for name, path in checkpoints.items()]
    if store is not None:
        spec = store.codec
        systems.append(resynthesise(sentences, lambda: codecs.get(spec, str(config.store)), spec, output))
    if recordings is not None:
        systems.append(recordings)
    reference = systems[-1] if store is not None else None
    rows = measure(sentences, systems, reference, measures, output)
    report = build_report(
        rows,
        [about(system, checkpoints, cards) for system in systems],
        config,
        sentences=len(sentences),
        store=facts_of(config, store),
        texts=config.texts,
        reference=reference.name if reference else None,
        asr=getattr(measures.listener, "name", None),
        speaker_model=config.speaker_model if measures.encoder is not None else None,
        device=device,
        notes=measures.notes + remarks(sentences, reference, config),
        provenance=provenance(),
        versions=measuring_versions(),
    )
    write_json(output / REPORT, report)
    write_page(output / PAGE, report, output, config.page_clips)
    print(as_text(report))
    for note in report["notes"]:
        print(f"note: {note}")
    print(f"report: {output / REPORT}, to listen to: {output / PAGE}")
    hand_over(config, report)
    return report


def read_card(checkpoint: str) -> CheckpointCard:
    load_tokenizer(checkpoint)  # light, and says what is wrong with a folder or a hub's name
    return CheckpointCard.load(checkpoint)


def open_store(config: EvaluateConfig, cards: dict[str, CheckpointCard]) -> TokenStore | None:
    """The store, which must hold codes of every checkpoint's codec: its recordings are what they are compared with."""
    if config.store is None:
        return None
    store = TokenStore(config.store)
    for name, card in cards.items():
        require_same_codec(card.codec, store.codec, f"checkpoint {name}", f"the store {config.store}")
    return store


def read_sentences(
    config: EvaluateConfig, store: TokenStore | None, cards: dict[str, CheckpointCard]
) -> list[Sentence]:
    if store is not None:
        return from_store(store, chosen_split(config.split, store.splits), config.limit)
    assert config.texts is not None, "neither a store nor texts"
    named = next((language for card in cards.values() for language in card.languages), "en")
    return from_texts(config.texts, config.language or named, config.limit)


def chosen_split(given: str | None, there: Collection[str]) -> str:
    return given or next((split for split in ("test", "dev") if split in there), "test")


def make_folder(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error.strerror}", remedy="choose another output=") from None


def about(system: System, checkpoints: dict[str, str], cards: dict[str, CheckpointCard]) -> dict[str, Any]:
    """What the report says of a system beside its numbers."""
    known: dict[str, Any] = {"name": system.name, "kind": system.kind}
    if system.kind == "checkpoint":
        card = cards[system.name]
        known |= {
            "checkpoint": checkpoints[system.name],
            "fingerprint": fingerprint(checkpoints[system.name]),
            "card": {
                "prompt": card.rules.to_dict(),
                "codec": card.codec.to_dict(),
                "languages": list(card.languages),
                "max_length": card.max_length,
            },
        }
    return known


def facts_of(config: EvaluateConfig, store: TokenStore | None) -> dict[str, Any] | None:
    if store is None:
        return None
    return {
        "path": config.store,
        "split": chosen_split(config.split, store.splits),
        "rows": store.manifest["splits"][chosen_split(config.split, store.splits)]["rows"],
        "codec": store.codec.to_dict(),
        "source": finite(store.manifest["source"]),
    }


def remarks(sentences: list[Sentence], reference: System | None, config: EvaluateConfig) -> list[str]:
    """What a reader of the numbers has to know."""
    if reference is None:
        return []
    if reference.name == RECORDING:
        missing = len(sentences) - len(reference.clips)
        note = f"{missing} of {len(sentences)} sentences have no recording in {config.reference}: no SIM and no speed."
        return [note] if missing else []
    return [
        "Voice and speed are compared with the codec's resynthesis: a store keeps codes, not recordings. "
        "Pass reference=FOLDER to compare with the recordings (and to have them as ground truth)."
    ]
