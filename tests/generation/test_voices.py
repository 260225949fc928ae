"""Voices: what is encoded of a recording, what is refused, and a folder of named ones with their codes."""

import os
import unicodedata

import numpy as np
import pytest
import soxr
import torch
import torch.multiprocessing as multiprocessing

from llasa.codec.codec2 import Codec2
from llasa.config import SamplingConfig
from llasa.errors import UserError
from llasa.generation.engine_hf import TransformersEngine
from llasa.generation.synthesizer import Synthesizer
from llasa.generation.voice_recording import MARGIN_SECONDS
from llasa.generation.voices import VoiceReader, find_voice, list_voices, longest_voice
from llasa.model.checkpoint import PUBLISHED_CODEC, CheckpointCard
from llasa.tokens.prompt import PromptRules
from tests.corpus.recordings import speech_like, write_audio
from tests.model.tiny import build_tiny

TEXT = "Ho tre gatti neri e un cane."


class CountingCodec(Codec2):
    """The real codec, which also counts the clips it encodes, and may say that it encodes in another way."""

    def __init__(self, facts=None):
        super().__init__()
        self.encoded, self.facts = 0, facts or {}

    def encode(self, waveforms):
        self.encoded += len(waveforms)
        return super().encode(waveforms)

    def encoding_facts(self):
        return self.facts


@pytest.fixture
def codec():
    return CountingCodec()


def load(file, codec, text=TEXT, **settings):
    return VoiceReader(codec, "it", **settings).load(file, text)


def write_voice(folder, name, seconds=2.0, seed=1, suffix=".wav", text=TEXT):
    file = write_audio(folder / f"{name}{suffix}", speech_like(seconds, seed))
    if text is not None:
        (folder / f"{name}.txt").write_text(text + "\n", encoding="utf-8")
    return file


def named(name, folder, codec, **settings):
    return VoiceReader(codec, "it", **settings).named(name, folder)


def caches(folder):
    return sorted(folder.glob("*.npz"))


# --- one recording ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "suffix"), [(8000, ".wav"), (16_000, ".flac"), (44_100, ".wav"), (48_000, ".wav")])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_recording_of_any_rate_and_channels_is_encoded_as_it_sounds(codec, tmp_path, rate, suffix, channels):
    """Fails when the rate is not converted, or one channel is taken for all."""
    sound = np.stack([speech_like(1.0, seed, rate) for seed in range(channels)], axis=1)
    sound = np.round(sound * 32768) / 32768  # as 16 bits hold it
    voice = load(write_audio(tmp_path / f"voice{suffix}", sound, rate), codec, "Ho 3 gatti neri.")
    mono = sound.mean(axis=1).astype(np.float32)
    expected = Codec2().encode([soxr.resample(mono, rate, 8000, quality="HQ") if rate != 8000 else mono])[0]
    np.testing.assert_array_equal(voice.codes, expected)
    assert voice.codes.dtype == np.uint16
    assert voice.text == "Ho tre gatti neri."


def test_silence_at_the_ends_is_cut_down_to_a_margin(codec, tmp_path, capsys):
    """Fails when the trim is left out, or cuts the words."""
    sound = speech_like(2.0, 1, 8000)
    padded = np.concatenate([np.zeros(8000, np.float32), sound, np.zeros(16_000, np.float32)])
    voice = load(write_audio(tmp_path / "voice.wav", padded, 8000), codec)
    seconds = len(voice.codes) / codec.spec.tokens_per_second
    assert 2.0 <= seconds <= 2.0 + 2 * MARGIN_SECONDS + 0.04
    energy = [np.square(codec.decode([load(tmp_path / "voice.wav", codec).codes])[0]).sum(), np.square(sound).sum()]
    assert energy[0] == pytest.approx(energy[1], rel=0.8), "the words are still there"
    assert capsys.readouterr().err == "", "nothing is odd about it"


def wav_bytes(folder):
    return write_audio(folder / "good.wav", speech_like(2.0, 1)).read_bytes()


BAD = {
    "silent": (lambda folder: write_audio(folder / "a.wav", np.zeros(32_000, np.float32)), r"silent.*louder"),
    "noise far below speech": (
        lambda folder: write_audio(folder / "a.wav", speech_like(2.0, 1) * 1.5e-3),
        r"too_quiet|silent.*louder",
    ),
    "0.1 s": (lambda folder: write_audio(folder / "a.wav", speech_like(0.1, 1)), r"too_short: 0\.10 s.*3 to 15 s"),
    "10 minutes": (
        lambda folder: write_audio(folder / "a.wav", np.tile(speech_like(10.0, 1, 8000), 60), 8000),
        r"too_long: 600\.00 s.*cut it .* at most 30 s",
    ),
    "31 s": (
        lambda folder: write_audio(folder / "a.wav", np.tile(speech_like(3.1, 1, 8000), 10), 8000),
        r"has 31\.0 s, which leaves .*cut it .* at most 30 s",
    ),
    "cut": (lambda folder: write(folder / "a.wav", wav_bytes(folder)[:9000]), "truncated_audio"),
    "damaged": (lambda folder: write(folder / "a.flac", b"fLaC" + bytes(range(256)) * 20), "unreadable_audio"),
    "no audio": (lambda folder: write(folder / "a.wav", b"Ciao, come stai?" * 50), "unreadable_audio"),
    "empty": (lambda folder: write(folder / "a.wav", b""), "empty_audio"),
    "a folder": (lambda folder: folder, "is a folder; name a recording"),
    "nothing": (lambda folder: folder / "none.wav", "missing_audio"),
}


def write(file, content):
    file.write_bytes(content)
    return file


@pytest.mark.parametrize("kind", BAD)
def test_a_recording_that_is_of_no_use_is_refused_in_one_line(codec, tmp_path, kind):
    make, message = BAD[kind]
    file = make(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        load(file, codec)
    assert str(caught.value).startswith(f"voice={file}")
    assert "\n" not in str(caught.value)
    assert "; " in str(caught.value), "a remedy"
    assert codec.encoded == 0


@pytest.mark.parametrize("text", ["", " … ", "😀"])
def test_a_transcript_without_words_is_refused(codec, tmp_path, text):
    write_audio(tmp_path / "voice.wav", speech_like(1.0, 1))
    with pytest.raises(UserError, match=r"^voice_text=.* has nothing to say"):
        load(tmp_path / "voice.wav", codec, text)


def test_a_missing_transcript_asks_for_one_or_for_a_recogniser(codec, tmp_path):
    file = write_audio(tmp_path / "voice.wav", speech_like(1.0, 1))
    with pytest.raises(UserError, match=r'has no transcript; pass voice_text="…", or let asr=MODEL hear it'):
        load(file, codec, None)
    with pytest.raises(UserError, match=r"^asr=/nowhere is no folder with a model\.bin"):
        load(file, codec, None, recognizer_name="/nowhere")


def test_what_is_odd_but_usable_is_a_warning(codec, tmp_path, capsys):
    """Fails when the check of the speaking rate sees the silence, or no check is made."""
    clipped = np.clip(20 * speech_like(2.0, 1), -0.8, 0.8)
    assert len(load(write_audio(tmp_path / "clipped.wav", clipped), codec).codes)
    assert "clipped.wav is clipped (" in capsys.readouterr().err
    good = write_audio(tmp_path / "good.wav", speech_like(2.0, 1))
    for text in ("sì", TEXT * 4):
        recording = good if text != "sì" else write_audio(tmp_path / "long.wav", speech_like(6.0, 1))
        assert len(load(recording, codec, text).codes)
        assert "may have the wrong transcript (too_" in capsys.readouterr().err
    load(good, codec)
    assert capsys.readouterr().err == ""


def test_a_voice_takes_half_of_what_the_model_was_trained_on_at_most(codec, tmp_path):
    assert longest_voice(CheckpointCard(PromptRules(), PUBLISHED_CODEC, max_length=2048)) == 2048 / 2 / 50
    assert longest_voice(CheckpointCard(PromptRules(), PUBLISHED_CODEC, max_length=10**6)) == 30
    room = longest_voice(CheckpointCard(PromptRules(), codec.spec, max_length=800))
    assert room == 2.0
    file = write_audio(tmp_path / "voice.wav", speech_like(2.5, 1))
    with pytest.raises(UserError, match=r"has 2\.5 s, which leaves the model too little room .* at most 2 s"):
        load(file, codec, max_seconds=room)
    assert len(load(write_audio(file, speech_like(2.0, 1)), codec, max_seconds=room).codes) == 400


def greedy_continuation(speech, prompt, count, ranges):
    """Codes by the whole sequence again for each of them: no cache, no batch, no engine."""
    ids = torch.from_numpy(prompt)[None]
    first = speech.vocabulary.first_code
    for index in range(count):
        low, high = ranges[index % len(ranges)]
        allowed = list(range(first + low, first + high))
        if index and index % len(ranges) == 0:
            allowed.append(speech.vocabulary.speech_end)
        with torch.no_grad():
            logits = speech.model(input_ids=ids, use_cache=False).logits[0, -1]
        chosen = allowed[int(logits[allowed].argmax())]
        assert chosen != speech.vocabulary.speech_end, "this model never ends by itself"
        ids = torch.cat([ids, torch.tensor([[chosen]])], dim=1)
    return ids[0, len(prompt) :].numpy() - first


def test_the_result_is_all_that_follows_the_voice_and_nothing_else(codec, tmp_path):
    """With a real codec, against a model that continues the prompt without an engine.

    Fails when codes of the voice slip into the result, or its first or last ones are cut off with them.
    """
    speech = build_tiny(codec.spec, spread=0.2)
    speech.model.eval()
    speech.card = CheckpointCard(PromptRules(), codec.spec, ("it",), 800)
    synthesizer = Synthesizer(speech, codec, TransformersEngine(batch_size=2, progress=False), "it")
    voice = load(write_audio(tmp_path / "voice.wav", speech_like(1.0, 1, 8000), 8000), codec)
    sampling = SamplingConfig(temperature=0.0, max_seconds=0.2, text_bounds=False, loop_seconds=0.0, retries=0)
    (result,) = synthesizer.speak(["Ciao, come stai?"], sampling, voice=voice)
    prompt = speech.prompt.prompt(f"{voice.text} Ciao, come stai?", voice.codes)
    expected = greedy_continuation(speech, prompt, 40, codec.spec.code_ranges)
    assert len(set(expected.tolist())) > 10, "it says many codes, so a shifted result would be seen"
    np.testing.assert_array_equal(result.codes, expected)
    assert not set(map(bytes, voice.codes.reshape(-1, 4))) & set(map(bytes, result.codes.reshape(-1, 4)))
    assert len(result.waveform) == 10 * 160
    np.testing.assert_array_equal(result.waveform, codec.decode([result.codes])[0])


# --- a folder of voices ----------------------------------------------------------------------------------------------


def test_a_named_voice_is_encoded_once(codec, tmp_path):
    """Fails when the kept codes are not read, or are not those of the recording."""
    file = write_voice(tmp_path, "anna", suffix=".flac")
    first = named("anna", tmp_path, codec)
    assert codec.encoded == 1
    again = named("anna", tmp_path, codec)
    assert codec.encoded == 1
    assert first.text == again.text == TEXT
    assert again.codes.dtype == first.codes.dtype
    np.testing.assert_array_equal(first.codes, again.codes)
    np.testing.assert_array_equal(first.codes, load(file, codec).codes)
    (cache,) = caches(tmp_path)
    assert cache.name.startswith("anna.codec2-")
    np.testing.assert_array_equal(np.load(cache, allow_pickle=False)["codes"], first.codes)
    assert {path.suffix for path in tmp_path.iterdir()} == {".flac", ".txt", ".npz"}, "nothing temporary is left"


@pytest.mark.parametrize("changed", ["recording", "transcript", "encoding", "codec"])
def test_whatever_the_codes_come_from_makes_them_anew(codec, tmp_path, changed):
    """Fails when one of them is left out of the key."""
    write_voice(tmp_path, "anna")
    before = named("anna", tmp_path, codec)
    other = CountingCodec({"precision": "bf16"} if changed == "encoding" else None)
    if changed == "recording":
        write_voice(tmp_path, "anna", seed=2)
    elif changed == "transcript":
        (tmp_path / "anna.txt").write_text("Ho due gatti neri e un cane.")
    elif changed == "codec":
        other.spec = CountingCodec().spec.__class__(**vars(other.spec) | {"fingerprint": "other"})
    after = named("anna", tmp_path, other)
    assert other.encoded == 1
    assert len(caches(tmp_path)) == (2 if changed in ("encoding", "codec") else 1)
    assert (before.codes.tolist() != after.codes.tolist()) == (changed == "recording")
    assert (before.text != after.text) == (changed == "transcript")
    named("anna", tmp_path, other)
    assert other.encoded == 1


def test_damaged_codes_are_made_anew(codec, tmp_path):
    """Every 17th byte of the file flipped in turn, and the file cut: the codes are never others than the real ones.

    Fails when damage comes out as an error, or codes are read without their checksum.
    """
    write_voice(tmp_path, "anna", 0.4, text="Gatti")
    expected = named("anna", tmp_path, codec).codes
    (cache,) = caches(tmp_path)
    whole = cache.read_bytes()
    damages = [whole[:length] for length in (0, 1, 30, len(whole) // 2, len(whole) - 1)]
    for place in range(0, len(whole), 17):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        damages.append(bytes(flipped))
    made_anew = codec.encoded
    for damage in damages:
        cache.write_bytes(damage)
        np.testing.assert_array_equal(named("anna", tmp_path, codec).codes, expected)
    assert codec.encoded - made_anew > len(damages) / 2
    np.savez(cache, codes=np.array([{}], dtype=object), key=np.array("x"))
    np.testing.assert_array_equal(named("anna", tmp_path, codec).codes, expected)


def test_codes_are_replaced_whole(codec, tmp_path):
    """Fails when the file is written in place, where another process may be reading it."""
    write_voice(tmp_path, "anna")
    named("anna", tmp_path, codec)
    (cache,) = caches(tmp_path)
    cache.write_bytes(b"damaged")
    read_by_another = tmp_path / "the same file"
    os.link(cache, read_by_another)
    named("anna", tmp_path, codec)
    assert read_by_another.read_bytes() == b"damaged" != cache.read_bytes()


def test_a_folder_that_cannot_be_written_costs_time_only(codec, tmp_path, capsys):
    write_voice(tmp_path, "anna")
    expected = named("anna", tmp_path, codec).codes
    (cache,) = caches(tmp_path)
    cache.unlink()
    (cache / "in the way").mkdir(parents=True)
    np.testing.assert_array_equal(named("anna", tmp_path, codec).codes, expected)
    assert f"warning: cannot write {cache}" in capsys.readouterr().err


def speak_of(folder, started, results):
    started.wait()
    results.put([named("anna", folder, CountingCodec()).codes.tolist() for _ in range(5)])


def test_two_processes_at_once_do_no_harm(tmp_path):
    """Fails when what the other process is about to write, or both wrote, comes out as an error or as other codes."""
    write_voice(tmp_path, "anna")
    context = multiprocessing.get_context("fork")
    started, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=speak_of, args=(tmp_path, started, results)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    codec = CountingCodec()
    kept = named("anna", tmp_path, codec).codes.tolist()
    assert codec.encoded == 0, "what they left is whole"
    assert found == [[kept] * 5] * 2
    assert {path.suffix for path in tmp_path.iterdir()} == {".wav", ".txt", ".npz"}


def test_kept_codes_are_refused_by_a_model_of_shorter_speech(codec, tmp_path):
    """Fails when the length is checked only where the recording is encoded."""
    write_voice(tmp_path, "anna")
    named("anna", tmp_path, codec)
    with pytest.raises(UserError, match=r"voice=anna .* has 2\.0 s, .* at most 1 s"):
        named("anna", tmp_path, codec, max_seconds=1.0)


def test_an_unknown_name_is_told_the_near_ones(tmp_path):
    folder = tmp_path / "voices"
    with pytest.raises(UserError, match=r"no voice 'anna' in .*there is none yet: put NAME\.wav"):
        find_voice("anna", folder)
    for name in ("anna", "anne", "bruno"):
        write_voice(folder, name)
    with pytest.raises(UserError, match=r"did you mean (anna or anne|anne or anna)\?"):
        find_voice("ann", folder)
    with pytest.raises(UserError, match="valid names: anna, anne, bruno"):
        find_voice("x", folder)


@pytest.mark.parametrize(
    "name", ["../secret", "sub/secret", "", ".", "..", "secret\0", "anna.wav", "anna.txt", ".hidden", "x" * 5000, "*"]
)
def test_a_name_never_leaves_the_folder(codec, tmp_path, name):
    """Fails when a name becomes a part of a path."""
    folder = tmp_path / "voices"
    for place in (tmp_path / "secret", folder / "sub" / "secret", folder / ".hidden", folder / "anna"):
        write_voice(place.parent, place.name)
    assert os.path.isfile(folder / "../secret.wav")
    with pytest.raises(UserError, match="there is no voice") as caught:
        named(name, folder, codec)
    assert len(str(caught.value)) < 400 + len(str(folder))
    with pytest.raises(UserError, match="there is no voice"):
        named(str(tmp_path / "secret"), folder, codec)


def test_voices_are_listed_with_what_is_known_of_them(codec, tmp_path, capsys):
    assert list_voices(tmp_path / "none") == []
    write_voice(tmp_path, "carla", 1.5, suffix=".ogg")
    write_voice(tmp_path, "bruno", 1.0, suffix=".WAV", text=None)
    write_voice(tmp_path, "anna", 2.0)
    write_voice(tmp_path, "anna", 0.5, suffix=".mp3")
    decomposed = unicodedata.normalize("NFD", "zoë")
    write_voice(tmp_path, decomposed)
    (tmp_path / "broken.wav").write_bytes(b"RIFF, as it were")
    named("anna", tmp_path, codec)
    voices = list_voices(tmp_path)
    assert [voice.name for voice in voices] == ["anna", "bruno", "carla", "zoë"]
    assert [voice.seconds for voice in voices] == pytest.approx([2.0, 1.0, 1.5, 2.0], abs=0.01)
    assert [voice.text and voice.text.strip() for voice in voices] == [TEXT, None, TEXT, TEXT]
    assert "broken.wav is left out (unreadable_audio" in capsys.readouterr().err
    assert find_voice("zoë", tmp_path) == find_voice(decomposed, tmp_path) == tmp_path / f"{decomposed}.wav"
    with pytest.raises(UserError, match=r"write what is said into .*bruno\.txt, or let asr=MODEL hear it"):
        named("bruno", tmp_path, codec)


def test_a_transcript_of_no_words_or_no_text_is_named(codec, tmp_path):
    write_voice(tmp_path, "anna", text="…")
    with pytest.raises(UserError, match=r"anna\.txt: '…' has nothing to say; write what is said into it"):
        named("anna", tmp_path, codec)
    (tmp_path / "anna.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"cannot read .*anna\.txt.*UTF-8"):
        named("anna", tmp_path, codec)


def test_a_file_and_a_name_are_told_apart(codec, tmp_path, monkeypatch):
    """Fails when a file of a name's name is not taken, or a folder passes for a file."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "voices"
    write_voice(folder, "anna", seed=1)
    file = write_voice(tmp_path, "other", seed=2)

    def codes(voice, text=None):
        return VoiceReader(codec, "it").open(voice, text, "voices").codes.tolist()

    of_anna, of_other = named("anna", folder, codec).codes.tolist(), load(file, codec).codes.tolist()
    assert of_anna != of_other
    assert codes("anna") == of_anna
    assert codes("other.wav", TEXT) == codes("./other.wav", TEXT) == of_other
    with pytest.raises(UserError, match=r"^voice=voices/anna cannot be used .missing_audio"):
        codes("voices/anna", TEXT)
    with pytest.raises(UserError, match=r"^voice=none\.wav cannot be used .missing_audio"):
        codes("none.wav", TEXT)
    with pytest.raises(UserError, match=r"voice=anna is a name in voices, where anna\.txt has its transcript"):
        codes("anna", TEXT)
    (tmp_path / "anna").mkdir()
    assert codes("anna") == of_anna
    (tmp_path / "anna").rmdir()
    file.rename(tmp_path / "anna")
    assert codes("anna", TEXT) == of_other


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("LLASA_TEST_ASR"), reason="LLASA_TEST_ASR names no Whisper model")
def test_a_missing_transcript_is_heard_and_written(codec, tmp_path, espeak_store):
    from llasa.corpus.recognition import character_error_rate
    from llasa.corpus.store import TokenStore

    row = TokenStore(espeak_store).rows("train")[0]
    write_audio(tmp_path / "anna.wav", codec.decode([row["codes"]])[0], 8000)
    settings = {"recognizer_name": os.environ["LLASA_TEST_ASR"]}
    first = named("anna", tmp_path, codec, **settings)
    assert character_error_rate(str(row["text"]), first.text, "it") < 0.7
    assert (tmp_path / "anna.txt").read_text(encoding="utf-8").strip()
    again = named("anna", tmp_path, codec)
    assert (again.text, codec.encoded) == (first.text, 1)
    assert load(tmp_path / "anna.wav", codec, None, **settings).text == first.text
