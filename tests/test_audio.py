"""Waveforms in and out: real files of each format, every reason to refuse one, and writing that is all or nothing."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

from llasa.audio import decode_audio, read_audio, resample, write_wav
from llasa.errors import RejectedRow
from tests.corpus.recordings import audio_bytes, speech_like, tone

RATE = 16_000
SPEECH = speech_like(1.5, seed=1)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def peak_frequency(waveform: np.ndarray, rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    return float(spectrum.argmax() * rate / len(waveform))


# --- decoding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["bytes", "Path", "str"])
@pytest.mark.parametrize("format", ["WAV", "FLAC", "MP3", "OGG"])
def test_each_format_decodes_from_bytes_and_path(format, form, tmp_path):
    content = audio_bytes(SPEECH, RATE, format)
    path = tmp_path / f"clip.{format.lower()}"
    path.write_bytes(content)
    waveform, rate = decode_audio({"bytes": content, "Path": path, "str": str(path)}[form])
    assert rate == RATE
    assert waveform.dtype == np.float32
    assert waveform.shape == SPEECH.shape
    if format in ("WAV", "FLAC"):
        np.testing.assert_allclose(waveform, SPEECH, atol=1 / 32768)
    else:
        assert correlation(waveform, SPEECH) > 0.98
        assert np.std(waveform) == pytest.approx(np.std(SPEECH), rel=0.05)


def test_the_format_is_told_by_the_content_not_the_name(tmp_path):
    path = tmp_path / "clip.wav"
    content = audio_bytes(SPEECH, RATE, "FLAC")
    path.write_bytes(content)
    np.testing.assert_array_equal(decode_audio(path)[0], decode_audio(content)[0])


def test_channels_are_averaged():
    left, right = tone(440, 0.5, RATE), tone(1000, 0.5, RATE)
    stereo, _ = decode_audio(audio_bytes(np.stack([left, right], axis=1), RATE))
    assert stereo.shape == left.shape
    np.testing.assert_allclose(stereo, (left + right) / 2, atol=1 / 32768)
    six = np.zeros((len(left), 6), dtype=np.float32)
    six[:, 4] = left
    np.testing.assert_allclose(decode_audio(audio_bytes(six, RATE))[0], left / 6, atol=1 / 32768)


def test_a_float_file_may_pass_full_scale():
    loud = 3 * SPEECH
    np.testing.assert_array_equal(decode_audio(audio_bytes(loud, RATE, "WAV", "FLOAT"))[0], loud)


# --- resampling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [8_000, 16_000, 24_000])
@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000])
def test_resampling_keeps_duration_pitch_and_level(rate, target):
    original = tone(1000, 0.73, rate)
    resampled = resample(original, rate, target)
    assert resampled.dtype == np.float32
    assert abs(len(resampled) - len(original) * target / rate) <= 1
    assert peak_frequency(resampled, target) == pytest.approx(1000, abs=2)
    assert np.std(resampled) == pytest.approx(np.std(original), rel=0.01)


def test_resampling_removes_what_the_new_rate_cannot_hold():
    assert np.std(tone(6_000, 0.5, 16_000)) > 0.2
    assert np.std(resample(tone(6_000, 0.5, 16_000), 16_000, 8_000)) < 0.01


def test_the_same_rate_changes_nothing():
    np.testing.assert_array_equal(resample(SPEECH, RATE, RATE), SPEECH)


def test_read_audio_decodes_and_resamples():
    stereo = np.stack([tone(500, 0.5, 44_100)] * 2, axis=1)
    waveform = read_audio(audio_bytes(stereo, 44_100, "FLAC"), 8_000)
    assert len(waveform) == 4_000
    assert peak_frequency(waveform, 8_000) == pytest.approx(500, abs=2)


# --- refusals --------------------------------------------------------------------------------------------------------

WAV, FLAC = audio_bytes(SPEECH, RATE, "WAV"), audio_bytes(SPEECH, RATE, "FLAC")
NOT_FINITE = SPEECH.copy()
NOT_FINITE[100] = np.nan
INFINITE = SPEECH.copy()
INFINITE[100] = -np.inf
ENDLESS = FLAC[:21] + bytes([FLAC[21] | 0x0F]) + b"\xff" * 4 + FLAC[26:]  # the header's count of samples: 2 ** 36 - 1

UNUSABLE_CONTENT = {
    "no bytes": (b"", "empty_audio"),
    "wav without samples": (audio_bytes(np.zeros(0, np.float32), RATE), "empty_audio"),
    "noise": (np.random.default_rng(0).bytes(5_000), "unreadable_audio"),
    "a web page": (b"<html><body>404</body></html>" * 20, "unreadable_audio"),
    "four bytes": (WAV[:4], "unreadable_audio"),
    "wav header cut": (WAV[:20], "unreadable_audio"),
    "flac header cut": (FLAC[:20], "unreadable_audio"),
    "flac cut in the middle": (FLAC[: len(FLAC) // 2], "unreadable_audio"),
    "flac damaged in the middle": (FLAC[:5_000] + b"\xff" * 50 + FLAC[5_050:], "unreadable_audio"),
    "header claims weeks": (ENDLESS, "unreadable_audio"),
    "not a number": (audio_bytes(NOT_FINITE, RATE, "WAV", "FLOAT"), "unreadable_audio"),
    "infinite": (audio_bytes(INFINITE, RATE, "WAV", "FLOAT"), "unreadable_audio"),
    "integers stored as floats": (audio_bytes(32768 * SPEECH, RATE, "WAV", "FLOAT"), "unreadable_audio"),
}


@pytest.mark.parametrize("name", UNUSABLE_CONTENT)
def test_unusable_content_is_refused_with_its_reason(name, tmp_path):
    content, reason = UNUSABLE_CONTENT[name]
    path = tmp_path / "clip.wav"
    path.write_bytes(content)
    details = []
    for source in (content, path):
        with pytest.raises(RejectedRow) as refused:
            decode_audio(source)
        assert refused.value.reason == reason
        details.append(refused.value.detail)
        assert refused.value.detail
        # It goes into the store, whose bytes are the same in every run: no address in memory.
        assert not re.search(r"0x[0-9a-f]{6}", refused.value.detail)
    if reason == "unreadable_audio":
        assert details[0] == details[1]


@pytest.mark.parametrize("name", ["nothing.wav", "folder", "a" * 300 + ".wav", "nothing.wav/clip.wav", "nul\0.wav"])
@pytest.mark.parametrize("kind", [Path, str])
def test_a_file_that_is_not_there_is_missing(name, kind, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(RejectedRow) as refused:
        decode_audio(kind(f"{tmp_path}/{name}"))
    assert refused.value.reason == "missing_audio"
    assert name[:100] in refused.value.detail
    assert len(refused.value.detail) < 350


def test_nothing_left_after_resampling_is_empty():
    with pytest.raises(RejectedRow) as refused:
        read_audio(audio_bytes(SPEECH[:2], 96_000), 8_000)
    assert refused.value.reason == "empty_audio"


# --- writing ---------------------------------------------------------------------------------------------------------


def test_written_files_read_back(tmp_path):
    path = tmp_path / "new" / "folder" / "clip.wav"
    write_wav(path, SPEECH, RATE)
    waveform, rate = decode_audio(path)
    assert rate == RATE
    np.testing.assert_allclose(waveform, SPEECH, atol=1 / 32768)
    assert soundfile.info(path).subtype == "PCM_16"
    assert [file.name for file in path.parent.iterdir()] == ["clip.wav"]


def test_writing_clips_instead_of_wrapping(tmp_path):
    write_wav(tmp_path / "clip.wav", np.array([-2.0, -1.0, 0.0, 1.0, 2.0], dtype=np.float32), RATE)
    np.testing.assert_allclose(decode_audio(tmp_path / "clip.wav")[0], [-1, -1, 0, 1, 1], atol=1 / 32767)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "clip.wav"
    write_wav(path, SPEECH, RATE)
    before = path.read_bytes()
    for unusable in (np.zeros((2, 2, 2), dtype=np.float32), np.array(["no sound"])):
        with pytest.raises((ValueError, TypeError)):
            write_wav(path, unusable, RATE)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]


def test_a_reader_never_sees_half_a_file(tmp_path):
    path = tmp_path / "clip.wav"
    versions = [tone(440, 2.0, RATE), tone(880, 1.0, RATE)]
    write_wav(path, versions[0], RATE)
    done = threading.Event()

    def write_again_and_again() -> None:
        for index in range(100):
            write_wav(path, versions[index % 2], RATE)
        done.set()

    writer = threading.Thread(target=write_again_and_again)
    writer.start()
    contents = set()
    while not done.is_set():
        contents.add(path.read_bytes())
    writer.join()
    assert contents <= {audio_bytes(version, RATE) for version in versions}
    assert len(contents) == 2
