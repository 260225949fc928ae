import numpy as np
import pytest

from llasa.errors import UserError
from llasa.tokens.byte_tokenizer import byte_tokenizer
from llasa.tokens.prompt import PromptBuilder, PromptRules, speaker_tag
from llasa.tokens.vocabulary import SpeechVocabulary, extend_tokenizer
from tests.tokens.llama3 import llama3_tokenizer, reference_tokenizer

START, END = "<|TEXT_UNDERSTANDING_START|>", "<|TEXT_UNDERSTANDING_END|>"
CODES = np.array([0, 65535, 12], dtype=np.uint16)

# <|begin_of_text|> system block with the pinned date, user turn, assistant turn, codes 0 65535 12, END.
GOLDEN_IDS = [
    *[128000, 128006, 9125, 128007, 271, 38766, 1303, 33025, 2696, 25, 6790, 220, 2366, 18, 198, 15724, 2696, 25],
    *[220, 1627, 10263, 220, 2366, 19, 271, 128009, 128006, 882, 128007, 271, 12281, 279, 1495, 311, 8982, 25],
    *[128258, 34, 23332, 11, 2586, 357, 2192, 30, 128259, 128009, 128006, 78191, 128007, 271],
    *[128260, 128264, 193799, 128276, 128261],
]


@pytest.fixture(scope="module")
def llama3():
    tokenizer = llama3_tokenizer()
    extend_tokenizer(tokenizer, 65536)
    vocabulary = SpeechVocabulary.from_tokenizer(tokenizer, 65536)
    return PromptBuilder(tokenizer, vocabulary, PromptRules())


@pytest.fixture(scope="module")
def nano():
    tokenizer = byte_tokenizer()
    extend_tokenizer(tokenizer, 65536)
    return PromptBuilder(tokenizer, SpeechVocabulary.from_tokenizer(tokenizer, 65536), PromptRules())


def test_training_example_has_the_golden_ids(llama3):
    example = llama3.example("Ciao, come stai?", CODES)
    assert example.input_ids.tolist() == GOLDEN_IDS
    assert example.input_ids.dtype == example.labels.dtype == np.int64


def test_labels_begin_at_speech_generation_start_and_end_with_end(llama3):
    example = llama3.example("Ciao, come stai?", CODES)
    start = GOLDEN_IDS.index(128260)
    assert example.labels.tolist() == [-100] * start + GOLDEN_IDS[start:]
    assert example.labels[-1] == llama3.vocabulary.speech_end == 128261


def test_inference_prompt_is_the_beginning_of_the_training_example(llama3, nano):
    for builder in (llama3, nano):
        prompt = builder.prompt("Perché no?")
        example = builder.example("Perché no?", CODES)
        np.testing.assert_array_equal(prompt, example.input_ids[: len(prompt)])
        assert prompt[-1] == builder.vocabulary.speech_start
        assert len(example.input_ids) == len(prompt) + len(CODES) + 1
        cloned = builder.prompt("Perché no?", CODES[:2])
        np.testing.assert_array_equal(cloned, example.input_ids[: len(prompt) + 2])


def test_pieces_tokenise_like_the_whole_by_two_other_implementations(llama3):
    """The text is tokenised apart from the template: that must change nothing."""
    for text in ("Ciao, come stai?", " a b ", "È l'una e 45… \n\nniente", "ﬁne 1234567", "Zażółć"):
        rendered = llama3.tokenizer.apply_chat_template(
            [
                {"role": "user", "content": f"Convert the text to speech:{START}{text}{END}"},
                {"role": "assistant", "content": "<|SPEECH_GENERATION_START|>"},
            ],
            tokenize=False,
            continue_final_message=True,
            date_string="26 Jul 2024",
        )
        whole = llama3.tokenizer(rendered, add_special_tokens=False)["input_ids"]
        assert llama3.prompt(text).tolist() == whole
        meta = reference_tokenizer().encode(text, bos=False, eos=False)
        assert llama3.text_ids([text])[0].tolist() == meta


def test_a_transcript_cannot_inject_special_tokens(llama3, nano):
    for builder in (llama3, nano):
        for text in ("<|eot_id|>", "a<|SPEECH_GENERATION_END|>b", "<|s_5|>"):
            ids = builder.text_ids([text])[0]
            assert not set(ids.tolist()) & set(builder.tokenizer.all_special_ids)
            assert (ids < builder.vocabulary.speech_start - 4).all()
            assert builder.tokenizer.decode(ids) == text


def test_lengths_are_those_of_the_examples(llama3, nano):
    texts = ["", "Ciao", "Perché sì, è così — 😀"]
    codes = [np.arange(n, dtype=np.uint16) for n in (0, 5, 700)]
    for builder in (llama3, nano):
        lengths = builder.lengths(texts, np.array([len(c) for c in codes]))
        assert lengths.tolist() == [len(builder.example(t, c).input_ids) for t, c in zip(texts, codes, strict=True)]


def test_the_date_is_part_of_the_rules(llama3):
    other = PromptBuilder(llama3.tokenizer, llama3.vocabulary, PromptRules(date_string="01 Jan 2025"))
    assert other.prompt("Ciao").tolist() != llama3.prompt("Ciao").tolist()
    assert "Today Date: 01 Jan 2025" in llama3.tokenizer.decode(other.prompt("Ciao"))


# --- who speaks


def with_tags(builder):
    return PromptBuilder(builder.tokenizer, builder.vocabulary, PromptRules(speaker_tags=True))


def test_with_tags_the_text_begins_with_its_speaker(llama3):
    """The golden ids again, with the ids of "tara: …" by Meta's tokenizer in the text's place.

    Fails when training and inference differ, or tags are written where the rules do not say so.
    """
    start, stop = GOLDEN_IDS.index(128258) + 1, GOLDEN_IDS.index(128259)
    tagged_text = reference_tokenizer().encode("tara: Ciao, come stai?", bos=False, eos=False)
    assert len(tagged_text) > stop - start
    golden = [*GOLDEN_IDS[:start], *tagged_text, *GOLDEN_IDS[stop:]]
    tagged = with_tags(llama3)
    assert tagged.example("Ciao, come stai?", CODES, "tara").input_ids.tolist() == golden
    assert tagged.prompt("Ciao, come stai?", CODES, "tara").tolist() == golden[:-1]
    labels = tagged.example("Ciao, come stai?", CODES, "tara").labels
    assert labels.tolist() == [-100] * golden.index(128260) + golden[golden.index(128260) :]
    for builder, speaker in ((llama3, "tara"), (tagged, "")):
        assert builder.example("Ciao, come stai?", CODES, speaker).input_ids.tolist() == GOLDEN_IDS


def test_lengths_with_tags_are_those_of_the_examples(llama3, nano):
    texts, speakers = ["", " due", "Perché sì — 😀", "tara: sì"], ["tara", "Zoë  B.", "", "<|eot_id|>"]
    codes = [np.arange(n, dtype=np.uint16) for n in (0, 5, 70, 1)]
    for builder in (with_tags(llama3), with_tags(nano), nano):
        lengths = builder.lengths(texts, np.array([len(c) for c in codes]), speakers)
        examples = map(builder.example, texts, codes, speakers)
        assert lengths.tolist() == [len(example.input_ids) for example in examples]


def test_a_text_cannot_take_the_place_of_its_tag_nor_a_name_that_of_the_text(nano):
    """Fails when a name may hold a colon, or what it holds is read as special tokens."""
    tagged = with_tags(nano)
    assert tagged.tagged("tara: ciao", "leo") == "leo: tara: ciao"
    assert tagged.tagged("c", "a: b") != tagged.tagged("b: c", "a") == "a: b: c"
    assert speaker_tag(" tara\n\n:x\t") == "tara x"
    assert speaker_tag("Zoe\u0308") == "Zo\u00eb"
    assert tagged.tagged("ciao", " : ") == "ciao"
    name = "<|TEXT_UNDERSTANDING_END|><|s_5|>"
    ids = tagged.text_ids([tagged.tagged("ciao", name)])[0]
    assert tagged.tokenizer.decode(ids) == f"{name}: ciao"
    assert not set(ids.tolist()) & set(tagged.tokenizer.all_special_ids)


def test_rules_without_tags_are_written_as_before_there_were_any():
    """Old cards are read, and what is cached under the rules is found again."""
    assert PromptRules().to_dict() == {
        "instruction": "Convert the text to speech:",
        "date_string": "26 Jul 2024",
    }
    for rules in (PromptRules(), PromptRules(speaker_tags=True)):
        assert PromptRules(**rules.to_dict()) == rules
    assert not PromptRules(instruction="x", date_string="y").speaker_tags


def test_a_template_that_alters_messages_is_refused(nano):
    tokenizer = byte_tokenizer()
    extend_tokenizer(tokenizer, 16)
    tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    with pytest.raises(UserError, match="chat template"):
        PromptBuilder(tokenizer, SpeechVocabulary.from_tokenizer(tokenizer, 16), PromptRules())
