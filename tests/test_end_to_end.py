"""From a corpus to speech on the CPU, with real parts and tiny sizes, through the commands people type."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from llasa.corpus.store import TokenStore
from llasa.entry import compose_config
from llasa.generation.run import infer
from llasa.training.run import train
from tests.codec.tiny_xcodec2 import save_tiny_xcodec2

ROOT = Path(__file__).resolve().parents[1]


def command(script: str, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess:
    result = subprocess.run([sys.executable, script, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == expect, result.stderr
    if expect == 2:
        lines = result.stderr.strip().splitlines()
        assert lines[-1].startswith("error: "), result.stderr
        assert "Traceback" not in result.stderr
    return result


def speak(checkpoint, output, *overrides):
    said = {}
    settings = [f"checkpoint={checkpoint}", f"output={output}", "device=cpu", *overrides]
    infer(compose_config("infer", settings), heard=said.__setitem__)
    return [said[number] for number in sorted(said)]


@pytest.fixture(scope="module")
def memorised(espeak_store, tmp_path_factory) -> Path:
    """A run whose model knows three sentences by heart."""
    run = tmp_path_factory.mktemp("memorised") / "run"
    shape = [f"model.architecture.{key}={value}" for key, value in
             {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2}.items()]  # fmt: skip
    settings = ["experiment=nano_demo", "trainer.max_steps=220", "optimizer.lr=5e-3", "checkpoint.every=0", *shape]
    train(compose_config("train", [*settings, "device=cpu", f"store={espeak_store}", f"output_dir={run}"]))
    return run


def test_greedy_speech_returns_every_code(memorised, espeak_store, tmp_path):
    rows = TokenStore(espeak_store).rows("train")[:]
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(str(text) for text in rows["text"]) + "\n\n", encoding="utf-8")
    results = speak(memorised / "checkpoint", tmp_path / "speech", f"texts={texts}", "sampling=greedy")
    assert len(results) == 3
    for result, codes in zip(results, rows["codes"], strict=True):
        np.testing.assert_array_equal(result.codes, codes)
        assert result.finish_reason == "stop"
    files = sorted(path.name for path in (tmp_path / "speech").iterdir())
    assert files == ["01.txt", "01.wav", "02.txt", "02.wav", "03.txt", "03.wav", "manifest.jsonl"]
    waveform, rate = soundfile.read(tmp_path / "speech" / "01.wav")
    assert rate == 8000
    assert len(waveform) == len(rows["codes"][0]) // 4 * 160
    assert waveform.std() > 0.01
    assert (tmp_path / "speech" / "01.txt").read_text() == "Ciao, come stai?\n"


def test_the_seed_decides_the_bytes_of_a_wav(memorised, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        settings = ["text=Una frase mai sentita, vero?", f"seed={seed}", "sampling.max_seconds=0.5"]
        settings += ["sampling.temperature=2"]  # what it knows by heart it says at any seed
        speak(memorised / "checkpoint", tmp_path / f"{name}.wav", *settings)
    a, b, c = ((tmp_path / f"{name}.wav").read_bytes() for name in "abc")
    assert a == b != c


def test_a_voice_is_continued_and_cut_off(memorised, espeak_store, tmp_path):
    """The recording's codes and transcript stand in the prompt; only what follows is returned."""
    from llasa.corpus.espeak import EspeakSource

    source = EspeakSource(language="it", voices=["m3"], words_per_minute=240, validation=0, test=0,
                          sentences=str(espeak_store.parent / "sentences.txt"))  # fmt: skip
    (tmp_path / "voice.wav").write_bytes(source.row("train", 1).audio)
    settings = [f"voice={tmp_path}/voice.wav", "voice_text=Il gatto dorme.", "sampling.max_seconds=0.4"]
    with_voice = speak(memorised / "checkpoint", tmp_path / "v.wav", "text=Ciao.", "sampling=greedy", *settings)[0]
    without = speak(memorised / "checkpoint", tmp_path / "w.wav", "text=Ciao.", "sampling=greedy")[0]
    assert with_voice.seconds <= 0.4
    assert len(with_voice.codes) % 4 == 0
    assert with_voice.codes.tolist() != without.codes[: len(with_voice.codes)].tolist()


def test_the_commands_work_from_the_shell(espeak_store, tmp_path):
    store, run = tmp_path / "store", tmp_path / "run"
    sentences = f"dataset.sentences={espeak_store.parent}/sentences.txt"
    made = command("preprocess.py", "dataset=espeak", sentences, "lang=it", "codec=codec2", f"store={store}")
    assert "3 rows" in made.stdout
    train_settings = ["trainer.max_steps=2", "trainer.log_every=1", "logger=none", "trainer.rows_per_step=1",
                      "trainer.rows_per_device=1", "packing.max_length=1024"]  # fmt: skip
    command("train.py", "model=llasa_nano", "lang=it", f"store={store}", f"output_dir={run}", *train_settings)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    arguments = [f"checkpoint={run}/checkpoint", f"output={tmp_path}/ciao.wav", "sampling.max_seconds=1"]
    command("infer.py", "text=Ciao, come stai?", *arguments)
    assert 0 < soundfile.info(tmp_path / "ciao.wav").duration <= 1

    for script, mistakes, message in [
        ("infer.py", ["text= …", *arguments], "has nothing to say"),
        ("infer.py", ["text=Ciao", arguments[0], f"output={store}/manifest.json/x.wav"], "cannot write"),
        ("infer.py", ["text=Ciao", f"checkpoint={store}"], "no checkpoint"),
        ("infer.py", ["text=Ciao", arguments[0], "output=README.md"], "is no WAV file"),
        ("infer.py", ["text=Ciao", *arguments, f"voice={store}/manifest.json", "voice_text=Ciao"], "unreadable_audio"),
        ("train.py", [f"store={store}", f"output_dir={tmp_path}/b", "logger=none"], "speaks xcodec2"),
        ("train.py", [f"store={store}", "model=llasa_nano", f"output_dir={store}/manifest.json/b"], "cannot use"),
        ("train.py", ["store=nowhere"], "python preprocess.py"),
    ]:
        assert message in command(script, *mistakes, expect=2).stderr, message


def test_the_way_of_a_real_model_through_xcodec2(tmp_path):
    """The native XCodec2 (tiny, random) instead of Codec2: 16 kHz, one code a frame, weights from a folder."""
    codec = save_tiny_xcodec2(tmp_path / "codec")
    options = ["codec=xcodec2", f"codec.checkpoint={codec}", f"store={tmp_path}/store"]
    command("preprocess.py", "dataset=espeak", "dataset.limit=4", "lang=de", *options)
    store = TokenStore(tmp_path / "store")
    assert store.codec.tokens_per_second == 50
    rows = store.rows("train")[:]
    assert [len(codes) for codes in rows["codes"]] == pytest.approx([50 * s for s in rows["seconds"]], abs=1)
    settings = ["experiment=nano_demo", "trainer.max_steps=3", "device=cpu", "lang=de", "checkpoint.every=0"]
    train(compose_config("train", [*settings, f"store={tmp_path}/store", f"output_dir={tmp_path}/run"]))
    result = speak(tmp_path / "run/checkpoint", tmp_path / "x.wav", "text=Guten Tag", "sampling.max_seconds=1")[0]
    assert result.sample_rate == 16_000
    assert len(result.waveform) == 320 * len(result.codes)

    other = save_tiny_xcodec2(tmp_path / "other", seed=1)
    wrong = command(
        "infer.py", f"checkpoint={tmp_path}/run/checkpoint", "text=Hallo", "codec=xcodec2", f"codec.checkpoint={other}",
        expect=2,
    )  # fmt: skip
    assert "different weights" in wrong.stderr
    wrong = command("infer.py", f"checkpoint={tmp_path}/run/checkpoint", "text=Hallo", "codec=codec2", expect=2)
    assert "speaks xcodec2, the codec is codec2" in wrong.stderr
