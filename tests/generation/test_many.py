import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from llasa.codec.codec2 import Codec2
from llasa.config import SamplingConfig
from llasa.errors import UserError
from llasa.generation.engine_hf import TransformersEngine
from llasa.generation.many import batches, number_lines, read_manifest, speak_many
from llasa.generation.synthesizer import Synthesizer
from llasa.generation.voices import Voice
from llasa.model.checkpoint import CheckpointCard, save_checkpoint
from llasa.model.llama import load_for_inference
from llasa.tokens.prompt import PromptRules
from tests.model.tiny import build_tiny

SAMPLING = SamplingConfig(max_seconds=0.1, retries=0)
TEXTS = ["Ciao!", "Ho 3 gatti.", "La luna è alta nel cielo", "Ciao!", "Sì"]


class CountingEngine(TransformersEngine):
    """The real engine, which also counts the requests of each call."""

    def generate(self, speech, requests, sampling):
        self.asked = [*getattr(self, "asked", []), len(requests)]
        return super().generate(speech, requests, sampling)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    codec = Codec2()
    speech = build_tiny(codec.spec, spread=0.1)
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    save_checkpoint(folder, speech.model, speech.tokenizer, CheckpointCard(PromptRules(), codec.spec, ("it",), 300))
    return folder


@pytest.fixture(scope="module")
def loaded(checkpoint):
    return load_for_inference(str(checkpoint), "cpu"), Codec2()


@pytest.fixture
def synthesizer(loaded):
    return Synthesizer(*loaded, CountingEngine(batch_size=2), "it")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_every_line_has_its_files_and_its_record(synthesizer, tmp_path):
    """Fails when results and lines are mixed up by the sorting, or the bar of the engine stays off."""
    seen = {}

    def heard(number, speech):
        seen[number] = speech
        assert all((tmp_path / "out" / record["file"]).is_file() for record in read_manifest(tmp_path / "out"))

    records = speak_many(synthesizer, TEXTS, tmp_path / "out", SAMPLING, seed=3, heard=heard)
    expected = synthesizer.speak(TEXTS, SAMPLING, seed=3)
    names = [f"0{number}.{suffix}" for number in range(1, 6) for suffix in ("txt", "wav")]
    assert list(contents(tmp_path / "out")) == [*names, "manifest.jsonl"]
    assert records == [json.loads(line) for line in (tmp_path / "out/manifest.jsonl").read_text().splitlines()]
    for number, (text, speech, record) in enumerate(zip(TEXTS, expected, records, strict=True), 1):
        np.testing.assert_array_equal(seen[number].codes, speech.codes)
        assert (tmp_path / f"out/0{number}.txt").read_text() == f"{text}\n"
        waveform, rate = soundfile.read(tmp_path / f"out/0{number}.wav", dtype="float32")
        assert rate == 8000
        np.testing.assert_allclose(waveform, speech.waveform, atol=1e-4)
        assert (record["number"], record["file"]) == (number, f"0{number}.wav")
        assert (record["text"], record["language"], record["seed"], record["tries"]) == (text, "it", 3, 1)
        assert (record["seconds"], record["num_codes"]) == (round(speech.seconds, 3), len(speech.codes))
        assert record["finish_reason"] == speech.finish_reason
    assert records[1]["spoken"] == "Ho tre gatti."
    assert (tmp_path / "out/01.wav").read_bytes() == (tmp_path / "out/04.wav").read_bytes(), "the same sentence"
    assert synthesizer.engine.progress


def test_what_is_there_is_not_spoken_again(synthesizer, tmp_path, capsys):
    """Fails when a change of text, seed, sampling, voice or checkpoint is not noticed, or when any of them
    makes lines new that are not, or the batches hang on what is missing."""
    out, engine = tmp_path / "out", synthesizer.engine

    def spoken_now(texts=TEXTS, sampling=SAMPLING, **settings) -> list[int]:
        numbers = []
        speak_many(synthesizer, texts, out, sampling, heard=lambda number, _: numbers.append(number), **settings)
        return sorted(numbers)

    assert spoken_now() == [1, 2, 3, 4, 5]
    before, engine.asked = contents(out), []
    capsys.readouterr()
    assert spoken_now() == []
    assert engine.asked == []
    assert contents(out) == before
    assert capsys.readouterr().out.startswith(f"{out}: 5 of 5 lines are there already\n")
    assert spoken_now(["Ciao!", "Ho 4 gatti.", *TEXTS[2:]]) == [2]
    assert (out / "02.txt").read_text() == "Ho 4 gatti.\n"
    assert engine.asked == [2], "with its neighbour in the batch, as if nothing were there"
    assert spoken_now() == [2]
    (out / "03.wav").unlink()
    (out / "04.wav").write_bytes(before["04.wav"][:-50])
    (out / "05.txt").unlink()
    with open(out / "manifest.jsonl", "a") as manifest:
        manifest.write('{"number": 1, "text": "Ci')
    assert spoken_now() == [3, 4, 5]
    assert contents(out) == before
    voice = Voice("Buonasera.", np.resize([0, 1024, 5120, 9216], 40).astype(np.uint16))
    settings = {}
    for change in (
        {"seed": 1},
        {"sampling": replace(SAMPLING, temperature=0.5)},
        {"voice": voice},
        {"voice": replace(voice, codes=voice.codes[:-4])},
        {"made_with": {"checkpoint": "another"}},
    ):
        settings |= change
        assert spoken_now(**settings) == [1, 2, 3, 4, 5], change
        assert spoken_now(**settings) == [], change


def test_lines_that_cannot_be_spoken_do_not_keep_the_others_from_it(synthesizer, tmp_path):
    """Fails when the first of them ends the run, or none is told."""
    texts = ["Ciao!", "😀", "ciao " * 200, "Sì", "…"]
    for _ in range(2):
        with pytest.raises(UserError, match=r"^3 of 5 lines could not be spoken; line 2: .*nothing to say.*manifest"):
            speak_many(synthesizer, texts, tmp_path / "out", SAMPLING)
        records = read_manifest(tmp_path / "out")
        assert [record["number"] for record in records] == [1, 2, 3, 4, 5]
        assert [record.get("file") for record in records] == ["01.wav", None, None, "04.wav", None]
        assert "trained on 300 in all" in records[2]["rejected"]
        assert [path.name for path in sorted((tmp_path / "out").glob("*.wav"))] == ["01.wav", "04.wav"]
    assert sum(synthesizer.engine.asked) == 2, "the second run speaks nothing"


def test_files_of_another_list_are_told_and_left(synthesizer, tmp_path, capsys):
    """Fails when they are deleted, or count as this list's."""
    speak_many(synthesizer, TEXTS, tmp_path, SAMPLING)
    (tmp_path / "mine.wav").write_bytes(b"x")
    before = (tmp_path / "04.wav").read_bytes()
    capsys.readouterr()
    speak_many(synthesizer, TEXTS[:3], tmp_path, SAMPLING)
    assert f"{tmp_path}: 2 files of another list are left there: 04.wav, 05.wav\n" in capsys.readouterr().out
    assert (tmp_path / "04.wav").read_bytes() == before
    assert [record["number"] for record in read_manifest(tmp_path)] == [1, 2, 3]


def test_a_folder_of_something_else_is_left_alone(synthesizer, tmp_path):
    (tmp_path / "metadata.csv").write_text("a|Ciao\n")
    with pytest.raises(UserError, match="holds other files and no speech of a list; choose another output="):
        speak_many(synthesizer, TEXTS, tmp_path, SAMPLING)
    assert [path.name for path in tmp_path.iterdir()] == ["metadata.csv"]


def test_names_have_as_many_digits_as_the_last_and_batches_are_of_like_length():
    assert [line.file for line in number_lines(["a"] * 9, "it")][-1] == "09.wav"
    lines = number_lines([f"parola {'o' * (number * 37 % 100)}" for number in range(100)], "it")
    assert (lines[0].file, lines[99].file) == ("001.wav", "100.wav")
    cut = list(batches(lines, 8))
    assert [len(batch) for batch in cut] == [8] * 12 + [4]
    lengths = [len(line.spoken) for batch in cut for line in batch]
    assert lengths == sorted(lengths, reverse=True)
    assert sorted(line.number for batch in cut for line in batch) == list(range(1, 101))


def test_a_folder_that_cannot_be_written_is_a_mistake(synthesizer, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to output=.*file: .*; choose another output="):
        speak_many(synthesizer, TEXTS, tmp_path / "file", SAMPLING)
    assert synthesizer.engine.__dict__.get("asked") is None, "told before anything is spoken"


SPEAK = """
import sys
from tests.generation.test_many import speak_slowly
speak_slowly(*sys.argv[1:])
"""


def speak_slowly(checkpoint: str, folder: str) -> None:
    """Four batches, each of some tenths of a second."""
    synthesizer = Synthesizer(load_for_inference(checkpoint, "cpu"), Codec2(), TransformersEngine(batch_size=3), "it")
    texts = [f"Questa è la frase {number}{', una lunga' * (number % 4)}" for number in range(12)]
    speak_many(synthesizer, texts, Path(folder), SamplingConfig(max_seconds=0.3, retries=1, text_bounds=False))


def test_a_killed_run_goes_on_and_all_files_are_those_of_one_that_was_not(checkpoint, tmp_path, capsys):
    """Fails when a file in part is left or counts as whole
    or all is spoken anew."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run = subprocess.Popen([sys.executable, "-c", SPEAK, str(checkpoint), str(killed)], cwd=Path(__file__).parents[2])
    try:
        deadline = time.monotonic() + 200
        while len(list(killed.glob("*.wav"))) < 4:
            assert run.poll() is None, "it was too fast to be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        run.kill()
        run.wait()
    left = len(read_manifest(killed))
    assert 3 <= left < 12
    (killed / ".05.wav.123.tmp").write_bytes(b"RIFF")
    (killed / ".05.txt.a1b2.tmp").write_bytes(b"Que")
    speak_slowly(str(checkpoint), str(killed))
    assert f"{left} of 12 lines are there already" in capsys.readouterr().out
    speak_slowly(str(checkpoint), str(whole))
    assert contents(killed) == contents(whole)
    assert len(contents(whole)) == 25
