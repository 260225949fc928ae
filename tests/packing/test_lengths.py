import time

import numpy as np
import pytest
import torch.multiprocessing as multiprocessing

from llasa.corpus.store import TokenStore
from llasa.packing import lengths as module
from llasa.packing.lengths import cache_folder, cached_lengths, example_lengths
from llasa.tokens.byte_tokenizer import byte_tokenizer
from llasa.tokens.prompt import PromptBuilder, PromptRules
from llasa.tokens.vocabulary import SpeechVocabulary, extend_tokenizer
from tests.conftest import write_toy_store
from tests.tokens.llama3 import llama3_tokenizer

TEXTS = ["frase", "", "  due spazi", "Perché? È così! 早安 🙂", "<|eot_id|> e <|s_3|>", "a" * 300]


def prompt(tokenizer=None, **rules):
    tokenizer = tokenizer or byte_tokenizer()
    extend_tokenizer(tokenizer, 64)
    return PromptBuilder(tokenizer, SpeechVocabulary.from_tokenizer(tokenizer, 64), PromptRules(**rules))


def data_set(texts, **columns):
    import datasets

    counts = np.arange(1, len(texts) + 1, dtype=np.int32)
    return datasets.Dataset.from_dict({"text": texts, "num_codes": counts, **columns}).with_format("numpy")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LLASA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lengths"


@pytest.fixture
def counted(monkeypatch):
    """The calls that had to count; the counting itself is the real one."""
    calls = []
    monkeypatch.setattr(
        module, "example_lengths", lambda rows, prompt: (calls.append(1), example_lengths(rows, prompt))[1]
    )
    return calls


def saved(cache):
    return sorted(cache.glob("*.npy"))


@pytest.mark.parametrize(("tokenizer", "batch"), [(byte_tokenizer, 10_000), (byte_tokenizer, 3), (llama3_tokenizer, 4)])
def test_lengths_are_those_of_the_examples(tokenizer, batch, monkeypatch):
    """Fails when a special token's name in a text counts as one token."""
    monkeypatch.setattr(module, "BATCH", batch)
    builder = prompt(tokenizer())
    # what a saved tokenizer may bring, and must have again afterwards
    builder.tokenizer.backend_tokenizer.enable_truncation(5)
    found = example_lengths(data_set(TEXTS), builder)
    assert builder.tokenizer.backend_tokenizer.truncation["max_length"] == 5
    assert not builder.tokenizer.backend_tokenizer.encode_special_tokens
    assert found.dtype == np.int32
    slow = [len(builder.example(text, np.zeros(n + 1, dtype=int)).input_ids) for n, text in enumerate(TEXTS)]
    assert found.tolist() == slow == builder.lengths(TEXTS, np.arange(1, 7)).tolist()


@pytest.mark.parametrize(("tokenizer", "batch"), [(byte_tokenizer, 10_000), (llama3_tokenizer, 4)])
def test_lengths_have_the_speakers_in_them(tokenizer, batch, monkeypatch):
    """Fails when the tag is left out, counted apart from the text, or taken from another batch."""
    monkeypatch.setattr(module, "BATCH", batch)
    builder = prompt(tokenizer(), speaker_tags=True)
    speakers = ["tara", "", "Zoë", "leo: x", "tara", "<|eot_id|>"]
    rows = data_set(TEXTS, speaker=speakers)
    examples = [
        builder.example(text, np.zeros(n + 1, dtype=int), speaker)
        for n, (text, speaker) in enumerate(zip(TEXTS, speakers, strict=True))
    ]
    found = example_lengths(rows, builder).tolist()
    assert found == [len(example.input_ids) for example in examples]
    assert found != example_lengths(rows, prompt(tokenizer())).tolist()


def test_a_selection_of_rows_has_the_lengths_of_its_rows():
    rows, builder = data_set(TEXTS), prompt()
    mine = [5, 0, 3]
    assert example_lengths(rows.select(mine), builder).tolist() == example_lengths(rows, builder)[mine].tolist()


def test_a_second_run_reads_what_the_first_counted(cache, counted):
    rows = data_set(TEXTS)
    first = cached_lengths(rows, prompt(), {"store": "a"})
    assert (len(counted), len(saved(cache))) == (1, 1)
    second = cached_lengths(rows, prompt(), {"store": "a"})
    assert len(counted) == 1
    assert second.dtype == np.int32
    assert second.tolist() == first.tolist() == example_lengths(rows, prompt()).tolist()


def test_whatever_changes_a_length_is_counted_anew(cache, counted):
    rows = data_set(TEXTS)
    cached_lengths(rows, prompt(), {"store": "a"})
    cached_lengths(rows, prompt(), {"store": "b"})
    cached_lengths(rows, prompt(instruction="Read:"), {"store": "a"})
    another = byte_tokenizer()
    another.add_tokens(["frase"])
    cached_lengths(rows, prompt(another), {"store": "a"})
    cached_lengths(data_set(TEXTS, speaker=TEXTS), prompt(speaker_tags=True), {"store": "a"})
    assert len(counted) == len(saved(cache)) == 5


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "foreign", "other rows"])
def test_a_damaged_file_is_ignored_and_written_again(cache, counted, damage):
    """Fails without the check sum: a flipped bit is a length like any other."""
    rows = data_set(TEXTS)
    expected = cached_lengths(rows, prompt(), "a").tolist()
    (path,) = saved(cache)
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[-20] ^= 1
    damaged = {"empty": b"", "cut": content[:-30], "flipped": content, "foreign": b"{}" * 50}.get(damage)
    if damaged is None:
        module.write_lengths(path, np.arange(7, dtype=np.int32))
    else:
        path.write_bytes(damaged)
    assert cached_lengths(rows, prompt(), "a").tolist() == expected
    assert len(counted) == 2
    assert cached_lengths(rows, prompt(), "a").tolist() == expected
    assert len(counted) == 2


def test_a_run_goes_on_where_there_is_no_place_for_a_cache(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLASA_CACHE", str(tmp_path / "file"))
    rows = data_set(TEXTS)
    assert cached_lengths(rows, prompt(), "a").tolist() == example_lengths(rows, prompt()).tolist()


def test_the_folder_is_the_users_unless_it_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("LLASA_CACHE")
    assert cache_folder() == tmp_path / ".cache/llasa/lengths"
    monkeypatch.setenv("LLASA_CACHE", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x/lengths"


def count_and_tell(store, started, results):
    rows, builder, calls, count = TokenStore(store).rows("train"), prompt(), [], module.example_lengths

    def slowly(rows, prompt):
        calls.append(1)
        time.sleep(1)  # the other one is looking for the file by now
        return count(rows, prompt)

    module.example_lengths = slowly
    started.wait()
    results.put((cached_lengths(rows, builder, "a").tolist(), len(calls)))


def test_of_several_processes_one_counts(cache, tmp_path):
    """Fails without the lock: both begin before either has written."""
    store = write_toy_store(tmp_path / "store")
    context = multiprocessing.get_context("fork")
    started, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=count_and_tell, args=(store, started, results)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(calls for _, calls in found) == [0, 1]
    assert found[0][0] == found[1][0] == example_lengths(TokenStore(store).rows("train"), prompt()).tolist()
