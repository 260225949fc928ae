"""The part of W&B's server that a run talks to, on this machine: enough for the real client to upload a run.

It keeps the rows of each run's history, answers how far a run has come, and can stop answering like a dead network.
"""

from __future__ import annotations

import gzip
import json
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROJECT = {"id": "p", "name": "my-project", "entity": {"id": "e", "name": "me"}}
USER = {"id": "1", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}


class WandbServer:
    """Listens on 127.0.0.1 while used as a context.

    Attributes:
        requests: paths that were asked for.
        rows: by run id, the rows of its history in order.
        silent_after_start: once a run is known, accept connections and answer nothing, as behind a dead router.
    """

    def __init__(self, silent_after_start: bool = False) -> None:
        self.silent_after_start = silent_after_start
        self.requests: list[str] = []
        self.rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._stop = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.requests.append(self.path)
                if outer.silent_after_start and "file_stream" in self.path:
                    outer._stop.wait(60)
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                content = json.dumps(outer.answer(self.path, body)).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PUT = do_POST

            def log_message(self, *arguments: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *arguments: object) -> None:
                pass  # the client hangs up on what it need not read

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> WandbServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        if path.endswith("/file_stream"):
            history = json.loads(body).get("files", {}).get("wandb-history.jsonl")
            if history:
                rows = self.rows[path.split("/")[-2]]
                rows[history["offset"] :] = map(json.loads, history["content"])
            return {}
        if path != "/graphql":
            return {}
        request = json.loads(body)
        variables, query = request.get("variables") or {}, request["query"]
        if "upsertBucket" in query:
            bucket = {"id": "b", "name": variables["name"], "displayName": variables["displayName"], "config": "{}"}
            bucket |= {"description": None, "sweepName": None, "project": PROJECT, "historyLineCount": 0}
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
        if "RunResumeStatus" in query:
            return {"data": {"model": PROJECT | {"bucket": self.known(variables["name"])}}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/files/{name}"} for name in variables["files"]]
            return {"data": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}}
        return {"data": {"viewer": USER} if "viewer" in query else {}}

    def known(self, run_id: str) -> dict[str, Any] | None:
        """What a client that resumes a run asks for."""
        rows = self.rows.get(run_id)
        if not rows:
            return None
        facts = {"id": "b", "name": run_id, "displayName": run_id, "config": "{}", "summaryMetrics": "{}", "tags": []}
        facts |= {
            "notes": None,
            "logLineCount": 0,
            "eventsLineCount": 0,
            "eventsTail": "[]",
            "wandbConfig": '{"t": {}}',
        }
        return facts | {"historyLineCount": len(rows), "historyTail": json.dumps([json.dumps(rows[-1])])}
