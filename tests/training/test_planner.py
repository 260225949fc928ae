"""The planner's numbers against what is measured: parameters, states, activations, peaks; and its table."""

from __future__ import annotations

import collections
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llasa.config import CONF_DIR, ArchitectureConfig, FinetuneConfig, KernelsConfig, ModelConfig
from llasa.entry import compose_config
from llasa.errors import UserError
from llasa.model.activation_checkpointing import apply_activation_checkpointing
from llasa.model.finetune import apply_finetune
from llasa.model.kernels import apply_kernels
from llasa.model.shapes import PUBLISHED, XCODEC2_CODES, model_shape
from llasa.training.cost import count_parameters, flops_per_token, meta_model, mfu, peak_flops
from llasa.training.memory import FOUR_BIT, Workload, layer_bytes, model_bytes, step_memory
from llasa.training.optim import build_optimizer, state_bytes
from llasa.training.planner import GIB, Planner, plan_memory, print_plan
from tests.model.test_activation_checkpointing import Recorder
from tests.model.tiny import CODEC, tiny_speech_model, tiny_text_model
from tests.training.step_peaks import ADAM8BIT, ADAMW, shape, workload

ROOT = Path(__file__).parents[2]
LORA = {"name": "lora", "rank": 16}


# Parameters and FLOPs


def published(name: str) -> LlamaConfig:
    return LlamaConfig(**PUBLISHED[name])


def test_parameters_of_the_published_models():
    """Totals of the models' files."""
    totals = {name.rpartition("/")[2]: count_parameters(published(name)).total for name in PUBLISHED}
    assert totals["Llama-3.2-1B-Instruct"] == 1_235_814_400
    assert totals["Llama-3.2-3B-Instruct"] == 3_212_749_824
    assert totals["Llama-3.1-8B-Instruct"] == 8_030_261_248
    assert totals["Llasa-1B-Multilingual"] - totals["Llasa-1B"] == 193_800 * 2048


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_of_a_meta_model_are_those_of_a_real_one(tied):
    count = count_parameters(shape(tied))
    model = LlamaForCausalLM(shape(tied))
    assert count.total == sum(parameter.numel() for parameter in model.parameters())
    assert count.tied == tied
    assert count.norms == 128 * 9


def test_flops_per_token_are_the_published_figures():
    """8.6 GFLOP at 2,048, 9.8 at 8,192; the head is 28 per cent of the first."""
    llama = published("HKUSTAudio/Llasa-1B")
    assert flops_per_token(llama, 2048) == pytest.approx(8.6e9, rel=0.005)
    assert flops_per_token(llama, 8192) == pytest.approx(9.8e9, rel=0.005)
    assert 6 * count_parameters(llama).head / flops_per_token(llama, 2048) == pytest.approx(0.28, abs=0.005)


def test_flops_are_those_of_the_operators():
    """torch's own counter over a real step; it takes attention as full, twice what a causal one needs."""
    from torch.utils.flop_counter import FlopCounterMode

    config, length = shape(), 64
    config._attn_implementation = "eager"
    model = LlamaForCausalLM(config)
    ids = torch.zeros(1, length, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids).logits.sum().backward()
    full = flops_per_token(config, 2 * length)
    assert counter.get_total_flops() / length == pytest.approx(full, rel=0.001)


def test_mfu():
    """42,000 tokens/s on each H100 of a Llama 1B are reported as about 35 per cent."""
    llama = published("meta-llama/Llama-3.2-1B-Instruct")
    used = mfu(8 * 42_000, flops_per_token(llama, 4096), "NVIDIA H100 80GB HBM3", 8)
    assert used == pytest.approx(0.35, abs=0.01)
    assert mfu(1e4, 1e10, "NVIDIA A100-SXM4-80GB", 1) == pytest.approx(1e14 / 312e12)
    assert mfu(1e4, 1e10, "Voodoo 2", 1) is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA A100-PCIE-40GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA GeForce RTX 3090", 71e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("Tesla T4", None),
    ],
)
def test_peak_flops_by_device_name(name, peak):
    assert peak_flops(name) == peak


# Weights, gradients, states


def meta_bytes(finetune=None, node=ADAMW, tied=True, dtype=torch.float32):
    settings = FinetuneConfig(**(finetune or {"name": "full"}))
    model = meta_model(shape(tied), dtype)
    with torch.device("meta"):
        model = apply_finetune(model, settings, None)
    return model_bytes(model, node, settings)


@pytest.mark.parametrize("finetune", [None, {"name": "full", "train": "embeddings"}, LORA | {"embeddings": "full"}])
@pytest.mark.parametrize("node", [ADAMW, ADAM8BIT], ids=["adamw", "adam8bit"])
def test_weights_gradients_and_states_are_those_of_a_real_step(finetune, node):
    settings = FinetuneConfig(**(finetune or {"name": "full"}))
    model = apply_finetune(LlamaForCausalLM(shape()), settings, None)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.grad = torch.ones_like(parameter)
    optimizer = build_optimizer(model, node, "cpu")
    optimizer.step()
    planned = meta_bytes(finetune, node)
    assert planned.weights == sum(parameter.nbytes for parameter in model.parameters())
    assert planned.gradients == sum(parameter.grad.nbytes for parameter in learning)
    assert planned.states == pytest.approx(state_bytes(optimizer), abs=4096)  # tables and step counts
    assert planned.states > 10_000


def test_states_of_the_other_optimizers():
    full = meta_bytes()
    embeddings, count = 6000 * 128, count_parameters(shape())
    assert full.states == 8 * count.total
    assert meta_bytes(dtype=torch.bfloat16).states == 4 * count.total
    wide = meta_bytes(node=ADAM8BIT | {"embeddings_32bit": True}).states - meta_bytes(node=ADAM8BIT).states
    assert wide == embeddings * (8 - 2 - 8 / 256)
    muon = meta_bytes(node={"_target_": "llasa.training.muon.MuonAdamW"})
    assert muon.states == 8 * count.total - 4 * count.layer_matrices
    bf16_32bit = meta_bytes(node={"_target_": "bitsandbytes.optim.AdamW32bit"}, dtype=torch.bfloat16)
    assert bf16_32bit.states == 8 * count.total
    unknown = meta_bytes(node={"_target_": "somewhere.Sophia"})
    assert (unknown.unknown_optimizer, unknown.states) == ("somewhere.Sophia", 8 * count.total)


def test_four_bit_weights():
    """bitsandbytes' own packing of a matrix, with its scales and theirs."""
    from bitsandbytes.functional import quantize_4bit

    matrix = torch.randn(1024, 1024)
    packed, state = quantize_4bit(matrix, quant_type="nf4", compress_statistics=True)
    held = packed.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    assert held == matrix.numel() * FOUR_BIT
    plain, quantised = meta_bytes(LORA), meta_bytes(LORA | {"name": "qlora"})
    assert plain.weights - quantised.weights == count_parameters(shape()).layer_matrices * (4 - FOUR_BIT)
    assert plain.gradients == quantised.gradients


# Activations


def decoder_and_work(attn="sdpa", heads=2, bf16=False, weights="fp32", finetune=None, checkpointing="none"):
    torch.manual_seed(0)
    config = shape()
    config.num_key_value_heads, config._attn_implementation = heads, attn
    model = LlamaForCausalLM(config).to(torch.bfloat16 if weights == "bf16" else torch.float32)
    work = workload(checkpointing, bf16, weights, finetune)
    work = Workload(**(vars(work) | {"attn": attn, "length": 64}))
    model = apply_finetune(model, work.finetune, None).train()
    apply_activation_checkpointing(model, checkpointing)
    ids = torch.zeros(work.rows, 64, dtype=torch.int64)
    positions = torch.cat([torch.arange(24), torch.arange(40)]).repeat(work.rows, 1)
    return model, config, work, {"input_ids": ids, "position_ids": positions, "use_cache": False}


SETTINGS = [
    {},
    {"heads": 4},
    {"attn": "sdpa_varlen"},
    {"attn": "eager"},
    {"attn": "eager", "bf16": True},
    {"bf16": True},
    {"bf16": True, "weights": "bf16"},
    {"finetune": LORA},
    {"finetune": LORA, "bf16": True},
    {"finetune": LORA, "bf16": True, "weights": "bf16"},
    {"finetune": {"name": "full", "train": "embeddings"}},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_activations_are_what_autograd_keeps(settings):
    """Per layer: the saved tensors of a model less those of one with half the layers. Fails when
    a term of the table is left out."""

    def kept(layers):
        model, config, work, batch = decoder_and_work(**settings)
        decoder = model.get_decoder()
        decoder.layers = decoder.layers[:layers]
        decoder.config.num_hidden_layers = layers
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        sizes, alive = collections.Counter(), []

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                sizes[storage.data_ptr()] = storage.nbytes()
                alive.append(tensor)  # or its memory would be given to the next
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=work.bf16),
        ):
            decoder(**batch)
        matrices = [p.numel() for p in decoder.layers[0].parameters() if p.ndim == 2 and p.dtype == torch.float32]
        copies = 2 * sum(matrices) if work.bf16 else 0
        return sum(sizes.values()), copies + layer_bytes(config, work).kept

    (four, expected), (two, _) = kept(4), kept(2)
    assert (four - two) / 2 == pytest.approx(expected, rel=0.001)


@pytest.mark.parametrize("checkpointing", ["selective", "full"])
@pytest.mark.parametrize(
    "settings", [{}, {"heads": 4}, {"attn": "sdpa_varlen"}, {"bf16": True}, {"finetune": LORA}], ids=str
)
def test_activations_are_what_a_checkpoint_keeps(settings, checkpointing):
    def kept(layers):
        model, config, work, batch = decoder_and_work(checkpointing=checkpointing, **settings)
        decoder = model.get_decoder()
        decoder.layers = decoder.layers[:layers]
        decoder.config.num_hidden_layers = layers
        with Recorder(model) as recorder:
            with torch.autocast("cpu", torch.bfloat16, enabled=work.bf16):
                hidden = decoder(**batch).last_hidden_state  # autocast's copies of weights go with its context
            assert hidden.requires_grad
            return recorder.alive(), config, work

    (four, config, work), (two, _, _) = kept(4), kept(2)
    assert (four - two) / 2 == pytest.approx(layer_bytes(config, work).kept, rel=0.001)


# Peaks

PEAKS = [
    {},
    {"attn": "sdpa_varlen"},
    {"checkpointing": "selective"},
    {"checkpointing": "full", "micro_batches": 2},
    {"eight_bit": True, "chunk": None, "tied": False},
    {"bf16": True},
    {"bf16": True, "checkpointing": "full"},
    {"finetune": LORA},
]


@pytest.fixture(scope="module")
def measured_peaks():
    command = [sys.executable, "-m", "tests.training.step_peaks", json.dumps(PEAKS)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ, timeout=300)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def predicted_peak(tied=True, eight_bit=False, **settings):
    work = workload(**settings)
    finetune = settings.get("finetune")
    dtype = torch.bfloat16 if work.weights_bf16 else torch.float32
    counted = meta_bytes(finetune, ADAM8BIT if eight_bit else ADAMW, tied, dtype)
    return step_memory(shape(tied), counted, work)


def test_peaks_are_within_15_per_cent_of_measured_ones(measured_peaks):
    """Real steps on the CPU. Fails when the states, the loss, or that 8-bit states are small, is left out."""
    lines, ratios = [], []
    for case, measured in zip(PEAKS, measured_peaks, strict=True):
        predicted = predicted_peak(**case)
        ratios.append(predicted.peak / measured)
        lines.append(f"{case}: {predicted.peak / 2**20:.1f} MiB in the {predicted.peak_moment}, {measured / 2**20:.1f}")
    assert all(0.85 < ratio < 1.15 for ratio in ratios), "\n".join(["predicted, measured", *lines])


def test_measured_peaks_differ(measured_peaks):
    """Against a measurement that sees nothing of what the cases are about."""
    none, varlen, selective, full, wide, bf16, bf16_full, lora = measured_peaks
    assert varlen != none
    assert selective < 0.9 * none
    assert full < 0.9 * none
    assert wide > 1.1 * none
    assert bf16_full < 0.8 * bf16 < none
    assert lora < 0.85 * none


# Plans


def test_every_model_option_has_a_shape_without_a_download():
    options = sorted(path.stem for path in (CONF_DIR / "model").glob("*.yaml"))
    assert len(options) >= 8
    for option in options:
        config = compose_config("train", [f"model={option}", "store=x", "output_dir=x"]).model
        llama, extended = model_shape(config, XCODEC2_CODES)
        assert extended == (not option.startswith("llasa_") or option == "llasa_nano")
        assert llama.vocab_size == (65_805 if option == "llasa_nano" else 193_800)


def test_shapes_are_those_that_training_builds(tmp_path):
    built = tiny_speech_model(tied=False).model
    architecture = ArchitectureConfig(32, 64, 2, 4, 2, tie_word_embeddings=False)
    config = ModelConfig(name="tiny", architecture=architecture, lr=1e-3, max_length=256)
    llama, extended = model_shape(config, CODEC.codebook_size)
    assert extended
    assert count_parameters(llama).total == sum(parameter.numel() for parameter in built.parameters())
    folder = tiny_text_model(tmp_path / "text")
    llama, extended = model_shape(ModelConfig(name="t", checkpoint=str(folder), lr=1, max_length=64), 64)
    assert (llama.vocab_size, llama.hidden_size, extended) == (built.config.vocab_size, 32, True)


def plan_config(*overrides):
    return compose_config("train", ["plan=true", "store=nowhere", "output_dir=x", *overrides])


def printed_plan(capsys, *overrides):
    print_plan(plan_config(*overrides))
    return capsys.readouterr().out


def column(text, row, number=0):
    """A number of the table."""
    line = next(line for line in text.splitlines() if line.startswith(row))
    return float(line[26:].split()[number])


def test_the_plan_of_llasa_1b_for_a_gpu_that_is_not_here(capsys):
    text = printed_plan(capsys, "model=llasa_1b", "device=cuda")
    parameters = 1_370_048_512
    assert "1,370.0 M parameters, vocabulary 193,800" in text
    assert column(text, "weights") == column(text, "gradients") == round(4 * parameters / GIB, 2)
    assert column(text, "optimizer states") == pytest.approx(2.03 * parameters / GIB, abs=0.02)
    assert "1 x single     2 x ddp     4 x ddp     8 x ddp" in text
    # ddp holds gradients a second time, in what travels.
    assert column(text, "peak", 1) - column(text, "peak", 0) == pytest.approx(column(text, "gradients"), abs=0.02)
    assert "80 GB GPUs: fits" in text
    assert "8.33 GFLOP a token" in text
    assert "H100 at 35%" in text


def test_less_takes_less():
    def peak(*overrides):
        return plan_memory(plan_config("model=llasa_1b", "device=cuda", *overrides)).total

    whole = peak()
    for change in (
        "trainer.activation_checkpointing=selective",
        "trainer.rows_per_device=2",
        "trainer.parameters=bf16",
        "finetune=lora",
        "kernels.attn=flash_attention_2 packing.max_length=1024",
    ):
        assert peak(*change.split()) < 0.95 * whole
    assert peak("kernels=torch") > 1.05 * whole
    assert peak("kernels.attn=sdpa") > 1.03 * whole
    assert peak("finetune=qlora") < peak("finetune=lora")


def test_fsdp_shares_weights_gradients_and_states():
    config = plan_config("model=llasa_8b", "device=cuda", "parallel=fsdp")
    two, eight = plan_memory(config, 2), plan_memory(config, 8)
    assert two.parallel == "fsdp"
    for name in ("weights", "gradients", "states"):
        assert getattr(two.memory, name) == pytest.approx(4 * getattr(eight.memory, name))
    assert eight.total < two.total


def test_what_is_computed_beside_the_models_flops():
    """Of a plan's FLOPs: a layer again, less its last product; no gradients of frozen weights."""
    llama = count_parameters(published("HKUSTAudio/Llasa-1B"))

    def executed(*overrides):
        return Planner(plan_config("model=llasa_1b", "device=cuda", *overrides), XCODEC2_CODES).executed_flops(0)

    assert executed() == 6 * (llama.layer_matrices + llama.head)
    again = executed("trainer.activation_checkpointing=full") - executed()
    assert again == 2 * (llama.layer_matrices - 16 * 2048 * 8192)
    assert executed("finetune=lora") == 4 * (llama.layer_matrices + llama.head)


def test_remedies_fit():
    planner = Planner(plan_config("model=llasa_1b", "device=cuda"), XCODEC2_CODES)
    assert planner.plan().total > 23.5 * GIB
    remedy = planner.remedies(23.5, 1)
    assert remedy
    changed = plan_config("model=llasa_1b", "device=cuda", *remedy.split())
    assert plan_memory(changed).total <= 23.5 * GIB
    assert planner.remedies(79.1, 1) == ""
    assert planner.remedies(2, 1) is None


def test_a_store_gives_the_codec_and_the_time(toy_store, capsys):
    text = printed_plan(capsys, "model=llasa_nano", "device=cpu", f"store={toy_store}")
    assert "vocabulary 333;" in text  # 261 text tokens, 8 markers, 64 codes
    assert "an epoch of the store: about 0.0 M tokens, 1 steps" in text
    assert "1 x single\n" in text


def test_only_the_processes_that_were_started_are_planned_for_and_one_prints(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "4")
    text = printed_plan(capsys, "model=llasa_1b", "device=cuda")
    assert "GiB on each device             4 x ddp\n" in text
    monkeypatch.setenv("RANK", "3")
    assert printed_plan(capsys, "model=llasa_1b", "device=cuda") == ""


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=llasa_1b", "parallel=fsdp", "finetune=lora"], "does not go with parallel=fsdp"),
        (["model=llasa_nano", "finetune=lora"], "starts from random"),
        (["model=llama_1b", "finetune=lora"], "finetune.embeddings=full"),
    ],
)
def test_what_training_would_refuse_is_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        print_plan(plan_config("device=cuda", *overrides))


def test_kernels_of_the_plan_are_the_configs():
    """A larger chunk of the loss is in the plan."""
    small = plan_memory(plan_config("model=llasa_1b", "device=cpu")).memory
    large = plan_memory(plan_config("model=llasa_1b", "device=cpu", "kernels.loss_chunk_size=2048")).memory
    assert large.loss - small.loss == (2048 - KernelsConfig(name="torch").loss_chunk_size) * 193_800 * 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_the_peak_on_cuda_with_liger(checkpointing):
    """Liger's layers and loss, bf16 arithmetic of fp32 weights, 8-bit states."""
    config = LlamaConfig(
        vocab_size=64_000,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=4,
        use_cache=False,
    )
    config._attn_implementation = "sdpa"
    settings = KernelsConfig(name="liger", attn="sdpa")
    work = Workload(2, 2048, checkpointing, True, False, "sdpa", "liger", settings, FinetuneConfig(name="full"))
    counted = model_bytes(meta_model(config), ADAM8BIT, work.finetune)
    torch.ones(8, 8, device="cuda") @ torch.ones(8, 8, device="cuda")  # cuBLAS takes its workspace
    before = torch.cuda.memory_allocated()
    model = LlamaForCausalLM(config).cuda().train()
    apply_kernels(model, "liger", settings)
    apply_activation_checkpointing(model, checkpointing)
    optimizer = build_optimizer(model, ADAM8BIT, "cuda")
    ids = torch.randint(0, config.vocab_size, (2, 2048), device="cuda")
    positions = torch.cat([torch.arange(1000), torch.arange(1048)]).repeat(2, 1).cuda()
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(input_ids=ids, position_ids=positions, labels=ids).loss
        loss.backward()
        del loss
        optimizer.step()
        optimizer.zero_grad()
    measured = torch.cuda.max_memory_allocated() - before
    predicted = step_memory(config, counted, work)
    assert predicted.peak == pytest.approx(measured, rel=0.15), predicted.moments
