"""Files that are sent while they are spoken: what players read of them, when their bytes come, and speed."""

import gc
import io

import numpy as np
import pytest
import soundfile

from llasa.errors import UserError
from llasa.serving.encoding import (
    MEDIA_TYPES,
    SAMPLE_RATES,
    SpeechEncoder,
    available_formats,
    output_rate,
)
from llasa.serving.tempo import Tempo

av = pytest.importorskip("av", reason="PyAV, of requirements/serve.txt")


def tone(rate: int, seconds: float = 2.0, hertz: float = 440.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def pieces_of(waveform: np.ndarray, size: int) -> list[np.ndarray]:
    return [waveform[start : start + size] for start in range(0, len(waveform), size)]


def encoded(format: str, waveform: np.ndarray, rate: int, *, size: int = 160, out: int | None = None, speed=1.0):
    """(bytes, seconds of speech that had gone in when the first bytes came)."""
    encoder = SpeechEncoder(format, rate, output_rate=out or rate, speed=speed)
    parts, first = [], None
    for number, piece in enumerate(pieces_of(waveform, size), 1):
        parts.append(encoder.encode(piece))
        if parts[-1] and first is None:
            first = number * size / rate
    return b"".join([*parts, encoder.finish()]), first


def decoded(format: str, content: bytes, rate: int) -> tuple[np.ndarray, int]:
    if format == "pcm":
        return np.frombuffer(content, "<i2") / 2**15, rate
    return soundfile.read(io.BytesIO(content))


def pitch(waveform: np.ndarray, rate: int) -> float:
    middle = waveform[len(waveform) // 4 : 3 * len(waveform) // 4]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle)), 1 << 18))
    return float(np.argmax(spectrum) * rate / (1 << 18))


@pytest.mark.parametrize("rate", SAMPLE_RATES)
@pytest.mark.parametrize("format", MEDIA_TYPES)
def test_every_format_at_every_rate_is_read_back(format, rate):
    """By two libraries. Fails when the MP3 has no constant bit rate, or keeps the empty frame in front."""
    if rate != output_rate(format, rate):
        pytest.skip("opus has no such rate")
    content, _ = encoded(format, tone(rate), rate)
    waveform, found = decoded(format, content, rate)
    assert found == rate
    # An MP3 has the encoder's delay in front and fills its last frame, of 576 samples, from 32 kHz on of 1152.
    allowed = (1105 + (576 if rate < 32_000 else 1152)) / rate if format == "mp3" else 0.0
    assert 0 <= len(waveform) / rate - 2 <= allowed
    assert pitch(waveform, rate) == pytest.approx(440, abs=1)
    assert np.sqrt(np.mean(waveform[len(waveform) // 4 : len(waveform) // 2] ** 2)) == pytest.approx(0.212, rel=0.1)
    if format != "pcm":
        with av.open(io.BytesIO(content)) as container:
            stream = container.streams.audio[0]
            samples = sum(frame.samples for frame in container.decode(stream))
            assert samples / stream.rate == pytest.approx(2, abs=max(allowed, 0.01))
            if format in ("mp3", "flac"):  # what a player shows
                assert container.duration / 1e6 == pytest.approx(2, abs=max(allowed, 0.01))


@pytest.mark.parametrize(("format", "seconds"), [("wav", 0.02), ("pcm", 0.02), ("mp3", 0.15), ("opus", 0.15)])
def test_bytes_come_while_it_is_spoken(format, seconds):
    """Fails when Ogg pages have the second that libsndfile gives them: then the second one comes late."""
    encoder = SpeechEncoder(format, 16_000, output_rate=16_000)
    sent = [len(encoder.encode(piece)) for piece in pieces_of(tone(16_000), 160)]
    when = [0.0, *(number * 0.01 for number, size in enumerate(sent, 1) if size)]
    assert len(when) > 10
    assert max(np.diff(when)) <= seconds + 1e-9


def test_flac_comes_whole_with_its_length():
    content, first = encoded("flac", tone(16_000), 16_000)
    assert first is None
    assert soundfile.info(io.BytesIO(content)).frames == 32_000


def test_a_wav_header_waits_for_sound_and_a_silent_file_still_has_one():
    """Fails when the header is sent by itself: a client would think that speech has begun."""
    encoder = SpeechEncoder("wav", 16_000, output_rate=16_000)
    assert encoder.encode(np.zeros(0, np.float32)) == b""
    assert encoder.finish()[:4] == b"RIFF"
    for format in ("flac", "mp3", "opus"):
        assert SpeechEncoder(format, 16_000, output_rate=16_000).finish()[:4] != b"RIFF"


def test_how_it_is_cut_does_not_matter():
    speech = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    for format in ("wav", "mp3", "flac"):
        one, _ = encoded(format, speech, 16_000, size=16_000, out=24_000)
        assert one == encoded(format, speech, 16_000, size=777, out=24_000)[0]


def test_loud_speech_is_clipped_and_does_not_wrap():
    """Opus is no proof: it makes steps of its own of what is clipped."""
    for format in ("wav", "flac", "mp3"):
        waveform, _ = decoded(format, encoded(format, 4 * tone(16_000), 16_000)[0], 16_000)
        assert np.abs(np.diff(waveform)).max() < 0.5, "a jump from full to minus full scale"


@pytest.mark.parametrize(("rate", "out"), [(8000, 24_000), (24_000, 8000), (16_000, 44_100)])
def test_another_rate_keeps_pitch_and_length(rate, out):
    """Fails when the resampler is not told that the last piece is the last."""
    content, _ = encoded("pcm", tone(rate), rate, out=out)
    waveform, _ = decoded("pcm", content, out)
    assert abs(len(waveform) - 2 * out) <= 1
    assert pitch(waveform, out) == pytest.approx(440, abs=1)


@pytest.mark.parametrize("speed", [0.25, 0.5, 0.8, 1.25, 2.0, 4.0])
@pytest.mark.parametrize("rate", [8000, 16_000, 24_000])
def test_speed_keeps_the_pitch_and_makes_the_length(speed, rate):
    """Fails when the half window that the filter drops at the end is not won back."""
    speech = np.concatenate([np.zeros(rate, np.float32), tone(rate), np.zeros(rate, np.float32)])
    for size in (160, 10**6):
        tempo = Tempo(rate, speed)
        result = np.concatenate([*(tempo.push(piece) for piece in pieces_of(speech, size)), tempo.finish()])
        assert len(result) == round(len(speech) / speed)
        loud = np.flatnonzero(np.abs(result) > 0.1) / rate
        assert loud[0] == pytest.approx(1 / speed, abs=0.06 / min(speed, 1))
        assert loud[-1] == pytest.approx(3 / speed, abs=0.06 / min(speed, 1))
        inside = result[round(1.2 * rate / speed) : round(2.8 * rate / speed)]
        assert pitch(inside, rate) == pytest.approx(440, abs=2)
        assert np.sqrt(np.mean(inside**2)) == pytest.approx(0.3 / np.sqrt(2), rel=0.1)


def test_speed_comes_while_it_is_spoken():
    tempo, came = Tempo(16_000, 1.5), []
    for number, piece in enumerate(pieces_of(tone(16_000), 160), 1):
        if len(tempo.push(piece)):
            came.append(number * 0.01)
    assert came[0] <= 0.2
    assert max(np.diff(came)) <= 0.1


def test_silence_of_no_length_has_no_length_at_any_speed():
    assert len(Tempo(16_000, 2.0).finish()) == 0


def test_rates_that_a_format_cannot_have():
    assert output_rate("opus", 22_050) == 24_000
    assert output_rate("wav", 16_000) == 16_000
    assert output_rate("mp3", 96_000) == 48_000
    assert output_rate("opus", 16_000, 8000) == 8000
    with pytest.raises(UserError, match="opus has no sample_rate of 44100; choose one of 8000"):
        output_rate("opus", 16_000, 44_100)


def test_a_format_that_libsndfile_lacks_is_refused(monkeypatch):
    """As of a libsndfile that was built without MP3."""
    containers = {name: text for name, text in soundfile.available_formats().items() if name != "MP3"}
    monkeypatch.setattr(soundfile, "available_formats", lambda: containers)
    assert available_formats() == ["opus", "flac", "wav", "pcm"]
    with pytest.raises(UserError, match="this server cannot make mp3; choose one of opus, flac, wav, pcm"):
        SpeechEncoder("mp3", 16_000, output_rate=16_000)


def test_speed_without_pyav_is_refused(monkeypatch):
    monkeypatch.setattr("llasa.serving.tempo.find_spec", lambda name: None)
    SpeechEncoder("wav", 16_000, output_rate=16_000)
    with pytest.raises(UserError, match="cannot change the speed; leave speed out"):
        SpeechEncoder("wav", 16_000, output_rate=16_000, speed=1.5)


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("format", MEDIA_TYPES)
def test_an_utterance_that_is_given_up_leaves_no_trace(format):
    """Fails when the file is a BytesIO: Python prints an error of libsndfile's, which writes into it after its end."""
    encoder = SpeechEncoder(format, 16_000, output_rate=16_000, speed=1.5)
    encoder.encode(tone(16_000))
    del encoder
    gc.collect()
