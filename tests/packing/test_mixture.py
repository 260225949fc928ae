import numpy as np
import pytest

from llasa.errors import UserError
from llasa.packing.mixture import Mixture, token_shares
from llasa.packing.plan import PackingPlan

NAMES = ("de", "it", "nl")
SIZES = (900, 90, 300)


def sources(seed=0):
    generator = np.random.default_rng(seed)
    lengths = np.clip(generator.gamma(4.0, 125.0, sum(SIZES)), 50, 1900).astype(np.int32) + 60
    return lengths, np.cumsum([0, *SIZES])


def mixture(shares=None, seed=0):
    lengths, bounds = sources()
    return Mixture(lengths, seed=seed, bounds=bounds, names=NAMES, shares=shares)


def naive_reached(mixed, source, epoch):
    """Examples of the endless walk that end closest to the tokens that so many epochs ask for."""
    target, tokens, count = epoch * mixed.epoch_tokens[source], 0, 0
    size = mixed.bounds[source + 1] - mixed.bounds[source]
    while True:
        step = int(mixed.lengths[mixed.bounds[source] + mixed._walk(source, count // size)[count % size]])
        if target - tokens < tokens + step - target or tokens >= target:
            return count
        tokens, count = tokens + step, count + 1


# Shares


def test_natural_shares_are_those_of_the_tokens():
    assert token_shares({"it": 300, "de": 100}, 1.0, {}) == {"it": 0.75, "de": 0.25}


def test_temperature_brings_shares_together():
    assert token_shares({"it": 900, "de": 100}, 2.0, {}) == {"it": 0.75, "de": 0.25}
    even = token_shares({"it": 900, "de": 100, "nl": 0}, 1e9, {})
    assert even == pytest.approx({"it": 0.5, "de": 0.5, "nl": 0.0})


def test_weights_are_shares_whatever_their_sum():
    assert token_shares({"it": 900, "de": 100, "nl": 5}, 1.0, {"de": 3, "it": 1, "nl": 0}) == {
        "it": 0.25,
        "de": 0.75,
        "nl": 0.0,
    }


@pytest.mark.parametrize(
    ("temperature", "weights", "message"),
    [
        (1.0, {"it": 1, "fr": 1}, r"mixture\.weights names fr, which is no source; use it, de, nl"),
        (1.0, {"it": 1}, r"says nothing of de, nl; give a weight to each of it, de, nl; 0 leaves a source out"),
        (1.0, {"it": 1, "de": 1, "nl": 1}, r"no example of nl fits into a row"),
        (2.0, {"it": 1, "de": 1, "nl": 0}, r"mixture\.temperature=2 says nothing where"),
    ],
)
def test_weights_that_do_not_fit_the_sources_are_refused(temperature, weights, message):
    with pytest.raises(UserError, match=message):
        token_shares({"it": 900, "de": 100, "nl": 0}, temperature, weights)


# Epochs


@pytest.mark.parametrize("computed", [False, True])
def test_a_mixture_of_natural_shares_is_the_plain_plan(computed):
    """Fails when rounding puts an epoch's end one example off, or the mixture brings an order of its own."""
    lengths, _ = sources()
    natural = mixture()
    if computed:  # as a run does it
        tokens = dict(zip(NAMES, natural.source_tokens.tolist(), strict=True))
        natural = mixture(token_shares(tokens, 1.0, {}))
    plain = PackingPlan(lengths, max_length=2048, window=256, seed=5)
    mixed = PackingPlan(lengths, max_length=2048, window=256, seed=5, mixture=natural)
    for epoch in (0, 1, 2, 99):
        np.testing.assert_array_equal(natural.examples(epoch), np.arange(len(lengths)))
        np.testing.assert_array_equal(mixed.epoch(epoch).indices, plain.epoch(epoch).indices)
        np.testing.assert_array_equal(mixed.epoch(epoch).offsets, plain.epoch(epoch).offsets)


@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_an_epoch_ends_where_counting_one_by_one_ends(epoch):
    mixed = mixture({"de": 0.3, "it": 0.45, "nl": 0.25})
    for source, size in enumerate(SIZES):
        passes, rest = mixed._reached(source, epoch)
        assert passes * size + rest == naive_reached(mixed, source, epoch)


def test_examples_are_seen_equally_often_give_or_take_once():
    """Fails when an epoch draws anew instead of going on where the one before it stopped."""
    mixed = mixture({"de": 0.3, "it": 0.45, "nl": 0.25})
    seen = np.zeros(sum(SIZES), dtype=int)
    for epoch in range(7):
        examples = mixed.examples(epoch)
        assert (np.diff(examples) >= 0).all()
        seen += np.bincount(examples, minlength=len(seen))
        for source in range(3):
            mine = seen[mixed.bounds[source] : mixed.bounds[source + 1]]
            assert np.ptp(mine) <= 1
            tokens = (epoch + 1) * mixed.epoch_tokens[source]
            assert mine.min() == int(tokens // mixed.source_tokens[source])
            reached = int((mine * mixed.lengths[mixed.bounds[source] : mixed.bounds[source + 1]]).sum())
            assert abs(reached - tokens) <= 1000, "less than an example from the share"
    assert len(np.unique(seen)) > 3


def test_an_epoch_has_as_many_tokens_as_the_used_sources():
    lengths, bounds = sources()
    mixed = mixture({"de": 0.5, "it": 0.5, "nl": 0.0})
    used = int(lengths[: bounds[2]].sum())
    for epoch in range(3):
        tokens = np.bincount(np.searchsorted(bounds, mixed.examples(epoch), side="right") - 1,
                             lengths[mixed.examples(epoch)], 3)  # fmt: skip
        assert tokens[:2] == pytest.approx([used / 2, used / 2], abs=2000)
        assert tokens[2] == 0


def test_an_epoch_is_the_same_whatever_was_asked_before():
    shares = {"de": 0.3, "it": 0.45, "nl": 0.25}
    first = [mixture(shares).examples(epoch) for epoch in range(4)]
    backwards = mixture(shares)
    for epoch in (3, 0, 2, 1):
        np.testing.assert_array_equal(backwards.examples(epoch), first[epoch])
    assert mixture(shares, seed=1).examples(0).tolist() != first[0].tolist()


def test_a_walk_depends_on_the_name_of_its_source_not_on_its_place():
    lengths = sources()[0]
    shares = {"a": 0.2, "b": 0.8}
    ab = Mixture(np.concatenate([lengths, lengths]), seed=0, bounds=[0, 1290, 2580], names="ab", shares=shares)
    ba = Mixture(np.concatenate([lengths, lengths]), seed=0, bounds=[0, 1290, 2580], names="ba", shares=shares)
    assert [n for n in ab.examples(0) if n < 1290] == [n - 1290 for n in ba.examples(0) if n >= 1290]
