"""Does choosing among N candidates make speech better, by a judge that did not choose?

    python experiments/search/run.py CHECKPOINT SENTENCES RECORDINGS ASR OUTPUT [--temperature 1.3]

One pool of candidates a sentence is made by `BestOf` with every scorer; what a scorer chooses among N of them is then
counted over all subsets of N, so that all N share the same speech. A beam search by likelihood is put beside best-of-N
by likelihood, there and at a temperature at which sentences are lost sooner.

OUTPUT/sentences/NN.json holds a sentence's scores: a killed run goes on. OUTPUT/result.json and OUTPUT/search.png are
the result. Cost: about 60 s a sentence on one core, half of it the recogniser.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

LANGUAGE = "it"
WIDTH, CANDIDATES, STEP_SECONDS = 2, 4, 0.5
POOL = WIDTH * CANDIDATES
SIZES = (1, 2, 4, 8)
JUDGES = ("cer", "similarity")
SELECTORS = {
    "likelihood": ("likelihood", "#0072B2"),
    "similarity": ("speaker similarity", "#E69F00"),
    "length": ("plausible length", "#999999"),
    "cer": ("CER itself (oracle)", "#009E73"),
}


def measure(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Each sentence's scores: pool, beam search and floor; and both searches again where it is harder."""
    from llasa.config import SamplingConfig
    from llasa.evaluation.scorers import SpeakerSimilarity
    from llasa.generation.engine_hf import TransformersEngine
    from llasa.generation.run import build_codec
    from llasa.generation.scoring import CharacterAccuracy, LengthPlausibility, Likelihood
    from llasa.generation.search import BestOf
    from llasa.generation.synthesizer import Synthesizer
    from llasa.model.llama import load_for_inference

    texts = arguments.sentences.read_text(encoding="utf-8").splitlines()
    chosen = texts[:: len(texts) // arguments.count][: arguments.count]
    # The reference of the voice: the longest recording, whatever it says.
    recording = max(arguments.recordings.glob("*.wav"), key=lambda file: file.stat().st_size)
    speech = load_for_inference(str(arguments.checkpoint), "cpu")
    codec = build_codec(speech.card.codec, None, "cpu")
    synthesizer = Synthesizer(speech, codec, TransformersEngine(batch_size=POOL, progress=False), LANGUAGE)
    likelihood = {"likelihood": Likelihood()}
    scorers = likelihood | {
        "similarity": SpeakerSimilarity(recording=str(recording), device="cpu"),
        "length": LengthPlausibility(),
        "cer": CharacterAccuracy(arguments.asr),
    }

    def by_beam(text: str, seed: int, sampling: SamplingConfig) -> dict[str, Any]:
        from llasa.generation.beam_search import BeamSearch

        search = BeamSearch(WIDTH, CANDIDATES, STEP_SECONDS, likelihood, likelihood)
        result = search.speak(synthesizer, text, sampling, seed=seed)
        scores = judge(synthesizer, text, result.speech, scorers)
        return {"beam": scored(result.best) | {"scores": scores}, "beam_codes": result.codes_generated}

    def at_pool_temperature(text: str, seed: int) -> dict[str, Any]:
        sampling = SamplingConfig(temperature=arguments.temperature)
        pool = BestOf(POOL, scorers).speak(synthesizer, text, sampling, seed=seed)
        # Greedily it says what it learned: no choice can be expected to do better.
        (floor,) = synthesizer.speak([text], SamplingConfig(temperature=0.0))
        candidates = {"pool": [*map(scored, pool.candidates)], "pool_codes": pool.codes_generated}
        return candidates | by_beam(text, seed, sampling) | {"floor": judge(synthesizer, text, floor, scorers)}

    def where_it_is_harder(text: str, seed: int) -> dict[str, Any]:
        sampling = SamplingConfig(temperature=arguments.harder)
        pool = BestOf(POOL, likelihood).speak(synthesizer, text, sampling, seed=seed)
        best = scored(pool.best) | {"scores": judge(synthesizer, text, pool.speech, scorers)}
        return {"best": best, "pool_codes": pool.codes_generated} | by_beam(text, seed, sampling)

    folder = arguments.output / "sentences"
    folder.mkdir(parents=True, exist_ok=True)
    results, harder = [], []
    for number, text in enumerate(chosen):
        results.append(kept(folder / f"{number:02}.json", text, number, at_pool_temperature))
        harder.append(kept(folder / f"{number:02}-harder.json", text, number, where_it_is_harder))
    return results, harder


def kept(file: Path, text: str, seed: int, make: Callable[[str, int], dict[str, Any]]) -> dict[str, Any]:
    """What the file holds; made first if it is not there."""
    from llasa.provenance import write_json

    if not file.is_file():
        began = time.perf_counter()
        made = {"text": text, "letters": len(text)} | make(text, seed)
        write_json(file, made | {"seconds": time.perf_counter() - began})
        cers = " ".join(f"{abs(candidate['scores']['cer']):.2f}" for candidate in made.get("pool", [made.get("best")]))
        beam = abs(made["beam"]["scores"]["cer"])
        print(f"{file.stem:9} {time.perf_counter() - began:4.0f} s  {cers}  beam {beam:.2f}", flush=True)
    return json.loads(file.read_text(encoding="utf-8"))


def scored(candidate: Any) -> dict[str, Any]:
    """What is kept of a candidate."""
    return {
        "seed": candidate.seed,
        "finish_reason": candidate.speech.finish_reason,
        "codes": len(candidate.speech.codes),
        "scores": candidate.scores,
    }


def judge(synthesizer: Any, text: str, speech: Any, scorers: dict[str, Any]) -> dict[str, float]:
    """All scores of speech that was made without them."""
    from llasa.config import SamplingConfig
    from llasa.generation.scoring import WeightedSum
    from llasa.generation.search import Judge

    prompt = synthesizer.request(text, SamplingConfig()).prompt
    candidate = Judge(synthesizer, text, prompt, 0.0).candidate(speech.waveform, speech.codes, speech.finish_reason)
    return WeightedSum(scorers, {}).scores(candidate)


def chosen_scores(pool: list[dict[str, Any]], selector: str, size: int) -> dict[str, float]:
    """What each judge says in the mean of the candidate that ``selector`` takes, over all subsets of ``size``."""
    picked = [
        max(subset, key=lambda candidate: (candidate["finish_reason"] == "stop", candidate["scores"][selector]))
        for subset in itertools.combinations(pool, size)
    ]
    return {judge: float(np.mean([candidate["scores"][judge] for candidate in picked])) for judge in JUDGES}


def summarise(results: list[dict[str, Any]], harder: list[dict[str, Any]]) -> dict[str, Any]:
    from llasa.evaluation.statistics import bootstrap_interval, paired_difference

    letters = [result["letters"] for result in results]

    def rate(values: list[float]) -> dict[str, Any]:
        """A corpus CER: edits of all sentences by their letters, with its interval over sentences."""
        edits = [-value * count for value, count in zip(values, letters, strict=True)]
        return {"cer": sum(edits) / sum(letters), "interval": bootstrap_interval(edits, letters)}

    def difference(ours: list[float], theirs: list[float]) -> dict[str, float]:
        sides = [[-value * count for value, count in zip(side, letters, strict=True)] for side in (ours, theirs)]
        return vars(paired_difference(*sides, letters))

    curves, others, gains = {}, {}, {}
    for selector in SELECTORS:
        by_size = {size: [chosen_scores(result["pool"], selector, size) for result in results] for size in SIZES}
        curves[selector] = {size: rate([scores["cer"] for scores in by_size[size]]) for size in SIZES}
        others[selector] = {
            judge: {size: float(np.mean([scores[judge] for scores in by_size[size]])) for size in SIZES}
            for judge in JUDGES[1:]
        }
        gains[selector] = difference(
            [scores["cer"] for scores in by_size[POOL]], [scores["cer"] for scores in by_size[1]]
        )
    by_likelihood = [chosen_scores(result["pool"], "likelihood", POOL)["cer"] for result in results]
    beam = [result["beam"]["scores"]["cer"] for result in results]
    kept = [
        max(result["pool"], key=lambda c: (c["finish_reason"] == "stop", c["scores"]["likelihood"]))
        for result in results
    ]
    return {
        "sentences": len(results),
        "clips": sum(len(result["pool"]) for result in results),
        "unfinished": sum(c["finish_reason"] != "stop" for result in results for c in result["pool"]),
        "floor": rate([result["floor"]["cer"] for result in results]),
        "cer": curves,
        "other_judges": others,
        f"best_of_{POOL}_minus_1": gains,
        "beam": rate(beam)
        | {
            "like_the_floor": sum(r["beam"]["scores"]["cer"] == r["floor"]["cer"] for r in results),
            "best_of_8_like_the_floor": sum(
                a == r["floor"]["cer"] for a, r in zip(by_likelihood, results, strict=True)
            ),
            "minus_best_of_8_by_likelihood": difference(beam, by_likelihood),
            "codes_per_code_kept": sum(r["beam_codes"] for r in results) / sum(r["beam"]["codes"] for r in results),
            "best_of_8_codes_per_code_kept": sum(r["pool_codes"] for r in results) / sum(c["codes"] for c in kept),
            "codes_generated": sum(r["beam_codes"] for r in results),
            "best_of_8_codes_generated": sum(r["pool_codes"] for r in results),
            "unfinished": sum(r["beam"]["finish_reason"] != "stop" for r in results),
        },
        "harder": {
            "best_of_8": rate([result["best"]["scores"]["cer"] for result in harder]),
            "beam": rate([result["beam"]["scores"]["cer"] for result in harder]),
            "beam_minus_best_of_8": difference(
                *([result[who]["scores"]["cer"] for result in harder] for who in ("beam", "best"))
            ),
            "codes_generated": [sum(result[who] for result in harder) for who in ("beam_codes", "pool_codes")],
        },
        "seconds": sum(result["seconds"] for result in [*results, *harder]),
    }


def draw(summary: dict[str, Any], path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), dpi=150)
    for offset, (selector, (label, colour)) in enumerate(SELECTORS.items()):
        points = [summary["cer"][selector][size] for size in SIZES]
        # A little apart, so that intervals can be told from each other.
        places = np.array(SIZES) * 2 ** (0.05 * (offset - 1.5))
        rates = np.array([point["cer"] for point in points])
        low, high = np.array([point["interval"] for point in points]).T
        style = "--" if selector == "cer" else "-"
        axes.errorbar(places, rates, [rates - low, high - rates], fmt=f"o{style}", ms=4, lw=1.5, elinewidth=0.7,
                      color=colour, label=label)  # fmt: skip
    beam = summary["beam"]
    low, high = beam["interval"]
    axes.errorbar([POOL * 2**0.2], [beam["cer"]], [[beam["cer"] - low], [high - beam["cer"]]], fmt="D", ms=6,
                  elinewidth=0.7, color="#CC79A7", label=f"beam {WIDTH} x {CANDIDATES} by likelihood")  # fmt: skip
    axes.axhline(summary["floor"]["cer"], color="black", lw=0.8, ls=":", label="codec (greedy)")
    axes.set_xscale("log", base=2)
    axes.set_xticks(SIZES, [str(size) for size in SIZES])
    axes.set_xlabel("candidates")
    axes.set_ylabel("CER of what is chosen (Whisper base)")
    axes.set_ylim(0, 0.7)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0.13, 1.08))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("sentences", type=Path, help="a sentence a line, those that the checkpoint learned")
    parser.add_argument("recordings", type=Path, help="folder with WAV files of the voice")
    parser.add_argument("asr", help="folder or name of a Whisper model")
    parser.add_argument("output", type=Path)
    parser.add_argument("--temperature", type=float, default=1.3)
    parser.add_argument(
        "--harder", type=float, default=1.5, help="temperature at which the searches are compared again"
    )
    parser.add_argument("--count", type=int, default=20, help="sentences")
    arguments = parser.parse_args()

    from llasa.provenance import provenance, write_json

    summary = summarise(*measure(arguments))
    settings = {"temperatures": [arguments.temperature, arguments.harder], "steps": [WIDTH, CANDIDATES, STEP_SECONDS]}
    write_json(arguments.output / "result.json", settings | summary | {"provenance": provenance()})
    draw(summary, arguments.output / "search.png")
    for selector, (label, _) in SELECTORS.items():
        rates = "  ".join(f"{summary['cer'][selector][size]['cer']:.3f}" for size in SIZES)
        print(f"{label:22} {rates}")
    print(f"beam {summary['beam']['cer']:.3f}, floor {summary['floor']['cer']:.3f}")
    hard = summary["harder"]
    print(f"harder: best of {POOL} {hard['best_of_8']['cer']:.3f}, beam {hard['beam']['cer']:.3f}")


if __name__ == "__main__":
    main()
