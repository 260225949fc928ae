"""The rows a run trains on: its store, the language's part of it, packed."""

from __future__ import annotations

from typing import Any

import numpy as np

from llasa.config import TrainConfig
from llasa.corpus.store import TokenStore
from llasa.errors import UserError
from llasa.packing.dataset import PackedRows
from llasa.tokens.prompt import PromptBuilder


def open_store(config: TrainConfig) -> TokenStore:
    """The store of a config.

    Raises:
        UserError: there is none, it is damaged, or it has nothing of the language.
    """
    codec = f" codec={config.model.codec or 'codec2'}" if config.model.codec != "xcodec2" else ""
    store = TokenStore(config.store, command=f"python preprocess.py lang={config.lang.code}{codec}")
    if config.lang.code not in store.manifest["languages"]:
        raise UserError(
            f"lang={config.lang.code} is not in {config.store}, which holds {', '.join(store.manifest['languages'])}",
            remedy="pass the store's language",
        )
    return store


def packed_rows(config: TrainConfig, store: TokenStore, prompt: PromptBuilder) -> PackedRows:
    """The training split's rows of the language, packed."""
    return PackedRows(
        of_language(store.rows("train"), config.lang.code),
        prompt,
        max_length=config.packing.max_length,
        window=config.packing.window,
        seed=config.seed,
    )


def of_language(rows: Any, language: str) -> Any:
    """The rows of a store's split that are in ``language``."""
    mine = np.flatnonzero(np.asarray(rows["language"]) == language)
    return rows if len(mine) == len(rows) else rows.select(mine)
