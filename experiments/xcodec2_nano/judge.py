"""How well codecs carry the held-out sentences: what is still understood, whose voice it is, how it sounds.

    python experiments/xcodec2_nano/judge.py CORPUS original codec2 RUN/checkpoint --asr FOLDER --output result.json

CORPUS is a folder of corpus.py: `heldout_it` (sentences of a trained voice) and `heldout_voice` (a voice of which
nothing was trained on) are read. A codec is `original` (the recordings themselves), a name of `conf/codec/`, or a
folder with an XCodec2 model; `NAME=` before it names its row. Systems that the result has already and that are not
named stay in it, so runs add up; beside it the same as a Markdown table.

- **CER**: characters wrong of all, by the recogniser, with a 95 % interval (bootstrap over the sentences).
- **mel**: mean distance in dB of log-mel spectra (llasa.corpus.acoustics) at 16 kHz, and below 4 kHz alone, for Codec2.
- **DNSMOS** (overall), and **voice**: cosine of the speaker embeddings of sentence and recording.
- **codes**: different ones among all, and their perplexity; **speed**: encoding and decoding, times real time.

Cost: some 5 s a sentence and codec on one core.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from llasa.audio import read_audio, resample
from llasa.build import build
from llasa.codec.base import Codec
from llasa.codec_training.usage import code_metrics
from llasa.corpus.folder import FolderSource
from llasa.corpus.proofs import Sound, mel_distance
from llasa.corpus.recognition import Recognizer
from llasa.corpus.sources import SourceRow
from llasa.errors import UserError
from llasa.evaluation.dnsmos import Dnsmos
from llasa.evaluation.similarity import SpeakerEncoder, similarity
from llasa.evaluation.statistics import bootstrap_interval
from llasa.evaluation.words import character_errors
from llasa.provenance import write_json

CONFIGS = Path(__file__).resolve().parents[2] / "conf/codec"
SAMPLE_RATE, LOW_RATE = 16_000, 8_000
SETS = ("heldout_it", "heldout_voice")
ORIGINAL = "original"


def open_codec(name: str) -> Codec | None:
    """A config of `conf/codec` or a folder with weights; none for the recordings themselves.

    Raises:
        UserError: neither, or what building it raises.
    """
    import yaml

    if name == ORIGINAL:
        return None
    config = CONFIGS / f"{name}.yaml"
    if config.is_file():
        return build(yaml.safe_load(config.read_text(encoding="utf-8")))
    if not Path(name).is_dir():
        raise UserError(f"no codec {name}", remedy="use original, a name of conf/codec, or a folder with weights")
    from llasa.codec.xcodec2 import XCodec2

    return XCodec2(checkpoint=name)


class Judges:
    """What each clip goes through; what is known of the recordings is kept."""

    def __init__(self, asr: str) -> None:
        self.asr, self.dnsmos, self.voices = Recognizer(asr), Dnsmos(), SpeakerEncoder()
        self._voices: dict[str, np.ndarray] = {}

    def clip(self, row: SourceRow, recording: np.ndarray, waveform: np.ndarray, rate: int) -> dict[str, Any]:
        """The numbers of one sentence; float32 [samples] at 16 kHz and as the codec has it."""
        heard = self.asr.transcribe(waveform, rate, row.language)
        errors = character_errors(row.text, heard, row.language)
        if row.id not in self._voices:
            self._voices[row.id] = self.voices.embed(recording, SAMPLE_RATE)
        sound = resample(waveform, rate, SAMPLE_RATE)
        return {
            "id": row.id,
            "errors": errors.errors,
            "characters": errors.length,
            "mel_db": distance(sound, recording, SAMPLE_RATE),
            "mel_4khz_db": distance(sound, recording, LOW_RATE),
            "dnsmos": self.dnsmos.score(waveform, rate)["ovrl"],
            "voice": similarity(self._voices[row.id], self.voices.embed(sound, SAMPLE_RATE)),
        }


def distance(sound: np.ndarray, recording: np.ndarray, rate: int) -> float:
    """Both float32 [samples] at 16 kHz, compared at ``rate``."""
    ours, theirs = (Sound.of(resample(samples, SAMPLE_RATE, rate), rate) for samples in (sound, recording))
    return mel_distance(ours, theirs)


def judge(codec: Codec | None, rows: list[SourceRow], judges: Judges) -> dict[str, Any]:
    """All numbers of a codec on a set: means, and the sentences."""
    recordings = [read_audio(row.audio, SAMPLE_RATE) for row in rows]
    clips, rate, facts = recordings, SAMPLE_RATE, {}
    if codec is not None:
        rate = codec.spec.sample_rate
        clips, facts = through(codec, [resample(recording, SAMPLE_RATE, rate) for recording in recordings])
    sentences = [judges.clip(*parts, rate) for parts in zip(rows, recordings, clips, strict=True)]
    errors, characters = ([sentence[key] for sentence in sentences] for key in ("errors", "characters"))
    means = {key: float(np.mean([s[key] for s in sentences])) for key in ("mel_db", "mel_4khz_db", "dnsmos", "voice")}
    return {
        "cer": sum(errors) / sum(characters),
        "cer_interval": list(bootstrap_interval(errors, characters)),
        **means,
        **facts,
        "sentences": sentences,
    }


def through(codec: Codec, recordings: list[np.ndarray]) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Encoded and decoded again, clip by clip, and how fast that went; the first clip warms up."""
    codec.decode(codec.encode(recordings[:1]))
    start = time.perf_counter()
    codes = [codec.encode([recording])[0] for recording in recordings]
    middle = time.perf_counter()
    clips = [codec.decode([clip])[0] for clip in codes]
    end = time.perf_counter()
    seconds = sum(len(recording) for recording in recordings) / codec.spec.sample_rate
    return clips, {
        **code_metrics(np.concatenate(codes)),
        "num_codes": sum(len(clip) for clip in codes),
        "tokens_per_second": codec.spec.tokens_per_second,
        "encode_speed": seconds / (middle - start),
        "decode_speed": seconds / (end - middle),
        "speed": seconds / (end - start),
    }


def read_rows(folder: Path) -> list[SourceRow]:
    source = FolderSource(path=str(folder), language="")
    return [source.row("train", index) for index in range(source.splits()["train"])]


def table(results: dict[str, Any]) -> str:
    """A Markdown table for each set."""
    lines = []
    for name in SETS:
        lines += [f"### {name}", ""]
        lines += ["| codec | CER (95 %) | mel dB (below 4 kHz) | DNSMOS | voice | codes, perplexity | x real time |"]
        lines += ["|---|---|---|---|---|---|---|"]
        for system, sets in results.items():
            row = sets[name]
            low, high = row["cer_interval"]
            codes = f"{row['codes']:,} of {row['num_codes']:,}, {row['perplexity']:,.0f}" if "codes" in row else ""
            cells = [
                system,
                f"{row['cer']:.3f} ({low:.3f} to {high:.3f})",
                f"{row['mel_db']:.2f} ({row['mel_4khz_db']:.2f})",
                f"{row['dnsmos']:.2f}",
                f"{row['voice']:.3f}",
                codes,
                f"{row['speed']:.1f}" if "speed" in row else "",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("codecs", nargs="+", help="original, a name of conf/codec, FOLDER or NAME=FOLDER with weights")
    parser.add_argument("--asr", required=True, help="a Whisper model in CTranslate2's form")
    parser.add_argument("--output", type=Path, required=True, help="the result (JSON); a table beside it (.md)")
    arguments = parser.parse_args()
    output = arguments.output
    try:
        results = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {}
        rows = {name: read_rows(arguments.corpus / name) for name in SETS}
        judges = Judges(arguments.asr)
        for argument in arguments.codecs:
            name, _, place = argument.rpartition("=")
            codec = open_codec(place)
            results[name or place] = {part: judge(codec, rows[part], judges) for part in SETS}
            write_json(output, results)
            output.with_suffix(".md").write_text(table(results), encoding="utf-8")
    except UserError as error:
        sys.exit(f"error: {error}")
    print(table(results))


if __name__ == "__main__":
    main()
