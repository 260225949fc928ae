"""Every check of a row: what just passes and what just does not, with the measured value in the detail."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from llasa.audio import decode_audio, resample
from llasa.config import FiltersConfig
from llasa.corpus.espeak import EspeakSource
from llasa.corpus.filters import clipped_share, frame_powers, loud_power, prepare, trimmed
from llasa.corpus.sources import SourceRow
from llasa.errors import RejectedRow
from tests.corpus.recordings import audio_bytes, speech_like, tone

RATE = 16_000
OFF = FiltersConfig(
    min_seconds=None,
    max_seconds=None,
    min_sample_rate=None,
    min_peak=None,
    min_level=None,
    max_clipped=None,
    characters_per_second=None,
    max_foreign_letters=None,
    min_levenshtein=None,
    min_dnsmos=None,
    min_votes=None,
    duplicates="off",
)
TEXT = "Il gatto dorme."


def make_row(waveform: np.ndarray, rate: int = RATE, *, text: str = TEXT, **changes: Any) -> SourceRow:
    content = audio_bytes(waveform, rate, "WAV", "FLOAT")
    return replace(SourceRow(id="a", text=text, audio=content, speaker="s", language="it"), **changes)


def refusal(row: SourceRow, filters: FiltersConfig) -> tuple[str, str]:
    """(reason, detail), or two empty strings."""
    try:
        prepare(row, RATE, filters)
    except RejectedRow as refused:
        return refused.reason, refused.detail
    return "", ""


def reason(row: SourceRow, filters: FiltersConfig) -> str:
    return refusal(row, filters)[0]


@pytest.fixture(scope="module")
def source() -> EspeakSource:
    return EspeakSource(language="it", voices=["m1", "f2"], words_per_minute=165, validation=0, test=0)


@pytest.fixture(scope="module")
def spoken(source) -> list[tuple[np.ndarray, int]]:
    return [decode_audio(source.row("train", index).audio) for index in range(8)]


SPEECH = speech_like(1.0, 1)

LIMITS: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], str, str]] = [
    # reason, filter, what it accepts, what it refuses, measured value and limit in the detail
    ("too_short", {"min_seconds": 0.5}, {"waveform": SPEECH[:8000]}, {"waveform": SPEECH[:7999]}, "0.50 s", "0.5 s"),
    ("too_long", {"max_seconds": 0.5}, {"waveform": SPEECH[:8000]}, {"waveform": SPEECH[:8001]}, "0.50 s", "0.5 s"),
    ("low_sample_rate", {"min_sample_rate": 16_000}, {}, {"rate": 15_999}, "15999 Hz", "16000 Hz"),
    ("silent", {"min_peak": 0.25}, {"waveform": SPEECH * 0.501}, {"waveform": SPEECH * 0.499}, "2.5e-01", "0.25"),
    ("too_quiet", {"min_level": -40.0}, {"waveform": SPEECH * 0.1}, {"waveform": SPEECH * 0.01}, "-5", "-40 dBFS"),
    (
        "clipped",
        {"max_clipped": 0.02},
        {"waveform": np.clip(SPEECH, -0.4, 0.4)},
        {"waveform": np.clip(SPEECH, -0.05, 0.05)},
        "% of the samples",
        "2.00%",
    ),
    (
        "too_slow",  # a second of the two is no speech
        {"characters_per_second": [15, 20]},
        {"waveform": speech_like(2.0, 1)},
        {"waveform": speech_like(2.0, 1), "text": TEXT[1:]},
        "7.0 a second",
        "15 to 20",
    ),
    ("too_fast", {"characters_per_second": [5, 15]}, {}, {"text": TEXT + "x"}, "16.0 a second", "5 to 15"),
    (
        "low_levenshtein",
        {"min_levenshtein": 0.9},
        {"measures": {"levenshtein": 0.9}},
        {"measures": {"levenshtein": 0.899}},
        "0.899",
        "0.9",
    ),
    ("low_dnsmos", {"min_dnsmos": 3.0}, {"measures": {"dnsmos": 3.0}}, {"measures": {"dnsmos": 2.99}}, "2.99", "3"),
    (
        "voted_down",
        {"min_votes": 1},
        {"measures": {"up_votes": 2, "down_votes": 1}},
        {"measures": {"up_votes": 2, "down_votes": 2}},
        "2 for, 2 against",
        "+1",
    ),
]


@pytest.mark.parametrize(
    ("name", "filters", "good", "bad", "measured", "limit"), LIMITS, ids=[row[0] for row in LIMITS]
)
def test_a_limit_accepts_and_refuses_and_can_be_switched_off(name, filters, good, bad, measured, limit):
    only = replace(OFF, **filters)
    accepted, refused = (make_row(**{"waveform": SPEECH, **change}) for change in (good, bad))
    assert refusal(accepted, only) == ("", "")
    found, detail = refusal(refused, only)
    assert found == name
    assert measured in detail
    assert limit in detail
    assert reason(refused, OFF) == ""


def test_what_passes_is_the_decoded_recording():
    waveform = speech_like(0.7, 3, 22_050)
    utterance = prepare(make_row(waveform, 22_050, text="Ho 3 gatti."), RATE, FiltersConfig())
    np.testing.assert_array_equal(utterance.waveform, resample(waveform, 22_050, RATE))
    assert (utterance.text, utterance.text_given, utterance.speaker) == ("Ho tre gatti.", "Ho 3 gatti.", "s")
    assert (utterance.sample_rate, utterance.language, utterance.id) == (RATE, "it", "a")


def test_real_speech_passes_the_defaults(spoken, source):
    assert len(spoken) == 8
    for index, (waveform, rate) in enumerate(spoken):
        row = source.row("train", index)
        for format in ("WAV", "FLAC", "MP3", "OGG"):
            assert refusal(replace(row, audio=audio_bytes(waveform, rate, format)), FiltersConfig()) == ("", "")


def test_cheap_checks_come_before_the_recording_is_decoded():
    row = make_row(SPEECH, audio=b"no audio at all", measures={"levenshtein": 0.1})
    assert reason(row, FiltersConfig()) == "low_levenshtein"
    assert reason(replace(row, text="… !"), FiltersConfig()) == "empty_text"
    assert reason(replace(row, measures={}), FiltersConfig()) == "unreadable_audio"


def test_a_long_file_is_refused_by_its_header(monkeypatch):
    def fail(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr("llasa.audio.read_mono", fail)
    found, detail = refusal(make_row(np.zeros(31 * RATE, dtype=np.float32)), FiltersConfig())
    assert (found, detail) == ("too_long", "31.00 s, at most 30 s wanted")


def test_a_measure_that_the_corpus_does_not_give_is_not_checked():
    strict = replace(OFF, min_levenshtein=1.0, min_dnsmos=5.0, min_votes=3)
    assert reason(make_row(SPEECH, measures={}), strict) == ""
    assert reason(make_row(SPEECH, measures={"up_votes": 3}), strict) == ""
    assert reason(make_row(SPEECH, measures={"down_votes": 1}), replace(OFF, min_votes=0)) == "voted_down"
    assert reason(make_row(SPEECH, measures={"up_votes": 0, "down_votes": 0}), FiltersConfig()) == ""


# --- level and clipping ----------------------------------------------------------------------------------------------


def test_a_click_is_no_voice():
    waveform = np.full(2 * RATE, 1e-5, dtype=np.float32)
    waveform[5_000:5_010] = 0.9
    assert reason(make_row(waveform), FiltersConfig()) == "too_quiet"
    assert reason(make_row(waveform), replace(FiltersConfig(), min_level=None)) == ""


def test_a_constant_offset_is_no_voice_and_takes_none_away():
    assert reason(make_row(np.full(RATE, 0.2, dtype=np.float32)), FiltersConfig()) == "too_quiet"
    beside_zero = SPEECH * 0.5 + 0.3
    assert reason(make_row(beside_zero), FiltersConfig()) == ""
    np.testing.assert_array_equal(prepare(make_row(beside_zero), RATE, FiltersConfig()).waveform, beside_zero)


def test_the_level_is_that_of_full_scale():
    sine = tone(400, 1.0, RATE, amplitude=1.0)
    assert 10 * np.log10(loud_power(frame_powers(sine, RATE))) == pytest.approx(-3.01, abs=0.01)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 48_000])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_U8", "ULAW", "FLOAT"])
def test_speech_that_was_cut_off_counts_as_clipped_and_no_other(spoken, rate, subtype):
    limit = FiltersConfig().max_clipped
    for original, original_rate in spoken[:4]:
        waveform = resample(original, original_rate, rate)
        waveform /= np.abs(waveform).max()

        def share(waveform: np.ndarray) -> float:
            return clipped_share(decode_audio(audio_bytes(waveform, rate, "WAV", subtype))[0])

        assert share(waveform) < 0.1 * limit
        assert share(0.05 * waveform) < limit
        assert share(np.tanh(3 * waveform)) < limit  # loud, but round
        assert share(np.clip(5 * waveform, -1, 1)) > limit
        if subtype != "ULAW":
            assert share(0.3 * np.clip(5 * waveform, -1, 1)) > limit  # made quieter since


def test_clipped_samples_are_counted_exactly():
    waveform = 0.1 * np.sin(np.arange(1_000, dtype=np.float32))
    assert clipped_share(waveform) == 0
    waveform[[10, 11, 20]] = 0.5  # two in a row, and one
    assert clipped_share(waveform) == 0
    waveform[100:103] = 0.5
    assert clipped_share(waveform) == 0.003
    waveform[200:205] = -0.5
    assert clipped_share(waveform) == 0.008
    waveform[-4:] = 0.5
    waveform[:3] = 0.5
    assert clipped_share(waveform) == 0.015
    one_sided = np.maximum(waveform, 0)
    assert clipped_share(one_sided) == 0.01  # of its zeros none
    assert clipped_share(-one_sided) == 0.01
    assert clipped_share(np.zeros(100, dtype=np.float32)) == 0
    assert clipped_share(np.ones(1, dtype=np.float32)) == 0


# --- trim ------------------------------------------------------------------------------------------------------------


def padded(before: float, after: float, noise: float = 0.0, rate: int = RATE) -> np.ndarray:
    """A second of a steady tone between silences."""
    waveform = np.concatenate([np.zeros(round(before * rate)), tone(300, 1.0, rate), np.zeros(round(after * rate))])
    return (waveform + noise * np.random.default_rng(0).standard_normal(len(waveform))).astype(np.float32)


@pytest.mark.parametrize("rate", [8_000, 22_050, 48_000])
@pytest.mark.parametrize("noise", [0.0, 1e-4])
@pytest.mark.parametrize("gain", [1.0, 0.01])
def test_silence_is_cut_to_the_margin_at_any_volume(rate, noise, gain):
    waveform = gain * padded(1.5, 0.7, noise, rate)
    cut = trimmed(waveform, rate, margin=0.2, threshold=40)
    assert len(cut) / rate == pytest.approx(1.4, abs=0.04)
    start = next(index for index in range(len(waveform)) if np.shares_memory(waveform[index : index + 1], cut[:1]))
    assert start / rate == pytest.approx(1.3, abs=0.02)
    np.testing.assert_array_equal(cut, waveform[start : start + len(cut)])


def test_the_trim_leaves_what_is_no_silence():
    for waveform in (padded(0, 0), padded(0.1, 0.1), padded(1, 1, noise=0.01), np.zeros(RATE, dtype=np.float32)):
        assert len(trimmed(waveform, RATE, margin=0.2, threshold=40)) == len(waveform)
    pause = np.concatenate([padded(1, 1), padded(1, 1)])
    assert len(trimmed(pause, RATE, margin=0.0, threshold=40)) / RATE == pytest.approx(4, abs=0.02)
    assert len(trimmed(SPEECH[:5], RATE, margin=0.0, threshold=40)) == 5


def test_a_trimmed_row_is_measured_after_the_trim():
    row = make_row(padded(3, 3))
    assert reason(row, replace(OFF, max_seconds=2.0)) == "too_long"
    filters = replace(OFF, max_seconds=2.0, trim_silence=0.1, characters_per_second=[10, 20])
    assert prepare(row, RATE, filters).seconds == pytest.approx(1.2, abs=0.04)
    assert reason(row, replace(filters, min_seconds=1.5)) == "too_short"
    assert reason(row, replace(filters, trim_silence=None, max_seconds=None)) == "too_slow"


# --- text ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def italian(monkeypatch):
    """Bounds and an alphabet that these tests know."""
    letters = set("abcdefghijklmnopqrstuvwxyzàèéìòù")

    def foreign_letters(text: str, language: str) -> str:
        return "".join(sorted({c for c in text.lower() if c.isalpha()} - letters)) if language == "it" else ""

    monkeypatch.setattr("llasa.text.foreign_letters", foreign_letters)
    monkeypatch.setattr("llasa.text.characters_per_second", {"it": (10.0, 20.0)}.get)


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("Perché no? È così.", True),
        ("Il signor Muñoz è a Malmö.", True),  # ñ and ö
        ("Wałęsa è nato a Popowo.", True),
        ("Il signor Muñoz è a Malmö, in Þórsmörk.", False),  # ñ, ö, þ, ó
        ("Москва", False),
        ("La città di Москва è grande.", False),
        ("да", False),  # two letters only, but no others
        ("你好", False),
        ("Zażółć gęślą jaźń", False),
    ],
)
def test_a_name_may_have_foreign_letters_a_text_may_not(text, accepted, italian):
    filters = replace(OFF, max_foreign_letters=FiltersConfig().max_foreign_letters)
    found, detail = refusal(make_row(SPEECH, text=text), filters)
    assert found == ("" if accepted else "foreign_letters")
    assert accepted or ("'it'" in detail and set(detail.split(":")[0]) <= set(text.lower()))
    assert reason(make_row(SPEECH, text=text), OFF) == ""
    assert reason(make_row(SPEECH, text=text, language="xx"), filters) == ""


def test_the_number_of_foreign_letters_is_the_limit(italian):
    row = make_row(SPEECH, text="Il signor Muñoz è a Malmö, a Malmö, a MALMÖ.")
    assert reason(row, replace(OFF, max_foreign_letters=2)) == ""
    assert reason(row, replace(OFF, max_foreign_letters=1)) == "foreign_letters"
    assert refusal(row, replace(OFF, max_foreign_letters=0))[1].startswith("ñö: 2 letters")


def test_auto_bounds_are_those_of_the_language(italian):
    auto = replace(OFF, characters_per_second="auto")
    for seconds, count, expected in (
        (2.0, 9, "too_slow"), (2.0, 10, ""), (2.0, 40, ""), (2.0, 41, "too_fast"), (0.9, 1, ""), (1.0, 21, "too_fast"),
    ):  # fmt: skip
        row = make_row(speech_like(seconds, 1), text="a" * count)
        assert reason(row, auto) == expected
        assert reason(replace(row, language="xx"), auto) == ""


def test_one_word_and_the_silence_around_it_is_not_too_slow():
    """By the package's own bounds."""
    auto = replace(OFF, characters_per_second="auto")
    assert reason(make_row(padded(0.3, 0.2), text="Sì."), auto) == ""
    assert reason(make_row(padded(4, 4), text="Sì."), auto) == "too_slow"


def test_every_check_can_be_switched_off():
    kept = {"trim_threshold": 40.0, "duplicates": "off"}
    assert {field.name: getattr(OFF, field.name) for field in fields(OFF)} == {
        field.name: kept.get(field.name) for field in fields(OFF)
    }
    waveform = np.zeros(41 * RATE, dtype=np.float32)
    worst = make_row(waveform, 1_000, text="да", measures={"levenshtein": 0, "dnsmos": 1, "down_votes": 9})
    assert reason(worst, OFF) == ""
