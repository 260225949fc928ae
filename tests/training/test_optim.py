import pytest
import torch

from llasa.build import build
from llasa.config import ScheduleConfig
from llasa.entry import compose_config
from llasa.training.optim import build_schedule, optimizer_name


def rates(config: ScheduleConfig, steps: int = 100) -> list[float]:
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
    assert values[0] == 0.0
    assert values[5] == pytest.approx(0.5)
    assert values[10] == pytest.approx(1.0)
    assert values[55] == pytest.approx(0.55)
    assert values[100] == pytest.approx(0.1)


def test_constant_stays_after_the_warm_up():
    values = rates(ScheduleConfig(name="constant", warmup=0.1))
    assert values[5] == pytest.approx(0.5)
    assert set(values[10:]) == {1.0}


def test_wsd_is_stable_and_then_decays():
    values = rates(ScheduleConfig(name="wsd", warmup=0.1, decay=0.2))
    assert set(values[10:81]) == {1.0}
    assert 0 < values[90] < 1
    assert values[100] == pytest.approx(0.0)


@pytest.mark.parametrize("name", ["auto", "adam8bit", "adamw8bit", "paged_adamw8bit", "adamw"])
def test_every_optimizer_is_built_from_its_node_and_lowers_a_loss(name):
    torch.manual_seed(0)
    config = compose_config("train", [f"optimizer={name}", "optimizer.lr=0.05", "store=x"])
    weight = torch.nn.Parameter(torch.randn(64, 80))
    optimizer = build(config.optimizer)([{"params": [weight]}])
    target = torch.randn(64, 80)
    losses = []
    for _ in range(20):
        loss = (weight - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(group["lr"] == 0.05 for group in optimizer.param_groups)


def test_auto_is_named_as_what_it_becomes():
    config = compose_config("train", ["optimizer=auto", "store=x"])
    built = build(config.optimizer)([{"params": [torch.nn.Parameter(torch.zeros(2))]}])
    assert optimizer_name(config.optimizer, "cpu") == type(built).__name__ == "AdamW"
    assert optimizer_name(config.optimizer, "cuda") == "Adam8bit"
    adam8bit = compose_config("train", ["optimizer=adam8bit", "store=x"]).optimizer
    assert optimizer_name(adam8bit, "cpu") == "Adam8bit"
