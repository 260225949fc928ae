"""Hundreds of damaged and unusual files: each costs its row at most, says why, and prints no traceback."""

from __future__ import annotations

import io
import re
import struct
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile

from llasa.audio import MAX_SAMPLES, MAX_SECONDS, decode_audio
from llasa.corpus.run import preprocess
from llasa.entry import compose_config
from llasa.errors import RejectedRow
from tests.corpus.recordings import audio_bytes, speech_like

RATE = 16_000
SPEECH = speech_like(1.5, seed=1)
REASONS = {"empty_audio", "unreadable_audio", "truncated_audio", "too_long"}

SOUND = {
    **{
        format: audio_bytes(SPEECH, RATE, format)
        for format in ("WAV", "FLAC", "MP3", "OGG", "AIFF", "AU", "W64", "RF64")
    },
    "OPUS": audio_bytes(SPEECH, RATE, "OGG", "OPUS"),
}
WAV, FLAC, MP3 = SOUND["WAV"], SOUND["FLAC"], SOUND["MP3"]

OK, REFUSED, EITHER = "ok", "refused", "either"


def patched(content: bytes, offset: int, *values: bytes) -> bytes:
    new = b"".join(values)
    return content[:offset] + new + content[offset + len(new) :]


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def streamed_flac(content: bytes) -> bytes:
    """Without the number of samples in its header, as an encoder writes that cannot go back."""
    return patched(content, 21, bytes([content[21] & 0xF0]), bytes(4))


def chunk(name: bytes, content: bytes) -> bytes:
    return name + u32(len(content)) + content + bytes(len(content) % 2)


def wav_with(*chunks: bytes) -> bytes:
    """The chunks between the format and the samples."""
    return b"RIFF" + u32(len(WAV) - 8 + sum(map(len, chunks))) + WAV[8:36] + b"".join(chunks) + WAV[36:]


def id3(size: int) -> bytes:
    return b"ID3\x04\0\0" + bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0)) + bytes(size)


FIRST_FRAME = MP3.index(MP3[:2], 4)
"""Of the MP3's sound; before it stands the frame with the index."""


def damaged_files() -> Iterator[tuple[str, bytes, str]]:
    """(name, content, what must become of it), always the same ones."""
    rng = np.random.default_rng(0)
    for name, content in SOUND.items():
        for cut in rng.integers(len(content) // 20, 9 * len(content) // 10, 12):
            yield f"{name}-cut-{cut}", content[:cut], REFUSED
    for name in ("WAV", "FLAC", "MP3", "OGG"):
        for number in range(16):
            content = bytearray(SOUND[name])
            for position in rng.integers(0, 64, 1 + number % 4):
                content[position] ^= 1 << rng.integers(8)
            yield f"{name}-header-{number}", bytes(content), EITHER
        for number in range(10):
            content = bytearray(SOUND[name])
            start = rng.integers(200, len(content) - 200)
            content[start : start + 100] = rng.bytes(100) if number % 2 else bytes(100)
            yield f"{name}-hole-{number}", bytes(content), EITHER
        for number in range(3):
            start = rng.integers(200, len(SOUND[name]) - 1000)
            yield f"{name}-lost-{number}", SOUND[name][:start] + SOUND[name][start + 777 :], EITHER
        for number in range(2):
            yield f"{name}-start-lost-{number}", SOUND[name][int(rng.integers(1, 30)) :], REFUSED

    yield from ((f"nothing-{size}", bytes(size), REFUSED) for size in (0, 1, 4, 44, 4096))
    yield from ((f"noise-{size}", rng.bytes(size), REFUSED) for size in (1, 11, 100, 5000))
    for subtype in ("FLOAT", "DOUBLE"):
        for number, value in enumerate((np.nan, np.inf, -np.inf, 1e30, 17.0)):
            samples = np.repeat(SPEECH[:, None].astype(np.float64), 2, axis=1)
            samples[1000] = (value, value)
            yield f"float-{subtype}-{number}", audio_bytes(samples, RATE, "WAV", subtype), REFUSED
        samples[1000] = (np.inf, -np.inf)
        yield f"float-{subtype}-both", audio_bytes(samples, RATE, "WAV", subtype), REFUSED

    for format in ("WAV", "FLAC", "AIFF", "W64"):
        yield f"192kHz-{format}", audio_bytes(speech_like(1.5, 1, 192_000), 192_000, format), OK
        yield f"8-channels-{format}", audio_bytes(np.repeat(SPEECH[:, None], 8, axis=1), RATE, format), OK
    yield "8-channels-OGG", audio_bytes(np.repeat(SPEECH[:, None], 8, axis=1), RATE, "OGG"), OK
    yield from (
        (f"channels-{count}", patched(WAV, 22, struct.pack("<H", count)), REFUSED) for count in (0, 1025, 65_535)
    )
    yield from ((f"rate-{rate}", patched(WAV, 24, u32(rate)), REFUSED) for rate in (0, 768_001, 2**31 - 1, 2**32 - 1))
    yield from ((f"slow-{rate}", patched(WAV, 24, u32(rate)), REFUSED) for rate in (1, 6))  # hours
    yield from ((f"claims-{size}", patched(WAV, 40, u32(size)), REFUSED) for size in (60_000, 10 * 3600 * 32_000))
    yield from ((f"bits-{bits}", patched(WAV, 34, struct.pack("<H", bits)), REFUSED) for bits in (0, 4096))
    yield "flac-claims-weeks", patched(FLAC, 21, bytes([FLAC[21] | 0x0F]), b"\xff" * 4), REFUSED
    yield "flac-claims-minutes", patched(FLAC, 21, bytes([FLAC[21] & 0xF0]), struct.pack(">I", 60 * RATE)), REFUSED
    yield from (  # libsndfile then seeks to before the start
        (f"negative-{format}", patched(SOUND[format], offset, value), EITHER)
        for format, offset, value in (("AIFF", 35, b"\x80\0\0\0"), ("W64", 100, b"\xff" * 4), ("RF64", 32, b"\xff" * 4))
    )
    sds = audio_bytes(SPEECH, RATE, "SDS")  # libsndfile prints its damage, and decodes it
    yield "no-corpus-sds", patched(sds, 1000, rng.bytes(500)), REFUSED
    yield "mp3-claims-more", patched(MP3, MP3.index(b"Xing") + 8, struct.pack(">I", 999)), REFUSED

    for name, content in {
        "text": b"Il gatto dorme.\n" * 100, "page": b"<!DOCTYPE html><html>404</html>" * 20, "json": b'{"error": 1}',
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "png": b"\x89PNG\r\n\x1a\n",
        "zip": b"PK\x03\x04" * 500, "mp4": b"\0\0\0\x20ftypM4A " * 99, "webm": b"\x1aE\xdf\xa3" * 500,
        "avi": patched(WAV, 8, b"AVI "), "riff-alone": b"RIFF", "riff-empty": b"RIFF\0\0\0\0WAVE",
        "ogg-alone": b"OggS", "ogg-other": patched(SOUND["OGG"], 28, b"\x01video\0"), "id3-alone": id3(100),
        "id3-lies": b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + MP3, "riff-in-riff": b"RIFF" + u32(len(WAV)) + WAV,
    }.items():  # fmt: skip
        yield f"no-audio-{name}", content, REFUSED
    yield "riff-as-samples", WAV[:40] + u32(len(WAV)) + WAV, OK  # a WAV as another's samples: a crackle, then speech

    yield "wav-piped", patched(patched(WAV, 4, u32(2**32 - 1)), 40, u32(2**32 - 1)), OK
    yield "wav-piped-sox", patched(patched(WAV, 4, u32(0x7FFFF024)), 40, u32(0x7FFFF000)), OK
    yield "wav-piped-zero", patched(patched(WAV, 4, u32(0)), 40, u32(0)), OK
    yield "wav-riff-size-wrong", patched(WAV, 4, u32(len(WAV) + 50_000)), OK  # the samples are all there
    yield "aiff-form-size-wrong", patched(SOUND["AIFF"], 4, struct.pack(">I", len(WAV) + 50_000)), OK
    yield "wav-cut-behind-its-samples", WAV + chunk(b"LIST", bytes(9000))[:99], OK
    yield "wav-counts-its-header", patched(WAV, 40, u32(len(WAV))), OK
    yield "wav-empty", patched(WAV[:44], 40, u32(0)), REFUSED
    yield "flac-streamed", streamed_flac(FLAC), OK
    yield "flac-streamed-cut", streamed_flac(FLAC)[: len(FLAC) // 2], REFUSED
    yield "mp3-without-index", MP3[FIRST_FRAME:], OK
    yield "mp3-tagged", id3(3000) + MP3 + b"TAG" + bytes(125), OK
    yield "mp3-filled-up", MP3 + bytes(5000), OK
    yield "mp3-low-bit-rate", MP3[:FIRST_FRAME] + b"\xff\xf3\x18\xc4" * 9, EITHER  # frames with no room for an index
    yield "mp3-last-frame-cut", MP3[:-20], OK
    for format in ("WAVEX", "CAF", "NIST", "VOC", "AU", "RF64", "W64", "AIFF"):
        yield f"format-{format}", audio_bytes(SPEECH, RATE, format), OK
    yield "format-au-streamed", patched(SOUND["AU"], 8, b"\xff" * 4), OK
    yield "header-of-megabytes", wav_with(chunk(b"LIST", bytes(3_000_000))), OK
    yield "header-of-chunks", wav_with(*[chunk(b"junk", bytes(2))] * 5000), OK
    yield "mp3-header-of-megabytes", id3(3_000_000) + MP3, OK
    block = b"\x01" + (2_000_000).to_bytes(3, "big") + bytes(2_000_000)
    yield "header-of-flac", FLAC[:42] + block + FLAC[42:], OK


FILES = {name: (content, expected) for name, content, expected in damaged_files()}


def outcome(content: bytes | Path, max_seconds: float = MAX_SECONDS) -> tuple[str, str]:
    """(reason or "ok", detail)."""
    try:
        waveform, rate = decode_audio(content, max_seconds)
    except RejectedRow as refused:
        return refused.reason, refused.detail
    assert waveform.dtype == np.float32
    assert waveform.ndim == 1
    assert len(waveform) > 0
    assert np.isfinite(waveform).all()
    assert 1 <= rate <= 768_000
    return OK, ""


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_every_file_decodes_or_is_refused_with_a_reason(capfd):
    assert len(FILES) >= 300
    wrong, found = {}, Counter()
    for name, (content, expected) in FILES.items():
        reason, detail = outcome(content)
        found[reason] += 1
        if reason != OK and (reason not in REASONS or not detail or "0x" in detail):
            wrong[name] = f"{reason}: {detail}"
        if (expected == OK and reason != OK) or (expected == REFUSED and reason == OK):
            wrong[name] = f"{expected} wanted, {reason}: {detail}"
    assert wrong == {}
    assert found.keys() == {OK, "empty_audio", "unreadable_audio", "truncated_audio"}
    assert min(found["truncated_audio"], found["unreadable_audio"], found[OK]) > 40
    check_output(capfd.readouterr())


def test_an_mp3_that_was_cut_is_refused_without_a_word(capfd):
    """Before mpg123 sees it, which would tell the terminal."""
    cuts = [content for name, (content, _) in FILES.items() if name.startswith("MP3-cut")]
    assert len(cuts) == 12
    assert {outcome(content)[0] for content in cuts} == {"truncated_audio"}
    assert capfd.readouterr() == ("", "")


def check_output(captured) -> None:
    """mpg123 writes of bits that it cannot decode, in C; nothing else writes."""
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert [line for line in lines if not re.match(r"\[src/libmpg123|Warning: |Note: |$", line)] == []


@pytest.mark.parametrize("name", [name for name, (_, expected) in FILES.items() if expected == OK])
def test_an_unusual_file_is_read_whole(name):
    waveform, rate = decode_audio(FILES[name][0])
    expected = len(SPEECH) / RATE + (44 / 32_000 if name == "riff-as-samples" else 0)
    assert len(waveform) / rate == pytest.approx(expected, abs=0.1 if name.startswith("mp3") else 1e-3)
    if rate == RATE and not name.startswith(("mp3", "riff")):
        np.testing.assert_allclose(waveform, SPEECH, atol=0.1 if name.endswith("OGG") else 1e-3)
    if name.startswith("mp3"):
        best = max(np.corrcoef(waveform[shift:][:20_000], SPEECH[:20_000])[0, 1] for shift in range(2000))
        assert best > 0.98


@pytest.mark.parametrize("format", SOUND)
def test_each_loss_beyond_a_tenth_of_a_second_is_seen(format):
    content = SOUND[format]
    assert outcome(content)[0] == OK
    byte_rate = len(content) / 1.5
    for seconds in (0.2, 0.5, 1.0, 1.4):
        assert outcome(content[: len(content) - round(seconds * byte_rate)])[0] in REASONS, seconds
    if format in ("WAV", "AIFF", "AU", "W64", "RF64"):
        assert outcome(content[:-3000])[0] == OK  # 94 ms
        assert outcome(content[:-3500])[0] == "truncated_audio"


def test_a_path_is_refused_in_the_same_words(tmp_path):
    for name, (content, expected) in list(FILES.items())[::9]:
        if expected == EITHER or not content:
            continue
        path = tmp_path / "clip.au"  # a name that libsndfile would believe of a file it does not know
        path.write_bytes(content)
        assert outcome(path) == outcome(content), name


# --- memory ----------------------------------------------------------------------------------------------------------


@cache
def silent_flac(seconds: int, channels: int) -> bytes:
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", 48_000, channels, format="FLAC") as file:
        for _ in range(seconds):
            file.write(np.zeros((48_000, channels), dtype=np.int16))
    return buffer.getvalue()


@pytest.mark.parametrize("streamed", [False, True])
def test_a_small_file_of_many_samples_takes_no_memory(streamed):
    """Two minutes of eight channels are 184 MB of samples, in some KB."""
    content = silent_flac(120, 8)
    assert len(content) < 200_000
    content = streamed_flac(content) if streamed else content
    tracemalloc.start()
    with pytest.raises(RejectedRow, match="too_long"):
        decode_audio(content, max_seconds=30)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6


def test_a_stream_without_end_is_left_at_the_limit(monkeypatch):
    monkeypatch.setattr("llasa.audio.MAX_SAMPLES", 3 * 48_000)
    monkeypatch.setattr("llasa.audio.BLOCK_SAMPLES", 48_000)
    assert MAX_SAMPLES == 3600 * 48_000
    assert len(decode_audio(streamed_flac(silent_flac(3, 1)))[0]) == 3 * 48_000
    with pytest.raises(RejectedRow, match="too_long: more than 3 s"):
        decode_audio(streamed_flac(silent_flac(5, 1)))


def test_the_samples_are_those_of_one_block(monkeypatch):
    stereo = np.stack([SPEECH, speech_like(1.5, 2)], axis=1)
    contents = [audio_bytes(stereo, RATE, format) for format in ("WAV", "FLAC", "OGG", "MP3")]
    contents += [streamed_flac(contents[1])]
    whole = [decode_audio(content)[0] for content in contents]
    for size in (1, 1000, 2 * len(SPEECH)):
        monkeypatch.setattr("llasa.audio.BLOCK_SAMPLES", max(size, 7))
        for content, expected in zip(contents, whole, strict=True):
            if size > 1:
                np.testing.assert_array_equal(decode_audio(content)[0], expected)
    assert [len(waveform) for waveform in whole] == [len(SPEECH)] * 5


# --- a corpus of them ------------------------------------------------------------------------------------------------


def test_a_corpus_of_them_costs_only_the_rows(tmp_path, capfd):
    lines = []
    for number, (name, (content, _)) in enumerate(FILES.items()):
        (tmp_path / f"{number:03d}.wav").write_bytes(content)
        lines.append(f'{{"audio": "{number:03d}.wav", "text": "Il gatto dorme sul divano.", "id": "{name}"}}\n')
    (tmp_path / "corpus.jsonl").write_text("".join(lines), encoding="utf-8")
    overrides = ["dataset=manifest", f"dataset.path={tmp_path}/corpus.jsonl", "lang=it", "codec=codec2",
                 f"store={tmp_path}/store", "filters.duplicates=off", "filters.characters_per_second=null",
                 "filters.max_clipped=null", "filters.min_sample_rate=null"]  # fmt: skip
    manifest = preprocess(compose_config("preprocess", overrides))
    alone = Counter(outcome(content, max_seconds=30)[0] for content, _ in FILES.values())
    assert manifest["rows"] + sum(manifest["dropped"].values()) == len(FILES)
    for reason in ("truncated_audio", "unreadable_audio", "empty_audio"):
        assert manifest["dropped"][reason] == alone[reason] > 0
    assert manifest["rows"] > 0.8 * alone[OK]
    assert "Traceback" not in capfd.readouterr().err
    assert len((tmp_path / "store" / "rejects.jsonl").read_text().splitlines()) == sum(manifest["dropped"].values())
