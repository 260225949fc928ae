"""Held-out loss and accuracy: against one example at a time and full logits, and without a trace in the training."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

import llasa.training.job
from llasa.config import FinetuneConfig, LoggerConfig
from llasa.corpus.store import plan_shards, write_manifest, write_plan, write_shard
from llasa.entry import compose_config
from llasa.errors import UserError
from llasa.model.attention import needs_flat_rows
from llasa.model.finetune import merged_model
from llasa.packing.collate import PackingCollator
from llasa.tracking import Tracker
from llasa.training.data import open_stores, packed_rows, with_speaker_tags
from llasa.training.heldout import COLUMNS, HeldOutCallback, scoring
from llasa.training.heldout_rows import heldout_rows, sample
from llasa.training.run import train
from llasa.types import EncodedUtterance
from tests.conftest import SMALL_LLAMA
from tests.model.tiny import CODEC, build_from, random_codes, save_tiny, tiny_speech_model
from tests.training.loop import train_in_order
from tests.training.noisy import build_noisy_model
from tests.training.test_resume import rewind, two_processes

SETTINGS = [*SMALL_LLAMA, "optimizer=adamw", "packing.max_length=384", "trainer.rows_per_device=2"]
RUN = [*SMALL_LLAMA, "optimizer=adamw", "packing.max_length=512", "trainer.log_every=1", "trainer.max_steps=6",
       "trainer.rows_per_step=2", "trainer.rows_per_device=1", "checkpoint.every=2", "checkpoint.keep=5",
       "heldout.every=2", "heldout.rows=5"]  # fmt: skip


def write_store(root, splits, languages=("it",), speakers=("a", "b", ""), longest=30, seed=0):
    """A store of the toy codec with random codes; languages and speakers take turns."""
    generator = np.random.default_rng(seed)
    plan = {"codec": CODEC.to_dict(), "source": {"name": "toy"}}
    shards = plan_shards(splits, max(splits.values()))
    write_plan(root, plan)
    for shard in shards:
        rows = [
            EncodedUtterance(
                id=f"{shard.split}-{i}",
                text=f"frase numero {'i' * (i % 7)}",
                text_given="",
                speaker=speakers[i // len(languages) % len(speakers)],
                language=languages[i % len(languages)],
                seconds=length / 50,
                codes=random_codes(length, generator).astype(np.uint16),
            )
            for i, length in enumerate(2 * generator.integers(5, longest, shard.stop))
        ]
        write_shard(root, shard, CODEC, rows, [])
    write_manifest(root, shards, plan, {})
    return root


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("heldout") / "store", {"train": 12, "dev": 14, "test": 3})


@pytest.fixture(scope="module")
def two_languages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two") / "store"
    return write_store(folder, {"train": 12, "dev": 16}, languages=("it", "de"))


def configured(store, *overrides):
    return compose_config("train", [*SETTINGS, f"store={store}", "output_dir=unused", *overrides])


def rows_of(config, prompt):
    stores = open_stores(config)
    return heldout_rows(config, stores, prompt, packed_rows(config, stores, prompt))


def learn(speech, rows, steps=10):
    """Teach the model some of the rows, so that some of its guesses are right."""
    batch = PackingCollator(pad_token_id=0, flatten=needs_flat_rows(speech.attn))(rows)
    optimizer = torch.optim.AdamW(speech.model.parameters(), 1e-2)
    for _ in range(steps):
        speech.model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def one_by_one(model, rows, vocabulary):
    """The tally the slow way: each example alone through a plain Llama, with all its logits."""
    tally = []
    for example in (example for row in rows for example in row):
        with torch.no_grad():
            logits = model.eval()(input_ids=torch.from_numpy(example.input_ids)[None]).logits[0].double()
        counts = dict.fromkeys(COLUMNS, 0.0)
        for position in range(1, len(example.labels)):
            label = int(example.labels[position])
            if label < 0:
                continue
            counts["loss"] -= float(logits[position - 1].log_softmax(0)[label])
            counts["tokens"] += 1
            if vocabulary.first_code <= label < vocabulary.first_code + vocabulary.num_codes:
                counts["codes"] += 1
                counts["right"] += int(logits[position - 1].argmax()) == label
        tally.append([counts[name] for name in COLUMNS])
    return np.array(tally)


def arguments(folder, **settings):
    return TrainingArguments(output_dir=str(folder), use_cpu=True, report_to=[], **settings)


# --- the numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attn", ["sdpa", "sdpa_varlen", "eager"])
def test_the_tally_is_that_of_one_example_at_a_time(store, tmp_path, attn):
    """Fails when examples see each other, when the END (or START) counts as a code, when labels are not shifted, when
    a batch is counted for another one's examples, and when chunks are mixed up."""
    config = configured(store, "heldout.rows=3", "kernels.loss_chunk_size=16")
    speech = tiny_speech_model(attn=attn, spread=0.2)
    rows = rows_of(config, speech.prompt)
    assert len(rows.rows) == 3
    assert all(len(row) > 1 for row in rows.rows)
    learn(speech, rows.rows)
    callback = HeldOutCallback(rows, speech, config, tmp_path, None)
    tally = callback.measure(speech.model, arguments(tmp_path))
    expected = one_by_one(speech.model, rows.rows, speech.vocabulary)
    np.testing.assert_allclose(tally[:, 0], expected[:, 0], rtol=1e-5)
    assert (tally[:, 1:] == expected[:, 1:]).all()
    loss, tokens, right, codes = expected.sum(axis=0)
    assert tokens - codes == 2 * len(tally), "START and END of each"
    assert 0.1 < right / codes < 0.9
    metrics = callback.metrics(tally)
    assert metrics["heldout/loss"] == pytest.approx(loss / tokens, rel=1e-5)
    assert metrics["heldout/accuracy"] == right / codes
    assert metrics["heldout/tokens"] == tokens
    batch = PackingCollator(pad_token_id=0, flatten=needs_flat_rows(attn))(rows.rows)
    assert metrics["heldout/loss"] == pytest.approx(speech.model(**batch).loss.item(), rel=1e-5), "as in training"


def test_the_precision_is_that_of_the_training(store, tmp_path):
    """Fails without autocast: the fp32 loss is further from the training's than the tolerance."""
    config = configured(store)
    speech = tiny_speech_model(attn="sdpa_varlen", spread=0.2)
    rows = rows_of(config, speech.prompt)
    callback = HeldOutCallback(rows, speech, config, tmp_path, None)
    low, high = (
        callback.metrics(callback.measure(speech.model, arguments(tmp_path, bf16=bf16)))["heldout/loss"]
        for bf16 in (True, False)
    )
    batch = PackingCollator(pad_token_id=0, flatten=True)(rows.rows)
    with torch.autocast("cpu", torch.bfloat16):
        trained = speech.model(**batch).loss.item()
    assert abs(low - trained) < 0.2 * abs(high - trained)


@pytest.mark.parametrize("embeddings", ["none", "lora", "full"])
def test_adapters_count(store, tmp_path, embeddings):
    """Fails when the base alone is measured, and with dropout."""
    config = configured(store, "heldout.rows=2")
    finetune = FinetuneConfig(name="lora", rank=4, alpha=8, dropout=0.5, embeddings=embeddings)
    speech = build_from(save_tiny(tmp_path / "base"), finetune)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in speech.model.named_parameters():
        if "lora_B" in name or "lora_embedding_A" in name:
            torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    rows = rows_of(config, speech.prompt)
    speech.model.train()
    tally = HeldOutCallback(rows, speech, config, tmp_path, None).measure(speech.model, arguments(tmp_path))
    expected = one_by_one(merged_model(speech.model), rows.rows, speech.vocabulary)
    with speech.model.disable_adapter():
        base = one_by_one(speech.model.get_base_model(), rows.rows, speech.vocabulary)
    np.testing.assert_allclose(tally[:, 0], expected[:, 0], rtol=1e-4)
    assert np.abs(base[:, 0] - expected[:, 0]).min() > 0.01
    assert (tally[:, 1:] == expected[:, 1:]).all()


def test_languages_and_speakers_add_up_to_the_whole(two_languages, tmp_path):
    """Fails when examples are given another one's language or speaker."""
    config = configured(two_languages, "lang=multilingual")
    speech = tiny_speech_model(attn="sdpa_varlen", spread=0.2)
    rows = rows_of(config, speech.prompt)
    learn(speech, rows.rows)
    tracker = Tracker(tmp_path, LoggerConfig(name="none"), {})
    callback = HeldOutCallback(rows, speech, config, tmp_path, tracker)
    tally = callback.measure(speech.model, arguments(tmp_path))
    metrics = callback.metrics(tally)
    callback.write(7, tally)
    file = json.loads((tmp_path / "heldout/step-7.json").read_text())
    assert (file["step"], file["split"], file["examples"]) == (7, "dev", 16)
    expected = one_by_one(speech.model, rows.rows, speech.vocabulary)
    dev = open_stores(config).stores["store"].rows("dev")
    texts = [speech.tokenizer.decode(example.input_ids) for row in rows.rows for example in row]
    of_example = [next(i for i in range(16) if is_of(dev[i], text)) for text in texts]
    assert sorted(of_example) == list(range(16))
    for groups, column in (("languages", "language"), ("speakers", "speaker")):
        names = np.array([str(dev[i][column]) or "unknown" for i in of_example])
        assert set(file[groups]) == set(names)
        for name, facts in file[groups].items():
            loss, tokens, right, codes = expected[names == name].sum(axis=0)
            assert facts["loss"] == pytest.approx(loss / tokens, rel=1e-5)
            assert facts["accuracy"] == right / codes
            assert (facts["tokens"], facts["codes"]) == (tokens, codes)
        assert sum(facts["tokens"] for facts in file[groups].values()) == file["tokens"] == metrics["heldout/tokens"]
    for language, facts in file["languages"].items():
        assert metrics[f"heldout/loss/{language}"] == facts["loss"]
        assert metrics[f"heldout/accuracy/{language}"] == facts["accuracy"]
    known = [file["speakers"][name]["loss"] for name in ("a", "b")]
    assert metrics["heldout/loss/worst_speaker"] == max(known)
    assert metrics["heldout/loss/best_speaker"] == min(known)
    assert len(known) == 2


def is_of(row, text):
    return "".join(f"<|s_{code}|>" for code in row["codes"]) in text.replace(" ", "")


def test_one_language_and_one_speaker_are_not_told_apart(tmp_path):
    store = write_store(tmp_path / "store", {"train": 3, "dev": 3}, speakers=("a",))
    config, speech = configured(store), tiny_speech_model()
    callback = HeldOutCallback(rows_of(config, speech.prompt), speech, config, tmp_path, None)
    metrics = callback.metrics(callback.measure(speech.model, arguments(tmp_path)))
    assert list(metrics) == ["heldout/loss", "heldout/accuracy", "heldout/tokens"]


def test_a_loss_that_is_no_number_is_null_in_the_file(store, tmp_path):
    config, speech = configured(store), tiny_speech_model()
    callback = HeldOutCallback(rows_of(config, speech.prompt), speech, config, tmp_path, None)
    callback.write(1, np.array([[np.nan, 5, 0, 3]] * 14))
    assert json.loads((tmp_path / "heldout/step-1.json").read_text())["speakers"]["a"]["loss"] is None


# --- which rows ------------------------------------------------------------------------------------------------------


def test_all_runs_of_a_sweep_are_measured_on_the_same_rows(store):
    """Fails when the run's seed, window or mode of packing decides."""
    prompt = tiny_speech_model().prompt
    rows = rows_of(configured(store, "heldout.rows=2"), prompt)
    other = rows_of(
        configured(store, "heldout.rows=2", "seed=5", "packing.mode=group", "packing.window=1", "optimizer.lr=1"),
        prompt,
    )
    assert len(rows.rows) == 2
    assert sum(map(len, rows.rows)) == len(rows.speakers) < 14
    for row, same in zip(rows.rows, other.rows, strict=True):
        assert [example.input_ids.tolist() for example in row] == [example.input_ids.tolist() for example in same]
    assert all(sum(len(example.labels) for example in row) <= 384 for row in rows.rows)


def test_held_out_rows_have_the_tags_of_their_speakers(store):
    """Fails when what is measured is not prompted as what is trained."""
    prompt = with_speaker_tags(tiny_speech_model(), True).prompt
    rows = rows_of(configured(store, "heldout.rows=20"), prompt)
    dev = open_stores(configured(store)).stores["store"].rows("dev")
    expected = [prompt.example(str(row["text"]), row["codes"], str(row["speaker"])).input_ids.tolist() for row in dev]
    assert sorted(example.input_ids.tolist() for row in rows.rows for example in row) == sorted(expected)
    assert set(rows.speakers) == {"a", "b", ""}


def test_long_examples_are_left_out_and_counted(store):
    prompt = tiny_speech_model().prompt
    dev = open_stores(configured(store)).stores["store"].rows("dev")
    lengths = sorted(len(prompt.example(str(row["text"]), row["codes"]).labels) for row in dev)
    rows = rows_of(configured(store, f"packing.max_length={lengths[8]}", "heldout.rows=20"), prompt)
    assert rows.num_dropped == sum(length > lengths[8] for length in lengths) > 0
    assert len(rows.speakers) == len(lengths) - rows.num_dropped
    assert f"{rows.num_dropped} too long" in rows.describe()


def test_sources_have_equal_shares_of_the_sample():
    """Fails when a large language crowds out a small one, and when what a tiny one leaves is not used."""
    lengths = [np.full(1000, 10), np.full(5, 10), np.full(300, 20)]
    chosen = sample(lengths, 1250)
    assert [len(numbers) * length[0] for numbers, length in zip(chosen, lengths, strict=True)] == [600, 50, 600]
    assert all(len(set(numbers.tolist())) == len(numbers) for numbers in chosen)
    assert chosen[0].tolist() != list(range(60)), "not the beginning of the store"


def test_only_what_is_trained_is_measured(tmp_path, two_languages):
    prompt = tiny_speech_model().prompt
    assert set(rows_of(configured(two_languages, "lang=multilingual"), prompt).languages) == {"it", "de"}
    assert set(rows_of(configured(two_languages, "lang=de"), prompt).languages) == {"de"}
    left_out = rows_of(configured(two_languages, "lang=multilingual", "mixture.weights={it: 1, de: 0}"), prompt)
    assert set(left_out.languages) == {"it"}


def test_several_stores_are_measured_by_language(tmp_path, store, two_languages):
    """Each store has its own split; a speaker `a` of one is not the other's."""
    write_store(tmp_path / "third", {"train": 3, "validation": 3}, speakers=("a",))
    stores = f"stores={{one: {store}, two: {two_languages}, three: {tmp_path / 'third'}}}"
    rows = rows_of(configured(store, stores, "lang=multilingual"), tiny_speech_model().prompt)
    assert set(rows.languages) == {"it", "de"}
    assert set(rows.speakers) == {"one/a", "one/b", "two/a", "two/b", "three/a", ""}
    assert rows.split == "dev, validation"
    assert len(rows.languages) == 14 + 16 + 3


def test_the_split_can_be_named(store, tmp_path, toy_store, capsys):
    prompt = tiny_speech_model().prompt
    rows = rows_of(configured(store, "heldout.split=test"), prompt)
    assert (rows.split, len(rows.languages)) == ("test", 3)
    with pytest.raises(UserError, match=r"heldout.split=eval is not in .*; it has train, dev, test"):
        rows_of(configured(store, "heldout.split=eval"), prompt)
    german = write_store(tmp_path / "store", {"train": 2, "dev": 1}, languages=("it", "de"))
    with pytest.raises(UserError, match=r"heldout.split=dev of .* has nothing of de that fits"):
        rows_of(configured(german, "lang=de", "heldout.split=dev"), prompt)
    capsys.readouterr()
    assert rows_of(configured(german, "lang=de"), prompt) is None
    assert f"the held-out split of {german} has nothing of de" in capsys.readouterr().out
    capsys.readouterr()
    assert rows_of(configured(toy_store), prompt) is None
    assert f"no held-out split in {toy_store}: nothing is measured while training" in capsys.readouterr().out
    assert rows_of(configured(toy_store, "heldout.every=0"), prompt) is None
    assert capsys.readouterr().out == ""


# --- beside the training ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("every", "steps"), [(2, [2, 4, 5]), (5, [5]), (9, [5])])
def test_it_is_measured_every_so_often_and_once_at_the_end(store, tmp_path, every, steps):
    config = configured(store, f"heldout.every={every}", "heldout.rows=1")
    speech = tiny_speech_model()
    rows = rows_of(config, speech.prompt)
    tracker = Tracker(tmp_path, LoggerConfig(name="none"), {})
    callback = HeldOutCallback(rows, speech, config, tmp_path, tracker)
    train_in_order(tmp_path, speech.model, [rows.rows[0]] * 5, callbacks=(callback,))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == steps
    assert sorted(path.name for path in (tmp_path / "heldout").iterdir()) == [f"step-{step}.json" for step in steps]
    assert len({line["heldout/loss"] for line in lines}) == len(lines), "weights that have learned meanwhile"
    assert all(line["heldout/seconds"] > 0 for line in lines)
    assert callback.seconds > sum(line["heldout/seconds"] for line in lines) - 0.01


def run(store, folder, *overrides):
    config = compose_config("train", [*RUN, f"store={store}", f"output_dir={folder}", *overrides])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llasa.training.job, "build_for_training", build_noisy_model)
        return train(config)


def lines_with(folder, key):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if key in line]


def without_times(lines):
    of_the_machine = ("seconds", "tokens_per_second", "memory_gb")
    return [{k: v for k, v in line.items() if not k.endswith(of_the_machine)} for line in lines]


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(store, folder)
    return folder


def test_the_training_is_the_same_to_the_last_bit_without_it(store, whole, tmp_path):
    """Fails when the measurement leaves the model in evaluation mode or takes random numbers."""
    run(store, tmp_path / "run", "heldout.every=0")
    assert [line["step"] for line in lines_with(whole, "heldout/loss")] == [2, 4, 6]
    assert not lines_with(tmp_path / "run", "heldout/loss")
    assert without_times(lines_with(tmp_path / "run", "loss")) == without_times(lines_with(whole, "loss"))
    a, b = (load_file(folder / "checkpoint/model.safetensors") for folder in (whole, tmp_path / "run"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert (whole / "best").is_dir()
    assert not (tmp_path / "run/best").exists()


def test_the_model_is_left_as_it_was(store, tmp_path):
    speech = tiny_speech_model()
    speech.model.train()
    speech.model.model.norm.eval()
    forward = speech.model.forward
    with scoring(speech.model) as llama:
        assert not any(module.training for module in llama.modules())
    assert speech.model.forward == forward
    assert [name for name, module in speech.model.named_modules() if not module.training] == ["model.norm"]


def test_a_resumed_run_measures_the_same(store, whole, tmp_path):
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    rewind(folder, 2)
    (folder / "heldout/step-5.json").write_text("{}")  # of a future with another `heldout.every`
    run(store, folder, "resume=true")
    for key in ("loss", "heldout/loss"):
        assert without_times(lines_with(folder, key)) == without_times(lines_with(whole, key))
    files = sorted(path.name for path in (folder / "heldout").iterdir())
    assert files == ["step-2.json", "step-4.json", "step-6.json"]
    for name in files:
        assert (folder / "heldout" / name).read_bytes() == (whole / "heldout" / name).read_bytes()


def run_as_rank(rank, folder, store, *overrides):
    run_plain(store, folder, *overrides)


def run_plain(store, folder, *overrides):
    return train(compose_config("train", [*RUN, f"store={store}", f"output_dir={folder}", *overrides]))


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_processes_measure_what_one_does(store, tmp_path, parallel):
    """Five rows for two processes. Fails when rows are counted twice or not at all, and when sums are not added up;
    with fsdp it hangs when the processes take different numbers of passes."""
    settings = [store, "trainer.max_steps=3"]
    run_plain(settings[0], tmp_path / "one", *settings[1:])
    assert two_processes(run_as_rank, tmp_path / "two", *settings, f"parallel={parallel}") == [0, 0]
    one, two = (lines_with(tmp_path / name, "heldout/loss") for name in ("one", "two"))
    assert [line["step"] for line in two] == [2, 3]
    for key in one[0].keys() - {"heldout/seconds"}:
        assert [line[key] for line in two] == pytest.approx([line[key] for line in one], abs=1e-5), key
    trained = [[line["loss"] for line in lines_with(tmp_path / name, "loss")] for name in ("one", "two")]
    assert trained[1] == pytest.approx(trained[0], abs=1e-5)
    a, b = (load_file(tmp_path / name / "best/model.safetensors") for name in ("one", "two"))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(b[name], a[name], atol=1e-5, rtol=1e-5)
