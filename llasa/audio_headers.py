"""A file's bytes as libsndfile reads all of them, or a refusal of what it would pass over.

WAV from a pipe, Ogg that lost its last page, MP3 between tags and without an index: of these libsndfile decodes a part
and says nothing. The walk over an MPEG stream is from the headers of ISO/IEC 11172-3 and 13818-3 and the Xing index.
"""

from __future__ import annotations

import struct
from functools import lru_cache

from llasa.errors import RejectedRow

FORMATS = tuple(b"RIFF RIFX RF64 riff fLaC OggS FORM caff .snd NIST Creative ID3".split())
"""How files begin that are read, beside an MPEG frame. libsndfile knows 15 more formats, of which no corpus is made;
one of them prints every damaged byte."""


def mended(content: bytes) -> bytes:
    """The content as libsndfile reads all of it.

    Raises:
        RejectedRow: it is no audio, or damaged in a way that libsndfile would pass over.
    """
    start = _after_tags(content)
    if _mpeg_frame_size(content[start : start + 3]):
        return _mpeg_stream(content, start)
    if not content.startswith(FORMATS):
        raise RejectedRow("unreadable_audio", f"no audio format begins with {content[:8]!r}")
    if content.startswith(b"RIFF"):
        return _with_data_size(content)
    if content.startswith(b"OggS"):
        _check_last_page(content)
    return content


def _with_data_size(content: bytes) -> bytes:
    """A WAV from a pipe may say that it has no samples; libsndfile knows only the other way to say "unknown"."""
    riff_size = int.from_bytes(content[4:8], "little")
    position = 12
    while position + 8 < len(content):
        name, size = content[position : position + 4], int.from_bytes(content[position + 4 : position + 8], "little")
        if name == b"data":
            if size == 0 and riff_size != len(content) - 8:
                return content[: position + 4] + b"\xff" * 4 + content[position + 8 :]
            break
        position += 8 + size + size % 2
    return content


def _check_last_page(content: bytes) -> None:
    start = content.rfind(b"OggS")
    segments = content[start + 26] if start + 26 < len(content) else 0
    sizes = content[start + 27 : start + 27 + segments]
    missing = start + 27 + segments + sum(sizes) - len(content)
    if missing > 0:
        raise RejectedRow("truncated_audio", f"the last page lacks {missing} bytes or more")


def _after_tags(content: bytes) -> int:
    """Where the content begins behind ID3v2 tags and what some writers fill up with zeros."""
    start = 0
    while content.startswith(b"ID3", start) and start + 10 <= len(content):
        size = 0
        for byte in content[start + 6 : start + 10]:
            size = size << 7 | byte & 0x7F
        start += 10 + size + (10 if content[start + 5] & 0x10 else 0)
    if start and content.startswith(b"\0", start):
        start += len(content) - start - len(content[start:].lstrip(b"\0"))
    return start


MAX_MISSING_FRAMES = 2
"""Of an MP3, 24 to 72 ms each."""

_MPEG_RATES = (44_100, 48_000, 32_000)
_MPEG_KILOBITS = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Layer III, MPEG-1 and the two lower rates."""

_TAGS = (b"TAG", b"APETAGEX", b"LYRICS", b"ID3", b"3DI")
_SIDE_INFORMATION = {(True, True): 32, (True, False): 17, (False, True): 17, (False, False): 9}
"""Bytes of it in a frame: MPEG-1 or not, more than one channel or not."""


@lru_cache(maxsize=4096)
def _mpeg_frame_size(header: bytes) -> int:
    """Bytes of the layer III frame that begins with these three, or 0 if no frame does."""
    if len(header) < 3:
        return 0
    first, second, third = header
    version, layer, bit_rate, rate = second >> 3 & 3, second >> 1 & 3, third >> 4, third >> 2 & 3
    if first != 0xFF or second < 0xE0 or version == 1 or layer != 1 or bit_rate in (0, 15) or rate == 3:
        return 0
    is_mpeg1 = version == 3
    hertz = _MPEG_RATES[rate] >> {3: 0, 2: 1, 0: 2}[version]
    return (144 if is_mpeg1 else 72) * _MPEG_KILOBITS[is_mpeg1][bit_rate] * 1000 // hertz + (third >> 1 & 1)


def _mpeg_stream(content: bytes, start: int) -> bytes:
    """The frames of an MP3 without tags, and with an index if it has none.

    mpg123 looks for the next frame where something else stands between two, and tells the terminal. Without an index
    libsndfile infers the length from the first frame's bit rate, and stops there, however much is left.
    """
    second, position, num_frames = content[start + 1], start, 0
    while position + 4 <= len(content):
        size = _mpeg_frame_size(content[position : position + 3]) if content[position + 1] == second else 0
        if size == 0:
            rest = content[position:]
            if rest.startswith(_TAGS) or not rest.strip(b"\0"):
                break
            raise RejectedRow("unreadable_audio", f"no MPEG frame at byte {position:,} of {len(content):,}")
        if position + size > len(content):
            break  # not all of it is there; the index, if there is one, decides whether that matters
        position += size
        num_frames += 1
    stream = content[start:position]
    index = 4 + _SIDE_INFORMATION[second >> 3 & 3 == 3, content[start + 3] >> 6 != 3]
    if stream[index : index + 4] in (b"Xing", b"Info") and index + 12 <= len(stream):
        has_count, claimed = stream[index + 7] & 1, int.from_bytes(stream[index + 8 : index + 12], "big")
        if has_count and claimed > num_frames + MAX_MISSING_FRAMES:
            raise RejectedRow("truncated_audio", f"{num_frames - 1} MPEG frames, where the index claims {claimed}")
        return stream
    if stream[36:40] == b"VBRI":
        return stream
    # A frame of silence that holds the number of frames, of a bit rate that has room for it.
    header = bytearray(content[start : start + 4])
    header[1] |= 1  # no checksum
    header[2] = header[2] & 0x0D | 0x90
    frame = bytes(header).ljust(index, b"\0") + struct.pack(">4sII", b"Xing", 1, num_frames)
    return frame.ljust(_mpeg_frame_size(bytes(header[:3])), b"\0") + stream
