"""Which attention is chosen, and what FlashAttention is told about packed rows."""

import numpy as np
import pytest
import torch
from transformers.modeling_flash_attention_utils import prepare_fa_kwargs_from_position_ids

from llasa.config import KernelsConfig
from llasa.errors import UserError
from llasa.model.attention import (
    choose_attention,
    installed_kernels,
    needs_flat_rows,
    resolve_attention,
    variable_lengths,
)
from llasa.packing.collate import PackingCollator
from llasa.types import Example
from tests.model.tiny import examples, tiny_speech_model

ALL = {"flash_attention_2", "flash_attention_3", "flash_attention_4", "triton"}


@pytest.mark.parametrize(
    ("device", "precision", "major", "installed", "expected"),
    [
        ("cpu", "fp32", 0, ALL, "sdpa_varlen"),
        ("cpu", "bf16", 0, ALL, "sdpa_varlen"),
        ("mps", "bf16", 0, ALL, "sdpa"),
        ("cuda", "bf16", 10, ALL, "flash_attention_4"),  # Blackwell
        ("cuda", "bf16", 10, ALL - {"flash_attention_4"}, "flash_attention_2"),  # 3 is Hopper's alone
        ("cuda", "bf16", 9, ALL, "flash_attention_4"),
        ("cuda", "bf16", 9, ALL - {"flash_attention_4"}, "flash_attention_3"),
        ("cuda", "bf16", 8, ALL, "flash_attention_2"),  # Ampere
        ("cuda", "bf16", 8, {"flash_attention_3", "flash_attention_4", "triton"}, "flex_attention"),
        ("cuda", "bf16", 9, {"triton"}, "flex_attention"),
        ("cuda", "bf16", 9, set(), "sdpa"),
        ("cuda", "bf16", 7, ALL, "sdpa"),
        ("cuda", "fp32", 9, ALL, "sdpa"),
    ],
)
def test_auto_takes_the_newest_that_suits_the_device(device, precision, major, installed, expected):
    assert choose_attention("auto", device, precision, major, installed) == expected


@pytest.mark.parametrize(
    ("requested", "device", "precision", "major", "installed", "message"),
    [
        ("flash_attention_2", "cpu", "bf16", 0, ALL, "needs a CUDA device"),
        ("flex_attention", "cpu", "fp32", 0, ALL, "needs a CUDA device: it has no backward"),
        ("flash_attention_2", "cuda", "fp32", 9, ALL, "needs trainer.precision=bf16"),
        ("flash_attention_2", "cuda", "bf16", 9, {"triton"}, "needs the package flash-attn"),
        ("flash_attention_2", "cuda", "bf16", 7, ALL, r"compute capability 8.0 or later, this one has 7.x"),
        ("flash_attention_3", "cuda", "bf16", 8, ALL, r"needs a Hopper GPU, this one has 8.x"),
        ("flash_attention_3", "cuda", "bf16", 10, ALL, r"needs a Hopper GPU, this one has 10.x"),
        ("flash_attention_4", "cuda", "bf16", 8, ALL, r"compute capability 9.0 or later"),
        ("flash_attention_4", "cuda", "bf16", 9, {"flash_attention_2"}, "needs the package flash-attn-4"),
        ("flex_attention", "cuda", "bf16", 9, set(), "needs the package triton"),
        ("flex_attention", "cuda", "bf16", 7, ALL, "Ampere"),
    ],
)
def test_one_that_cannot_work_is_refused(requested, device, precision, major, installed, message):
    with pytest.raises(UserError, match=f"kernels.attn={requested} .*{message}") as caught:
        choose_attention(requested, device, precision, major, installed)
    assert "kernels.attn=auto" in str(caught.value)


@pytest.mark.parametrize("requested", ["sdpa", "sdpa_varlen", "eager", "flex_attention", *sorted(ALL - {"triton"})])
def test_one_that_can_work_is_taken(requested):
    assert choose_attention(requested, "cuda", "bf16", 9, ALL) == requested


def test_resolved_with_the_facts_of_this_machine():
    assert resolve_attention(KernelsConfig(name="auto"), "cpu", "fp32") == "sdpa_varlen"
    assert resolve_attention(KernelsConfig(name="auto", attn="eager"), "cpu", "fp32") == "eager"
    assert installed_kernels() <= ALL
    if not torch.cuda.is_available():
        assert resolve_attention(KernelsConfig(name="auto"), "cuda", "bf16") == "sdpa"
        with pytest.raises(UserError, match="flash-attn"):
            resolve_attention(KernelsConfig(name="auto", attn="flash_attention_2"), "cuda", "bf16")


def test_variable_lengths_are_the_boundaries_of_the_examples_of_all_rows():
    positions = torch.tensor([[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]])
    found = variable_lengths("flash_attention_2", positions)
    assert found.keys() == {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}
    for name in ("cu_seq_lens_q", "cu_seq_lens_k"):
        assert found[name].dtype == torch.int32
        assert found[name].tolist() == [0, 3, 5, 6, 10]
    assert found["max_length_q"] == found["max_length_k"] == 4
    assert type(found["max_length_q"]) is int
    assert variable_lengths("sdpa", positions) == variable_lengths("flex_attention", positions) == {}
    assert variable_lengths("flash_attention_2", None) == {}


def test_variable_lengths_are_those_that_transformers_finds_in_one_row():
    generator = np.random.default_rng(0)
    examples = [Example(np.arange(n), np.arange(n)) for n in generator.integers(1, 30, 40)]
    batch = PackingCollator(pad_token_id=0, flatten=True)([examples[:25], examples[25:]])
    found = variable_lengths("flash_attention_3", batch["position_ids"])
    (boundaries, _), (longest, _) = prepare_fa_kwargs_from_position_ids(batch["position_ids"])
    assert len(boundaries) in (41, 42), "40 examples, and the padding if there is any"
    assert torch.equal(found["cu_seq_lens_q"], boundaries)
    assert found["max_length_q"] == longest


def test_which_attention_needs_a_single_row():
    assert [needs_flat_rows(name) for name in ("sdpa", "eager", "flex_attention")] == [False] * 3
    assert all(
        needs_flat_rows(name) for name in ("sdpa_varlen", *(f"flash_attention_{version}" for version in (2, 3, 4)))
    )


def test_sdpa_varlen_is_sdpa_where_rows_are_not_packed():
    """Padded prompts, a cache, a plain forward of packed rows: as when a model that trains is asked to speak."""
    speech = tiny_speech_model(spread=0.2)
    model = speech.model
    prompts = [examples(speech, 1)[0].input_ids[:n] for n in (9, 5)]
    ids = torch.zeros(2, 9, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, 9 - len(prompt) :], mask[row, 9 - len(prompt) :] = torch.from_numpy(np.array(prompt)), 1
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4], [0, 1, 2, 0, 1, 2, 3, 4, 5]])
    found = {}
    for attn in ("sdpa", "sdpa_varlen"):
        model.set_attn_implementation(attn)
        spoken = [
            model.generate(
                rows, attention_mask=attended, max_new_tokens=12, do_sample=False, pad_token_id=0, use_cache=True
            )
            for rows, attended in ((ids, mask), (ids[:1], mask[:1]))
        ]
        with torch.no_grad():
            found[attn] = (*spoken, model(ids, position_ids=positions, use_cache=False).logits)
    for expected, got in zip(found["sdpa"], found["sdpa_varlen"], strict=True):
        torch.testing.assert_close(got, expected)
