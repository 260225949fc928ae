"""Packed rows must give the losses and gradients of their examples alone, in every attention we use."""

import importlib.util

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

from llasa.config import ArchitectureConfig, KernelsConfig, ModelConfig
from llasa.model import attention
from llasa.model.llama import build_for_training
from llasa.packing.collate import PackingCollator
from tests.model.tiny import CODEC, examples, tiny_speech_model

gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def per_sample(model, samples, device="cpu"):
    """Mean loss and gradients of the examples one by one, through full logits: the slow twin."""
    model.zero_grad()
    total, count = 0.0, 0
    for sample in samples:
        ids, labels = torch.from_numpy(sample.input_ids)[None].to(device), torch.from_numpy(sample.labels).to(device)
        logits = model(input_ids=ids, use_cache=False).logits[0].float()
        loss = torch.nn.functional.cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum")
        if torch.is_grad_enabled():
            loss.backward()
        total, count = total + loss.item(), count + int((labels[1:] != -100).sum())
    return total / count, {name: grad / count for name, grad in gradients(model).items()}, count


def assert_close(loss, grads, expected_loss, expected_grads):
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    assert grads.keys() == expected_grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[name], atol=1e-5, rtol=1e-5)
    assert max(grad.abs().max() for grad in grads.values()) > 1e-3


def collate(samples, rows, *, flatten=False):
    size = len(samples) // rows
    batch = PackingCollator(pad_token_id=0, flatten=flatten)(
        [samples[i : i + size] for i in range(0, len(samples), size)]
    )
    assert batch["input_ids"].shape[0] == (1 if flatten else rows)
    return batch


def running_on(batch):
    """Positions that do not restart: examples attend to their neighbours, which the comparisons have to notice."""
    return {**batch, "position_ids": torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])}


@pytest.mark.parametrize("attn", ["sdpa", "sdpa_varlen", "eager"])
@pytest.mark.parametrize(("rows", "flatten"), [(1, False), (3, False), (3, True)])
def test_packed_equals_per_sample(attn, rows, flatten):
    speech = tiny_speech_model(attn=attn)
    model, samples = speech.model, examples(speech, 9)
    expected_loss, expected_grads, count = per_sample(model, samples)
    model.zero_grad()
    loss = model(**collate(samples, rows, flatten=flatten), num_items_in_batch=count).loss
    loss.backward()
    assert_close(loss.item(), gradients(model), expected_loss, expected_grads)


@pytest.mark.parametrize("attn", ["sdpa", "sdpa_varlen", "eager"])
def test_the_comparison_would_see_a_leak(attn):
    speech = tiny_speech_model(attn=attn)
    samples = examples(speech, 4)
    expected_loss, _, count = per_sample(speech.model, samples)
    batch = running_on(collate(samples, 1))
    assert abs(speech.model(**batch, num_items_in_batch=count).loss.item() - expected_loss) > 1e-4


def test_a_cache_that_the_config_asks_for_is_not_used():
    """Fails when the forward leaves it on: transformers then takes a packed row for one long text."""
    speech = tiny_speech_model()
    samples = examples(speech, 4)
    expected_loss, _, count = per_sample(speech.model, samples)
    speech.model.config.use_cache = True
    assert speech.model(**collate(samples, 1), num_items_in_batch=count).loss.item() == pytest.approx(expected_loss)


@pytest.mark.slow  # half a minute of compilation
def test_flex_attention_without_gradients():
    """What of flex attention runs on a CPU: the block mask of packed rows, and the forward pass."""
    speech = tiny_speech_model()
    model, samples = speech.model, examples(speech, 9)
    with torch.no_grad():
        expected_loss, _, count = per_sample(model, samples)
        model.set_attn_implementation("flex_attention")
        batch = collate(samples, 3)
        assert model(**batch, num_items_in_batch=count).loss.item() == pytest.approx(expected_loss, abs=1e-5)
        leaking = model(**running_on(batch), num_items_in_batch=count).loss.item()
        assert abs(leaking - expected_loss) > 1e-4


def attention_by_boundaries(module, query, key, value, attention_mask, *, scaling, cu_seq_lens_q, **kwargs):
    """What FlashAttention does with variable lengths, example by example: rows end to end, cut at the boundaries."""
    assert attention_mask is None
    assert kwargs["max_length_q"] == cu_seq_lens_q.diff().max()
    rows, _, length, _ = query.shape
    query, key, value = (states.transpose(1, 2).flatten(0, 1).transpose(0, 1) for states in (query, key, value))
    parts = [
        torch.nn.functional.scaled_dot_product_attention(
            *(states[:, start:stop] for states in (query, key, value)), is_causal=True, scale=scaling, enable_gqa=True
        )
        for start, stop in cu_seq_lens_q.unfold(0, 2, 1).tolist()
    ]
    return torch.cat(parts, dim=1).transpose(0, 1).unflatten(0, (rows, length)), None


@pytest.mark.parametrize(("rows", "flatten"), [(1, False), (3, False), (3, True)])
def test_what_a_flash_attention_is_given_keeps_examples_apart(monkeypatch, rows, flatten):
    """Fails when the boundaries do not reach the layers, or rows are not laid end to end."""
    name = "attention_by_boundaries"
    monkeypatch.setitem(attention.FLASH, name, attention.FLASH["flash_attention_2"])
    AttentionInterface.register(name, attention_by_boundaries)
    AttentionMaskInterface.register(name, flash_attention_mask)
    speech = tiny_speech_model()
    model, samples = speech.model, examples(speech, 9)
    expected_loss, expected_grads, count = per_sample(model, samples)
    model.set_attn_implementation(name)
    model.zero_grad()
    batch = collate(samples, rows, flatten=flatten)
    loss = model(**batch, num_items_in_batch=count).loss
    loss.backward()
    assert_close(loss.item(), gradients(model), expected_loss, expected_grads)
    leaking = model(**running_on(batch), num_items_in_batch=count).loss.item()
    assert abs(leaking - expected_loss) > 1e-4


def flash(version, module):
    marks = [*gpu, pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"needs {module}")]
    return pytest.param("cuda", f"flash_attention_{version}", marks=marks)


@pytest.mark.parametrize(
    ("device", "attn"),
    [
        ("cpu", "sdpa"),
        pytest.param("cuda", "sdpa", marks=gpu),
        pytest.param("cuda", "flex_attention", marks=gpu),
        flash(2, "flash_attn"),
        flash(3, "flash_attn_interface"),
        flash(4, "flash_attn.cute" if importlib.util.find_spec("flash_attn") else "flash_attn"),
    ],
)
def test_packed_equals_per_sample_in_bf16(device, attn):
    """Under bf16 autocast, against sdpa one by one on the same device; a leak is an order of magnitude larger.

    The shape is one that every kernel accepts: heads of 64, two queries a key.
    """
    shape = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    architecture = ArchitectureConfig(num_key_value_heads=2, initializer_range=0.1, **shape)
    config = ModelConfig(name="tiny", architecture=architecture, lr=1e-3, max_length=256)
    if attn != "sdpa" and attn not in attention.installed_kernels() | {"flex_attention"}:
        pytest.skip(f"transformers does not find {attn}")
    torch.manual_seed(0)
    speech = build_for_training(config, KernelsConfig(name="torch", attn=attn), CODEC, device, "bf16")
    model = speech.model.to(device).train()
    samples = examples(speech, 9)

    def packed(batch):
        model.zero_grad()
        batch = {key: value.to(device) for key, value in batch.items()}
        loss = model(**batch, num_items_in_batch=count).loss
        loss.backward()
        return loss.item(), gradients(model)

    def distance(grads):
        """Largest difference of a weight's gradient, relative to its norm."""
        return max(
            float((grad - expected_grads[name]).norm() / expected_grads[name].norm()) for name, grad in grads.items()
        )

    with torch.autocast(device, torch.bfloat16):
        model.set_attn_implementation("sdpa")
        expected_loss, expected_grads, count = per_sample(model, samples, device)
        model.set_attn_implementation(attn)
        for rows, flatten in ((1, False), (3, False), (3, True)):
            loss, grads = packed(collate(samples, rows, flatten=flatten))
            assert loss == pytest.approx(expected_loss, rel=5e-3)
            assert grads.keys() == expected_grads.keys()
            assert distance(grads) < 0.05
        loss, grads = packed(running_on(collate(samples, 1)))
    assert distance(grads) > 0.5, "the comparison would not see a leak"


@pytest.mark.parametrize("chunk", [1, 5, 10_000])
def test_chunked_loss_equals_full_logits_whatever_the_chunk(chunk):
    speech = tiny_speech_model(chunk=chunk)
    samples = examples(speech, 3)
    expected_loss, expected_grads, _ = per_sample(speech.model, samples)
    speech.model.zero_grad()
    loss = speech.model(**PackingCollator(pad_token_id=0)([samples])).loss
    loss.backward()
    assert_close(loss.item(), gradients(speech.model), expected_loss, expected_grads)


def test_micro_batches_add_up_to_the_whole_step():
    """Averaged over the supervised tokens of the step, not over micro-batches of unequal size."""
    speech = tiny_speech_model()
    model, samples = speech.model, examples(speech, 6)
    collator = PackingCollator(pad_token_id=0)
    expected_loss, expected_grads, count = per_sample(model, samples)
    model.zero_grad()
    total = 0.0
    for part in (samples[:1], samples[1:3], samples[3:]):
        loss = model(**collator([part]), num_items_in_batch=torch.tensor(count)).loss
        loss.backward()
        total += loss.item()
    assert_close(total, gradients(model), expected_loss, expected_grads)
