"""Streams against offline decoding: Codec2's bit for bit, windows of XCodec2 within a stated tolerance.

XCodec2 is a small one with random weights; the codes are those of Italian speech.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from llasa.audio import read_audio, resample
from llasa.codec.base import Codec, StreamingCodec
from llasa.codec.codec2 import Codec2
from llasa.codec.xcodec2 import XCodec2
from llasa.corpus.espeak import EspeakSource
from llasa.errors import UserError
from llasa.generation.streaming import CROSSFADE_SECONDS, FIRST_SECONDS, LOOKAHEAD_SECONDS, WindowedDecoder, open_stream
from tests.codec.deep_xcodec2 import save_deep_xcodec2
from tests.codec.tiny_xcodec2 import save_tiny_xcodec2

ROOT = Path(__file__).parents[2]
WHOLE = {"first_seconds": 0.4, "chunk_seconds": 4, "context_seconds": 8, "lookahead_seconds": 0.6}


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """10 s of Italian at 16 kHz."""
    source = EspeakSource(language="it", voices=["m3", "f2"], words_per_minute=160, validation=0, test=0, limit=6)
    return np.concatenate([read_audio(source.row("train", index).audio, 16_000) for index in range(6)])[:160_000]


@pytest.fixture(scope="module")
def codec2() -> Codec2:
    return Codec2()


@pytest.fixture(scope="module")
def codes(codec2, speech) -> np.ndarray:
    """Of Codec2, 10 s."""
    return codec2.encode([resample(speech, 16_000, 8_000)])[0]


@pytest.fixture(scope="module")
def xcodec2(tmp_path_factory) -> XCodec2:
    return XCodec2(checkpoint=str(save_tiny_xcodec2(tmp_path_factory.mktemp("tiny"))), device="cpu")


@pytest.fixture(scope="module")
def deep(tmp_path_factory) -> XCodec2:
    return XCodec2(checkpoint=str(save_deep_xcodec2(tmp_path_factory.mktemp("deep"))), device="cpu")


def streamed(decoder, codes: np.ndarray, sizes: int | list[int]) -> list[np.ndarray]:
    """The pieces of a stream whose codes come ``sizes`` at a time."""
    steps = sizes if isinstance(sizes, list) else [sizes] * -(-len(codes) // sizes)
    pieces = [decoder.push(part) for part in np.split(codes, np.cumsum(steps)[:-1])]
    return [*pieces, decoder.finish()]


def signal_to_difference(expected: np.ndarray, given: np.ndarray) -> float:
    """dB"""
    return 10 * float(np.log10((expected**2).sum() / ((expected - given) ** 2).sum()))


def log_spectral_distance(expected: np.ndarray, given: np.ndarray) -> float:
    """Root mean square difference in dB of the spectra of 40 ms, on average."""

    def levels(waveform: np.ndarray) -> np.ndarray:
        frames = np.lib.stride_tricks.sliding_window_view(waveform, 640)[::320] * np.hanning(640)
        return 20 * np.log10(np.abs(np.fft.rfft(frames)) + 1e-5)

    return float(np.sqrt(((levels(expected) - levels(given)) ** 2).mean(axis=1)).mean())


# --- Codec2: exact ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [4, 10, 1, 2000])
def test_codec2_streams_equal_offline_bit_for_bit(codec2, codes, sizes):
    """Fails when the coder is created anew for each push, or codes of a begun frame are dropped."""
    codes = codes[:1000]
    expected = codec2.decode([codes])[0]
    assert expected.std() > 0.01
    pieces = streamed(open_stream(codec2), codes, sizes)
    assert all(piece.dtype == np.float32 for piece in pieces)
    np.testing.assert_array_equal(np.concatenate(pieces), expected)


def test_codec2_gives_each_frame_at_once(codec2, codes):
    stream = open_stream(codec2)
    assert [len(stream.push(part)) for part in np.split(codes[:12], [4, 6, 12])] == [160, 0, 320, 0]
    assert len(stream.finish()) == 0


def test_codec2_streams_do_not_disturb_each_other(codec2, codes):
    """Fails when streams load the library under its own name, and so share the generator that is static in it."""
    clips = [codes[:800], codes[800:1600], np.random.default_rng(0).permutation(codes.reshape(-1, 4)[:200]).ravel()]
    expected = codec2.decode(clips)
    streams = [open_stream(codec2) for _ in clips]
    parts: list[list[np.ndarray]] = [[] for _ in clips]
    for start in range(0, 800, 40):
        for stream, clip, pieces in zip(streams, clips, parts, strict=True):
            pieces.append(stream.push(clip[start : start + 40]))
        np.testing.assert_array_equal(codec2.decode([clips[0]])[0], expected[0])  # offline, between two pieces
    for pieces, waveform in zip(parts, expected, strict=True):
        np.testing.assert_array_equal(np.concatenate(pieces), waveform)

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(streamed, open_stream(codec2), clip, 20) for clip in clips * 4]
        for future, waveform in zip(futures, expected * 4, strict=True):
            np.testing.assert_array_equal(np.concatenate(future.result()), waveform)


def test_codec2_streams_leave_nothing_behind(codec2, codes, tmp_path, monkeypatch):
    """Fails when a dropped or finished stream keeps its library, or a copy of it stays in the temporary folder."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def num_loaded() -> int:
        return len(
            {line.split()[4] for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line}
        )

    if not Path("/proc/self/maps").exists():
        pytest.skip("libraries in memory can be counted on Linux only")
    streams = [open_stream(codec2) for _ in range(5)]
    for stream in streams:
        stream.push(codes[:40])
    assert num_loaded() == 5
    assert list(tmp_path.iterdir()) == []
    streams.pop().finish()
    assert num_loaded() == 4
    del streams, stream
    gc.collect()
    assert num_loaded() == 0


def test_codec2_without_a_temporary_folder_is_the_users_error(codec2, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/no/such/folder")
    with pytest.raises(UserError, match=r"Codec2 cannot open a stream.*set TMPDIR"):
        open_stream(codec2)


def test_codec2_streams_refuse_what_offline_refuses(codec2, codes):
    stream = open_stream(codec2)
    with pytest.raises(ValueError, match="outside the range"):
        stream.push(codes[1:5])
    stream = open_stream(codec2)
    stream.push(codes[:6])
    with pytest.raises(ValueError, match="2 codes are no whole number of frames"):
        stream.finish()
    with pytest.raises(AssertionError, match="finished"):
        stream.push(codes[:4])


def test_an_open_stream_does_not_hinder_the_end_of_a_process(codes, tmp_path):
    np.save(tmp_path / "codes.npy", codes[:40])
    program = (
        "import numpy, sys; from llasa.codec.codec2 import Codec2\n"
        "stream = Codec2().open_stream(); print(len(stream.push(numpy.load(sys.argv[1]))))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "codes.npy")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("1600\n", "")


# --- windows ---------------------------------------------------------------------------------------------------------


def test_which_codec_streams_by_itself(codec2, xcodec2):
    assert isinstance(codec2, StreamingCodec)
    assert not isinstance(xcodec2, StreamingCodec)
    assert isinstance(open_stream(xcodec2), WindowedDecoder)


@pytest.mark.parametrize("model", ["xcodec2", "deep"])
def test_windows_of_xcodec2_stay_within_the_stated_tolerance(model, speech, request):
    """Fails when windows lose their context or look-ahead, or are put together a frame too early or late."""
    xcodec2 = request.getfixturevalue(model)
    codes = xcodec2.encode([speech])[0][:500]
    assert len(np.unique(codes)) > 300
    expected = xcodec2.decode([codes])[0]
    given = np.concatenate(streamed(open_stream(xcodec2), codes, 1))
    assert given.dtype == np.float32
    assert given.shape == expected.shape
    assert signal_to_difference(expected, given) > 16
    assert signal_to_difference(expected[:6400], given[:6400]) > 7
    assert signal_to_difference(expected[96_000:], given[96_000:]) > 30
    assert log_spectral_distance(expected, given) < 1.5
    # What the tolerance means: other speech, or a stream one frame late, is far outside it.
    assert signal_to_difference(expected[320:], given[:-320]) < 3
    assert log_spectral_distance(expected[320:], given[:-320]) > 4


def test_context_and_lookahead_help(xcodec2, speech):
    codes = xcodec2.encode([speech])[0][:500]
    expected = xcodec2.decode([codes])[0]

    def ratio(**lengths: float) -> float:
        return signal_to_difference(expected, np.concatenate(streamed(WindowedDecoder(xcodec2, **lengths), codes, 50)))

    by_context = [ratio(context_seconds=seconds) for seconds in (0, 1, 8)]
    assert by_context[0] + 0.5 < by_context[1] < by_context[2] - 1
    assert ratio(lookahead_seconds=0.04) + 2 < by_context[2]


def joined_windows(codec: Codec, codes: np.ndarray, chunks: list[int], context: int, lookahead: int, fade: int):
    """The stream by the slow way: every window decoded by itself, the joins faded sample by sample."""
    stops = np.cumsum(chunks).tolist()
    result = np.zeros(320 * len(codes))
    for number, stop in enumerate([*stops, len(codes)]):
        done = stops[number - 1] if number else 0
        start, end = max(0, done - context), min(len(codes), stop + lookahead)
        window = codec.decode([codes[start:end]])[0]
        for sample in range(320 * done, 320 * end):
            into = sample - 320 * done
            share = np.sin(np.pi / 2 * (into + 0.5) / fade) ** 2 if number and into < fade else 1.0
            result[sample] = (1 - share) * result[sample] + share * window[sample - 320 * start]
    return result


def test_windows_are_joined_as_by_hand(xcodec2, speech):
    """Fails when the cross-fade is left out, runs backwards, or stands a sample too late; a step is then heard."""
    codes = xcodec2.encode([speech])[0][:300]
    lengths = {"first_seconds": 0.2, "chunk_seconds": 1.0, "context_seconds": 0.5, "lookahead_seconds": 0.3}
    given = np.concatenate(streamed(WindowedDecoder(xcodec2, **lengths, crossfade_seconds=0.02), codes, 9))
    expected = joined_windows(xcodec2, codes, [10, 20, 40, 50, 50, 50, 50], context=25, lookahead=15, fade=320)
    hard = joined_windows(xcodec2, codes, [10, 20, 40, 50, 50, 50, 50], context=25, lookahead=15, fade=1)
    assert np.abs(expected - hard).max() > 0.1 * expected.std()
    np.testing.assert_allclose(given, expected, rtol=0, atol=1e-5 * expected.std())
    # Where a piece begins, the window before still goes on: no step there.
    windows = [xcodec2.decode([codes[:25]])[0], xcodec2.decode([codes[:45]])[0]]
    assert abs(given[3200] - windows[0][3200]) < 1e-4 * abs(windows[1][3200] - windows[0][3200])


@pytest.mark.parametrize("num_codes", [0, 1, 20, 49, 50, 51, 70, 71, 110, 333])
def test_pieces_have_the_offline_length_and_do_not_depend_on_how_codes_come(xcodec2, speech, num_codes):
    """Fails when a window uses more look-ahead where more is there, or the last piece is lost."""
    codes = xcodec2.encode([speech])[0][:num_codes]
    expected = xcodec2.decode([codes])[0]
    given = np.concatenate(streamed(open_stream(xcodec2), codes, 7))
    assert given.shape == expected.shape == (320 * num_codes,)
    if num_codes < 50:  # of 20 and 30 frames is the first window
        np.testing.assert_array_equal(given, expected)
    generator = np.random.default_rng(num_codes)
    sizes = generator.multinomial(num_codes, np.full(5, 0.2)).tolist()
    np.testing.assert_array_equal(np.concatenate(streamed(open_stream(xcodec2), codes, sizes)), given)


class Counting:
    """A codec that remembers how many codes each window had."""

    def __init__(self, codec: Codec) -> None:
        self.codec, self.spec, self.windows = codec, codec.spec, []

    def decode(self, codes: list[np.ndarray]) -> list[np.ndarray]:
        self.windows += [len(clip) for clip in codes]
        return self.codec.decode(codes)


def test_the_first_piece_comes_early_and_the_whole_costs_what_is_stated(xcodec2, speech):
    """Fails when chunks do not grow, or context grows with the clip."""
    codes = np.tile(xcodec2.encode([speech])[0][:500], 4)  # 40 s
    counting = Counting(xcodec2)
    stream = open_stream(counting)
    pieces = [stream.push(codes[index : index + 1]) for index in range(500)]
    first = next(index for index, piece in enumerate(pieces) if len(piece))
    assert (first + 1) / 500 == (FIRST_SECONDS + LOOKAHEAD_SECONDS) / 10 <= 0.15
    assert [len(piece) / 16_000 for piece in pieces if len(piece)] == [0.4, 0.8, 1.6, 3.2]
    stream.finish()
    assert counting.windows == [50, 90, 170, 330, 500]
    assert sum(counting.windows) / 500 < 2.3

    counting.windows.clear()
    streamed(open_stream(counting), codes, 25)
    assert max(counting.windows) == (8 + 4 + 0.6) * 50
    assert sum(counting.windows) / len(codes) < 3.2


def test_windows_serve_a_codec_of_several_codes_a_frame(codec2, codes):
    """Codec2 as if it had no stream of its own: four codes a frame, and a coder that starts anew in each window."""
    expected = codec2.decode([codes])[0]
    decoder = WindowedDecoder(Counting(codec2), **WHOLE, crossfade_seconds=CROSSFADE_SECONDS)
    pieces = streamed(decoder, codes, 3)
    given = np.concatenate(pieces)
    assert given.shape == expected.shape
    np.testing.assert_array_equal(given[: 8 * 400], expected[: 8 * 400])
    # Phases differ after the first join, so the loudness is compared, in steps of 40 ms.
    before, after = (
        np.sqrt((x[: 320 * (len(x) // 320)].reshape(-1, 320) ** 2).mean(axis=1)) for x in (expected, given)
    )
    assert np.corrcoef(before, after)[0, 1] > 0.95

    decoder = WindowedDecoder(codec2, **WHOLE, crossfade_seconds=0)
    decoder.push(codes[:6])
    with pytest.raises(ValueError, match="no whole number of frames"):
        decoder.finish()


def test_wrong_codes_are_refused(xcodec2):
    stream = open_stream(xcodec2)
    with pytest.raises(ValueError, match="65536"):
        stream.push(np.full(60, 65_536))
    stream = open_stream(xcodec2)
    stream.finish()
    with pytest.raises(AssertionError, match="finished"):
        stream.finish()


@pytest.mark.parametrize(
    ("lengths", "field"),
    [
        ({"first_seconds": -1}, "first_seconds=-1"),
        ({"first_seconds": 5, "chunk_seconds": 4}, "chunk_seconds=4"),
        ({"chunk_seconds": float("inf")}, "chunk_seconds=inf"),
        ({"context_seconds": float("nan")}, "context_seconds=nan"),
        ({"lookahead_seconds": -0.1}, "lookahead_seconds=-0.1"),
        ({"crossfade_seconds": 0.7}, "crossfade_seconds=0.7"),
        ({"crossfade_seconds": -0.7}, "crossfade_seconds=-0.7"),
        ({"crossfade_seconds": 0.5}, "crossfade_seconds=0.5"),
        ({"lookahead_seconds": 0}, "crossfade_seconds=0.04"),
    ],
)
def test_lengths_are_checked(xcodec2, lengths, field):
    WindowedDecoder(
        xcodec2, first_seconds=0, chunk_seconds=0, context_seconds=0, lookahead_seconds=0, crossfade_seconds=0
    )
    with pytest.raises(UserError, match=f"{field} is not valid; use "):
        WindowedDecoder(xcodec2, **lengths)


# --- batches ---------------------------------------------------------------------------------------------------------


def test_codec2_decodes_ragged_clips_as_it_decodes_each(codec2, codes):
    clips = [codes[:size] for size in (400, 4, 0, 400, 1200, 404, 8)]
    for together, clip in zip(codec2.decode(clips), clips, strict=True):
        np.testing.assert_array_equal(together, codec2.decode([clip])[0])


def test_xcodec2_decodes_ragged_clips_as_it_decodes_each(xcodec2, speech):
    """Fails when clips of one length are decoded in one batch, which sums in another order."""
    codes = xcodec2.encode([speech])[0]
    clips = [codes[start : start + size] for start, size in ((0, 100), (50, 1), (9, 0), (200, 100), (0, 333), (7, 101))]
    for together, clip in zip(xcodec2.decode(clips), clips, strict=True):
        assert together.shape == (320 * len(clip),)
        np.testing.assert_array_equal(together, xcodec2.decode([clip])[0])
