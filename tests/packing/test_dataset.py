import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from llasa.corpus.store import TokenStore
from llasa.errors import UserError
from llasa.packing.collate import PackingCollator
from llasa.packing.dataset import PackedRows, Source
from llasa.packing.lengths import example_lengths
from llasa.tokens.prompt import PromptBuilder
from tests.conftest import write_toy_store
from tests.model.tiny import tiny_speech_model

MODES = ("group", "pack", "pad_to_max")


@pytest.fixture(scope="module")
def speech():
    return tiny_speech_model()


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    return {
        name: TokenStore(write_toy_store(folder / name, count=count, seed=seed)).rows("train")
        for seed, (name, count) in enumerate([("it", 24), ("de", 10)])
    }


def packed(speech, rows, **settings):
    sources = [Source(name, part, example_lengths(part, speech.prompt)) for name, part in rows.items()]
    return PackedRows(
        sources, speech.prompt, **{"max_length": 300, "window": 16, "seed": 0, "group_rows": 4} | settings
    )


def ids(row):
    return [example.input_ids.tolist() for example in row]


def collator(data, mode, **settings):
    return PackingCollator(pad_token_id=0, length=data.plan.max_length if mode == "pad_to_max" else None, **settings)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("weights", [{}, {"it": 1, "de": 1}])
def test_every_mode_gives_the_losses_of_its_examples_alone(speech, rows, mode, weights):
    """Fails when positions run on into the padding or the next example, and when a label of the padding counts."""
    data = packed(speech, rows, mode=mode, weights=weights)
    batch = [data[item] for item in range(8)]
    tensors = collator(data, mode)(batch)
    assert tensors["input_ids"].shape[1] == 300 or mode != "pad_to_max"
    assert tensors["input_ids"].shape[1] < 300 or mode != "group"
    total, count = 0.0, 0
    with torch.no_grad():
        loss = speech.model(**tensors, num_items_in_batch=torch.tensor(1)).loss.item()
        for example in (example for row in batch for example in row):
            labels = torch.from_numpy(example.labels)
            logits = speech.model(input_ids=torch.from_numpy(example.input_ids)[None], use_cache=False).logits[0]
            total += torch.nn.functional.cross_entropy(logits[:-1], labels[1:], reduction="sum").item()
            count += int((labels[1:] != -100).sum())
    assert count > 250
    assert loss / count == pytest.approx(total / count, abs=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_an_item_has_the_texts_and_codes_of_its_sources_in_the_order_of_the_plan(speech, rows, mode):
    data = packed(speech, rows, mode=mode, weights={"it": 1, "de": 2})
    every = [
        speech.prompt.example(str(text), codes).input_ids.tolist()
        for part in rows.values()
        for text, codes in zip(part["text"], part["codes"], strict=True)
    ]
    assert data.num_dropped == 0
    mixed = 0
    for item in range(len(data)):
        numbers = data.plan.examples(item)
        mixed += (numbers < 24).any() and (numbers >= 24).any()
        assert ids(data[item]) == [every[number] for number in numbers]
    assert (mixed > 3) == (mode == "pack")


@pytest.fixture(scope="module")
def tagged(speech):
    """A prompt with speaker tags, and rows of three speakers, one of whom is not told."""
    import datasets

    rules = replace(speech.prompt.rules, speaker_tags=True)
    counts = np.random.default_rng(0).integers(5, 60, 30)
    data = datasets.Dataset.from_dict(
        {
            "text": [f"frase {'i' * (i % 9)}" for i in range(30)],
            "codes": [[i % 16, 16] * int(count) for i, count in enumerate(counts)],
            "num_codes": (2 * counts).astype(np.int32),
            "speaker": [("tara", "", "leo ", "tara")[i % 4] for i in range(30)],
        }
    ).with_format("numpy")
    rows = {"it": data.select(range(20)), "de": data.select(range(29, 19, -1))}
    return replace(speech, prompt=PromptBuilder(speech.tokenizer, speech.vocabulary, rules)), rows


@pytest.mark.parametrize("mode", MODES)
def test_examples_have_their_speakers_tags(tagged, mode):
    """Fails when the plan's lengths are those without tags, or a row gets the tag of another."""
    speech, rows = tagged
    data = packed(speech, rows, mode=mode)
    every = [
        speech.prompt.example(str(text), codes, str(speaker)).input_ids.tolist()
        for part in rows.values()
        for text, codes, speaker in zip(part["text"], part["codes"], part["speaker"], strict=True)
    ]
    assert data.plan.lengths.tolist() == [len(example) for example in every]
    for item in range(len(data)):
        assert ids(data[item]) == [every[number] for number in data.plan.examples(item)]
    again = packed(speech, rows, mode=mode)
    assert again.continue_from(data.position(3), 1)
    assert ids(again[1]) == ids(data[3])
    untagged = packed(replace(speech, prompt=PromptBuilder(speech.tokenizer, speech.vocabulary, replace(
        speech.prompt.rules, speaker_tags=False))), rows, mode=mode)  # fmt: skip
    assert not untagged.continue_from(data.position(3), 1), "a plan of other lengths is another plan"


def test_speakers_are_counted_among_the_examples_that_are_used(tagged):
    """Fails when rows that are too long count, or those of a source without a share, or a name as it was written."""
    speech, rows = tagged
    limit = 130
    lengths = {name: example_lengths(part, speech.prompt) for name, part in rows.items()}
    assert all((part > limit).any() for part in lengths.values())
    kept = {
        name: Counter(
            str(speaker).strip() for speaker, length in zip(part["speaker"], lengths[name], strict=True)
            if length <= limit and speaker
        )
        for name, part in rows.items()
    }  # fmt: skip
    assert packed(speech, rows, max_length=limit).speakers == kept["it"] + kept["de"]
    assert packed(speech, rows, max_length=limit, weights={"it": 0, "de": 1}).speakers == kept["de"]


def test_examples_longer_than_a_row_are_counted_by_source(speech, rows):
    lengths = {name: example_lengths(part, speech.prompt) for name, part in rows.items()}
    limit = int(np.median(lengths["it"]))
    data = packed(speech, rows, max_length=limit)
    it, de = data.sources
    assert it.num_dropped == (lengths["it"] > limit).sum() > 5
    assert (it.num_examples, de.num_examples) == tuple((part <= limit).sum() for part in lengths.values())
    assert (data.num_examples, data.num_dropped) == (
        it.num_examples + de.num_examples,
        it.num_dropped + de.num_dropped,
    )
    seen = [example for item in range(len(data)) for example in ids(data[item])]
    assert len(seen) == data.num_examples
    assert max(map(len, seen)) <= limit


def test_nothing_fits(speech, rows):
    shortest = min(int(example_lengths(part, speech.prompt).min()) for part in rows.values())
    with pytest.raises(UserError, match=rf"every one of the 34 examples .* use packing.max_length={shortest} or more"):
        packed(speech, rows, max_length=shortest - 1)
    assert packed(speech, rows, max_length=shortest).num_examples == 1


def test_sources_are_reported_and_their_tokens_counted(speech, rows):
    data = packed(speech, rows, weights={"it": 1, "de": 3})
    it, de = data.sources
    assert (it.name, it.share, de.share) == ("it", 0.25, 0.75)
    assert it.epoch_tokens + de.epoch_tokens == it.tokens + de.tokens == data.plan.lengths.sum()
    assert it.repeats == pytest.approx(it.epoch_tokens / it.tokens, rel=1e-3)
    assert de.repeats > 1 > it.repeats
    epochs = 3
    counted = {"it": 0, "de": 0}
    for item in range(data.rows_in(epochs)):
        for number, example in zip(data.plan.examples(item), data[item], strict=True):
            counted["it" if number < 24 else "de"] += len(example.input_ids)
    assert data.tokens_by_source(0, data.rows_in(epochs)) == counted
    assert data.num_tokens(0, data.rows_in(epochs)) == sum(counted.values())
    assert counted["de"] == pytest.approx(epochs * de.epoch_tokens, abs=int(data.plan.lengths.max()))
    json.dumps(vars(it))


def test_a_source_of_weight_0_is_left_out(speech, rows):
    data = packed(speech, rows, weights={"it": 0, "de": 1})
    assert [source.num_examples for source in data.sources] == [0, 10] == [0, data.num_examples]
    assert data.tokens_by_source(0, data.rows_in(2)) == {"it": 0, "de": 2 * data.sources[1].tokens}


def test_epochs_before_an_item_and_rows_in_epochs_agree(speech, rows):
    data = packed(speech, rows)
    ends = [data.plan.rows_in(epochs) for epochs in range(4)]
    assert [data.epochs_before(end) for end in ends] == [0, 1, 2, 3]
    middle = ends[1] + (ends[2] - ends[1]) // 2
    assert data.rows_in(data.epochs_before(middle)) == middle
    assert data.rows_in(0.01) == 1


# Resume


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("weights", [{}, {"it": 1, "de": 1}])
@pytest.mark.parametrize("rows_per_step", [4, 6])
def test_rows_before_and_after_a_stop_are_the_plan_none_twice_none_left_out(speech, rows, mode, weights, rows_per_step):
    """Fails when the shift has the wrong sign, or groups are cut anew for steps of another size."""
    whole = packed(speech, rows, mode=mode, weights=weights)
    stop = 4 * (whole.rows_in(1) // 4 + 1)  # a step of four rows, into the second epoch
    end = whole.rows_in(3)
    position = json.loads(json.dumps(whole.position(stop)))
    resumed = packed(speech, rows, mode=mode, weights=weights, group_rows=rows_per_step)
    item = stop // 4 * rows_per_step
    assert resumed.continue_from(position, item)
    assert resumed.shift == stop - item
    left = [ids(resumed[item + number]) for number in range(end - stop)]
    assert [ids(whole[number]) for number in range(stop)] + left == [ids(whole[number]) for number in range(end)]
    assert resumed.num_tokens(-resumed.shift, item) == whole.num_tokens(0, stop) > 0
    assert resumed.num_tokens(item, item + 3) == whole.num_tokens(stop, stop + 3)
    # and again from there, as it was first
    again = packed(speech, rows, mode=mode, weights=weights)
    assert again.continue_from(resumed.position(item + rows_per_step), stop + rows_per_step)
    assert again.shift == 0


def test_a_position_says_where_the_run_is(speech, rows):
    data = packed(speech, rows)
    end = data.plan.rows_in(1)
    position = data.position(end + 2)
    assert (position["row"], position["epoch"], position["row_in_epoch"]) == (end + 2, 1, 2)
    assert position["fingerprint"] == data.plan.fingerprint
    assert data.position(0)["row"] == 0


@pytest.mark.parametrize("changed", [{"max_length": 250}, {"seed": 1}, {"weights": {"it": 1, "de": 5}}])
def test_another_plan_goes_on_at_the_same_part_of_the_epoch(speech, rows, changed):
    before, after = packed(speech, rows), packed(speech, rows, **changed)
    middle = before.plan.rows_in(1) + (before.plan.rows_in(2) - before.plan.rows_in(1)) // 2
    assert not after.continue_from(before.position(middle), 2)
    assert after.epochs_before(2) == pytest.approx(1.5, abs=0.1)
    assert ids(after[2]) == ids(packed(speech, rows, **changed)[after.shift + 2])
