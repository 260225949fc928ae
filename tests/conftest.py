"""Fixtures shared by the rooms: small stores and checkpoints made by the real code."""

import atexit
import os
import shutil
import signal
import tempfile

# A shell that starts tests in the background makes them ignore Ctrl-C; the commands that tests interrupt must not.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Read when `datasets` and the hub's client are imported, here and in the commands that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that asks a hub is a mistake, and would wait for its time-out
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="llasa-tests-")  # not the user's cache
os.environ["LLASA_CACHE"] = tempfile.mkdtemp(prefix="llasa-tests-")  # nor ours
atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)
atexit.register(shutil.rmtree, os.environ["LLASA_CACHE"], ignore_errors=True)

from pathlib import Path

import numpy as np
import pytest

from llasa.corpus.run import preprocess
from llasa.corpus.store import plan_shards, write_manifest, write_plan, write_shard
from llasa.entry import compose_config
from llasa.types import EncodedUtterance
from tests.model.tiny import CODEC, random_codes

SMALL_LLAMA = [
    "model=llasa_nano",
    "model.architecture.hidden_size=32",
    "model.architecture.intermediate_size=64",
    "model.architecture.num_hidden_layers=1",
    "logger=none",
    "device=cpu",
]


def write_toy_store(root: Path, count: int = 20, seed: int = 0, languages: tuple[str, ...] = ("it",)) -> Path:
    """A store of the toy codec (64 codes, two a frame) with random codes: Italian numbers as text."""
    generator = np.random.default_rng(seed)
    rows = [
        EncodedUtterance(
            id=f"toy-{i}",
            text=f"frase numero {'i' * i}",
            text_given=f"Frase numero {i}",
            speaker="a",
            language=languages[i % len(languages)],
            seconds=length / 50,
            codes=random_codes(length, generator).astype(np.uint16),
        )
        for i, length in enumerate(2 * generator.integers(5, 40, count))
    ]
    plan = {"codec": CODEC.to_dict(), "source": {"name": "toy"}}
    shards = plan_shards({"train": count}, count // 2)
    write_plan(root, plan)
    for shard in shards:
        write_shard(root, shard, CODEC, rows[shard.start : shard.stop], [])
    write_manifest(root, shards, plan, {})
    return root


@pytest.fixture(scope="session")
def toy_store(tmp_path_factory) -> Path:
    return write_toy_store(tmp_path_factory.mktemp("toy") / "store")


@pytest.fixture(scope="session")
def espeak_store(tmp_path_factory) -> Path:
    """Three short Italian sentences, spoken by espeak, as Codec2 codes."""
    folder = tmp_path_factory.mktemp("espeak")
    (folder / "sentences.txt").write_text("Ciao, come stai?\nIl gatto dorme.\nBuona notte a tutti.\n", encoding="utf-8")
    overrides = ["dataset=espeak", f"dataset.sentences={folder}/sentences.txt", "dataset.words_per_minute=240"]
    preprocess(compose_config("preprocess", [*overrides, "lang=it", "codec=codec2", f"store={folder}/store"]))
    return folder / "store"
