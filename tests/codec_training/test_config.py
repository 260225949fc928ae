"""The recipes: what follows from `codec_model=` and `adversary=`, and how rounding and learning rates go."""

import pytest
import torch

from llasa.codec_training.run import build_discriminators, build_model
from llasa.codec_training.trainer import CodecTrainer
from llasa.entry import compose_config
from llasa.errors import UserError
from tests.codec_training.corpora import arguments


def test_nano_begins_with_noise_and_a_penalty_and_a_published_model_with_neither():
    nano = compose_config("train_codec", ["codec_model=xcodec2_nano"]).codec_model
    assert (nano.checkpoint, nano.noise_steps, nano.mixed_steps, nano.latent_penalty, nano.dtype) == (
        None, 600, 600, 1.0, "fp16",
    )  # fmt: skip
    published = compose_config("train_codec").codec_model
    assert published.checkpoint == "HKUSTAudio/xcodec2-hf"
    assert (published.noise_steps, published.mixed_steps, published.latent_penalty, published.dtype) == (
        0,
        0,
        0,
        "fp32",
    )


def test_recordings_are_taken_as_they_are_long_and_at_full_band():
    filters = compose_config("train_codec").filters
    assert (filters.max_seconds, filters.min_sample_rate) == (None, 16_000)


def test_adversaries_differ_in_size():
    sizes = {}
    for name in ("small", "full"):
        judges = build_discriminators(compose_config("train_codec", [f"adversary={name}"]))
        sizes[name] = sum(parameter.numel() for parameter in judges.parameters())
    assert sizes["full"] > 20 * sizes["small"] > 1e6
    assert build_discriminators(compose_config("train_codec", ["adversary=none"])) is None


def test_the_same_seed_gives_the_same_model_and_judges_and_draws_nothing():
    config = compose_config("train_codec", ["codec_model=xcodec2_nano", "adversary=small"])
    state = torch.get_rng_state()
    first, second = (build_model(config).state_dict() | build_discriminators(config).state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_only_a_model_to_go_on_from_has_a_decoder_to_train(tmp_path):
    with pytest.raises(
        UserError, match=r"codec_model\.train='decoder' is not valid; a model from scratch learns whole"
    ):
        compose_config("train_codec", ["codec_model=xcodec2_nano", "codec_model.train=decoder"])


def test_rounding_and_judges_come_when_they_are_to(tmp_path):
    """Fails when rounding is off by a phase, or discriminators take part before their step."""
    overrides = [
        "codec_model=xcodec2_nano",
        "codec_model.noise_steps=3",
        "codec_model.mixed_steps=3",
        "adversary.start=5",
    ]
    trainer = CodecTrainer.__new__(CodecTrainer)
    trainer.config = compose_config("train_codec", arguments(tmp_path, tmp_path, *overrides))
    trainer.discriminators = torch.nn.Identity()
    rounding, judged = [], []
    for trainer.step in range(8):
        rounding.append(trainer.rounding())
        judged.append(trainer.judges() is not None)
    assert rounding == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1]
    assert judged == [False] * 5 + [True] * 3


def test_what_is_random_differs_from_step_to_step_and_part_to_part(tmp_path):
    """Fails when noise and dropout are drawn from the seed alone."""
    trainer = CodecTrainer.__new__(CodecTrainer)
    trainer.config = compose_config("train_codec", arguments(tmp_path, tmp_path, "codec_model=xcodec2_nano"))
    trainer.device = "cpu"
    drawn = []
    with torch.random.fork_rng(devices=[]):
        for trainer.step in range(3):
            for part in range(2):
                noise = torch.rand(1, generator=trainer._seeded(part))
                drawn += [float(noise), float(torch.rand(1))]
    assert len(set(drawn)) == 12
