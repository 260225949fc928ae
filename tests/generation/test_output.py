"""Writing speech while it is made: the bytes of an offline WAV, headers after a kill, pipes, readers that go away."""

from __future__ import annotations

import io
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

from llasa.audio import decode_audio, write_wav
from llasa.errors import UserError
from llasa.generation.output import SpeechWriter, as_pcm, output_format, wav_header

ROOT = Path(__file__).parents[2]
RATE = 8_000

PROGRAM = """
import sys
import numpy as np
from llasa.generation.output import SpeechWriter
from llasa.errors import UserError

output, format, pieces, last = sys.argv[1], sys.argv[2] or None, int(sys.argv[3]), sys.argv[4]
piece = np.sin(np.arange(8_000) / 5).astype(np.float32) / 2
print("before")
try:
    with SpeechWriter(output, 8_000, format=format) as writer:
        print("between")
        for _ in range(pieces):
            writer.write(piece)
        exec(last)
    print("after", file=sys.stderr if output == "-" else sys.stdout)
except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
"""


def program(output: str, *, format: str = "", pieces: int = 3, last: str = "", prefix: str = "") -> list[str]:
    """A process that writes ``pieces`` seconds, then runs ``last``; ``prefix`` runs before."""
    return [sys.executable, "-c", prefix + PROGRAM, output, format, str(pieces), last]


@pytest.fixture(scope="module")
def waveform() -> np.ndarray:
    """Noise that passes full scale, and every edge of the rounding."""
    noise = np.random.default_rng(0).normal(0, 0.5, 5_000)
    edges = np.concatenate([np.arange(-4, 5) / 65_536, [-1, 1, -1.5, 1.5, 1 - 2**-16, -1 + 2**-16, 0, -0.0]])
    return np.concatenate([noise, edges]).astype(np.float32)


def cut(waveform: np.ndarray) -> list[np.ndarray]:
    return np.split(waveform, [0, 1, 160, 160, 2_000, 4_999])


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_a_streamed_wav_equals_one_made_offline(waveform, tmp_path, rate):
    """Fails when samples are rounded to nearest, or not clipped, or the header differs in one byte."""
    write_wav(tmp_path / "offline.wav", waveform, rate)
    with SpeechWriter(tmp_path / "deep/er/streamed.WAV", rate) as writer:
        for piece in cut(waveform):
            writer.write(piece)
    assert (tmp_path / "deep/er/streamed.WAV").read_bytes() == (tmp_path / "offline.wav").read_bytes()
    assert writer.seconds == len(waveform) / rate


@pytest.mark.parametrize("suffix", ["pcm", "raw"])
def test_raw_pcm_is_the_wav_without_its_header(waveform, tmp_path, suffix):
    write_wav(tmp_path / "offline.wav", waveform, RATE)
    with SpeechWriter(tmp_path / f"streamed.{suffix}", RATE) as writer:
        for piece in cut(waveform):
            writer.write(piece)
    content = (tmp_path / f"streamed.{suffix}").read_bytes()
    assert content == (tmp_path / "offline.wav").read_bytes()[44:] == as_pcm(waveform)
    assert np.frombuffer(content, "<i2").min() == -32_768
    assert np.frombuffer(content, "<i2").max() == 32_767


def test_after_every_piece_the_file_is_whole(waveform, tmp_path):
    """Fails when the header is written at the end only, or samples wait in a buffer."""
    path = tmp_path / "speech.wav"
    with SpeechWriter(path, RATE) as writer:
        count = 0
        for piece in cut(waveform):
            writer.write(piece)
            count += len(piece)
            if count:
                read, rate = soundfile.read(path)
                assert (len(read), rate) == (count, RATE)
                assert path.stat().st_size == 44 + 2 * count


def test_speech_without_a_sample_is_an_empty_wav(tmp_path):
    write_wav(tmp_path / "offline.wav", np.zeros(0, np.float32), RATE)
    with SpeechWriter(tmp_path / "streamed.wav", RATE) as writer:
        writer.write(np.zeros(0, np.float32))
        assert not (tmp_path / "streamed.wav").exists()
    assert (tmp_path / "streamed.wav").read_bytes() == (tmp_path / "offline.wav").read_bytes()


def test_what_fails_before_the_first_piece_leaves_the_old_file(tmp_path):
    """Fails when the file is opened, and so emptied, on entering."""
    path = tmp_path / "old.wav"
    path.write_bytes(b"precious")
    with pytest.raises(RuntimeError), SpeechWriter(path, RATE):
        raise RuntimeError
    assert path.read_bytes() == b"precious"
    with SpeechWriter(path, RATE) as writer:
        writer.write(np.zeros(3, np.float32))
    assert path.stat().st_size == 50


def test_a_killed_run_leaves_a_wav_that_plays(tmp_path):
    """Fails when only a clean end writes the header's lengths."""
    path = tmp_path / "killed.wav"
    command = program(str(path), last="import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False).returncode == -signal.SIGKILL
    waveform, rate = decode_audio(path)
    assert (len(waveform), rate) == (3 * 8_000, 8_000)
    assert waveform.std() > 0.3


# --- standard output -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["", "wav", "pcm"])
def test_standard_output_holds_sound_and_nothing_else(format):
    """Fails when a line printed meanwhile, by Python or beneath it, gets between the samples."""
    last = "import os; os.write(1, b'from a library\\n'); print('still')"
    result = subprocess.run(program("-", format=format, last=last), cwd=ROOT, capture_output=True, check=True)
    assert sorted(result.stderr.decode().splitlines()) == ["after", "between", "from a library", "still"]
    assert result.stdout.startswith(b"before\n")  # what was printed before entering is the caller's affair
    content = result.stdout.removeprefix(b"before\n")
    pcm = as_pcm(np.sin(np.arange(8_000) / 5).astype(np.float32) / 2) * 3
    if format == "pcm":
        assert content == pcm
        return
    assert content == wav_header(None, RATE) + pcm
    assert content[4:8] == content[40:44] == b"\xff" * 4
    waveform, rate = decode_audio(content)
    assert (len(waveform), rate) == (24_000, 8_000)
    assert len(soundfile.read(io.BytesIO(content))[0]) == 24_000


@pytest.mark.parametrize("format", ["wav", "pcm"])
def test_a_reader_that_goes_away_ends_it_quietly(format):
    """Fails when BrokenPipeError gets out as a traceback, or writing goes on for nobody."""
    command = program("-", format=format, pieces=100_000)
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert len(process.stdout.read(1_000)) == 1_000
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 128 + signal.SIGPIPE == 141
    assert error == b"between\n"


def test_a_terminal_is_no_place_for_samples():
    controller, terminal = os.openpty()
    try:
        result = subprocess.run(program("-", pieces=0), cwd=ROOT, stdout=terminal, stderr=subprocess.PIPE, check=False)
        assert os.read(controller, 1_000).split() == [b"before"]
    finally:
        os.close(controller)
        os.close(terminal)
    assert result.returncode == 2
    assert result.stderr.startswith(b"error: output=- would fill the terminal; pass output=FILE.wav")


def test_a_named_pipe_gets_a_header_without_lengths(tmp_path, waveform):
    path = tmp_path / "pipe.wav"
    os.mkfifo(path)
    received = []
    reader = threading.Thread(target=lambda: received.append(path.read_bytes()))
    reader.start()
    with SpeechWriter(path, RATE) as writer:
        for piece in cut(waveform):
            writer.write(piece)
    reader.join(timeout=60)
    assert received == [wav_header(None, RATE) + as_pcm(waveform)]
    assert stat.S_ISFIFO(path.stat().st_mode)


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("suffix", ["wav", "pcm"])
def test_a_full_disk_is_the_users_error(tmp_path, suffix):
    path = tmp_path / f"full.{suffix}"
    path.symlink_to("/dev/full")
    problem = r"cannot write output=.*full.*: No space left on device; make room, or choose another output="
    with pytest.raises(UserError, match=problem) as error, SpeechWriter(path, RATE) as writer:
        writer.write(np.zeros(100, np.float32))
    assert "\n" not in str(error.value)


def test_a_disk_that_fills_up_leaves_what_it_holds(tmp_path):
    """A limit of 40,000 bytes to a file: the third second is cut. Fails when a header counts it, or a part is lost."""
    prefix = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))\n"
    path = tmp_path / "limit.wav"
    alone = {name: value for name, value in os.environ.items() if name != "COVERAGE_PROCESS_CONFIG"}  # which has a file
    result = subprocess.run(
        program(str(path), prefix=prefix), cwd=ROOT, capture_output=True, text=True, check=False, env=alone
    )
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: cannot write output={path}: File too large after 2.00 s; make room")
    assert result.stderr.count("\n") == 1
    assert path.stat().st_size == 40_000
    waveform, _ = decode_audio(path)
    assert len(waveform) == 16_000


@pytest.mark.parametrize("output", ["folder.wav", "file/below.wav", "x" * 300 + ".wav"])
def test_an_output_that_cannot_be_opened_is_the_users_error(tmp_path, output):
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write output="), SpeechWriter(tmp_path / output, RATE) as writer:
        writer.write(np.zeros(1, np.float32))


def test_formats_follow_suffixes():
    given = ["a.wav", "b/c.WAV", "d.pcm", "e.raw", "-"]
    assert [output_format(output) for output in given] == ["wav", "wav", "pcm", "pcm", "wav"]
    for output in ("speech.mp3", "speech", "wav", ".wav", ""):
        with pytest.raises(UserError, match=r"is neither WAV nor raw PCM; pass output=FILE\.wav"):
            output_format(output)
    assert SpeechWriter("speech.mp3", RATE, format="pcm").format == "pcm"
    with pytest.raises(UserError, match="format='mp3' is not valid; choose one of wav, pcm"):
        SpeechWriter("speech.wav", RATE, format="mp3")


def test_a_header_beyond_its_fields_says_unknown():
    assert wav_header(2**32, RATE) == wav_header(None, RATE)
    assert wav_header(2**32 - 37, RATE)[4:8] == b"\xff" * 4
    assert wav_header(2**32 - 38, RATE)[4:8] == b"\xfe\xff\xff\xff"
