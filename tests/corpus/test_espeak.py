"""The espeak corpus: real synthesis, the same bytes wherever a row is made, and the shipped sentence lists."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import pickle
import re
import shutil
import string
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import espeakng_loader
import numpy as np
import pytest

from llasa.audio import decode_audio
from llasa.corpus.espeak import ESPEAK_VOICES, SENTENCES, EspeakSource, synthesize
from llasa.errors import RejectedRow, UserError

ROOT = Path(__file__).parents[2]

# The letters beyond a to z that a language's spelling has. Every one but the rare ones must occur in its list.
ACCENTED = {
    "it": "àèéìòù",
    "de": "äöüß",
    "en": "",
    "fr": "àâçèéêëîïôùûœ",
    "es": "áéíñóúü",
    "pt": "áâãàçéêíóôõú",
    "nl": "éëïöü",
    "pl": "ąćęłńóśźż",
}
RARE = {"it": "î", "de": "", "en": "", "fr": "æüÿ", "es": "", "pt": "ü", "nl": "áèêíóú", "pl": ""}
PUNCTUATION = ".,;:!?'-"
OPENING = {"es": "¿¡"}


def make_source(**changes) -> EspeakSource:
    arguments = {"language": "it", "voices": ["m1", "f2"], "words_per_minute": 165, "validation": 3, "test": 5}
    return EspeakSource(**{**arguments, **changes})


def write_sentences(folder: Path, text: str) -> str:
    path = folder / "sentences.txt"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("language", ESPEAK_VOICES)
def test_every_shipped_sentence_is_audible(language):
    source = make_source(language=language, validation=0, test=0)
    seconds = []
    for index in range(source.splits()["train"]):
        row = source.row("train", index)
        waveform, rate = decode_audio(row.audio)
        assert rate == 22050
        assert 0.5 < len(waveform) / rate < 10, row.text
        rms = np.sqrt(np.mean(waveform**2))
        assert 0.02 < rms < 0.5, (row.text, rms)
        # A voice, not a constant hum: loud and quiet stretches of 50 ms.
        frames = waveform[: len(waveform) // 1102 * 1102].reshape(-1, 1102)
        levels = np.sqrt((frames**2).mean(axis=1))
        assert np.percentile(levels, 10) < 0.5 * np.percentile(levels, 90), row.text
        assert np.mean(np.abs(waveform) > 0.999) < 0.001, f"clipped: {row.text}"
        seconds.append(len(waveform) / rate)
    assert len(seconds) == 48


def test_rows_name_their_sentence_and_their_voice():
    source = make_source()
    row = source.row("train", 7)
    assert (row.id, row.speaker, row.language) == ("it-0007", "it+f2", "it")
    assert row.text == source.sentences[7]
    assert source.row("train", 8).speaker == "it+m1"
    assert make_source(voices=[""]).row("train", 0).speaker == "it"
    assert make_source(language="pt").row("train", 0).speaker == "pt-br+m1"


def test_the_last_sentences_are_held_out():
    source = make_source()
    assert source.splits() == {"train": 40, "validation": 3, "test": 5}
    ids = {split: [source.row(split, index).id for index in range(count)] for split, count in source.splits().items()}
    assert ids["train"] == [f"it-{i:04d}" for i in range(40)]
    assert ids["validation"] == ["it-0040", "it-0041", "it-0042"]
    assert ids["test"] == ["it-0043", "it-0044", "it-0045", "it-0046", "it-0047"]


def test_a_sentence_sounds_the_same_in_any_split():
    assert make_source().row("test", 0).audio == make_source(validation=0, test=0).row("train", 43).audio


def test_limit_comes_before_the_splits():
    source = make_source(limit=10)
    assert source.splits() == {"train": 2, "validation": 3, "test": 5}
    assert source.row("test", 4).id == "it-0009"
    assert make_source(limit=1000).splits() == make_source().splits()


def test_all_sentences_may_be_held_out():
    assert make_source(validation=0, test=48).splits() == {"train": 0, "validation": 0, "test": 48}


def test_rows_outside_a_split_are_refused():
    source = make_source()
    for index in (-1, 3):
        with pytest.raises(IndexError):
            source.row("validation", index)
    with pytest.raises(KeyError):
        source.row("dev", 0)


def test_same_bytes_in_any_order():
    # klatt6 and Reed draw noise from espeak's and the C library's random generators, f2 has an echo.
    voices = ["", "f2", "klatt6", "Reed", "whisper"]
    forward = [make_source(voices=voices).row("train", i).audio for i in range(10)]
    assert len(set(forward)) == 10
    source = make_source(voices=voices)
    for i in [9, 0, 0, 4, 3, 8, 3, 1, 2, 7, 6, 5, 9]:
        assert source.row("train", i).audio == forward[i], i


def test_same_bytes_in_threads():
    source = make_source()
    sequential = [source.row("train", i).audio for i in range(12)]
    start = threading.Barrier(4)

    def walk(offset: int) -> dict[int, bytes]:
        start.wait()
        return {i: source.row("train", i).audio for i in np.roll(np.arange(12), offset).tolist()}

    with ThreadPoolExecutor(4) as pool:
        for walked in pool.map(walk, [0, 3, 6, 9]):
            assert [walked[i] for i in range(12)] == sequential


def test_same_bytes_in_a_new_process():
    """Another order, another locale, another address space, another second (espeak's own seed); a pickled source."""
    source = make_source(voices=["", "f2", "Reed"])
    order = [5, 2, 0, 4, 1, 3]
    expected = [hashlib.sha256(source.row("train", i).audio).hexdigest() for i in order]
    script = (
        "import hashlib, json, pickle, sys, time\n"
        "time.sleep(1.1)\n"
        "source = pickle.loads(sys.stdin.buffer.read())\n"
        f"rows = [source.row('train', i) for i in {order}]\n"
        "print(json.dumps([[hashlib.sha256(row.audio).hexdigest() for row in rows], source.describe()]))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        input=pickle.dumps(source),
        capture_output=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "LC_ALL": "C"},
    )
    hashes, description = json.loads(result.stdout)
    assert hashes == expected
    assert description == source.describe()


def test_voices_and_speeds_differ():
    text = "Il gatto dorme sul divano."
    spoken = {voice: synthesize(text, voice=voice, words_per_minute=165)[0] for voice in ("it", "it+m1", "it+f2", "de")}
    assert len({samples.tobytes() for samples in spoken.values()}) == 4
    # f2 is a higher voice than m1.
    assert fundamental(spoken["it+f2"]) > 1.3 * fundamental(spoken["it+m1"])
    slow, fast = (len(synthesize(text, voice="it", words_per_minute=rate)[0]) for rate in (80, 450))
    assert slow > 2 * fast


def fundamental(samples: np.ndarray, rate: int = 22050) -> float:
    """Median fundamental frequency in Hz of the loud frames, by autocorrelation between 70 and 400 Hz."""
    size = rate // 20
    frames = samples[: len(samples) // size * size].reshape(-1, size).astype(np.float64)
    energy = (frames**2).mean(axis=1)
    lags = []
    for frame in frames[energy > np.median(energy)]:
        correlation = np.correlate(frame, frame, mode="full")[size - 1 :]
        lags.append(rate // 400 + np.argmax(correlation[rate // 400 : rate // 70]))
    return rate / float(np.median(lags))


def test_a_sentence_is_spoken_to_its_end():
    """Longer than espeak's buffer and than one clause: the callback is called many times."""
    once = len(synthesize("Il gatto dorme sul divano.", voice="it", words_per_minute=165)[0])
    often = len(synthesize("Il gatto dorme sul divano. " * 20, voice="it", words_per_minute=165)[0])
    assert 18 * once < often < 26 * once


def test_nothing_to_say_rejects_the_row_only(tmp_path):
    source = make_source(sentences=write_sentences(tmp_path, "Prima frase.\n...\nTerza frase.\n"), validation=0, test=0)
    with pytest.raises(RejectedRow) as caught:
        source.row("train", 1)
    assert caught.value.reason == "empty_audio"
    assert source.row("train", 2).text == "Terza frase."


def test_sentence_files(tmp_path):
    path = write_sentences(tmp_path, "\ufeffUno, due.\r\n\n# un commento\n   Tre # quattro?  \n")
    source = make_source(sentences=path, validation=0, test=1)
    assert source.sentences == ["Uno, due.", "Tre # quattro?"]
    assert source.splits() == {"train": 1, "validation": 0, "test": 1}


def test_the_description_tells_corpora_apart(tmp_path):
    description = make_source().describe()
    assert json.loads(json.dumps(description)) == description
    assert re.fullmatch(r"\d+\.\d+\S*", description["espeak_version"])
    # The path of the file is not part of what the corpus is.
    copied = shutil.copy(SENTENCES / "it.txt", tmp_path / "copied.txt")
    assert make_source(sentences=str(copied)).describe() == description
    edited = tmp_path / "edited.txt"
    edited.write_text((SENTENCES / "it.txt").read_text(encoding="utf-8").replace("gatto", "cane"), encoding="utf-8")
    others = [
        make_source(sentences=str(edited)),
        make_source(voices=["f2", "m1"]),
        make_source(words_per_minute=166),
        make_source(validation=4),
        make_source(limit=47),
        make_source(language="de"),
    ]
    descriptions = [json.dumps(other.describe(), sort_keys=True) for other in others]
    assert len({json.dumps(description, sort_keys=True), *descriptions}) == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"language": "xx"}, r"^dataset\.language: 'xx' .*; use it, de, en"),
        ({"voices": []}, r"^dataset\.voices: \[\] is not a list of names; use a list"),
        ({"voices": "m1"}, r"^dataset\.voices: 'm1' is not a list of names; use a list"),
        ({"voices": ["m1", "m1"]}, r"^dataset\.voices: \['m1', 'm1'\] names a voice twice; name each once"),
        ({"voices": ["m1", "whispr"]}, r"^dataset\.voices: .*'whispr'; did you mean whisper"),
        ({"voices": ["../!v/m1"]}, r"^dataset\.voices: .*'\.\./!v/m1'; did you mean"),
        ({"words_per_minute": 79}, r"^dataset\.words_per_minute: 79 is out of range; use 80 to 450"),
        ({"words_per_minute": 451}, r"^dataset\.words_per_minute: 451 is out of range; use 80 to 450"),
        ({"validation": -1}, r"^dataset\.validation: -1 is negative; use 0 or more"),
        ({"test": -1}, r"^dataset\.test: -1 is negative; use 0 or more"),
        ({"validation": 20, "test": 29}, r"^dataset\.validation and dataset\.test: 20 \+ 29 .*of 48; hold out fewer"),
        ({"limit": 7}, r"^dataset\.validation and dataset\.test: 3 \+ 5 .*of 7; hold out fewer"),
        ({"limit": 0}, r"^dataset\.limit: 0 leaves no sentence; use 1 or more"),
        ({"sentences": "nowhere/at_all.txt"}, r"^dataset\.sentences: no file nowhere/at_all.txt; give a text file"),
        ({"sentences": "."}, r"^dataset\.sentences: \. cannot be read .*; give a text file"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        make_source(**changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"has none; write one per line"),
        (b"\n  \n# solo un commento\n", r"has none; write one per line"),
        ("perché".encode("latin-1"), r"is not UTF-8 \(.* at byte 5\); convert it"),
        (b"uno\0due", r"zero byte; give a text file"),
    ],
)
def test_unusable_sentence_files_are_named(tmp_path, content, message):
    path = tmp_path / "sentences.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^dataset\\.sentences: {re.escape(str(path))}.*{message}"):
        make_source(sentences=str(path))


def test_a_library_someone_else_holds_is_refused():
    """Its state would make rows depend on their order."""
    from _ctypes import dlclose

    source = make_source()
    held = ctypes.CDLL(espeakng_loader.get_library_path())
    try:
        with pytest.raises(RuntimeError, match="already loaded"):
            source.row("train", 0)
    finally:
        dlclose(held._handle)
    assert source.row("train", 0).audio


def test_an_environment_in_a_deep_folder(tmp_path):
    """espeak's own limit on its data path is about 160 bytes."""
    site = tmp_path / ("deep" * 30) / ("deeper" * 20)
    package = site / "espeakng_loader"
    package.mkdir(parents=True)
    for path in Path(espeakng_loader.__file__).parent.iterdir():
        (package / path.name).symlink_to(path)
    script = (
        "import espeakng_loader, hashlib, pickle, sys\n"
        "assert len(espeakng_loader.get_data_path()) > 240\n"
        "print(hashlib.sha256(pickle.loads(sys.stdin.buffer.read()).row('train', 0).audio).hexdigest())\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        input=pickle.dumps(make_source()),
        capture_output=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(site)},
    )
    assert result.stdout.decode().strip() == hashlib.sha256(make_source().row("train", 0).audio).hexdigest()


@pytest.mark.parametrize("language", ESPEAK_VOICES)
def test_shipped_lists(language):
    sentences = make_source(language=language).sentences
    assert len(sentences) == 48
    assert len({sentence.casefold() for sentence in sentences}) == 48
    allowed = set(string.ascii_lowercase + string.digits + " " + PUNCTUATION)
    allowed |= set(ACCENTED[language] + RARE[language] + OPENING.get(language, ""))
    for sentence in sentences:
        words = [word for word in sentence.split() if any(map(str.isalnum, word))]
        assert 4 <= len(words) <= 12, sentence
        assert set(sentence.lower()) <= allowed, (sentence, set(sentence.lower()) - allowed)
        assert sentence[-1] in ".?!", sentence
        assert sentence.lstrip("¿¡")[0].isupper(), sentence
    letters = set("".join(sentences).lower())
    assert set(ACCENTED[language]) <= letters, set(ACCENTED[language]) - letters
    assert 2 <= sum(any(map(str.isdigit, sentence)) for sentence in sentences) <= 3
    assert {sentence[-1] for sentence in sentences} == {".", "?", "!"}


def test_a_list_for_every_language():
    assert {path.stem for path in SENTENCES.glob("*.txt")} == set(ESPEAK_VOICES)
