"""The authors' XCodec2 package behind a pipe: run by :mod:`llasa.codec.xcodec2_package` in the package's environment.

    python -I xcodec2_worker.py --checkpoint NAME_OR_FOLDER --device auto|cuda|cpu

A message is a line of JSON, then the bytes of one array. Standard input: ``{"do": "encode" | "decode", "length": n}``
and n float32 samples, or n int32 codes. Standard output: first ``{"fingerprint": "…"}`` when the model is loaded, or
``{"error": "…"}`` and the end; then in answer to each message ``{"length": m}`` and m int32 codes, or m float32
samples. The end of standard input ends the process. Whatever anything prints goes to standard error.

It imports nothing of this project, which the old environment could not run, and Python's ``-I`` keeps this folder
from being searched, in which `xcodec2` is another module.
"""

import argparse
import hashlib
import json
import os
import sys
from importlib.metadata import version
from typing import Any, BinaryIO


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--device", required=True)
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        model = load(arguments.checkpoint, arguments.device)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        send(answers, {"error": (str(error).strip() or type(error).__name__).splitlines()[0]})
        return
    send(answers, {"fingerprint": fingerprint(model)})
    while line := sys.stdin.buffer.readline():
        request = json.loads(line)
        content = sys.stdin.buffer.read(4 * request["length"])
        result = encode(model, content) if request["do"] == "encode" else decode(model, content)
        send(answers, {"length": len(result) // 4}, result)


def send(answers: BinaryIO, message: dict[str, Any], content: bytes = b"") -> None:
    answers.write(json.dumps(message).encode() + b"\n" + content)
    answers.flush()


def load(checkpoint: str, device: str) -> Any:
    """The package's model, all of its weights from the checkpoint.

    Raises:
        ImportError, OSError: no such package, or no such weights.
        RuntimeError: weights missing or misshapen (the package would go on with random ones), no CUDA.
    """
    import torch
    from xcodec2.modeling_xcodec2 import XCodec2Model

    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("device=cuda, but the package's torch sees no CUDA device")
    model, loading = XCodec2Model.from_pretrained(checkpoint, output_loading_info=True)
    absent = sorted([*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])])
    if absent:
        raise RuntimeError(
            f"{len(absent)} weights are missing or misshapen, first {absent[0]}; this is transformers "
            f"{version('transformers')}, and from 4.49 on act.beta no longer becomes act.bias"
        )
    if device != "cpu" and torch.cuda.is_available():
        # What transformers' model is run with, too: codes are the result of rounding.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        model = model.cuda()
    return model.eval()


def fingerprint(model: Any) -> str:
    """sha256 of the package's version and, of every tensor, its name, shape and first 64 values."""
    digest = hashlib.sha256(f"xcodec2 {version('xcodec2')}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(tensor.flatten()[:64].cpu().float().numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def encode(model: Any, content: bytes) -> bytes:
    import numpy as np
    import torch

    waveform = torch.from_numpy(np.frombuffer(content, "<f4").copy())
    codes = model.encode_code(waveform[None])[0, 0]  # [1, 1, frames] → [frames]
    return codes.cpu().numpy().astype("<i4").tobytes()


def decode(model: Any, content: bytes) -> bytes:
    import numpy as np
    import torch

    codes = torch.from_numpy(np.frombuffer(content, "<i4").astype(np.int64)).to(model.device)
    waveform = model.decode_code(codes[None, None])[0, 0]  # [1, 1, samples] → [samples]
    return waveform.cpu().numpy().astype("<f4").tobytes()


if __name__ == "__main__":
    main()
