"""The callback inside a real trainer, with what is wrong really wrong."""

import math
import re

import pytest
import torch

from llasa.config import SanityConfig
from llasa.errors import UserError
from llasa.packing.collate import PackingCollator
from llasa.training.sanity import SanityCallback, first_loss_band
from llasa.types import Example
from tests.model.tiny import examples, tiny_speech_model
from tests.training.loop import losses, train_in_order


def start(*, spread: float = 0.02, count: int = 1, start: str = "scratch", **settings):
    """A tiny model, a row of examples for each step, and the callback for it."""
    speech = tiny_speech_model(spread=spread)
    rows = [examples(speech, 4)] * count
    vocabulary_size = speech.model.config.vocab_size
    return speech.model, rows, SanityCallback(SanityConfig(**settings), first_loss_band(vocabulary_size, start))


def warnings(capsys) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]


def test_a_healthy_run_is_silent(tmp_path, capsys):
    model, rows, callback = start(count=20, stop=True)
    trainer = train_in_order(tmp_path, model, rows, callbacks=(callback,))
    assert losses(trainer)[0] == pytest.approx(math.log(model.config.vocab_size), abs=0.5)
    assert losses(trainer)[-1] < 2.5
    assert warnings(capsys) == []


# The first loss


class LabelsThatTellTheAnswer(PackingCollator):
    """The label of what comes next is what is here: the mistake of shifting the labels once too often."""

    def __call__(self, rows):
        batch = super().__call__(rows)
        batch["labels"][:, 1:] = batch["input_ids"][:, :-1]
        return batch


def test_a_first_loss_that_is_too_low_is_told(tmp_path, capsys):
    """Fails when the band has no lower end. Tied embeddings of large norm repeat the token that they see."""
    model, rows, callback = start(count=2)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(15)
    collator = LabelsThatTellTheAnswer(pad_token_id=0)
    trainer = train_in_order(tmp_path, model, rows, callbacks=(callback,), collator=collator)
    (line,) = warnings(capsys)
    assert losses(trainer)[0] < 1
    assert re.fullmatch(
        rf"warning: the first loss is {losses(trainer)[0]:.2f}, and 4\.\d\d to 9\.\d\d is plausible here; "
        r"the labels may tell the answer, .*; sanity\.first_loss=\[LOWEST,HIGHEST\] sets the range, null leaves it out",
        line,
    )


def test_a_first_loss_that_is_too_high_is_told(tmp_path, capsys):
    """Weights of another tokenizer are confidently wrong; they are said to speak."""
    model, rows, callback = start(spread=0.3, count=2, start="speaks")
    trainer = train_in_order(tmp_path, model, rows, callbacks=(callback,))
    (line,) = warnings(capsys)
    assert line.startswith(f"warning: the first loss is {losses(trainer)[0]:.2f}, and 0.50 to 5.8")
    assert "the weights may not fit the tokenizer or the codec" in line


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"first_loss": [7.0, 9.0]}, 1),
        ({"first_loss": [5.0, 7.0]}, 0),
        ({"first_loss": [1.0, 2.0], "stop": True}, 1),
        ({"first_loss": None, "stop": True}, 0),
    ],
)
def test_the_band_can_be_set_and_left_out(tmp_path, capsys, settings, told):
    """Of the first step alone: in the second and third the loss is below 5. Fails when every step is looked at."""
    model, rows, callback = start(count=3, **settings)
    if settings.get("stop") and told:
        with pytest.raises(UserError, match=r"the first loss is 5\.\d\d, .* \(sanity.stop=true\); "):
            train_in_order(tmp_path, model, rows, callbacks=(callback,), lr=0.05)
        return
    trainer = train_in_order(tmp_path, model, rows, callbacks=(callback,), lr=0.05)
    assert len(warnings(capsys)) == told
    assert losses(trainer)[-1] < 5


def test_the_bands_of_the_published_size():
    scratch, extended, speaks = (first_loss_band(193_800, start) for start in ("scratch", "extended", "speaks"))
    assert math.log(193_800) == pytest.approx(12.17, abs=0.01)
    assert scratch == pytest.approx((9.74, 16.17), abs=0.01)
    assert extended == pytest.approx((7.30, 30.4), abs=0.1)
    assert speaks == pytest.approx((0.5, 12.17), abs=0.01)
    assert speaks[0] < 5.5 < 7 < speaks[1]


# Not a number


@pytest.mark.parametrize("log_every", [1, 4])
def test_a_loss_that_is_not_a_number_ends_the_run(tmp_path, log_every):
    """A learning rate so large that the weights overflow in the first step."""
    model, rows, callback = start(count=9)
    with pytest.raises(UserError) as error:
        train_in_order(tmp_path, model, rows, callbacks=(callback,), lr=1e38, log_every=log_every)
    assert re.fullmatch(
        rf"the loss is (nan|inf) at step {2 if log_every == 1 else 4}; lower optimizer.lr or raise schedule.warmup; "
        "resume=true force=true goes on with them from the last state",
        str(error.value),
    )


def test_a_gradient_that_is_not_a_number_ends_the_run(tmp_path):
    """The loss is one: the forward pass of the last step is fine, its backward pass overflows."""
    model, rows, callback = start(count=5)
    model.model.norm.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(UserError, match=r"the gradient norm is (nan|inf) at step 1"):
        train_in_order(tmp_path, model, rows, callbacks=(callback,))


# Gradients


def poisoned(rows, step):
    """The same rows, but in one step the codes are shuffled: a corrupt recording."""
    generator = torch.Generator().manual_seed(0)

    def shuffled(example: Example) -> Example:
        labels = torch.from_numpy(example.labels.copy())
        places = (labels >= 0).nonzero()[:, 0]
        labels[places] = labels[places[torch.randperm(len(places), generator=generator)]]
        return Example(input_ids=example.input_ids, labels=labels.numpy())

    return [*rows[: step - 1], [shuffled(example) for example in rows[step - 1]], *rows[step:]]


def test_a_spike_of_the_gradient_norm_is_told_once(tmp_path, capsys):
    """Fails when a spike is compared to the largest or to the last norm seen, or is told again a step later."""
    model, rows, callback = start(count=44, grad_norm_spike=4.0)
    trainer = train_in_order(tmp_path, model, poisoned(rows, 42), callbacks=(callback,))
    norms = [line["grad_norm"] for line in trainer.state.log_history if "loss" in line]
    usual = sorted(norms[:41])[20]
    assert norms[41] > 4 * usual
    assert warnings(capsys) == [
        f"warning: the gradient norm is {norms[41]:.3g} at step 42, {norms[41] / usual:.0f} times its median of "
        f"{usual:.3g}; if it stays or the loss rises, lower optimizer.lr, and look at the rows of this step"
    ]


def test_a_spike_ends_a_run_that_is_to_stop(tmp_path):
    model, rows, callback = start(count=44, grad_norm_spike=4.0, stop=True)
    with pytest.raises(
        UserError, match=r"gradient norm is .* at step 42, .*\(sanity.stop=true\); .*; resume=true goes"
    ):
        train_in_order(tmp_path, model, poisoned(rows, 42), callbacks=(callback,))


@pytest.mark.parametrize("spike", [None, 20.0])
def test_how_large_a_spike_is_can_be_set_and_left_out(tmp_path, capsys, spike):
    model, rows, callback = start(count=44, grad_norm_spike=spike)
    train_in_order(tmp_path, model, poisoned(rows, 42), callbacks=(callback,))
    assert warnings(capsys) == []


def test_the_first_norms_are_not_compared(tmp_path, capsys):
    """Nine norms are too few to know what is usual. Fails when fewer than ten are enough."""
    model, rows, callback = start(count=10, grad_norm_spike=1.001)
    for row in range(10):  # each step's gradient is larger than the one before
        rows[row] = rows[row][: 4 - row // 3] if row < 9 else rows[row][:1]
    train_in_order(tmp_path, model, rows, callbacks=(callback,), lr=1e-9)
    assert warnings(capsys) == []


@pytest.mark.parametrize("stop", [False, True])
def test_gradients_of_zero_are_told(tmp_path, capsys, stop):
    """A head of zeros that is frozen passes no gradient on, and says the same for ever."""
    model, rows, callback = start(count=6, stop=stop)
    model.get_input_embeddings().weight.requires_grad_(False).zero_()
    if stop:
        with pytest.raises(UserError, match="gradient norm was 0 at each of the first 3 logged steps"):
            train_in_order(tmp_path, model, rows, callbacks=(callback,))
        return
    trainer = train_in_order(tmp_path, model, rows, callbacks=(callback,))
    assert len(set(losses(trainer))) == 1
    (line,) = warnings(capsys)
    assert line.startswith("warning: the gradient norm was 0 at each of the first 3 logged steps, so nothing learns; ")
