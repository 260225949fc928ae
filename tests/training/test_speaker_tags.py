"""`speaker_tags=true` from the store to the voice: what is learned, what the card says, who may be asked for."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from llasa.config import SamplingConfig
from llasa.corpus.store import plan_shards, write_manifest, write_plan, write_shard
from llasa.entry import compose_config
from llasa.errors import UserError
from llasa.generation.engine_hf import TransformersEngine
from llasa.generation.synthesizer import Synthesizer
from llasa.generation.voices import Voice
from llasa.model.checkpoint import CheckpointCard
from llasa.model.llama import load_for_inference
from llasa.training.run import train
from llasa.types import EncodedUtterance
from tests.conftest import SMALL_LLAMA
from tests.model.tiny import CODEC
from tests.training.test_resume import require_same, rewind, run

SAYS = {"tara": [3, 20, 5, 40], "leo": [9, 60, 1, 30]}
"""The codes of each, whatever the text."""
GREEDY = SamplingConfig(temperature=0.0, max_seconds=0.2, text_bounds=False, loop_seconds=0.0)
TAGS = "speaker_tags=true"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Texts that both speakers say, tara more of them."""
    root = tmp_path_factory.mktemp("speakers") / "store"
    rows = [
        EncodedUtterance(f"row-{i}", text, text, speaker, "it", 4 / 50, np.array(SAYS[speaker], np.uint16))
        for i, (text, speaker) in enumerate(
            (text, speaker)
            for speaker, texts in (("leo", ["ciao", "sì", "no"]), ("tara", ["ciao", "sì", "no", "forse"]))
            for text in texts
        )
    ]
    plan = {"codec": CODEC.to_dict(), "source": {"name": "speakers"}}
    (shard,) = plan_shards({"train": len(rows)}, len(rows))
    write_plan(root, plan)
    write_shard(root, shard, CODEC, rows, [])
    write_manifest(root, [shard], plan, {})
    return root


@pytest.fixture(scope="module")
def checkpoint(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    settings = ["optimizer=adamw", "optimizer.lr=0.02", "packing.max_length=512", "trainer.max_steps=60",
                "trainer.rows_per_step=2", "trainer.rows_per_device=2", "checkpoint.every=0"]  # fmt: skip
    train(compose_config("train", [*SMALL_LLAMA, *settings, f"store={store}", f"output_dir={folder}", TAGS]))
    return folder / "checkpoint"


@pytest.fixture(scope="module")
def synthesizer(checkpoint):
    engine = TransformersEngine(batch_size=2, progress=False)
    speech = load_for_inference(str(checkpoint), "cpu")
    speech.card = replace(speech.card, max_length=300)  # room for a voice, which its short rows do not leave
    return Synthesizer(speech, None, engine, "it")


def test_the_checkpoint_knows_its_speakers(checkpoint):
    card = CheckpointCard.load(str(checkpoint))
    assert card.rules.speaker_tags
    assert (card.speakers, card.num_speakers) == (("tara", "leo"), 2), "who says more comes first"


@pytest.mark.parametrize("speaker", [None, *SAYS])
def test_the_model_speaks_as_who_is_asked_for(synthesizer, speaker):
    """Fails when training or inference leaves the tag out, or they write it in different ways."""
    results = synthesizer.generate(["ciao", "no"], GREEDY, speakers=[speaker] * 2)
    assert [result.codes.tolist() for result in results] == [SAYS[speaker or "tara"]] * 2
    assert [result.finish_reason for result in results] == ["stop", "stop"]


def test_a_request_has_the_tag_of_training_in_its_prompt(synthesizer):
    prompt, voice = synthesizer.speech.prompt, Voice("Sì.", np.array([1, 20], np.uint16))

    def ids(**settings):
        return synthesizer.request("Ciao.", GREEDY, **settings).prompt.tolist()

    assert ids(speaker="leo") == prompt.prompt("Ciao.", speaker="leo").tolist()
    assert ids() == ids(speaker="tara") != ids(speaker="")
    assert ids(voice=voice) == prompt.prompt("Sì. Ciao.", voice.codes).tolist()
    assert ids(voice=voice, speaker="leo") == prompt.prompt("Sì. Ciao.", voice.codes, "leo").tolist()
    with pytest.raises(UserError, match=r"speaker='tarra' .* did you mean tara\?"):
        ids(speaker="tarra")


def test_a_run_is_resumed_with_its_tags_or_not_at_all(store, tmp_path):
    """Fails when the key may change on resume, or what is left is trained without tags."""
    whole, copy = tmp_path / "whole", tmp_path / "copy"
    run(store, whole, TAGS, "checkpoint.keep=5")
    shutil.copytree(whole, copy)
    rewind(copy, 4)
    with pytest.raises(UserError, match=r"was started with speaker_tags=true \(not false\)"):
        run(store, copy, "resume=true")
    run(store, copy, TAGS, "checkpoint.keep=5", "resume=true")
    require_same(copy, whole)
    assert CheckpointCard.load(str(copy / "checkpoint")) == CheckpointCard.load(str(whole / "checkpoint"))
