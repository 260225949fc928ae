"""How many sampled codes does noise on the logits change?

python experiments/vllm_agreement/borders.py CHECKPOINT --texts FILE

Exact for the given logits, no draws: with one number for each code, `sampling.choose` changes its choice unless the
number lies in the same code's interval of both cumulative distributions.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from llasa.config import SamplingConfig  # noqa: E402 (the path above comes first)
from llasa.generation.engine import Request  # noqa: E402
from llasa.generation.engine_hf import TransformersEngine  # noqa: E402
from llasa.generation.sampling import CodeRules, pick_columns  # noqa: E402

TEXTS, CODES, TEMPERATURE, NOISE = 6, 300, 0.8, 1e-5


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--texts", required=True)
    arguments = parser.parse_args()
    lines = Path(arguments.texts).read_text(encoding="utf-8").splitlines()[:TEXTS]
    texts = [" ".join(reversed(line.strip(" .").lower().split())) for line in lines]
    engine = TransformersEngine(batch_size=TEXTS)
    speech = engine.load(arguments.checkpoint, "cpu")
    requests = [Request(speech.prompt.prompt(text), CODES, seed=seed) for seed, text in enumerate(texts)]
    results = engine.generate(speech, requests, SamplingConfig(temperature=TEMPERATURE, loop_seconds=0))
    ranges = speech.card.codec.code_ranges
    rules = CodeRules(speech.vocabulary.num_codes, ranges, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    draws, changed, least = 0, 0.0, 0.0
    for request, result in zip(requests, results, strict=True):
        ids = np.concatenate([request.prompt, speech.vocabulary.codes_to_ids(result.codes)])
        logits = speech.model(torch.from_numpy(ids)[None]).logits[0, len(request.prompt) - 1 :]
        columns = pick_columns(logits, speech.vocabulary)
        places = [number % len(ranges) for number in range(len(columns))]
        rules.apply(columns, places, [place == 0 and number > 0 for number, place in enumerate(places)])
        noisy = columns + NOISE * torch.randn(columns.shape, generator=generator)
        p, q = ((c.double() / TEMPERATURE).softmax(dim=-1) for c in (columns, noisy))
        p_end, q_end = p.cumsum(dim=-1), q.cumsum(dim=-1)
        kept = (torch.minimum(p_end, q_end) - torch.maximum(p_end - p, q_end - q)).clamp(min=0).sum(dim=-1)
        draws += len(columns)
        changed += float((1 - kept).sum())
        least += float((p - q).abs().sum()) / 2
    print(f"{draws:,} draws: {changed:.2f} expected to change; the least possible is {least:.4f}")


if __name__ == "__main__":
    main()
