"""The description at /openapi.json against the server that gives it: schemathesis makes requests of it, right and wrong
ones, and compares the answers with what it promises. The same requests in every run."""

import pytest
from hypothesis import HealthCheck, given, settings

from tests.serving.http_server import save_speaker, serve_config, serving

schemathesis = pytest.importorskip("schemathesis", reason="of requirements/dev.txt")

FEW = settings(max_examples=12, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))


def described(checkpoint, *overrides):
    config = serve_config(checkpoint, "sampling.max_seconds=0.1", "limits.audio_seconds=0.2", *overrides)
    with serving(config) as server:
        yield schemathesis.openapi.from_url(f"{server.url}/openapi.json")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_speaker(tmp_path_factory.mktemp("openapi") / "checkpoint")


@pytest.fixture(scope="module")
def plain(checkpoint):
    yield from described(checkpoint)


@pytest.fixture(scope="module")
def uploads(checkpoint):
    yield from described(checkpoint, "voice_uploads=true", f"voices_folder={checkpoint.parent / 'uploaded'}")


RIGHT, WRONG = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
OPERATIONS = [
    ("/v1/audio/speech", "POST"),
    ("/v1/models", "GET"),
    ("/v1/models/{model}", "GET"),
    ("/v1/voices", "GET"),
    ("/v1/voices", "POST"),
    ("/health", "GET"),
    ("/ready", "GET"),
    ("/metrics", "GET"),
]


THERE = {"model": "llasa", "voice": "default", "language": None, "speaker": None, "instructions": None}


def explore(operation, mode, **fields) -> list[int]:
    """Statuses of some requests, with these fields in the right ones. All is checked but one thing: a request may be
    right by the description and still have a text without a letter, or name a recording that is none.

    Not by schemathesis' own parametrisation: that of 4.32 fails with pytest 9.2 (it reads a field that is gone)."""
    statuses: list[int] = []

    @FEW
    @given(operation.as_strategy(generation_mode=mode))
    def ask(case) -> None:
        if mode is RIGHT and fields:
            case.body |= fields
        response = case.call_and_validate(excluded_checks=[schemathesis.checks.positive_data_acceptance])
        statuses.append(response.status_code)

    ask()
    return statuses


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_right_requests(plain, path, method):
    """Fails when an answer is not in the description: another status, field or content type."""
    fields = THERE if path == "/v1/audio/speech" else {}
    statuses = explore(plain[path][method], RIGHT, **fields)
    assert {"POST /v1/voices": 403, "GET /v1/models/{model}": 404}.get(f"{method} {path}", 200) in statuses


@pytest.mark.parametrize("stream_format", ["audio", "sse"])
def test_right_requests_for_each_way_to_stream(plain, stream_format):
    """Fails when events are described as if they were a file."""
    explore(plain["/v1/audio/speech"]["POST"], RIGHT, **THERE, stream_format=stream_format)


def test_wrong_requests_for_speech(plain):
    """Fails when one of them is taken."""
    assert set(explore(plain["/v1/audio/speech"]["POST"], WRONG)) == {400}


@pytest.mark.parametrize("mode", [RIGHT, WRONG])
def test_uploads(uploads, mode):
    assert set(explore(uploads["/v1/voices"]["POST"], mode)) <= {201, 400}


def test_what_is_described(plain):
    """Fails when a route is forgotten, or the page's routes are told as if they were the API's."""
    operations = {f"{operation.ok().method.upper()} {operation.ok().path}" for operation in plain.get_all_operations()}
    assert operations == {f"{method} {path}" for path, method in OPERATIONS}
    speech = plain.raw_schema["paths"]["/v1/audio/speech"]["post"]
    assert set(speech["responses"]) == {"200", "default"}
    assert "audio/wav" in speech["responses"]["200"]["content"]
    for operation in plain.raw_schema["components"]["schemas"]["SpeechRequest"]["properties"].values():
        assert "description" in operation or "title" in operation
