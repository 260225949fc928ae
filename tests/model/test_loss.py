"""The loss without logits: equal to full logits whatever the head, and as small in memory as it says."""

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy, linear
from transformers import LlamaConfig, LlamaForCausalLM

from llasa.config import KernelsConfig
from llasa.model.loss import (
    FusedLinearCrossEntropy,
    liger_chunk_size,
    liger_chunks,
    loss_bytes,
    module_cross_entropy,
    plain_weight,
    summed_loss,
    use_fused_loss,
)

VOCAB = 193_800
CHUNKS_OF_5 = KernelsConfig(name="torch", attn="sdpa", loss_chunk_size=5)


def tiny_llama(*, tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=97, tie_word_embeddings=tied, initializer_range=0.2, use_cache=False, **shape)
    )
    use_fused_loss(model, "torch", CHUNKS_OF_5)
    return model


def batch() -> dict[str, torch.Tensor]:
    """Two rows of 16 tokens, 20 of them supervised, which is no multiple of the chunk."""
    ids = torch.randint(0, 97, (2, 16), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[0, :7] = labels[1, 5:10] = -100
    return {"input_ids": ids, "labels": labels, "position_ids": torch.arange(16).repeat(2, 1)}


def full_logits_loss(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The slow twin: all logits, through whatever the head is."""
    logits = model(input_ids=inputs["input_ids"], position_ids=inputs["position_ids"], use_cache=False).logits
    return cross_entropy(logits[:, :-1].flatten(0, 1).float(), inputs["labels"][:, 1:].flatten(), ignore_index=-100)


def loss_and_gradients(
    model: torch.nn.Module, loss: Callable[[], torch.Tensor]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    value = loss()
    value.backward()
    return value.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equals_full_logits(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    inputs = batch()
    expected, expected_gradients = loss_and_gradients(model, lambda: full_logits_loss(model, inputs))
    value, gradients = loss_and_gradients(model, lambda: model(**inputs).loss)
    torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients, expected_gradients, atol=1e-5, rtol=1e-5)
    assert max(gradient.abs().max() for gradient in gradients.values()) > 1e-3
    return gradients


@pytest.mark.parametrize("tied", [True, False])
def test_a_plain_head(tied):
    """Fails when the 1 is not taken from the probability of the target, or targets are not shifted."""
    model = tiny_llama(tied=tied)
    assert plain_weight(model.lm_head) is model.lm_head.weight
    gradients = assert_equals_full_logits(model)
    assert ("lm_head.weight" in gradients) is not tied


def test_a_head_with_adapters():
    """Fails when the head's own weight is taken: the adapters would neither count nor learn."""
    model = get_peft_model(tiny_llama(), LoraConfig(r=4, target_modules=["lm_head", "q_proj"], init_lora_weights=False))
    assert plain_weight(model.get_base_model().lm_head) is None
    gradients = assert_equals_full_logits(model)
    assert sum("lm_head.lora" in name for name in gradients) == 2


def test_a_copy_of_the_head_that_is_trained_beside_adapters():
    """Fails when the original is taken instead of the copy, or the copy when adapters are switched off."""
    model = get_peft_model(tiny_llama(), LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    head = model.get_base_model().lm_head
    with torch.no_grad():
        head.modules_to_save["default"].weight.mul_(1.5)
    assert plain_weight(head) is head.modules_to_save["default"].weight
    assert any("lm_head" in name for name in assert_equals_full_logits(model))
    with model.disable_adapter(), torch.no_grad():
        assert plain_weight(head) is head.original_module.weight
        torch.testing.assert_close(model(**batch()).loss, full_logits_loss(model, batch()))


def test_a_head_with_a_bias():
    """It is none of a Llama's, and must not be left out in silence."""
    model = tiny_llama()
    model.lm_head = torch.nn.Linear(32, 97)
    assert_equals_full_logits(model)


def test_a_frozen_head_gets_no_gradient():
    model = tiny_llama()
    model.lm_head.requires_grad_(False)
    assert "lm_head.weight" not in assert_equals_full_logits(model)


def test_without_gradients_the_loss_is_the_same():
    model = tiny_llama()
    with torch.no_grad():
        torch.testing.assert_close(model(**batch()).loss, full_logits_loss(model, batch()))


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 100])
def test_the_function_in_double_precision(chunk_size):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.randn(size, generator=generator, dtype=torch.float64, requires_grad=True) for size in ((7, 4), (11, 4))
    )
    targets = torch.randint(0, 11, (7,), generator=generator)
    expected = cross_entropy(linear(hidden, weight), targets, reduction="sum")
    value = FusedLinearCrossEntropy.apply(hidden, weight, targets, chunk_size, True)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    gradients, exact = (torch.autograd.grad(3 * loss, (hidden, weight)) for loss in (value, expected))
    torch.testing.assert_close(gradients, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("head", ["plain", "adapters"])
@pytest.mark.parametrize("num_items", [None, 12])
def test_a_batch_without_supervised_positions_has_loss_0_and_gradients_of_0(head, num_items):
    """Fails (NaN, or a division by zero) when the mean of no positions is taken, and, in processes that wait for each
    other's gradients, when there are none."""
    model = tiny_llama()
    if head == "adapters":
        model = get_peft_model(model, LoraConfig(r=4, target_modules=["lm_head", "q_proj"], init_lora_weights=False))
    inputs = batch()
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    value, gradients = loss_and_gradients(model, lambda: model(**inputs, num_items_in_batch=num_items).loss)
    assert value.item() == 0
    assert gradients.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients.values())


def test_bf16_adds_up_in_fp32():
    """128 chunks: the sum of their losses in bf16 would be 1 per cent off (it is in torch's own function)."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(2048, 64, generator=generator), torch.randn(500, 64, generator=generator) / 20
    targets = torch.randint(0, 500, (2048,), generator=generator)
    hidden, weight = (tensor.bfloat16().float().requires_grad_() for tensor in (hidden, weight))
    expected = cross_entropy(linear(hidden, weight), targets, reduction="sum")
    expected_gradients = torch.autograd.grad(expected, (hidden, weight))
    value = FusedLinearCrossEntropy.apply(hidden.bfloat16(), weight, targets, 16, True)
    gradients = torch.autograd.grad(value, (hidden, weight))
    assert value.dtype == gradients[1].dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)
    for gradient, exact in zip(gradients, expected_gradients, strict=True):
        assert (gradient - exact).norm() < 5e-3 * exact.norm()
    theirs = torch.nn.functional.linear_cross_entropy(
        hidden.bfloat16(),
        weight.bfloat16(),
        targets,
        reduction="sum",
        options=torch.nn.LinearCrossEntropyOptions(batch_chunk_size=16),
    )
    assert abs(theirs.item() / expected.item() - 1) > 1e-3, "torch's own would do now: use it"


@pytest.mark.parametrize("head", ["plain", "adapters"])
def test_autocast(head):
    """Hidden states are fp32 under autocast, and the head is to be computed in bf16. Fails when it is left in fp32."""
    model = tiny_llama()
    if head == "adapters":
        model = get_peft_model(
            model, LoraConfig(r=4, target_modules=["lm_head"], init_lora_weights=False)
        ).get_base_model()
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(20, 32, generator=generator, requires_grad=True)
    targets = torch.randint(0, 97, (20,), generator=generator)
    exact = summed_loss(hidden, model.lm_head, targets, "torch", CHUNKS_OF_5)
    with torch.autocast("cpu", torch.bfloat16):
        expected = cross_entropy(model.lm_head(hidden).float(), targets, reduction="sum")
        value = summed_loss(hidden, model.lm_head, targets, "torch", CHUNKS_OF_5)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert value.item() != pytest.approx(exact.item(), rel=2e-6)
    learning = [hidden, *(p for p in model.lm_head.parameters() if p.requires_grad)]
    expected_gradients = torch.autograd.grad(expected, learning)
    for gradient, close in zip(torch.autograd.grad(value, learning), expected_gradients, strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - close).norm() < 0.01 * close.norm()


def test_an_attention_mask_is_refused():
    """It would switch the separation of packed examples off, silently."""
    with pytest.raises(AssertionError, match="attention mask"):
        tiny_llama()(**batch(), attention_mask=torch.ones(2, 16))


def peak_bytes(run: Callable[[], object]) -> int:
    """Most memory that torch's allocator had given out at a time, counted from its own reports, so exact."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    reports = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert reports
    now = peak = 0
    for report in sorted(reports, key=lambda report: report.start_ns()):
        now += report.nbytes()
        peak = max(peak, now)
    return peak


def training_loss(tokens: int, vocab: int, hidden: int, chunk: int, *, head: str, train_head: bool = True) -> int:
    """Peak of forward and backward of one of the three: fused, module, full."""
    torch.manual_seed(0)
    states = torch.randn(tokens, hidden, requires_grad=True)
    module = torch.nn.Linear(hidden, vocab, bias=False).requires_grad_(train_head)
    targets = torch.randint(0, vocab, (tokens,))

    def run() -> None:
        selected = states.index_select(0, torch.arange(tokens))
        if head == "fused":
            loss = FusedLinearCrossEntropy.apply(selected, module.weight, targets, chunk, True)
        elif head == "module":
            loss = module_cross_entropy(selected, module, targets, chunk)
        else:
            loss = cross_entropy(module(selected), targets, reduction="sum")
        (loss / tokens).backward()

    return peak_bytes(run)


def test_peak_memory_at_2048_tokens_and_193800_rows():
    """At most a fifth of full logits, which are at least the logits and their gradient. Fails with a chunk of 1,024."""
    full = 2 * 2048 * VOCAB * 4
    assert training_loss(2048, VOCAB, 64, KernelsConfig(name="torch").loss_chunk_size, head="fused") <= 0.2 * full


def test_full_logits_are_at_least_the_logits_and_their_gradient():
    """What the bound above is a share of, measured where it is small."""
    assert training_loss(256, 20_000, 64, 0, head="full") >= 2 * 256 * 20_000 * 4


@pytest.mark.parametrize(
    ("kernel", "tokens", "vocab", "hidden", "train_head"),
    [
        ("torch", 512, 19_380, 256, True),
        ("torch", 2048, 19_380, 256, True),
        ("torch", 100, 19_380, 256, True),
        ("torch", 512, 19_380, 256, False),
        ("module", 512, 19_380, 64, False),
        pytest.param("torch", 512, VOCAB, 256, True, marks=pytest.mark.slow),
        pytest.param("torch", 2048, VOCAB, 256, True, marks=pytest.mark.slow),
    ],
)
def test_predicted_bytes_are_the_measured_ones(kernel, tokens, vocab, hidden, train_head):
    config = KernelsConfig(name="torch", loss_chunk_size=256)
    predicted = loss_bytes(kernel, tokens, vocab, hidden, config, 4, trains_head=train_head)
    head = "fused" if kernel == "torch" else "module"
    assert predicted == pytest.approx(
        training_loss(tokens, vocab, hidden, 256, head=head, train_head=train_head), rel=0.15
    )


def test_predicted_bytes_in_bf16_are_the_measured_ones():
    torch.manual_seed(0)
    states, weight = torch.randn(512, 256, requires_grad=True), torch.randn(19_380, 256, requires_grad=True)
    targets = torch.randint(0, 19_380, (512,))

    def run() -> None:
        FusedLinearCrossEntropy.apply(states.bfloat16(), weight, targets, 128, True).backward()

    config = KernelsConfig(name="torch", loss_chunk_size=128)
    assert loss_bytes("torch", 512, 19_380, 256, config, 2) == pytest.approx(peak_bytes(run), rel=0.15)


def test_chunks_of_liger():
    """The published cost of its default, and ours (test_kernels counts those of the library itself)."""
    assert liger_chunks(8192, VOCAB, 2048, chunk_memory=1) == 64
    assert liger_chunks(2048, VOCAB, 2048, chunk_memory=1) == 64
    assert (liger_chunks(8192, VOCAB, 2048, chunk_memory=8), liger_chunk_size(8192, VOCAB, 2048, 8)) == (8, 1024)
    assert liger_chunks(1, VOCAB, 2048, chunk_memory=8) == 1
    small, large = (
        loss_bytes("liger", 8192, VOCAB, 2048, KernelsConfig(name="liger", liger_chunk_memory=memory), 4)
        for memory in (1, 8)
    )
    assert large - small == (1024 - 128) * VOCAB * 4
