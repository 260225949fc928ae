"""The hub itself, played by a server on this machine: revisions, refusals, what was downloaded before, `hf://`.

In processes of their own, because the address of the hub and its switch are read when its client is imported.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.corpus.hub_server import Repository, serve_hub
from tests.corpus.recordings import write_hub_corpus
from tests.corpus.test_webdataset import sample, write_tar

ROOT = Path(__file__).parents[2]
COMMIT = "c0ffee" + "0" * 34

CLIENT = """
import json, sys, time
from llasa.build import build
from llasa.entry import compose_config
from llasa.errors import UserError

for overrides in json.loads(sys.argv[1]):
    start = time.monotonic()
    try:
        source = build(compose_config("preprocess", overrides).dataset)
        rows = [fetch() for _, fetch in source.rows("train", 0, source.splits()["train"])]
        result = {"description": source.describe(), "texts": [row.text for row in rows]}
        assert all(isinstance(row.audio, bytes) and row.audio for row in rows)
    except UserError as error:
        result = {"error": str(error)}
    print(json.dumps(result | {"seconds": time.monotonic() - start}))
"""


def ask(endpoint: str, home: Path, *requests: list[str], offline: bool = False) -> list[dict]:
    """What becomes of each list of overrides of `preprocess`, in one process."""
    hub = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1" if offline else "0"}
    cache = {"HF_DATASETS_CACHE": str(home / "datasets")}
    result = subprocess.run(
        [sys.executable, "-c", CLIENT, json.dumps(requests)],
        cwd=ROOT,
        env={**os.environ, **hub, **cache},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert "Retrying" not in result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    write_hub_corpus(folder / "cml", "cml_tts", {"train": 4, "dev": 2, "test": 1}, 1)
    for language in ("de", "fr"):
        place = folder / "emilia" / "Emilia" / language.upper() / f"{language.upper()}-B000000.tar"
        write_tar(place, [sample(f"{language}-{number}", language=language) for number in range(3)])
    repositories = {
        "ylacombe/cml-tts": Repository(folder / "cml", COMMIT),
        "amphion/Emilia-Dataset": Repository(folder / "emilia", COMMIT),
        "secret/all": Repository(folder / "cml", COMMIT, gated="."),
        "secret/files": Repository(folder / "cml", COMMIT, gated="parquet$"),
        "secret/tars": Repository(folder / "emilia", COMMIT, gated="tar$"),
    }
    with serve_hub(repositories) as endpoint:
        yield endpoint, repositories


def test_a_data_set_of_the_hub_is_held_to_its_commit(hub, tmp_path):
    endpoint, repositories = hub
    streamed, prepared, at_commit = ask(
        endpoint,
        tmp_path,
        ["dataset=cml_tts", "dataset.streaming=true"],
        ["dataset=cml_tts"],
        ["dataset=cml_tts", f"dataset.revision={COMMIT}"],
    )
    assert len(set(prepared["texts"])) == 4
    assert streamed["texts"] == prepared["texts"] == at_commit["texts"]
    assert prepared["description"] == at_commit["description"]
    assert streamed["description"]["revision"] == prepared["description"]["revision"] == COMMIT
    assert streamed["description"]["files"] == {"train": 1, "validation": 1, "test": 1}
    read = [request for request in repositories["ylacombe/cml-tts"].requests if "parquet" in request]
    assert read
    assert all(COMMIT in request for request in read)  # never a moving branch

    # What was prepared is there without the hub, and known to be of the same commit.
    (again,) = ask("http://127.0.0.1:9", tmp_path, ["dataset=cml_tts"], offline=True)
    assert again["description"] == prepared["description"]
    assert again["texts"] == prepared["texts"]


def test_emilia_is_read_from_the_hub(hub, tmp_path):
    (german,) = ask(hub[0], tmp_path, ["dataset=emilia", "lang=de"])
    assert german["texts"] == ["Testo de-0.", "Testo de-1.", "Testo de-2."]
    assert german["description"]["files"] == 1
    read = [request for request in hub[1]["amphion/Emilia-Dataset"].requests if "/resolve/" in request]
    assert read
    assert all(f"/resolve/{COMMIT}/Emilia/DE/" in request for request in read)


def test_every_refusal_of_the_hub_is_one_line_with_a_remedy(hub, tmp_path):
    cases = {
        "secret/all": r"secret/all.* is gated: .*; accept its terms on its page and run `hf auth login`",
        "secret/files": r"secret/files.* is gated: .*; accept its terms on its page and run `hf auth login`",
        "no/body": r"there is no no/body on the hub, or it is private; check dataset.path, or run `hf auth login`",
    }
    requests = [["dataset=hub", f"dataset.path={path}", f"dataset.streaming={streaming}"]
                for path in cases for streaming in ("true", "false")]  # fmt: skip
    requests += [
        ["dataset=emilia", "lang=de", "dataset.path=hf://datasets/secret/tars/Emilia/DE"],
        ["dataset=cml_tts", "dataset.revision=v0"],
        ["dataset=cml_tts", "dataset.config=klingon"],
    ]
    expected = [pattern for pattern in cases.values() for _ in range(2)] + [
        r"Emilia/DE/DE-B000000.tar is gated: .* run `hf auth login`",
        r"ylacombe/cml-tts on the hub has no such revision; check dataset.revision",
        r"ylacombe/cml-tts has no configuration 'klingon'; set dataset.config to one of italian",
    ]
    results = ask(hub[0], tmp_path, *requests)
    assert len(results) == len(expected) == 9
    for request, result, pattern in zip(requests, results, expected, strict=True):
        assert "\n" not in result["error"], request
        assert re.search(pattern, result["error"]), (request, result["error"])


def test_without_a_network_the_answer_comes_at_once(tmp_path):
    nowhere = "http://127.0.0.1:9"  # nothing listens there
    results = ask(
        nowhere, tmp_path, ["dataset=cml_tts"], ["dataset=mls", "dataset.streaming=true"], ["dataset=emilia", "lang=de"]
    )
    for result in results:
        assert result["error"].startswith("cannot reach ")
        assert "HF_HUB_OFFLINE=1" in result["error"]
        assert result["seconds"] < 10  # the first one imports `datasets`
    assert results[1]["seconds"] < 2
