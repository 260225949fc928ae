"""Packed rows must give the losses and gradients of their examples alone, in every attention we use."""

import pytest
import torch

from llasa.packing.collate import PackingCollator
from tests.model.tiny import examples, tiny_speech_model


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def per_sample(model, samples):
    """Summed loss and gradients of the examples one by one, through full logits: the slow twin."""
    model.zero_grad()
    total, count = 0.0, 0
    for sample in samples:
        ids, labels = torch.from_numpy(sample.input_ids)[None], torch.from_numpy(sample.labels)
        logits = model(input_ids=ids, use_cache=False).logits[0]
        loss = torch.nn.functional.cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum")
        loss.backward()
        total, count = total + loss.item(), count + int((labels[1:] != -100).sum())
    return total / count, {name: grad / count for name, grad in gradients(model).items()}, count


def assert_close(loss, grads, expected_loss, expected_grads):
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    assert grads.keys() == expected_grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[name], atol=1e-5, rtol=1e-5)
    assert max(grad.abs().max() for grad in grads.values()) > 1e-3


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("rows", [1, 3])
def test_packed_equals_per_sample(attn, rows):
    speech = tiny_speech_model(attn=attn)
    model, samples = speech.model, examples(speech, 9)
    expected_loss, expected_grads, count = per_sample(model, samples)
    size = len(samples) // rows
    batch = PackingCollator(pad_token_id=0)([samples[i : i + size] for i in range(0, len(samples), size)])
    assert batch["input_ids"].shape[0] == rows
    model.zero_grad()
    loss = model(**batch, num_items_in_batch=count).loss
    loss.backward()
    assert_close(loss.item(), gradients(model), expected_loss, expected_grads)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_the_comparison_would_see_a_leak(attn):
    """With positions that run on, examples attend to their neighbours; the assertion above has to notice."""
    speech = tiny_speech_model(attn=attn)
    samples = examples(speech, 4)
    expected_loss, _, count = per_sample(speech.model, samples)
    batch = PackingCollator(pad_token_id=0)([samples])
    batch["position_ids"] = torch.arange(batch["input_ids"].shape[1])[None]
    assert abs(speech.model(**batch, num_items_in_batch=count).loss.item() - expected_loss) > 1e-4


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
    collate = PackingCollator(pad_token_id=0)
    expected_loss, expected_grads, count = per_sample(model, samples)
    model.zero_grad()
    total = 0.0
    for part in (samples[:1], samples[1:3], samples[3:]):
        loss = model(**collate([part]), num_items_in_batch=torch.tensor(count)).loss
        loss.backward()
        total += loss.item()
    assert_close(total, gradients(model), expected_loss, expected_grads)
