"""The page's files and headers; what it does is tested in a browser (test_page_browser.py)."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from llasa.serving.page import FILES, page_router

SETTINGS = {
    "model": "llasa",
    "languages": [{"code": "it", "name": "Italian"}],
    "default_language": "it",
    "speakers": [],
    "sample_rate": 16_000,
    "max_characters": 400,
    "formats": ["wav", "mp3"],
    "speed": None,
    "uploads": False,
    "needs_key": False,
    "sampling": {"temperature": 0.8, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0},
    "examples": [],
    "transcribes": False,
    "voice_seconds": 30.0,
    "upload_bytes": 1_000_000,
}
SCRIPTS = sorted(path.name for path in FILES.glob("*.js"))


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI()
    app.include_router(page_router(SETTINGS))
    return TestClient(app)


class Tags(HTMLParser):
    def __init__(self, content: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {key: value or "" for key, value in attrs}))


@pytest.mark.parametrize("path", ["/", "/page/page.js", "/page/page.css", "/page/icon.svg", "/page/settings.json"])
def test_every_answer_bears_a_policy_without_other_hosts_and_inline_code(client, path):
    """Fails when a file is answered without the headers, or the policy gets a wildcard or unsafe-inline."""
    answer = client.get(path)
    assert answer.status_code == 200
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert {policy[kind] for kind in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert not re.search(r"unsafe|\*|https?:", " ".join(policy.values()))
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "microphone=(self)" in answer.headers["permissions-policy"]


def test_the_page_has_no_inline_code_and_all_that_it_names_is_there(client):
    """Fails when index.html gets a style attribute, a handler or a script of its own, or names a file that is not."""
    content = client.get("/").text
    tags = Tags(content).found
    assert not [(tag, name) for tag, attributes in tags for name in attributes if name == "style" or name[:2] == "on"]
    assert not [tag for tag, attributes in tags if tag == "style" or (tag == "script" and "src" not in attributes)]
    named = [a.get("src") or a.get("href") or "" for tag, a in tags if tag in ("script", "link", "img")]
    assert len(named) == 4
    for name in named:
        assert client.get("/" + name).status_code == 200, name
    icons = {a["id"] for tag, a in tags if tag == "symbol"}
    used = {a["href"].removeprefix("#") for tag, a in tags if tag == "use"}
    assert used <= icons


def test_modules_import_each_other_and_nothing_else(client):
    """Fails when a module is missing, or is there and nobody imports it."""
    reached, waiting = set(), ["page.js"]
    while waiting:
        name = waiting.pop()
        reached.add(name)
        answer = client.get(f"/page/{name}")
        assert answer.status_code == 200, name
        assert answer.headers["content-type"].startswith("text/javascript")
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|innerHTML|\beval\(", answer.text)
        named = re.findall(r'from "\./(.*?)";', answer.text) + re.findall(r'new URL\("(.*?\.js)", import', answer.text)
        waiting += set(named) - reached
    assert sorted(reached) == SCRIPTS


def test_it_is_small():
    """Fails when somebody adds a library."""
    assert len(SCRIPTS) > 8
    assert sum(path.stat().st_size for path in FILES.iterdir()) < 120_000


def test_a_browser_that_has_a_file_is_not_sent_it_again(client):
    first = client.get("/page/page.js")
    again = client.get("/page/page.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get("/page/page.js", headers={"If-None-Match": '"other"'}).status_code == 200
    assert client.head("/").status_code == 200


@pytest.mark.parametrize(
    "name",
    ["nothing.js", "page.py", "..%2Fpage.py", "%2e%2e/page.py", "..%2f..%2f..%2fREADME.md", "%00", "index.html%00"],
)
def test_a_name_that_is_not_in_the_table_is_not_found(client, name):
    """Fails when a name becomes a path."""
    assert client.get(f"/page/{name}").status_code == 404


def test_settings_are_asked_for_each_time(client):
    answer = client.get("/page/settings.json")
    assert answer.json() == SETTINGS
    assert answer.headers["cache-control"] == "no-store"
