import numpy as np
import pytest

from llasa.packing.plan import PackingPlan, best_fit_decreasing


def naive_best_fit_decreasing(lengths, max_length):
    bins, rooms = [], []
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fitting = [(room, i) for i, room in enumerate(rooms) if room >= lengths[item]]
        if fitting:
            room = min(fitting)[0]
            number = next(i for r, i in reversed(fitting) if r == room)
        else:
            number = len(bins)
            bins.append([])
            rooms.append(max_length)
        bins[number].append(item)
        rooms[number] -= lengths[item]
    return bins


def clip_lengths(count, seed=0):
    """Tokens of clips of 10 s on average at 50 tokens/s, with the prompt's 60."""
    generator = np.random.default_rng(seed)
    return np.clip(generator.gamma(4.0, 125.0, count), 50, 1900).astype(np.int64) + 60


@pytest.mark.parametrize("seed", range(5))
def test_best_fit_equals_the_naive_one_in_the_rooms_it_leaves(seed):
    lengths = clip_lengths(200, seed)
    fast = best_fit_decreasing(lengths, 2048)
    slow = naive_best_fit_decreasing(lengths.tolist(), 2048)
    assert sorted(int(lengths[b].sum()) for b in fast) == sorted(int(lengths[b].sum()) for b in slow)
    assert sorted(i for b in fast for i in b) == list(range(200))


def test_best_fit_fills_exactly():
    assert [sorted(b) for b in best_fit_decreasing(np.array([6, 4, 7, 3, 10]), 10)] == [[4], [2, 3], [0, 1]]


def test_every_epoch_holds_every_example_once_within_the_budget():
    lengths = clip_lengths(3000)
    plan = PackingPlan(lengths, max_length=2048, window=1000, seed=1)
    for epoch in (0, 1, 5):
        rows = plan.epoch(epoch)
        assert sorted(rows.indices.tolist()) == list(range(3000))
        sums = [lengths[rows.row(i)].sum() for i in range(len(rows))]
        assert max(sums) <= 2048
        assert sum(len(rows.row(i)) for i in range(len(rows))) == 3000
    assert plan.epoch(0).indices.tolist() != plan.epoch(1).indices.tolist()


def test_packing_wastes_little():
    assert PackingPlan(clip_lengths(5000), max_length=8192, window=5000, seed=0).efficiency() > 0.98


def test_the_plan_depends_on_seed_and_epoch_only():
    lengths = clip_lengths(500)
    first, again, other = (PackingPlan(lengths, max_length=2048, window=100, seed=seed) for seed in (3, 3, 4))
    again.epoch(7)
    again.rows_in(3)
    for epoch in (0, 2):
        np.testing.assert_array_equal(first.epoch(epoch).indices, again.epoch(epoch).indices)
    assert first.epoch(0).indices.tolist() != other.epoch(0).indices.tolist()


def test_rows_are_numbered_through_the_epochs():
    plan = PackingPlan(clip_lengths(300), max_length=2048, window=128, seed=0)
    fresh = PackingPlan(clip_lengths(300), max_length=2048, window=128, seed=0)
    sizes = [len(plan.epoch(epoch)) for epoch in range(3)]
    assert plan.rows_in(3) == sum(sizes)
    assert plan.locate(0) == (0, 0)
    assert plan.locate(sizes[0]) == (1, 0)
    last = sum(sizes) - 1
    assert plan.locate(last) == (2, sizes[2] - 1)
    # a resumed run asks for a late row first
    np.testing.assert_array_equal(fresh.examples(last), plan.epoch(2).row(sizes[2] - 1))
