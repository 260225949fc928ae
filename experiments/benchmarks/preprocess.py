"""How fast a corpus becomes a token store, against the origin's way; prints one JSON.

    python experiments/benchmarks/preprocess.py [--output FILE.json] [--only NAME …]

Ratios are taken within one run, the two sides in turn, because machines are noisy. The origin (create_dataset.py of
the Llasagna post) reads and encodes one clip at a time and writes rows of 2,048 int32 tokens. Everything is made up
from a seed: recordings of log-normal length, mean 10 s. With a CUDA device the codec is XCodec2 at its full size, with
random weights; without, a tiny one of the same architecture, and Codec2.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.benchmarks.harness import ROOT, alternate, clip_seconds, command_line, run, timed

ORIGIN_ROW_BYTES = 2048 * 4


def clip(seconds: float, seed: int, rate: int) -> np.ndarray:
    """Noise of changing loudness: no codec here is quicker for real speech."""
    rng = np.random.default_rng(seed)
    samples = int(seconds * rate)
    loudness = np.repeat(rng.uniform(0.01, 0.3, samples // 1600 + 1), 1600)[:samples]
    return (rng.standard_normal(samples) * loudness).astype(np.float32)


def write_corpus(folder: Path, count: int, rate: int = 24_000) -> float:
    """A folder corpus of FLAC files; the seconds of audio."""
    import soundfile

    folder.mkdir(parents=True)
    lines = ["file_name,text,speaker"]
    total = 0.0
    for index, seconds in enumerate(clip_seconds(count)):
        soundfile.write(folder / f"{index}.flac", clip(seconds, index, rate), rate)
        words = " ".join(["parola"] * max(1, round(seconds * 2)))
        lines.append(f"{index}.flac,{words} {index},s{index % 7}")
        total += int(seconds * rate) / rate
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return total


def codec(name: str, workspace: Path, **options: Any) -> Any:
    """codec2, tiny (an XCodec2 of 1/1000 of the size) or full (XCodec2, random weights)."""
    if name == "codec2":
        from llasa.codec.codec2 import Codec2

        return Codec2()
    from llasa.codec.xcodec2 import XCodec2

    folder = workspace / f"xcodec2-{name}"
    if not folder.exists():
        if name == "tiny":
            from tests.codec.tiny_xcodec2 import save_tiny_xcodec2

            save_tiny_xcodec2(folder)
        else:
            import torch
            from transformers import Xcodec2Config, Xcodec2Model

            torch.manual_seed(0)
            Xcodec2Model(Xcodec2Config()).save_pretrained(folder)
    return XCodec2(checkpoint=str(folder), **options)


def batched(workspace: Path) -> dict[str, Any]:
    """Batched against one clip at a time: the same clips, the same codec, decoded already."""
    import torch

    cuda = torch.cuda.is_available()
    count = 512 if cuda else 48
    clips = [clip(seconds, index, 16_000) for index, seconds in enumerate(clip_seconds(count))]
    seconds = sum(len(waveform) for waveform in clips) / 16_000
    results = {}
    for precision in ("fp32", "bf16") if cuda else ("fp32",):
        built = codec("full" if cuda else "tiny", workspace, precision=precision)
        alone_clips = clips[:48]
        alone_seconds = sum(len(waveform) for waveform in alone_clips) / 16_000

        def alone(clips: list[np.ndarray] = alone_clips, built: Any = built) -> list[np.ndarray]:
            return [built.encode([waveform])[0] for waveform in clips]

        def together(clips: list[np.ndarray] = clips, built: Any = built) -> list[np.ndarray]:
            return built.encode(clips)

        same = all(np.array_equal(a, b) for a, b in zip(alone(), together(), strict=False))
        took = alternate({"one by one": partial(timed, alone), "batched": partial(timed, together)}, 3)
        real_time = {"one by one": alone_seconds / took["one by one"], "batched": seconds / took["batched"]}
        results[precision] = {
            "codec": "full" if cuda else "tiny",
            "clips": count,
            "audio_seconds": round(seconds, 1),
            "times_real_time": {name: round(value, 1) for name, value in real_time.items()},
            "ratio": round(real_time["batched"] / real_time["one by one"], 2),
            "codes_equal": same,
        }
        if cuda:
            results[precision]["peak_gpu_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 1)
    return results


def pipeline(workspace: Path) -> dict[str, Any]:
    """The whole of preprocess.py (read, decode, resample, check, encode, write) over the codec's own time.

    In the steady state: from the first row of the second shard on. Before that the decoding processes start and the
    codec waits for its first rows; that takes the same time for a corpus of any size, and is told apart.
    """
    import torch

    from llasa.config import FiltersConfig
    from llasa.corpus.encode import make_shards
    from llasa.corpus.filters import prepare
    from llasa.corpus.folder import FolderSource
    from llasa.corpus.store import plan_shards

    cuda = torch.cuda.is_available()
    corpus = workspace / "corpus"
    results = {}
    for name, count, shard_rows in (("full", 2000, 400),) if cuda else (("codec2", 400, 40), ("tiny", 160, 40)):
        shutil.rmtree(corpus, ignore_errors=True)
        write_corpus(corpus, count)
        source = FolderSource(path=str(corpus), language="it")
        filters = FiltersConfig(characters_per_second=None)
        built = codec(name, workspace, **({"precision": "bf16"} if cuda else {}))
        rate = built.spec.sample_rate
        waveforms = [prepare(source.row("train", index), rate, filters).waveform for index in range(count)]
        shards = plan_shards(source.splits(), shard_rows)
        seconds = sum(len(waveform) for waveform in waveforms) / rate
        steady = sum(len(waveform) for waveform in waveforms[shard_rows:]) / rate

        def whole(processes: int, built: Any = built, shards: Any = shards, source: Any = source) -> tuple[float, ...]:
            store = workspace / "store"
            shutil.rmtree(store, ignore_errors=True)
            marks: list[float] = []
            begin = time.perf_counter()
            make_shards(store, shards, source, built, FiltersConfig(characters_per_second=None), 2, processes,
                        lambda rows: marks.append(time.perf_counter()))  # fmt: skip
            end = time.perf_counter()
            return marks[len(marks) // len(shards)] - begin, end - marks[len(marks) // len(shards)]

        def alone(built: Any = built, waveforms: Any = waveforms, shard_rows: int = shard_rows) -> float:
            begin = time.perf_counter()
            for start in range(shard_rows, len(waveforms), shard_rows):
                built.encode(waveforms[start : start + shard_rows])
            return time.perf_counter() - begin

        many = max(1, min(8, (os.cpu_count() or 2) - 1))
        rounds = [(alone(), whole(many), alone(), whole(0)) for _ in range(3)]
        took = statistics.median(first for first, _, second, _ in rounds for first in (first, second))
        results[name] = {
            "clips": count,
            "codec_times_real_time": round(steady / took, 1),
            "decode_processes": many,
            "pipeline_over_codec": round(statistics.median(steady for _, (_, steady), _, _ in rounds) / took, 3),
            "with_threads": round(statistics.median(steady for *_, (_, steady) in rounds) / took, 3),
            "first_shard_seconds": round(statistics.median(first for _, (first, _), _, _ in rounds), 2),
        }
        size = sum(file.stat().st_size for file in (workspace / "store").rglob("*.parquet"))
        if name != "codec2":
            results[name]["store_bytes_per_second"] = round(size / seconds, 1)
            results[name]["origin_bytes_per_second"] = round(ORIGIN_ROW_BYTES * count / seconds, 1)
            results[name]["store_over_origin"] = round(size / (ORIGIN_ROW_BYTES * count), 3)
    return results


def command(corpus: Path, store: Path, *overrides: str) -> list[str]:
    return [
        sys.executable, str(ROOT / "preprocess.py"), "dataset=folder", f"dataset.path={corpus}", "lang=it",
        "codec=codec2", f"store={store}", "filters.characters_per_second=null", *overrides,
    ]  # fmt: skip


PEAK = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:])
_, status, usage = os.wait4(process.pid, 0)
print(usage.ru_maxrss)
sys.exit(status != 0)
"""


def memory(workspace: Path) -> dict[str, Any]:
    """Peak resident memory of preprocess.py, in a process of its own, for corpora of different sizes."""
    results = {}
    for count in (100, 400, 1600):
        corpus = workspace / f"corpus-{count}"
        write_corpus(corpus, 100)
        lines = (corpus / "metadata.csv").read_text(encoding="utf-8").splitlines()
        (corpus / "metadata.csv").write_text("\n".join([lines[0], *lines[1:] * (count // 100)]), encoding="utf-8")
        line = command(corpus, workspace / f"store-{count}", "filters.duplicates=off", "shard_rows=32")
        # A small process starts it: the peak that a process is charged with begins with that of the one it forks from.
        told = subprocess.run([sys.executable, "-c", PEAK, *line], check=True, capture_output=True, text=True).stdout
        results[f"{count} clips"] = {"peak_mb": round(int(told.splitlines()[-1]) / 1024)}
        shutil.rmtree(corpus)
    peaks = [entry["peak_mb"] for entry in results.values()]
    return results | {"growth_16x_corpus": round(peaks[-1] / peaks[0], 2)}


def workers(workspace: Path) -> dict[str, Any]:
    """Two processes against one, on the CPU; the start-up of both is taken off by a corpus with hardly any work.

    Codec2 is so quick that one process keeps more than a core busy, with decoding; the tiny XCodec2 is bound by its
    one thread, as a GPU is by itself.
    """
    codec("tiny", workspace)
    tiny = ["codec=xcodec2", f"codec.checkpoint={workspace}/xcodec2-tiny", "codec.device=cpu"]
    return {name: scaling(workspace / name, count, options) for name, count, options in
            (("codec2", 400, []), ("tiny", 96, tiny))}  # fmt: skip


def scaling(workspace: Path, count: int, options: list[str]) -> dict[str, Any]:
    corpora = {"corpus": workspace / "corpus", "two clips": workspace / "two"}
    seconds = write_corpus(corpora["corpus"], count)
    write_corpus(corpora["two clips"], 2)

    def seconds_of(name: str, processes: int) -> Callable[[], float]:
        def once() -> None:
            store = workspace / "store"
            shutil.rmtree(store, ignore_errors=True)
            shard_rows = 1 if name == "two clips" else count // 16
            line = command(corpora[name], store, *options, f"runner.workers={processes}", "decode_threads=1",
                           f"shard_rows={shard_rows}")  # fmt: skip
            subprocess.run(line, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})

        return partial(timed, once)

    took = alternate({f"{name}, {n}": seconds_of(name, n) for name in corpora for n in (1, 2)}, 3)
    one, two = (took[f"corpus, {n}"] - took[f"two clips, {n}"] for n in (1, 2))
    return {
        "audio_seconds": round(seconds),
        "seconds": {name: round(value, 2) for name, value in took.items()},
        "two_over_one": round(took["corpus, 1"] / took["corpus, 2"], 2),
        "two_over_one_without_start": round(one / two, 2),
    }


def million_rows(workspace: Path) -> dict[str, Any]:
    """A store of a million rows: the time to open it (every shard is checked), and to have its rows."""
    from llasa.codec.base import CodecSpec
    from llasa.corpus.store import Shard, TokenStore, plan_shards, write_manifest, write_plan, write_shard
    from llasa.types import EncodedUtterance

    spec = CodecSpec("made-up", "0", 16_000, 50.0, 65_536, ((0, 65_536),))
    store = workspace / "million"
    rng = np.random.default_rng(0)
    rows = [
        EncodedUtterance(
            str(i), "una frase di prova " * 8, "Una frase di prova. " * 8, "s", "it", 10.0,
            rng.integers(0, 65_536, 500).astype(np.uint16),
        )
        for i in range(1000)
    ]  # fmt: skip
    plan = {"codec": spec.to_dict(), "source": {"name": "made up"}}
    shards = plan_shards({"train": 1_000_000}, 1000)
    write_plan(store, plan)
    write_shard(store, Shard("train", 0, 0, 1000), spec, rows, [])
    for shard in shards[1:]:
        os.link(store / shards[0].file, store / shard.file)
    begin = time.perf_counter()
    write_manifest(store, shards, plan, {})
    manifest = time.perf_counter() - begin
    opening = alternate({"open": lambda: timed(lambda: TokenStore(store))}, 5)["open"]
    return {"rows": 1_000_000, "shards": len(shards), "open_seconds": round(opening, 2),
            "manifest_seconds": round(manifest, 2)}  # fmt: skip


PARTS = (batched, pipeline, memory, workers, million_rows)

if __name__ == "__main__":
    run(command_line(__doc__, PARTS).parse_args(), PARTS)
