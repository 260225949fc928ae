"""Voices that clients add, over HTTP."""

import re

import httpx
import pytest

from tests.corpus.recordings import audio_bytes, speech_like
from tests.serving.http_server import save_speaker, serve_config, serving

RECORDING = audio_bytes(speech_like(2.0, seed=1), 16_000)
FORM = {"name": "anna", "text": "Buongiorno a tutti.", "consent": "true"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_speaker(tmp_path_factory.mktemp("uploads") / "checkpoint")


@pytest.fixture(scope="module")
def server(checkpoint):
    with serving(serve_config(checkpoint, "voice_uploads=true", "limits.upload_bytes=200000")) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def upload(client, recording=RECORDING, file_name="../../evil.py", **fields):
    form = {name: value for name, value in (FORM | fields).items() if value is not None}
    return client.post("/v1/voices", data=form, files={"recording": (file_name, recording)})


def test_a_voice_is_added_and_speaks(client, checkpoint):
    """Fails when the client's file name is used, or the voice is not in the list."""
    added = upload(client)
    assert (added.status_code, added.json()["id"]) == (201, "anna")
    assert added.json()["text"] == "Buongiorno a tutti."
    assert 0 < added.json()["seconds"] <= 2
    assert [voice["id"] for voice in client.get("/v1/voices").json()["data"]] == ["default", "anna"]
    names = {file.name.split(".")[0] for file in (checkpoint.parent / "voices").iterdir()}
    assert names == {"anna"}
    assert not list(checkpoint.parent.parent.rglob("evil*"))
    body = {"model": "llasa", "input": "Ciao!", "response_format": "pcm", "seed": 1}
    own = client.post("/v1/audio/speech", json={**body, "voice": "default"}).content
    answer = client.post("/v1/audio/speech", json={**body, "voice": "anna"})
    assert answer.status_code == 200
    assert answer.content != own
    assert "there is a voice 'anna' already" in upload(client).json()["error"]["message"]
    unknown = client.post("/v1/audio/speech", json={**body, "voice": "ana"})
    assert "did you mean anna?" in unknown.json()["error"]["message"]


@pytest.mark.parametrize("consent", [None, "false", "0"])
def test_no_voice_without_consent(client, consent):
    """Fails when the field is not looked at."""
    refused = upload(client, name="bruno", consent=consent)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "consent_required")
    assert "bruno" not in client.get("/v1/voices").text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "../../etc/cron"}, "cannot be the name of a voice"),
        ({"name": "default"}, "cannot be the name of a voice"),
        ({"name": None}, "name is missing"),
        ({"recording": b"no sound"}, "the recording cannot be used"),
        ({"recording": b""}, "the recording cannot be used|is empty|no bytes"),
        ({"text": "a" * 2000}, "more than 1,000"),
        ({"text": None}, "the recording has no text"),
        ({"language": "xx"}, "choose one of it, en"),
        ({"consent": "perhaps"}, "consent='perhaps' is not valid"),
    ],
)
def test_what_cannot_be_a_voice(client, fields, message):
    refused = upload(client, **{"name": "carla", **fields})
    assert refused.status_code == 400, refused.text
    error = refused.json()["error"]["message"]
    assert re.search(message, error), error
    assert "/" not in error.replace("../../etc/cron", ""), "a path of the machine"
    assert "carla" not in client.get("/v1/voices").text


def test_a_recording_that_is_too_long(client):
    """By its bytes, before they are all read. Fails when uploads have the limit of other bodies, or none."""
    long = audio_bytes(speech_like(2.5, 2, 24_000), 24_000)
    assert len(long) > 65_536
    refused = upload(client, recording=b"x" * 1_000_000)
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "body_too_large")
    assert upload(client, name="dario", recording=long).status_code == 201


def test_a_page_elsewhere_adds_none(client):
    """A form needs nobody's leave to send its fields. Fails when Origin is not looked at."""
    refused = client.post(
        "/v1/voices", data=FORM, files={"recording": RECORDING}, headers={"Origin": "https://evil.example"}
    )
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "foreign_origin")


def test_uploads_are_off_unless_configured(checkpoint):
    """Also for a form that is wrong, which would else say what is expected."""
    with serving(serve_config(checkpoint)) as server:
        for form in (FORM, {}):
            refused = httpx.post(f"{server.url}/v1/voices", data=form, files={"recording": RECORDING})
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "uploads_off")
            assert "voice_uploads=true" in refused.json()["error"]["message"]
