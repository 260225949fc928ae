"""From a config to the rows it trains on: one store or several, one language or all, in their proportions."""

from dataclasses import replace

import numpy as np
import pytest

from llasa.corpus import store as stores_module
from llasa.corpus.store import TokenStore
from llasa.entry import compose_config
from llasa.errors import UserError
from llasa.packing.lengths import example_lengths
from llasa.tokens.prompt import PromptRules
from llasa.training.data import (
    by_language,
    open_stores,
    packed_rows,
    trained_languages,
    trained_speakers,
    with_speaker_tags,
)
from tests import conftest
from tests.conftest import SMALL_LLAMA, write_toy_store
from tests.model.tiny import CODEC, tiny_speech_model
from tests.training.test_heldout import write_store

PACKED = ["packing.max_length=300", "packing.window=64"]


@pytest.fixture(scope="module")
def prompt():
    return tiny_speech_model().prompt


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two stores: `a` of Italian and German, `b` of Italian alone."""
    root = tmp_path_factory.mktemp("stores")
    write_toy_store(root / "a", count=30, languages=("it", "de", "it"))
    write_toy_store(root / "b", count=12, seed=1)
    return root


def config(*overrides):
    return compose_config("train", [*SMALL_LLAMA, *PACKED, *overrides])


def data_of(prompt, *overrides):
    settings = config(*overrides)
    return packed_rows(settings, open_stores(settings), prompt)


def both(folder):
    return f"stores={{a: {folder}/a, b: {folder}/b}}"


def texts(data, prompt):
    """Ids of the texts and codes of an epoch's examples."""
    return sorted(example.input_ids.tolist() for item in range(data.rows_in(1)) for example in data[item])


def expected(prompt, *parts):
    return sorted(
        prompt.example(str(text), codes).input_ids.tolist()
        for store, language in parts
        for text, codes, spoken in zip(
            *(TokenStore(store).rows("train")[name] for name in ("text", "codes", "language")), strict=True
        )
        if spoken == language
    )


@pytest.mark.parametrize(
    ("lang", "several", "sources"),
    [
        ("it", False, {"it": 20}),
        ("de", False, {"de": 10}),
        ("multilingual", False, {"de": 10, "it": 20}),
        ("it", True, {"a/it": 20, "b/it": 12}),
        ("multilingual", True, {"a/de": 10, "a/it": 20, "b/it": 12}),
    ],
)
def test_sources_are_the_languages_of_the_stores_that_are_asked_for(folder, prompt, lang, several, sources):
    """Fails when another language's rows slip in, or a store is forgotten."""
    place = both(folder) if several else f"store={folder}/a"
    data = data_of(prompt, place, f"lang={lang}")
    assert {source.name: source.num_examples for source in data.sources} == sources
    parts = [(folder / (name.split("/")[0] if several else "a"), name.split("/")[-1]) for name in sources]
    assert texts(data, prompt) == expected(prompt, *parts)
    assert set(trained_languages(data)) == {language for _, language in parts}


def test_stores_make_store_unused(folder):
    assert list(open_stores(config(both(folder), "store=nowhere")).stores) == ["a", "b"]


def test_one_of_several_stores_is_one_store(folder, prompt):
    data = data_of(prompt, f"stores={{only: {folder}/b}}")
    assert [source.name for source in data.sources] == ["it"]


def test_the_mixture_of_the_config_arrives(folder, prompt):
    multilingual = [both(folder), "lang=multilingual"]
    weighted = data_of(prompt, *multilingual, "mixture.weights={a/de: 3, a/it: 1, b/it: 0}")
    assert [source.share for source in weighted.sources] == [0.75, 0.25, 0.0]
    assert trained_languages(weighted) == ("de", "it")
    natural, even = (data_of(prompt, *multilingual, f"mixture.temperature={t}") for t in (1, 1e6))
    assert [source.repeats for source in natural.sources] == pytest.approx([1, 1, 1], abs=1e-12)
    assert [source.share for source in even.sources] == pytest.approx([1 / 3] * 3, abs=1e-5)
    with pytest.raises(UserError, match=r"mixture\.weights names it, which is no source; use a/de, a/it, b/it"):
        data_of(prompt, *multilingual, "mixture.weights={it: 1}")


@pytest.mark.parametrize("mode", ["pack", "group", "pad_to_max"])
def test_the_settings_of_packing_arrive(folder, prompt, mode):
    rows = ["trainer.rows_per_step=8", "trainer.rows_per_device=2", "seed=7"]
    plan = data_of(prompt, f"store={folder}/a", f"packing.mode={mode}", *rows).plan
    assert (plan.mode, plan.max_length, plan.window, plan.group_rows, plan.seed) == (mode, 300, 64, 8, 7)


def test_facts_tell_each_store(folder):
    facts = open_stores(config(both(folder))).facts()
    assert facts.keys() == {"a", "b"}
    assert facts["a"] == {"codec": CODEC.to_dict(), "splits": TokenStore(folder / "a").manifest["splits"]}
    assert facts["a"]["splits"]["train"]["rows"] == 30 != facts["b"]["splits"]["train"]["rows"]


def test_a_second_run_counts_no_tokens_and_a_changed_store_does(tmp_path, prompt, monkeypatch):
    from llasa.packing import lengths

    monkeypatch.setenv("LLASA_CACHE", str(tmp_path / "cache"))
    calls = []
    monkeypatch.setattr(
        lengths, "example_lengths", lambda rows, prompt: (calls.append(len(rows)), example_lengths(rows, prompt))[1]
    )
    write_toy_store(tmp_path / "store", count=20, languages=("it", "de"))
    first = data_of(prompt, f"store={tmp_path}/store")
    again = data_of(prompt, f"store={tmp_path}/store")
    assert calls == [10]
    assert again.plan.fingerprint == first.plan.fingerprint
    data_of(prompt, f"store={tmp_path}/store", "lang=de")
    write_toy_store(tmp_path / "other", count=20, seed=5, languages=("it", "de"))
    data_of(prompt, f"store={tmp_path}/other")
    assert calls == [10, 10, 10]


def test_languages_are_found_in_a_column_of_several_chunks(folder):
    rows = TokenStore(folder / "a").rows("train")
    assert rows.data.column("language").num_chunks > 1
    parts = by_language(rows, ("de", "fr", "it"))
    assert list(parts) == ["de", "it"]
    assert [sorted(set(part["language"])) for part in parts.values()] == [["de"], ["it"]]
    slow = np.flatnonzero([str(language) == "de" for language in rows["language"]])
    assert list(parts["de"]["id"]) == [rows[int(row)]["id"] for row in slow]


def test_stores_of_two_codecs_are_refused(folder, tmp_path, monkeypatch):
    other = replace(CODEC, fingerprint="toy-2")
    monkeypatch.setattr(conftest, "CODEC", other)
    write_toy_store(tmp_path / "c", count=4)
    with pytest.raises(
        UserError, match=r"stores\.a and stores\.c differ in their codec \(.*/a .*toy-1, .*/c .*toy-2\)"
    ):
        open_stores(config(f"stores={{a: {folder}/a, c: {tmp_path}/c}}"))
    monkeypatch.setattr(conftest, "CODEC", replace(CODEC, checkpoint="elsewhere"))
    write_toy_store(tmp_path / "d", count=4)
    assert open_stores(config(f"stores={{a: {folder}/a, d: {tmp_path}/d}}")).codec == CODEC


@pytest.mark.parametrize(
    ("message", "overrides"),
    [
        (r"/b has no lang=de, only it; take stores\.b out", ["STORES", "lang=de"]),
        (r"/b has no lang=fr, only it; pass the store's language", ["store=FOLDER/b", "lang=fr"]),
        (r"there is no token store at nowhere", ["stores={a: nowhere}"]),
        (r"no store of several languages at nowhere; name it with store=, or", ["store=nowhere", "lang=multilingual"]),
        (r"make it with `python preprocess\.py lang=… ", ["stores={a: nowhere}", "lang=multilingual"]),
    ],
)
def test_a_store_that_does_not_suit_is_named(folder, message, overrides):
    places = [both(folder) if o == "STORES" else o.replace("FOLDER", str(folder)) for o in overrides]
    with pytest.raises(UserError, match=message):
        open_stores(config(*places))


def test_a_language_without_rows_to_train_on_is_named(tmp_path, prompt, monkeypatch):
    """The manifest counts the languages of all splits."""
    write_toy_store(tmp_path / "store", count=6)
    manifest = stores_module.read_json(tmp_path / "store/manifest.json")
    stores_module.write_json(tmp_path / "store/manifest.json", manifest | {"languages": ["de", "it"]})
    with pytest.raises(UserError, match=r"the train split of .*/store has nothing in de"):
        data_of(prompt, f"store={tmp_path}/store", "lang=de")


# --- who speaks


def test_tags_are_the_configs_whatever_the_checkpoint_had():
    """Fails when speakers of a model with tags stay in the card of one that is trained without."""
    speech = tiny_speech_model()
    assert not config("store=x").speaker_tags
    tagged = with_speaker_tags(speech, config("store=x", "speaker_tags=true").speaker_tags)
    assert tagged.prompt.rules == tagged.card.rules == PromptRules(speaker_tags=True)
    assert tagged.model is speech.model
    known = replace(tagged, card=tagged.card.with_speakers(["tara"]))
    assert with_speaker_tags(known, True).card.speakers == ("tara",)
    without = with_speaker_tags(known, False)
    assert (without.card, without.prompt.rules) == (speech.card, PromptRules())
    with pytest.raises(UserError, match="speaker_tags"):
        config("store=x", "speaker_tags=maybe")


def test_rows_are_trained_with_the_tags_of_their_speakers(tmp_path):
    """Fails when the store's speakers do not reach the prompt, or the most frequent one is not the first."""
    prompt = with_speaker_tags(tiny_speech_model(), True).prompt
    store = write_store(tmp_path / "store", {"train": 13, "dev": 4}, speakers=("a", "b", "", "b"))
    data = data_of(prompt, f"store={store}")
    rows = TokenStore(store).rows("train")
    assert texts(data, prompt) == sorted(
        prompt.example(str(text), codes, str(speaker)).input_ids.tolist()
        for text, codes, speaker in zip(rows["text"], rows["codes"], rows["speaker"], strict=True)
    )
    assert trained_speakers(data) == ("b", "a")
    assert trained_speakers(data_of(tiny_speech_model().prompt, f"store={store}")) == ()


def test_tags_of_a_store_without_speakers_are_refused(tmp_path):
    store = write_store(tmp_path / "store", {"train": 5}, speakers=("", ":"))
    with pytest.raises(UserError, match=r"speaker_tags=true, but no row of .*/store .* has a speaker; leave"):
        data_of(with_speaker_tags(tiny_speech_model(), True).prompt, f"store={store}")
    assert data_of(tiny_speech_model().prompt, f"store={store}").num_examples == 5
