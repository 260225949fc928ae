"""`make demo`: the main job on a CPU, from a corpus to speech, with nothing from a model hub.

    recorded Italian ─preprocess─► store ─train─► checkpoint ─infer─► 01.wav … and report.json

The steps are the functions behind `preprocess.py`, `train.py` and `infer.py`; the commands they stand for are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from recorded_italian import find_packages, sentences, write_corpus

from llasa.config import TrainConfig
from llasa.entry import compose_config
from llasa.errors import UserError
from llasa.provenance import provenance, write_json
from llasa.types import Speech

DEFAULT_FOLDER = Path("outputs/demo")
CACHE = Path("data/recorded_italian")
SENTENCES, UNSEEN = 72, 16
CODEC = "xcodec2_nano"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--sentences", type=int, default=SENTENCES, help="how many sentences to learn")
    parser.add_argument("--corpus", choices=("auto", "recorded", "espeak"), default="auto")
    parser.add_argument("overrides", nargs="*", help="further overrides for training, such as trainer.max_steps=100")
    arguments = parser.parse_args()
    try:
        demo(arguments.output, arguments.sentences, arguments.corpus, arguments.overrides)
    except UserError as error:
        sys.exit(f"error: {error}")


def demo(folder: Path, count: int, corpus: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Run all steps into ``folder`` (an earlier demo there is deleted) and return the report."""
    began = time.perf_counter()
    if folder.exists() and any(folder.iterdir()) and not (folder / "corpus.txt").is_file():
        raise UserError(f"{folder} is not empty and holds no demo", remedy="choose another --output")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    name, dataset, unseen = choose_corpus(folder, count, corpus)
    (folder / "corpus.txt").write_text(name + "\n", encoding="utf-8")
    print(f"corpus: {name}", flush=True)

    store = f"store={folder}/store"
    from llasa.corpus.run import preprocess

    preprocess(announced("preprocess", [*dataset, "lang=it", f"codec={CODEC}", store, "split.by=off"]))
    texts, codes = stored(folder / "store")
    (folder / "sentences.txt").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")

    from llasa.training.run import train

    config: TrainConfig = announced(
        "train", ["experiment=nano_demo", "lang=it", store, f"output_dir={folder}", *overrides]
    )
    started = time.perf_counter()
    final_loss = train(config)
    train_seconds = time.perf_counter() - started
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])

    from llasa.generation.run import infer

    said: dict[int, Speech] = {}
    speak = [f"checkpoint={folder}/checkpoint", "sampling=greedy"]
    lists = [f"texts={folder}/sentences.txt", f"output={folder}/speech"]
    infer(announced("infer", [*speak, *lists]), heard=said.__setitem__)
    if unseen:
        (folder / "unseen.txt").write_text("".join(f"{text}\n" for text in unseen), encoding="utf-8")
        infer(announced("infer", [*speak, f"texts={folder}/unseen.txt", f"output={folder}/unseen"]))
    spoken = [said[number] for number in sorted(said)]
    report = {
        "corpus": name,
        "sentences": len(texts),
        "seconds_of_speech": round(sum(speech.seconds for speech in spoken), 1),
        "train_seconds": round(train_seconds, 1),
        "steps": last["step"],
        "tokens": last["tokens"],
        "tokens_per_second": round(last["tokens"] / train_seconds, 1),
        "final_loss": final_loss,
        "code_accuracy": accuracy(spoken, codes),
        "exact_sentences": sum(np.array_equal(speech.codes, c) for speech, c in zip(spoken, codes, strict=True)),
        "total_seconds": round(time.perf_counter() - began, 1),
        "machine": f"{os.cpu_count()} cores, {processor()}",
        "provenance": provenance(),
    }
    write_json(folder / "report.json", report)
    conclude(folder, report)
    return report


def choose_corpus(folder: Path, count: int, corpus: str) -> tuple[str, list[str], list[str]]:
    """(what it is, overrides of preprocess.py, sentences left out) of the recorded prompts if they can be had."""
    root = find_packages(CACHE) if corpus != "espeak" else None
    if root is not None:
        found = sentences(root, min_words=4, max_words=12, min_seconds=1.5, max_seconds=4.0)
        chosen = [found[i * len(found) // count] for i in range(count)] if len(found) >= count else found
        write_corpus(folder / "corpus", chosen)
        return (
            "asterisk-core-sounds-it (recorded, one voice, CC-BY 3.0)",
            [
                "dataset=folder",
                f"dataset.path={folder}/corpus",
            ],
            [text for file, text in found if (file, text) not in chosen][:UNSEEN],
        )
    if corpus == "recorded":
        raise UserError(
            "the recorded Italian prompts cannot be had", remedy="apt-get install asterisk-core-sounds-it-g722"
        )
    print(
        "Recorded Italian is not to be had here (Debian's asterisk-core-sounds-it-g722, by apt); "
        "the demo learns synthetic speech instead."
    )
    return "espeak-ng (synthetic)", ["dataset=espeak", f"dataset.limit={count}"], []


def announced(root: str, overrides: list[str]) -> Any:
    print(f"\n$ python {root}.py {shlex.join(overrides)}", flush=True)
    return compose_config(root, overrides)


def stored(store: Path) -> tuple[list[str], list[np.ndarray]]:
    """Texts and codes of a store's training rows, in order."""
    from llasa.corpus.store import TokenStore

    rows = TokenStore(store).rows("train")[:]
    return [str(text) for text in rows["text"]], list(rows["codes"])


def accuracy(spoken: Sequence[Speech], codes: Sequence[np.ndarray]) -> float:
    """Share of codes that are right, place by place; what is missing or too much counts as wrong."""
    right = total = 0
    for speech, expected in zip(spoken, codes, strict=True):
        shared = min(len(speech.codes), len(expected))
        right += int((speech.codes[:shared] == expected[:shared]).sum())
        total += max(len(speech.codes), len(expected))
    return round(right / total, 5)


def processor() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def conclude(folder: Path, report: dict[str, Any]) -> None:
    print(
        f"\n{report['sentences']} sentences learned in {report['train_seconds']:.0f} s at "
        f"{report['tokens_per_second']:,.0f} tokens/s; loss {report['final_loss']:.3f}; "
        f"{report['code_accuracy']:.1%} of all codes spoken back exactly.\n"
        f"Listen: {folder}/speech/01.wav … (the sentence beside it in 01.txt); numbers: {folder}/report.json\n"
        f'Speak something: .venv/bin/python infer.py checkpoint={folder}/checkpoint text="…" output=speech.wav\n'
        f"In a browser:    .venv/bin/python serve.py checkpoint={folder}/checkpoint examples={folder}/sentences.txt\n"
        f"This model knows its sentences by heart and nothing else ({folder}/unseen: how it says others).\n"
        "For a real one, on a GPU:\n"
        "  source .venv/bin/activate\n"
        "  python preprocess.py lang=it\n"
        "  python train.py model=llasa_1b lang=it"
    )


if __name__ == "__main__":
    main()
