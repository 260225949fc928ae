"""Free text and paths arrive through Hydra's grammar as they were typed."""

from __future__ import annotations

import random
import re
from dataclasses import asdict

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from llasa.entry import compose_config, quote_raw_values

NASTY = [
    "Ciao, come stai?",
    "L'ho detto",
    'Disse: "ciao"',
    "'a' e 'b'",
    '"Ciao", disse, "addio"',
    "[a, b]",
    "{a: 1}",
    "(x)",
    "${x}",
    "a ${x} b",
    "${oc.env:HOME}",
    "\\${x}",
    "\\\\${x}",
    "\\\\\\${x}",
    "$${x}",
    "${x",
    "$5 e 3}",
    "a\\",
    "a\\\\",
    "a\\'",
    "\\'",
    "\\",
    "'a\\'",
    "a'${x}'\\",
    "C:\\new\\table",
    "\\n",
    "a=b=c",
    "=",
    "#hash",
    " # comment",
    "  leading",
    "trailing  ",
    " ",
    "tab\there",
    "new\nline",
    "None",
    "true",
    "5",
    "1e-3",
    "~x",
    "+y",
    "100 %",
    "a: b",
    "@x",
    "é“”… ß 你好 🎉",
    "'",
    "'''",
    '"',
    "''a''",
    "sweep(1,2)",
    "range(1,3)",
    "a,b,c",
    "-m",
    "??? sì",
]


@pytest.mark.parametrize(("text", "voice_text"), list(zip(NASTY[::2], NASTY[1::2], strict=True)))
def test_free_text_arrives_as_it_was_typed(text, voice_text):
    config = compose_config("infer", ["checkpoint=x", f"text={text}", "voice=a.wav", f"voice_text={voice_text}"])
    assert (config.text, config.voice_text) == (text, voice_text)


def test_random_free_text_arrives_as_it_was_typed():
    """As above over 2,000 strings of the characters that Hydra and OmegaConf treat specially."""
    generator = random.Random(0)
    pieces = [*"'\"\\}$,=[]{() #:aè\n~?", "${"]
    parser = OverridesParser.create()
    tried = 0
    for _ in range(2000):
        text = "".join(generator.choices(pieces, k=generator.randint(1, 12)))
        if re.fullmatch(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\?\?\?", text, re.DOTALL):
            continue  # quoted already: Hydra's meaning, tested below
        (quoted,) = quote_raw_values([f"text={text}"])
        value = parser.parse_override(quoted).value()
        assert OmegaConf.to_container(OmegaConf.create({"text": str(value)}), resolve=True) == {"text": text}
        tried += 1
    assert tried > 1900


@pytest.mark.parametrize(
    ("typed", "value"),
    [("'a, b'", "a, b"), ('"a, b"', "a, b"), ("'it\\'s'", "it's"), ("''", ""), ("", "")],
)
def test_a_value_in_quotes_has_the_meaning_hydra_gives_it(typed, value):
    assert compose_config("infer", ["checkpoint=x", f"text={typed}"]).text == value


def test_null_is_no_text():
    config = compose_config("infer", ["checkpoint=x", "text=null", "texts=a, b.txt"])
    assert (config.text, config.texts) == (None, "a, b.txt")


@pytest.mark.parametrize("path", ["a, b/c", "~/x", "/tmp/run (1)/[x]", "it's", "C:\\data\\new", "a=b"])
def test_paths_arrive_as_they_were_typed(path):
    infer = compose_config("infer", [f"checkpoint={path}", "text=a", f"output={path}.wav"])
    assert (infer.checkpoint, infer.output) == (path, f"{path}.wav")
    preprocess = compose_config("preprocess", ["dataset=folder", f"dataset.path={path}", f"store={path}"])
    assert (preprocess.dataset["path"], preprocess.store) == (path, path)


def test_a_path_may_refer_to_another_key():
    config = compose_config("train", ["output_dir=runs/${model.name}-${optimizer.lr}"])
    assert config.output_dir == "runs/llasa_1b-5e-05"


def test_other_arguments_are_left_alone():
    arguments = ["trainer.max_steps=3", "optimizer.betas=[0.9,0.95]", "-m", "--cfg", "job", "sampling=greedy"]
    assert quote_raw_values(arguments) == arguments


def test_in_a_sweep_a_comma_separates_values():
    assert quote_raw_values(["-m", "store=a,b", "text=Ciao"]) == ["-m", "store=a,b", "text='Ciao'"]
    assert quote_raw_values(["store=a,b"]) == ["store='a,b'"]


def test_the_composed_config_survives_yaml():
    """The run folder's config.yaml is this dump."""
    config = asdict(compose_config("train"))
    assert yaml.safe_load(yaml.safe_dump(config)) == config
