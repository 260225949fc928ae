"""`debug=overfit_batch`: the first step's rows again and again, and a model that learns them by heart."""

import copy
import pickle

import numpy as np
import pytest

from llasa.corpus.store import TokenStore
from llasa.entry import compose_config
from llasa.model.llama import SpeechModel, build_for_training
from llasa.packing.dataset import PackedRows
from llasa.training.overfit import overfit_batch
from tests.conftest import SMALL_LLAMA
from tests.training.loop import losses, train_in_order

ROWS = 2


@pytest.fixture(scope="module")
def speech(toy_store) -> SpeechModel:
    config = compose_config("train", [*SMALL_LLAMA, f"store={toy_store}", "seed=0"])
    return build_for_training(config.model, config.kernels, TokenStore(toy_store).codec, "cpu", "fp32")


def packed(toy_store, speech) -> PackedRows:
    return PackedRows(TokenStore(toy_store).rows("train"), speech.prompt, max_length=192, window=100, seed=0)


def tokens_of(row) -> list[int]:
    return np.concatenate([example.input_ids for example in row]).tolist()


def test_every_step_has_the_rows_of_the_first(toy_store, speech):
    """Fails when a step's second row is the first one, or when rows go on to the next step's."""
    whole, data = packed(toy_store, speech), packed(toy_store, speech)
    overfit_batch(data, ROWS)
    data.num_rows = 5 * ROWS
    assert len(data) == 10
    rows = [tokens_of(data[row]) for row in range(10)]
    assert rows == 5 * [tokens_of(whole[0]), tokens_of(whole[1])]
    assert rows[0] != rows[1]
    assert len({str(tokens_of(whole[row])) for row in range(6)}) == 6, "the plan has other rows, which are left out"


def test_tokens_are_those_that_are_trained_on(toy_store, speech):
    data = packed(toy_store, speech)
    overfit_batch(data, ROWS)
    sizes = [len(tokens_of(data[row])) for row in range(12)]
    for start, stop in ((0, 12), (0, 1), (1, 2), (3, 8), (5, 5)):
        assert data.num_tokens(start, stop) == sum(sizes[start:stop])
    assert data.tokens_by_source(0, 12) == {"all": sum(sizes)}


def test_the_rest_is_the_plans_own(toy_store, speech):
    whole, data = packed(toy_store, speech), packed(toy_store, speech)
    overfit_batch(data, ROWS)
    assert data.rows_in(3) == whole.rows_in(3) > ROWS
    assert data.plan.efficiency() == whole.plan.efficiency()
    assert data.position(7)["row"] == 7
    assert data.plan.locate(1001) == (0, 1), "the epochs of a long run are not planned"
    for other in (copy.deepcopy(data.plan), pickle.loads(pickle.dumps(data.plan))):  # a loader's process gets a copy
        assert other.examples(9).tolist() == data.plan.examples(1).tolist()


def test_a_healthy_setup_learns_one_batch_by_heart(toy_store, speech, tmp_path):
    """Under 0.05, which the same model in the same steps does not reach on all rows. Fails when labels are shifted,
    when weights are frozen, and when the rows are not always the same."""
    reached = {}
    for name in ("one batch", "all rows"):
        data = packed(toy_store, speech)
        if name == "one batch":
            overfit_batch(data, ROWS)
        data.num_rows = 100 * ROWS
        model = copy.deepcopy(speech.model)
        model.forward = speech.model.forward.__func__.__get__(model)  # the loss's forward is bound to the instance
        values = losses(train_in_order(tmp_path, model, data, rows_per_step=ROWS))
        assert values[0] > 4
        reached[name] = values[-1]
    assert reached["one batch"] < 0.05 < reached["all rows"]
