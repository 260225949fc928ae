"""The rows a run trains on: its stores, the languages of them that are asked for, mixed and packed.

    store or stores ─languages─► sources ─lengths─► PackedRows

A source, which the mixture gives a share to, is a language of a store. It is called LANGUAGE where there is one store,
else STORE/LANGUAGE.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow.compute as pc

from llasa.codec.base import CodecSpec
from llasa.config import TrainConfig
from llasa.config.shared import MULTILINGUAL
from llasa.corpus.store import MANIFEST, PLAN, TokenStore
from llasa.errors import UserError
from llasa.model.llama import SpeechModel
from llasa.packing.dataset import PackedRows, Source
from llasa.packing.lengths import cached_lengths
from llasa.paths import location
from llasa.tokens.prompt import PromptBuilder

SPLIT = "train"


@dataclass(frozen=True)
class Stores:
    """The stores of a run by name; all speak ``codec``. ``languages`` are the codes to train on."""

    stores: dict[str, TokenStore]
    languages: tuple[str, ...]

    @property
    def codec(self) -> CodecSpec:
        return next(iter(self.stores.values())).codec

    def facts(self) -> dict[str, Any]:
        """What tells these stores from others, as JSON: the codec and the splits of each."""
        return {
            name: {"codec": store.codec.to_dict(), "splits": store.manifest["splits"]}
            for name, store in self.stores.items()
        }


def open_stores(config: TrainConfig) -> Stores:
    """`store`, or `stores` where they are given.

    Raises:
        UserError: one is not there, damaged, of another codec than the first, or has nothing of the language.
    """
    code = config.lang.code
    places = config.stores or {"store": config.store}
    if code == MULTILINGUAL and not config.stores and not (location(config.store) / MANIFEST).is_file():
        raise UserError(
            f"there is no store of several languages at {config.store}",
            remedy="name it with store=, or one for each language with "
            "'stores={it: data/cml_tts-it-xcodec2, de: data/cml_tts-de-xcodec2}'",
        )
    codec = f" codec={config.model.codec or 'codec2'}" if config.model.codec != "xcodec2" else ""
    command = f"python preprocess.py lang={'…' if code == MULTILINGUAL else code}{codec}"
    opened = {name: TokenStore(place, command=command) for name, place in places.items()}
    first, *others = opened
    for name in others:
        # Where its weights were found may differ, what is made of them may not.
        if replace(opened[name].codec, checkpoint="") != replace(opened[first].codec, checkpoint=""):
            codecs = [f"{opened[key].root} has codes of {describe(opened[key].codec)}" for key in (first, name)]
            raise UserError(
                f"stores.{first} and stores.{name} differ in their codec ({', '.join(codecs)})",
                remedy="make both with the same codec and the same settings of it",
            )
    for name, store in opened.items():
        held = store.manifest["languages"]
        if code != MULTILINGUAL and code not in held:
            raise UserError(
                f"{store.root} has no lang={code}, only {', '.join(held)}",
                remedy=f"take stores.{name} out" if config.stores else "pass the store's language",
            )
    every = sorted({language for store in opened.values() for language in store.manifest["languages"]})
    return Stores(opened, tuple(every) if code == MULTILINGUAL else (code,))


def describe(codec: CodecSpec) -> str:
    return f"{codec.name} {codec.fingerprint}"


def with_speaker_tags(speech: SpeechModel, tags: bool) -> SpeechModel:
    """The model with prompts as `speaker_tags` says, whatever those of the checkpoint were that it begins with."""
    rules = replace(speech.card.rules, speaker_tags=tags)
    card = replace(speech.card, rules=rules)
    if not tags:
        card = replace(card, speakers=(), num_speakers=0)
    return replace(speech, card=card, prompt=PromptBuilder(speech.tokenizer, speech.vocabulary, rules))


def packed_rows(config: TrainConfig, stores: Stores, prompt: PromptBuilder) -> PackedRows:
    """The training splits' rows of the languages, mixed and packed.

    Raises:
        UserError: there are none, none fits into a row, `mixture.weights` does not fit the sources, or there are to be
            speaker tags and no row has a speaker.
    """
    sources = [
        Source(
            f"{name}/{language}" if len(stores.stores) > 1 else language,
            rows,
            cached_lengths(rows, prompt, store_identity(store) | {"language": language}),
        )
        for name, store in stores.stores.items()
        for language, rows in by_language(store.rows(SPLIT), stores.languages).items()
    ]
    if not sources:
        places = ", ".join(str(store.root) for store in stores.stores.values())
        raise UserError(
            f"the {SPLIT} split of {places} has nothing in {', '.join(stores.languages)}",
            remedy="see rejects.jsonl there for the reasons",
        )
    data = PackedRows(
        sources,
        prompt,
        max_length=config.packing.max_length,
        window=config.packing.window,
        seed=config.seed,
        mode=config.packing.mode,
        group_rows=config.trainer.rows_per_step,
        temperature=config.mixture.temperature,
        weights=config.mixture.weights,
    )
    if prompt.rules.speaker_tags and not data.speakers:
        raise UserError(
            f"speaker_tags=true, but no row of {', '.join(str(store.root) for store in stores.stores.values())} "
            "that is trained on has a speaker",
            remedy="leave speaker_tags out, or make a store of a corpus that tells its speakers",
        )
    return data


def trained_speakers(data: PackedRows) -> tuple[str, ...]:
    """Speakers whose tags are learned, those with the most examples first; none without tags."""
    if not data.prompt.rules.speaker_tags:
        return ()
    return tuple(sorted(data.speakers, key=lambda name: (-data.speakers[name], name)))


def trained_languages(data: PackedRows) -> tuple[str, ...]:
    """Codes of the languages that have a share in the mixture."""
    return tuple(dict.fromkeys(source.name.rpartition("/")[2] for source in data.sources if source.share))


def by_language(rows: Any, languages: tuple[str, ...]) -> dict[str, Any]:
    """The rows of a store's split in each of the languages that it has any of."""
    column = rows.data.column("language")  # ten million strings would be slow as Python objects
    parts = {language: np.flatnonzero(pc.equal(column, language).to_numpy()) for language in languages}
    return {
        language: rows if len(mine) == len(rows) else rows.select(mine) for language, mine in parts.items() if len(mine)
    }


def store_identity(store: TokenStore) -> dict[str, Any]:
    """What tells the rows of a store's split from any others, wherever the store lies."""
    digests = {
        name: hashlib.sha256((store.root / name).read_bytes()).hexdigest()
        for name in (PLAN, MANIFEST)
        if (store.root / name).is_file()
    }
    return digests | {"files": [[file.name, file.stat().st_size] for file in store.files(SPLIT)]}
