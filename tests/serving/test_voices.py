"""Voices of clients: names stay names, recordings are bounded, and messages tell nothing of the machine."""

from __future__ import annotations

import asyncio
import io
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from llasa.errors import UserError
from llasa.generation.voices import VoiceReader
from llasa.serving import voices as module
from llasa.serving.service import SpeechService
from llasa.serving.voices import Voices
from tests.corpus.recordings import audio_bytes, speech_like
from tests.generation.test_voices import CountingCodec, write_voice
from tests.model.tiny import build_tiny
from tests.serving.test_service import config, hear, order, serving, synthesizer

TEXT = "Ho tre gatti neri e un cane."
WAV = audio_bytes(speech_like(2.0, 1), 16_000)


@pytest.fixture
def codec():
    return CountingCodec()


@pytest.fixture
def voices(codec, tmp_path):
    card = replace(build_tiny(codec.spec).card, max_length=2048, languages=("it",))
    return Voices(tmp_path / "private" / "voices", codec, card, None, 1_000_000)


def folder_of(tmp_path):
    return tmp_path / "private" / "voices"


def assert_tells_nothing(mistake, tmp_path):
    message = str(mistake.value)
    for part in (str(tmp_path), tmp_path.name, "private", "voices/", "anna.", ".txt", ".npz"):
        assert part not in message, message


HOSTILE = [
    "../x",
    "..",
    ".",
    ".hidden",
    "a/b",
    "a\\b",
    "C:\\x",
    "c:x",
    "/etc/passwd",
    "~root",
    "a\0b",
    "a\n",
    "a ",
    "a.wav",
    "",
    "-rf",
    "anna\u202egnp",
    "аnna",  # the first letter is Cyrillic
    "ａnna",
    "a\u0301",
    "ﬁ",
    "../" * 2000,
    "a" * 65,
    "con",
    "LPT1",
    "default",
    "Default",
    "\ud800",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_never_leaves_the_folder(voices, tmp_path, name):
    """Fails when a name is joined to the folder, or letters that look alike are let in."""
    folder = folder_of(tmp_path)
    write_voice(folder, "anna")
    (tmp_path / "private" / "x.wav").write_bytes(WAV)
    (tmp_path / "private" / "x.txt").write_text(TEXT)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="cannot be the name of a voice") as mistake:
        voices.add(name, WAV, TEXT, "it")
    assert_tells_nothing(mistake, tmp_path)
    with pytest.raises(UserError, match="there is no voice") as mistake:
        voices.voice(name, "it")
    assert_tells_nothing(mistake, tmp_path)
    assert len(str(mistake.value)) < 1000
    assert sorted(tmp_path.rglob("*")) == before


def test_a_voice_that_was_added_is_one_of_the_folder(voices, codec, tmp_path):
    """Fails when the client's bytes are kept, or the samples are not those that were sent."""
    tagged = audio_bytes(speech_like(2.0, 1), 16_000, "FLAC")
    added = voices.add("anna-2_B", tagged, f"  {TEXT}\n", "it")
    folder = folder_of(tmp_path)
    assert sorted(file.suffix for file in folder.iterdir()) == [".npz", ".txt", ".wav"]
    assert (folder / "anna-2_B.txt").read_text() == TEXT + "\n"
    content = (folder / "anna-2_B.wav").read_bytes()
    assert content[:4] == b"RIFF"
    waveform, rate = soundfile.read(io.BytesIO(content), dtype="float32")
    assert rate == 16_000
    assert len(waveform) / rate == pytest.approx(added.seconds)
    sent = speech_like(2.0, 1)
    start = int(np.argmax(np.correlate(sent, waveform[:800], "valid")))
    np.testing.assert_allclose(waveform, sent[start : start + len(waveform)], atol=1e-4)
    assert voices.known() == [added]
    assert codec.encoded == 1, "before anybody waits for it"
    kept = voices.voice("anna-2_B", "it")
    np.testing.assert_array_equal(kept.codes, VoiceReader(codec, "it").named("anna-2_B", folder).codes)
    assert kept.text == TEXT
    assert codec.encoded == 1


BAD = {
    "no audio": (b"MZ" + b"\0" * 500, "cannot be used"),
    "nothing": (b"", "cannot be used"),
    "a pickle": (b"\x80\x04\x95" + b"." * 100, "cannot be used"),
    "cut": (WAV[: len(WAV) // 2], "truncated"),
    "silent": (audio_bytes(np.zeros(32_000), 16_000), "silent"),
    "short": (audio_bytes(speech_like(0.1, 1), 16_000), "too_short"),
    "long": (audio_bytes(np.tile(speech_like(2.0, 1, 8000), 8), 8000), "at most 5.12 s"),
    "minutes of silence in few bytes": (audio_bytes(np.zeros(8000 * 600), 8000, "FLAC"), "too_long"),
    "a rate that fills the memory": (audio_bytes(np.zeros(100_000), 655_350, "FLAC"), "claims 655,350 Hz"),
    "too many bytes": (WAV + b"\0" * 1_000_000, "more than 1,000,000"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_recording_is_refused_and_leaves_nothing(voices, tmp_path, name):
    """Fails when something is written before everything was looked at."""
    content, match = BAD[name]
    with pytest.raises(UserError, match=match) as mistake:
        voices.add("anna", content, TEXT, "it")
    assert_tells_nothing(mistake, tmp_path)
    assert not folder_of(tmp_path).exists()


@pytest.mark.parametrize(
    ("text", "match"), [(None, "no text"), ("…", "nothing to say"), ("a" * 1001, "1,001 characters")]
)
def test_a_transcript_is_asked_for(voices, tmp_path, text, match):
    with pytest.raises(UserError, match=match) as mistake:
        voices.add("anna", WAV, text, "it")
    assert_tells_nothing(mistake, tmp_path)
    assert not folder_of(tmp_path).exists()


def test_nothing_is_overwritten(voices, tmp_path):
    """Fails when the case of letters makes another voice, or a transcript without a recording is taken over."""
    folder = folder_of(tmp_path)
    voices.add("anna", WAV, TEXT, "it")
    (folder / "berta.txt").write_text("mio")
    before = {file: file.read_bytes() for file in folder.iterdir()}
    for name in ("anna", "Anna", "ANNA", "berta"):
        with pytest.raises(UserError, match="already") as mistake:
            voices.add(name, audio_bytes(speech_like(3.0, 5), 16_000), "Altro testo.", "it")
        assert_tells_nothing(mistake, tmp_path)
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


def test_of_many_at_once_one_has_the_name(codec, tmp_path):
    """Each in a process of its own, as workers are: a lock of one does not help. Fails when the last one wins."""
    card = replace(build_tiny(codec.spec).card, max_length=2048)
    barrier = threading.Barrier(6)

    def add(number):
        mine = Voices(tmp_path / "voices", codec, card, None, 1_000_000)
        barrier.wait()
        return mine.add("anna", audio_bytes(speech_like(2 + number / 10, number), 16_000), f"Sono {number}.", "it")

    with ThreadPoolExecutor(6) as pool:
        adding = [pool.submit(add, number) for number in range(6)]
    added = [each.result() for each in adding if each.exception() is None]
    assert len(added) == 1
    assert all("already" in str(each.exception()) for each in adding if each.exception() is not None)
    assert Voices(tmp_path / "voices", codec, card, None, 1).known() == added
    assert not list((tmp_path / "voices").glob(".*"))


def test_a_folder_takes_so_many(voices, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_VOICES", 2)
    for name in ("a", "b"):
        voices.add(name, WAV, TEXT, "it")
    with pytest.raises(UserError, match="takes no more") as mistake:
        voices.add("c", WAV, TEXT, "it")
    assert_tells_nothing(mistake, tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="a file where a folder should be")
def test_a_folder_that_cannot_be_written_is_told_without_its_name(voices, tmp_path, caplog):
    (tmp_path / "private").write_text("not a folder")
    with pytest.raises(UserError, match="cannot be kept") as mistake:
        voices.add("anna", WAV, TEXT, "it")
    assert_tells_nothing(mistake, tmp_path)
    assert "private" in caplog.text, "the log may know"


def test_a_folder_that_cannot_be_read_is_told_without_its_name(codec, tmp_path, caplog):
    card = replace(build_tiny(codec.spec).card, max_length=2048)
    unreadable = Voices(tmp_path / ("private" * 100), codec, card, None, 1_000_000)
    for ask in (unreadable.known, lambda: unreadable.voice("anna", "it")):
        with pytest.raises(UserError, match="cannot be read") as mistake:
            ask()
        assert_tells_nothing(mistake, tmp_path)
    folder = folder_of(tmp_path)
    write_voice(folder, "anna")
    (folder / "anna.txt").write_bytes(b"\xff\xfe\xfa")
    readable = Voices(folder, codec, card, None, 1_000_000)
    assert "anna" not in [voice.name for voice in readable.known()]
    with pytest.raises(UserError, match="cannot be used") as mistake:
        readable.voice("anna", "it")
    assert_tells_nothing(mistake, tmp_path)
    assert caplog.text.count("private") >= 3, "the log may know"


def test_a_voice_is_read_again_when_its_files_change(voices, codec, tmp_path, monkeypatch):
    """Fails when a voice is kept by its name alone, or for ever."""
    monkeypatch.setattr(module, "MOST_KEPT", 2)
    folder = folder_of(tmp_path)
    for seed, name in enumerate(("a", "b", "c")):
        write_voice(folder, name, seed=seed)
    first = voices.voice("a", "it")
    assert voices.voice("a", "it") is first
    (folder / "a.txt").write_text("Un altro testo.\n")
    assert voices.voice("a", "it").text == "Un altro testo."
    write_voice(folder, "a", seconds=2.5, seed=9)
    assert len(voices.voice("a", "it").codes) > len(first.codes)
    for name in "abcabc":
        voices.voice(name, "it")
    assert len(voices._kept) == 2
    assert codec.encoded == 5


def test_the_list_is_made_anew_when_files_change(voices, tmp_path, monkeypatch):
    """Fails when every recording is decoded for each request, or a new one is not seen."""
    folder, calls = folder_of(tmp_path), []
    inherited = module.list_voices
    monkeypatch.setattr(module, "list_voices", lambda folder: calls.append(0) or inherited(folder))
    assert voices.known() == []
    write_voice(folder, "anna")
    assert [voice.name for voice in voices.known()] == [voice.name for voice in voices.known()] == ["anna"]
    assert len(calls) == 1
    write_voice(folder, "berta", seed=2)
    os.utime(folder, ns=(0, 0))
    assert [voice.name for voice in voices.known()] == ["anna", "berta"]
    (folder / "berta.wav").write_bytes(b"RIFF, and no more")
    assert [voice.name for voice in voices.known()] == ["anna"]


@pytest.mark.parametrize("damage", ["recording", "transcript", "no transcript"])
def test_what_is_wrong_with_a_voice_is_for_the_log(voices, tmp_path, caplog, damage):
    """Fails when the message of the folder, with its path, reaches the client."""
    folder = folder_of(tmp_path)
    file = write_voice(folder, "anna")
    if damage == "recording":
        file.write_bytes(b"RIFF, and no more")
    elif damage == "transcript":
        (folder / "anna.txt").write_bytes(b"\xff\xfe\xfa")
    else:
        (folder / "anna.txt").unlink()
    with pytest.raises(UserError, match="'anna' cannot be used") as mistake:
        voices.voice("anna", "it")
    assert_tells_nothing(mistake, tmp_path)
    assert "anna.wav" in caplog.text or "anna.txt" in caplog.text
    with pytest.raises(UserError, match="did you mean anna") as mistake:
        voices.voice("ana", "it")
    assert_tells_nothing(mistake, tmp_path)


def test_an_order_in_a_voice(codec, tmp_path):
    """From the upload to the speech, which is the synthesizer's; fails when the voice is not in front of the prompt."""
    speaker = synthesizer(codec.spec, codec, max_length=2048)
    folder = str(tmp_path / "voices")

    async def run():
        async with serving(speaker, voices_folder=folder) as closed:
            with pytest.raises(UserError, match="takes no voices"):
                await closed.add_voice("anna", WAV, TEXT, None)
        async with serving(speaker, voices_folder=folder, voice_uploads=True) as service:
            with pytest.raises(UserError, match="language 'xx'"):
                await service.add_voice("anna", WAV, TEXT, "xx")
            added = await service.add_voice("anna", WAV, TEXT, None)
            assert service.voices() == [added]
            return await hear(service, order("Ciao!", 3, voice="anna")), await hear(service, order("Ciao!", 3))

    (imitated, _), (plain, _) = asyncio.run(run())
    voice = VoiceReader(codec, "it").named("anna", folder)
    sampling = config().sampling
    alone = np.concatenate(list(speaker.stream("Ciao!", sampling, voice=voice, seed=3)))
    np.testing.assert_array_equal(imitated, alone)
    assert len(imitated) != len(plain) or not np.array_equal(imitated, plain)


def test_a_codec_is_used_by_one_thread(codec, tmp_path):
    """Fails when a voice is encoded beside the streams that are decoded."""
    speaker, used = synthesizer(codec.spec, codec, max_length=2048), set()
    inherited = codec.encode
    codec.encode = lambda waveforms: used.add(threading.current_thread().name) or inherited(waveforms)

    async def run():
        service = SpeechService(speaker, config(voices_folder=str(tmp_path / "voices"), voice_uploads=True))
        service.start()
        await service.add_voice("anna", WAV, TEXT, None)
        await service.close()

    asyncio.run(run())
    assert len(used) == 1
    assert used.pop().startswith("codec")
