"""The evaluation's measures as scorers of a search, with espeak's voices."""

from dataclasses import replace

import numpy as np
import pytest

from llasa.audio import resample, write_wav
from llasa.corpus.espeak import synthesize
from llasa.errors import UserError
from llasa.evaluation.scorers import Mos, SpeakerSimilarity
from llasa.evaluation.similarity import similarity
from llasa.generation.scoring import Candidate, Scorer
from tests.model.tiny import tiny_speech_model

RATE = 16_000
TEXT = "Il gatto dorme sul divano vicino alla finestra."


def spoken(text: str, voice: str) -> np.ndarray:
    samples, rate = synthesize(text, voice=voice, words_per_minute=170)
    return resample(samples.astype(np.float32) / 32768, rate, RATE)


@pytest.fixture(scope="module")
def woman() -> Candidate:
    """Who is to sound like herself, in another sentence."""
    speech = tiny_speech_model()
    voice = spoken("Domani mattina andremo al mercato.", "it+f3")
    codes = np.array([3, 20], dtype=np.uint16)
    return Candidate(spoken(TEXT, "it+f3"), RATE, codes, "stop", TEXT, "it", speech.prompt.prompt(TEXT), speech, voice)


@pytest.fixture(scope="module")
def likeness() -> SpeakerSimilarity:
    return SpeakerSimilarity(device="cpu")


def test_the_voice_decides(woman, likeness):
    """Fails when the candidate is compared with itself, or with the voice of the search before."""
    man = replace(woman, waveform=spoken(TEXT, "it+m7"))
    scores = likeness.score(woman), likeness.score(man)
    assert scores[0] > scores[1] + 0.1
    assert scores[0] < 0.999
    again = replace(man, voice=spoken("Domani mattina andremo al mercato.", "it+m7"))
    assert likeness.score(again) > likeness.score(replace(again, waveform=woman.waveform)) + 0.1
    assert likeness.score(woman) == scores[0]
    encoder = likeness._encoder
    assert scores[0] == similarity(encoder.embed(woman.waveform, RATE), encoder.embed(woman.voice, RATE))


def test_a_recording_stands_for_the_voice(woman, tmp_path):
    """Fails when the recording is not read at its own rate, or the voice of the search is preferred."""
    recorded = resample(spoken("Buonasera a tutti quanti.", "it+m7"), RATE, 24_000)
    write_wav(tmp_path / "man.wav", recorded, 24_000)
    scorer = SpeakerSimilarity(recording=str(tmp_path / "man.wav"), device="cpu")
    man = replace(woman, waveform=spoken(TEXT, "it+m7"), voice=None)
    assert scorer.score(man) > scorer.score(woman) + 0.1
    encoder = scorer._encoder
    expected = similarity(encoder.embed(man.waveform, RATE), encoder.embed(recorded, 24_000))
    assert scorer.score(man) == pytest.approx(expected, abs=1e-3)
    (tmp_path / "noise.wav").write_bytes(b"RIFF")
    with pytest.raises(UserError, match=r"recording=.*noise\.wav cannot be used \(\w+.*pass a readable recording"):
        SpeakerSimilarity(recording=str(tmp_path / "noise.wav"), device="cpu")


def test_without_a_voice_there_is_nothing_to_resemble(woman, likeness):
    with pytest.raises(UserError, match=r"no voice to compare with; pass voice=FILE\.wav"):
        likeness.score(replace(woman, voice=None))


def test_noise_costs_quality(woman):
    """Fails when another of DNSMOS's scores is taken, or the sign is lost."""
    short = woman.waveform[: round(2.3 * RATE)]
    noise = np.random.default_rng(0).normal(0, 0.05, len(short)).astype(np.float32)
    clean = replace(woman, waveform=short)
    judge = Mos("bak", threads=1)
    assert judge.score(clean) > judge.score(replace(clean, waveform=short + noise)) + 0.3
    assert judge.score(clean) == judge._judge.score(short, RATE)["bak"]
    with pytest.raises(UserError, match=r"kind='loud' is not valid; choose one of bak, ovrl, p808, sig"):
        Mos("loud")


def test_they_are_scorers_of_steps_too(likeness):
    scorers: list[Scorer] = [likeness, Mos(threads=1)]
    assert [scorer.name for scorer in scorers] == ["similarity", "dnsmos"]
    assert all(scorer.judges_unfinished for scorer in scorers)
