"""What `infer.py` does with each kind of text and output, on a tiny checkpoint that speaks Codec2."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from llasa.codec.codec2 import Codec2
from llasa.entry import compose_config
from llasa.errors import UserError
from llasa.generation.run import infer
from llasa.model.checkpoint import CheckpointCard, save_checkpoint
from llasa.tokens.prompt import PromptRules
from tests.corpus.recordings import speech_like, write_audio
from tests.model.tiny import build_tiny

ROOT = Path(__file__).parents[2]
LONG = "# Uno\n\nCiao a tutti. Come state oggi?\n\n# Due\n\nIo sto bene, grazie. La luna è alta nel cielo."


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speaks") / "checkpoint"
    spec = Codec2().spec
    speech = build_tiny(spec, spread=0.1)
    save_checkpoint(folder, speech.model, speech.tokenizer, CheckpointCard(PromptRules(), spec, ("it",), 700))
    return folder


def speak(checkpoint, *overrides):
    said = {}
    settings = [f"checkpoint={checkpoint}", "device=cpu", "sampling.max_seconds=0.5", "sampling.retries=0"]
    infer(compose_config("infer", [*settings, *overrides]), heard=said.__setitem__)
    return said


def test_a_stream_and_a_file_hold_the_same_samples(checkpoint, tmp_path):
    """Fails when a stream drops its last piece, or tries again."""
    speak(checkpoint, "text=Ciao, come stai?", f"output={tmp_path}/a.wav")
    speak(checkpoint, "text=Ciao, come stai?", f"output={tmp_path}/b.wav", "stream=true")
    speak(checkpoint, "text=Ciao, come stai?", f"output={tmp_path}/c.pcm", "stream=true")
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
    waveform, rate = soundfile.read(tmp_path / "a.wav", dtype="int16")
    assert (len(waveform), rate) == (4000, 8000)
    assert (tmp_path / "c.pcm").read_bytes() == waveform.astype("<i2").tobytes()


def test_standard_output_carries_nothing_but_sound(checkpoint, tmp_path):
    settings = [f"checkpoint={checkpoint}", "device=cpu", "sampling.max_seconds=0.5", "sampling.retries=0"]
    command = [sys.executable, "infer.py", *settings, "text=Ciao, come stai?", "stream=true", "output=-"]
    result = subprocess.run([*command, "stream_format=pcm"], cwd=ROOT, capture_output=True, check=True)
    speak(checkpoint, "text=Ciao, come stai?", f"output={tmp_path}/c.pcm", "stream=true")
    assert result.stdout == (tmp_path / "c.pcm").read_bytes()


def test_a_long_text_is_spoken_chunk_by_chunk_with_its_chapters(checkpoint, tmp_path, capsys):
    (tmp_path / "book.txt").write_text(LONG, encoding="utf-8")
    book = [f"text_file={tmp_path}/book.txt", "sampling.max_seconds=1.5"]
    said = speak(checkpoint, *book, f"output={tmp_path}/book.wav")
    assert said == {}, "nothing of it is kept in memory"
    lines = (tmp_path / "book.chapters.txt").read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["Uno", "Due"]
    assert lines[0].startswith("00:00:00.000 ")
    seconds = soundfile.info(tmp_path / "book.wav").duration
    assert seconds > 4 * 0.3
    speak(checkpoint, *book, f"output={tmp_path}/again.wav", "stream=true")
    assert (tmp_path / "again.wav").read_bytes() == (tmp_path / "book.wav").read_bytes()
    pauses = ["long.pause_chapter=5", "long.continuous=false"]
    speak(checkpoint, *book, f"output={tmp_path}/slow.wav", *pauses)
    assert soundfile.info(tmp_path / "slow.wav").duration > 5


def test_one_sentence_of_some_length_is_said_in_one_go(checkpoint, tmp_path):
    said = speak(checkpoint, "text=Ciao, come stai oggi?", f"output={tmp_path}/a.wav")
    assert len(said) == 1
    assert speak(checkpoint, "text=Ciao. Come stai?", f"output={tmp_path}/a.wav", "long.max_characters=12") == {}


def test_a_search_is_one_flag(checkpoint, tmp_path):
    search = ["search=best_of", "search.n=3", "sampling.temperature=1.0"]
    best = speak(checkpoint, "text=Ciao", f"output={tmp_path}/a.wav", *search)[1]
    plain = speak(checkpoint, "text=Ciao", f"output={tmp_path}/b.wav", "sampling.temperature=1.0")[1]
    one = speak(checkpoint, "text=Ciao", f"output={tmp_path}/c.wav", *search, "search.n=1")[1]
    assert one.codes.tolist() == plain.codes.tolist()
    assert len(best.waveform) == soundfile.info(tmp_path / "a.wav").frames
    for mistake in (["text=Ciao", "stream=true"], [f"text={LONG}", "sampling.max_seconds=1.5"]):
        with pytest.raises(UserError, match="search"):
            speak(checkpoint, *mistake, f"output={tmp_path}/d.wav", *search)


def test_a_named_voice_speaks(checkpoint, tmp_path):
    write_audio(tmp_path / "voices/anna.wav", speech_like(0.6, 1, 44_100), 44_100)
    (tmp_path / "voices/anna.txt").write_text("Ho 3 gatti.\n")
    folder = f"voices_folder={tmp_path}/voices"
    named = speak(checkpoint, "text=Ciao", f"output={tmp_path}/a.wav", folder, "voice=anna")[1]
    again = speak(checkpoint, "text=Ciao", f"output={tmp_path}/a.wav", folder, "voice=anna")[1]
    given = [f"voice={tmp_path}/voices/anna.wav", "voice_text=Ho 3 gatti."]
    by_file = speak(checkpoint, "text=Ciao", f"output={tmp_path}/b.wav", *given)[1]
    nobody = speak(checkpoint, "text=Ciao", f"output={tmp_path}/b.wav")[1]
    assert named.codes.tolist() == again.codes.tolist() == by_file.codes.tolist() != nobody.codes.tolist()
    assert list((tmp_path / "voices").glob("anna.codec2-*.npz")), "kept for the next time"
    with pytest.raises(UserError, match="anna"):
        speak(checkpoint, "text=Ciao", f"output={tmp_path}/a.wav", folder, "voice=ana")


def test_a_list_goes_on_where_it_was_left(checkpoint, tmp_path):
    (tmp_path / "texts.txt").write_text("Ciao\n\nCome stai?\nSì\n", encoding="utf-8")
    job = [f"texts={tmp_path}/texts.txt", f"output={tmp_path}/speech"]
    assert sorted(speak(checkpoint, *job)) == [1, 2, 3]
    assert speak(checkpoint, *job) == {}
    (tmp_path / "speech/02.wav").unlink()
    assert sorted(speak(checkpoint, *job)) == [2]
    assert sorted(speak(checkpoint, *job, "seed=1")) == [1, 2, 3]
    records = [json.loads(line) for line in (tmp_path / "speech/manifest.jsonl").read_text().splitlines()]
    assert [record["text"] for record in records] == ["Ciao", "Come stai?", "Sì"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["text="], "nothing to say"),
        (["text=😀🎉"], "nothing to say"),
        (["text=你好，今天天气很好"], "letters"),
        (["text_file=missing.txt"], "cannot read text_file=missing.txt"),
        (["text=Ciao", "output=speech.mp3"], "no WAV file"),
        (["text=Ciao", "output=speech.mp3", "stream=true"], "neither WAV nor raw PCM"),
        (["text=Ciao", "speaker=anna"], "without speaker tags"),
        (["text=Ciao", "voice=anna"], "anna"),
    ],
)
def test_mistakes_are_told_in_a_line(checkpoint, overrides, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        speak(checkpoint, *overrides)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir()), "and nothing is written"


def test_a_hundred_thousand_characters_begin_to_be_spoken(checkpoint, tmp_path):
    """Fails when a long text is planned as one prompt, or by more than its length."""
    from llasa.generation.run import long_pieces

    config = compose_config("infer", [f"checkpoint={checkpoint}", "text=x", "sampling.max_seconds=1.5"])
    from llasa.generation.engine_hf import TransformersEngine
    from llasa.generation.synthesizer import Synthesizer

    engine = TransformersEngine(batch_size=4)
    synthesizer = Synthesizer(engine.load(str(checkpoint), "cpu"), Codec2(), engine, "it")
    pieces = long_pieces("La luna è alta. " * 6300, synthesizer, config, {"voice": None, "seed": 0, "speaker": None})
    first = next(pieces)
    assert first.num_chunks > 1000
    assert np.abs(first.waveform).max() > 0
    pieces.close()
