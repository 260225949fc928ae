"""The job behind `infer.py`: load a checkpoint and its codec, speak a sentence or a file of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import soundfile

from llasa.audio import write_wav
from llasa.build import build
from llasa.codec.base import Codec, CodecSpec
from llasa.config import InferConfig
from llasa.device import resolve_device
from llasa.entry import group_config
from llasa.errors import UserError
from llasa.generation.synthesizer import Synthesizer
from llasa.model.checkpoint import require_same_codec
from llasa.model.llama import load_for_inference
from llasa.types import Speech


def infer(config: InferConfig) -> list[Speech]:
    """Speak ``config.text`` into a WAV file, or every line of ``config.texts`` into a folder.

    Raises:
        UserError: no such checkpoint, another codec than its own, nothing to say, an unwritable output.
    """
    if config.text is not None and not config.output.endswith(".wav"):
        raise UserError(f"output={config.output!r} is no WAV file", remedy="pass output=FILE.wav")
    texts = read_texts(config)
    device = resolve_device(config.device)
    speech = load_for_inference(config.checkpoint, device)
    codec = build_codec(speech.card.codec, config.codec, device)
    require_same_codec(speech.card.codec, codec.spec, config.checkpoint, "the codec")
    language = config.language or next(iter(speech.card.languages), "en")
    synthesizer = Synthesizer(speech, codec, build(config.engine), language)
    voice = synthesizer.load_voice(config.voice, config.voice_text) if config.voice is not None else None
    results = synthesizer.speak(texts, config.sampling, voice=voice, seed=config.seed)
    for path, text, result in zip(output_paths(config, len(texts)), texts, results, strict=True):
        write_speech(path, result)
        if config.texts is not None:
            path.with_suffix(".txt").write_text(text + "\n", encoding="utf-8")
    return results


def read_texts(config: InferConfig) -> list[str]:
    if config.texts is None:
        return [config.text]
    try:
        lines = Path(config.texts).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read texts={config.texts}: {error}", remedy="pass a UTF-8 file with a sentence a line"
        ) from None
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise UserError(f"texts={config.texts} has no text", remedy="pass a UTF-8 file with a sentence a line")
    return texts


def output_paths(config: InferConfig, count: int) -> list[Path]:
    """The file itself for one text; for a file of texts 01.wav, 02.wav, … in the folder."""
    if config.texts is None:
        return [Path(config.output)]
    folder = Path(config.output).with_suffix("") if config.output == InferConfig.output else Path(config.output)
    width = max(2, len(str(count)))
    return [folder / f"{number:0{width}d}.wav" for number in range(1, count + 1)]


def build_codec(named: CodecSpec, chosen: dict[str, Any] | None, device: str) -> Codec:
    """The codec the user chose, else the one the checkpoint names, with the weights it names."""
    node = chosen
    if node is None:
        node = group_config("codec", named.name)
        if named.checkpoint and "checkpoint" in node:
            node = node | {"checkpoint": named.checkpoint}
    if node.get("device") == "auto":
        node = node | {"device": device}
    return build(node)


def write_speech(path: Path, result: Speech) -> None:
    try:
        write_wav(path, result.waveform, result.sample_rate)
    except (OSError, soundfile.SoundFileError) as error:
        raise UserError(f"cannot write {path}: {error}", remedy="choose another output=") from None
    note = "" if result.finish_reason == "stop" else " (cut at the length limit)"
    print(f"{path}: {result.seconds:.2f} s{note}")
