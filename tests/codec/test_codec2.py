"""Codec2 as a token codec: lengths, bits and samples against pycodec2 itself, and clips that do not disturb each other.

pycodec2 runs in processes of its own: imported here, it would keep libcodec2 loaded, and its generator running on.
"""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from llasa.audio import read_audio
from llasa.codec.base import CodecSpec
from llasa.codec.codec2 import Codec2
from llasa.corpus.espeak import EspeakSource
from tests.corpus.recordings import speech_like

ROOT = Path(__file__).parents[2]
FRAME = 160

PYCODEC2 = """
import sys
import numpy as np
import pycodec2

task, given, result = sys.argv[1:]
outputs = []
for clip in np.load(given).values():
    coder = pycodec2.Codec2(2400)
    if task == "encode":
        outputs.append(np.array([list(coder.encode(frame)) for frame in clip.reshape(-1, 160)], dtype=np.uint8))
    else:
        outputs.append(np.concatenate([coder.decode(bytes(frame)) for frame in clip]))
np.savez(result, *outputs)
"""


def pycodec2(task: str, clips: list[np.ndarray], folder: Path) -> list[np.ndarray]:
    """In a fresh process, a coder for each clip: ``encode`` int16 [samples] → bytes [frames, 6], or ``decode`` back."""
    np.savez(folder / "given.npz", *clips)
    command = [sys.executable, "-c", PYCODEC2, task, str(folder / "given.npz"), str(folder / "result.npz")]
    subprocess.run(command, check=True)
    return list(np.load(folder / "result.npz").values())


def as_pcm(waveform: np.ndarray) -> np.ndarray:
    """int16 [frames * 160], by the slow way: one sample at a time, silence to the end of the frame."""
    samples = [max(-32768, min(32767, round(float(value) * 32767))) for value in waveform]
    return np.array(samples + [0] * (-len(samples) % FRAME), dtype=np.int16)


def frame_bytes(codes: np.ndarray) -> np.ndarray:
    """Codes to bytes [frames, 6], by the slow way: a string of bits."""
    frames = []
    for a, b, c, d in np.asarray(codes, dtype=int).reshape(-1, 4):
        bits = f"{a:010b}{b - 1024:012b}{c - 5120:012b}{d - 9216:012b}00"
        frames.append([int(bits[i : i + 8], 2) for i in range(0, 48, 8)])
    return np.array(frames, dtype=np.uint8)


@pytest.fixture(scope="module")
def codec() -> Codec2:
    return Codec2()


@pytest.fixture(scope="module")
def speech() -> list[np.ndarray]:
    """Four Italian sentences at 8 kHz, two voices."""
    source = EspeakSource(language="it", voices=["m3", "f2"], words_per_minute=160, validation=0, test=0, limit=4)
    return [read_audio(source.row("train", index).audio, 8_000) for index in range(4)]


@pytest.fixture(scope="module")
def clips(speech) -> list[np.ndarray]:
    """Voices, hiss (whose decoding draws on the generator), silence and odd lengths."""
    hiss = 0.1 * np.random.default_rng(0).standard_normal(3_333)
    return [*speech, hiss.astype(np.float32), np.zeros(500, np.float32), speech_like(0.7, 3, 8_000), speech[0][:1]]


# --- codes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [0, 1, 2, 80, 159, 160, 161, 319, 320, 321, 1_600, 7_999, 8_000, 12_345])
def test_a_clip_becomes_as_many_codes_as_promised(codec, samples):
    codes = codec.encode([speech_like(2.0, 5, 8_000)[:samples]])[0]
    frames = (samples + 159) // 160
    assert len(codes) == codec.num_codes(samples) == 4 * frames
    assert codes.dtype == codec.spec.code_dtype == np.uint16
    for position, (start, stop) in enumerate(codec.spec.code_ranges):
        assert ((start <= codes[position::4]) & (codes[position::4] < stop)).all()
    waveform = codec.decode([codes])[0]
    assert waveform.shape == (frames * FRAME,)
    assert waveform.dtype == np.float32


def test_codes_say_something(codec, speech):
    parts = np.concatenate(codec.encode(speech)).reshape(-1, 4)
    assert len(parts) > 300
    for position in range(4):
        assert len(np.unique(parts[:, position])) > 50


def test_the_ranges_tile_the_codebook(codec):
    ranges = codec.spec.code_ranges
    assert [stop - start for start, stop in ranges] == [1024, 4096, 4096, 4096]
    assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges[:-1])]
    assert ranges[-1][1] == codec.spec.codebook_size == 13_312
    assert codec.spec.tokens_per_second == 200


def test_the_spec_survives_json(codec):
    assert CodecSpec.from_dict(json.loads(json.dumps(codec.spec.to_dict()))) == codec.spec


def test_the_last_frame_is_filled_with_silence(codec, speech):
    cut = speech[0][:4_001]
    np.testing.assert_array_equal(codec.encode([cut])[0], codec.encode([np.pad(cut, (0, 159))])[0])


def test_what_passes_full_scale_is_clipped(codec, speech):
    loud = 20 * speech[0]
    assert np.abs(loud).max() > 2
    np.testing.assert_array_equal(codec.encode([loud])[0], codec.encode([np.clip(loud, -1, 1)])[0])


# --- against pycodec2 ------------------------------------------------------------------------------------------------


def test_codes_are_the_bits_of_pycodec2(codec, clips, tmp_path):
    expected = pycodec2("encode", [as_pcm(clip) for clip in clips], tmp_path)
    assert len(expected) == len(clips)
    for codes, frames in zip(codec.encode(clips), expected, strict=True):
        assert len(frames) > 0
        np.testing.assert_array_equal(frame_bytes(codes), frames)
        assert (frames[:, -1] & 3 == 0).all()


@pytest.mark.parametrize("index", [0, 3, 4])
def test_samples_are_those_of_a_fresh_pycodec2(codec, clips, index, tmp_path):
    codes = codec.encode(clips)[index]
    expected = pycodec2("decode", [frame_bytes(codes)], tmp_path)[0]
    np.testing.assert_array_equal(codec.decode([codes])[0] * 32768, expected)


def test_pycodec2_itself_depends_on_what_came_before(codec, clips, tmp_path):
    """Why a library is loaded for each clip; should this fail, the loading can go."""
    hiss = frame_bytes(codec.encode([clips[4]])[0])
    first, second = pycodec2("decode", [hiss, hiss], tmp_path)
    assert not np.array_equal(first, second)


def test_beside_the_module_pycodec2_it_refuses():
    program = "import pycodec2, numpy; from llasa.codec.codec2 import Codec2; Codec2().encode([numpy.zeros(9)])"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "not repeatable" in result.stderr


# --- sound -----------------------------------------------------------------------------------------------------------


def band_levels(waveform: np.ndarray) -> np.ndarray:
    """Level in dB of 13 bands of 300 Hz from 100 Hz on, in steps of 20 ms: [steps, bands]."""
    frames = np.lib.stride_tricks.sliding_window_view(waveform, 320)[::160] * np.hanning(320)
    power = np.abs(np.fft.rfft(frames)) ** 2
    bands = power[:, 4:160].reshape(len(power), 13, 12).mean(axis=2)
    return 10 * np.log10(bands + 1e-6)


def likeness(before: np.ndarray, after: np.ndarray) -> float:
    """Correlation of the band levels, allowing for the codec's delay of one frame."""
    given, heard = band_levels(before), band_levels(after)[1:]
    steps = min(len(given), len(heard))
    return float(np.corrcoef(given[:steps].ravel(), heard[:steps].ravel())[0, 1])


def test_decoded_speech_keeps_its_level_and_its_spectrum(codec, speech):
    decoded = codec.decode(codec.encode(speech))
    for index, (before, after) in enumerate(zip(speech, decoded, strict=True)):
        assert np.sqrt(np.mean(after**2) / np.mean(before**2)) == pytest.approx(1, abs=0.2)
        assert likeness(before, after) > 0.85
        assert likeness(before, decoded[(index + 1) % len(decoded)]) < 0.6  # another sentence is no match


# --- independence ----------------------------------------------------------------------------------------------------


def test_codes_do_not_depend_on_neighbours_or_order(codec, clips):
    alone = [codec.encode([clip])[0] for clip in clips]
    for together, expected in zip(codec.encode(clips), alone, strict=True):
        np.testing.assert_array_equal(together, expected)
    for together, expected in zip(codec.encode(clips[::-1]), alone[::-1], strict=True):
        np.testing.assert_array_equal(together, expected)


def test_sound_does_not_depend_on_neighbours_order_or_repetition(codec, clips):
    codes = codec.encode(clips)
    alone = [Codec2().decode([clip])[0] for clip in codes]
    assert all(np.abs(waveform).max() > 0.01 for waveform in alone[:5])
    for _ in range(2):
        for together, expected in zip(codec.decode(codes), alone, strict=True):
            np.testing.assert_array_equal(together, expected)
    for together, expected in zip(codec.decode(codes[::-1]), alone[::-1], strict=True):
        np.testing.assert_array_equal(together, expected)


def test_threads_do_not_disturb_each_other(codec, clips):
    codes = codec.encode(clips)
    waveforms = codec.decode(codes)
    with ThreadPoolExecutor(4) as pool:
        encoded = [pool.submit(codec.encode, [clip]) for clip in clips * 3]
        decoded = [pool.submit(codec.decode, [clip]) for clip in codes * 3]
        for future, expected in zip(encoded, codes * 3, strict=True):
            np.testing.assert_array_equal(future.result()[0], expected)
        for future, expected in zip(decoded, waveforms * 3, strict=True):
            np.testing.assert_array_equal(future.result()[0], expected)


# --- what cannot be decoded ------------------------------------------------------------------------------------------

FRAME_OF_CODES = [5, 1024 + 6, 5120 + 7, 9216 + 8]


@pytest.mark.parametrize("length", [1, 2, 3, 5, 7])
def test_parts_of_frames_are_refused(codec, length):
    with pytest.raises(ValueError, match=f"^{length} codes are no whole number of frames"):
        codec.decode([np.array((FRAME_OF_CODES * 2)[:length], dtype=np.uint16)])


@pytest.mark.parametrize(
    ("position", "code"),
    [(0, 1024), (0, -1), (1, 1023), (1, 5120), (2, 5119), (2, 9216), (3, 9215), (3, 13_312), (3, 65_535)],
)
def test_codes_out_of_their_place_are_refused(codec, position, code):
    codes = np.array(FRAME_OF_CODES * 2)
    assert len(codec.decode([codes])[0]) == 2 * FRAME
    codes[4 + position] = code
    with pytest.raises(ValueError, match="outside the range"):
        codec.decode([codes])


def test_the_ends_of_every_range_decode(codec):
    low, high = ([limits[side] - side for limits in codec.spec.code_ranges] for side in (0, 1))
    assert len(codec.decode([np.array(low + high, dtype=np.uint16)])[0]) == 2 * FRAME


def test_no_clips_give_no_results(codec):
    assert codec.encode([]) == []
    assert codec.decode([]) == []
