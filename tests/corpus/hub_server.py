"""A stand-in for the Hugging Face hub on this machine: enough of its API for `datasets` and `hf://` to read from it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Repository:
    """A data set: the files of a folder. Those that ``gated`` matches are refused, as to somebody not logged in."""

    folder: Path
    commit: str
    gated: str | None = None
    requests: list[str] = field(default_factory=list)

    def files(self) -> dict[str, Path]:
        return {str(file.relative_to(self.folder)): file for file in sorted(self.folder.rglob("*")) if file.is_file()}


@contextlib.contextmanager
def serve_hub(repositories: dict[str, Repository]) -> Iterator[str]:
    """Serve data sets by their OWNER/NAME; the address is what `HF_ENDPOINT` wants."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer()

        def do_HEAD(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            self.answer(self.rfile.read(int(self.headers["Content-Length"])))

        def answer(self, body: bytes = b"") -> None:
            path = unquote(urlsplit(self.path).path)
            of_api, _, rest = path.removeprefix("/").partition("datasets/")
            name = "/".join(rest.split("/")[:2])
            if name not in repositories:
                return self.refuse(401, "RepoNotFound")
            repository = repositories[name]
            repository.requests.append(f"{self.command} {path}")
            rest = rest.removeprefix(name).removeprefix("/")
            verb, _, rest = rest.partition("/")
            revision, _, file = rest.partition("/")
            if revision not in ("", "main", repository.commit):
                return self.refuse(404, "RevisionNotFound")
            if of_api and verb in ("", "revision"):
                return self.send({"id": name, "sha": repository.commit, "siblings": [], "private": False})
            if of_api and verb == "tree":
                recursive = parse_qs(urlsplit(self.path).query).get("recursive", [""])[0].lower() == "true"
                return self.tree(repository, file, recursive)
            if of_api and verb == "paths-info":
                wanted = parse_qs(body.decode()).get("paths") or json.loads(body)["paths"]
                found = [self.entry(repository, path) for path in wanted]
                return self.send([entry for entry in found if entry])
            if verb == "resolve":
                return self.content(repository, file)
            return self.refuse(404, "EntryNotFound")

        def entry(self, repository: Repository, path: str) -> dict | None:
            files = repository.files()
            if path in files:
                size = files[path].stat().st_size
                return {"type": "file", "path": path, "size": size, "oid": hashlib.sha1(path.encode()).hexdigest()}
            if any(file.startswith(f"{path}/") for file in files):
                return {"type": "directory", "path": path, "size": 0, "oid": "0" * 40}
            return None

        def tree(self, repository: Repository, folder: str, recursive: bool) -> None:
            inside = [file for file in repository.files() if not folder or file.startswith(f"{folder}/")]
            if not inside:
                return self.refuse(404, "EntryNotFound")
            if not recursive:
                depth = len(Path(folder).parts) + 1
                inside = sorted({"/".join(Path(file).parts[:depth]) for file in inside})
            return self.send([self.entry(repository, path) for path in inside])

        def content(self, repository: Repository, path: str) -> None:
            if path not in repository.files():
                return self.refuse(404, "EntryNotFound", repository.commit)
            if repository.gated and re.search(repository.gated, path):
                return self.refuse(401, "GatedRepo")
            content = repository.files()[path].read_bytes()
            headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": repository.commit}
            status = 200
            if span := self.headers.get("Range"):
                first, _, last = span.removeprefix("bytes=").partition("-")
                end = min(int(last or len(content)) + 1, len(content))
                headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(content)}"
                content, status = content[int(first) : end], 206
            return self.send_bytes(content, status, headers)

        def refuse(self, status: int, code: str, commit: str = "") -> None:
            headers = {"X-Error-Code": code, "X-Error-Message": code}
            self.send_bytes(b"{}", status, headers | ({"X-Repo-Commit": commit} if commit else {}))

        def send(self, value: object) -> None:
            self.send_bytes(json.dumps(value).encode(), 200, {"Content-Type": "application/json"})

        def send_bytes(self, content: bytes, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
