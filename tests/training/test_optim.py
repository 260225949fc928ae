"""Optimizers: who is in which group, what states they keep, what is refused, and resume from their states."""

import copy
import functools
from contextlib import contextmanager

import pytest
import torch
from torch.distributed.tensor import DTensor

from llasa.entry import compose_config
from llasa.errors import UserError
from llasa.training.muon import MuonAdamW
from llasa.training.optim import build_optimizer, check_optimizer, optimizer_name, parameter_groups, state_bytes
from tests.model.tiny import tiny_speech_model

OPTIMIZERS = ["auto", "adam8bit", "adamw8bit", "paged_adamw8bit", "adamw", "adamw32bit", "muon"]
MATRICES = {
    f"model.layers.{layer}.{matrix}.weight"
    for layer in (0, 1)
    for matrix in (
        *(f"self_attn.{part}_proj" for part in "qkvo"),
        *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
    )
}
NORMS = {"model.norm.weight"} | {
    f"model.layers.{layer}.{norm}_layernorm.weight" for layer in (0, 1) for norm in ("input", "post_attention")
}
EMBEDDINGS = {"model.embed_tokens.weight"}  # the tiny model's head is tied to it

pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")


@functools.cache
def node_of(name, *overrides):
    return compose_config("train", [f"optimizer={name}", "optimizer.lr=0.01", *overrides, "store=x"]).optimizer


def names_by_kind(model):
    """kind → (names, decay): what each group holds, checked to be disjoint and all that learns."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model)
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    return {
        group["kind"]: ({names[id(p)] for p in group["params"]}, group.get("weight_decay", "decayed"))
        for group in groups
    }


class Untied(torch.nn.Module):
    """The names of an untied Llama with biases, large enough that its matrices have 8-bit states."""

    def __init__(self, width=64, vocabulary=128):
        super().__init__()
        self.embed_tokens = torch.nn.Embedding(vocabulary, width)
        self.proj = torch.nn.Linear(width, 2 * width)
        self.down_proj = torch.nn.Linear(2 * width, width)
        self.norm = torch.nn.RMSNorm(width)
        self.lm_head = torch.nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids):
        hidden = self.embed_tokens(ids)
        return self.lm_head(self.norm(hidden + self.down_proj(torch.relu(self.proj(hidden)))))


def untied(dtype=torch.float32):
    torch.manual_seed(0)
    return Untied().to(dtype)


def learn(model, optimizer, steps, first=0):
    """Losses of ``steps`` steps on a fixed batch that depends on the step alone."""
    losses = []
    for step in range(first, first + steps):
        ids = torch.randint(0, 128, (64,), generator=torch.Generator().manual_seed(step % 4))
        loss = torch.nn.functional.cross_entropy(model(ids).float(), ids.roll(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# Groups


def test_the_groups_of_a_whole_model():
    """Fails when norms are decayed, when embeddings count as matrices, or when a parameter is left out."""
    assert names_by_kind(tiny_speech_model().model) == {
        "matrices": (MATRICES, "decayed"),
        "embeddings": (EMBEDDINGS, "decayed"),
        "vectors": (NORMS, 0.0),
    }


def test_an_untied_head_is_an_embedding_and_a_bias_is_not_decayed():
    assert names_by_kind(untied()) == {
        "matrices": ({"proj.weight", "down_proj.weight"}, "decayed"),
        "embeddings": ({"embed_tokens.weight", "lm_head.weight"}, "decayed"),
        "vectors": ({"proj.bias", "down_proj.bias", "norm.weight"}, 0.0),
    }


def test_frozen_parameters_are_in_no_group():
    model = tiny_speech_model().model.requires_grad_(False)
    model.get_input_embeddings().requires_grad_(True)
    assert names_by_kind(model) == {"embeddings": (EMBEDDINGS, "decayed")}
    optimizer = build_optimizer(model, node_of("adamw"), "cpu")
    assert [len(group["params"]) for group in optimizer.param_groups] == [1]


@pytest.mark.parametrize("embeddings", ["none", "lora", "full"])
def test_the_groups_of_a_model_with_adapters(embeddings):
    """Fails when adapters or a trained copy of the embeddings count as hidden matrices, or the base is not left out."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=4,
        target_modules=["q_proj", "down_proj", *(["embed_tokens"] if embeddings == "lora" else [])],
        modules_to_save=["embed_tokens"] if embeddings == "full" else None,
    )
    found = names_by_kind(get_peft_model(tiny_speech_model().model, config))
    base = "base_model.model.model"
    adapters = {
        f"{base}.layers.{layer}.{module}.lora_{side}.default.weight"
        for layer in (0, 1)
        for module in ("self_attn.q_proj", "mlp.down_proj")
        for side in "AB"
    }
    assert found.pop("matrices") == (adapters, "decayed")
    learning = {
        "none": {},
        "lora": {f"{base}.embed_tokens.lora_embedding_{side}.default" for side in "AB"},
        "full": {f"{base}.embed_tokens.modules_to_save.default.weight"},
    }[embeddings]
    assert found == ({"embeddings": (learning, "decayed")} if learning else {})


@contextmanager
def process_group():
    """A group of this process alone."""
    assert not torch.distributed.is_initialized()
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def test_the_groups_of_a_sharded_model():
    """FSDP2 leaves names and axes as they are; the optimizer then holds DTensors."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    with process_group():
        model = tiny_speech_model().model
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
        assert names_by_kind(model) == {
            "matrices": (MATRICES, "decayed"),
            "embeddings": (EMBEDDINGS, "decayed"),
            "vectors": (NORMS, 0.0),
        }


def test_only_matrices_and_embeddings_shrink():
    """Without gradients decay is all that happens. Fails when the vectors' group loses its `weight_decay` of 0."""
    model = untied()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, node_of("adamw", "optimizer.weight_decay=0.5"), "cpu")
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        share = 1 - 0.01 * 0.5 if name.endswith("weight") and name != "norm.weight" else 1.0
        torch.testing.assert_close(parameter.detach(), share * before[name])


# Optimizers


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_optimizer_is_built_from_its_node_and_lowers_a_loss(name, dtype):
    model = untied(dtype)
    optimizer = build_optimizer(model, node_of(name), "cpu")
    losses = learn(model, optimizer, 24)
    assert losses[-1] < 0.5 * losses[0]
    assert {group["lr"] for group in optimizer.param_groups} == {0.01}
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


BYTE, HALF, SINGLE = torch.uint8, torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("name", "overrides", "parameters", "matrices", "embeddings", "vectors"),
    [
        ("adamw", [], SINGLE, SINGLE, SINGLE, SINGLE),
        ("adamw", [], HALF, HALF, HALF, HALF),
        ("adamw32bit", [], SINGLE, SINGLE, SINGLE, SINGLE),
        ("adamw32bit", [], HALF, SINGLE, SINGLE, SINGLE),
        ("muon", [], SINGLE, SINGLE, SINGLE, SINGLE),
        ("muon", [], HALF, HALF, HALF, HALF),
        *(
            (name, overrides, parameters, BYTE, embeddings, SINGLE)  # a vector has fewer than 4,096 numbers
            for name in ("adam8bit", "adamw8bit", "paged_adamw8bit")
            for parameters in (SINGLE, HALF)
            for overrides, embeddings in (([], BYTE), (["optimizer.embeddings_32bit=true"], SINGLE))
        ),
    ],
)
def test_the_types_of_the_states(name, overrides, parameters, matrices, embeddings, vectors):
    """Fails when `embeddings_32bit` reaches no group or all of them, or when states follow other parameters' type."""
    model = untied(parameters)
    optimizer = build_optimizer(model, node_of(name, *overrides), "cpu")
    learn(model, optimizer, 1)
    keys = {"state1", "state2", "exp_avg", "exp_avg_sq", "momentum_buffer"}
    expected = {"matrices": matrices, "embeddings": embeddings, "vectors": vectors}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            found = {state[key].dtype for key in keys & state.keys()}
            assert found == {expected[group["kind"]]}, (group["kind"], tuple(parameter.shape))


def test_32_bit_embeddings_are_a_choice_of_one_optimizer():
    """The same parameters in a second optimizer, which did not choose it. Fails with bitsandbytes' own overrides."""
    model = untied()
    for chosen, dtype in (("true", SINGLE), ("false", BYTE)):
        optimizer = build_optimizer(model, node_of("adam8bit", f"optimizer.embeddings_32bit={chosen}"), "cpu")
        learn(model, optimizer, 1)
        assert optimizer.state[model.embed_tokens.weight]["state1"].dtype == dtype


def test_8_bit_states_take_a_quarter_of_the_bytes():
    """A byte a number and 4 for each block of 256: (2 + 8 / 256) / 8 = 0.2539 of fp32's. Tables are 2 x 1 KB."""
    taken = {}
    for name, overrides in (("adamw", []), ("adam8bit", []), ("adam8bit", ["optimizer.embeddings_32bit=true"])):
        torch.manual_seed(0)
        model = Untied(width=256, vocabulary=1024)
        optimizer = build_optimizer(model, node_of(name, *overrides), "cpu")
        learn(model, optimizer, 1)
        taken[name, bool(overrides)] = state_bytes(optimizer)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    vectors = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 1)
    embeddings = 2 * 1024 * 256
    assert taken["adamw", False] == 8 * numbers + 4 * len(list(model.parameters()))  # and a count of steps each
    byte_blocks = (2 + 8 / 256) * (numbers - vectors)
    assert taken["adam8bit", False] == byte_blocks + 8 * vectors + 2048
    assert 0.25 < taken["adam8bit", False] / taken["adamw", False] < 0.26
    assert taken["adam8bit", True] - taken["adam8bit", False] == (8 - 2 - 8 / 256) * embeddings


def test_auto_is_named_as_what_it_becomes():
    auto = node_of("auto")
    assert optimizer_name(auto, "cpu") == "AdamW" == type(build_optimizer(untied(), auto, "cpu")).__name__
    assert optimizer_name(auto, "cuda") == "Adam8bit (embeddings 8 bit)"
    assert type(build_optimizer(untied(), auto, "cuda")).__name__ == "Adam8bit"
    assert optimizer_name(auto, "cuda", "fsdp") == "AdamW"
    assert type(build_optimizer(untied(), auto, "cuda", "fsdp")) is torch.optim.AdamW
    wide = node_of("auto", "optimizer.embeddings_32bit=true")
    assert optimizer_name(wide, "cuda") == "Adam8bit (embeddings 32 bit)"
    assert optimizer_name(wide, "cpu") == "AdamW"


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("adam8bit", "Adam8bit (embeddings 8 bit)"),
        ("paged_adamw8bit", "PagedAdamW8bit (embeddings 8 bit)"),
        ("adamw", "AdamW"),
        ("adamw32bit", "AdamW32bit"),
        ("muon", "MuonAdamW"),
    ],
)
def test_an_optimizer_is_named_with_the_treatment_of_its_embeddings(option, name):
    assert optimizer_name(node_of(option), "cpu") == name


def test_the_target_of_auto_can_be_called_like_any_other():
    from llasa.build import build

    settings = {key: value for key, value in node_of("auto").items() if key != "_partial_"}
    assert settings["_target_"] == "llasa.training.optim.auto"
    optimizer = build(node_of("auto"))(parameter_groups(untied()))
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.defaults["fused"] is True


# Refusals


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_passes_its_check(name):
    check_optimizer(node_of(name), "cpu")
    check_optimizer(node_of(name), "cpu", "ddp")


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("adam8bit", "optimizer.betas=[2,0.9]", "the optimizer refuses its settings: Invalid beta parameter"),
        ("adam8bit", "+optimizer.momentum=0.9", "the optimizer refuses its settings: .*momentum"),
        ("adamw", "+optimizer.foreach=true", "the optimizer refuses its settings: .*foreach"),
        ("muon", "optimizer.momentum=-1", "the optimizer refuses its settings: momentum"),
        ("adam8bit", "optimizer.algorithm=Adam", "optimizer.algorithm=Adam is not valid; use Adam8bit"),
        ("adam8bit", "optimizer.algorithm=Sofia8bit", "optimizer.algorithm=Sofia8bit is not valid"),
    ],
)
def test_a_wrong_setting_is_told_before_anything_starts(name, override, message):
    with pytest.raises(UserError, match=message):
        check_optimizer(node_of(name, override), "cpu")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_sharded_parameters_are_left_to_optimizers_that_know_them(name):
    if name in ("adamw", "auto"):
        check_optimizer(node_of(name), "cuda", "fsdp")
        return
    with pytest.raises(UserError, match="does not work with parallel=fsdp; use optimizer=adamw"):
        check_optimizer(node_of(name), "cuda", "fsdp")


# Resume


@pytest.mark.parametrize("name", ["adam8bit", "adamw", "adamw32bit", "muon"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_state_continues_exactly(name, dtype, tmp_path):
    """Also with a schedule that goes on. Fails when a part of MuonAdamW keeps the groups or the state that it had
    before the load."""
    model = untied(dtype)
    optimizer = build_optimizer(model, node_of(name), "cpu")
    learn(model, optimizer, 5)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    for group in optimizer.param_groups:
        group["lr"] = 0.02
    expected = learn(model, optimizer, 5, first=5)

    other = untied(dtype)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    other.load_state_dict(saved["model"])
    again = build_optimizer(other, node_of(name), "cpu")
    again.load_state_dict(saved["optimizer"])
    for group in again.param_groups:
        group["lr"] = 0.02
    assert learn(other, again, 5, first=5) == expected
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", ["adam8bit", "adamw", "muon"])
def test_a_learning_rate_and_parameters_that_are_replaced_are_the_ones_that_count(name):
    """As a schedule does in the first, and a wrapper (accelerate for FSDP2) in the second."""
    model = untied()
    optimizer = build_optimizer(model, node_of(name, "optimizer.weight_decay=0.1"), "cpu")
    other = copy.deepcopy(model)
    replaced = dict(zip(model.parameters(), other.parameters(), strict=True))
    for group in optimizer.param_groups:
        group["params"] = [replaced[parameter] for parameter in group["params"]]
        group["lr"] = 0.0
    learn(other, optimizer, 1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    learn(other, optimizer, 1)
    assert not any(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


# Muon


def test_muon_updates_hidden_matrices_and_adamw_the_rest():
    """Each as torch's own optimizer alone would. Fails when a kind goes to the other part."""
    model, alone = untied(), untied()
    optimizer = build_optimizer(model, node_of("muon"), "cpu")
    assert isinstance(optimizer, MuonAdamW)
    groups = {group["kind"]: group["params"] for group in parameter_groups(alone)}
    muon = torch.optim.Muon(groups["matrices"], lr=0.01, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    rest = [{"params": groups["embeddings"]}, {"params": groups["vectors"], "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(rest, lr=0.01, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    for step in range(3):
        learn(model, optimizer, 1, first=step)
        ids = torch.randint(0, 128, (64,), generator=torch.Generator().manual_seed(step))
        muon.zero_grad()
        adamw.zero_grad()
        torch.nn.functional.cross_entropy(alone(ids), ids.roll(1)).backward()
        muon.step()
        adamw.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), alone.parameters(), strict=True))
    assert state_bytes(optimizer) == state_bytes(muon) + state_bytes(adamw)


@pytest.mark.parametrize("shape", [(64, 64), (32, 256), (256, 32)])
def test_an_update_of_muon_has_the_size_of_adamws(shape):
    """0.2 of the learning rate (root mean square), whatever the shape, so that both can share `optimizer.lr`; AdamW's
    is 0.2 to 0.4 in the middle of a training (Liu et al. 2025). Fails with torch's default `adjust_lr_fn`."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(shape))
    optimizer = MuonAdamW([{"params": [weight], "kind": "matrices"}], lr=0.01, weight_decay=0.0)
    weight.grad = torch.randn(shape)
    optimizer.step()
    assert 0.14 < weight.detach().square().mean().sqrt().item() / 0.01 < 0.26


@pytest.mark.parametrize("learning", ["embed_tokens.weight", "proj.weight"])
def test_muon_works_where_only_one_of_its_parts_has_parameters(learning):
    model, before = untied(), untied().state_dict()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name == learning)
    learn(model, build_optimizer(model, node_of("muon"), "cpu"), 2)
    assert {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])} == {learning}


@pytest.mark.parametrize("name", ["adam8bit", "muon"])
def test_accelerates_wrapper_changes_nothing(name):
    """It loads the optimizer's own state into it, which replaces the groups."""
    from accelerate import Accelerator

    model, wrapped = untied(), untied()
    optimizer = Accelerator(cpu=True).prepare_optimizer(build_optimizer(wrapped, node_of(name), "cpu"))
    assert learn(wrapped, optimizer, 4) == learn(model, build_optimizer(model, node_of(name), "cpu"), 4)
