"""How fast a model speaks, alone, in batches, as a stream, and in many streams at once; prints one JSON.

    python experiments/benchmarks/synthesis.py [--output FILE.json] [--only NAME …]

On a CPU the nano model (`model=llasa_nano`) with random weights and Codec2. On a GPU, where there is one, Llama 3.2 1B
of the published shape and vocabulary with random weights in bf16, and XCodec2 of full size. Lengths are given, so that
no side ends early: END is not allowed before.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from experiments.benchmarks.harness import alternate, command_line, run, timed
from experiments.benchmarks.preprocess import codec
from llasa.codec.base import Codec
from llasa.config import SamplingConfig
from llasa.generation.decoding import Decoder
from llasa.generation.engine import Request
from llasa.generation.engine_hf import TransformersEngine
from llasa.generation.synthesizer import Synthesizer
from llasa.model.checkpoint import PUBLISHED_CODEC, CheckpointCard
from llasa.model.llama import SpeechModel
from llasa.tokens.prompt import PromptRules

SAMPLING = SamplingConfig(temperature=0.8, loop_seconds=0, retries=0, text_bounds=False, max_seconds=100)
TEXT = "La luna è alta nel cielo e la notte è lunga"
BATCHES = (1, 8, 32)
BUFFER = 0.25


@dataclass
class Subject:
    """What speaks: a model with random weights and its codec."""

    speech: SpeechModel
    codec: Codec

    @property
    def per_second(self) -> float:
        return self.speech.card.codec.tokens_per_second


def build_subject(folder: Path) -> Subject:
    if torch.cuda.is_available():
        from experiments.benchmarks.train_gpu import write_model

        checkpoint = write_model(folder / "1b", "1b")
        speech = TransformersEngine(batch_size=1).load(str(checkpoint), "cuda")
        speech.card = CheckpointCard(PromptRules(), PUBLISHED_CODEC, ("it",), 4096)
        return Subject(speech, codec("full", folder))
    from llasa.entry import compose_config
    from llasa.model.llama import build_for_training

    config = compose_config("train", ["model=llasa_nano", "lang=it", "device=cpu"])
    codec2 = codec("codec2", folder)
    speech = build_for_training(config.model, config.kernels, codec2.spec, "cpu", "fp32")
    speech.model.set_attn_implementation("sdpa")
    speech.model.eval()
    speech.card = CheckpointCard(PromptRules(), codec2.spec, ("it",), 4096)
    return Subject(speech, codec2)


def of_length(subject: Subject, seconds: float, seed: int = 0) -> Request:
    """A request for exactly so much speech."""
    frame = subject.speech.card.codec.codes_per_frame
    codes = int(seconds * subject.per_second / frame) * frame
    return Request(subject.speech.prompt.prompt(TEXT), codes, codes, seed)


def ragged(subject: Subject, count: int) -> list[Request]:
    """Sentences of log-normal length, 3 s on average, in no order."""
    lengths = np.clip(np.random.default_rng(0).lognormal(np.log(2.6), 0.5, count), 0.6, 8.0)
    return [of_length(subject, seconds, seed) for seed, seconds in enumerate(lengths)]


def seconds_for(job: Callable[[], Any], device: str) -> float:
    started = time.perf_counter()
    job()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def batches(subject: Subject) -> dict[str, Any]:
    """Codes a second and real-time factor of 32 ragged sentences, some at a time; and transformers' own `generate`."""
    requests = ragged(subject, 32)
    total = sum(request.max_codes for request in requests)
    engine = TransformersEngine(batch_size=1, progress=False)
    engine.generate(subject.speech, requests[:2], SAMPLING)  # warm-up

    def ours(size: int) -> None:
        engine.batch_size = size
        engine.generate(subject.speech, requests, SAMPLING)

    sides = {f"batch_{size}": partial(ours, size) for size in BATCHES}
    sides["transformers_generate_32"] = partial(plain_generate, subject, requests)
    took = alternate({name: partial(timed, side) for name, side in sides.items()}, 3)
    result: dict[str, Any] = {"sentences": 32, "codes": total}
    for name, seconds in took.items():
        result[name] = {
            "codes_per_second": round(total / seconds),
            "real_time_factor": round(seconds / (total / subject.per_second), 4),
        }
    fastest = result["batch_32"]["codes_per_second"]
    result["batch_32_over_sequential"] = round(fastest / result["batch_1"]["codes_per_second"], 2)
    result["batch_8_over_sequential"] = round(
        result["batch_8"]["codes_per_second"] / result["batch_1"]["codes_per_second"], 2
    )
    result["batch_32_over_transformers_generate"] = round(
        fastest / result["transformers_generate_32"]["codes_per_second"], 2
    )
    return result


@torch.inference_mode()
def plain_generate(subject: Subject, requests: list[Request]) -> None:
    """The same sentences through `model.generate` in one batch padded on the left, which goes on to the longest; the
    codes beyond a sentence's own length are not counted."""
    speech = subject.speech
    longest = max(len(request.prompt) for request in requests)
    ids = torch.full((len(requests), longest), speech.vocabulary.speech_end)
    mask = torch.zeros_like(ids)
    for row, request in enumerate(requests):
        ids[row, longest - len(request.prompt) :] = torch.from_numpy(request.prompt)
        mask[row, longest - len(request.prompt) :] = 1
    count = max(request.max_codes for request in requests)
    speech.model.generate(
        ids.to(speech.model.device),
        attention_mask=mask.to(speech.model.device),
        do_sample=True,
        temperature=SAMPLING.temperature,
        top_k=0,
        min_new_tokens=count,
        max_new_tokens=count,
        use_cache=True,
        eos_token_id=speech.vocabulary.speech_end,
        pad_token_id=speech.vocabulary.speech_end,
    )


def first_audio(subject: Subject) -> dict[str, Any]:
    """Time to the first piece of a stream of 10 s, over the time of the whole stream and of the same offline."""
    synthesizer = Synthesizer(subject.speech, subject.codec, TransformersEngine(batch_size=1, progress=False), "it")
    request = of_length(subject, 10.0)
    synthesizer.request = lambda *args, **kwargs: request  # of exactly 10 s, whatever the text
    device = subject.speech.model.device.type
    firsts, wholes, offline = [], [], []
    for _ in range(3):
        started = time.perf_counter()
        stream = synthesizer.stream(TEXT, SAMPLING)
        next(stream)
        firsts.append(time.perf_counter() - started)
        for _ in stream:
            pass
        wholes.append(time.perf_counter() - started)
        offline.append(seconds_for(lambda: synthesizer.speak([TEXT], SAMPLING), device))
    return {
        "first_audio_seconds": round(min(firsts), 4),
        "stream_seconds": round(min(wholes), 3),
        "offline_seconds": round(min(offline), 3),
        "first_over_offline": round(min(firsts) / min(offline), 4),
        "stream_over_offline": round(min(wholes) / min(offline), 3),
    }


def codec_share(subject: Subject) -> dict[str, Any]:
    """Of the wall time of 32 sentences, the part that is the codec's."""
    requests = ragged(subject, 32)
    engine = TransformersEngine(batch_size=32, progress=False)
    results = engine.generate(subject.speech, requests, SAMPLING)
    sides = {
        "model": lambda: engine.generate(subject.speech, requests, SAMPLING),
        "codec": lambda: subject.codec.decode([result.codes for result in results]),
    }
    took = alternate({name: partial(timed, side) for name, side in sides.items()}, 3)
    return {"codec_share": round(took["codec"] / (took["model"] + took["codec"]), 4)}


def streams(subject: Subject) -> dict[str, Any]:
    """How many streams one decoding loop keeps in real time: 99 % of their frames are there when they are to be heard.

    Streams of 5 s that begin together; each is played from ``BUFFER`` seconds after the first frame of all. The codec's
    time is not counted.
    """
    spec = subject.speech.card.codec
    frame = spec.codes_per_frame
    budget = frame / spec.tokens_per_second
    found: dict[str, Any] = {"buffer_seconds": BUFFER}
    kept = 0
    for count in (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128):
        request = of_length(subject, 5.0)
        decoder = Decoder(subject.speech, slots=count, capacity=len(request.prompt) + request.max_codes)
        for index in range(count):
            decoder.add(index, of_length(subject, 5.0, index), SAMPLING)
        ready = []
        while decoder.sequences:
            for _ in range(frame):
                if decoder.sequences:
                    decoder.step()
            ready.append(time.perf_counter())
        due = ready[0] + BUFFER + budget * np.arange(len(ready))
        late = float((np.array(ready) > due).mean())
        speed = (len(ready) - 1) * budget / (ready[-1] - ready[0])
        found[str(count)] = {"late": round(late, 4), "times_real_time": round(speed, 2)}
        if late > 0.01:
            break
        kept = count
    found["kept_in_real_time"] = kept
    return found


PARTS = (batches, first_audio, codec_share, streams)


if __name__ == "__main__":
    run(command_line(__doc__, PARTS).parse_args(), PARTS, build_subject)
