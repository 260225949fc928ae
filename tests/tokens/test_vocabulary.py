import numpy as np
import pytest

from llasa.errors import UserError
from llasa.tokens.byte_tokenizer import SPECIAL_TOKENS, byte_tokenizer
from llasa.tokens.vocabulary import MARKERS, SpeechVocabulary, extend_tokenizer, speech_token
from tests.tokens.llama3 import llama3_tokenizer

# The table of the published checkpoints (HKUSTAudio/Llasa-1B, tokenizer.json).
PUBLISHED_IDS = {
    "<|TEXT_GENERATION_START|>": 128256,
    "<|TEXT_GENERATION_END|>": 128257,
    "<|TEXT_UNDERSTANDING_START|>": 128258,
    "<|TEXT_UNDERSTANDING_END|>": 128259,
    "<|SPEECH_GENERATION_START|>": 128260,
    "<|SPEECH_GENERATION_END|>": 128261,
    "<|SPEECH_UNDERSTANDING_START|>": 128262,
    "<|SPEECH_UNDERSTANDING_END|>": 128263,
    "<|s_0|>": 128264,
    "<|s_65535|>": 193799,
}


def test_llama_extended_with_xcodec2_has_the_published_ids():
    tokenizer = llama3_tokenizer()
    assert len(tokenizer) == 128256
    assert extend_tokenizer(tokenizer, 65536) == 65544
    assert len(tokenizer) == 193800
    assert {name: tokenizer.convert_tokens_to_ids(name) for name in PUBLISHED_IDS} == PUBLISHED_IDS
    vocabulary = SpeechVocabulary.from_tokenizer(tokenizer, 65536)
    assert vocabulary == SpeechVocabulary(128260, 128261, 128264, 65536)
    assert extend_tokenizer(tokenizer, 65536) == 0


@pytest.fixture(scope="module")
def byte_vocabulary():
    tokenizer = byte_tokenizer()
    extend_tokenizer(tokenizer, 13312)
    return tokenizer, SpeechVocabulary.from_tokenizer(tokenizer, 13312)


def test_byte_tokenizer_is_one_token_a_byte_and_loses_nothing(byte_vocabulary):
    tokenizer, _ = byte_vocabulary
    assert len(tokenizer) == 256 + len(SPECIAL_TOKENS) + len(MARKERS) + 13312
    for text in ("Ciao, perché?", "Zażółć gęślą jaźń 😀", " a  b ", ""):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert len(ids) == len(text.encode())
        assert tokenizer.decode(ids) == text


def test_byte_tokenizer_survives_saving(byte_vocabulary, tmp_path):
    from transformers import AutoTokenizer

    tokenizer, vocabulary = byte_vocabulary
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.chat_template == tokenizer.chat_template
    assert SpeechVocabulary.from_tokenizer(loaded, 13312) == vocabulary


def test_codes_and_ids_are_inverse_and_name_the_right_tokens(byte_vocabulary):
    tokenizer, vocabulary = byte_vocabulary
    codes = np.array([0, 1, 4095, 13311], dtype=np.uint16)
    ids = vocabulary.codes_to_ids(codes)
    assert ids.dtype == np.int64
    assert tokenizer.convert_ids_to_tokens(ids.tolist()) == [speech_token(code) for code in codes]
    np.testing.assert_array_equal(vocabulary.ids_to_codes(ids), codes)
    with pytest.raises(AssertionError):
        vocabulary.ids_to_codes(np.array([vocabulary.speech_end]))


def test_a_tokenizer_of_another_codec_is_refused(byte_vocabulary):
    tokenizer, _ = byte_vocabulary
    with pytest.raises(UserError, match=r"no token <\|s_65535\|>"):
        SpeechVocabulary.from_tokenizer(tokenizer, 65536)
    with pytest.raises(UserError, match=r"beyond <\|s_1023\|>"):
        SpeechVocabulary.from_tokenizer(tokenizer, 1024)
    with pytest.raises(UserError, match=r"no token <\|SPEECH_GENERATION_START\|>"):
        SpeechVocabulary.from_tokenizer(byte_tokenizer(), 1024)
