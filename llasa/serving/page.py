"""The page at `/`: a text in, speech that is heard while it is still being spoken.

    GET /                     index.html
    GET /page/NAME            its style, modules and icon, all from page_files/
    GET /page/settings.json   what the page has to know of this server, see :class:`PageSettings`

All else it does through the public API (/v1/audio/speech, /v1/voices), as any client would, so the page needs no
rights of its own. None of these routes needs an API key; the page asks for one where the API answers 401.

**Why plain HTML, CSS and ES modules, and not Gradio.** Speech is played by Web Audio from the first bytes of the
stream, without a gap or a click where pieces meet, which a Gradio audio element cannot; a policy forbids every other
host, inline code and frames (Gradio needs inline scripts and asks for fonts and statistics elsewhere); labels, keys
and contrast are ours to get right; and it is 100 kB without a build step instead of 100 MB of packages.

The files are read once, so what a client asks for is a name in a table and never a path. Cost: nothing to speak of.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TypedDict

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import JSONResponse

FILES = Path(__file__).with_name("page_files")
INDEX = "index.html"

POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self'",
    "media-src": "blob:",  # a recording is heard before it is sent
    "connect-src": "'self'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "base-uri": "'none'",
}
HEADERS = {
    "Content-Security-Policy": "; ".join(f"{kind} {sources}" for kind, sources in POLICY.items()),
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Language(TypedDict):
    code: str
    """ISO 639-1."""
    name: str
    """In English, such as Italian."""


class SamplingDefaults(TypedDict):
    """What the server uses where a request says nothing."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float


class PageSettings(TypedDict):
    """What the page has to know of the server: GET /page/settings.json, open to everybody."""

    model: str
    """As requests name it."""
    languages: list[Language]
    """Of the checkpoint; the first ones on top."""
    default_language: str
    """A code, also where ``languages`` is empty."""
    speakers: list[str]
    """That the model was trained with, by their tags; [] = it has no choice of them."""
    sample_rate: int
    """Hz of the model's speech."""
    max_characters: int
    """Of a text (Unicode code points)."""
    formats: list[str]
    """``response_format``s that the server can make, such as ["wav", "mp3", "opus", "flac", "pcm"]."""
    speed: tuple[float, float] | None
    """Least and greatest ``speed``; none = only 1."""
    uploads: bool
    """Whether POST /v1/voices takes recordings."""
    needs_key: bool
    """Whether the API wants a key."""
    sampling: SamplingDefaults
    examples: list[str]
    """Sentences to try that suit this checkpoint, in its default language; [] = the page's own."""
    transcribes: bool
    """Whether a recording may come without its transcript (``asr`` is set)."""
    voice_seconds: float
    """That a recording may last."""
    upload_bytes: int
    """That an upload may have."""


def page_router(settings: PageSettings) -> APIRouter:
    files = read_files()
    router = APIRouter(include_in_schema=False)

    @router.api_route("/", methods=["GET", "HEAD"])
    def index(request: Request) -> Response:
        return files[INDEX].response(request)

    @router.api_route("/page/settings.json", methods=["GET", "HEAD"])
    def settings_file() -> Response:
        return JSONResponse(settings, headers=HEADERS | {"Cache-Control": "no-store"})

    @router.api_route("/page/{name}", methods=["GET", "HEAD"])
    def file(name: str, request: Request) -> Response:
        if name not in files:
            raise HTTPException(404, "there is no such file")
        return files[name].response(request)

    return router


class PageFile:
    """A file in memory, with the tag by which a browser asks whether it has changed."""

    def __init__(self, path: Path) -> None:
        self.content = path.read_bytes()
        self.tag = f'"{hashlib.sha256(self.content).hexdigest()[:16]}"'
        self.media_type = MEDIA_TYPES[path.suffix]

    def response(self, request: Request) -> Response:
        headers = HEADERS | {"ETag": self.tag, "Cache-Control": "no-cache"}  # kept, but asked about each time
        if request.headers.get("if-none-match") == self.tag:
            return Response(status_code=304, headers=headers)
        return Response(self.content, media_type=self.media_type, headers=headers)


MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


def read_files() -> dict[str, PageFile]:
    """Name → file of page_files/."""
    return {path.name: PageFile(path) for path in sorted(FILES.iterdir()) if path.suffix in MEDIA_TYPES}
