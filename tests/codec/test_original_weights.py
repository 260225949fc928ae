"""Weights in the authors' format: written by an inverse of its own, loaded, and compared bit for bit."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from transformers import Wav2Vec2BertConfig, Wav2Vec2BertModel, Xcodec2Config, Xcodec2Model

from llasa.codec.features import KaldiFilterBank
from llasa.codec.original_names import fold_weight_norm, native_weights, rotary_halves
from llasa.codec.original_weights import is_original, load_original
from llasa.codec.xcodec2 import load_model
from llasa.errors import UserError
from tests.codec.tiny_xcodec2 import spread_codes

HIDDEN, SEMANTIC = 128, 64
PACKAGE_CONFIG = {
    "architectures": ["XCodec2Model"],
    "model_type": "xcodec",
    "semantic_hidden_size": 1024,
    "codec_encoder_hidden_size": 1024,
    "codec_decoder_hidden_size": 1024,
    "use_vocos": True,
}


@pytest.fixture(scope="module")
def model():
    """A native model of 16 semantic layers and two heads of 64, in which no two tensors are alike."""
    config = Xcodec2Config(
        hidden_size=HIDDEN,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=64,
        encoder_hidden_size=2,
        downsampling_ratios=[2, 2, 4, 4, 5],
        quantization_dim=HIDDEN + SEMANTIC,
        semantic_model_config=Wav2Vec2BertConfig(
            hidden_size=SEMANTIC,
            num_hidden_layers=16,
            num_attention_heads=4,
            intermediate_size=48,
            feature_projection_input_dim=160,
            output_hidden_size=SEMANTIC,
            conv_depthwise_kernel_size=7,
        ),
    )
    torch.manual_seed(0)
    model = Xcodec2Model(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
        elif "q_proj" in name or "k_proj" in name:
            parameter.mul_(8)  # attention that prefers some frames: a wrong order of rows shows
    spread_codes(model, noise())
    return model


def noise() -> torch.Tensor:
    """Of changing loudness, float32 [1, 60 frames]."""
    generator = torch.Generator().manual_seed(1)
    hiss = torch.randn(1, 60 * 320, generator=generator)
    return 0.3 * hiss * torch.rand(60, generator=generator).repeat_interleave(320)


@torch.inference_mode()
def codes_and_waveform(model: Xcodec2Model) -> tuple[torch.Tensor, torch.Tensor]:
    features = KaldiFilterBank()(torch.nn.functional.pad(noise(), (160, 160)))
    codes = model.encode(noise()[:, None], input_features=features).audio_codes
    return codes, model.decode(codes).audio_values


@dataclass(frozen=True)
class Spelling:
    length: str
    direction: str
    snake: str


PUBLISHED = Spelling("weight_g", "weight_v", "beta")
FINE_TUNED = Spelling("parametrizations.weight.original0", "parametrizations.weight.original1", "bias")


def original_tensors(model: Xcodec2Model, spelling: Spelling = PUBLISHED) -> dict[str, torch.Tensor]:
    """The native tensors as the package has them: its names, weight norm, fused attention, 24 semantic layers."""
    native = dict(model.state_dict()) | dict(model.named_buffers())
    generator = torch.Generator().manual_seed(2)
    tensors: dict[str, torch.Tensor] = {}

    def plain(theirs: str, ours: str, *parts: str) -> None:
        tensors.update({f"{theirs}.{part}": native[f"{ours}.{part}"] for part in parts})

    def normed(theirs: str, ours: str) -> None:
        weight = native[f"{ours}.weight"]
        # Powers of two, so that folding gives the very weight back; other lengths are tested by themselves.
        stretch = 2.0 ** torch.randint(-3, 4, (len(weight), 1, 1), generator=generator)
        tensors[f"{theirs}.{spelling.length}"] = torch.linalg.vector_norm(weight, dim=(1, 2), keepdim=True)
        tensors[f"{theirs}.{spelling.direction}"] = stretch * weight
        tensors[f"{theirs}.bias"] = native[f"{ours}.bias"]

    def snake(theirs: str, ours: str) -> None:
        tensors[f"{theirs}.act.alpha"] = native[f"{ours}.act.alpha"]
        tensors[f"{theirs}.act.{spelling.snake}"] = native[f"{ours}.act.beta"]
        tensors[f"{theirs}.upsample.filter"] = native[f"{ours}.upsample.filter"]
        tensors[f"{theirs}.downsample.lowpass.filter"] = native[f"{ours}.downsample.filter"]

    def neighbours(weight: torch.Tensor) -> torch.Tensor:
        heads = []
        for head in weight.split(64):
            rows = [row for pair in zip(head[:32], head[32:], strict=True) for row in pair]
            heads.append(torch.stack(rows))
        return torch.cat(heads)

    normed("CodecEnc.conv_blocks.0", "acoustic_encoder.conv1")
    for block in range(5):
        theirs, ours = f"CodecEnc.conv_blocks.{block + 1}.block", f"acoustic_encoder.block.{block}"
        for unit in range(3):
            snake(f"{theirs}.{unit}.block.0", f"{ours}.res_unit{unit + 1}.snake1")
            normed(f"{theirs}.{unit}.block.1", f"{ours}.res_unit{unit + 1}.conv1")
            snake(f"{theirs}.{unit}.block.2", f"{ours}.res_unit{unit + 1}.snake2")
            normed(f"{theirs}.{unit}.block.3", f"{ours}.res_unit{unit + 1}.conv2")
        snake(f"{theirs}.3", f"{ours}.snake1")
        normed(f"{theirs}.4", f"{ours}.conv1")
    snake("CodecEnc.conv_final_block.0", "acoustic_encoder.snake1")
    normed("CodecEnc.conv_final_block.1", "acoustic_encoder.conv2")

    plain("SemanticEncoder_module.initial_conv", "semantic_adapter.conv1", "weight")
    plain("SemanticEncoder_module.residual_blocks.1", "semantic_adapter.conv2", "weight", "bias")
    plain("SemanticEncoder_module.residual_blocks.3", "semantic_adapter.conv3", "weight", "bias")
    plain("SemanticEncoder_module.final_conv", "semantic_adapter.conv4", "weight")
    plain("fc_prior", "fc_encoder", "weight", "bias")
    plain("fc_post_a", "acoustic_decoder.fc", "weight", "bias")
    plain("generator.quantizer.project_in", "quantizer.project_in", "weight", "bias")
    plain("generator.quantizer.project_out", "quantizer.project_out", "weight", "bias")

    plain("generator.backbone.embed", "acoustic_decoder.embed", "weight", "bias")
    for net in ("prior_net", "post_net"):
        for part in (f"{number}.{layer}" for number in range(2) for layer in ("norm1", "conv1", "norm2", "conv2")):
            plain(f"generator.backbone.{net}.{part}", f"acoustic_decoder.{net}.{part}", "weight", "bias")
    for layer in range(2):
        theirs, ours = f"generator.backbone.transformers.{layer}", f"acoustic_decoder.layers.{layer}"
        plain(f"{theirs}.att_norm", f"{ours}.input_layernorm", "weight")
        plain(f"{theirs}.ffn_norm", f"{ours}.post_attention_layernorm", "weight")
        plain(f"{theirs}.att.c_proj", f"{ours}.self_attn.o_proj", "weight")
        plain(f"{theirs}.mlp.fc1", f"{ours}.mlp.fc1", "weight")
        plain(f"{theirs}.mlp.fc2", f"{ours}.mlp.fc2", "weight")
        query, key, value = (native[f"{ours}.self_attn.{which}_proj.weight"] for which in "qkv")
        tensors[f"{theirs}.att.c_attn.weight"] = torch.cat([neighbours(query), neighbours(key), value])
    plain("generator.backbone.final_layer_norm", "acoustic_decoder.norm", "weight", "bias")
    plain("generator.head.out", "acoustic_decoder.head.linear", "weight", "bias")
    tensors["generator.head.istft.window"] = native["acoustic_decoder.head.window"]

    for name, tensor in native.items():
        if name.startswith("semantic_encoder."):
            tensors[name.replace("semantic_encoder", "semantic_model")] = tensor
    for name in [name for name in tensors if name.startswith("semantic_model.encoder.layers.0.")]:
        for layer in range(16, 24):
            tensors[name.replace("layers.0", f"layers.{layer}")] = torch.randn(tensors[name].shape, generator=generator)
    return {name: tensor.clone() for name, tensor in tensors.items()}


def save_package_folder(folder, tensors, file="model.safetensors"):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(PACKAGE_CONFIG))
    if file.endswith(".safetensors"):
        save_file(tensors, folder / file, metadata={"format": "pt"})
    else:
        torch.save(tensors, folder / file)
    return folder


def assert_same_model(loaded: Xcodec2Model, model: Xcodec2Model) -> None:
    weights, expected = loaded.state_dict(), model.state_dict()
    assert weights.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(weights[name], expected[name])] == []
    codes, waveform = codes_and_waveform(model)
    assert len(codes.unique()) > 40
    assert waveform.std() > 1e-3
    loaded_codes, loaded_waveform = codes_and_waveform(loaded)
    assert torch.equal(loaded_codes, codes)
    assert torch.equal(loaded_waveform, waveform)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("spelling", [PUBLISHED, FINE_TUNED], ids=["published", "fine-tuned"])
def test_a_folder_of_the_package(model, tmp_path, spelling, file):
    loaded = load_model(str(save_package_folder(tmp_path / "package", original_tensors(model, spelling), file)))
    assert_same_model(loaded, model)
    assert not loaded.training
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    # The order of rows matters to this model, or the test would not see it.
    wrong = loaded.acoustic_decoder.layers[0].self_attn.q_proj
    wrong.weight.copy_(rotary_halves(wrong.weight))
    assert not torch.allclose(codes_and_waveform(loaded)[1], codes_and_waveform(model)[1], atol=1e-4)


def training_checkpoint(tensors, prefix=""):
    """What Lightning saves for X-Codec-2.0: other modules, an optimizer's state, the configuration of the run."""
    others = {
        "discriminator.discriminators.0.convs.0.weight_g": torch.ones(2),
        "spec_discriminator.model.0.weight": torch.ones(2),
        "model_spk.encoder.weight": torch.ones(2),
        "criteria.mel_loss.mel_transforms.0.mel_scale.fb": torch.ones(2),
        "fc_post_s.weight": torch.ones(2),
        "SemanticDecoder_module.initial_conv.weight": torch.ones(2),
        "generator.quantizer.layers.0._levels": torch.full((8,), 4),
    }
    run = {
        "train": {"lr": 1e-4, "steps": [1, 2]},
        "dataset": {"rate": 16_000, "rates": "${dataset.rate}", "none": None},
    }
    return {
        "epoch": 4,
        "global_step": 1_400_000,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": {prefix + name: tensor for name, tensor in (others | tensors).items()},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}],
        "hparams_name": "cfg",
        "hyper_parameters": OmegaConf.create(run),
    }


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_training_checkpoint(model, tmp_path, prefix):
    torch.save(training_checkpoint(original_tensors(model), prefix), tmp_path / "last.ckpt")
    assert_same_model(load_model(str(tmp_path / "last.ckpt")), model)


def test_a_training_checkpoint_takes_the_semantic_model_from_elsewhere(model, tmp_path):
    tensors = original_tensors(model)
    semantic = {name: tensors.pop(name) for name in list(tensors) if name.startswith("semantic_model.")}
    torch.save(training_checkpoint(tensors), tmp_path / "last.ckpt")
    config = Wav2Vec2BertConfig(**{**model.config.semantic_model_config.to_dict(), "num_hidden_layers": 24})
    elsewhere = Wav2Vec2BertModel(config)
    elsewhere.load_state_dict({name.removeprefix("semantic_model."): tensor for name, tensor in semantic.items()})
    elsewhere.save_pretrained(tmp_path / "w2v-bert-2.0")

    assert_same_model(load_model(str(tmp_path / "last.ckpt"), str(tmp_path / "w2v-bert-2.0")), model)
    with pytest.raises(UserError, match=r"no semantic model, and facebook/w2v-bert-2\.0 cannot be loaded"):
        load_model(str(tmp_path / "last.ckpt"))


def test_a_file_without_a_folder(model, tmp_path):
    save_file(original_tensors(model), tmp_path / "weights.safetensors")
    assert_same_model(load_model(str(tmp_path / "weights.safetensors")), model)


def test_half_precision_and_no_constants(model, tmp_path):
    """Filters and the window may be absent, and rounded to half precision; the weights are float32 afterwards."""
    tensors = original_tensors(model)
    without = {name: tensor for name, tensor in tensors.items() if not name.endswith((".filter", ".window"))}
    assert len(without) < len(tensors)
    assert_same_model(load_model(str(save_package_folder(tmp_path / "without", without))), model)
    halved = load_model(str(save_package_folder(tmp_path / "half", {k: t.half() for k, t in tensors.items()})))
    assert {tensor.dtype for tensor in halved.state_dict().values()} == {torch.float32}


def test_a_hub_name_from_its_cache(model, tmp_path):
    """The layout of the hub's own cache, offline: the one part of the download that can be run without it."""
    repository = tmp_path / "hub" / "models--HKUSTAudio--xcodec2"
    save_package_folder(repository / "snapshots" / "0123456789abcdef", original_tensors(model))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123456789abcdef")
    model.save_pretrained(tmp_path / "native")
    script = (
        "import sys; from llasa.codec.xcodec2 import fingerprint, load_model\n"
        "print(fingerprint(load_model('HKUSTAudio/xcodec2')) == fingerprint(load_model(sys.argv[1])))"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "native")],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert outcome.stdout == "True\n"


def test_only_the_package_s_config_is_original(model):
    assert is_original(PACKAGE_CONFIG)
    assert is_original({"model_type": "xcodec2", "codec_decoder_hidden_size": 1024})
    assert is_original({"model_type": "bigcodec", "architectures": ["XCodec2Model"]})
    assert not is_original(model.config.to_dict() | {"architectures": ["Xcodec2Model"]})
    assert not is_original({"model_type": "xcodec", "architectures": ["XcodecModel"]})
    assert not is_original({"architectures": None})


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("parametrised", [False, True])
def test_weight_norm_is_that_of_torch(parametrised):
    torch.manual_seed(0)
    conv = torch.nn.Conv1d(6, 10, kernel_size=5)
    wrap = torch.nn.utils.parametrizations.weight_norm if parametrised else torch.nn.utils.weight_norm
    wrap(conv)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.mul_(torch.rand_like(parameter) + 0.5)
        conv(torch.zeros(1, 6, 5))  # the old form computes its weight here
    names = {f"a.{name}": tensor for name, tensor in conv.state_dict().items()}
    assert len(names) == 3
    folded = fold_weight_norm(names)
    assert folded.keys() == {"a.weight", "a.bias"}
    torch.testing.assert_close(folded["a.weight"], conv.weight, rtol=1e-6, atol=0)


def test_rotated_products_are_those_of_neighbouring_rows():
    """Against a rotary embedding of neighbouring pairs written as complex numbers, as torchtune's is."""
    torch.manual_seed(0)
    hidden, query, key = torch.randn(5, 96), torch.randn(192, 96), torch.randn(192, 96)
    positions, frequencies = torch.arange(3.0), 10_000 ** -(torch.arange(0, 64, 2) / 64)
    angles = positions[:, None] * frequencies  # [heads, 32]: the decoder's positions are its heads

    def pairs(weight: torch.Tensor) -> torch.Tensor:
        states = torch.view_as_complex((hidden @ weight.T).unflatten(-1, (3, 32, 2)))
        return torch.view_as_real(states * torch.polar(torch.ones_like(angles), angles)).flatten(-2)

    def halves(weight: torch.Tensor) -> torch.Tensor:
        states = (hidden @ rotary_halves(weight).T).unflatten(-1, (3, 64))
        first, second = states.chunk(2, dim=-1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    expected = torch.einsum("qhd,khd->hqk", pairs(query), pairs(key))
    torch.testing.assert_close(torch.einsum("qhd,khd->hqk", halves(query), halves(key)), expected, rtol=1e-4, atol=1e-2)
    assert not torch.allclose(halves(query), pairs(query), atol=1.0)


def without(*names):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


def shorter(name):
    return lambda tensors: tensors | {name: tensors[name][:-1].clone()}


def with_tensor(name, tensor):
    return lambda tensors: tensors | {name: tensor}


def without_layers(first):
    late = {f"semantic_model.encoder.layers.{layer}." for layer in range(first, 24)}
    return lambda tensors: {name: t for name, t in tensors.items() if not name.startswith(tuple(late))}


UNIT = "CodecEnc.conv_blocks.1.block.0.block"


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (without("fc_post_a.bias"), r"1 weights are missing, first acoustic_decoder\.fc\.bias"),
        (without("fc_post_a.weight"), r"acoustic_decoder\.fc\.weight is missing or misshapen"),
        (without("fc_prior.weight"), r"no fc_prior\.weight, so it is no XCodec2"),
        (without(f"{UNIT}.1.weight_g"), r"1 tensors have no place .*first CodecEnc\..*block\.1\.weight_v"),
        (without("generator.backbone.transformers.1.att.c_attn.weight"), r"3 weights are missing, .*k_proj"),
        (without_layers(15), "15 semantic layers, but the codec needs 16"),
        (shorter("generator.head.out.bias"), r"1 weights are misshapen, first acoustic_decoder\.head\.linear\.bias"),
        (shorter("generator.backbone.transformers.0.att.c_attn.weight"), "has 383 rows, not three times whole heads"),
        (shorter("semantic_model.encoder.layers.3.self_attn.distance_embedding.weight"), r"misshapen.*layers\.3"),
        (with_tensor("generator.extra.weight", torch.ones(2)), r"1 tensors have no place .*generator\.extra\.weight"),
        (with_tensor("fc_prior.extra", torch.ones(2)), r"1 weights have no place .*first fc_encoder\.extra"),
        (with_tensor("generator.upsampler.out_proj.bias", torch.ones(2)), "its decoder has an upsampler"),
        (with_tensor("generator.head.istft.window", torch.ones(1280)), r"not the native model's .*head\.window"),
        (with_tensor("generator.head.istft.window", torch.ones(640)), r"not the native model's .*head\.window"),
        (with_tensor(f"{UNIT}.0.upsample.filter", torch.ones(1, 1, 12)), "not the native model's filters"),
    ],
)
def test_incomplete_or_other_weights_are_refused(model, tmp_path, damage, problem):
    folder = save_package_folder(tmp_path / "damaged", damage(original_tensors(model)))
    with pytest.raises(UserError, match=problem) as error:
        load_model(str(folder))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"codec.checkpoint={folder}: ")
    assert "; use HKUSTAudio/xcodec2" in str(error.value)


class Intruder:
    """Unpickling it would make a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_never_run(model, tmp_path):
    harmless = training_checkpoint(original_tensors(model))
    torch.save(harmless | {"callbacks": Intruder(tmp_path / "made")}, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=r"last\.ckpt holds more than tensors.*torch\.save its state_dict alone"):
        load_model(str(tmp_path / "last.ckpt"))
    assert not (tmp_path / "made").exists()
    # The same file without the intruder loads, and loading it in full makes the folder: the refusal is about that.
    torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("a.safetensors", b"not at all", "damaged, or no weights"),
        ("a.ckpt", b"not at all", "damaged, or no weights"),
        ("a.bin", b"", "damaged, or no weights"),
    ],
)
def test_a_file_that_is_no_weights(tmp_path, file, content, problem):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=problem):
        load_model(str(tmp_path / file))


def test_other_contents_are_refused(model, tmp_path):
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    with pytest.raises(UserError, match="no dictionary of tensors"):
        load_model(str(tmp_path / "list.pt"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text(json.dumps(PACKAGE_CONFIG))
    with pytest.raises(UserError, match=r"there is no model\.safetensors or pytorch_model\.bin"):
        load_model(str(tmp_path / "empty"))
    model.save_pretrained(tmp_path / "native")
    assert_same_model(load_model(str(tmp_path / "native")), model)
    with pytest.raises(UserError, match=r"no fc_prior\.weight"):
        load_model(str(tmp_path / "native" / "model.safetensors"))
    with pytest.raises(UserError, match="not in the hub's cache, and the hub cannot be reached"):
        load_original("HKUSTAudio/xcodec2", "codec.checkpoint=HKUSTAudio/xcodec2")


def test_every_tensor_of_the_source_has_one_place(model):
    """The two sides count: what goes in comes out, less the later layers, folded pairs, plus the split attention."""
    tensors = original_tensors(model)
    weights = native_weights(tensors, "x")
    late = sum(name.startswith(tuple(f"semantic_model.encoder.layers.{n}." for n in range(16, 24))) for name in tensors)
    pairs = sum(name.endswith("weight_g") for name in tensors)
    attentions = sum("c_attn" in name for name in tensors)
    assert min(late, pairs, attentions) >= 2
    assert len(weights) == len(tensors) - late - pairs + 2 * attentions
    assert weights.keys() >= model.state_dict().keys()
