"""OpenAI's own Python client, as a user has it, against a real server."""

import asyncio
import io

import pytest
import soundfile

from tests.serving.http_server import save_speaker, serve_config, serving

openai = pytest.importorskip("openai", reason="of requirements/dev.txt")

KEY = "a-key-of-this-test"
SEED = {"seed": 1}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("openai")
    (folder / "keys").write_text(KEY)
    config = serve_config(
        save_speaker(folder / "checkpoint"), f"api_keys={folder / 'keys'}", "limits.requests_per_minute=60"
    )
    with serving(config) as running:
        yield running


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=30) as client:
        yield client


def create(client, **fields):
    """With a seed whose speech is as long as it may be: half a second."""
    defaults = {"model": "llasa", "voice": "default", "input": "Ciao!", "extra_body": SEED}
    return client.audio.speech.create(**defaults | fields)


@pytest.mark.parametrize("format", ["mp3", "opus", "flac", "wav", "pcm"])
def test_a_file(client, tmp_path, format):
    response = create(client, response_format=format)
    response.write_to_file(tmp_path / "speech")
    content = (tmp_path / "speech").read_bytes()
    assert content == response.content
    if format == "pcm":
        assert len(content) == 8000
    else:
        waveform, rate = soundfile.read(io.BytesIO(content))
        assert len(waveform) / rate == pytest.approx(0.5, abs=0.2)


def test_streaming(client, tmp_path):
    """Pieces as they come, and straight into a file."""
    with client.audio.speech.with_streaming_response.create(
        model="llasa", voice="default", input="Ciao!", response_format="pcm", extra_body=SEED
    ) as response:
        assert response.headers["x-sample-rate"] == "8000"
        pieces = list(response.iter_bytes())
    assert len(pieces) > 1
    assert len(b"".join(pieces)) == 8000
    with client.audio.speech.with_streaming_response.create(
        model="llasa", voice={"id": "default"}, input="Ciao!", response_format="wav", extra_body=SEED
    ) as response:
        response.stream_to_file(tmp_path / "speech.wav")
    assert len(soundfile.read(tmp_path / "speech.wav")[0]) == 4000


def test_events(client):
    """By the client's own decoder of event streams."""
    import base64

    fields = {
        "model": "llasa",
        "voice": "default",
        "input": "Ciao!",
        "response_format": "pcm",
        "stream_format": "sse",
        **SEED,
    }
    events = list(
        client.post(
            "/audio/speech", body=fields, cast_to=dict, stream=True, stream_cls=openai.Stream[dict[str, object]]
        )
    )
    assert [event["type"] for event in events[:-1]] == ["speech.audio.delta"] * (len(events) - 1)
    assert sum(len(base64.b64decode(event["audio"])) for event in events[:-1]) == 8000
    assert events[-1]["type"] == "speech.audio.done"
    assert events[-1]["usage"] == {"input_tokens": 5, "output_tokens": 100, "total_tokens": 105}


def test_own_fields_and_speed(client):
    body = {"seed": 7, "language": "en", "temperature": 0.5, "top_k": 50, "sample_rate": 24000}
    response = create(client, speed=2.0, response_format="pcm", extra_body=body)
    assert response.response.headers["x-seed"] == "7"
    assert len(response.content) == pytest.approx(2 * 6000, abs=4)


def test_models(client):
    assert [model.id for model in client.models.list()] == ["llasa", "other"]
    model = client.models.retrieve("other")
    assert (model.id, model.owned_by, model.codec) == ("other", "llasa", "codec2")


def test_errors_have_their_classes(client, server):
    """Fails when a status is another one, or the body is not in OpenAI's form: then message and code are lost."""
    with pytest.raises(openai.BadRequestError) as bad:
        create(client, voice="alloy")
    assert (bad.value.type, bad.value.code) == ("invalid_request_error", "invalid_value")
    assert "there is no voice 'alloy'" in bad.value.message
    assert bad.value.request_id
    with pytest.raises(openai.BadRequestError, match="cannot follow instructions"):
        create(client, instructions="Whisper.")
    with pytest.raises(openai.BadRequestError, match="cannot make aac"):
        create(client, response_format="aac")
    with pytest.raises(openai.NotFoundError) as unknown:
        create(client, model="tts-1")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("tts-1")
    with pytest.raises(openai.AuthenticationError) as stranger:
        create(client.with_options(api_key="another-key-of-no-use"))
    assert stranger.value.code == "invalid_api_key"


def test_the_asynchronous_client(server):
    async def run() -> list[int]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=30) as client:
            answers = await asyncio.gather(*(create(client, response_format="pcm") for _ in range(3)))
            return [len(await answer.aread()) for answer in answers]

    assert asyncio.run(run()) == [8000] * 3


def test_the_client_comes_back_after_429(client, server):
    """By itself, when Retry-After says. Fails without that header: the client then tries at once, and again in vain."""
    impatient = client.with_options(max_retries=0)
    with pytest.raises(openai.RateLimitError) as refused:
        [impatient.models.list() for _ in range(100)]
    assert (refused.value.code, refused.value.response.headers["retry-after"]) == ("rate_limit_exceeded", "1")
    patient = client.with_options(max_retries=1)
    assert [model.id for model in patient.models.list()] == ["llasa", "other"]
