"""How time and memory grow with the work: samples, clip length, workers, tokens, codes, sentences; prints one JSON.

    python experiments/benchmarks/growth.py [--output FILE.json] [--only NAME …]

Each curve is measured at sizes a factor of 2 to 10 apart, and comes with its exponent: the slope of a straight line
through the logarithms. 1 = in proportion, 0 = not at all; memory begins with what an empty program takes, so its last
exponent says more. Every second is a step's or a call's own, without imports.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.benchmarks.harness import alternate, command_line, in_a_process, peak_memory, run, timed


def curve(sizes: Mapping[int | float, Callable[[], float]], repeats: int = 1) -> dict[str, Any]:
    """What is measured at each size, the exponent of all, that of the last two; sizes in turn, ``repeats`` times."""
    values = alternate({str(size): function for size, function in sizes.items()}, repeats)
    x, y = np.log(list(sizes)), np.log(list(values.values()))
    return {
        "at": {size: float(f"{value:.4g}") for size, value in values.items()},
        "exponent": round(float(np.polyfit(x, y, 1)[0]), 2),
        "at_the_end": round(float((y[-1] - y[-2]) / (x[-1] - x[-2])), 2),
    }


def both(measured: Callable[[Any], dict[str, float]], sizes: tuple[Any, ...]) -> dict[str, Any]:
    """The curves of seconds and of gigabytes."""
    found = {size: measured(size) for size in sizes}
    return {
        unit: curve({size: partial(float, found[size][unit]) for size in sizes}) for unit in ("seconds", "gigabytes")
    }


def encode(corpus: str, store: str, workers: int) -> dict[str, float]:
    """preprocess.py on a folder, in this process but for its workers."""
    from llasa.corpus.run import preprocess
    from llasa.entry import compose_config

    settings = ["dataset=folder", f"dataset.path={corpus}", "lang=it", "codec=xcodec2_nano", f"store={store}"]
    settings += ["filters.characters_per_second=null", "shard_rows=32", f"runner.workers={workers}"]
    config = compose_config("preprocess", settings)
    return {"seconds": timed(lambda: preprocess(config)), "gigabytes": peak_memory() / 1e9}


def clips_of(folder: Path, count: int, seconds: float) -> Path:
    """A folder corpus of equal clips."""
    import soundfile

    from experiments.benchmarks.preprocess import clip

    folder.mkdir(parents=True)
    with (folder / "metadata.jsonl").open("w") as file:
        for index in range(count):
            soundfile.write(folder / f"{index}.flac", clip(seconds, index, 24_000), 24_000)
            text = " ".join(["parola"] * round(2 * seconds))
            file.write(json.dumps({"file_name": f"{index}.flac", "text": f"{text} {index}"}) + "\n")
    return folder


def preprocessing(workspace: Path) -> dict[str, Any]:
    """By clips of 5 s, by the seconds of a clip at the same audio, and by workers at the same clips."""

    def measured(count: int, seconds: float, workers: int = 1) -> dict[str, float]:
        corpus = clips_of(workspace / "corpus", count, seconds)
        result = in_a_process(encode, str(corpus), str(workspace / "store"), workers)
        shutil.rmtree(corpus)
        shutil.rmtree(workspace / "store")
        return result

    return {
        "clips": both(lambda count: measured(count, 5.0), (32, 128, 512)),
        "clip_seconds": both(lambda seconds: measured(int(240 / seconds), seconds), (2, 5, 12, 28)),
        "workers": {
            "seconds": curve({n: lambda n=n: measured(64, 5.0, n)["seconds"] for n in (1, 2)}, repeats=2),
        },
    }


def plan_epoch(examples: int) -> dict[str, float]:
    from experiments.benchmarks.harness import clip_seconds
    from llasa.packing.plan import PackingPlan

    lengths = np.minimum((clip_seconds(examples) * 54).astype(np.int32) + 30, 2048)
    plan = PackingPlan(lengths, max_length=2048, window=16_384, seed=0)
    return {"seconds": timed(lambda: plan.epoch(0)), "gigabytes": peak_memory() / 1e9}


def packing(workspace: Path) -> dict[str, Any]:
    """The plan of an epoch by its examples."""
    return {"examples": both(partial(in_a_process, plan_epoch), (10_000, 100_000, 1_000_000, 10_000_000))}


def train_step(tokens: int, example: int) -> dict[str, float]:
    """Forward and backward of the nano model on one row of ``tokens`` tokens in examples of ``example``: the median.

    4,096 codes, so that the layers are not hidden behind the head.
    """
    import torch

    from llasa.codec.base import CodecSpec
    from llasa.entry import compose_config
    from llasa.model.llama import build_for_training

    config = compose_config("train", ["model=llasa_nano", "lang=it", "device=cpu"])
    spec = CodecSpec("made-up", "0", 16_000, 50.0, 4096, ((0, 4096),))
    speech = build_for_training(config.model, config.kernels, spec, "cpu", "fp32")
    model = speech.model
    ids = torch.randint(0, len(speech.tokenizer), (1, tokens))
    positions = (torch.arange(tokens) % example)[None]

    def step() -> float:
        began = time.perf_counter()
        model(input_ids=ids, labels=ids, position_ids=positions, num_items_in_batch=tokens).loss.backward()
        return time.perf_counter() - began

    step()
    return {"seconds": float(np.median([step() for _ in range(5)])), "gigabytes": peak_memory() / 1e9}


def training(workspace: Path) -> dict[str, Any]:
    """A step by the tokens of its row, in examples of 512, and by the tokens of an example in a row of 8,192."""
    return {
        "tokens": both(lambda tokens: in_a_process(train_step, tokens, 512), (1024, 2048, 4096, 8192, 16_384)),
        "example_tokens": both(lambda length: in_a_process(train_step, 8192, length), (256, 1024, 4096, 8192)),
    }


def synthesis(workspace: Path) -> dict[str, Any]:
    """Decoding by the codes of a sentence, and by the sentences of 200 codes that are spoken together."""
    from experiments.benchmarks.synthesis import SAMPLING, build_subject, of_length
    from llasa.generation.engine_hf import TransformersEngine

    subject = build_subject(workspace)

    def spoken(count: int, codes: int) -> float:
        engine = TransformersEngine(batch_size=count, progress=False)
        requests = [of_length(subject, codes / subject.per_second, seed) for seed in range(count)]
        return timed(lambda: engine.generate(subject.speech, requests, SAMPLING))

    spoken(1, 100)
    return {
        "codes": {"seconds": curve({n: partial(spoken, 1, n) for n in (200, 400, 800, 1600, 3200)}, repeats=3)},
        "sentences": {"seconds": curve({n: partial(spoken, n, 200) for n in (1, 4, 16, 64)}, repeats=3)},
    }


PARTS = (preprocessing, packing, training, synthesis)

if __name__ == "__main__":
    run(command_line(__doc__, PARTS).parse_args(), PARTS, called=(encode, plan_epoch, train_step))
