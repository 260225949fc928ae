"""XCodec2 as its authors wrote it (PyPI ``xcodec2``), in an environment of its own: the reference for :mod:`.xcodec2`.

    waveform ─pipe─► xcodec2_worker.py, on the Python of requirements/xcodec2.txt ─pipe─► codes

The package wants torch 2.5 and an old transformers, so it cannot be imported here. It encodes one clip at a time and
so does this. It pads by the frame rule of :mod:`llasa.codec.xcodec2`: ``len // 320 + 1`` codes, 320 samples each.

Cost: that of the model, in float32, plus half a minute to load it (a 3.3 GB file, and another of 2.3 GB for the
semantic model that the package makes before it overwrites its weights).
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from llasa.codec.base import Codec, CodecSpec, check_waveforms, checked_codes
from llasa.errors import UserError

SAMPLE_RATE, HOP, CODEBOOK_SIZE = 16_000, 320, 65_536
"""Fixed in the package's code."""

SEMANTIC_NAME = "facebook/w2v-bert-2.0"
"""The name in the package's code. A folder of that name in the working directory is taken for it."""

WORKER = Path(__file__).with_name("xcodec2_worker.py")


class XCodec2Package(Codec):
    """The codec protocol with the authors' package: float32, one clip at a time; its version is in the fingerprint.

    ``checkpoint`` is a hub name (``HKUSTAudio/xcodec2``) or a local folder, with weights in the package's own format.
    ``semantic_checkpoint`` is ``facebook/w2v-bert-2.0`` (from the hub) or a local folder of that model; the package
    needs it for its configuration and features, its weights are in ``checkpoint`` again. ``python`` is the interpreter
    of the environment of ``requirements/xcodec2.txt``. ``device`` is "auto", "cuda" or "cpu".

    Raises:
        UserError: no such interpreter, package, folder or device, hub not reachable, weights incomplete.
    """

    def __init__(
        self,
        *,
        checkpoint: str,
        name: str = "xcodec2_package",
        python: str = ".venv-xcodec2/bin/python",
        semantic_checkpoint: str = SEMANTIC_NAME,
        device: str = "auto",
    ) -> None:
        if device not in ("auto", "cuda", "cpu"):
            raise UserError(f"codec.device={device} is not valid", remedy="choose one of auto, cpu, cuda")
        folder = Path(checkpoint).expanduser()
        if folder.is_dir():
            checkpoint = str(folder.absolute())
        elif checkpoint.startswith((".", "/", "~")) or checkpoint.count("/") > 1:
            remedy = "use HKUSTAudio/xcodec2, or a folder in its format"
            raise UserError(f"codec.checkpoint={checkpoint}: no such folder", remedy=remedy)
        self._working_folder = _folder_with(semantic_checkpoint)
        self._process = _start(python, checkpoint, device, self._working_folder)
        self._stop = weakref.finalize(self, _end, self._process)
        started = self._answer()
        if "error" in started:
            raise UserError(
                f"codec.checkpoint={checkpoint}: the package cannot load it ({started['error']})",
                remedy="see requirements/xcodec2.txt, and codec.semantic_checkpoint where the hub cannot be reached",
            )
        self.spec = CodecSpec(
            name=name,
            fingerprint=started["fingerprint"],
            sample_rate=SAMPLE_RATE,
            tokens_per_second=SAMPLE_RATE / HOP,
            codebook_size=CODEBOOK_SIZE,
            code_ranges=((0, CODEBOOK_SIZE),),
            checkpoint=checkpoint,
        )

    def num_codes(self, num_samples: int) -> int:
        """Codes of a clip of ``num_samples`` samples: the package pads to a whole frame, or by one."""
        return num_samples // HOP + 1

    def encode(self, waveforms: list[np.ndarray]) -> list[np.ndarray]:
        """float32 [samples] each at 16 kHz → uint16 codes [samples // 320 + 1] each, in the same order.

        Raises:
            ValueError: a waveform that is not one-dimensional.
        """
        check_waveforms(waveforms)
        codes = [self._ask("encode", waveform.astype("<f4"), "<i4") for waveform in waveforms]
        for waveform, clip in zip(waveforms, codes, strict=True):
            assert len(clip) == self.num_codes(len(waveform))
            assert clip.min() >= 0
            assert clip.max() < CODEBOOK_SIZE
        return [clip.astype(self.spec.code_dtype) for clip in codes]

    def decode(self, codes: list[np.ndarray]) -> list[np.ndarray]:
        """Codes [num_codes] each → float32 [num_codes * 320] each at 16 kHz, in the same order.

        Raises:
            ValueError: codes that are not one-dimensional integers in [0, 65536).
        """
        checked = [checked_codes(index, clip, CODEBOOK_SIZE) for index, clip in enumerate(codes)]
        empty = np.zeros(0, dtype=np.float32)
        return [self._ask("decode", clip.astype("<i4"), "<f4") if len(clip) else empty for clip in checked]

    def _ask(self, what: str, array: np.ndarray, dtype: str) -> np.ndarray:
        """Send one array of 4-byte numbers, return the one that comes back."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps({"do": what, "length": len(array)}).encode() + b"\n" + array.tobytes())
            stdin.flush()
        except BrokenPipeError:
            pass  # it has ended: so says the answer
        size = 4 * self._answer()["length"]
        content = stdout.read(size)
        assert len(content) == size, "the process of the xcodec2 package ended within an answer"
        return np.frombuffer(content, dtype).copy()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            raise RuntimeError(f"the process of the xcodec2 package ended with status {status}; its errors are above")
        return json.loads(line)


def _folder_with(semantic_checkpoint: str) -> tempfile.TemporaryDirectory[str] | None:
    """A working folder in which the name in the package's code leads to this one; None if it is the hub's."""
    if semantic_checkpoint == SEMANTIC_NAME:
        return None
    semantic = Path(semantic_checkpoint).expanduser().absolute()
    if not semantic.is_dir():
        raise UserError(
            f"codec.semantic_checkpoint={semantic_checkpoint}: no such folder",
            remedy=f"use {SEMANTIC_NAME} (the hub's), or a folder with that model",
        )
    folder = tempfile.TemporaryDirectory(prefix="llasa-xcodec2-")
    link = Path(folder.name) / SEMANTIC_NAME
    link.parent.mkdir()
    link.symlink_to(semantic)
    return folder


def _start(
    python: str, checkpoint: str, device: str, working_folder: tempfile.TemporaryDirectory[str] | None
) -> subprocess.Popen[bytes]:
    interpreter = os.path.abspath(os.path.expanduser(python))  # not resolved: its link is what finds the environment
    try:
        return subprocess.Popen(
            [interpreter, "-I", str(WORKER), "--checkpoint", checkpoint, "--device", device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=working_folder.name if working_folder else None,
            start_new_session=True,  # Ctrl-C is for this process, which then ends that one
        )
    except OSError as error:
        raise UserError(
            f"codec.python={python} cannot be run ({error.strerror})",
            remedy="make the environment of requirements/xcodec2.txt, or set codec.python to its Python",
        ) from error


def _end(process: subprocess.Popen[bytes]) -> None:
    """Close its standard input, which ends it; do not wait for it long."""
    assert process.stdin is not None
    try:
        process.stdin.close()
        process.wait(timeout=5)
    except (BrokenPipeError, subprocess.TimeoutExpired):
        process.kill()
        process.wait()
