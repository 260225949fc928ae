"""The description of the API for people: GET /docs, Swagger's page over /openapi.json.

FastAPI's own page loads its script from a public CDN. This one takes the same files from the package fastapi-offline,
so that a browser asks nobody else, and a policy says so.
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

from fastapi import APIRouter, HTTPException, Response
from fastapi.openapi.docs import get_swagger_ui_html

SCRIPT, STYLE = "swagger-ui-bundle.js", "swagger-ui.css"
MEDIA_TYPES = {SCRIPT: "text/javascript", STYLE: "text/css"}


def docs_router(title: str) -> APIRouter:
    """Routes of the page and its files, which are read once."""
    router = APIRouter(include_in_schema=False)
    static = files("fastapi_offline") / "static"
    contents = {name: (static / name).read_bytes() for name in MEDIA_TYPES}
    page = get_swagger_ui_html(
        openapi_url="openapi.json",
        title=title,
        swagger_js_url=f"docs/{SCRIPT}",
        swagger_css_url=f"docs/{STYLE}",
        swagger_favicon_url="page/icon.svg",
    )
    body = bytes(page.body)
    inline = re.search(rb"<script>(.*?)</script>", body, re.S)
    assert inline is not None, "FastAPI's page has no script of its own any more"
    script = base64.b64encode(hashlib.sha256(inline[1]).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'self' 'sha256-{script}'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; connect-src 'self'; media-src blob:; frame-ancestors 'none'; base-uri 'none'"
    )

    @router.get("/docs")
    def docs() -> Response:
        return Response(body, media_type="text/html", headers={"Content-Security-Policy": policy})

    @router.get("/docs/{name}")
    def file(name: str) -> Response:
        if name not in contents:
            raise HTTPException(404)
        return Response(contents[name], media_type=MEDIA_TYPES[name], headers={"Cache-Control": "max-age=86400"})

    return router
