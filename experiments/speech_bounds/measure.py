"""What recorded speech does: how long it repeats itself, and how long a letter of its text takes.

python experiments/speech_bounds/measure.py STORE --wavs FOLDER --output result.json
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from llasa.codec.base import CodecSpec
from llasa.config import SamplingConfig
from llasa.corpus.store import TokenStore
from llasa.generation.limits import code_bounds
from llasa.generation.loops import AGREEMENT, find_loop
from llasa.provenance import write_json

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
PERIOD_SECONDS = 1.0
WINDOWS = (0.25, 0.5, 1.0, 2.0)


def longest_run(equal: np.ndarray) -> int:
    """Of True in [n]."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], equal, [False]])))
    return int((edges[1::2] - edges[::2]).max(initial=0))


def repetitions(clips: list[np.ndarray], spec: CodecSpec) -> dict[str, Any]:
    """Over all periods of up to a second: the longest repetition, exact and of three codes in four, and the largest
    share of codes that a window of some length has in common with what came one period before."""
    frame = spec.codes_per_frame
    rate = spec.tokens_per_second / frame
    periods = round(PERIOD_SECONDS * rate)
    exact, near = np.zeros(periods + 1, int), np.zeros(periods + 1, int)
    shares = dict.fromkeys(WINDOWS, 0.0)
    for clip in clips:
        frames = clip.reshape(-1, frame)
        for period in range(1, min(periods, len(frames) - 1) + 1):
            equal = (frames[period:] == frames[:-period]).mean(axis=1)
            exact[period] = max(exact[period], longest_run(equal == 1))
            near[period] = max(near[period], longest_run(equal >= 0.75))
            sums = np.concatenate([[0], np.cumsum(equal)])
            for window in WINDOWS:
                count = round(window * rate)
                if period <= count // 2 and len(equal) >= count:
                    shares[window] = max(shares[window], float((sums[count:] - sums[:-count]).max() / count))
    return {
        "periods_seconds": [1 / rate, PERIOD_SECONDS],
        "longest_exact_repetition_seconds": round(exact.max() / rate, 3),
        "longest_exact_repetition_by_period_seconds": {
            f"{period / rate:g}": round(int(count) / rate, 3) for period, count in enumerate(exact) if count
        },
        "longest_repetition_of_3_codes_in_4_seconds": round(near.max() / rate, 3),
        "largest_share_of_equal_codes_by_window_seconds": {f"{w:g}": round(share, 3) for w, share in shares.items()},
        "share_that_is_a_loop": AGREEMENT,
        "alarms_by_loop_seconds": {
            f"{window:g}": sum(find_loop(clip, frame, rate, window) is not None for clip in clips) for window in WINDOWS
        },
    }


def pauses(folder: Path) -> dict[str, Any]:
    """The longest silence of each recording: frames of 20 ms that are 40 dB below its loudest."""
    longest = []
    for path in sorted(folder.glob("*.wav")):
        waveform, rate = soundfile.read(path, dtype="float32")
        size = rate // 50
        if len(waveform) >= size:
            power = (waveform[: len(waveform) // size * size].reshape(-1, size) ** 2).mean(axis=1)
            longest.append(longest_run(power < 1e-4 * power.max()) / 50)
    return {"recordings": len(longest), "longest_seconds": quantiles(np.array(longest))}


def quantiles(values: np.ndarray) -> dict[str, float]:
    return {f"{q:g}": round(float(np.quantile(values, q)), 4) for q in QUANTILES}


def lengths(texts: list[str], clips: list[np.ndarray], language: str, spec: CodecSpec) -> dict[str, Any]:
    """Seconds a letter, and how far each recording is from its text's bounds."""
    sampling = SamplingConfig(max_seconds=600.0)
    letters = np.array([sum(character.isalpha() for character in text) for text in texts])
    seconds = np.array([len(clip) for clip in clips]) / spec.tokens_per_second
    bounds = np.array([code_bounds(text, language, spec, sampling) for text in texts]) / spec.tokens_per_second
    fewest, most = bounds.T

    long, short = letters > 3, letters <= 3
    tightest = np.argsort(most / seconds)[:5]
    return {
        "seconds_a_letter": quantiles(seconds[long] / letters[long]),
        "seconds_of_texts_of_one_to_three_letters": quantiles(seconds[short]) if short.any() else {},
        "recording_over_fewest": quantiles((seconds / np.maximum(fewest, 1 / spec.tokens_per_second))[long]),
        "most_over_recording": quantiles(most / seconds),
        "recordings_below_fewest": int((seconds < fewest).sum()),
        "recordings_above_most": int((seconds > most).sum()),
        "nearest_to_being_cut": [
            {"text": texts[i], "seconds": round(float(seconds[i]), 2), "most": float(most[i])} for i in tightest
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--language", default="it")
    parser.add_argument("--wavs", type=Path, help="folder of the recordings, for their pauses")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    store = TokenStore(arguments.store)
    rows = store.rows("train")[:]
    clips, texts = [np.asarray(codes) for codes in rows["codes"]], [str(text) for text in rows["text"]]
    result = {
        "recordings": len(clips),
        "seconds": round(sum(map(len, clips)) / store.codec.tokens_per_second, 1),
        "codec": store.codec.fingerprint,
        "repetitions": repetitions(clips, store.codec),
        "lengths": lengths(texts, clips, arguments.language, store.codec),
    }
    if arguments.wavs is not None:
        result["pauses"] = pauses(arguments.wavs)
    write_json(arguments.output, result)


if __name__ == "__main__":
    main()
