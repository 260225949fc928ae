"""The contract over HTTP, against a real server with the tiny model."""

import base64
import io
import json
import re

import httpx
import pytest
import soundfile

from tests.serving.http_server import save_speaker, serve_config, serving

TEXT = "Ciao, come stai?"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_speaker(tmp_path_factory.mktemp("api") / "checkpoint")


@pytest.fixture(scope="module")
def server(checkpoint):
    with serving(serve_config(checkpoint)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def speak(client, **fields):
    return client.post("/v1/audio/speech", json={"model": "llasa", "input": TEXT, "voice": "default", **fields})


def told(response, status, code, param=None) -> str:
    """The message of an error, which is in OpenAI's form and says nothing of this machine."""
    assert response.status_code == status, response.text
    assert response.json().keys() == {"error"}
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param)
    assert not re.search(r"/tmp|/home|/work|Traceback|\.py", error["message"])
    assert response.headers["x-request-id"]
    return error["message"]


# --- speech ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "media_type"),
    [
        ("wav", "audio/wav"),
        ("pcm", "audio/pcm"),
        ("mp3", "audio/mpeg"),
        ("flac", "audio/flac"),
        ("opus", "audio/ogg; codecs=opus"),
    ],
)
def test_a_file_of_each_format(client, format, media_type):
    response = speak(client, response_format=format, seed=3)
    assert (response.status_code, response.headers["content-type"]) == (200, media_type)
    assert (response.headers["x-sample-rate"], response.headers["x-seed"]) == ("8000", "3")
    assert response.headers["transfer-encoding"] == "chunked"
    assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])
    if format == "pcm":
        assert len(response.content) == 2 * 4000
        return
    waveform, rate = soundfile.read(io.BytesIO(response.content))
    assert rate == 8000
    assert len(waveform) >= 4000 if format == "mp3" else len(waveform) == 4000
    assert (format == "flac") == ("x-finish-reason" in response.headers)


def test_mp3_is_the_default_and_a_voice_may_be_an_object(client):
    assert speak(client).headers["content-type"] == "audio/mpeg"
    assert speak(client, voice={"id": "default"}).status_code == 200


def test_the_seed_decides_and_is_told(client):
    """Fails when the same seed is taken for every request that names none."""
    one, two = (speak(client, response_format="pcm") for _ in range(2))
    assert one.headers["x-seed"] != two.headers["x-seed"]
    assert one.content != two.content
    again = speak(client, response_format="pcm", seed=int(one.headers["x-seed"]))
    assert again.content == one.content


def test_sampling_of_a_request_is_its_own(client):
    """Fails when the client's temperature is not passed on."""
    greedy = [speak(client, response_format="pcm", temperature=0, seed=seed).content for seed in (1, 2)]
    assert greedy[0] == greedy[1]
    assert greedy[0] != speak(client, response_format="pcm", seed=1).content
    assert speak(client, top_k=5, top_p=0.9, min_p=0.1, repetition_penalty=1.1).status_code == 200


def test_speed_and_sample_rate(client):
    """Fails when one of them is taken and not used."""
    half = speak(client, response_format="wav", speed=2, seed=1)
    assert soundfile.info(io.BytesIO(half.content)).samplerate == 8000
    assert len(soundfile.read(io.BytesIO(half.content))[0]) == 2000
    openai = speak(client, response_format="pcm", sample_rate=24000, seed=1)
    assert openai.headers["x-sample-rate"] == "24000"
    assert len(openai.content) == pytest.approx(2 * 12_000, abs=4)
    assert speak(client, response_format="opus", sample_rate=48000).status_code == 200
    message = told(speak(client, response_format="opus", sample_rate=44100), 400, "invalid_value", "sample_rate")
    assert "choose one of 8000" in message


def test_events(client):
    """Fails when the pieces are not the same file."""
    whole = speak(client, response_format="wav", seed=5).content
    response = speak(client, response_format="wav", seed=5, stream_format="sse")
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line.removeprefix("data: ")) for line in response.text.split("\n\n") if line]
    assert {event["type"] for event in events[:-1]} == {"speech.audio.delta"}
    assert b"".join(base64.b64decode(event["audio"]) for event in events[:-1]) == whole
    assert events[-1] == {
        "type": "speech.audio.done",
        "usage": {"input_tokens": 16, "output_tokens": 100, "total_tokens": 116},
        "finish_reason": "length",
        "seconds": 0.5,
    }


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "code", "param", "message"),
    [
        ({"input": ""}, "invalid_value", "input", "at least 1 character"),
        ({"input": " \n"}, "invalid_value", "input", "nothing to say"),
        ({"input": "a" * 4097}, "string_above_max_length", "input", "4,097 characters, more than 4,096"),
        ({"input": "…"}, "invalid_value", None, "nothing to say"),
        ({"input": None}, "invalid_value", "input", "valid string"),
        ({"voice": "alloy"}, "invalid_value", None, "there is no voice 'alloy'; known voices: default"),
        ({"voice": "../../etc/passwd"}, "invalid_value", None, "there is no voice"),
        ({"voice": {"id": 3}}, "invalid_value", "voice", "valid string"),
        ({"response_format": "aac"}, "invalid_value", "response_format", "cannot make aac; choose one of mp3, opus"),
        ({"response_format": "ogg"}, "invalid_value", "response_format", "'mp3', 'opus', 'flac', 'wav' or 'pcm'"),
        ({"speed": 0.2}, "invalid_value", "speed", "greater than or equal to 0.25"),
        ({"speed": "1"}, "invalid_value", "speed", "valid number"),
        ({"instructions": "Whisper."}, "invalid_value", "instructions", "cannot follow instructions"),
        ({"language": "xx"}, "invalid_value", None, "choose one of it, en"),
        ({"speaker": "anna"}, "invalid_value", None, "without speaker tags"),
        ({"temperature": -1}, "invalid_value", "temperature", "greater than or equal to 0"),
        ({"seed": 2**32}, "invalid_value", "seed", "less than 4294967296"),
        ({"sample_rate": 7}, "invalid_value", "sample_rate", "8000, 11025"),
        ({"temperatur": 1}, "unknown_parameter", "temperatur", "did you mean temperature?"),
        ({"xyz": "it"}, "unknown_parameter", "xyz", "there are model, input, voice"),
    ],
)
def test_mistakes_in_a_request(client, fields, code, param, message):
    assert message in told(speak(client, **fields), 400, code, param)


def test_empty_instructions_are_none(client):
    assert speak(client, instructions="").status_code == 200


def test_a_model_that_is_not_here(client):
    message = told(speak(client, model="tts-1"), 404, "model_not_found", "model")
    assert message == "there is no model 'tts-1' here; there is llasa and other"
    told(client.get("/v1/models/tts-1"), 404, "model_not_found", "model")


@pytest.mark.parametrize(
    ("body", "media_type", "code"),
    [
        (b"", "application/json", "invalid_body"),
        (b"[]", "application/json", "invalid_body"),
        (b'{"model": ', "application/json", "invalid_json"),
        (b'{"input": NaN, "speed": Infinity}', "application/json", "missing_parameter"),
        (b"\xff\xfe\x00", "application/json", "invalid_body"),
        (b"[" * 60_000, "application/json", "invalid_body"),
        (b'{"seed": ' + b"9" * 6000 + b"}", "application/json", "invalid_body"),
        (b'{"model": "llasa", "input": "\\ud800"}', "application/json", "invalid_value"),
        (b'{"model": "llasa", "input": "a"}', "text/plain", "invalid_body"),
    ],
)
def test_bodies_that_are_no_request(client, body, media_type, code):
    """Text/plain as well: it is what a form on another site can send without asking."""
    response = client.post("/v1/audio/speech", content=body, headers={"Content-Type": media_type})
    assert (response.status_code, response.json()["error"]["code"]) == (400, code)


def test_bodies_that_are_too_long(client):
    """By their header, and where they have none. Fails when only the header is believed."""
    assert "65,536 bytes" in told(speak(client, input="a" * 70_000), 413, "body_too_large")
    pieces = (b" " * 5000 for _ in range(20))
    unannounced = client.post("/v1/audio/speech", content=pieces, headers={"Content-Type": "application/json"})
    told(unannounced, 413, "body_too_large")
    assert client.get("/health").status_code == 200


def test_addresses_and_methods_that_are_not_here(client):
    told(client.get("/v1/nothing"), 404, "not_found")
    response = client.get("/v1/audio/speech")
    told(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


# --- what else there is ----------------------------------------------------------------------------------------------


def test_models_and_voices(client):
    models = client.get("/v1/models").json()
    assert [model["id"] for model in models["data"]] == ["llasa", "other"]
    assert client.get("/v1/models/other").json() == models["data"][1]
    wanted = {"object": "model", "sample_rate": 8000, "codec": "codec2", "languages": ["it", "en"], "speakers": []}
    assert wanted.items() <= models["data"][0].items()
    assert client.get("/v1/voices").json()["data"] == [
        {"id": "default", "object": "voice", "seconds": None, "text": None}
    ]


def test_head_is_get_without_a_body(client):
    for path in ("/", "/health", "/ready", "/v1/models", "/docs"):
        whole, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == whole.headers["content-length"]


def test_the_docs_ask_nobody_else(client):
    """Fails when FastAPI's page with its CDN is served, or its script is changed and the policy is not."""
    page = client.get("/docs")
    assert not re.search(r"(src|href)=\"?(https?:)?//", page.text)
    for name in re.findall(r'(?:src|href)="(docs/[^"]+)"', page.text):
        assert client.get(f"/{name}").status_code == 200
    assert "script-src 'self' 'sha256-" in page.headers["content-security-policy"]
    assert client.get("/docs/../access.py").status_code == client.get("/docs/%2e%2e%2fapi.py").status_code == 404
    assert client.get("/openapi.json").json()["openapi"].startswith("3.")


def test_the_page_and_its_settings(client):
    assert "text/html" in client.get("/").headers["content-type"]
    settings = client.get("/page/settings.json").json()
    assert settings["model"] == "llasa"
    assert settings["languages"] == [{"code": "it", "name": "Italian"}, {"code": "en", "name": "English"}]
    assert settings["formats"] == ["mp3", "opus", "flac", "wav", "pcm"]
    assert (settings["speed"], settings["uploads"], settings["needs_key"]) == ([0.25, 4.0], False, False)


def test_numbers_for_prometheus(client, server):
    """Fails when a client's words become a label."""
    before = metrics(client)
    speak(client, response_format="pcm", seed=3)
    client.get("/v1/models/an-invented-one")
    client.get("/an/invented/path")
    client.request("INVENTED", "/v1/models")
    after = metrics(client)
    grown = {name for name in after if after[name] > before.get(name, 0.0)}
    assert {
        'llasa_http_requests_total{method="POST",route="/v1/audio/speech",status="200"}',
        'llasa_http_requests_total{method="GET",route="/v1/models/{model}",status="404"}',
        'llasa_http_requests_total{method="GET",route="none",status="404"}',
        'llasa_http_requests_total{method="other",route="/v1/models",status="405"}',
        'llasa_first_byte_seconds_count{format="pcm"}',
        'llasa_speech_ended_total{reason="length"}',
        "llasa_codes_total",
        "llasa_steps_total",
    } <= grown
    assert after["llasa_audio_seconds_total"] - before["llasa_audio_seconds_total"] == pytest.approx(0.5)
    assert after["llasa_batch_places"] == 4
    assert after["llasa_ready"] == 1
    assert after["llasa_running"] == after["llasa_waiting"] == 0
    assert "invented" not in client.get("/metrics").text.lower().replace('"other"', "")


def metrics(client) -> dict[str, float]:
    lines = [line.rpartition(" ") for line in client.get("/metrics").text.splitlines() if line[0] != "#"]
    return {name: float(value) for name, _, value in lines}


# --- other servers ---------------------------------------------------------------------------------------------------


def test_keys_rates_and_other_origins(checkpoint, tmp_path):
    """All of access together, as a server has it. Fails when the gate is not in front of the routes, or behind CORS."""
    (tmp_path / "keys").write_text("a-key-of-this-test\n")
    config = serve_config(
        checkpoint,
        f"api_keys={tmp_path / 'keys'}",
        "origins=[https://friend.example]",
        "limits.requests_per_minute=6",
    )
    with serving(config) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        for path in ("/", "/health", "/ready", "/docs", "/openapi.json", "/page/settings.json"):
            assert client.get(path).status_code == 200, path
        assert client.get("/page/settings.json").json()["needs_key"] is True
        assert "a-key" not in client.get("/openapi.json").text
        assert client.get("/openapi.json").json()["paths"]["/v1/models"]["get"]["security"] == [{"HTTPBearer": []}]
        message = told(client.get("/v1/models"), 401, "invalid_api_key")
        assert "Authorization: Bearer KEY" in message
        told(client.get("/metrics"), 401, "invalid_api_key")
        told(speak(client), 401, "invalid_api_key")

        client.headers["Authorization"] = "Bearer a-key-of-this-test"
        friend = client.get("/v1/models", headers={"Origin": "https://friend.example"})
        assert friend.headers["access-control-allow-origin"] == "https://friend.example"
        stranger = client.get("/v1/models", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in stranger.headers
        asked = {"Origin": "https://friend.example", "Access-Control-Request-Method": "POST"}
        client.headers.pop("Authorization")
        allowed = client.options("/v1/audio/speech", headers=asked)
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, "https://friend.example")

        client.headers["Authorization"] = "Bearer a-key-of-this-test"
        assert speak(client).status_code == 200
        told(client.post("/v1/voices", headers={"Origin": "https://evil.example"}), 403, "foreign_origin")
        assert [client.get("/v1/models").status_code for _ in range(4)] == [200, 200, 200, 429]
        refused = speak(client)
        told(refused, 429, "rate_limit_exceeded")
        assert 1 <= int(refused.headers["retry-after"]) <= 10
        assert client.get("/health").status_code == 200
