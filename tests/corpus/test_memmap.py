"""Memmap corpora of the first LLaSA trainers, written here as their scripts write them, with Llama 3's tokenizer."""

from __future__ import annotations

import json
import pickle
import resource
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from llasa.codec.codec2 import Codec2
from llasa.corpus.memmap import ADDED_TOKENS, LlasaMemmapSource, load_tokenizer
from llasa.corpus.run import preprocess
from llasa.corpus.store import TokenStore
from llasa.entry import compose_config
from llasa.errors import RejectedRow, UserError
from llasa.tokens.vocabulary import MARKERS, extend_tokenizer, speech_token
from tests.corpus.recordings import speech_like
from tests.tokens.llama3 import llama3_tokenizer

LENGTH = 2048
TEXTS = [
    "Ciao, come stai?",
    "  Perché  l'ho detto : « sì » , 3,5 kg !",
    'Zażółć gęślą jaźń 😀 — "日本語" <|s_5|',
    "a",
    "Il 25 aprile 1945.",
]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> dict[str, Path]:
    """Folders: Llama 3's own tokenizer, with the markers alone, and with all speech tokens as published."""
    folder = tmp_path_factory.mktemp("tokenizers")
    tokenizer = llama3_tokenizer()
    tokenizer.save_pretrained(folder / "plain")
    for name, codes in {"markers": 0, "llasa": 65536}.items():
        extend_tokenizer(tokenizer, codes)
        tokenizer.save_pretrained(folder / name)
    return {name: folder / name for name in ("plain", "markers", "llasa")}


@pytest.fixture(scope="module")
def llasa(tokenizers):
    return load_tokenizer(str(tokenizers["llasa"])).tokenizer


def codes_of(seed: int, count: int) -> np.ndarray:
    codes = np.random.default_rng(seed).integers(0, 65536, count)
    codes[:2] = [0, 65535][:count]
    return codes


def written_row(tokenizer, text: str, codes, length: int = LENGTH, pad: int = 128001) -> list[int]:
    """create_dataset.py of the blog post: too long an example loses the end of its text."""
    text_ids = tokenizer.encode(f"{MARKERS[2]}{text}{MARKERS[3]}", add_special_tokens=False)
    speech_ids = tokenizer.convert_tokens_to_ids([MARKERS[4], *(f"<|s_{code}|>" for code in codes), MARKERS[5]])
    text_ids = text_ids[: length - len(speech_ids)]
    assert len(speech_ids) <= length
    return text_ids + speech_ids + [pad] * (length - len(text_ids) - len(speech_ids))


def cut_row(tokenizer, text: str, codes, length: int = LENGTH) -> list[int]:
    """get_memmap_from_token.py and the first create_dataset.py: too long an example loses its end."""
    return written_row(tokenizer, text, codes, length + len(codes) + 500)[:length]


def chat_row(tokenizer, text: str, codes, length: int = LENGTH) -> list[int]:
    """What train_tts.py makes of a row, if that is what was kept."""
    row = written_row(tokenizer, text, codes, length)
    start = row.index(128260)
    end = row.index(128261)
    chat = [
        {"role": "user", "content": f"Convert the text to speech:{MARKERS[2]}"},
        {"role": "assistant", "content": MARKERS[4]},
    ]
    ids = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False, date_string="26 Jul 2024")
    for marker, piece in ((128258, row[:start]), (128260, row[start : end + 1])):
        place = ids.index(marker)
        ids = [*ids[:place], *piece, *ids[place + 1 :]]
    return ids[:length] + [128009] * (length - len(ids))


def write_memmap(folder: Path, name: str, rows) -> Path:
    """As all of them do: int32 on disk without a header, the shape beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = np.array(rows)
    array = np.memmap(folder / f"{name}.memmap", dtype="int32", mode="w+", shape=rows.shape)
    array[:] = rows
    array.flush()
    np.save(folder / f"{name}_shape.npy", rows.shape)
    return folder / f"{name}.memmap"


def source(path: Path, tokenizer: Path, **changes) -> LlasaMemmapSource:
    return LlasaMemmapSource(path=str(path), tokenizer=str(tokenizer), language="it", **changes)


def test_the_tokens_are_those_of_our_vocabulary():
    assert (*MARKERS, speech_token(0)) == ADDED_TOKENS


@pytest.mark.parametrize("pad", [128001, 128009])
@pytest.mark.parametrize("tokenizer", ["plain", "markers", "llasa"])
def test_text_and_codes_come_back(tokenizers, llasa, tokenizer, pad, tmp_path):
    counts = [1, 500, 3, 2, 1999]
    rows = [
        written_row(llasa, text, codes_of(i, count), pad=pad)
        for i, (text, count) in enumerate(zip(TEXTS, counts, strict=True))
    ]
    write_memmap(tmp_path, "train_input_ids", rows)
    write_memmap(tmp_path, "val_input_ids", rows[:1])
    write_memmap(tmp_path, "test_input_ids", rows[3:])
    read = source(tmp_path, tokenizers[tokenizer])
    assert read.splits() == {"train": 5, "validation": 1, "test": 2}
    for i in (4, 0, 2, 1, 3):
        row = read.row("train", i)
        assert row.text == TEXTS[i]
        np.testing.assert_array_equal(row.codes, codes_of(i, counts[i]))
        assert (row.id, row.speaker, row.language) == (f"train_input_ids-{i}", "", "it")
    assert read.row("validation", 0).text == TEXTS[0]
    assert [read.row("test", i).text for i in (0, 1)] == TEXTS[3:]
    assert [(number, fetch().text) for number, fetch in read.rows("train", 1, 4)] == list(enumerate(TEXTS))[1:4]
    facts = read.describe()
    assert (facts["speech_start"], facts["first_code"]) == (128260, 128264)


def test_the_last_row_that_fits_is_whole(tokenizers, llasa, tmp_path):
    text_ids = len(llasa.encode(TEXTS[0], add_special_tokens=False))
    codes = codes_of(1, LENGTH - text_ids - 4)
    row = written_row(llasa, TEXTS[0], codes)
    assert row[-1] == 128261
    write_memmap(tmp_path, "train_input_ids", [row])
    read = source(tmp_path, tokenizers["plain"]).row("train", 0)
    assert read.text == TEXTS[0]
    np.testing.assert_array_equal(read.codes, codes)


def test_rows_inside_a_chat_template(tokenizers, llasa, tmp_path):
    rows = [chat_row(llasa, text, codes_of(i, 50)) for i, text in enumerate(TEXTS)]
    assert rows[0][0] == 128000
    write_memmap(tmp_path, "train_input_ids", rows)
    read = source(tmp_path, tokenizers["plain"])
    for i, text in enumerate(TEXTS):
        assert read.row("train", i).text == text
        np.testing.assert_array_equal(read.row("train", i).codes, codes_of(i, 50))


PARTS = {
    "ranks": [f"_rank{r}_partial{p}_input_ids" for r in (0, 2, 10) for p in (0, 1, 12)],
    "ranks with more in the name": ["_rank0_partial0_a_input_ids", "_rank0_partial0_b_input_ids"],
    "numbers": [f"_input_ids_{i}" for i in range(12)],
}


@pytest.mark.parametrize("form", PARTS)
def test_parts_are_read_in_natural_order(tokenizers, llasa, form, tmp_path):
    texts, names = [], PARTS[form]
    for i, name in enumerate(names):
        mine = [f"parte {i} riga {j}" for j in range(i % 3 + 1)]
        write_memmap(tmp_path, f"train{name}", [written_row(llasa, text, [i, 7], 64) for text in mine])
        texts += [(f"train{name}-{j}", text, i) for j, text in enumerate(mine)]
    write_memmap(tmp_path, "dev_input_ids", [written_row(llasa, "di prova", [1], 32)])
    (tmp_path / "notes.memmap").write_bytes(b"not ours")
    read = source(tmp_path, tokenizers["plain"])
    assert read.splits() == {"train": len(texts), "validation": 1}
    rows = [read.row("train", i) for i in range(len(texts))]
    assert [(row.id, row.text, row.codes[0]) for row in rows] == texts
    assert read.row("validation", 0).text == "di prova"
    assert [name for name, _, _ in read.describe()["files"]["train"]] == [f"train{name}" for name in names]


def test_a_part_without_rows_is_passed_over(tokenizers, llasa, tmp_path):
    for part, text in ((0, "primo"), (2, "terzo")):
        write_memmap(tmp_path, f"train_input_ids_{part}", [written_row(llasa, text, [1], 16)])
    (tmp_path / "train_input_ids_1.memmap").touch()
    np.save(tmp_path / "train_input_ids_1_shape.npy", (0, 16))
    read = source(tmp_path, tokenizers["plain"])
    assert [read.row("train", i).text for i in range(read.splits()["train"])] == ["primo", "terzo"]
    assert len(read.describe()["fingerprint"]) == 16


def test_folders_of_the_public_corpus(tokenizers, llasa, tmp_path):
    """Each with its own train and val, of which a pattern chooses."""
    for name in ("emilia_en_1", "emilia_en_10", "emilia_en_2", "emilia_zh_1"):
        write_memmap(tmp_path / name, "train_input_ids", [written_row(llasa, name, [1], 32)] * 2)
        write_memmap(tmp_path / name, "val_input_ids", [written_row(llasa, f"{name} val", [1], 32)])
    read = source(tmp_path, tokenizers["plain"], folders="emilia_en_*")
    assert read.splits() == {"train": 6, "validation": 3}
    assert [read.row("validation", i).text for i in range(3)] == [f"emilia_en_{i} val" for i in (1, 2, 10)]
    assert read.row("train", 3).id == "emilia_en_2/train_input_ids-1"
    assert source(tmp_path, tokenizers["plain"], folders="*").splits() == {"train": 8, "validation": 4}
    for folders, hint in ((None, "pass dataset.folders="), ("emilia_de_*", "in folders 'emilia_de_.'")):
        with pytest.raises(UserError, match=hint):
            source(tmp_path, tokenizers["plain"], folders=folders)


def test_limit_keeps_the_first_rows_of_each_split(tokenizers, llasa, tmp_path):
    for part in range(3):
        write_memmap(tmp_path, f"train_input_ids_{part}", [written_row(llasa, f"numero {part}", [1], 32)] * 2)
    write_memmap(tmp_path, "test_input_ids", [written_row(llasa, "prova", [1], 32)])
    assert source(tmp_path, tokenizers["plain"], limit=3).splits() == {"train": 3, "test": 1}
    assert source(tmp_path, tokenizers["plain"], limit=99).splits() == {"train": 6, "test": 1}
    with pytest.raises(UserError, match=r"dataset\.limit=0 is not valid"):
        source(tmp_path, tokenizers["plain"], limit=0)


# --- rows that cannot be used ----------------------------------------------------------------------------------------


def damaged_rows(llasa) -> list[tuple[str, list[int]]]:
    """Reason and row. ``A B C D`` below: the four markers that a row has."""
    a, b, c, d, code = 128258, 128259, 128260, 128261, 128264
    words = llasa.encode("due parole", add_special_tokens=False)
    long = "parola " * 40
    return [
        ("truncated_codes", cut_row(llasa, "testo", range(200), 100)),
        ("truncated_codes", cut_row(llasa, "testo", range(200), 205)),  # all codes are there, their end is not
        ("truncated_codes", [a, *words, b, c]),
        ("truncated_text", written_row(llasa, long, range(80), 100)),
        ("empty_text", written_row(llasa, long, range(98), 100)),  # nothing of the text is left
        ("no_speech", [128000, *words, 128001]),
        ("no_speech", [a, *words, b, 128256, *words, 128257]),
        ("no_speech", [a, *words, b, c, d]),
        ("no_speech", [128001] * 64),
        ("no_speech", [0] * 64),  # a file that was never filled
        ("malformed_row", [a, *words, b, c, code, d, a, *words, b, c, code, d]),
        ("malformed_row", [a, *words, b, c, code, d, code, code]),
        ("malformed_row", [c, code, d, a, *words, b]),
        ("malformed_row", [a, *words, b, d, c, code]),
        ("malformed_row", [a, *words, c, code, d, b]),
        ("malformed_row", [a, *words, code, b, c, code, d]),
        ("malformed_row", [a, *words, 128009, b, c, code, d]),
        ("malformed_row", [a, *words, -5, b, c, code, d]),
        ("malformed_row", [a, *words, 2_000_000_000, b, c, code, d]),
        ("broken_codes", [a, *words, b, c, code, 128263, d]),
        ("broken_codes", [a, *words, b, c, -1, code, d]),
        ("broken_codes", [a, *words, b, c, *words, d]),
    ]


@pytest.mark.parametrize("tokenizer", ["plain", "llasa"])
def test_rows_that_were_cut_or_damaged_are_refused_alone(tokenizers, llasa, tokenizer, tmp_path):
    cases = damaged_rows(llasa)
    good = written_row(llasa, "Va bene così.", [3, 1, 2], 256)
    rows = [row + [128001] * (256 - len(row)) if len(row) < 100 else row for _, row in cases]
    lengths = {len(row) for row in rows}
    assert lengths > {100, 256}
    for length in sorted(lengths):  # a cut row fills its row: each length has a file of its own
        write_memmap(tmp_path, f"train_input_ids_{length}", [row for row in rows if len(row) == length])
    write_memmap(tmp_path, "train_input_ids_999", [good])
    read = source(tmp_path, tokenizers[tokenizer])
    reasons = [(reason, len(row)) for (reason, _), row in zip(cases, rows, strict=True)]
    expected = [reason for length in sorted(lengths) for reason, mine in reasons if mine == length]
    refused = []
    for index in range(len(rows)):
        with pytest.raises(RejectedRow) as caught:
            read.row("train", index)
        refused.append(caught.value.reason)
        assert caught.value.detail
    assert refused == expected
    assert read.row("train", len(rows)).text == "Va bene così."


# --- files that cannot be used ---------------------------------------------------------------------------------------


def shape(folder: Path, value) -> None:
    np.save(folder / "train_input_ids_shape.npy", value)


def cut(folder: Path, size: int) -> None:
    with open(folder / "train_input_ids.memmap", "r+b") as file:
        file.truncate(size)


BREAK = {
    "no shape": (lambda f: (f / "train_input_ids_shape.npy").unlink(), "has no train_input_ids_shape.npy beside it"),
    "more rows": (lambda f: shape(f, (4, 64)), "has 768 bytes, 4 rows of 64 ids are 1,024"),
    "fewer rows": (lambda f: shape(f, (2, 64)), "has 768 bytes, 2 rows of 64 ids are 512"),
    "one number": (lambda f: shape(f, (192,)), r"holds no number of rows and length of a row: \[192\]"),
    "no rows": (lambda f: shape(f, (-3, -64)), "holds no number of rows"),
    "fractions": (lambda f: shape(f, (3.0, 64.0)), "holds no number of rows"),
    "objects": (lambda f: shape(f, np.array([{}, 1])), r"_shape\.npy is damaged"),
    "no array": (lambda f: (f / "train_input_ids_shape.npy").write_text("version https://git-lfs"), "is damaged"),
    "empty shape": (lambda f: (f / "train_input_ids_shape.npy").write_bytes(b""), "is damaged"),
    "half a download": (lambda f: cut(f, 700), "has 700 bytes, 3 rows of 64 ids are 768"),
    "empty file": (lambda f: cut(f, 0), "has 0 bytes"),
}


@pytest.mark.parametrize("damage", BREAK)
def test_files_that_do_not_fit_their_shape_are_refused(tokenizers, llasa, damage, tmp_path):
    write_memmap(tmp_path, "train_input_ids", [written_row(llasa, "uno", [1], 64)] * 3)
    assert source(tmp_path, tokenizers["plain"]).splits() == {"train": 3}
    change, message = BREAK[damage]
    change(tmp_path)
    with pytest.raises(UserError, match=rf"{message}.*; download or make both files again"):
        source(tmp_path, tokenizers["plain"])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("train_input_ids", "train_rank0_partial0_input_ids"),
        ("train_input_ids_0", "train_input_ids"),
        ("val_input_ids", "dev_input_ids"),
    ],
)
def test_a_split_in_two_forms_is_refused(tokenizers, llasa, first, second, tmp_path):
    """The trainers take one form silently; with both, rows would come twice."""
    for name in (first, second):
        write_memmap(tmp_path, name, [written_row(llasa, "uno", [1], 64)])
    with pytest.raises(UserError, match=r"holds the split (train|validation) twice, .*; move one of them away"):
        source(tmp_path, tokenizers["plain"])


def test_places_without_such_files_are_refused(tokenizers, tmp_path):
    with pytest.raises(UserError, match=r"has no files SPLIT_input_ids\.memmap"):
        source(tmp_path, tokenizers["plain"])
    with pytest.raises(UserError, match=r"there is no folder at .*; pass dataset\.path="):
        source(tmp_path / "none", tokenizers["plain"])
    with pytest.raises(UserError, match=r"not from memory://.*; download them first"):
        LlasaMemmapSource(path="memory://corpus", tokenizer="x", language="it")


@pytest.mark.parametrize("name", ["missing", "nobody/nothing", "empty"])
def test_a_tokenizer_that_is_not_there_is_refused_before_a_store_is_planned(llasa, name, tmp_path):
    write_memmap(tmp_path / "corpus", "train_input_ids", [written_row(llasa, "uno", [1], 64)])
    (tmp_path / "empty").mkdir()
    place = name if "/" in name else tmp_path / name
    read = source(tmp_path / "corpus", place)
    with pytest.raises(UserError, match=r"cannot load the tokenizer .*; pass dataset\.tokenizer="):
        read.describe()
    with pytest.raises(UserError, match=r"dataset\.tokenizer=None is not valid"):
        LlasaMemmapSource(path=str(tmp_path / "corpus"), tokenizer=None, language="it")


# --- identity and size -----------------------------------------------------------------------------------------------


def test_the_description_changes_with_the_corpus_and_not_with_its_place(tokenizers, llasa, tmp_path):
    def described(folder: str, texts: list[str], **changes) -> dict:
        write_memmap(tmp_path / folder, "train_input_ids", [written_row(llasa, text, [1], 64) for text in texts])
        return source(tmp_path / folder, tokenizers["plain"], **changes).describe()

    first = described("a", ["uno", "due", "tre"])
    assert json.loads(json.dumps(first)) == first
    assert first["files"] == {"train": [["train_input_ids", 3, 64]]}
    assert described("b", ["uno", "due", "tre"]) == first
    others = [
        described("c", ["uno", "due", "quattro"]),
        described("d", ["zero", "due", "tre"]),
        described("e", ["uno", "sei", "tre"]),
        described("f", ["uno", "due"]),
        described("g", ["uno", "due", "tre"], limit=2),
    ]
    assert first not in others
    assert len({other["fingerprint"] for other in others[:4]} | {first["fingerprint"]}) == 5


def test_a_source_goes_to_another_process_without_its_rows(tokenizers, llasa, tmp_path):
    write_memmap(tmp_path, "train_input_ids", [written_row(llasa, "uno", [1])] * 50)
    read = source(tmp_path, tokenizers["plain"])
    read.row("train", 3)
    packed = pickle.dumps(read)
    assert len(packed) < 2000
    assert pickle.loads(packed).row("train", 49).text == "uno"


def test_memory_does_not_grow_with_the_file(tokenizers, llasa, tmp_path):
    """1 GB, of which all but a few rows are holes."""
    rows = 1_000_000_000 // (4 * LENGTH)
    write_memmap(tmp_path, "train_input_ids", [written_row(llasa, f"riga {i}", [i + 1]) for i in range(3)])
    with open(tmp_path / "train_input_ids.memmap", "r+b") as file:
        file.truncate(rows * 4 * LENGTH)
        file.seek((rows - 1) * 4 * LENGTH)
        file.write(np.array(written_row(llasa, "in fondo", [9]), dtype="<i4").tobytes())
    np.save(tmp_path / "train_input_ids_shape.npy", (rows, LENGTH))
    load_tokenizer(str(tokenizers["plain"]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    try:
        read = source(tmp_path, tokenizers["plain"])
        read.describe()
        for index in range(3, rows - 1, 97):
            with pytest.raises(RejectedRow, match="no_speech"):
                read.row("train", index)
        assert [read.row("train", i).text for i in (0, 2, rows - 1)] == ["riga 0", "riga 2", "in fondo"]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5e6
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000  # KiB; 10 MB of 1 GB were read


# --- into a store ----------------------------------------------------------------------------------------------------


def test_preprocess_makes_a_store_of_it(tokenizers, llasa, tmp_path, capsys):
    """With codes of a real codec; what the codec cannot have made is rejected there."""
    codec = Codec2()
    clips = codec.encode(
        [speech_like(seconds, seed).astype(np.float32) for seed, seconds in enumerate((0.8, 1.1, 0.9))]
    )
    texts = ["Ho 3 gatti.", "Perché no?", "Va bene."]
    rows = [written_row(llasa, text, codes) for text, codes in zip(texts, clips, strict=True)]
    other_codec = written_row(llasa, "Non di questo codec.", codes_of(0, 400))
    cut_off = cut_row(llasa, "Troppo lungo.", np.tile(clips[0], 20))
    write_memmap(tmp_path / "corpus", "train_rank0_partial0_input_ids", [rows[0], other_codec, cut_off])
    write_memmap(tmp_path / "corpus", "train_rank1_partial0_input_ids", [rows[1]])
    write_memmap(tmp_path / "corpus", "val_input_ids", [rows[2]])
    overrides = [
        "dataset=llasa_memmap",
        f"dataset.path={tmp_path}/corpus",
        f"dataset.tokenizer={tokenizers['llasa']}",
        "lang=it",
        "codec=codec2",
        f"store={tmp_path}/store",
    ]
    manifest = preprocess(compose_config("preprocess", overrides))
    assert manifest["dropped"] == {"broken_codes": 1, "truncated_codes": 1}
    store = TokenStore(tmp_path / "store")
    stored = list(store.rows("train"))
    assert [row["text"] for row in stored] == ["Ho tre gatti.", "Perché no?"]  # the spoken form, as of any corpus
    for row, codes in zip(stored, clips[:2], strict=True):
        np.testing.assert_array_equal(row["codes"], codes)
        assert row["seconds"] == pytest.approx(len(codes) / codec.spec.tokens_per_second)
    np.testing.assert_array_equal(store.rows("validation")[0]["codes"], clips[2])
    assert store.manifest["source"]["files"]["train"][1] == ["train_rank1_partial0_input_ids", 1, LENGTH]
    capsys.readouterr()
    preprocess(compose_config("preprocess", overrides))
    assert "nothing to do" in capsys.readouterr().out


def test_threads_share_one_tokenizer(llasa, monkeypatch):
    """The rows of a shard are asked for by several threads at once."""
    import transformers

    asked = []

    def load(name):
        asked.append(name)
        time.sleep(0.05)
        return llasa

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", load)
    with ThreadPoolExecutor(4) as pool:
        readers = list(pool.map(load_tokenizer, ["a name of this test"] * 4))
    assert asked == ["a name of this test"]
    assert len(set(map(id, readers))) == 1


def test_opening_a_corpus_imports_no_tokenizers(tmp_path):
    write_memmap(tmp_path, "train_input_ids", [[0] * 64])
    program = (
        "import sys; from llasa.corpus.memmap import LlasaMemmapSource as S\n"
        f"s = S(path={str(tmp_path)!r}, tokenizer='x', language='it')\n"
        "assert s.splits() == {'train': 1}\n"
        "print({'transformers', 'tokenizers', 'torch', 'datasets'} & set(sys.modules))\n"
    )
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.stdout, result.returncode) == ("set()\n", 0), result.stderr
