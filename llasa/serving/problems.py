"""What goes wrong, as OpenAI's clients read it: {"error": {"message", "type", "param", "code"}}.

A client sees what it can do about it and nothing of this machine; the whole error is logged with the request's id.

| status | of | `code` |
|---|---|---|
| 400 | the request's text, a field's value, a recording | `invalid_value`, `unknown_parameter`, … |
| 401 | an API key that is missing or wrong | `invalid_api_key` |
| 403 | what the operator does not allow | `uploads_off`, `foreign_origin` |
| 404 | a model or an address that is not here | `model_not_found`, `not_found` |
| 408, 413 | a body that does not come, or is too long | `body_timeout`, `body_too_large` |
| 429 | a full queue, a client that asks too often; `Retry-After` says when to return | `busy`, `rate_limit_exceeded` |
| 500 | a bug, or a broken engine | `internal_error` |
| 503 | a server that starts or stops, or did not begin to speak in time | `unavailable`, `timed_out` |
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import fastapi
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
OF_LIBRARIES = {
    400: ("the body cannot be read: it is damaged, or nested too deeply", "invalid_body"),
    404: ("there is nothing at this address", "not_found"),
    405: ("this method is not possible here", "method_not_allowed"),
}
"""Status → message and code, instead of what FastAPI and Starlette say."""


class Problem(fastapi.HTTPException):
    """What a client is told. FastAPI lets an HTTPException of its own through also while it reads a body.

    Args:
        param: the field of the request that it is about.
        retry_after: seconds after which to try again; whole ones, rounded up, are sent.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        headers = dict(headers or {})
        if retry_after is not None:
            headers["Retry-After"] = str(max(1, math.ceil(retry_after)))
        super().__init__(status, detail=message, headers=headers)
        self.code, self.param = code, param

    def body(self) -> dict[str, Any]:
        """What the client reads, also as an event of a stream."""
        kind = TYPES.get(self.status_code, "invalid_request_error")
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), status_code=self.status_code, headers=self.headers)


def internal_error(request_id: str) -> Problem:
    """Of a bug: nothing but the id that the log has it under."""
    return Problem(500, f"the server failed; its log has this as request {request_id}", code="internal_error")


def install_handlers(app: FastAPI, fields: Mapping[str, Sequence[str]]) -> None:
    """Have the app answer in this shape, whoever finds the mistake: our code, FastAPI, or the router.

    Args:
        fields: path → names of its body's fields, for a name that is nearly one of them.
    """

    async def of_http(request: Request, error: HTTPException) -> JSONResponse:
        if not isinstance(error, Problem):  # of FastAPI or Starlette
            message, code = OF_LIBRARIES.get(error.status_code, (str(error.detail), None))
            error = Problem(error.status_code, message, code=code, headers=dict(error.headers or {}))
        return error.response()

    async def of_validation(request: Request, error: RequestValidationError) -> JSONResponse:
        return problem_of(error.errors(), fields.get(request.url.path, ())).response()

    app.add_exception_handler(HTTPException, of_http)  # type: ignore[arg-type]  # Starlette's type is of any exception
    app.add_exception_handler(RequestValidationError, of_validation)  # type: ignore[arg-type]  # the same


def problem_of(errors: Sequence[dict[str, Any]], known: Sequence[str]) -> Problem:
    """The first mistake that pydantic found in a request; a field that does not exist comes before wrong values."""
    first = next((error for error in errors if error["type"] == "extra_forbidden"), errors[0])
    place = [str(part) for part in first["loc"][1:]]
    kind = first["type"]
    if kind == "json_invalid":
        return Problem(400, f"the body is no JSON: {first['ctx']['error']} at {place[0]}", code="invalid_json")
    if not place:
        return Problem(
            400,
            "the body has to be a JSON object, sent as Content-Type: application/json",
            code="invalid_body",
        )
    param = place[0]
    if kind == "extra_forbidden" and len(place) == 1:
        close = difflib.get_close_matches(param, known, n=1, cutoff=0.6)
        remedy = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
        return Problem(400, f"there is no field {shown(param)}; {remedy}", code="unknown_parameter", param=param[:100])
    if kind == "missing" and len(place) == 1:
        return Problem(400, f"{param} is missing", code="missing_parameter", param=param)
    if kind == "value_error":
        return Problem(400, f"{param}: {first['ctx']['error']}", code="invalid_value", param=param)
    mine = [error for error in errors if error["loc"][1:2] == first["loc"][1:2]]  # of a union, each member complains
    reasons = " or ".join(dict.fromkeys(error["msg"] for error in mine))
    return Problem(400, f"{param}={shown(first['input'])} is not valid: {reasons}", code="invalid_value", param=param)


def shown(value: Any) -> str:
    """What a client sent, short and in ASCII, so that an error of strange characters can be printed."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
