"""Publishing a store to a hub: one made here of `http.server`, which the real client speaks to in its own process."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import datasets
import numpy as np
import pytest
import yaml

from llasa.corpus import publish
from llasa.corpus.publish import card, check_access, files_to_publish, publish_store
from llasa.corpus.store import TokenStore, plan_shards, schema, write_manifest, write_plan, write_shard
from llasa.errors import UserError
from llasa.types import EncodedUtterance
from tests.conftest import write_toy_store
from tests.corpus.recordings import write_folder_corpus
from tests.corpus.stores import contents
from tests.model.tiny import CODEC, random_codes

ROOT = Path(__file__).parents[2]
TOKEN = "hf_of_a_test"
NAME = "me/corpus"
LICENSES = ("cc-by-4.0", "cc-by-nc-nd-4.0", "unknown", "other")


def write_store(root: Path, counts: dict[str, int], empty: tuple[str, ...] = (), seed: int = 0) -> Path:
    """A store in shards of four rows; the rows of the shards in ``empty`` were all dropped."""
    generator = np.random.default_rng(seed)
    plan = {"codec": CODEC.to_dict(), "source": {"name": "made up"}}
    shards = plan_shards(counts, 4)
    write_plan(root, plan)
    for shard in shards:
        rows = [
            EncodedUtterance(
                id=f"{shard.split}-{i}",
                text=f"frase {i}, è così",
                text_given=f"Frase {i} 😀",
                speaker=f"s{i % 2}",
                language="it",
                seconds=0.2,
                codes=random_codes(10, generator).astype(np.uint16),
            )
            for i in range(shard.start, shard.stop)
        ]
        dropped = [{"row": str(i), "reason": "silent", "detail": 'è "zitto"'} for i in range(shard.start, shard.stop)]
        no_rows = shard.file in empty
        write_shard(root, shard, CODEC, [] if no_rows else rows, dropped if no_rows else [])
    write_manifest(root, shards, plan, {"commit": "abc"})
    return root


# --- a hub -----------------------------------------------------------------------------------------------------------


class Hub(ThreadingHTTPServer):
    """As much of the hub as the client needs to make a data set repository, fill it and download it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.private: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.commits: list[list[str]] = []
        """Of each commit what it did: `+file`, `-file`."""
        self.objects: dict[str, bytes] = {}
        self.uploads = 0
        self.refuse: dict[str, int] = {}
        """Beginning of `METHOD path` (and the name of a new repository) → status."""
        self.uploads_left: int | None = None

    def sha(self) -> str:
        return f"{len(self.commits):040x}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: Any) -> None: ...

    def answer(self, value: Any = None, status: int = 200, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, content in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), content)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def handle_request(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self.body()
        what = f"{self.command} {path}"
        named = f"{what} {json.loads(body)['name']}" if path == "/api/repos/create" else what
        for beginning, status in self.server.refuse.items():
            if named.startswith(beginning):
                return self.answer({"error": f"refused in a test, {status}"}, status)
        if what.startswith("PUT /objects/"):  # signed addresses: no token
            return self.put_object(path.rpartition("/")[2], body)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid username or password."}, 401)
        for pattern, method in ROUTES:
            if match := re.fullmatch(pattern, what):
                return method(self, *match.groups(), body)
        return self.answer({"error": f"no {what} here"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def put_object(self, oid: str, body: bytes) -> None:
        if self.server.uploads_left == 0:
            self.close_connection = True
            return self.answer({"error": "full"}, 507)
        if self.server.uploads_left is not None:
            self.server.uploads_left -= 1
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.uploads += 1
        self.server.objects[oid] = body
        return self.answer({})

    def who(self, _: bytes) -> None:
        self.answer({"name": "me", "type": "user", "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def create(self, body: bytes) -> None:
        fields = json.loads(body)
        name = f"{fields['organization'] or 'me'}/{fields['name']}"
        assert fields["type"] == "dataset"
        there = name in self.server.files
        if not there:
            self.server.files[name] = {".gitattributes": b"*.parquet filter=lfs\n"}
            self.server.private[name] = fields.get("visibility") == "private" or fields.get("private") is True
        self.answer({"url": f"{self.server.url}/datasets/{name}"}, 409 if there else 200)

    def validate(self, body: bytes) -> None:
        fields = json.loads(body)
        header = yaml.safe_load(fields["content"].split("---")[1])
        if fields["repoType"] != "dataset" or header["license"] not in LICENSES:
            return self.answer(
                {"errors": [{"message": '"license" must be one of [cc-by-4.0, …]'}], "warnings": []}, 400
            )
        return self.answer({"errors": [], "warnings": []})

    def info(self, name: str, _: Any, __: bytes) -> None:
        if name not in self.server.files:
            return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        return self.answer({"id": name, "sha": self.server.sha(), "private": self.server.private[name]})

    def tree(self, name: str, folder: str | None, _: bytes) -> None:
        files, deep = self.server.files[name], "recursive=true" in self.path
        prefix = f"{folder}/" if folder else ""
        names = [file for file in files if file.startswith(prefix) and (deep or "/" not in file[len(prefix) :])]
        folders = set() if deep else {file.split("/")[0] for file in files if "/" in file and not folder}
        if folder and not names:
            return self.answer({"error": "none"}, 404, X_Error_Code="EntryNotFound")
        answers = [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(folders)]
        for path in names:
            entry = {"type": "file", "path": path, "size": len(files[path]), "oid": oid(path, files[path])}
            pointer = {"lfs": {"oid": entry["oid"], "size": entry["size"], "pointerSize": 130}}
            answers.append(entry | (pointer if lfs(path) else {}))
        return self.answer(answers)

    def preupload(self, name: str, body: bytes) -> None:
        there = self.server.files[name]
        answers = []
        for file in json.loads(body)["files"]:
            path = file["path"]
            assert len(base64.b64decode(file["sample"])) == min(file["size"], 512)
            mode = {"path": path, "uploadMode": "lfs" if lfs(path) else "regular", "shouldIgnore": False}
            answers.append(mode | ({"oid": oid(path, there[path])} if path in there else {}))
        self.answer({"files": answers})

    def batch(self, name: str, body: bytes) -> None:
        objects = json.loads(body)["objects"]
        for thing in objects:
            if thing["oid"] not in self.server.objects:
                thing["actions"] = {"upload": {"href": f"{self.server.url}/objects/{thing['oid']}"}}
        self.answer({"objects": objects, "transfer": "basic"})

    def commit(self, name: str, body: bytes) -> None:
        files, done = self.server.files[name], []
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                assert line["key"] == "header"
                assert value["summary"]
                continue
            done.append(("-" if line["key"] == "deletedFile" else "+") + value["path"])
        self.server.commits.append(done)
        self.answer({"commitUrl": f"{self.server.url}/datasets/{name}/commit/x", "commitOid": self.server.sha()})

    def resolve(self, name: str, file: str, _: bytes) -> None:
        content = self.server.files[name].get(file)
        if content is None:
            return self.answer({"error": "none"}, 404, X_Error_Code="EntryNotFound")
        return self.answer(content, ETag=f'"{oid(file, content)}"', X_Repo_Commit=self.server.sha())


def lfs(path: str) -> bool:
    return path.endswith(".parquet")


def oid(path: str, content: bytes) -> str:
    if lfs(path):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


REPOSITORY = r"/api/datasets/([^/]+/[^/]+)"
ROUTES = [
    (r"GET /api/whoami-v2", Handler.who),
    (r"POST /api/repos/create", Handler.create),
    (r"POST /api/validate-yaml", Handler.validate),
    (rf"GET {REPOSITORY}(/revision/\w+)?", Handler.info),
    (rf"GET {REPOSITORY}/tree/\w+(?:/(\w+))?", Handler.tree),
    (rf"POST {REPOSITORY}/preupload/main", Handler.preupload),
    (r"POST /datasets/([^/]+/[^/]+)\.git/info/lfs/objects/batch", Handler.batch),
    (rf"POST {REPOSITORY}/commit/main", Handler.commit),
    (r"(?:GET|HEAD) /datasets/([^/]+/[^/]+)/resolve/\w+/(.+)", Handler.resolve),
]


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


PROGRAM = """
import os, sys
from llasa.corpus import publish
from llasa.errors import UserError
publish.FILES_PER_COMMIT = {files_per_commit}
for call in {calls}:
    try:
        exec(call)
    except UserError as error:
        print("error:", error, file=sys.stderr)
"""


def run(hub: Hub | str, folder: Path, *calls: str, files_per_commit: int = 500) -> tuple[list[str], list[str]]:
    """What the calls print, on both streams, in a process that may speak to the hub and has nobody's token or cache."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {
        "HF_ENDPOINT": hub if isinstance(hub, str) else hub.url,
        "HF_HOME": str(folder / "home"),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",  # its protocol is the hub's own; LFS is what it falls back to
        "PYTHONPATH": str(ROOT),
        "NO_PROXY": "127.0.0.1",
    }
    program = PROGRAM.format(calls=calls, files_per_commit=files_per_commit)
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines(), result.stderr.splitlines()


def call(store: Path, name: str = NAME, more: str = "") -> str:
    return f"publish.publish_store({str(store)!r}, {name!r}{more})"


# --- publishing ------------------------------------------------------------------------------------------------------


def test_a_store_is_published_and_comes_back(hub, tmp_path):
    """Through the client both ways: what is downloaded opens as a store, and `datasets` reads the same rows."""
    counts = {"train": 11, "validation": 3, "test": 4}
    root = write_store(tmp_path / "store", counts, empty=("train/00001.parquet", "test/00000.parquet"))
    before = contents(root)
    output, errors = run(hub, tmp_path, call(root))
    assert output == [
        "its card says `license: unknown`: state the licence of the recordings with license=…",
        f"published: {hub.url}/datasets/{NAME}",
    ]
    assert errors == []  # no progress bars where nobody looks
    assert hub.private == {NAME: True}
    assert len(hub.commits) == 1
    sent = dict(hub.files[NAME])
    del sent[".gitattributes"]
    header = yaml.safe_load(sent.pop("README.md").decode().split("---")[1])
    assert sent == before == contents(root)
    assert header["configs"][0]["data_files"] == [
        {"split": "train", "path": ["train/00000.parquet", "train/00002.parquet"]},
        {"split": "validation", "path": "validation/*.parquet"},
    ]

    back, rows = tmp_path / "back", tmp_path / "rows.json"
    run(
        hub,
        tmp_path,
        f"import huggingface_hub as h; h.snapshot_download({NAME!r}, repo_type='dataset', local_dir={str(back)!r})",
        f"import datasets; loaded = datasets.load_dataset({NAME!r})",
        f"import json; json.dump({{k: v.to_list() for k, v in loaded.items()}}, open({str(rows)!r}, 'w'))",
    )
    ours, theirs = TokenStore(root), TokenStore(back)
    assert theirs.manifest == ours.manifest
    assert contents(back).keys() == hub.files[NAME].keys()
    from_hub = json.loads(rows.read_text())
    from_folder = {split: rows.to_list() for split, rows in datasets.load_dataset(str(back)).items()}
    assert from_hub == from_folder
    assert {split: len(rows) for split, rows in from_hub.items()} == {"train": 7, "validation": 3}
    assert from_hub["train"][0]["text_given"] == "Frase 0 😀"
    for split, given in from_hub.items():
        mine = ours.rows(split).with_format(None).to_list()
        assert mine == theirs.rows(split).with_format(None).to_list()
        assert [{key: value for key, value in row.items() if key != "text_given"} for row in given] == mine
        assert [row["id"] for row in given] == [f"{split}-{i}" for i in range(counts[split]) if not 4 <= i < 8]


def test_preprocess_publishes_the_store_it_made_and_says_so_once(hub, tmp_path):
    corpus = write_folder_corpus(tmp_path / "corpus", 3, seed=0)
    options = ["dataset=folder", f"dataset.path={corpus}", "lang=it", "codec=codec2", f"store={tmp_path}/store",
               f"push_to_hub={NAME}", "filters.characters_per_second=null"]  # fmt: skip
    program = f"import llasa.corpus.run as r, llasa.entry as e; r.run(e.compose_config('preprocess', {options}))"
    output, _ = run(hub, tmp_path, program)
    assert [line for line in output if hub.url in line] == [f"published: {hub.url}/datasets/{NAME}"]
    assert contents(tmp_path / "store").items() <= hub.files[NAME].items()


def test_publishing_again_sends_what_changed(hub, tmp_path):
    root = write_store(tmp_path / "store", {"train": 16})
    _, errors = run(hub, tmp_path, call(root), call(root))
    assert not [line for line in errors if "error" in line]
    assert (hub.uploads, len(hub.commits)) == (4, 1)

    # A shorter store of other rows under the same name: the old one's shards must not be found beside its own.
    shorter = write_store(tmp_path / "shorter", {"train": 5, "test": 4}, seed=1)
    run(hub, tmp_path, call(shorter))
    assert [line for line in hub.commits[1] if line.startswith("-")] == [
        "-train/00002.parquet",
        "-train/00003.parquet",
    ]
    assert hub.files[NAME].keys() - {"README.md", ".gitattributes"} == contents(shorter).keys()
    assert hub.uploads == 7


def test_a_broken_off_upload_goes_on(hub, tmp_path):
    """Two files a commit; the hub has no room after the third shard."""
    root = write_store(tmp_path / "store", {"train": 24})
    hub.uploads_left = 3
    _, (error,) = run(hub, tmp_path, call(root), files_per_commit=2)
    assert re.match(r"error: the upload broke off: .*507.*; check the network and run it again: what is there", error)
    assert hub.commits == [["+plan.json", "+train/00000.parquet"], ["+train/00001.parquet", "+train/00002.parquet"]]
    assert "manifest.json" not in hub.files[NAME]
    hub.uploads_left = None
    output, _ = run(hub, tmp_path, call(root), files_per_commit=2)
    assert output[-1] == f"published: {hub.url}/datasets/{NAME}"
    assert hub.uploads == 6
    assert [file for commit in hub.commits for file in commit] == [
        "+plan.json",
        *(f"+train/0000{i}.parquet" for i in range(6)),
        "+rejects.jsonl",
        "+manifest.json",
        "+README.md",
    ]


def test_public_with_a_licence_and_under_the_own_name(hub, tmp_path):
    root = write_store(tmp_path / "store", {"train": 4})
    output, _ = run(hub, tmp_path, call(root, "corpus", ", private=False, license='cc-by-4.0'"))
    assert output == [f"published: {hub.url}/datasets/me/corpus"]
    assert hub.private == {"me/corpus": False}
    card = hub.files["me/corpus"]["README.md"].decode()
    assert "\nlicense: cc-by-4.0\n" in card
    assert "not stated" not in card
    assert "hf download me/corpus " in card


def test_a_repository_of_something_else_is_left_alone(hub, tmp_path):
    root = write_store(tmp_path / "store", {"train": 4})
    hub.files["me/other"] = {".gitattributes": b"", "train/00000.parquet": b"someone's"}
    hub.files["me/new"] = {".gitattributes": b"", "README.md": b"made on the web page"}
    output, errors = run(hub, tmp_path, call(root, "me/other"), call(root, "me/new"))
    assert re.search("holds something else than a token store; choose another name", errors[0])
    assert len(hub.files["me/other"]) == 2
    assert output[-1] == f"published: {hub.url}/datasets/me/new"
    assert hub.files["me/new"]["README.md"].startswith(b"---\nlicense")


def test_what_the_hub_refuses_is_told_in_one_line(hub, tmp_path):
    hub.refuse = {
        "POST /api/repos/create closed": 403,
        "POST /api/datasets/me/read-only/preupload": 403,
        "POST /api/datasets/me/long/commit": 413,
    }
    again = "run it again: what is there is not sent twice"
    cases = [
        ("me/closed", "", ["you may not write to me/closed (", "403", "run `hf auth login`"]),
        ("me/read-only", "", ["you may not write to me/read-only (", "run `hf auth login`"]),
        ("me/long", "", ["the hub answers 413 for me/long: ", again]),
        ("me/a/b", "", ["push_to_hub='me/a/b' is not valid", "use OWNER/NAME"]),
        ("me/a b", "", ["push_to_hub='me/a b' is not valid", "use OWNER/NAME"]),
        (NAME, ", license='mine'", ["refuses the card", '"license" must be one of', "use an identifier of https://"]),
    ]
    root = write_store(tmp_path / "store", {"train": 4})
    before = contents(root)
    output, errors = run(hub, tmp_path, *(call(root, name, more) for name, more, _ in cases))
    assert output == []
    assert len(errors) == len(cases)
    for line, (name, _, words) in zip(errors, cases, strict=True):
        assert line.startswith("error: "), name
        assert [word for word in words if word not in line] == [], line
    assert hub.commits == []
    assert contents(root) == before


def test_access_is_asked_for_and_checked_before_the_work(hub, tmp_path):
    root = write_store(tmp_path / "store", {"train": 4})
    check = f"publish.check_access({NAME!r})"
    output, errors = run(
        hub,
        tmp_path,
        f"{check}; print('may')",
        "publish.check_access('a b')",
        f"os.environ['HF_TOKEN'] = 'hf_someone'; {check}",
        call(root),
        f"del os.environ['HF_TOKEN']; {check}",
        call(root),
    )
    assert output == ["may"]
    login = "; run `hf auth login` with a token that may write, or set HF_TOKEN"
    assert errors[0].startswith("error: push_to_hub='a b' is not valid: ")
    assert errors[1].startswith("error: the hub does not know you (Invalid user token. ")
    assert errors[2] == errors[4] == "error: the hub does not know you (Invalid username or password.)" + login
    assert errors[3] == "error: you are not logged in to the hub" + login
    assert hub.files == {}


def test_without_a_network(tmp_path):
    closed = Hub()
    closed.server_close()
    root = write_store(tmp_path / "store", {"train": 4})
    _, (error,) = run(closed.url, tmp_path, call(root))
    assert re.match("error: cannot reach the hub: .+; check the network and run it again", error)


# --- without a hub ---------------------------------------------------------------------------------------------------


def test_a_hub_that_is_switched_off(toy_store, monkeypatch):
    """conftest.py switches it off for this process."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for call in (lambda: publish_store(toy_store, NAME), lambda: check_access(NAME)):
        with pytest.raises(UserError, match=r"the hub is switched off; unset HF_HUB_OFFLINE"):
            call()


def test_only_finished_stores_with_rows_are_published(tmp_path):
    root = write_store(tmp_path / "unfinished", {"train": 4})
    (root / "manifest.json").unlink()
    with pytest.raises(UserError, match="is not finished"):
        publish_store(root, NAME)
    root = write_store(tmp_path / "damaged", {"train": 8})
    (root / "train" / "00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"train/00001\.parquet is damaged"):
        publish_store(root, NAME)
    root = write_store(tmp_path / "empty", {"train": 4}, empty=("train/00000.parquet",))
    with pytest.raises(UserError, match=r"has no rows; see rejects\.jsonl"):
        publish_store(root, NAME)


def test_the_manifest_comes_after_the_shards_and_the_plan_before(tmp_path):
    root = write_store(tmp_path / "store", {"train": 10, "test": 4})
    files = files_to_publish(TokenStore(root), NAME)
    shards = ["train/00000.parquet", "train/00001.parquet", "train/00002.parquet", "test/00000.parquet"]
    assert list(files) == ["plan.json", *shards, "rejects.jsonl", "manifest.json", "README.md"]
    assert all(files[name] == root / name for name in list(files)[:-1])
    assert isinstance(files["README.md"], bytes)


def test_a_store_elsewhere_has_the_same_files(tmp_path):
    import fsspec
    from upath import UPath

    root = write_store(tmp_path / "store", {"train": 10}, empty=("train/00001.parquet",))
    fsspec.filesystem("memory").put(f"{root}/", "/published/", recursive=True)
    remote = files_to_publish(TokenStore("memory://published"), NAME)
    local = files_to_publish(TokenStore(root), NAME)
    assert list(remote) == list(local)
    assert remote["README.md"] == local["README.md"]
    for name, place in list(remote.items())[:-1]:
        assert isinstance(place, UPath)
        assert place.read_bytes() == local[name].read_bytes()


# --- the card --------------------------------------------------------------------------------------------------------


def test_the_card_says_what_the_store_holds(tmp_path):
    root = write_store(tmp_path / "store", {"train": 12, "test": 2}, empty=("train/00001.parquet",))
    text = card(TokenStore(root), NAME, "cc-by-4.0")
    header = yaml.safe_load(text.split("---")[1])
    assert (header["license"], header["language"]) == ("cc-by-4.0", ["it"])
    assert header["task_categories"] == ["text-to-speech"]
    assert set(header["tags"]) >= {"llasa", "toy"}
    for words in (
        "\n# corpus\n",
        "10 rows, 2.0 s, 100 codes; language: it.",
        "the corpus `made up`",
        "| train | 8 | 1.6 s | 80 |",
        "| test | 2 | 0.4 s | 20 |",
        "| name | toy |",
        "| fingerprint | `toy-1` |",
        "| sample rate | 16,000 Hz |",
        "| silent | 4 |",
        "python train.py store=store",
    ):
        assert words in text
    assert str(tmp_path) not in text
    assert "None." in card(TokenStore(write_toy_store(tmp_path / "toy")), NAME)


def test_the_card_explains_every_column(toy_store):
    section = card(TokenStore(toy_store), NAME).split("## Columns")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert [name for cell in cells for name in re.findall(r"`(\w+)`", cell)] == schema(CODEC).names


def test_the_program_in_the_card_speaks(espeak_store, tmp_path, monkeypatch, capsys):
    (program,) = re.findall(r"```python\n(.*?)```", card(TokenStore(espeak_store), NAME), re.DOTALL)
    shutil.copytree(espeak_store, tmp_path / "store")
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "card", "exec"), {})
    import soundfile

    sound, rate = soundfile.read(tmp_path / "row.wav")
    row = TokenStore(espeak_store).rows("train")[0]
    assert rate == 8000
    assert len(sound) / rate == pytest.approx(row["seconds"], abs=0.05)
    assert np.abs(sound).max() > 0.05
    assert capsys.readouterr().out == f"{row['text']}\n"


def test_the_card_names_the_weights_of_its_codec(tmp_path, toy_store):
    store = TokenStore(toy_store)
    store.codec = type(store.codec)(**{**vars(store.codec), "name": "xcodec2", "checkpoint": "owner/weights"})
    text = card(store, NAME)
    assert 'build(group_config("codec", "xcodec2") | {"checkpoint": "owner/weights"})' in text
    assert "| checkpoint | owner/weights |" in text


def test_the_limit_of_a_commit_is_below_that_of_the_hub():
    assert 0 < publish.FILES_PER_COMMIT <= 1000
