import tracemalloc

import numpy as np
import pytest

from llasa.packing.mixture import Mixture
from llasa.packing.plan import PackingPlan, best_fit_decreasing
from llasa.packing.rows import BLOCK


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


def in_bins(numbers):
    return [np.flatnonzero(numbers == number).tolist() for number in range(numbers.max() + 1)]


def clip_lengths(count, seed=0):
    """Tokens of clips of 10 s on average at 50 tokens/s, with the prompt's 60."""
    generator = np.random.default_rng(seed)
    return np.clip(generator.gamma(4.0, 125.0, count), 50, 1900).astype(np.int64) + 60


def rows_of(plan, epoch):
    rows = plan.epoch(epoch)
    return [rows.row(number).tolist() for number in range(len(rows))]


@pytest.mark.parametrize("seed", range(5))
def test_best_fit_equals_the_naive_one_in_the_rooms_it_leaves(seed):
    lengths = clip_lengths(200, seed)
    fast = in_bins(best_fit_decreasing(lengths, 2048))
    slow = naive_best_fit_decreasing(lengths.tolist(), 2048)
    assert sorted(int(lengths[b].sum()) for b in fast) == sorted(int(lengths[b].sum()) for b in slow)
    assert sorted(i for b in fast for i in b) == list(range(200))


def test_best_fit_fills_exactly():
    assert best_fit_decreasing(np.array([6, 4, 7, 3, 10]), 10).tolist() == [2, 2, 1, 1, 0]


@pytest.mark.parametrize("mode", ["group", "pack", "pad_to_max"])
def test_every_epoch_holds_every_example_once_within_the_budget(mode):
    lengths = clip_lengths(3000)
    plan = PackingPlan(lengths, max_length=2048, window=1000, seed=1, mode=mode, group_rows=7)
    for epoch in (0, 1, 5):
        rows = rows_of(plan, epoch)
        assert sorted(i for row in rows for i in row) == list(range(3000))
        assert max(lengths[row].sum() for row in rows) <= 2048
        assert all(len(row) == 1 for row in rows) == (mode != "pack")
    assert plan.epoch(0).indices.tolist() != plan.epoch(1).indices.tolist()


def test_a_packed_row_is_one_bin_of_its_window():
    """Fails when rows are shuffled without their examples, or windows are packed across their edges."""
    lengths = clip_lengths(500)
    plan = PackingPlan(lengths, max_length=2048, window=200, seed=3)
    order = np.random.default_rng((3, 0)).permutation(500)
    expected = [
        order[start : start + 200][members].tolist()
        for start in (0, 200, 400)
        for members in in_bins(best_fit_decreasing(lengths[order[start : start + 200]], 2048))
    ]
    rows = rows_of(plan, 0)
    assert sorted(rows) == sorted(expected)
    assert rows != expected, "rows are shuffled too: the longest examples of a window are packed first"


def test_packing_wastes_little():
    assert PackingPlan(clip_lengths(5000), max_length=8192, window=5000, seed=0).efficiency() > 0.98


@pytest.mark.parametrize("mode", ["group", "pack", "pad_to_max"])
def test_efficiency_is_the_share_that_is_not_padding(mode):
    lengths = clip_lengths(300)
    plan = PackingPlan(lengths, max_length=2048, window=100, seed=0, mode=mode, group_rows=8)
    rows = rows_of(plan, 0)
    groups = [rows[start : start + 8] for start in range(0, len(rows), 8)]
    padded = [
        len(group) * (max(int(lengths[row].sum()) for row in group) if mode == "group" else 2048) for group in groups
    ]
    assert plan.efficiency() == lengths.sum() / sum(padded)
    assert {"group": 0.85, "pack": 0.9, "pad_to_max": 0.2}[mode] < plan.efficiency() < 1


def test_groups_are_cut_from_windows_sorted_by_length():
    """A window is a multiple of a group; the second epoch begins with what is missing of the first one's last step."""
    lengths = clip_lengths(1000)
    plan = PackingPlan(lengths, max_length=2048, window=330, seed=0, mode="group", group_rows=32)
    for epoch, head, stop in ((0, 0, 992), (1, 24, 984)):
        order = np.random.default_rng((0, epoch)).permutation(1000)
        windows = [order[start : min(start + 320, stop)] for start in range(head, stop, 320)]
        groups = [
            sorted(group)
            for window in windows
            for group in np.split(window[np.argsort(lengths[window], kind="stable")], len(window) // 32)
        ]
        indices = plan.epoch(epoch).indices
        assert indices[:head].tolist() == order[:head].tolist()
        assert indices[stop:].tolist() == order[stop:].tolist()
        found = [sorted(group) for group in indices[head:stop].reshape(-1, 32)]
        assert sorted(found) == sorted(groups)
        assert found != groups, "groups are shuffled"
        assert max(np.ptp(lengths[group]) for group in groups) > 300 > np.median([np.ptp(lengths[g]) for g in groups])


def test_steps_of_two_epochs_never_share_a_group():
    """Fails when an epoch's groups are cut from its own beginning though the one before ended inside a step."""
    plan = PackingPlan(np.arange(1, 11), max_length=64, window=100, seed=0, mode="group", group_rows=4)
    lengths = [sorted(plan.lengths[plan.examples(row)[0]].item() for row in range(s, s + 4)) for s in range(0, 40, 4)]
    # 10 rows an epoch: steps 0, 1 | 2 | 3, 4 | ...: the third step of each pair of epochs is two halves
    whole = [step for step in range(10) if step % 5 != 2]
    assert all(len(set(lengths[step])) == 4 for step in whole)
    for first, second in ((0, 1), (3, 4), (5, 6), (8, 9)):
        low, high = sorted((lengths[first], lengths[second]))
        assert low[-1] < high[0], "cut from the examples in order of length"


def test_the_plan_depends_on_seed_and_epoch_only():
    lengths = clip_lengths(500)
    for mode in ("group", "pack", "pad_to_max"):
        first, again, other = (
            PackingPlan(lengths, max_length=2048, window=100, seed=seed, mode=mode, group_rows=3) for seed in (3, 3, 4)
        )
        again.epoch(7)
        again.rows_in(3)
        for epoch in (0, 2):
            np.testing.assert_array_equal(first.epoch(epoch).indices, again.epoch(epoch).indices)
            np.testing.assert_array_equal(first.epoch(epoch).offsets, again.epoch(epoch).offsets)
        assert first.epoch(0).indices.tolist() != other.epoch(0).indices.tolist()


def test_rows_are_numbered_through_the_epochs():
    plan = PackingPlan(clip_lengths(300), max_length=2048, window=128, seed=0)
    fresh = PackingPlan(clip_lengths(300), max_length=2048, window=128, seed=0)
    sizes = [len(plan.epoch(epoch)) for epoch in range(3)]
    assert plan.rows_in(3) == sum(sizes)
    assert plan.locate(0) == (0, 0)
    assert plan.locate(sizes[0] - 1) == (0, sizes[0] - 1)
    assert plan.locate(sizes[0]) == (1, 0)
    last = sum(sizes) - 1
    assert plan.locate(last) == (2, sizes[2] - 1)
    # a resumed run asks for a late row first
    np.testing.assert_array_equal(fresh.examples(last), plan.epoch(2).row(sizes[2] - 1))


def test_old_epochs_are_planned_again_when_they_are_asked_for():
    plan = PackingPlan(clip_lengths(200), max_length=2048, window=64, seed=0)
    first = plan.epoch(0).indices
    sizes = [plan.rows_in(epochs) for epochs in range(10)]
    assert plan.epoch(0).indices is not first
    np.testing.assert_array_equal(plan.epoch(0).indices, first)
    assert [plan.rows_in(epochs) for epochs in range(10)] == sizes


@pytest.mark.parametrize("mode", ["pack", "pad_to_max"])
def test_tokens_of_any_rows_are_those_counted_one_by_one(mode):
    """Fails when a block is counted twice, a row is given to its neighbour, or an epoch is left out."""
    lengths = clip_lengths(2000)
    bounds = [0, 700, 700, 1999, 2000]
    mixture = Mixture(lengths, seed=0, bounds=bounds, names="abcd", shares={"a": 0.5, "b": 0.0, "c": 0.2, "d": 0.3})
    plan = PackingPlan(lengths, max_length=2048, window=512, seed=0, mode=mode, mixture=mixture)
    total = plan.rows_in(2) + BLOCK + 5
    counted = np.zeros((total + 1, 4), dtype=np.int64)
    for row in range(total):
        examples = plan.examples(row)
        for source in range(4):
            mine = (examples >= bounds[source]) & (examples < bounds[source + 1])
            counted[row + 1, source] = counted[row, source] + lengths[examples[mine]].sum()
    assert total > 3 * BLOCK
    asked = sorted(
        {0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, *(plan.rows_in(e) + d for e in (1, 2) for d in (-1, 0, 1))}
    )
    assert [plan.tokens_before(row).tolist() for row in asked] == counted[asked].tolist()
    assert (counted[-1, [0, 2, 3]] > 0).all()


def test_the_fingerprint_tells_plans_with_other_rows_and_no_others():
    lengths = clip_lengths(50)
    settings = {"max_length": 2048, "window": 16, "seed": 0, "mode": "pack", "group_rows": 2}

    def fingerprint(lengths=lengths, **changed):
        return PackingPlan(lengths, **settings | changed).fingerprint

    assert fingerprint() == fingerprint() == fingerprint(group_rows=4)
    longer = lengths.copy()
    longer[7] += 1
    others = [
        fingerprint(longer),
        fingerprint(seed=1),
        fingerprint(window=17),
        fingerprint(max_length=2049),
        fingerprint(mode="group"),
        fingerprint(mode="group", group_rows=4),
        fingerprint(mode="pad_to_max"),
        fingerprint(mixture=Mixture(lengths, seed=0, bounds=[0, 25, 50], names="ab")),
    ]
    assert len({fingerprint(), *others}) == 9
    assert fingerprint(mode="pad_to_max") == fingerprint(mode="pad_to_max", window=5, group_rows=9)


def test_an_epoch_needs_a_few_dozen_bytes_an_example():
    """Fails when rows become Python lists or small arrays: ten million examples have to fit in 2 GB."""
    lengths = clip_lengths(60_000)
    plan = PackingPlan(lengths, max_length=2048, window=4096, seed=0)
    tracemalloc.start()
    try:
        plan.tokens_before(plan.rows_in(1) - 1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 10 < peak / 60_000 < 60
