import time
from dataclasses import replace

import numpy as np
import pytest

from llasa.codec.base import CodecSpec
from llasa.config import SamplingConfig
from llasa.corpus.store import TokenStore
from llasa.errors import UserError
from llasa.generation.limits import code_bounds, require_speakable, retry_seed
from tests.model.tiny import CODEC

SAMPLING = SamplingConfig()
XCODEC2 = CodecSpec("x", "x-1", 16_000, 50.0, 65_536, ((0, 65_536),))


def seconds(text: str, language: str = "it", sampling: SamplingConfig = SAMPLING) -> tuple[float, float]:
    fewest, most = code_bounds(text, language, XCODEC2, sampling)
    return fewest / 50, most / 50


def test_the_text_bounds_the_speech_both_ways():
    """Fails when a bound is left out, or letters and seconds are confused."""
    sentence = "Prego digitare un nuovo interno seguito da cancelletto."  # 3.2 s as recorded
    fewest, most = seconds(sentence)
    assert 1.6 <= fewest <= 2.4
    assert 6 <= most <= 15
    assert seconds(f"{sentence} {sentence}")[0] == pytest.approx(2 * fewest, abs=0.02)
    assert seconds("uno")[1] >= 3
    assert seconds("uno")[0] <= 0.15
    assert seconds("q")[1] >= 3


def test_letters_said_by_their_names_have_their_time():
    """Fails when "FBI" is taken for a word. Each letter may take a second."""
    for text in ("a b c d e f g h i j", "ABC DEF GHI L", "La sigla è HTTPSFTPXY"):
        assert seconds(text)[1] >= 10
    assert seconds("abcdefghij")[1] < 6


def test_what_is_written_but_not_said_does_not_make_speech_longer():
    """Fails when the fewest codes count punctuation."""
    assert seconds("Ciao" + "." * 500)[0] == seconds("Ciao")[0]
    assert seconds("...!?")[0] == 0


def test_the_callers_limit_is_never_passed():
    """Fails when the fewest are left over the most."""
    short = replace(SAMPLING, max_seconds=1.0)
    assert seconds("una frase lunga " * 50, sampling=short) == (1.0, 1.0)
    assert seconds("uno", sampling=short)[1] == 1.0
    off = replace(SAMPLING, text_bounds=False)
    assert seconds("una frase lunga " * 50, sampling=off) == seconds("uno", sampling=off) == (0, 20.0)


def test_bounds_are_whole_frames_and_one_at_least():
    for text in ("a", "ciao", "una frase"):
        for limit in (0.001, 0.05, 1.01, 20.0):
            fewest, most = code_bounds(text, "it", CODEC, replace(SAMPLING, max_seconds=limit))
            assert fewest % 2 == most % 2 == 0
            assert 0 <= fewest <= most
            assert 2 <= most <= max(2, limit * 50)


def test_an_unknown_language_has_wide_bounds():
    """Twenty Chinese characters are read in 4 to 8 s. Fails with the bounds of an alphabet."""
    chinese = "今天天气很好我们一起去公园散步然后吃午饭吧"
    fewest, most = seconds(chinese, "zh")
    assert fewest < 2
    assert most > 12


def test_no_spoken_sentence_would_be_cut_or_dragged_on(espeak_store):
    """Read at 240 words a minute. All 478 recordings: experiments/speech_bounds."""
    store = TokenStore(espeak_store)
    rows = store.rows("train")[:]
    assert len(rows["text"]) == 3
    for text, codes in zip(rows["text"], rows["codes"], strict=True):
        fewest, most = code_bounds(str(text), "it", store.codec, SAMPLING)
        assert fewest * 1.2 < len(codes) < most / 2


def test_seeds_of_tries_differ_and_keep_in_range():
    """Fails for ``seed + attempt``: the second try of one seed would be the first of the next."""
    seeds = [retry_seed(seed, attempt) for seed in (0, 1, 2, 2**32 - 1) for attempt in range(50)]
    assert seeds[::50] == [0, 1, 2, 2**32 - 1]
    assert len(set(seeds)) == len(seeds)
    assert all(isinstance(seed, int) and 0 <= seed < 2**32 for seed in seeds)
    assert 0.4 < np.mean(seeds) / 2**32 < 0.6
    assert seeds == [retry_seed(seed, attempt) for seed in (0, 1, 2, 2**32 - 1) for attempt in range(50)]


@pytest.mark.parametrize("text", ["", "   ", " … ", "😀🎉", "?!", "<|s_1|>", "\u200b"])
def test_a_text_without_letters_is_refused(text):
    with pytest.raises(UserError, match="nothing to say; pass text with letters"):
        require_speakable(text, "it")


def test_a_text_in_a_script_that_the_model_never_read_is_refused():
    """Fails when the share of letters is not looked at, or a model of unknown languages refuses Chinese."""
    for text in ("你好，今天天气怎么样？", "Привет, как дела?", "Γεια σου", "你好你好 ok"):
        with pytest.raises(UserError, match=r"letters that the checkpoint's language \(it\) does not have"):
            require_speakable(text, "it", trained=("it",))
        assert require_speakable(text, "it") != ""
        assert require_speakable(text, "zh", trained=("it", "zh")) != "", "a trained language without an alphabet"
    for text in ("Grüße aus Łódź", "Ho visto la mostra su 北京", "Ciao!", "Ho 3 gatti."):
        assert require_speakable(text, "it", trained=("it",))
    assert require_speakable("żółć", "it", trained=("it", "pl"))


@pytest.mark.parametrize("text", ["a" * 100_000, "ciao " * 20_000, "1" * 100_000, "12:30 " * 16_000])
def test_a_very_long_text_is_bounded_soon(text):
    started = time.perf_counter()
    spoken = require_speakable(text, "it", trained=("it",))
    assert seconds(spoken)[1] == 20
    assert time.perf_counter() - started < 20


def test_a_very_long_text_is_not_quoted_whole():
    with pytest.raises(UserError, match=r"\(100,000 characters\) has nothing to say") as raised:
        require_speakable("😀" * 100_000, "it")
    assert len(str(raised.value)) < 200
