"""Activation checkpointing changes neither losses nor gradients, and keeps less."""

from __future__ import annotations

import collections
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Trainer, TrainingArguments
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from llasa.config import FinetuneConfig
from llasa.model.activation_checkpointing import apply_activation_checkpointing, is_attention
from llasa.model.finetune import apply_finetune
from llasa.packing.collate import PackingCollator
from tests.model.tiny import examples, tiny_speech_model

ROOT = Path(__file__).parents[2]
FINETUNE = {
    "full": FinetuneConfig(name="full"),
    "embeddings": FinetuneConfig(name="full", train="embeddings"),
    "lora": FinetuneConfig(name="lora", rank=4, dropout=0.25),
}


def packed_batch(speech, count=8):
    samples = examples(speech, count)
    return PackingCollator(pad_token_id=0)([samples[: count // 2], samples[count // 2 :]])


def checkpointed_model(mode, finetune="full"):
    """A tiny model in training mode, and two packed rows."""
    speech = tiny_speech_model(spread=0.2)
    batch = packed_batch(speech)
    model = apply_finetune(speech.model, FINETUNE[finetune], None).train()
    apply_activation_checkpointing(model, mode)
    return model, batch


def loss_and_gradients(model, batch):
    torch.manual_seed(1)  # of adapters' dropout, which the recomputation has to repeat
    loss = model(**batch).loss
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


class Recorder(TorchDispatchMode):
    """Counts operators, and holds on weakly to every memory they make.

    `saved_tensors_hooks` would not do: checkpoint's own hide what is kept inside of it.
    """

    def __init__(self, model=None):
        """``model``: whose parameters are not counted, nor their views."""
        super().__init__()
        self.counts, self.memory, self.attention = collections.Counter(), {}, 0
        self.own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()} if model else set()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        results = function(*arguments, **(keywords or {}))
        self.counts[function.name().partition(".")[0]] += 1
        self.attention += is_attention(function)
        for result in torch.utils._pytree.tree_leaves(results):
            if isinstance(result, torch.Tensor):
                storage = result.untyped_storage()
                if storage.data_ptr() not in self.own:
                    self.memory[storage.data_ptr()] = (weakref.ref(storage), storage.nbytes())
        return results

    def alive(self):
        return sum(size for storage, size in self.memory.values() if storage() is not None)


@pytest.mark.parametrize("mode", ["selective", "full"])
@pytest.mark.parametrize("finetune", FINETUNE)
def test_losses_and_gradients_are_those_without(mode, finetune):
    """Fails when the generators' state is not restored (preserve_rng_state=False, with adapters' dropout)."""
    expected_loss, expected = loss_and_gradients(*checkpointed_model("none", finetune))
    loss, gradients = loss_and_gradients(*checkpointed_model(mode, finetune))
    assert loss == expected_loss
    assert gradients.keys() == expected.keys()
    assert max(gradient.abs().max() for gradient in gradients.values()) > 1e-3
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-6)


def test_bf16_arithmetic_gives_the_same_too():
    def run(mode):
        model, batch = checkpointed_model(mode)
        with torch.autocast("cpu", torch.bfloat16):
            return loss_and_gradients(model, batch)

    expected_loss, expected = run("none")
    for mode in ("selective", "full"):
        loss, gradients = run(mode)
        assert loss == expected_loss
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-6)


def kept_bytes(mode, finetune="full"):
    """What is alive after the decoder's forward pass, for each layer."""
    model, batch = checkpointed_model(mode, finetune)
    decoder = model.get_decoder()
    with Recorder(model) as recorder:
        hidden = decoder(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).last_hidden_state
        assert hidden.requires_grad
        return recorder.alive() / len(decoder.layers), batch["input_ids"].numel() * 4


def test_full_keeps_less_than_selective_keeps_less_than_none():
    """Fails when a mode is not applied, and when selective keeps everything or nothing."""
    none, _ = kept_bytes("none")
    selective, _ = kept_bytes("selective")
    full, token = kept_bytes("full")
    assert 0.3 < selective / none < 0.5
    assert 0.1 < full / none < 0.2
    # Selective keeps beside a layer's input: q, k, v, attention, its log-sum-exp, o, gate, up. Hidden 32, 4 heads
    # of 8, 2 of them for keys and values, MLP 64.
    assert selective - full == token * (32 + 16 + 16 + 32 + 4 + 32 + 64 + 64)


def test_selective_keeps_no_product_that_is_cheap():
    """An adapter's second product is as wide as the layer's own and takes 4 multiplications a number."""
    plain, token = kept_bytes("selective")
    adapted, _ = kept_bytes("selective", "lora")
    assert 0 < adapted - plain < token * (7 * 4 + 32)


@pytest.mark.parametrize(("mode", "products", "attention"), [("none", 0, 0), ("selective", 0, 0), ("full", 6, 1)])
def test_what_is_computed_again(mode, products, attention):
    """Of a layer's seven products full repeats all but the last, whose result no gradient needs; selective none."""
    model, batch = checkpointed_model(mode)
    layers = len(model.model.layers)
    loss = model(**batch).loss
    with Recorder() as recorder:
        loss.backward()
    plain = 2 * 7 * layers  # the gradients of input and weight
    assert recorder.counts["aten::mm"] - plain == products * layers
    assert recorder.attention == attention * layers
    if mode == "selective":  # but norms and SiLU are
        assert recorder.counts["aten::silu"] == layers
        assert recorder.counts["aten::rsqrt"] == 2 * layers


@pytest.mark.parametrize(("mode", "first"), [("selective", "checkpoint"), ("full", "compile")])
def test_compiled_layers_in_either_order(mode, first):
    """The compiler must see the checkpoint: fails when the compiled layer keeps as much as without."""
    expected_loss, expected = loss_and_gradients(*checkpointed_model("none"))
    kept = {}
    for each in ("none", mode):
        torch._dynamo.reset()
        model, batch = checkpointed_model("none" if first == "compile" else each)
        for layer in model.model.layers:
            layer.compile(backend="aot_eager")  # the same graphs as inductor's, without a C++ compiler
        if first == "compile":
            apply_activation_checkpointing(model, each)
        sizes = {}

        def remember(tensor, sizes=sizes):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
            loss, gradients = loss_and_gradients(model, batch)
        kept[each] = sum(sizes.values())
    assert loss == pytest.approx(expected_loss, abs=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-5)
    assert kept[mode] < 0.9 * kept["none"]


def count_mlp_calls(model):
    """Calls of the MLPs, those of the recomputation among them (which ends inside, so hooks behind are not called)."""
    calls = collections.Counter()
    for number, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_pre_hook(lambda *_, number=number: calls.update([number]))
    return calls


def test_layers_keep_their_class_and_names():
    plain, _ = checkpointed_model("none")
    model, _ = checkpointed_model("selective")
    assert list(model.state_dict()) == list(plain.state_dict())
    assert all(type(layer) is LlamaDecoderLayer for layer in model.model.layers)


def test_evaluation_and_generation_run_as_before():
    model, batch = checkpointed_model("full")
    plain, _ = checkpointed_model("none")
    calls = count_mlp_calls(model)
    model(**batch).loss.backward()
    assert set(calls.values()) == {2}
    calls.clear()
    with torch.no_grad():
        model(**batch)
    model.eval()(**batch).loss.backward()
    assert set(calls.values()) == {2}  # once each
    prompt = batch["input_ids"][:1, :5]
    settings = {"max_new_tokens": 4, "do_sample": False, "use_cache": True}
    assert torch.equal(model.generate(prompt, **settings), plain.eval().generate(prompt, **settings))


@pytest.mark.parametrize("finetune", ["full", "lora"])
def test_the_trainer_does_not_undo_it(finetune, tmp_path):
    model, batch = checkpointed_model("full", finetune)
    calls = count_mlp_calls(model.get_base_model() if finetune == "lora" else model)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True
    )
    Trainer(model=model, args=arguments, train_dataset=[0] * 8, data_collator=lambda _: dict(batch)).train()
    assert set(calls.values()) == {2}


ELSEWHERE = """
import json, sys, types
import torch
from llasa.model.activation_checkpointing import apply_activation_checkpointing
from llasa.model.kernels import liger_rotary, with_rotary_embedding
from torch.distributed.fsdp import fully_shard
from tests.model.test_activation_checkpointing import checkpointed_model, loss_and_gradients

def short(batch):  # an interpreted kernel is slow
    return {name: tensor[:1, 66:78] for name, tensor in batch.items()}

def liger(model):
    for layer in model.model.layers:
        attention = layer.self_attn
        attention.forward = types.MethodType(with_rotary_embedding(type(attention).forward, liger_rotary), attention)

def fsdp(model):
    for layer in model.model.layers:
        fully_shard(layer, reshard_after_forward=True)

torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
model, batch = checkpointed_model("none")
expected_loss, expected = loss_and_gradients(model, short(batch))
assert expected_loss > 1
worst = {}
for change, mode in ((liger, "selective"), (fsdp, "selective"), (fsdp, "full")):
    model, batch = checkpointed_model("none")
    if change is liger:
        liger(model)
    apply_activation_checkpointing(model, mode)
    if change is fsdp:
        fsdp(model)
    loss, gradients = loss_and_gradients(model, short(batch))
    assert gradients.keys() == expected.keys()
    whole = {name: getattr(g, "full_tensor", lambda g=g: g)() for name, g in gradients.items()}
    difference = max(float((whole[name] - expected[name]).abs().max()) for name in whole)
    worst[f"{change.__name__} {mode}"] = [abs(loss - expected_loss), difference]
print(json.dumps(worst))
torch.distributed.destroy_process_group()
"""


def test_with_ligers_rotary_embedding_and_with_fsdp(tmp_path):
    """Liger's kernel, interpreted, writes over queries and keys: fails when it gets the ones that were kept.
    FSDP2 gathers a layer's weights around the checkpoint, and again for the backward pass."""
    script = tmp_path / "elsewhere.py"
    script.write_text(ELSEWHERE)
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), str(tmp_path / "group")]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=300)
    assert result.returncode == 0, result.stderr
    worst = json.loads(result.stdout.splitlines()[-1])
    assert len(worst) == 3
    assert all(loss < 1e-5 and gradient < 1e-5 for loss, gradient in worst.values()), worst


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("attn", ["sdpa", "flash_attention_2"])
def test_on_cuda_attention_is_not_computed_again(attn):
    if attn == "flash_attention_2":
        pytest.importorskip("flash_attn")
    speech = tiny_speech_model(attn="sdpa", spread=0.2)
    model = speech.model.to("cuda", torch.bfloat16).train()
    model.set_attn_implementation(attn)
    batch = PackingCollator(pad_token_id=0, flatten=attn != "sdpa")([examples(speech, 6)])
    apply_activation_checkpointing(model, "selective")
    with Recorder() as forward:
        loss = model(**{name: tensor.cuda() for name, tensor in batch.items()}).loss
    assert forward.attention == len(model.model.layers), sorted(forward.counts)
    with Recorder() as backward:
        loss.backward()
    assert backward.attention == 0
