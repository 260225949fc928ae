"""Learning rates step by step, and at the edges: runs of a few steps, no warm-up, all of it decay."""

from itertools import pairwise

import pytest
import torch

from llasa.config import ScheduleConfig
from llasa.training.schedule import build_schedule

NAMES = ("constant", "cosine", "wsd")


def rates(config: ScheduleConfig, steps: int = 100) -> list[float]:
    """The learning rate of each step, and what the step after the last would have; the peak is 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = build_schedule(config, optimizer, steps)
    seen = []
    for _ in range(steps):
        seen.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return [*seen, schedule.get_last_lr()[0]]


def test_cosine_rises_and_falls_to_its_minimum():
    values = rates(ScheduleConfig(name="cosine", warmup=0.1, min_ratio=0.1))
    assert values[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert values[10] == pytest.approx(1.0)
    assert values[55] == pytest.approx(0.55)
    assert values[100] == pytest.approx(0.1)
    assert all(a > b for a, b in pairwise(values[10:]))


def test_constant_stays_after_the_warm_up():
    values = rates(ScheduleConfig(name="constant", warmup=0.1))
    assert values[5] == pytest.approx(6 / 11)
    assert set(values[10:]) == {1.0}


def test_wsd_is_stable_and_then_decays_by_a_root():
    values = rates(ScheduleConfig(name="wsd", warmup=0.1, decay=0.2))
    assert values[9] == pytest.approx(10 / 11)
    assert set(values[10:81]) == {1.0}
    assert values[85] == pytest.approx(0.5)  # 5 of 20 steps: 1 - sqrt(1/4)
    assert values[99] == pytest.approx(1 - 0.95**0.5)
    assert values[100] == pytest.approx(0.0)
    assert rates(ScheduleConfig(name="wsd", warmup=0.1, decay=0.2, min_ratio=0.2))[85] == pytest.approx(0.6)


def test_the_first_step_of_a_long_warm_up_learns_already():
    """Fails when the warm-up starts at 0: the first step would be computed for nothing."""
    for name in NAMES:
        assert rates(ScheduleConfig(name=name, warmup=0.5, decay=0.5))[0] == pytest.approx(1 / 51)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10, 33])
@pytest.mark.parametrize(
    ("warmup", "decay"), [(0.03, 0.2), (0.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.9, 0.05), (0.99, 0.0)]
)
def test_every_step_of_a_short_run_learns_and_one_has_the_peak(name, steps, warmup, decay):
    """Fails when a share of the steps is rounded to all of them: a warm-up as long as the run never ends, and a decay
    that overlaps the warm-up jumps."""
    values = rates(ScheduleConfig(name=name, warmup=warmup, decay=decay), steps)[:-1]
    assert len(values) == steps
    assert min(values) > 0
    assert max(values) == 1.0
    top = values.index(1.0)
    assert values[: top + 1] == sorted(values[: top + 1])
    assert values[top:] == sorted(values[top:], reverse=True)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", [1.0, 1.0, 1.0, 1.0, 1.0]),
        ("cosine", [1.0, 0.904508, 0.654508, 0.345492, 0.095492]),
        ("wsd", [1.0, 1.0, 1.0, 1.0, 1.0]),  # a decay of one step starts at the peak and has no second
    ],
)
def test_five_steps_with_the_default_shares(name, expected):
    assert rates(ScheduleConfig(name=name), 5)[:-1] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_groups_keep_their_own_peaks_and_a_saved_schedule_continues(name):
    def start():
        groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.5)]
        optimizer = torch.optim.SGD(groups)
        return optimizer, build_schedule(ScheduleConfig(name=name, warmup=0.2), optimizer, 20)

    def go(optimizer, schedule, steps):
        seen = []
        for _ in range(steps):
            seen.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            schedule.step()
        return seen

    whole = go(*start(), 20)
    assert all(second == pytest.approx(first / 2) for first, second in whole)
    optimizer, schedule = start()
    go(optimizer, schedule, 8)
    saved = optimizer.state_dict(), schedule.state_dict()
    optimizer, schedule = start()
    optimizer.load_state_dict(saved[0])
    schedule.load_state_dict(saved[1])
    assert go(optimizer, schedule, 12) == whole[8:]
