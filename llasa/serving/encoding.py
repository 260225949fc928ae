"""Speech as the bytes of a file, while it is still being spoken.

    float32 pieces ─speed─► ─sample_rate─► ─libsndfile─► bytes, piece by piece

| format | container | sent | its header says |
|---|---|---|---|
| wav | 16-bit PCM | at once | "until the end" for the length, as ffmpeg does on a pipe |
| pcm | 16-bit little-endian, no header | at once | nothing: the rate is in X-Sample-Rate |
| mp3 | MPEG frames of one bit rate | at once | the length follows from the bit rate |
| opus | Ogg pages of a tenth of a second | a tenth of a second late | the last page says the length |
| flac | FLAC | **whole, when the last sample is spoken** | the length and a checksum |

FLAC's length and checksum stand in its first bytes. A stream without them is allowed, but libsndfile, and with it
`soundfile.read`, then takes the length for 2⁶³ samples and fails, and who asks for FLAC wants to keep it.

Cost on a CPU core: of the audio's length 3 % (opus), 0.6 % (mp3), 0.2 % (the others); memory: what is not sent yet.
"""

from __future__ import annotations

import io
from typing import Any, Protocol

import numpy as np

from llasa.errors import UserError
from llasa.generation.output import as_pcm, wav_header
from llasa.serving.tempo import Tempo

MEDIA_TYPES: dict[str, str] = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg; codecs=opus",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}
SAMPLE_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
"""Hz that every format but opus can have."""
OPUS_SAMPLE_RATES = (8000, 12000, 16000, 24000, 48000)

OGG_PAGE_MILLISECONDS = 100.0
"""Libsndfile's own choice, a second, is a second of silence for who listens."""
SET_OGG_PAGE_LATENCY_MS = 0x1302
"""Of libsndfile's commands (sndfile.h); soundfile has no name for it."""


def available_formats() -> list[str]:
    """The formats that this machine can make: libsndfile may be built without some."""
    import soundfile

    containers = soundfile.available_formats()
    needs = {"mp3": ("MP3", "MPEG_LAYER_III"), "opus": ("OGG", "OPUS"), "flac": ("FLAC", "PCM_16")}
    return [
        name
        for name in MEDIA_TYPES
        if name not in needs
        or (needs[name][0] in containers and needs[name][1] in soundfile.available_subtypes(needs[name][0]))
    ]


def output_rate(format: str, sample_rate: int, wanted: int | None = None) -> int:
    """Hz of the file: the one that is wanted, else the model's, or the next that the format can have.

    Raises:
        UserError: the format cannot have the rate that is wanted.
    """
    rates = OPUS_SAMPLE_RATES if format == "opus" else SAMPLE_RATES
    if wanted is None:
        return sample_rate if sample_rate in rates else min((r for r in rates if r >= sample_rate), default=rates[-1])
    if wanted not in rates:
        raise UserError(
            f"{format} has no sample_rate of {wanted}", remedy=f"choose one of {', '.join(map(str, rates))}, or wav"
        )
    return wanted


class Encoder(Protocol):
    """Turns float32 pieces [samples >= 0] of one utterance into bytes. One thread at a time."""

    def encode(self, waveform: np.ndarray) -> bytes:
        """The bytes that are ready; none, if the format has to wait for more samples."""
        ...

    def finish(self) -> bytes:
        """The bytes that are left. Nothing may follow."""
        ...


class SpeechEncoder:
    """Speed, sample rate and format of one utterance.

    Args:
        sample_rate: Hz of the pieces.
        output_rate: Hz of the file, of :func:`output_rate`.
        speed: 1 = as spoken, 2 = in half the time, at the same pitch.

    Raises:
        UserError: this machine cannot make the format, or cannot change the speed.
    """

    def __init__(self, format: str, sample_rate: int, *, output_rate: int, speed: float = 1.0) -> None:
        import soxr

        if format not in available_formats():
            raise UserError(
                f"this server cannot make {format}", remedy=f"choose one of {', '.join(available_formats())}"
            )
        self._tempo = Tempo(sample_rate, speed) if speed != 1 else None
        self._resampler = soxr.ResampleStream(sample_rate, output_rate, 1) if output_rate != sample_rate else None
        raw = {"wav": WavEncoder, "pcm": PcmEncoder}
        self._encoder: Encoder = raw[format](output_rate) if format in raw else FileEncoder(format, output_rate)

    def encode(self, waveform: np.ndarray) -> bytes:
        if self._tempo is not None:
            waveform = self._tempo.push(waveform)
        if self._resampler is not None:
            waveform = self._resampler.resample_chunk(waveform)
        return self._encoder.encode(waveform)

    def finish(self) -> bytes:
        rest = np.zeros(0, dtype=np.float32) if self._tempo is None else self._tempo.finish()
        if self._resampler is not None:
            rest = self._resampler.resample_chunk(rest, last=True)
        return self._encoder.encode(rest) + self._encoder.finish()


class PcmEncoder:
    """Signed 16-bit little-endian samples."""

    def __init__(self, sample_rate: int) -> None:
        pass

    def encode(self, waveform: np.ndarray) -> bytes:
        return as_pcm(waveform) if len(waveform) else b""

    def finish(self) -> bytes:
        return b""


class WavEncoder(PcmEncoder):
    """The same behind a header, which goes with the first samples: alone it would only look as if speech had begun."""

    def __init__(self, sample_rate: int) -> None:
        self._header = wav_header(None, sample_rate)

    def encode(self, waveform: np.ndarray) -> bytes:
        samples = super().encode(waveform)
        if not samples:
            return b""
        header, self._header = self._header, b""
        return header + samples

    def finish(self) -> bytes:
        return self._header


SETTINGS: dict[str, dict[str, Any]] = {
    "mp3": {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": "CONSTANT", "compression_level": 0.5},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "flac": {"format": "FLAC", "subtype": "PCM_16"},
}
"""For soundfile. compression_level: 0 = the most bits that MPEG has for the rate, 1 = the fewest; libsndfile keeps to
one bit rate only where it is told."""


class FileEncoder:
    """mp3, opus or flac by libsndfile, which writes into a :class:`Tape`."""

    def __init__(self, format: str, sample_rate: int) -> None:
        import soundfile

        self._format = format
        self._tape = Tape(whole=format == "flac")
        self._file = soundfile.SoundFile(self._tape, "w", sample_rate, 1, **SETTINGS[format])
        if format == "opus":
            latency = soundfile._ffi.new("double[1]", [OGG_PAGE_MILLISECONDS])
            soundfile._snd.sf_command(
                self._file._file, SET_OGG_PAGE_LATENCY_MS, latency, soundfile._ffi.sizeof(latency)
            )

    def encode(self, waveform: np.ndarray) -> bytes:
        if len(waveform):
            self._file.write(waveform)  # which clips it
        return b"" if self._tape.whole else self._tape.take()

    def finish(self) -> bytes:
        self._file.close()
        return self._tape.take()


class Tape:
    """A file for libsndfile that forgets what was taken from it. (Not a BytesIO: of an utterance that is given up,
    Python may close that before libsndfile writes its end into it, which prints an error.)

    libsndfile goes back in a finished MP3 to put an index (Xing) into its first frame, for which it had left an empty
    frame. Sent bytes cannot be changed, and the empty frame would be heard as 24 to 72 ms of silence: it is left out.

    Args:
        whole: nothing is taken before the end, so that libsndfile may go back and change it.
    """

    def __init__(self, *, whole: bool) -> None:
        self.whole = whole
        self._position, self._length = 0, 0
        self._ready = bytearray()

    def take(self) -> bytes:
        """What was written since the last time."""
        ready, self._ready = bytes(self._ready), bytearray()
        return ready

    def write(self, content: bytes) -> int:
        content = bytes(content)
        start, self._position = self._position, self._position + len(content)
        placeholder = self._length == 0 and content[:1] == b"\xff" and not content[4:].strip(b"\0")
        if self.whole:
            self._ready[start : self._position] = content
        elif start == self._length and not placeholder:
            self._ready += content
        self._length = max(self._length, self._position)
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        self._position = origin + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Nothing: it is write-only, but soundfile wants every file to have this."""
        return b""
