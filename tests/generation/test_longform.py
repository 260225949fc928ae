"""Long text with a real engine, a tiny untrained model, and a codec of tones that fits its 64 codes."""

import re
import weakref
from dataclasses import replace

import numpy as np
import pytest

from llasa.codec.codec2 import Codec2
from llasa.config import SamplingConfig
from llasa.errors import UserError
from llasa.generation.continuation import chunk_characters, chunk_seed
from llasa.generation.engine_hf import TransformersEngine
from llasa.generation.longform import EDGE_SECONDS, Pauses, chapter_lines, join_speech, shaped, speak_long
from llasa.generation.synthesizer import Synthesizer
from llasa.generation.voices import Voice
from llasa.text.chunks import Break, Chunk, split_text
from llasa.types import Speech
from tests.model.tiny import CODEC, build_tiny, random_codes, tiny_speech_model

TEXT = "# Uno\nIl gatto dorme sul letto. Poi si alza.\n\nFuori piove, e fa freddo. Arriva la sera.\n# Due\nBuona notte."
SAMPLED = SamplingConfig(temperature=1.0, max_seconds=3.0, retries=0)
SHORT = SamplingConfig(temperature=1.0, max_seconds=0.4, text_bounds=False, retries=0)


class ToneCodec:
    """Two codes are 40 ms of a tone: its level and its pitch. The phase goes on, and begins at full height."""

    spec = CODEC

    def __init__(self):
        self.decoded = []

    def decode(self, codes):
        waveforms = [self._decode(np.asarray(clip, dtype=np.int64).reshape(-1, 2)) for clip in codes]
        self.decoded += map(weakref.ref, waveforms)
        return waveforms

    def _decode(self, frames):
        level, pitch = np.repeat(frames[:, 0] / 20, 640), np.repeat(100 + 20 * (frames[:, 1] - 16), 640)
        level = np.convolve(np.pad(level, (160, 159), "edge"), np.full(320, 1 / 320), "valid")
        return (level * np.cos(2 * np.pi * np.cumsum(pitch) / 16_000)).astype(np.float32)

    def num_held(self):
        return sum(reference() is not None for reference in self.decoded)


class WatchedEngine(TransformersEngine):
    """The real engine, which also keeps what it was asked for and what it answered."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.requests, self.results = [], []

    def generate(self, speech, requests, sampling):
        results = super().generate(speech, requests, sampling)
        self.requests += requests
        self.results += results
        return results


@pytest.fixture(scope="module")
def speech():
    speech = tiny_speech_model(spread=0.5)
    speech.model.eval()
    speech.card = replace(speech.card, languages=("it",))
    return speech


def build(speech, max_length=3000, batch_size=4):
    own = replace(speech, card=replace(speech.card, max_length=max_length))
    return Synthesizer(own, ToneCodec(), WatchedEngine(batch_size=batch_size), "it")


def speak(synthesizer, text=TEXT, sampling=SAMPLED, **settings):
    return list(speak_long(synthesizer, text, sampling, **{"max_characters": 30, **settings}))


def prompt_of(synthesizer, chunks, results, voices, text):
    """The prompt of a chunk that continues ``voices``: indices of chunks, or a voice itself."""
    known = [each if isinstance(each, Voice) else Voice(chunks[each].text, results[each].codes) for each in voices]
    codes = np.concatenate([each.codes for each in known]) if known else None
    return synthesizer.speech.prompt.prompt(" ".join([*(each.text for each in known), text]), codes)


@pytest.mark.parametrize("has_voice", [False, True])
def test_a_chunk_continues_the_voice_and_the_chunk_before_it(speech, has_voice):
    """Fails when the tail is not the last chunk, when its text and codes part, or when the first is no voice."""
    synthesizer = build(speech)
    voice = Voice("ho tre gatti", random_codes(60, np.random.default_rng(0))) if has_voice else None
    parts = speak(synthesizer, voice=voice)
    chunks, results = split_text(TEXT, "it", 30), synthesizer.engine.results
    assert len(chunks) == len(results) == 7
    assert {result.finish_reason for result in results} == {"stop"}, "else this test asks too little"
    for index, (chunk, request) in enumerate(zip(chunks, synthesizer.engine.requests, strict=True)):
        voices = ([voice] if has_voice else [0] if index else []) + ([index - 1] if index > 1 - has_voice else [])
        np.testing.assert_array_equal(
            request.prompt, prompt_of(synthesizer, chunks, results, voices, chunk.text), err_msg=str(index)
        )
        assert request.seed == chunk_seed(0, index)
    spoken = [part for part in parts if part.kind == "speech"]
    assert [part.text for part in spoken] == [chunk.text for chunk in chunks]
    assert [part.finish_reason for part in spoken] == [result.finish_reason for result in results]
    assert all(part.num_chunks == 7 and part.waveform.dtype == np.float32 for part in parts)


def test_what_does_not_fit_is_left_out(speech):
    """Fails when the room is not looked at: the tail first, then the first chunk, never the user's voice."""
    chunks = split_text(TEXT, "it", 30)
    voice = Voice("ho tre gatti", random_codes(60, np.random.default_rng(0)))
    used = set()
    for max_length, given in ((230, None), (330, None), (430, None), (200, voice), (450, voice)):
        synthesizer = build(speech, max_length)
        speak(synthesizer, voice=given)
        results = synthesizer.engine.results
        for index, (chunk, request) in enumerate(zip(chunks, synthesizer.engine.requests, strict=True)):
            assert len(request.prompt) + request.max_codes + 1 <= max_length
            options = (
                [[voice, index - 1], [voice]]
                if given
                else [[0, index - 1], [0], [index - 1], []]
                if index > 1
                else [[0], []]
            )
            options = [option for option in options if index or option in ([], [voice])]
            fitting = []
            for option in options:
                prompt = prompt_of(synthesizer, chunks, results, option, chunk.text)
                if len(prompt) + 1 + len(chunk.text) * 50 / np.sqrt(5 * 26) <= max_length or option == options[-1]:
                    fitting.append(option)
            expected = prompt_of(synthesizer, chunks, results, fitting[0], chunk.text)
            np.testing.assert_array_equal(request.prompt, expected)
            used.add((given is not None, len(fitting[0])))
    assert used == {(False, 0), (False, 1), (False, 2), (True, 1), (True, 2)}


def test_a_bad_end_is_told_and_not_continued(speech, capfd):
    """Fails when what was cut becomes a tail or the voice, or is cut silently."""
    synthesizer = build(speech)
    parts = [part for part in speak(synthesizer, sampling=SHORT, seed=4) if part.kind == "speech"]
    chunks, results = split_text(TEXT, "it", 30), synthesizer.engine.results
    reasons = [part.finish_reason for part in parts]
    assert reasons == [result.finish_reason for result in results]
    assert {"stop", "length"} <= set(reasons), "else this test asks too little"
    assert "length" in reasons[: reasons.index("stop") + 1 + 2]
    ended = [index for index, reason in enumerate(reasons) if reason == "stop"]
    for index, (chunk, request) in enumerate(zip(chunks, synthesizer.engine.requests, strict=True)):
        voices = [first for first in ended[:1] if first < index]
        voices += [index - 1] if index - 1 in ended and index - 1 not in voices else []
        np.testing.assert_array_equal(request.prompt, prompt_of(synthesizer, chunks, results, voices, chunk.text))
    warnings = [line for line in capfd.readouterr().err.splitlines() if "warning" in line]
    bad = [part for part in parts if part.finish_reason != "stop"]
    assert len(warnings) == len(bad)
    for line, part in zip(warnings, bad, strict=True):
        assert f"chunk {part.chunk} of 7" in line
        assert part.text in line


def test_batches_say_the_same_as_one_after_the_other(speech):
    """Fails when a batch mixes up its order, or a chunk's seed hangs on its batch."""
    voice = Voice("ho tre gatti", random_codes(60, np.random.default_rng(0)))
    together, alone = build(speech, batch_size=4), build(speech, batch_size=1)
    first = speak(together, continuous=False, voice=voice)
    second = speak(alone, continuous=False, voice=voice)
    assert [part.text for part in first] == [part.text for part in second]
    assert all(np.array_equal(a.waveform, b.waveform) for a, b in zip(first, second, strict=True))
    chunks = split_text(TEXT, "it", 30)
    for index, chunk in enumerate(chunks):
        expected = prompt_of(alone, chunks, [], [voice], chunk.text)
        np.testing.assert_array_equal(alone.engine.requests[index].prompt, expected)
        [single] = alone.generate([chunk.text], SAMPLED, voice=voice, seed=chunk_seed(0, index))
        np.testing.assert_array_equal(single.codes, together.engine.results[index].codes)
    assert together.engine.progress, "the engine itself is left as it was"


def test_a_quotation_in_foreign_letters_is_left_out(speech, capfd):
    """Fails when one chunk that cannot be read ends the whole text, or takes its pause and chapter along."""
    text = "Il gatto dorme e sogna.\n\n# Ἰλιάς\n\nμῆνιν ἄειδε θεά\n\nPoi si alza e va via."
    spoken = [part for part in speak(build(speech), text, SHORT) if part.kind == "speech"]
    assert [(part.text, part.chapter) for part in spoken] == [
        ("Il gatto dorme e sogna.", None),
        ("Poi si alza e va via.", "Ἰλιάς"),
    ]
    assert capfd.readouterr().err.count("left out: text='") == 2


def test_the_seed_decides(speech):
    synthesizer = build(speech)
    first, again, other = (
        np.concatenate([part.waveform for part in speak(synthesizer, sampling=SHORT, seed=seed)]) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert len(first) != len(other) or not np.array_equal(first, other)
    assert len({chunk_seed(seed, index) for seed in range(10) for index in range(100)}) == 1000


@pytest.mark.parametrize(("continuous", "most"), [(True, 2), (False, 6)])
def test_memory_is_bounded(speech, continuous, most):
    """Fails when speech is collected before it is given out: then all forty chunks are held."""
    synthesizer = build(speech)
    num_parts = 0
    for _ in speak_long(synthesizer, "Il gatto dorme.\n\n" * 40, SHORT, continuous=continuous, max_characters=30):
        num_parts += 1
        assert synthesizer.codec.num_held() <= most
    assert num_parts >= 40
    assert len(synthesizer.codec.decoded) == 40


def test_joins_do_not_click(speech):
    """Fails without the fades: the tones begin at full height."""
    parts = speak(build(speech))
    spoken = [part.waveform for part in parts if part.kind == "speech"]
    inside = max(np.abs(np.diff(waveform)).max() for waveform in spoken)
    whole = np.concatenate([part.waveform for part in parts])
    joins = np.cumsum([len(part.waveform) for part in parts])[:-1]
    assert 0 < inside < 0.5
    assert np.abs(np.diff(whole)[joins - 1]).max() <= inside / 10
    assert np.abs(np.diff(np.pad(whole, 1))).max() <= inside, "nor at the ends of it all"


def tone(seconds, before, after, rate=8000):
    wave = np.cos(2 * np.pi * 200 * np.arange(round(seconds * rate)) / rate) / 2
    return np.pad(wave, (round(before * rate), round(after * rate))).astype(np.float32)


def chapters(parts):
    return [(part.chapter, part.start) for part in parts if part.chapter is not None]


def test_silence_at_the_ends_is_cut_and_counted():
    given = tone(1.0, 0.5, 0.02)
    piece, before, after = shaped(given, 8000)
    assert (before, after) == (round(EDGE_SECONDS * 8000), 160)
    assert len(piece) == before + 8000 + after
    assert piece[0] == piece[-1] == 0
    np.testing.assert_array_equal(piece[before + 100 : -after - 100], given[4100:11_900])
    bare = tone(0.2, 0, 0)
    assert shaped(bare, 8000)[1:] == (0, 0)
    assert bare[0] == 0.5, "the decoder's own waveform is left as it was"
    silent = shaped(np.zeros(800, np.float32), 8000)
    assert len(silent[0]) <= 800
    assert len(shaped(np.ones(1, np.float32), 8000)[0]) == 1


def test_pauses_are_as_long_as_they_say():
    """Fails when the silence of the speech is not taken off, or the wrong pause is chosen."""
    kinds = [Break.NONE, Break.NONE, Break.COMMA, Break.SENTENCE, Break.PARAGRAPH, Break.CHAPTER]
    edges = [(0.5, 0.04), (0.02, 0.0), (0.0, 0.3), (0.04, 0.04), (0.3, 0.02), (0.0, 0.0)]
    chunks = [Chunk(f"frase {i}", kind, "Due" if kind is Break.CHAPTER else None) for i, kind in enumerate(kinds)]
    spoken = (Speech(tone(0.5, *edge), 8000, np.zeros(0, np.uint16), "stop", 0.5 + sum(edge)) for edge in edges)
    pauses = Pauses(comma=0.2, sentence=0.3, paragraph=0.8, chapter=1.5)
    parts = list(join_speech(chunks, spoken, pauses))
    whole = np.concatenate([part.waveform for part in parts])
    loud = np.flatnonzero(np.abs(whole) > 1e-3)
    gaps = np.diff(loud)[np.diff(loud) > 300] / 8000
    np.testing.assert_allclose(gaps, [0.06, 0.2, 0.3, 0.8, 1.5], atol=0.002)  # none = what the speech itself has
    starts = np.cumsum([0, *(len(part.waveform) for part in parts)]) / 8000
    np.testing.assert_allclose([part.start for part in parts], starts[:-1])
    [(title, start)] = chapters(parts)
    assert (title, whole[round(start * 8000) - 80 : round(start * 8000)].any()) == ("Due", False)
    with pytest.raises(UserError, match=r"pauses\.comma=-1"):
        Pauses(comma=-1)


def test_chapters(speech):
    parts = speak(build(speech), sampling=SHORT)
    found = chapters(parts)
    assert [title for title, _ in found] == ["Uno", "Due"]
    assert found[0][1] == 0
    assert [part.chunk for part in parts if part.start == found[1][1]] == [6]
    assert chapter_lines([("Uno", 0.0), ("Due", 3725.0796)]) == "00:00:00.000 Uno\n01:02:05.080 Due\n"
    assert re.fullmatch(r"(\d\d:\d\d:\d\d\.\d{3} \w+\n){2}", chapter_lines(found))


@pytest.fixture(scope="module")
def codec2():
    codec = Codec2()
    speech = build_tiny(codec.spec, spread=0.5)
    speech.model.eval()
    speech.card = replace(speech.card, max_length=1024, languages=("it",))
    return Synthesizer(speech, codec, TransformersEngine(batch_size=4), "it")


def test_the_room_of_a_chunk(codec2, speech):
    """The numbers of its docstring, counted by hand; fails when voice, tail or seconds are not taken off."""
    text, sampling = "la casa è bianca " * 20, SamplingConfig()
    contract, per_character = codec2.speech, 18 / 17 + 200 / np.sqrt(5 * 26)  # "è" is two bytes
    room = 1024 - contract.prompt.overhead
    settings = {"language": "it"}
    assert chunk_characters(contract, text, sampling, **settings) == int(room / per_character) == 52
    assert chunk_characters(contract, text, replace(sampling, max_seconds=2.0), **settings) == 22
    assert chunk_characters(contract, text, sampling, language="ko") == int(room / (18 / 17 + 200 / 5))
    longer = replace(contract, card=replace(contract.card, max_length=8192))
    voice = Voice("la casa", np.resize([0, 1024, 5120, 9216], 400))
    left = 8192 - contract.prompt.overhead
    assert chunk_characters(longer, text, sampling, **settings) == int(left / 3 / per_character)
    assert chunk_characters(longer, text, sampling, voice=voice, **settings) == int((left - 408) / 2 / per_character)
    assert chunk_characters(longer, text, sampling, voice=voice, continuous=False, **settings) == 228
    with pytest.raises(UserError, match="use a shorter voice"):
        chunk_characters(contract, text, sampling, voice=Voice("a", np.resize(voice.codes, 800)), **settings)


@pytest.mark.parametrize("continuous", [True, False])
def test_with_codec2(codec2, continuous, capfd):
    text = "Il gatto dorme sul letto di casa mia, e non si sveglia più. Poi si alza."
    sampling = SamplingConfig(temperature=1.0, max_seconds=0.1, text_bounds=False, retries=1)
    with pytest.raises(UserError, match=r"max_seconds is 0\.1"):
        speak_long(codec2, text, sampling)
    parts = list(speak_long(codec2, text, sampling, max_characters=52, continuous=continuous))
    spoken = [part for part in parts if part.kind == "speech"]
    assert [part.finish_reason for part in spoken] == ["length"] * 2, "an untrained model never ends"
    assert all(part.sample_rate == 8000 and 0 < len(part.waveform) <= 800 for part in spoken)
    assert capfd.readouterr().err.count("warning: chunk") == 2


@pytest.mark.parametrize(
    ("text", "settings", "match"),
    [
        ("", {}, "nothing to say"),
        ("😀 … 😀", {}, "nothing to say"),
        ("你好，今天天气很好。" * 3, {}, "letters"),
        ("Ciao", {"max_characters": 3}, "max_characters=3"),
        ("Ciao", {"speaker": "tara"}, "speaker"),
        ("Ciao", {"voice": Voice("a", np.resize([0, 16], 4000))}, "shorter voice"),
    ],
)
def test_mistakes_are_told_before_anything_is_spoken(speech, text, settings, match):
    """Fails when the checks wait for the first piece."""
    with pytest.raises(UserError, match=match):
        speak_long(build(speech), text, SAMPLED, **settings)
