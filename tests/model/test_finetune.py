"""Full, LoRA and QLoRA: what learns, and that the same model comes out of every way to save and load it."""

import json

import pytest
import torch
from transformers import LlamaForCausalLM, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from llasa.config import ArchitectureConfig, FinetuneConfig, KernelsConfig, ModelConfig
from llasa.errors import UserError
from llasa.model.checkpoint import save_adapter, save_checkpoint
from llasa.model.finetune import count_weights, is_tied, merged_model, merged_state_dict
from llasa.model.llama import build_for_training, load_for_inference
from llasa.packing.collate import PackingCollator
from tests.model.tiny import CODEC, build_from, examples, save_tiny, tiny_speech_model, tiny_text_model

EMBEDDINGS = ("none", "lora", "full")


def adapters(name="lora", embeddings="none", **settings):
    return FinetuneConfig(name=name, rank=4, alpha=8.0, embeddings=embeddings, **settings)


def batch_of(speech, count=4):
    return PackingCollator(pad_token_id=0)([examples(speech, count)])


def step(speech, steps=4, lr=2e-2):
    """Optimizer steps on one packed batch; returns the losses and the gradients of the first."""
    batch = batch_of(speech)
    learning = {name: p for name, p in speech.model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(learning.values(), lr=lr)
    speech.model.train()
    losses, first = [], {}
    for _ in range(steps):
        loss = speech.model(**batch).loss
        loss.backward()
        first = first or {name: p.grad.clone() for name, p in learning.items() if p.grad is not None}
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    speech.model.eval()
    return losses, first


@torch.no_grad()
def logits(model, ids):
    return model(input_ids=ids, use_cache=False).logits


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    return {tied: save_tiny(root / f"tied-{tied}", tied=tied) for tied in (True, False)}


@pytest.mark.parametrize("tied", [True, False])
def test_training_the_embeddings_alone_moves_nothing_else(bases, tied):
    """Fails when the head of an untied model, or any layer, is left out of or let into what learns."""
    speech = build_from(bases[tied], FinetuneConfig(name="full", train="embeddings"))
    before = {name: p.detach().clone() for name, p in speech.model.named_parameters()}
    losses, gradients = step(speech)
    expected = {"model.embed_tokens.weight"} | (set() if tied else {"lm_head.weight"})
    assert gradients.keys() == expected
    assert {n for n, p in speech.model.named_parameters() if not torch.equal(p, before[n])} == expected
    assert losses[-1] < losses[0]
    rows = speech.model.get_input_embeddings().weight.numel() * (1 if tied else 2)
    assert speech.notes["finetune"] == {"trainable": rows, "all": sum(p.numel() for p in before.values())}


def test_full_fine_tuning_reaches_every_weight(bases):
    speech = build_from(bases[True])
    _, gradients = step(speech, 1)
    assert gradients.keys() == {name for name, _ in speech.model.named_parameters()}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("embeddings", EMBEDDINGS)
@pytest.mark.parametrize("name", ["lora", "qlora"])
def test_the_same_logits_adapted_merged_saved_and_reloaded(bases, tmp_path, name, embeddings, tied):
    """Fails when the adapter of a tied head is merged a second time, when its scale is left out, when the 4-bit base
    is loaded in full for its adapter, or when embeddings that learned are not in the adapter's folder."""
    speech = build_from(bases[tied], adapters(name, embeddings))
    before = {key: p.detach().clone() for key, p in speech.model.named_parameters() if not p.requires_grad}
    losses, gradients = step(speech)
    assert losses[-1] < losses[0] - 0.1
    assert all(torch.equal(p, before[key]) for key, p in speech.model.named_parameters() if key in before)
    assert all(
        grad.abs().max() > 0 for key, grad in gradients.items() if "lora_A" not in key and "embedding_B" not in key
    )
    kinds = {key.split(".")[-4] for key in gradients if ".lora_" in key and ".layers." in key}
    assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    outside = {key for key in gradients if ".layers." not in key}
    heads = 1 if tied else 2
    assert len(outside) == {"none": 0, "lora": 2 * heads, "full": heads}[embeddings]

    ids = batch_of(speech, 1)["input_ids"]
    expected = logits(speech.model, ids)
    base = build_from(bases[tied])
    assert (expected - logits(base.model, ids)).abs().max() > 0.5, "nothing was learned, so nothing is compared"
    save_adapter(tmp_path / "adapter", speech.model, speech.tokenizer, speech.card)
    save_checkpoint(tmp_path / "checkpoint", speech.model, speech.tokenizer, speech.card)
    merged = merged_model(speech.model)
    assert torch.equal(logits(speech.model, ids), expected), "merging a copy changed the model"
    saved = load_for_inference(str(tmp_path / "checkpoint"), "cpu")
    reloaded = load_for_inference(str(tmp_path / "adapter"), "cpu")
    for model in (merged, saved.model, reloaded.model):
        assert type(model).__name__ == "LlamaForCausalLM"
        assert is_tied(model) == model.config.tie_word_embeddings == tied
        torch.testing.assert_close(logits(model, ids), expected, atol=1e-5, rtol=1e-5)
    assert saved.card.quantisation is None
    settings = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(bases[tied])
    files = {file.name for file in (tmp_path / "adapter").iterdir()}
    assert "adapter_model.safetensors" in files
    assert not files & {"model.safetensors", "config.json", "README.md"}


@pytest.mark.parametrize("name", ["lora", "qlora"])
def test_new_tokens_learn_beside_adapters_and_come_back_with_them(tmp_path, name):
    """Fails when the adapter's base is not given the new rows, or these are drawn anew."""
    text = tiny_text_model(tmp_path / "text")
    for embeddings in ("none", "lora"):
        with pytest.raises(UserError, match=r"would stay random; use finetune\.embeddings=full"):
            build_from(text, adapters(name, embeddings))
    speech = build_from(text, adapters(name, "full"))
    assert speech.notes["vocabulary"]["rows_after"] == len(speech.tokenizer)
    step(speech)
    save_adapter(tmp_path / "adapter", speech.model, speech.tokenizer, speech.card)
    ids = batch_of(speech, 1)["input_ids"]
    reloaded = load_for_inference(str(tmp_path / "adapter"), "cpu")
    torch.testing.assert_close(logits(reloaded.model, ids), logits(speech.model, ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peft_itself_reads_the_adapter(bases, tmp_path, dtype):
    """The adapter of a tied head is written out for other programs; fails when it is left out of the file: over bf16
    weights peft does not tie it by itself."""
    from peft import PeftModel

    speech = build_from(bases[True], adapters("lora", "lora"))
    step(speech)
    save_adapter(tmp_path / "adapter", speech.model, speech.tokenizer, speech.card)
    base = LlamaForCausalLM.from_pretrained(bases[True], dtype=dtype)
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    ids = batch_of(speech, 1)["input_ids"]
    expected = logits(speech.model, ids)
    assert expected.std() > 1
    assert (logits(theirs, ids).float() - expected).abs().mean() < (1e-6 if dtype == torch.float32 else 0.05)


def test_a_tied_head_shares_the_factors_of_the_embeddings(bases):
    """Their gradient is the sum of both uses, against an untied twin whose two adapters start as they do.

    Fails with peft's own tying (`ensure_weight_tying` alone), which gives the head parameters of its own.
    """
    tied, untied = (build_from(bases[True], adapters("lora", "lora")) for _ in range(2))
    source, head = untied.model.get_input_embeddings(), untied.model.get_output_embeddings()
    for mine, theirs in (("A", "B"), ("B", "A")):
        factor = getattr(source, f"lora_embedding_{theirs}").default
        factor.data.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
        getattr(tied.model.get_input_embeddings(), f"lora_embedding_{theirs}").default.data.copy_(factor)
        alone = torch.nn.Linear(*factor.t().shape[::-1], bias=False)
        alone.weight.data.copy_(factor.t())
        getattr(head, f"lora_{mine}")["default"] = alone
    batch = batch_of(tied)
    for speech in (tied, untied):
        speech.model(**batch).loss.backward()
    for mine, theirs in (("A", "B"), ("B", "A")):
        ours = getattr(tied.model.get_input_embeddings(), f"lora_embedding_{theirs}").default.grad
        separate = (
            getattr(source, f"lora_embedding_{theirs}").default.grad,
            getattr(head, f"lora_{mine}").default.weight.grad,
        )
        assert min(grad.abs().max() for grad in separate) > 1e-4
        torch.testing.assert_close(ours, separate[0] + separate[1].t(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "embeddings"),
    [
        ("lora", "lora"),
        pytest.param("lora", "full", marks=pytest.mark.slow),
        pytest.param("qlora", "none", marks=pytest.mark.slow),
    ],
)
def test_the_trainer_accumulates_checkpoints_and_resumes_adapters(bases, tmp_path, name, embeddings):
    """Rows of unequal length 4 x 1 and 1 x 4, with and without activation checkpointing, whole and resumed.

    Fails when the loss of a micro-batch is divided by its own tokens (the trainer does not see through the wrapper),
    when checkpointed layers get no gradient, or when a state lacks the embeddings that learned.
    """

    def run(steps, rows, folder, resume=None, **settings):
        speech = build_from(bases[True], adapters(name, embeddings))
        collate = PackingCollator(pad_token_id=0)
        arguments = TrainingArguments(
            output_dir=str(tmp_path / folder), max_steps=4, per_device_train_batch_size=rows,
            gradient_accumulation_steps=4 // rows, learning_rate=1e-2, lr_scheduler_type="constant", save_steps=steps,
            save_strategy="steps", logging_steps=1, use_cpu=True, report_to=[], disable_tqdm=True,
            remove_unused_columns=False, seed=0, **settings,
        )  # fmt: skip
        trainer = Trainer(
            model=speech.model,
            args=arguments,
            train_dataset=examples(speech, 16),
            data_collator=lambda rows: collate([[row] for row in rows]),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=resume)
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        return losses, merged_state_dict(speech.model)

    losses, weights = run(2, 1, "a")
    assert losses[-1] < losses[0]
    assert any(not torch.equal(weights[key], merged_state_dict(build_from(bases[True]).model)[key]) for key in weights)
    for other in (
        run(5, 4, "b", gradient_checkpointing=True),
        run(5, 1, "c", resume=str(tmp_path / "a" / "checkpoint-2")),
    ):
        assert other[0] == pytest.approx(losses, abs=1e-4)  # the trainer rounds them to 4 digits
        torch.testing.assert_close(other[1], weights, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("embeddings", EMBEDDINGS)
def test_adapters_over_bf16_weights_are_fp32(bases, embeddings):
    speech = build_from(bases[True], adapters("lora", embeddings), parameters="bf16")
    types = {name: p.dtype for name, p in speech.model.named_parameters()}
    assert {d for name, d in types.items() if "lora_" in name} == {torch.float32}
    assert {d for name, d in types.items() if "lora_" not in name} == {torch.bfloat16}
    losses, _ = step(speech)
    assert losses[-1] < losses[0]
    assert {w.dtype for w in merged_state_dict(speech.model).values()} == {torch.bfloat16}
    plain = build_from(bases[True], parameters="bf16").model
    assert {p.dtype for p in plain.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in tiny_speech_model(parameters="bf16").model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("embeddings", EMBEDDINGS)
def test_a_gathered_state_dict_is_saved_instead_of_the_models_own_weights(bases, tmp_path, embeddings):
    """A sharded run gathers it; fails when any weight or factor is taken from the model."""
    speech = build_from(bases[False], adapters("lora", embeddings))
    step(speech)
    ids = batch_of(speech, 1)["input_ids"]
    expected = logits(speech.model, ids)
    whole = {name: tensor.clone() for name, tensor in speech.model.state_dict().items()}
    with torch.no_grad():
        for parameter in speech.model.parameters():
            parameter.zero_()
    save_checkpoint(tmp_path / "checkpoint", speech.model, speech.tokenizer, speech.card, state_dict=whole)
    save_adapter(tmp_path / "adapter", speech.model, speech.tokenizer, speech.card, state_dict=whole)
    for folder in ("checkpoint", "adapter"):
        model = load_for_inference(str(tmp_path / folder), "cpu").model
        torch.testing.assert_close(logits(model, ids), expected, atol=1e-5, rtol=1e-5)


def test_adapters_without_weights_to_adapt_are_refused(bases, tmp_path):
    kernels = KernelsConfig(name="torch")
    shape = ArchitectureConfig(32, 64, 1, 2, 2)
    scratch = ModelConfig(name="tiny", architecture=shape, lr=1e-3, max_length=256)
    for name in ("lora", "qlora"):
        with pytest.raises(UserError, match="starts from random ones"):
            build_for_training(scratch, kernels, CODEC, "cpu", "fp32", adapters(name))
    speech = build_from(bases[True], adapters())
    step(speech)
    save_adapter(tmp_path / "adapter", speech.model, speech.tokenizer, speech.card)
    for name in ("lora", "qlora"):
        with pytest.raises(UserError, match="cannot stack an adapter"):
            build_from(tmp_path / "adapter", adapters(name))
    again = build_from(tmp_path / "adapter")  # full fine-tuning goes on from the merged weights
    torch.testing.assert_close(merged_state_dict(again.model), merged_state_dict(speech.model), atol=1e-6, rtol=1e-5)


def test_an_adapter_that_cannot_be_used_is_said_in_one_line(bases, tmp_path):
    speech = build_from(bases[True], adapters())
    folder = tmp_path / "adapter"
    save_adapter(folder, speech.model, speech.tokenizer, speech.card)
    settings = json.loads((folder / "adapter_config.json").read_text())
    weights = (folder / "adapter_model.safetensors").read_bytes()

    def refused(match, **changes):
        (folder / "adapter_config.json").write_text(json.dumps(settings | changes))
        with pytest.raises(UserError, match=match):
            load_for_inference(str(folder), "cpu")

    refused("was trained on /nowhere, which is not there", base_model_name_or_path="/nowhere")
    refused("not a plain LoRA adapter", peft_type="IA3")
    refused("not a plain LoRA adapter", use_dora=True)
    (folder / "adapter_model.safetensors").write_bytes(weights[:100])
    refused("cannot load the adapter")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot load the adapter"):
        load_for_inference(str(folder), "cpu")


def test_counts_of_weights_are_those_of_the_unquantised_model(bases):
    plain = count_weights(build_from(bases[True]).model)
    quantised, lora = (build_from(bases[True], adapters(name)).notes["finetune"] for name in ("qlora", "lora"))
    assert quantised == lora
    assert lora["all"] - lora["trainable"] == plain["all"] == plain["trainable"]
    mlp = dict.fromkeys(("gate_proj", "up_proj", "down_proj"), (32, 64))
    shapes = {"q_proj": (32, 32), "k_proj": (32, 16), "v_proj": (32, 16), "o_proj": (32, 32)} | mlp
    assert lora["trainable"] == 2 * sum(4 * (a + b) for a, b in shapes.values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_qlora_on_cuda(bases, tmp_path, precision):
    config = ModelConfig(name="own", checkpoint=str(bases[True]), lr=1e-3, max_length=256)
    kernels = KernelsConfig(name="torch", attn="sdpa")
    torch.manual_seed(0)
    speech = build_for_training(config, kernels, CODEC, "cuda", precision, adapters("qlora", "lora"))
    speech.model.to("cuda").train()
    batch = {key: value.cuda() for key, value in batch_of(speech).items()}
    optimizer = torch.optim.AdamW([p for p in speech.model.parameters() if p.requires_grad], lr=2e-2)
    losses = []
    for _ in range(4):
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            loss = speech.model(**batch).loss
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.1
    ids = batch["input_ids"][:1]
    expected = logits(speech.model.eval(), ids).cpu()
    merged = merged_model(speech.model)
    atol = 1e-3 if precision == "fp32" else 0.15  # 4-bit layers calculate in the precision, the merged model in fp32
    torch.testing.assert_close(logits(merged, ids.cpu()), expected, atol=atol, rtol=atol)
    save_adapter(tmp_path / "adapter", speech.model, speech.tokenizer, speech.card)
    reloaded = load_for_inference(str(tmp_path / "adapter"), "cuda").model  # bf16
    torch.testing.assert_close(logits(reloaded, ids).float().cpu(), expected, atol=0.3, rtol=0.3)
