"""A held-out split for a corpus without one: nobody is on both sides, no row is lost, whatever interrupts it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from llasa.config import PreprocessConfig, SplitConfig
from llasa.corpus import split
from llasa.corpus.run import preprocess
from llasa.corpus.split import draw, hash_of, hold_out, in_words
from llasa.corpus.store import TokenStore, plan_shards, read_shard_record, write_manifest, write_shard
from llasa.corpus.verify import verify_store
from llasa.entry import compose_config
from llasa.errors import UserError
from llasa.training.data import Stores
from llasa.types import EncodedUtterance
from tests.corpus.recordings import speech_like, write_audio
from tests.corpus.stores import contents
from tests.model.tiny import CODEC, random_codes


def write_shards(root: Path, speakers: list[str], shard_rows: int = 100, splits: dict[str, int] | None = None) -> list:
    """The shards of a store before its manifest is written, a row for each of ``speakers``."""
    generator = np.random.default_rng(0)
    rows = [
        EncodedUtterance(
            id=f"row-{i}",
            text=f"frase {i}",
            text_given=f"Frase {i}",
            speaker=speaker,
            language="it",
            seconds=0.2,
            codes=random_codes(10, generator).astype(np.uint16),
        )
        for i, speaker in enumerate(speakers)
    ]
    shards = plan_shards(splits or {"train": len(rows)}, shard_rows)
    root.mkdir(parents=True, exist_ok=True)
    for shard in shards:
        write_shard(root, shard, CODEC, rows[shard.start : shard.stop], [], range(shard.start, shard.stop))
    return shards


def cut(root: Path, shards: list, **settings) -> tuple[TokenStore, dict]:
    """The finished store, and what its manifest says of the held-out split."""
    plan = {"codec": CODEC.to_dict(), "source": {"name": "made up"}}
    if not (root / "plan.json").is_file():
        (root / "plan.json").write_text(json.dumps(plan))
    held, facts = hold_out(root, shards, SplitConfig(**settings))
    write_manifest(root, [*shards, *held], plan, {}, facts)
    return TokenStore(root), facts


def ids(store: TokenStore, name: str) -> list[str]:
    return list(store.rows(name)["id"]) if store.manifest["splits"].get(name, {"rows": 0})["rows"] else []


def speakers_of(store: TokenStore, name: str) -> set[str]:
    return set(store.rows(name)["speaker"])


MANY = [f"speaker-{i % 97}" for i in range(1000)]


# --- who is held out -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("share", [0.02, 0.05, 0.2])
def test_no_speaker_is_on_both_sides(tmp_path, share, seed):
    """Fails when rows are chosen in place of speakers, or a shard of train keeps its held-out rows."""
    shards = write_shards(tmp_path, MANY)
    store, facts = cut(tmp_path, shards, heldout=share, seed=seed)
    train, dev = ids(store, "train"), ids(store, "dev")
    assert sorted(train + dev) == sorted(f"row-{i}" for i in range(1000))
    assert speakers_of(store, "train") & speakers_of(store, "dev") == set()
    assert speakers_of(store, "dev") == set(facts["speakers"])
    assert 0.5 * share <= len(dev) / 1000 <= 2 * share
    assert facts["rule"] == "speaker"
    assert (facts["rows"], facts["of_speakers"], facts["from"]) == (len(dev), 97, "train")
    assert facts["share"] == len(dev) / 1000


def test_the_manifest_counts_both_parts_and_the_files_hold_them(tmp_path):
    """By the files alone, as scripts of other people read a store. Fails when the shards of train are not cut."""
    shards = write_shards(tmp_path, MANY)
    store, _ = cut(tmp_path, shards)
    assert store.splits == ["train", "dev"]
    assert store.manifest["rows"] == 1000
    for name in store.splits:
        records = [read_shard_record(file) for file in store.files(name)]
        assert len(records) == 10
        told = store.manifest["splits"][name]
        assert told["rows"] == sum(record.rows for record in records) == len(store.rows(name)) > 0
        assert told["codes"] == 10 * told["rows"]
    assert [sum(read_shard_record(tmp_path / f"{name}/00003.parquet").rows for name in store.splits)] == [100]


def test_another_seed_holds_out_others_and_the_same_seed_the_same(tmp_path):
    found = {}
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        store, facts = cut(tmp_path / name, write_shards(tmp_path / name, MANY), seed=seed)
        found[name] = (contents(store.root), facts["speakers"])
    assert found["one"] == found["two"]
    assert set(found["one"][1]) != set(found["three"][1])


def test_a_corpus_that_grows_moves_no_old_rows(tmp_path):
    """Fails when the choice depends on how many rows or speakers there are, as a shuffle's does."""
    names = [f"speaker-{i % 500}" for i in range(1500)]
    for by in ("speaker", "row"):
        small, _ = cut(tmp_path / f"small-{by}", write_shards(tmp_path / f"small-{by}", names[:1000]), by=by)
        large, _ = cut(tmp_path / f"large-{by}", write_shards(tmp_path / f"large-{by}", names + MANY), by=by)
        old = {f"row-{i}" for i in range(1000)}
        assert set(ids(small, "dev")) == set(ids(large, "dev")) & old
        assert len(ids(large, "dev")) > len(ids(small, "dev")) > 0


def test_stores_in_several_codecs_hold_out_the_same(tmp_path):
    """The hash is of names, not of codes, and shards of other sizes change nothing."""
    parts = {}
    for shard_rows in (7, 1000):
        root = tmp_path / str(shard_rows)
        store, _ = cut(root, write_shards(root, MANY, shard_rows), by="row")
        parts[shard_rows] = ids(store, "dev")
    assert parts[7] == parts[1000] != []


@pytest.mark.parametrize(
    ("speakers", "rule", "reason"),
    [
        ([""] * 1000, "row", "the corpus names no speakers"),
        (["a", "b", "c", "d"] * 250, "row", "fewer than 5 speakers"),
        ([*(["a", "b", "c", "d", "e"] * 80), *[""] * 600], "row", "600 of 1,000 rows have no speaker"),
        (["a", "b", "c", "d", "e"] * 200, "row", "each speaker has 20% of the rows or more"),
        ([f"s{i % 10}" for i in range(1000)], "speaker", ""),  # one of ten: more than asked for, but a speaker
        ([*["a"] * 900, *(f"s{i % 50}" for i in range(100))], "speaker", ""),
    ],
)
def test_rows_are_held_out_where_speakers_cannot_be_and_it_is_said(tmp_path, speakers, rule, reason):
    store, facts = cut(tmp_path, write_shards(tmp_path, speakers))
    assert facts["rule"] == rule
    assert reason in facts.get("reason", "")
    assert bool(reason) == ("reason" in facts)
    assert reason in in_words(facts)
    if rule == "speaker":
        assert speakers_of(store, "train") & speakers_of(store, "dev") == set()
        assert "a" not in speakers_of(store, "dev")
    assert 10 <= facts["rows"] <= (100 if len(set(speakers)) == 10 else 40)


def test_rows_without_a_speaker_stay_in_train(tmp_path):
    store, facts = cut(tmp_path, write_shards(tmp_path, [*[""] * 300, *MANY[:700]]))
    assert facts["rule"] == "speaker"
    assert "" not in speakers_of(store, "dev")
    assert "" in speakers_of(store, "train")


@pytest.mark.parametrize(
    ("speakers", "settings", "reason"),
    [
        (MANY[:60], {}, "2.0% of 60 rows would be fewer than 4"),
        (MANY[:199], {}, "2.0% of 199 rows would be fewer than 4"),
        (MANY, {"by": "off"}, "split.by=off"),
        (MANY, {"heldout": 0.0}, "split.heldout=0"),
        (MANY, {"rows": 3}, "fewer than 4"),
    ],
)
def test_small_corpora_are_trained_on_whole(tmp_path, speakers, settings, reason):
    shards = write_shards(tmp_path, speakers)
    before = contents(tmp_path)
    store, facts = cut(tmp_path, shards, **settings)
    assert facts["rule"] == "none"
    assert reason in facts["reason"]
    assert in_words(facts) == f"no held-out split: {facts['reason']}"
    assert store.splits == ["train"]
    assert len(store.rows("train")) == len(speakers)
    assert {name: content for name, content in contents(tmp_path).items() if name in before} == before


def test_a_corpus_with_a_split_of_its_own_keeps_it(tmp_path):
    shards = write_shards(tmp_path, MANY, splits={"train": 900, "test": 100})
    store, facts = cut(tmp_path, shards)
    assert (facts["rule"], facts["reason"]) == ("none", "the corpus has one of its own")
    assert in_words(facts) == ""
    assert store.splits == ["train", "test"]
    assert len(store.rows("train")) == 900


def test_at_most_so_many_rows(tmp_path):
    for by in ("speaker", "row"):
        store, facts = cut(tmp_path / by, write_shards(tmp_path / by, MANY), heldout=0.2, rows=30, by=by)
        assert 15 <= facts["rows"] == len(store.rows("dev")) <= 30


def test_speakers_that_were_asked_for_and_are_not_there(tmp_path):
    with pytest.raises(UserError, match=r"split\.by='speaker' is not possible: the corpus names 1 speakers; use split"):
        cut(tmp_path, write_shards(tmp_path, ["a"] * 300), by="speaker")


def test_speakers_that_were_asked_for_are_held_out_whatever_they_have(tmp_path):
    store, _ = cut(tmp_path, write_shards(tmp_path, ["a", "b"] * 200), by="speaker")
    assert sorted([speakers_of(store, "train"), speakers_of(store, "dev")], key=sorted) == [{"a"}, {"b"}]


def test_hashes_are_even_and_the_draw_is_what_they_say():
    numbers = np.array([hash_of(f"row-{i}", 3) for i in range(4000)])
    assert abs(np.histogram(numbers, 10, (0, 1))[0] - 400).max() < 80
    groups = {f"row-{i}": 1 for i in range(4000)}
    slow = {name for name, number in zip(groups, numbers, strict=True) if number < 0.05}
    assert draw(groups, 0.05, 200, 400, 3) == slow


# --- what happens to a store -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """36 short recordings of twelve speakers, two of them the same recording."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = ["file_name,text,speaker\n"]
    for i in range(36):
        write_audio(folder / f"{i:02d}.wav", speech_like(0.4, 5 if i == 30 else i, 8_000), 8_000)
        lines.append(f"{i:02d}.wav,Frase numero {i}.,s{i % 12}\n")
    (folder / "metadata.csv").write_text("".join(lines))
    return folder


def config(corpus: Path, store: Path, *overrides: str) -> PreprocessConfig:
    common = [f"dataset.path={corpus}", f"store={store}", "dataset=folder", "lang=it", "codec=codec2", "shard_rows=9"]
    rate = "filters.characters_per_second=null"
    return compose_config("preprocess", [*common, rate, "split.heldout=0.2", *overrides])


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory) -> dict[str, bytes]:
    """The files of a store that nothing interrupted."""
    store = tmp_path_factory.mktemp("whole") / "store"
    preprocess(config(corpus, store))
    assert json.loads((store / "manifest.json").read_text())["heldout"]["rule"] == "speaker"
    assert len(contents(store)) == 3 + 2 * 4
    return contents(store)


def fill(store: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_bytes(content)
    return store


def test_the_rows_are_those_of_a_store_without_a_split(corpus, whole, tmp_path):
    store = TokenStore(fill(tmp_path / "cut", whole))
    preprocess(config(corpus, tmp_path / "uncut", "split.by=off"))
    uncut = {row["id"]: row for row in TokenStore(tmp_path / "uncut").rows("train").with_format(None)}
    both = [row for name in ("train", "dev") for row in store.rows(name).with_format(None)]
    assert Counter(row["id"] for row in both) == Counter(dict.fromkeys(uncut, 1))
    assert all(row == uncut[row["id"]] for row in both)
    assert len(both) == 35  # one was there twice


def test_a_second_run_does_nothing(corpus, whole, tmp_path, capsys):
    fill(tmp_path / "store", whole)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*")}
    preprocess(config(corpus, tmp_path / "store"))
    output = capsys.readouterr().out
    assert "nothing to do" in output
    assert "held out as the split dev: 6 rows (17.1%), all of 2 of the 12 speakers" in output
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*")} == before


def break_off(monkeypatch, writes, config):
    """A run that ends after so many written files."""
    real, left = split.write_table, iter(range(writes))

    def write_or_die(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(split, "write_table", write_or_die)
    with pytest.raises(KeyboardInterrupt):
        preprocess(config)
    monkeypatch.undo()


@pytest.mark.parametrize("writes", range(1, 8))
def test_a_cut_that_is_broken_off_goes_on_to_the_same_bytes(corpus, whole, tmp_path, monkeypatch, writes):
    """After any number of written files. Fails when a shard of train is written before the rows it gives away."""
    break_off(monkeypatch, writes, config(corpus, tmp_path / "store"))
    assert not (tmp_path / "store/manifest.json").exists()
    preprocess(config(corpus, tmp_path / "store"))
    assert contents(tmp_path / "store") == whole


@pytest.mark.parametrize("writes", [1, 2, 3, 5, 8, 11])
def test_a_cut_anew_that_is_broken_off_loses_no_row(corpus, whole, tmp_path, monkeypatch, writes):
    """Fails when the new cut of a shard is written over half of the old one."""
    other = ["split.seed=4", "split.again=true"]
    preprocess(config(corpus, tmp_path / "straight", "split.seed=4"))
    fill(tmp_path / "store", whole)
    break_off(monkeypatch, writes, config(corpus, tmp_path / "store", *other))
    preprocess(config(corpus, tmp_path / "store", *other))
    assert contents(tmp_path / "store") == contents(tmp_path / "straight") != whole


@pytest.mark.parametrize(
    "lost",
    [["train/00001.parquet"], ["dev/00002.parquet"], ["train/00003.parquet", "dev/00000.parquet"], ["manifest.json"],
     ["train/00000.parquet", "manifest.json"]],
)  # fmt: skip
def test_what_is_lost_is_made_again(corpus, whole, tmp_path, lost):
    """Fails when the rows that went to a lost held-out shard are not missed, or duplicates are not found again."""
    fill(tmp_path / "store", whole)
    for name in lost:
        (tmp_path / "store" / name).unlink()
    preprocess(config(corpus, tmp_path / "store"))
    assert contents(tmp_path / "store") == whole


def test_a_damaged_held_out_shard_is_made_again(corpus, whole, tmp_path):
    fill(tmp_path / "store", whole | {"dev/00001.parquet": whole["dev/00001.parquet"][:-20]})
    preprocess(config(corpus, tmp_path / "store"))
    assert contents(tmp_path / "store") == whole


def test_other_settings_do_not_touch_a_finished_store(corpus, whole, tmp_path):
    fill(tmp_path / "store", whole)
    expected = r"was cut with other settings: split\.seed \(0 there, 1 now\); give those of before, or split"
    with pytest.raises(UserError, match=expected):
        preprocess(config(corpus, tmp_path / "store", "split.seed=1"))
    assert contents(tmp_path / "store") == whole


@pytest.mark.parametrize("settings", [["split.name=validation"], ["split.by=row"], ["split.by=off"], ["split.seed=3"]])
def test_a_cut_anew_equals_a_cut_at_once(corpus, whole, tmp_path, settings, monkeypatch):
    """Without a recording being read: they are gone."""
    preprocess(config(corpus, tmp_path / "at once", *settings))
    fill(tmp_path / "store", whole)
    monkeypatch.setattr("llasa.corpus.folder.FolderSource.row", None)
    preprocess(config(corpus, tmp_path / "store", "split.again=true", *settings))
    assert contents(tmp_path / "store") == contents(tmp_path / "at once")
    preprocess(config(corpus, tmp_path / "store", "split.again=true"))  # and back
    assert contents(tmp_path / "store") == whole


def test_an_older_store_stays_as_it_is_until_it_is_asked_for(corpus, whole, tmp_path, capsys):
    preprocess(config(corpus, tmp_path / "store", "split.by=off"))
    manifest = json.loads((tmp_path / "store/manifest.json").read_text())
    del manifest["heldout"]
    (tmp_path / "store/manifest.json").write_text(json.dumps(manifest))
    before = contents(tmp_path / "store")
    preprocess(config(corpus, tmp_path / "store"))
    assert "split.again=true makes one" in capsys.readouterr().out
    assert contents(tmp_path / "store") == before
    preprocess(config(corpus, tmp_path / "store", "split.again=true"))
    assert contents(tmp_path / "store") == whole


def test_held_out_rows_are_proof_read_against_their_recordings(corpus, whole, tmp_path):
    """Fails when a held-out row is looked for in a split that the corpus does not have."""
    fill(tmp_path / "store", whole)
    report = verify_store(config(corpus, tmp_path / "store", "filters.max_foreign_letters=null"))
    assert {row["split"] for row in report["rows"]} == {"train", "dev"}
    assert {row["equal_codes"] for row in report["rows"]} == {1.0}


def test_training_notices_another_cut(corpus, whole, tmp_path):
    """Fails when only counts tell one cut from another: these have as many rows of the same length."""
    fill(tmp_path / "store", whole)
    before = TokenStore(tmp_path / "store")
    preprocess(config(corpus, tmp_path / "store", "split.seed=4", "split.again=true"))
    after = TokenStore(tmp_path / "store")
    assert [s.manifest["splits"]["train"]["codes"] for s in (before, after)] == [2320, 2320]
    assert Stores({"a": before}, ("it",)).facts() != Stores({"a": after}, ("it",)).facts()
