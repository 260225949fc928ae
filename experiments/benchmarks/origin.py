"""The origin's recipe against ours, side by side: same model, same data, same machine, one run; prints one JSON.

    python experiments/benchmarks/origin.py [--output FILE.json] [--only NAME …] [--minutes 9]

The origin ("From Llasa to Llasagna") encodes one clip at a time, keeps a split in memory and writes rows of 2,048
int32; trains on rows padded to 2,048 with whole layers computed twice (`experiment=origin_recipe`); hears a sentence
when it is whole. Ours is what the commands do by default. The speech is espeak's: shipped Italian sentences, joined to
clips of 10 s in the mean, so that there is something to learn.

On a GPU the codec is XCodec2 of full size and the model of Llasa-1B's shape, with random weights. On a CPU the codec is
`xcodec2_nano`; the model trains on Codec2's 200 codes a second of single sentences, which fill a row as 10 s of XCodec2
do, and has Llasa-1B's sixteen layers and share of FLOPs in the head (29 %) at a five-hundredth of its size. The origin
is given our loss, which multiplies no padding by the head: its own would take longer.
"""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.benchmarks.harness import ROOT, alternate, command_line, lines_of, peak_memory, run, timed

SMALL_MODEL = [
    "model=llasa_nano",
    "model.architecture.hidden_size=128",
    "model.architecture.intermediate_size=512",
    "model.architecture.num_hidden_layers=16",
    "model.architecture.initializer_range=0.05",
    "optimizer=adamw",
    "optimizer.lr=1e-3",
    "trainer.precision=fp32",
    "device=cpu",
]
TRAIN_SECONDS = 120.0
SMOOTH_TOKENS = 20_000
TEXT = "La luna è alta nel cielo, il treno parte alle otto e la notte è ancora lunga."


@dataclass
class Setting:
    """What both sides get.

    Attributes:
        corpus: a folder of FLAC and its metadata.
        codec: overrides of preprocess.py.
        store: what training reads.
        model: overrides of train.py.
        per_step, packed_rows: clips in a step of the origin's, and packed rows that hold about as many.
    """

    folder: Path
    corpus: Path
    audio_seconds: float
    codec: list[str]
    store: Path
    model: list[str]
    per_step: int
    packed_rows: int


def write_corpus(folder: Path, count: int, sentences: int = 5) -> float:
    """Clips of espeak's Italian as FLAC, one to ``sentences`` sentences each; the seconds of audio."""
    import soundfile

    from llasa.audio import decode_audio
    from llasa.corpus.espeak import SENTENCES, EspeakSource

    rng = np.random.default_rng(0)
    lines = [line for line in (SENTENCES / "it.txt").read_text().splitlines() if line and not line.startswith("#")]
    texts = [" ".join(rng.choice(lines, size)) for size in rng.integers(1, sentences + 1, count)]
    folder.mkdir(parents=True)
    file = folder / "sentences.txt"
    file.write_text("\n".join(texts) + "\n")
    voice = {"voices": ["m1", "m3", "f1", "f2"], "words_per_minute": 150, "validation": 0, "test": 0}
    source = EspeakSource(language="it", sentences=str(file), **voice)
    total = 0.0
    with (folder / "metadata.jsonl").open("w") as metadata:
        for index in range(count):
            row = source.row("train", index)
            waveform, rate = decode_audio(row.audio)
            soundfile.write(folder / f"{index}.flac", waveform, rate)
            metadata.write(json.dumps({"file_name": f"{index}.flac", "text": row.text}) + "\n")
            total += len(waveform) / rate
    return total


def build_setting(folder: Path) -> Setting:
    import torch

    corpus = folder / "corpus"
    if not torch.cuda.is_available():
        seconds = write_corpus(corpus, 120)
        write_corpus(folder / "sentences", 600, sentences=1)
        store = encode(folder / "sentences", folder / "store", "codec=codec2")
        return Setting(folder, corpus, seconds, ["codec=xcodec2_nano"], store, SMALL_MODEL, 4, 1)
    from experiments.benchmarks.preprocess import codec
    from experiments.benchmarks.train_gpu import write_model

    codec("full", folder)
    encoder = ["codec=xcodec2", f"codec.checkpoint={folder / 'xcodec2-full'}", "codec.precision=bf16"]
    model = ["model=llasa_1b", f"model.checkpoint={write_model(folder / '1b', '1b')}", "device=cuda"]
    seconds = write_corpus(corpus, 2000)
    return Setting(folder, corpus, seconds, encoder, encode(corpus, folder / "store", *encoder), model, 32, 8)


def encode(corpus: Path, store: Path, *overrides: str) -> Path:
    """A token store of a folder, as preprocess.py writes it."""
    from llasa.corpus.run import preprocess
    from llasa.entry import compose_config

    source = ["dataset=folder", f"dataset.path={corpus}", "lang=it", "filters.characters_per_second=null"]
    preprocess(compose_config("preprocess", [*source, f"store={store}", *overrides]))
    return store


def preprocessing(setting: Setting) -> dict[str, Any]:
    """Seconds of audio that become codes in a second, imports not counted; bytes on the disk."""
    stores = (setting.folder / f"encoded-{number}" for number in itertools.count())
    sides = {
        "origin": partial(encode_one_by_one, setting, setting.folder / "input_ids.memmap"),
        "ours": lambda: encode(setting.corpus, next(stores), *setting.codec),
    }
    took = alternate({name: partial(timed, side) for name, side in sides.items()}, 2)
    sizes = {
        "origin": (setting.folder / "input_ids.memmap").stat().st_size,
        "ours": sum(file.stat().st_size for file in (setting.folder / "encoded-0").rglob("*") if file.is_file()),
    }
    return {
        "audio_seconds": round(setting.audio_seconds),
        "times_real_time": {name: round(setting.audio_seconds / seconds, 1) for name, seconds in took.items()},
        "bytes_per_second_of_audio": {name: round(size / setting.audio_seconds) for name, size in sizes.items()},
    }


def encode_one_by_one(setting: Setting, output: Path) -> None:
    """The origin's `create_dataset.py`: read, resample and encode a clip, keep all rows, write them at the end."""
    from llasa.audio import decode_audio, resample
    from llasa.build import build
    from llasa.entry import compose_config

    overrides = ["dataset=folder", f"dataset.path={setting.corpus}", "lang=it", "store=unused", *setting.codec]
    config = compose_config("preprocess", overrides)
    codec, source = build(config.codec), build(config.dataset)
    rows = []
    for index in range(source.splits()["train"]):
        row = source.row("train", index)
        codes = codec.encode([resample(*decode_audio(row.audio), codec.spec.sample_rate)])[0]
        ids = np.zeros(2048, np.int32)
        ids[: len(row.text)] = [ord(letter) for letter in row.text]
        ids[len(row.text) : len(row.text) + len(codes)] = codes[: 2048 - len(row.text)]
        rows.append(ids)
    memmap = np.memmap(output, np.int32, "w+", shape=(len(rows), 2048))
    memmap[:] = np.stack(rows)
    memmap.flush()


def training(setting: Setting) -> dict[str, Any]:
    """Useful tokens a second, the loss after equal times, the most memory, the time to the end of the first step."""
    per_step, packed = setting.per_step, setting.packed_rows
    per_device = min(per_step, 4)
    theirs = ["experiment=origin_recipe", f"trainer.rows_per_step={per_step}", f"trainer.rows_per_device={per_device}"]
    theirs += ["kernels.loss_chunk_size=1000000"]  # on a CPU: all logits at once, as without Liger
    ours = [f"trainer.rows_per_step={packed}", f"trainer.rows_per_device={packed}", "packing.max_length=2048"]
    shared = [
        *setting.model,
        "schedule=constant",
        "schedule.warmup=0",
        "logger=none",
        "checkpoint.every=0",
        "samples.every=0",
    ]
    shared += ["heldout.every=0", "trainer.log_every=1", "trainer.max_steps=100000", f"store={setting.store}"]
    sides = {"origin": theirs, "ours": ours}
    measured = {name: train_for(TRAIN_SECONDS, [*side, *shared], setting.folder / name) for name, side in sides.items()}
    ratio = measured["ours"]["tokens_per_second"] / measured["origin"]["tokens_per_second"]
    return {"seconds": TRAIN_SECONDS, **measured, "tokens_per_second_ratio": round(ratio, 2)}


def train_for(seconds: float, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Run train.py until its steps took ``seconds``."""
    command = [sys.executable, "train.py", *overrides, f"output_dir={folder}"]
    began = time.perf_counter()
    log = (folder.parent / f"{folder.name}.log").open("w")
    process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    first = None
    while process.poll() is None:
        time.sleep(0.2)
        lines = lines_of(folder) if (folder / "metrics.jsonl").is_file() else []
        if lines and first is None:
            first = time.perf_counter() - began
        elapsed = step_seconds(lines)
        if len(elapsed) and elapsed[-1] >= seconds:
            memory = peak_memory(process.pid)
            process.send_signal(signal.SIGTERM)
            process.wait()
    assert first is not None, Path(log.name).read_text()[-2000:]
    tokens = np.array([line["tokens"] for line in lines])
    losses = np.array([line["loss"] for line in lines])
    recent = tokens > tokens[-1] - SMOOTH_TOKENS
    speeds = [line["tokens_per_second"] for line in lines[2:]]
    return {
        "tokens_per_second": round(float(np.median(speeds))),
        "steps": len(lines),
        "loss": round(float(losses[recent].mean()), 3),
        "peak_gigabytes": round(max(line.get("gpu_memory_gb", 0) for line in lines) or memory / 1e9, 2),
        "first_step_seconds": round(first, 1),
        "curve": {
            "seconds": [round(float(value), 1) for value in elapsed],
            "loss": [round(float(value), 3) for value in losses],
            "tokens": tokens.tolist(),
        },
    }


def step_seconds(lines: list[dict[str, Any]]) -> np.ndarray:
    """Time since the start at each line: the tokens of a step over its throughput."""
    tokens = np.diff([0, *(line["tokens"] for line in lines)])
    return np.cumsum(tokens / np.array([line["tokens_per_second"] for line in lines]))


def first_audio(setting: Setting) -> dict[str, Any]:
    """Seconds from the command to the whole file of 5 s, and to the first samples of its stream. The model is new."""
    folder = setting.folder / "speaker"
    train = [
        *setting.model,
        "trainer.max_steps=1",
        "trainer.rows_per_step=1",
        "trainer.rows_per_device=1",
        "samples.every=0",
    ]
    train += ["logger=none", f"store={setting.store}", f"output_dir={folder}"]
    subprocess.run([sys.executable, "train.py", *train], cwd=ROOT, check=True, capture_output=True)
    settings = [f"checkpoint={folder / 'checkpoint'}", f"text={TEXT}", "seed=1", "sampling.max_seconds=5"]
    settings += ["sampling.text_bounds=false", "sampling.retries=0", "sampling.loop_seconds=0"]
    settings += [f"codec.checkpoint={setting.folder / 'xcodec2-full'}"] if "codec=xcodec2" in setting.codec else []
    file = setting.folder / "whole.wav"

    def whole() -> float:
        command = [sys.executable, "infer.py", *settings, f"output={file}"]
        return timed(partial(subprocess.run, command, cwd=ROOT, check=True, capture_output=True))

    def stream() -> float:
        began = time.perf_counter()
        command = [sys.executable, "infer.py", *settings, "stream=true", "output=-", "stream_format=pcm"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            assert process.stdout.read(640), "nothing was spoken"
            first = time.perf_counter() - began
            process.communicate()
        return first

    took = alternate({"origin": whole, "ours": stream}, 3)
    return {"seconds": {name: round(seconds, 2) for name, seconds in took.items()}}


PARTS = (preprocessing, training, first_audio)

if __name__ == "__main__":
    run(command_line(__doc__, PARTS).parse_args(), PARTS, build_setting)
