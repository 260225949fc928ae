"""Every shipped option composes, validates and can be built; every validator accepts and rejects."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from llasa import config as schemas
from llasa.config.shared import MULTILINGUAL
from llasa.entry import CONF_DIR, compose_config, group_config
from llasa.errors import UserError

ROOTS = ("train", "train_codec", "preprocess", "infer", "evaluate", "serve", "export")
REQUIRED = {
    "train": ["store=data/x"],
    "train_codec": [],
    "preprocess": [],
    "infer": ["checkpoint=x", "text=Ciao"],
    "evaluate": ["checkpoint=x", "store=data/x", "output=y"],
    "serve": ["checkpoint=x"],
    "export": ["checkpoint=x", "output=y", "format=codec_onnx"],
}
NOT_IN_A_ROOT = {"hydra"}  # how Hydra itself behaves: each root names the one it uses
NOT_FOR_A_ROOT = {("preprocess", "lang", "multilingual")}  # a corpus becomes a store one language at a time


@functools.cache
def read(path: Path) -> dict[str, Any]:
    """The file as it is written: no interpolation resolved, `1e-4` read as a number as OmegaConf does."""
    return OmegaConf.to_container(OmegaConf.load(path), resolve=False)


def defaults_of(root: str) -> dict[str, str | None]:
    """Group → default option of a root config."""
    entries = [entry for entry in read(CONF_DIR / f"{root}.yaml")["defaults"] if isinstance(entry, dict)]
    return {key: value for entry in entries for key, value in entry.items() if not key.startswith("override ")}


def option_files() -> list[Path]:
    return sorted(CONF_DIR.glob("*/*.yaml"))


def uses() -> list[tuple[str, str, str]]:
    """(root, group, option) for every option file and every root that has its group."""
    return [
        (root, file.parent.name, file.stem)
        for file in option_files()
        for root in ROOTS
        if file.parent.name in defaults_of(root) and file.parent.name not in NOT_IN_A_ROOT
        if (root, file.parent.name, file.stem) not in NOT_FOR_A_ROOT
    ]


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything that is not a dictionary."""
    if not isinstance(node, dict):
        yield prefix.removesuffix("."), node
        return
    for key, value in node.items():
        yield from leaves(value, f"{prefix}{key}.")


def literal(value: Any) -> bool:
    """Whether a value in a file is what the composed config must hold (no interpolation, not a required one)."""
    return not (isinstance(value, str) and ("${" in value or value == "???"))


def missing_keys(group: str, option: str) -> list[str]:
    return [f"{group}.{key}" for key, value in leaves(read(CONF_DIR / group / f"{option}.yaml")) if value == "???"]


def plain(config: Any) -> dict[str, Any]:
    """The typed config as a dictionary, after a check that nothing of OmegaConf is left in it."""

    def check(value: Any) -> None:
        assert not OmegaConf.is_config(value), f"{value!r} is a {type(value).__name__}"
        if is_dataclass(value):
            for field in fields(value):
                check(getattr(value, field.name))
        elif isinstance(value, dict):
            for item in value.values():
                check(item)
        elif isinstance(value, list):
            for item in value:
                check(item)
        else:
            assert not (isinstance(value, str) and "${" in value), f"{value!r} is not resolved"

    check(config)
    return asdict(config)


# Options


def test_the_walk_over_the_options_sees_them_all():
    groups = {path.name for path in CONF_DIR.iterdir() if path.is_dir()}
    named = {group for root in ROOTS for group in defaults_of(root)}
    assert groups == named, "a folder of conf/ that no root names, or the other way round"
    assert {"model", "lang", "dataset", "codec", "optimizer", "schedule", "engine", "sampling", "experiment"} <= groups
    assert sorted(CONF_DIR.glob("*.yaml")) == sorted(CONF_DIR / f"{root}.yaml" for root in ROOTS)
    assert sorted(CONF_DIR.rglob("*.yaml")) == sorted([*option_files(), *CONF_DIR.glob("*.yaml")])
    assert {(group, option) for _, group, option in uses()} == {
        (file.parent.name, file.stem) for file in option_files() if file.parent.name not in NOT_IN_A_ROOT
    }
    assert len(uses()) > 40
    assert {option for root in ROOTS for group, option in defaults_of(root).items() if group == "hydra"} == {
        file.stem for file in option_files() if file.parent.name == "hydra"
    }


@pytest.mark.parametrize(("root", "group", "option"), uses())
def test_every_option_composes_and_its_values_arrive(root, group, option):
    required = [f"{key}=given" for key in missing_keys(group, option)]
    config = plain(compose_config(root, [*REQUIRED[root], f"{group}={option}", *required]))
    content = {key: value for key, value in read(CONF_DIR / group / f"{option}.yaml").items() if key != "defaults"}
    arrived = dict(leaves(config if group == "experiment" else config[group]))
    expected = {key: value for key, value in leaves(content) if literal(value)}
    assert expected or group == "experiment"
    assert {key: arrived.get(key, "absent") for key in expected} == expected


@pytest.mark.parametrize("option", [file.stem for file in option_files() if file.parent.name == "experiment"])
def test_every_experiment_overrides_the_groups_it_names(option):
    changes = {}
    for entry in read(CONF_DIR / "experiment" / f"{option}.yaml")["defaults"]:
        for key, value in entry.items():
            assert key.startswith("override /"), key
            changes[key.removeprefix("override /")] = value
    config = plain(compose_config("train", [*REQUIRED["train"], f"experiment={option}"]))
    assert len(changes) >= 3
    for group, chosen in changes.items():
        for key, value in leaves(read(CONF_DIR / group / f"{chosen}.yaml")):
            if literal(value) and not key.startswith(group):
                assert dict(leaves(config[group]))[key] == value


@pytest.mark.parametrize(("root", "group", "option"), [use for use in uses() if missing_keys(*use[1:])])
def test_an_option_without_its_required_value_is_refused_by_name(root, group, option):
    (key,) = missing_keys(group, option)
    with pytest.raises(UserError, match=rf"^{re.escape(key)} is required; pass {re.escape(key)}="):
        compose_config(root, [*REQUIRED[root], f"{group}={option}"])


@pytest.mark.parametrize(("root", "key"), [("train", "store"), ("infer", "checkpoint")])
def test_a_root_without_its_required_value_is_refused_by_name(root, key):
    # train's store and preprocess's have a default, so that the two commands of the README find each other.
    if root == "train":
        assert compose_config(root).store
        return
    with pytest.raises(UserError, match=rf"^{key} is required; pass {key}="):
        compose_config(root, [override for override in REQUIRED[root] if not override.startswith(f"{key}=")])


def test_names_in_the_files_are_the_names_of_the_files():
    named = [(file, read(file).get("name")) for file in option_files() if file.parent.name != "lang"]
    named = [(file, name) for file, name in named if name is not None]
    assert len(named) > 20
    assert {file.parent.name for file, _ in named} >= {"model", "dataset", "codec", "schedule", "kernels", "logger"}
    assert [(file.stem, name) for file, name in named if file.stem != name] == []


def test_language_codes_are_the_names_of_their_files():
    codes = {file.stem: read(file)["code"] for file in option_files() if file.parent.name == "lang"}
    assert len(codes) >= 8
    assert {"it", "de", "en", "fr", "es", "pt", "nl", "pl"} <= set(codes)
    assert codes.pop("multilingual") == MULTILINGUAL
    assert all(stem == code for stem, code in codes.items())


def test_every_language_has_a_spoken_form_and_a_corpus_of_its_own():
    files = [read(file) for file in option_files() if file.parent.name == "lang"]
    assert len({file["corpus_config"] for file in files}) == len(files)
    assert all(file["corpus_config"] == file["name"].lower() for file in files)


@pytest.mark.parametrize("option", [file.stem for file in option_files() if file.parent.name == "codec"])
def test_a_codec_read_by_its_name_is_the_composed_one(option):
    """A checkpoint names its codec; an interpolation in the file would have no parent there."""
    composed = compose_config("infer", [*REQUIRED["infer"], f"codec={option}"]).codec
    assert group_config("codec", option) == composed
    assert composed["name"] == option


def test_an_unknown_option_read_by_name_lists_the_known_ones():
    with pytest.raises(UserError, match=r"no codec named 'codec3'; known: codec2, .*xcodec2"):
        group_config("codec", "codec3")


# Targets


def targets() -> list[tuple[str, str, dict[str, Any]]]:
    found = []

    def walk(file: Path, node: Any) -> None:
        if isinstance(node, dict):
            if "_target_" in node:
                found.append((f"{file.parent.name}/{file.stem}", node["_target_"], node))
            for value in node.values():
                walk(file, value)

    for file in sorted(CONF_DIR.rglob("*.yaml")):
        walk(file, read(file))
    return found


def test_the_walk_over_the_targets_sees_them_all():
    written = sum(path.read_text().count("_target_:") for path in CONF_DIR.rglob("*.yaml"))
    assert len(targets()) == written
    assert {target for _, target, _ in targets()} >= {
        "llasa.codec.xcodec2.XCodec2",
        "llasa.codec.codec2.Codec2",
        "llasa.training.optim.eight_bit",
        "torch.optim.AdamW",
        "llasa.training.optim.auto",
    }


@pytest.mark.parametrize(("where", "target", "node"), targets(), ids=[where for where, _, _ in targets()])
def test_every_target_exists_and_takes_the_keys_of_its_file(where, target, node):
    module, _, name = target.rpartition(".")
    built = getattr(importlib.import_module(module), name)
    keys = {key: None for key in node if key not in ("_target_", "_partial_")}
    signature = inspect.signature(built)
    if node.get("_partial_"):
        signature.bind_partial(**keys)
        signature.bind([], **keys)  # an optimizer: all that is left to pass are the parameters
    else:
        signature.bind(**keys)


# Interpolations and defaults


@pytest.mark.parametrize(
    "option", [file.stem for file in option_files() if file.parent.name == "model"], ids=lambda option: option
)
def test_learning_rate_and_row_length_follow_the_model(option):
    model = read(CONF_DIR / "model" / f"{option}.yaml")
    config = compose_config("train", [f"model={option}"])
    assert config.optimizer["lr"] == config.model.lr == model["lr"]
    assert config.packing.max_length == config.model.max_length == model["max_length"]


@pytest.mark.parametrize(
    "option", [file.stem for file in option_files() if file.parent.name == "optimizer"], ids=lambda option: option
)
def test_every_optimizer_follows_the_model(option):
    config = compose_config("train", [f"optimizer={option}", "model.lr=1.5e-3"])
    assert config.optimizer["lr"] == config.model.lr == 1.5e-3


def test_the_learning_rate_can_be_overridden():
    config = compose_config("train", ["optimizer.lr=7e-6"])
    assert (config.optimizer["lr"], config.model.lr) == (7e-6, 5e-5)


def test_the_row_length_follows_the_model_and_can_be_overridden():
    assert compose_config("train", ["model.max_length=512"]).packing.max_length == 512
    own = compose_config("train", ["packing.max_length=4096"])
    assert (own.packing.max_length, own.model.max_length) == (4096, 2048)


@pytest.mark.parametrize("lang", ["it", "de", "pl"])
def test_the_dataset_follows_the_language(lang):
    language = read(CONF_DIR / "lang" / f"{lang}.yaml")
    dataset = compose_config("preprocess", [f"lang={lang}"]).dataset
    assert dataset["config"] == language["corpus_config"]
    assert dataset["language"] == lang
    assert compose_config("preprocess", [f"lang={lang}", "dataset.language=xx"]).dataset["language"] == "xx"


@pytest.mark.parametrize("lang", ["it", "de"])
def test_train_looks_for_the_store_where_preprocess_puts_it(lang):
    store = compose_config("preprocess", [f"lang={lang}"]).store
    assert store == compose_config("train", [f"lang={lang}"]).store == f"data/cml_tts-{lang}-xcodec2"


def test_defaults_are_what_the_design_promises():
    train = compose_config("train")
    assert (train.model.name, train.model.checkpoint) == ("llasa_1b", "HKUSTAudio/Llasa-1B")
    assert (train.lang.code, train.schedule.name, train.finetune.name) == ("it", "cosine", "full")
    assert (train.kernels.name, train.device, train.trainer.precision) == ("auto", "auto", "auto")
    assert train.optimizer["_target_"] == "llasa.training.optim.auto"
    assert (train.logger.name, train.resume) == ("wandb", False)
    assert train.optimizer["betas"] == [0.9, 0.95]
    preprocess = compose_config("preprocess")
    assert (preprocess.dataset["name"], preprocess.codec["name"]) == ("cml_tts", "xcodec2")
    assert (preprocess.lang.code, preprocess.runner.name) == ("it", "local")
    infer = compose_config("infer", REQUIRED["infer"])
    assert infer.sampling == schemas.SamplingConfig(temperature=0.8, top_k=0, top_p=1.0)
    assert (infer.codec, infer.output) == (None, "speech.wav")
    assert infer.engine["_target_"].endswith("TransformersEngine")


def test_the_recipe_of_the_post():
    config = compose_config("train", ["experiment=llasagna_it"])
    assert (config.model.name, config.lang.code, config.trainer.epochs) == ("llasa_1b", "it", 3)
    assert config.optimizer["algorithm"] == "Adam8bit"
    assert (config.optimizer["lr"], config.optimizer["weight_decay"]) == (5e-5, 0.01)
    assert (config.schedule.name, config.schedule.warmup) == ("cosine", 0.03)
    assert (config.trainer.precision, config.trainer.activation_checkpointing) == ("bf16", "full")


def test_a_command_line_beats_an_experiment():
    config = compose_config("train", ["experiment=nano_demo", "logger=tensorboard", "lang=de", "optimizer.lr=1e-4"])
    assert (config.logger.name, config.lang.code, config.optimizer["lr"]) == ("tensorboard", "de", 1e-4)


@pytest.mark.parametrize(
    ("root", "folder"), [("train", "RUN"), ("train_codec", "RUN"), ("preprocess", "."), ("infer", ".")]
)
def test_only_training_has_a_run_folder(root, folder):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        output = ["output_dir=RUN"] if folder == "RUN" else []
        node = compose(root, overrides=[*output, *REQUIRED[root]], return_hydra_config=True)
    assert node.hydra.run.dir == folder
    assert node.hydra.output_subdir is None
    handlers = list(node.hydra.job_logging.root.handlers)
    assert ("file" in handlers) == (folder == "RUN")


# Strictness


@pytest.mark.parametrize(
    ("root", "override", "message"),
    [
        ("train", "optimizer.lrr=1", r"no key 'optimizer\.lrr' .*did you mean optimizer\.lr\b"),
        ("train", "lr=1", r"no key 'lr' .*did you mean (model|optimizer)\.lr or (model|optimizer)\.lr\?"),
        ("infer", "lang=it", r"no key 'lang' .*did you mean language\?"),
        ("train", "modle=llasa_1b", r"no key 'modle' .*did you mean model\b"),
        ("train", "optimizer=adam8bits", r"no optimizer named 'adam8bits'; did you mean adam8bit\b"),
        ("train", "lang=xx", r"no lang named 'xx'; valid names: de, en, "),
        ("train", "trainer.max_steps=soon", r"trainer\.max_steps: Value 'soon' .* could not be converted to Integer"),
        ("train", "resume=perhaps", r"resume='perhaps' is not valid; use true, false or auto"),
        ("train", "trainer.max_steps=1.5", r"trainer\.max_steps: .*1\.5"),
        ("train", "trainer=5", r"trainer: "),
        ("train", "+model.architecture=5", r"architecture"),
        ("train", "+seeds=3", r"no key 'seeds'; did you mean seed\?"),
        ("train", "trainer.zzz=3", r"no key 'trainer\.zzz'.*; (did you mean|valid names:) \w+"),
        ("train", "+trainer.qqqqqqq=3", r"no key 'trainer\.qqqqqqq'; (did you mean|valid names:) trainer\.\w+"),
        ("train", "packing.max_length=63", r"packing\.max_length=63 is not valid; use 64 or more"),
        ("train", "trainer.max_steps=1,2", r"trainer\.max_steps=1,2.*; .*-m KEY=A,B runs a sweep"),
        ("train", "trainer.max_steps", r"'trainer\.max_steps'; write KEY=VALUE"),
        ("train", "experiment=llasagna_de", r"no experiment named 'llasagna_de'; did you mean llasagna_it\?"),
        ("preprocess", "dataset.pathh=x", r"no key 'dataset\.pathh' .*did you mean dataset\.path\b"),
        ("preprocess", "codec.checkpont=x", r"no key 'codec\.checkpont' .*did you mean codec\.checkpoint\b"),
        ("preprocess", "filters.max_second=3", r"no key 'filters\.max_second' .*did you mean filters\.max_seconds"),
        ("preprocess", "lang=multilingual", r"one language at a time.*; pass lang=it, lang=de"),
        ("infer", "sampling.temprature=1", r"no key 'sampling\.temprature' .*did you mean sampling\.temperature\b"),
        ("infer", "engine=hff", r"no engine named 'hff'; did you mean hf\?"),
        ("infer", "engine.batchsize=3", r"no key 'engine\.batchsize' .*did you mean engine\.batch_size\?"),
        ("infer", "codec=codec3", r"no codec named 'codec3'; did you mean codec2 or xcodec2\?"),
    ],
)
def test_a_typo_is_refused_with_the_nearest_name(root, override, message):
    with pytest.raises(UserError) as caught:
        compose_config(root, [*REQUIRED[root], override])
    assert re.search(message, str(caught.value)), str(caught.value)
