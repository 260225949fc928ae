"""Fast parts belong to one model: what they compute is the same, and no other model of the process notices.

Liger's kernels run on a CPU only in Triton's interpreter, which has to be chosen before they are imported, and there
RMSNorm and SwiGLU do not; so a process of its own checks the loss and the rotary embedding, and that patching touches
nothing else. The whole stack is compared on a GPU.
"""

import json
import os
import subprocess
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from llasa.config import KernelsConfig
from llasa.errors import UserError
from llasa.model.activation_checkpointing import apply_activation_checkpointing
from llasa.model.kernels import apply_kernels, globals_kept, resolve_kernels, with_rotary_embedding

ROOT = Path(__file__).parents[2]
LIGER = find_spec("liger_kernel") is not None


def llama(*, tied: bool = False, hidden_act: str = "silu", num_layers: int = 2) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM._from_config(
        LlamaConfig(
            vocab_size=500,
            num_hidden_layers=num_layers,
            hidden_act=hidden_act,
            tie_word_embeddings=tied,
            initializer_range=0.1,
            use_cache=False,
            **shape,
        ),
        attn_implementation="sdpa",
    )


def batch(length: int = 24, seed: int = 0) -> dict[str, torch.Tensor]:
    """Two packed rows of two examples; the first third is not supervised."""
    ids = torch.randint(0, 500, (2, length), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[:, : length // 3] = -100
    positions = torch.cat([torch.arange(10), torch.arange(length - 10)]).repeat(2, 1)
    return {"input_ids": ids, "labels": labels, "position_ids": positions}


def full_logits_loss(model: LlamaForCausalLM, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    logits = model(input_ids=inputs["input_ids"], position_ids=inputs["position_ids"], use_cache=False).logits
    return cross_entropy(logits[:, :-1].flatten(0, 1).float(), inputs["labels"][:, 1:].flatten())


def test_kernels_are_resolved_by_the_device():
    assert resolve_kernels("auto", "cpu") == resolve_kernels("torch", "cuda") == "torch"
    assert resolve_kernels("auto", "cuda") == ("liger" if LIGER else "torch")
    with pytest.raises(UserError, match="needs a CUDA device"):
        resolve_kernels("liger", "cpu")


def test_a_copy_of_attention_rotates_differently_and_the_original_does_not():
    """Fails when the name is set in the shared globals."""
    from transformers.models.llama import modeling_llama

    plain, other = llama(), llama()
    calls = []

    def rotary(q, k, cos, sin):
        calls.append(q.shape)
        return modeling_llama.apply_rotary_pos_emb(q, k, cos, sin)

    for layer in other.model.layers:
        forward = with_rotary_embedding(type(layer.self_attn).forward, rotary)
        layer.self_attn.forward = types.MethodType(forward, layer.self_attn)
    ids = batch()["input_ids"]
    assert torch.equal(plain(ids).logits, other(ids).logits)
    assert len(calls) == 2
    with pytest.raises(AssertionError, match="does not call apply_rotary_pos_emb"):
        with_rotary_embedding(modeling_llama.LlamaMLP.forward, rotary)


def test_globals_are_put_back_also_after_an_error():
    module = types.ModuleType("module")
    module.name = 1

    def change() -> None:
        with globals_kept(module):
            module.name = 2
            raise KeyError

    with pytest.raises(KeyError):
        change()
    assert module.name == 1


IN_THE_INTERPRETER = """
import json
import torch
from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy
from transformers.models.llama import modeling_llama
from llasa.config import KernelsConfig
from llasa.model.kernels import apply_kernels, liger_rotary, use_liger_layers
from llasa.model.loss import liger_chunks, use_fused_loss
from tests.model.test_kernels import batch, full_logits_loss, llama

facts = {}
plain = llama()
names = {name: value for name, value in vars(modeling_llama).items()}
methods = {cls: dict(vars(cls)) for cls in vars(modeling_llama).values() if isinstance(cls, type)}
patched, other = llama(), llama(hidden_act="gelu")
apply_kernels(patched, "liger", KernelsConfig(name="liger"))
apply_kernels(other, "liger", KernelsConfig(name="liger"))
facts["globals"] = [n for n, value in vars(modeling_llama).items() if names.get(n) is not value]
facts["classes"] = [c.__name__ for c, before in methods.items() if dict(vars(c)) != before]
layer = patched.model.layers[1]
facts["patched"] = [layer.input_layernorm._get_name(), layer.post_attention_layernorm._get_name(),
                    patched.model.norm._get_name(), layer.mlp._get_name(), other.model.layers[0].mlp._get_name()]
later = llama()
own = lambda model: [n for n, module in model.named_modules() if "forward" in vars(module)]
facts["untouched"] = own(plain) + own(later)
facts["state"] = list(patched.state_dict()) == list(plain.state_dict())

def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in model.parameters()]

inputs = batch()
expected = full_logits_loss(plain, inputs)
expected_gradients = gradients(plain, expected)
facts["loss"] = []
for memory in (1, 8):
    # Layers without the kernels that the interpreter cannot run, but with the rotary embedding.
    model = llama()
    for a, b in zip(model.model.layers, patched.model.layers):
        a.self_attn.forward = type(b.self_attn.forward)(b.self_attn.forward.__func__, a.self_attn)
    use_fused_loss(model, "liger", KernelsConfig(name="liger", liger_chunk_memory=memory))
    loss = model(**inputs).loss
    distance = max(float((g - e).abs().max()) for g, e in zip(gradients(model, loss), expected_gradients))
    facts["loss"].append([abs(float(loss - expected)), distance])
none = {**inputs, "labels": torch.full_like(inputs["labels"], -100)}
loss = model(**none).loss
facts["none"] = [float(loss), max(float(g.abs().max()) for g in gradients(model, loss))]
model.model.requires_grad_(False)
model.zero_grad()
model(**inputs).loss.backward()
facts["head_alone"] = float((model.lm_head.weight.grad - expected_gradients[-1]).abs().max())

generator = torch.Generator().manual_seed(0)
facts["chunks"] = []
shapes = (13, 50, 16, 1), (13, 50, 16, 2), (40, 333, 16, 1), (40, 333, 16, 8), (1, 50, 16, 1)
for tokens, vocab, hidden, memory in shapes:
    states = torch.randn(tokens, hidden, generator=generator, requires_grad=True)
    weight = torch.randn(vocab, hidden, generator=generator, requires_grad=True)
    targets = torch.randint(0, vocab, (tokens,), generator=generator)
    with torch.profiler.profile() as profiler:
        liger_fused_linear_cross_entropy(states, weight, targets, reduction="sum", chunk_mem_const=memory)
    products = sum(event.count for event in profiler.key_averages() if event.key == "aten::mm")
    facts["chunks"].append([liger_chunks(tokens, vocab, hidden, memory), products / 3])
q, k = (torch.randn(2, 6, heads, 16).transpose(1, 2) for heads in (4, 2))  # as they come from their projections
before = q.clone(), k.clone()
angles = torch.randn(2, 6, 8).repeat(1, 1, 2)
rotated = liger_rotary(q, k, angles.cos(), angles.sin())
theirs = modeling_llama.apply_rotary_pos_emb(q, k, angles.cos(), angles.sin())
facts["rotary"] = max(float((a - b).abs().max()) for a, b in zip(rotated, theirs))
facts["in_place"] = not (torch.equal(q, before[0]) and torch.equal(k, before[1]))
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def facts():
    if not LIGER:
        pytest.skip("needs liger-kernel")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", IN_THE_INTERPRETER], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


def test_liger_patches_one_model_and_nothing_else(facts):
    """Fails when the globals that Liger exchanges are not put back, or its rotary embedding is set there."""
    assert facts["globals"] == facts["classes"] == facts["untouched"] == []
    assert facts["patched"] == ["LigerRMSNorm"] * 3 + ["LigerSwiGLUMLP", "LlamaMLP"], "SwiGLU is not for a GELU"
    assert facts["state"], "the names of the weights change"


def test_ligers_loss_equals_full_logits_whatever_the_chunks(facts):
    """Fails when hidden states and targets are shifted against each other."""
    for loss, gradient in facts["loss"]:
        assert loss < 1e-5
        assert gradient < 1e-5


def test_ligers_loss_of_no_supervised_positions(facts):
    """Fails with a division by zero in Liger's own code when it is called with none."""
    assert facts["none"] == [0, 0]


def test_ligers_loss_trains_a_head_alone(facts):
    """Fails (no gradient) when hidden states that need none are passed as they are."""
    assert facts["head_alone"] < 1e-5


def test_the_number_of_ligers_chunks_is_the_predicted_one(facts):
    assert all(predicted == counted for predicted, counted in facts["chunks"])
    assert len({predicted for predicted, _ in facts["chunks"]}) > 2


def test_ligers_rotary_embedding_is_that_of_transformers_and_leaves_its_input(facts):
    """Fails when it is not given copies: selective activation checkpointing keeps what it would write over."""
    assert facts["rotary"] < 1e-6
    assert not facts["in_place"]


def test_compilation_without_a_compiler_is_the_users_mistake(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler, and there is no no-such-compiler"):
        apply_kernels(llama(), "torch", KernelsConfig(name="torch", compile=True))


@pytest.mark.slow  # two minutes of compilation
@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_compiled_layers_give_the_same_loss_and_are_compiled_once_for_all(checkpointing):
    """Fails when layers are not compiled, or each by itself."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    plain, compiled = llama(num_layers=3), llama(num_layers=3)
    apply_kernels(plain, "torch", KernelsConfig(name="torch"))
    apply_kernels(compiled, "torch", KernelsConfig(name="torch", compile=True))
    apply_activation_checkpointing(compiled, checkpointing)
    for length in (24, 32, 40):  # the first compiles, the second for any length, the third nothing
        inputs = batch(length, seed=length)
        losses = []
        for model in (plain, compiled):
            model.train().zero_grad()
            losses.append(model(**inputs).loss)
            losses[-1].backward()
        torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
        for (name, p), q in zip(compiled.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, atol=1e-5, rtol=1e-5, msg=name)
    assert counters["stats"]["unique_graphs"] == 2


on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (torch.cuda.is_available() and LIGER), reason="needs a CUDA device and liger-kernel"),
]


@pytest.mark.parametrize("chunk_memory", [1, 8])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kernel", [pytest.param("liger", marks=on_gpu), "torch"])
def test_a_whole_model_equals_full_logits(kernel, tied, chunk_memory):
    """Layers and loss, in fp32; a plain model of the same process runs before and after."""
    device = "cuda" if kernel == "liger" else "cpu"
    plain, model = llama(tied=tied).to(device), llama(tied=tied).to(device).train()
    inputs = {name: value.to(device) for name, value in batch().items()}
    before = full_logits_loss(plain, inputs)
    before.backward()
    config = KernelsConfig(name=kernel, liger_chunk_memory=chunk_memory, loss_chunk_size=5 * chunk_memory)
    apply_kernels(model, kernel, config)
    loss = model(**inputs).loss
    loss.backward()
    torch.testing.assert_close(loss, before, atol=1e-4, rtol=1e-4)
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-4, rtol=1e-4, msg=name)
    assert torch.equal(full_logits_loss(plain, inputs), before)


@pytest.mark.parametrize("kernel", [pytest.param("liger", marks=on_gpu), pytest.param("torch", marks=on_gpu)])
def test_a_whole_model_in_bf16_on_a_gpu(kernel):
    """Under autocast: the loss within bf16's rounding of fp32's, and the head's gradient added up in fp32."""
    plain, model = llama().to("cuda"), llama().to("cuda").train()
    inputs = {name: value.to("cuda") for name, value in batch(40).items()}
    expected = full_logits_loss(plain, inputs)
    expected.backward()
    apply_kernels(model, kernel, KernelsConfig(name=kernel, loss_chunk_size=16))
    with torch.autocast("cuda", torch.bfloat16):
        loss = model(**inputs).loss
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, atol=1e-2, rtol=1e-2)
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (p.grad - q.grad).norm() < 0.05 * q.grad.norm(), name
