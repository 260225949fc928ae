"""How do held-out loss and intelligibility grow with the amount of speech?

    python experiments/data_scaling/run.py STORE OUTPUT --asr WHISPER [--sizes 48 96 192 384] [--steps 300]

The rows of STORE in a seeded order: the last tenth is the test split of every size, the first N are its training split.
The nano model is trained on each size with the same number of updates, the checkpoint with the best held-out loss is
kept, and evaluate.py lets it say sentences it has not seen and sentences it has.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def write_part(source: Path, root: Path, splits: dict[str, list[int]]) -> Path:
    """A store of chosen rows of another one's training split."""
    from llasa.corpus.store import TokenStore, plan_shards, write_manifest, write_plan, write_shard
    from llasa.types import EncodedUtterance

    store = TokenStore(source)
    rows = store.rows("train")
    plan = {"codec": store.codec.to_dict(), "source": {"name": "part", "of": store.manifest["source"]}}
    write_plan(root, plan)
    shards = plan_shards({name: len(chosen) for name, chosen in splits.items()}, 1000)
    for shard in shards:
        table = rows[splits[shard.split][shard.start : shard.stop]]
        names = ("id", "text", "speaker", "language", "seconds", "codes")
        utterances = [
            EncodedUtterance(
                id=str(name),
                text=str(text),
                text_given=str(text),
                speaker=str(speaker),
                language=str(language),
                seconds=float(seconds),
                codes=np.asarray(codes),
            )
            for name, text, speaker, language, seconds, codes in zip(*(table[key] for key in names), strict=True)
        ]
        write_shard(root, shard, store.codec, utterances, [])
    write_manifest(root, shards, plan, {})
    return root


def evaluate_on(split: str, store: Path, run: Path, asr: str, output: Path, limit: int) -> dict[str, Any]:
    from llasa.entry import compose_config
    from llasa.evaluation.run import evaluate

    overrides = [f"checkpoint={run / 'best'}", f"store={store}", f"split={split}", f"asr={asr}", f"output={output}"]
    overrides += [f"limit={limit}", "sampling=greedy", "sampling.max_seconds=8", "metrics.dnsmos=false"]
    evaluate(compose_config("evaluate", overrides))
    return json.loads((output / "report.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--asr", required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[48, 96, 192, 384])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--limit", type=int, default=30, help="sentences of each split that are spoken")
    arguments = parser.parse_args()

    from llasa.corpus.store import TokenStore
    from llasa.entry import compose_config
    from llasa.training.run import train

    rows = TokenStore(arguments.store).rows("train")
    short = np.flatnonzero(np.asarray(rows["seconds"]) <= 4.5)  # what fits into a row of 1,024 tokens
    order = np.random.default_rng(0).permutation(short).tolist()
    test = sorted(order[-len(order) // 10 :])
    results = {}
    for size in arguments.sizes:
        chosen = sorted(order[:size])
        assert len(chosen) == size, f"there are {len(order) - len(test)} rows to train on"
        assert not set(chosen) & set(test)
        store = write_part(arguments.store, arguments.output / f"store-{size}", {"train": chosen, "test": test})
        run = arguments.output / f"run-{size}"
        overrides = [
            "experiment=nano_it",
            "optimizer.lr=8e-3",  # the best of experiments/learning_rate
            f"store={store}",
            f"output_dir={run}",
            f"trainer.max_steps={arguments.steps}",
        ]
        overrides += ["heldout.split=test", "heldout.every=25", "samples.every=0", "checkpoint.every=0"]
        train(compose_config("train", overrides))
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        best = min((line for line in lines if "heldout/loss" in line), key=lambda line: line["heldout/loss"])
        results[size] = {
            "seconds_of_speech": round(float(np.asarray(rows["seconds"])[chosen].sum()), 1),
            "best_step": best["step"],
            "heldout_loss": best["heldout/loss"],
            "heldout_accuracy": best["heldout/accuracy"],
            "reports": {
                split: evaluate_on(
                    split, store, run, arguments.asr, arguments.output / f"evaluation-{size}-{split}", arguments.limit
                )["systems"]
                for split in ("test", "train")
            },
        }
        (arguments.output / "result.json").write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
