"""Where long text is cut: a table of sentences per language, then what holds for any string."""

import random
import time

import pytest

from llasa.errors import UserError
from llasa.text import LANGUAGES, spoken_form
from llasa.text.chunks import Break, Chunk, sentences, split_text

SENTENCES = [
    ("it", "Il Sig. Rossi ha 3.5 euro, ecc. Poi va via.", 2),
    ("it", "Il dott. A. Manzoni dorme. È così: lo è. Poi basta.", 3),
    ("it", "«Vieni!» disse. «Dove?» Lei rise. E poi... Andò via!", 5),
    ("it", "Vale… sì, vale. (Era tardi.) [Fine.] “Ciao.”", 4),
    ("de", "Wir haben z. B. Äpfel. Dr. Müller kommt am 3. Mai.", 2),
    ("de", "Das kostet 3.5 Euro usw. Danach gehen wir. „Wirklich?“, fragte er.", 3),
    ("en", 'J. R. R. Tolkien wrote it. He said "Go away!" and left. "Really?" she asked.', 3),
    ("en", "(It was late.) Then... nothing. Mr. Smith e.g. agreed at 3.30 p.m.", 3),
    ("es", "¿Cómo estás? ¡Muy bien! El Sr. López vive en EE. UU. desde 1998.", 3),
    ("fr", "M. Dupont dit : « Bonjour ! » Puis il part. Mme Curie rit.", 3),
    ("pt", "O Sr. Silva saiu. A Dra. Lima ficou, etc. E depois?", 3),
    ("nl", "Dhr. Jansen komt bijv. morgen. Hij wacht.", 2),
    ("pl", "To jest np. pies. Prof. Nowak przyszedł.", 2),
    ("zh", "你好。今天天气很好！你呢？“我很好。”他说。", 5),
    ("xx", "Hello world. It has 3.5 stars, U.S. stars. Yes? no.", 3),
]


@pytest.mark.parametrize(("language", "text", "count"), SENTENCES)
def test_sentences(language, text, count):
    """Fails when periods of initials count, when a small letter may begin a sentence, or closing quotes move on."""
    spoken = spoken_form(text, language)
    found = sentences(spoken)
    assert len(found) == count, found
    assert "".join(found).replace(" ", "") == spoken.replace(" ", "")
    assert all(sentence[0] not in ".!?)]" and sentence[-1] in "\"')]”.!?。！？" for sentence in found)


def test_marks_stay_with_their_sentence():
    assert sentences('"Davvero?" (Sì.) ¿Qué? - Ciao! E poi... [Fine.]') == [
        '"Davvero?"',
        "(Sì.)",
        "¿Qué?",
        "- Ciao!",
        "E poi...",
        "[Fine.]",
    ]


def test_paragraphs_and_chapters():
    """Fails when a dropped piece takes its pause with it."""
    text = "Prima.\r\n \r\n🎉\n\n# Capitolo 1\nIl testo\nva avanti.\n* * *\nPoi.\n## 2. Il mare\n\n"
    text += "Fine.\n\n***\n\n#hashtag\n\n😀"
    assert split_text(text, "it", 40) == [
        Chunk("Prima."),
        Chunk("Capitolo uno", Break.CHAPTER, "Capitolo 1"),
        Chunk("Il testo va avanti.", Break.PARAGRAPH),
        Chunk("Poi.", Break.PARAGRAPH),
        Chunk("due. Il mare", Break.CHAPTER, "2. Il mare"),
        Chunk("Fine.", Break.PARAGRAPH),
        Chunk(spoken_form("#hashtag", "it"), Break.PARAGRAPH),
    ]
    untitled = split_text("Prima.\n# 🎉\nDopo.", "it", 40)
    assert untitled == [Chunk("Prima."), Chunk("Dopo.", Break.CHAPTER, "🎉")]


def test_sentences_are_joined_evenly_and_cut_where_it_hurts_least():
    """Fails when joining fills chunks one by one, which leaves a last word alone."""
    text = "Uno due tre. Quattro cinque. Sei. Sette otto."
    assert [chunk.text for chunk in split_text(text, "it", 100)] == [text]
    assert [chunk.text for chunk in split_text(text, "it", 30)] == ["Uno due tre. Quattro cinque.", "Sei. Sette otto."]
    long = "La prima parte è lunga; la seconda, che segue, è più lunga ancora e va avanti"
    assert [(chunk.text, chunk.before) for chunk in split_text(long, "it", 29)] == [
        ("La prima parte è lunga;", Break.NONE),
        ("la seconda, che segue,", Break.COMMA),
        ("è più lunga ancora", Break.COMMA),
        ("e va avanti", Break.NONE),
    ]
    small = "prima frase qui. seconda frase qui. terza frase qui."
    assert [chunk.before for chunk in split_text(small, "it", 20)] == [Break.NONE, Break.SENTENCE, Break.SENTENCE]
    assert [len(chunk.text) for chunk in split_text("a" * 100_000, "it", 40)] == [40] * 2500
    assert [chunk.text for chunk in split_text("今天天气很好，我们去公园。" * 2, "zh", 8)] == [
        "今天天气很好，",
        "我们去公园。",
        "今天天气很好，",
        "我们去公园。",
    ]
    accents = split_text("x̂" * 30, "xx", 7)
    assert [chunk.text for chunk in accents] == ["x̂x̂x̂"] * 10, "an accent stays with its letter"


ALPHABET = (
    *"aeiorsnt", *"AEZ", *"      ", *".,;:!?…", *"-—\"'«»()[]¿¡", *"0123", "\n", "\n\n", "\n# ", "😀", "你", "。",
    "，", "è", "e\u0301", "\u0301", "Sig. ", "z. B. ", "ecc.", "\u200b", "<|eot_id|>",
)  # fmt: skip


@pytest.mark.parametrize("language", [*LANGUAGES, "zh"])
def test_no_letter_is_lost_or_said_twice(language):
    """Fails when any span is dropped, repeated or moved, or when a limit is passed."""
    generator = random.Random(language)
    spoken_chunks = 0
    for _ in range(60):
        text = "".join(generator.choices(ALPHABET, k=generator.randint(1, 300)))
        limit = generator.choice([1, 2, 7, 30, 1000])
        paragraphs = [line for block in paragraphs_of(text) for line in block]
        expected = "".join(character for line in paragraphs for character in spoken_form(line, language))
        try:
            chunks = split_text(text, language, limit)
        except UserError:
            assert not any(character.isalpha() for character in expected)
            continue
        spoken_chunks += len(chunks)
        assert letters("".join(chunk.text for chunk in chunks)) == letters(expected)
        position, plain = 0, "".join(expected.split())
        for chunk in chunks:
            piece = "".join(chunk.text.split())
            position = plain.index(piece, position) + len(piece)
            assert 0 < len(chunk.text) <= limit
            assert chunk.text == chunk.text.strip()
            assert any(character.isalpha() for character in chunk.text)
        assert chunks[0].before is Break.NONE
    assert spoken_chunks > 500


def paragraphs_of(text):
    """The slow twin of the splitter's first step: blocks of lines, titles apart."""
    blocks, block = [], []
    for line in text.splitlines():
        is_title = line.startswith("# ")
        if is_title or not any(character.isalnum() for character in line):
            blocks.append(["\n".join(block)])
            blocks.append([line[2:] if is_title else ""])
            block = []
        else:
            block.append(line)
    return [*blocks, ["\n".join(block)]]


def letters(text):
    return [character for character in text if character.isalpha()]


def test_chunks_are_in_spoken_form():
    """What the synthesizer makes of a chunk is the chunk: its text belongs to its codes."""
    text = "Il 3 maggio 1998 il Sig. Rossi pagò 12,50 € alla Dott.ssa Bianchi, ecc. Alle 14:30 andò via; forse no. " * 3
    for limit in (20, 45, 200):
        for chunk in split_text(text, "it", limit):
            assert spoken_form(chunk.text, "it") == chunk.text


@pytest.mark.parametrize("text", ["", " \n\n ", "…", "😀😀", "***\n\n# 🎉\n\n!?"])
def test_text_without_a_letter_is_a_mistake(text):
    with pytest.raises(UserError, match="nothing to say"):
        split_text(text, "it", 40)


@pytest.mark.parametrize(
    "text",
    ["a" * 100_000, "A. " * 33_000, "a, " * 33_000, "è vero " * 14_000, "«" * 99_999 + "a", "Sì, no; sì: no. " * 6_000],
)
def test_a_hundred_thousand_characters_take_seconds(text):
    started = time.perf_counter()
    assert all(len(chunk.text) <= 45 for chunk in split_text(text, "it", 45))
    assert time.perf_counter() - started < 10
