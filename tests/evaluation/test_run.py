"""evaluate.py from checkpoint to report with real parts; only what a recogniser hears is given where it is counted."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from llasa.audio import write_wav
from llasa.codec.codec2 import Codec2
from llasa.config import SamplingConfig
from llasa.corpus.store import TokenStore
from llasa.entry import compose_config
from llasa.errors import UserError
from llasa.evaluation import systems
from llasa.evaluation.measure import Measures
from llasa.evaluation.run import chosen_split, evaluate, evaluate_with, open_store, read_card, read_sentences
from llasa.evaluation.sentences import Sentence, choose, from_store, unique
from llasa.evaluation.systems import Clip, Codecs, find_recordings, names_of, speak
from llasa.generation.engine_hf import TransformersEngine
from llasa.generation.synthesizer import Synthesizer
from llasa.model.checkpoint import save_checkpoint
from llasa.model.llama import load_for_inference
from tests.model.tiny import build_tiny, save_tiny

ROOT = Path(__file__).resolve().parents[2]
QUICK = [
    "split=train",
    "sampling.max_seconds=0.1",
    "engine.batch_size=2",
    "device=cpu",
    "metrics.dnsmos=false",
    "resamples=100",
]


class Transcripts:
    """A recogniser that says what it was told to, call by call: the arithmetic behind it is what is tested."""

    name = "transcripts"

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = iter(texts)

    def transcribe(self, waveform: np.ndarray, sample_rate: int, language: str) -> str:
        assert sample_rate == 8000
        assert language == "it"
        assert len(waveform) > 0
        return next(self._texts)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> list[str]:
    """Two untrained models that say different things."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, spread in (("a", 0.1), ("b", 0.3)):
        speech = build_tiny(Codec2().spec, spread=spread)
        save_checkpoint(
            folder / name / "checkpoint",
            speech.model,
            speech.tokenizer,
            replace(speech.card, languages=("it",), max_length=400),
        )
    return [str(folder / name / "checkpoint") for name in "ab"]


def run(overrides: list[str], measures: Measures) -> dict[str, Any]:
    """`evaluate` with measures of the test's own."""
    config = compose_config("evaluate", [*QUICK, *overrides])
    paths = dict(zip(names_of(config.every_checkpoint), config.every_checkpoint, strict=True))
    cards = {name: read_card(path) for name, path in paths.items()}
    store = open_store(config, cards)
    sentences = read_sentences(config, store, cards)
    recordings = find_recordings(sentences, config.reference) if config.reference else None
    return evaluate_with(config, paths, cards, store, sentences, recordings, measures)


def test_the_numbers_are_those_counted_by_hand(checkpoints, espeak_store, tmp_path):
    """Fails when rates are averaged over clips instead of summed, or one system's clips count for another."""
    heard = [
        "Ciao come stai!",  # nothing wrong: 0 of 3 words, 0 of 14 characters
        "Il gato dorme dorme.",  # 1 wrong and 1 added of 3 words; 1 wrong and 5 added of 14 characters
        "Buona tutti",  # 2 missing of 4 words; 8 missing of 19 characters
    ]
    resynthesis = ["Ciao come stai", "Il gatto dorme", "Buona notte a tutte"]  # 1 word of 10, 1 character of 47
    report = run(
        [f"checkpoint={checkpoints[0]}", f"store={espeak_store}", f"output={tmp_path}"],
        Measures(Transcripts(heard + resynthesis)),
    )
    assert json.loads((tmp_path / "report.json").read_text()) == report
    own, ceiling = report["systems"]
    assert (own["name"], own["kind"], own["clips"]) == ("a", "checkpoint", 3)
    assert (ceiling["name"], ceiling["kind"], ceiling["clips"]) == ("codec resynthesis", "codec", 3)
    assert own["metrics"]["wer"]["value"] == pytest.approx(4 / 10)
    assert own["metrics"]["cer"]["value"] == pytest.approx(14 / 47, abs=1e-6)
    assert own["metrics"]["repeated_words"]["value"] == pytest.approx(10.0)
    assert own["metrics"]["skipped_words"]["value"] == pytest.approx(20.0)
    assert ceiling["metrics"]["wer"]["value"] == pytest.approx(1 / 10)
    assert ceiling["metrics"]["cer"]["value"] == pytest.approx(1 / 47, abs=1e-6)
    assert own["metrics"]["wer"]["low"] < 0.4 < own["metrics"]["wer"]["high"]
    rows = {(row["id"], row["system"]): row for row in report["clips"]}
    assert len(rows) == 6
    cat = next(row for row in report["clips"] if row["text"] == "Il gatto dorme." and row["system"] == "a")
    assert cat["words"] == {"errors": 2, "length": 3, "substitutions": 1, "deletions": 0, "insertions": 1}
    assert cat["heard"] == heard[1]


def test_clips_are_those_that_the_checkpoint_says(checkpoints, espeak_store, tmp_path):
    """Sound, lengths and times of the files; fails when a clip is written under another sentence's name."""
    given = [f"checkpoint={checkpoints[0]}", f"store={espeak_store}", f"output={tmp_path}", "sampling=greedy"]
    report = run(given, Measures())
    rows = TokenStore(espeak_store).rows("train")[:]
    own = [row for row in report["clips"] if row["system"] == "a"]
    alone = Synthesizer(load_for_inference(checkpoints[0], "cpu"), Codec2(), TransformersEngine(batch_size=1), "it")
    waveforms = []
    for row in own:
        expected = alone.speak([row["text"]], SamplingConfig(temperature=0.0, max_seconds=0.1))[0].waveform
        waveform, _ = soundfile.read(tmp_path / row["file"], dtype="float32")
        np.testing.assert_allclose(waveform, np.clip(expected, -1, 1), atol=1e-4)
        waveforms.append(waveform.tobytes())
    assert len(set(waveforms)) == 3, "or a clip under another name would not be seen"
    assert [row["id"] for row in own] == list(rows["id"])
    for row in own:
        info = soundfile.info(tmp_path / row["file"])
        assert info.samplerate == 8000
        assert info.duration == pytest.approx(row["seconds"], abs=1e-6)
        assert row["seconds"] <= 0.1
        assert row["generation_seconds"] > 0 < row["decode_seconds"]
        assert row["heard"] is None
    unfinished = sum(row["finish_reason"] == "length" for row in own) / 3
    assert report["systems"][0]["metrics"]["unfinished"]["value"] == pytest.approx(unfinished, abs=1e-6)
    spent = sum(row["generation_seconds"] + row["decode_seconds"] for row in own)
    rtf = report["systems"][0]["metrics"]["rtf"]["value"]
    assert rtf == pytest.approx(spent / sum(row["seconds"] for row in own), rel=1e-3)
    for codes, row in zip(rows["codes"], report["clips"][3:], strict=True):
        decoded = Codec2().decode([codes])[0]
        waveform, _ = soundfile.read(tmp_path / row["file"], dtype="float32")
        np.testing.assert_allclose(waveform, np.clip(decoded, -1, 1), atol=1e-4)
    assert any("resynthesis" in note for note in report["notes"])
    assert report["reference"] == "codec resynthesis"
    assert "rtf" not in report["systems"][1]["metrics"], "nothing was generated"


def modified(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.wav")}


def test_clips_that_are_there_are_not_made_again(checkpoints, espeak_store, tmp_path):
    """Fails when the key leaves out seed, sampling or weights, and when it is ignored."""
    sentences = from_store(TokenStore(espeak_store), "train", None)
    codecs, folder = Codecs(None, "cpu"), tmp_path / "audio" / "x"

    def say(checkpoint: str, *overrides: str) -> dict[str, Clip]:
        given = [f"checkpoint={checkpoint}", f"store={espeak_store}", f"output={tmp_path}", *overrides]
        return speak("x", checkpoint, sentences, compose_config("evaluate", [*QUICK, *given]), codecs, "cpu").clips

    clips = say(checkpoints[0])
    assert {clip.file.parent for clip in clips.values()} == {folder}
    first, content = modified(folder), {path.name: path.read_bytes() for path in folder.glob("*.wav")}
    assert len(first) == 3
    assert say(checkpoints[0]) == clips
    assert modified(folder) == first

    lost = clips[sentences[0].id].file
    lost.unlink()
    say(checkpoints[0])
    again = modified(folder)
    assert sum(again[name] == first[name] for name in first) in (1, 2), "only the batch of the lost clip is made again"
    assert {path.name: path.read_bytes() for path in folder.glob("*.wav")} == content

    for change in (["seed=1"], ["sampling=greedy"], []):
        before = modified(folder)
        say(checkpoints[not change], *change)
        after = modified(folder)
        assert all(after[name] != before[name] for name in first), change


def test_a_killed_run_leaves_no_new_sound_under_an_old_key(checkpoints, espeak_store, tmp_path, monkeypatch):
    """Killed after a clip of another seed was written and before that was recorded; fails without ``forget``."""
    sentences, codecs = from_store(TokenStore(espeak_store), "train", None), Codecs(None, "cpu")
    given = [*QUICK, f"checkpoint={checkpoints[0]}", f"store={espeak_store}", f"output={tmp_path}"]
    first, second = compose_config("evaluate", given), compose_config("evaluate", [*given, "seed=1"])
    clips = speak("x", checkpoints[0], sentences, first, codecs, "cpu").clips
    content = {clip.file: clip.file.read_bytes() for clip in clips.values()}

    def write_and_die(*arguments: Any) -> None:
        write_wav(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(systems, "write_wav", write_and_die)
        with pytest.raises(KeyboardInterrupt):
            speak("x", checkpoints[0], sentences, second, codecs, "cpu")
    assert {file: file.read_bytes() for file in content} != content
    speak("x", checkpoints[0], sentences, first, codecs, "cpu")
    assert {file: file.read_bytes() for file in content} == content


def test_two_checkpoints_are_compared_on_the_same_sentences(checkpoints, espeak_store, tmp_path):
    right = ["Ciao, come stai?", "Il gatto dorme.", "Buona notte a tutti."]
    wrong = ["Ciao", "Il gatto", "notte"]  # 2, 1 and 3 of 10 words
    both = f"checkpoints=[{checkpoints[0]},{checkpoints[1]}]"
    report = run([both, f"store={espeak_store}", f"output={tmp_path}"], Measures(Transcripts(right + wrong + right)))
    assert [system["name"] for system in report["systems"]] == ["a", "b", "codec resynthesis"]
    (pair,) = report["comparisons"]
    assert (pair["first"], pair["second"]) == ("a", "b")
    assert pair["metrics"]["wer"]["difference"] == pytest.approx(-0.6)
    assert pair["metrics"]["wer"]["low"] <= -0.6 <= pair["metrics"]["wer"]["high"] < 0
    assert pair["metrics"]["wer"]["clips"] == 3
    assert 0 < pair["metrics"]["wer"]["p"] <= 1
    a, b = (next(s["fingerprint"] for s in report["systems"] if s["name"] == name) for name in "ab")
    assert a != b
    assert report["systems"][0]["card"]["languages"] == ["it"]


def test_recordings_are_the_reference_where_they_are_given(checkpoints, espeak_store, tmp_path):
    """The codec's own clips as "recordings": voice and speed are then exactly those of the resynthesis."""
    from llasa.evaluation.similarity import SpeakerEncoder

    store = TokenStore(espeak_store)
    sentences = from_store(store, "train", None)
    folder = tmp_path / "recordings"
    (folder / "wavs").mkdir(parents=True)
    for sentence in sentences[:2]:  # one is missing
        waveform = Codec2().decode([sentence.codes])[0]
        soundfile.write(folder / "wavs" / f"{sentence.id}.wav", np.clip(waveform, -1, 1), 8000, subtype="PCM_16")
    report = run(
        [f"checkpoint={checkpoints[0]}", f"store={espeak_store}", f"reference={folder}", f"output={tmp_path}/out"],
        Measures(encoder=SpeakerEncoder()),
    )
    own, codec, truth = report["systems"]
    assert report["reference"] == truth["name"] == "ground truth"
    assert truth["clips"] == 2
    assert codec["metrics"]["similarity"]["value"] == pytest.approx(1, abs=1e-4)
    assert codec["metrics"]["relative_speed"]["value"] == pytest.approx(1, abs=1e-6)
    assert own["metrics"]["similarity"]["value"] < 0.9, "noise is nobody's voice"
    assert own["metrics"]["similarity"]["clips"] == 2
    assert 0.5 < truth["metrics"]["similarity"]["value"] < 0.999, "the same voice in another sentence"
    assert "relative_speed" not in truth["metrics"]
    assert any("1 of 3 sentences" in note for note in report["notes"])


def test_a_list_of_texts_needs_no_store(checkpoints, tmp_path):
    (tmp_path / "texts.txt").write_text("Ho 3 gatti.\n\nBuona notte.\n", encoding="utf-8")
    report = evaluate(
        compose_config(
            "evaluate",
            [
                *QUICK,
                f"checkpoint={checkpoints[0]}",
                f"texts={tmp_path}/texts.txt",
                f"output={tmp_path}/out",
                "card=true",
            ],
        )
    )
    card = Path(checkpoints[0]) / "README.md"
    assert "library_name" in card.read_text(encoding="utf-8")
    assert report["systems"][0]["fingerprint"] == systems.fingerprint(checkpoints[0]), "the card is no new checkpoint"
    card.unlink()
    assert [system["name"] for system in report["systems"]] == ["a"]
    assert [(row["id"], row["text"], row["language"]) for row in report["clips"]] == [
        ("01", "Ho 3 gatti.", "it"), ("02", "Buona notte.", "it"),
    ]  # fmt: skip
    assert all(row["similarity"] is None and row["relative_speed"] is None for row in report["clips"])
    assert any("no recordings" in note for note in report["notes"])
    assert any("asr=" in note for note in report["notes"])
    assert (tmp_path / "out" / "index.html").is_file()
    assert report["config"]["seed"] == 0
    assert report["provenance"]["commit"]


@pytest.mark.parametrize(
    ("given", "there", "chosen"),
    [(None, ("train", "dev", "test"), "test"), (None, ("train", "dev"), "dev"), ("dev", ("dev", "test"), "dev"),
     (None, ("train",), "test")],
)  # fmt: skip
def test_the_split_is_the_one_named_else_test_else_dev(given, there, chosen):
    assert chosen_split(given, there) == chosen


def test_mistakes_are_told_before_anything_is_loaded(checkpoints, espeak_store, toy_store, tmp_path):
    given = {"checkpoint": checkpoints[0], "store": espeak_store, "output": tmp_path / "out"}
    (tmp_path / "nothing").mkdir()
    for change, message in [
        ({"split": "tset"}, r"has no split 'tset'; use one of train"),
        ({"store": toy_store}, r"checkpoint a speaks codec2, the store .* is toy"),
        ({"checkpoint": tmp_path / "none"}, "there is no checkpoint folder at"),
        ({"checkpoint": tmp_path / "nothing"}, "it has no config.json"),
        ({"store": tmp_path / "nothing"}, "there is no token store"),
        ({"asr": tmp_path / "nothing"}, "is no folder with a model.bin"),
        ({"reference": tmp_path / "nothing"}, "has a recording of none of the 3 sentences"),
        ({"metrics.words": "true"}, "needs a recogniser; pass asr="),
        ({"texts": "x.txt"}, "pass either store=DIR or texts=FILE"),
        ({"checkpoints": f"[{checkpoints[1]}]"}, r"pass either checkpoint=DIR or checkpoints="),
        ({"checkpoint": "null", "checkpoints": f"[{checkpoints[1]},{checkpoints[1]}]"}, "names one twice"),
        ({"speaker_model": "./none", "metrics.similarity": "true"}, "no speaker model in"),
        ({"output": espeak_store / "manifest.json" / "x"}, "cannot write to"),
    ]:
        overrides = [f"{key}={value}" for key, value in {**given, **change}.items()]
        with pytest.raises(UserError, match=message):
            evaluate(compose_config("evaluate", [*QUICK, *overrides]))
    assert not (tmp_path / "out" / "audio").exists()


def test_a_measure_that_is_missing_is_a_note_unless_it_was_asked_for(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "speechmos", None)  # as where the package is not installed
    (tmp_path / "texts.txt").write_text("Ciao.\n", encoding="utf-8")
    given = ["split=train", "sampling.max_seconds=0.1", "device=cpu", f"checkpoint={checkpoints[0]}",
             f"texts={tmp_path}/texts.txt", f"output={tmp_path}/out"]  # fmt: skip
    report = evaluate(compose_config("evaluate", given))
    assert any("No DNSMOS" in note and "requirements/eval.txt" in note for note in report["notes"])
    with pytest.raises(UserError, match="DNSMOS needs a package"):
        evaluate(compose_config("evaluate", [*given, "metrics.dnsmos=true"]))


def test_a_limit_takes_the_same_sentences_and_those_of_a_smaller_one(espeak_store):
    ids = [f"row-{number}" for number in range(200)]
    chosen = choose(ids, 20)
    assert len(chosen) == 20
    assert chosen == sorted(chosen) == choose(ids, 20)
    assert set(choose(ids, 10)) < set(chosen)
    assert {ids[index] for index in chosen} == {ids[199 - index] for index in choose(ids[::-1], 20)}
    assert max(chosen) > 100, "from all of the split, not its beginning"
    assert choose(ids, None) == choose(ids, 200) == list(range(200))
    assert len(from_store(TokenStore(espeak_store), "train", 2)) == 2


def test_ids_become_file_names():
    assert Sentence("a_1-b.c", "", "it").stem == "a_1-b.c"
    stems = [Sentence(name, "", "it").stem for name in ("a/b", "a_b", "../x", "ü", "x" * 300, "a b")]
    assert len(set(stems)) == len(stems)
    assert all(len(stem) < 100 and "/" not in stem and not stem.startswith(".") for stem in stems)
    assert unique(["x", "y", "x", "x#2", "x"]) == ["x", "y", "x#2", "x#2#2", "x#3"]


def test_systems_have_short_names_that_tell_them_apart():
    assert names_of(["outputs/x/checkpoint"]) == ["x"]
    assert names_of(["outputs/x/checkpoint", "outputs/y/checkpoint"]) == ["x", "y"]
    assert names_of(["a/x/checkpoint", "b/x/checkpoint", "c"]) == ["a/x", "b/x", "c"]
    assert names_of(["run/best", "run/checkpoint"]) == ["run/best", "run"]
    assert names_of(["HKUSTAudio/Llasa-1B"]) == ["Llasa-1B"]
    assert len(set(names_of(["run", "run/checkpoint"]))) == 2


def test_a_checkpoint_of_another_codec_is_refused_by_name(espeak_store, tmp_path):
    checkpoint = save_tiny(tmp_path / "toy")
    with pytest.raises(UserError, match=r"checkpoint toy speaks toy, the store .* is codec2"):
        evaluate(
            compose_config("evaluate", [*QUICK, f"checkpoint={checkpoint}", f"store={espeak_store}", "output=unused"])
        )


@pytest.mark.slow
@pytest.mark.skipif("LLASA_TEST_ASR" not in os.environ, reason="LLASA_TEST_ASR names no Whisper model")
def test_the_command_with_a_real_recogniser(checkpoints, espeak_store, tmp_path):
    """`python evaluate.py`, and its counts again by an edit distance of the test's own."""
    command = [sys.executable, "evaluate.py", f"checkpoint={checkpoints[0]}", f"store={espeak_store}", "split=train",
               f"asr={os.environ['LLASA_TEST_ASR']}", f"output={tmp_path}/out", "sampling.max_seconds=2"]  # fmt: skip
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "WER" in result.stdout
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["asr"] == os.environ["LLASA_TEST_ASR"]
    for system in report["systems"]:
        rows = [row for row in report["clips"] if row["system"] == system["name"]]
        pairs = [(tuple(letters(row["text"]).split()), tuple(letters(row["heard"]).split())) for row in rows]
        errors = sum(edits(said, heard) for said, heard in pairs)
        assert system["metrics"]["wer"]["value"] == pytest.approx(errors / 10, abs=1e-6)
        assert 0.5 < system["metrics"]["dnsmos_ovrl"]["value"] < 5, "noise is rated a little below 1"
    own, ceiling = report["systems"]
    assert ceiling["metrics"]["cer"]["value"] < own["metrics"]["cer"]["value"], "fast espeak is hard, noise harder"


def letters(text: str) -> str:
    """Lower case, letters and spaces: enough for sentences without numbers."""
    return "".join(letter if letter.isalpha() else " " for letter in text.casefold())


@functools.cache
def edits(said: tuple[str, ...], heard: tuple[str, ...]) -> int:
    """Levenshtein by its definition."""
    if not said or not heard:
        return len(said) + len(heard)
    if said[0] == heard[0]:
        return edits(said[1:], heard[1:])
    return 1 + min(edits(said[1:], heard), edits(said, heard[1:]), edits(said[1:], heard[1:]))
