"""Which held-out speech is measured while a model trains.

stores ─split, trained sources─► a fixed sample ─packed once─► HeldOutRows

The sample depends on the stores, the tokenizer, `heldout.rows` and `packing.max_length` alone: all runs of a sweep are
measured on the same speech, however they train.

With `speaker_tags` its prompts have their speakers' tags, like those that are trained. Where whole speakers are held
out (`split.by=speaker`) these are tags that the model has not learned, and its loss is that of a stranger's voice.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace

import numpy as np

from llasa.config import TrainConfig
from llasa.corpus.store import TokenStore
from llasa.device import is_first_process
from llasa.errors import UserError
from llasa.packing.dataset import PackedRows, Source
from llasa.packing.lengths import cached_lengths
from llasa.tokens.prompt import PromptBuilder
from llasa.training.data import Stores, by_language, store_identity
from llasa.types import Example

SPLITS = ("dev", "validation", "test")
"""Where nothing is named, the first of them that a store has, unless it says itself what is held out."""
SEED = 0
"""Of the sample and its packing: the same rows whatever `seed` a run of a sweep has."""


@dataclass(frozen=True)
class HeldOutRows:
    """Packed rows that are measured.

    ``languages`` and ``speakers`` are those of the examples, row after row; a speaker that the corpus does not tell is
    empty, and where there are several stores it is called STORE/SPEAKER. ``num_dropped`` examples of the split are
    longer than a row.
    """

    split: str
    rows: list[list[Example]]
    languages: list[str]
    speakers: list[str]
    num_dropped: int

    def describe(self) -> str:
        dropped = f", {self.num_dropped:,} too long for a row left out" if self.num_dropped else ""
        languages = ", ".join(sorted(set(self.languages)))
        return (
            f"held out: {len(self.languages):,} examples of {self.split} ({languages}), {len(self.rows)} rows{dropped}"
        )


@dataclass(frozen=True)
class HeldOutSource:
    """A language of a store's held-out split. ``prefix`` goes before the names of its speakers."""

    split: str
    language: str
    prefix: str
    source: Source

    def only(self, numbers: np.ndarray) -> HeldOutSource:
        rows, lengths = self.source.rows.select(numbers), self.source.lengths[numbers]
        return replace(self, source=Source(self.source.name, rows, lengths))

    def speakers(self) -> list[str]:
        return [f"{self.prefix}{speaker}" if speaker else "" for speaker in self.source.rows["speaker"]]


def heldout_rows(config: TrainConfig, stores: Stores, prompt: PromptBuilder, data: PackedRows) -> HeldOutRows | None:
    """A sample of the held-out split in every source that is trained; none (and a line that says so) without one.

    Sources have an equal share of the `heldout.rows` rows as far as they have examples.

    Args:
        data: what is trained on: a source (a language of a store) without a share there is not measured.

    Raises:
        UserError: a split that was named is not there, or has nothing.
    """
    settings, max_length = config.heldout, config.packing.max_length
    if not settings.every:
        return None
    trained = {source.name for source in data.sources if source.share}
    found = heldout_sources(stores, settings.split, prompt, trained)
    fitting = [part.only(np.flatnonzero(part.source.lengths <= max_length)) for part in found]
    if not any(len(part.source.lengths) for part in fitting):
        places = ", ".join(str(store.root) for store in stores.stores.values())
        nothing = f"nothing of {', '.join(stores.languages)} that fits into packing.max_length={max_length}"
        if settings.split is not None:
            raise UserError(
                f"heldout.split={settings.split} of {places} has {nothing}", remedy="use heldout.split=null"
            )
        if is_first_process():
            any_split = any(choose_split(store, None) for store in stores.stores.values())
            what = f"the held-out split of {places} has {nothing}" if any_split else f"no held-out split in {places}"
            print(
                f"{what}: nothing is measured while training; the store's own preprocess.py command with "
                "split.again=true split.heldout=0.1 makes one, without reading the corpus again"
            )
        return None
    numbers = sample([part.source.lengths for part in fitting], settings.rows * max_length)
    chosen = [part.only(mine) for part, mine in zip(fitting, numbers, strict=True) if len(mine)]
    sources = [part.source for part in chosen]
    packed = PackedRows(sources, prompt, max_length=max_length, window=sum(map(len, numbers)), seed=SEED)
    speakers = [part.speakers() for part in chosen]
    # The sample is drawn to fill the rows; what does not go into them is in the emptiest one.
    fullest = sorted(range(packed.num_rows), key=lambda item: -packed.num_tokens(item, item + 1))
    items = sorted(fullest[: settings.rows])
    origins = [origin for item in items for origin in zip(*packed.origins(item), strict=True)]
    return HeldOutRows(
        split=", ".join(dict.fromkeys(part.split for part in chosen)),
        rows=[packed[item] for item in items],
        languages=[chosen[source].language for source, _ in origins],
        speakers=[speakers[source][row] for source, row in origins],
        num_dropped=sum(
            len(part.source.lengths) - len(kept.source.lengths) for part, kept in zip(found, fitting, strict=True)
        ),
    )


def heldout_sources(
    stores: Stores, split: str | None, prompt: PromptBuilder, trained: Container[str]
) -> list[HeldOutSource]:
    """What the stores hold out of the sources with these names."""
    several = len(stores.stores) > 1
    found = []
    for name, store in stores.stores.items():
        chosen = choose_split(store, split)
        if chosen is None:
            continue
        files = [[file.name, file.stat().st_size] for file in store.files(chosen)]
        identity = store_identity(store) | {"split": chosen, "files": files}
        for language, rows in by_language(store.rows(chosen), stores.languages).items():
            source = f"{name}/{language}" if several else language
            if source in trained:
                lengths = cached_lengths(rows, prompt, identity | {"language": language})
                prefix = f"{name}/" if several else ""
                found.append(HeldOutSource(chosen, language, prefix, Source(source, rows, lengths)))
    return found


def choose_split(store: TokenStore, name: str | None) -> str | None:
    """The split that was named, else the one that `preprocess.py` has held out, else the first of :data:`SPLITS`.

    Raises:
        UserError: there is none of that name.
    """
    if name is not None:
        if name not in store.splits:
            raise UserError(
                f"heldout.split={name} is not in {store.root}", remedy=f"it has {', '.join(store.splits)}; or use null"
            )
        return name
    made = store.manifest.get("heldout", {}).get("split", SPLITS[0])
    return next((split for split in (made, *SPLITS) if store.manifest["splits"].get(split, {"rows": 0})["rows"]), None)


def sample(lengths: Sequence[np.ndarray], budget: int) -> list[np.ndarray]:
    """Numbers of the examples drawn from each source, in order, which together have ``budget`` tokens or a bit more.

    Each source gives an equal part of the budget; one that has less gives all, and the others share what it leaves.
    """
    chosen: list[np.ndarray] = [np.empty(0, dtype=np.int64)] * len(lengths)
    smallest_first = sorted(range(len(lengths)), key=lambda source: lengths[source].sum())
    for done, source in enumerate(smallest_first):
        drawn = np.random.default_rng(SEED).permutation(len(lengths[source]))
        tokens = lengths[source][drawn].cumsum(dtype=np.int64)
        share = max(budget, 0) // (len(lengths) - done)
        taken = drawn[: np.searchsorted(tokens, share) + 1]
        budget -= int(lengths[source][taken].sum())
        chosen[source] = np.sort(taken)
    return chosen
