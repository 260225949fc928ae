"""The job behind `infer.py`: load a checkpoint and its codec, and speak.

texts=FILE             a folder, a WAV a line              llasa.generation.many
text=…, one sentence   a WAV, perhaps the best of several  llasa.generation.synthesizer, search
text=…, text_file=     a WAV, chunk by chunk               llasa.generation.longform
stream=true            the same, written as it is spoken   llasa.generation.streaming, output
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from llasa.audio import write_wav
from llasa.build import build
from llasa.codec.base import Codec, CodecSpec
from llasa.config import InferConfig
from llasa.device import resolve_device
from llasa.entry import group_config
from llasa.errors import UserError
from llasa.generation.continuation import is_long
from llasa.generation.longform import LongPart, Pauses, chapter_lines, speak_long
from llasa.generation.many import speak_many
from llasa.generation.output import STANDARD_OUTPUT, SpeechWriter, output_format
from llasa.generation.synthesizer import Manner, Synthesizer
from llasa.generation.voices import Voice, VoiceReader, longest_voice
from llasa.model.checkpoint import fingerprint, require_same_codec
from llasa.provenance import write_atomically
from llasa.types import Speech


def infer(config: InferConfig, heard: Callable[[int, Speech], None] | None = None) -> None:
    """Speak ``config.text`` into a file, or every line of ``config.texts`` into a folder.

    Args:
        heard: gets the number, from 1, and the speech of whatever is spoken in one go.

    Raises:
        UserError: no such checkpoint, another codec than its own, nothing to say, an unwritable output.
    """
    require_output(config)
    texts = read_texts(config)
    device = resolve_device(config.device)
    engine, search = build(config.engine), build(config.search)
    if search is not None and (config.stream or config.texts is not None):
        raise UserError("a search compares whole sentences, one text at a time", remedy="use search=none, or text=…")
    speech = engine.load(config.checkpoint, device)
    codec = build_codec(speech.card.codec, config.codec, device)
    require_same_codec(speech.card.codec, codec.spec, config.checkpoint, "the codec")
    synthesizer = Synthesizer(speech, codec, engine, config.language or next(iter(speech.card.languages), "en"))
    voice, seed, speaker = chosen_voice(config, synthesizer), config.seed, config.speaker
    if config.texts is not None:
        made_with = {
            "checkpoint": fingerprint(config.checkpoint),
            "codec": codec.spec.fingerprint,
            "engine": config.engine["_target_"],
        }
        folder = Path(config.output)
        folder = folder.with_suffix("") if config.output == InferConfig.output else folder
        speak_many(
            synthesizer,
            texts,
            folder,
            config.sampling,
            voice=voice,
            seed=seed,
            speaker=speaker,
            made_with=made_with,
            heard=heard,
        )
        return
    [text] = texts
    said: Manner = {"voice": voice, "seed": seed, "speaker": speaker}
    long = is_long(
        text, synthesizer, config.sampling, voice=voice, speaker=speaker, max_characters=config.long.max_characters
    )
    if search is not None:
        if long:
            raise UserError("a search speaks one sentence, this text is longer", remedy="use search=none")
        write_speech(config.output, search.speak(synthesizer, text, config.sampling, **said).speech, heard)
    elif long:
        write_pieces(config, synthesizer, long_pieces(text, synthesizer, config, said))
    elif config.stream:
        write_pieces(config, synthesizer, synthesizer.stream(text, config.sampling, **said))
    else:
        [spoken] = synthesizer.speak([text], config.sampling, voice=voice, seed=seed, speakers=[speaker])
        write_speech(config.output, spoken, heard)


def require_output(config: InferConfig) -> None:
    """Raises ``UserError`` where a name says that speech of this kind cannot go there."""
    if config.texts is not None:
        return
    if config.stream:
        output_format(config.output)
    elif not config.output.endswith(".wav"):
        raise UserError(f"output={config.output!r} is no WAV file", remedy="pass output=FILE.wav")


def read_texts(config: InferConfig) -> list[str]:
    """The one text, or the lines of ``texts`` that are not empty."""
    if config.text is not None:
        return [config.text]
    key = "texts" if config.texts is not None else "text_file"
    name, remedy = getattr(config, key), "pass a UTF-8 file" + (" with a sentence a line" if key == "texts" else "")
    try:
        content = Path(name).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {key}={name}: {error}", remedy=remedy) from None
    texts = [line.strip() for line in content.splitlines() if line.strip()]
    if not texts:
        raise UserError(f"{key}={name} has no text", remedy=remedy)
    return texts if key == "texts" else [content]


def chosen_voice(config: InferConfig, synthesizer: Synthesizer) -> Voice | None:
    if config.voice is None:
        return None
    assert synthesizer.codec is not None
    most = longest_voice(synthesizer.speech.card)
    reader = VoiceReader(synthesizer.codec, synthesizer.language, config.asr, most)
    return reader.open(config.voice, config.voice_text, config.voices_folder)


def long_pieces(text: str, synthesizer: Synthesizer, config: InferConfig, said: Manner) -> Iterator[LongPart]:
    long = config.long
    return speak_long(
        synthesizer,
        text,
        config.sampling,
        pauses=Pauses(long.pause_comma, long.pause_sentence, long.pause_paragraph, long.pause_chapter),
        continuous=long.continuous,
        max_characters=long.max_characters,
        **said,
    )


def write_pieces(
    config: InferConfig, synthesizer: Synthesizer, pieces: Iterator[np.ndarray] | Iterator[LongPart]
) -> None:
    """Write speech as it comes, in as much memory as a piece takes; chapters are named beside the file."""
    rate = synthesizer.speech.card.codec.sample_rate
    chapters: list[tuple[str, float]] = []
    with SpeechWriter(config.output, rate, format=config.stream_format) as writer:
        for piece in pieces:
            if isinstance(piece, LongPart):
                if piece.chapter is not None:
                    chapters.append((piece.chapter, piece.start))
                piece = piece.waveform
            writer.write(piece)
    if config.output == STANDARD_OUTPUT:
        return
    tell(f"{config.output}: {writer.seconds:.2f} s")
    if chapters:
        path = Path(config.output).with_suffix(".chapters.txt")
        write_atomically(path, chapter_lines(chapters).encode())
        tell(f"{path}: {len(chapters)} chapter{'' if len(chapters) == 1 else 's'}")


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


def write_speech(output: str, speech: Speech, heard: Callable[[int, Speech], None] | None) -> None:
    try:
        write_wav(Path(output), speech.waveform, speech.sample_rate)
    except (OSError, soundfile.SoundFileError) as error:
        raise UserError(f"cannot write {output}: {error}", remedy="choose another output=") from None
    ends = {"stop": "", "length": " (cut at the length limit)", "loop": " (it repeated itself and was cut)"}
    tell(f"{output}: {speech.seconds:.2f} s{ends[speech.finish_reason]}")
    if heard is not None:
        heard(1, speech)


def tell(message: str) -> None:
    print(message, flush=True)
