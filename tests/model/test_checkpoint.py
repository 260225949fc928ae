"""A checkpoint folder appears whole or not at all."""

import json
import subprocess
import sys

import pytest
import torch

from llasa.errors import UserError
from llasa.model.checkpoint import CARD, MAX_SPEAKERS, CheckpointCard, replaced_folder, save_checkpoint
from llasa.tokens.prompt import PromptRules
from tests.model.tiny import CODEC, tiny_speech_model

FULL_DISK = """
import resource, sys
from pathlib import Path
from llasa.config import FinetuneConfig
from llasa.errors import UserError
from llasa.model.checkpoint import save_adapter, save_checkpoint
from tests.model.tiny import build_from
base, run = map(Path, sys.argv[1:])
speech = build_from(base, FinetuneConfig(name="lora", rank=1))
def save_both():
    for kind, save in (("checkpoint", save_checkpoint), ("adapter", save_adapter)):
        try:
            save(run / kind, speech.model, speech.tokenizer, speech.card)
            print("saved", kind)
        except UserError as error:
            print(error)
for limit in (0, 15_000, 40_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    save_both()
"""


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_disk_that_is_full_leaves_the_earlier_folder(tmp_path):
    """The kernel refuses to write past a number of bytes of a file: none at all; too few for the tokenizer, which
    Rust writes, and enough for an adapter's weights; too few for the weights and enough for the tokenizer.

    Fails when the earlier folder is removed first, or an error of safetensors or tokenizers, which are no OSError,
    comes out as it is.
    """
    speech = tiny_speech_model()
    save_checkpoint(tmp_path / "base", speech.model, speech.tokenizer, speech.card)
    sizes = {file.name: file.stat().st_size for file in (tmp_path / "base").iterdir()}
    assert 15_000 < sizes["tokenizer.json"] < 40_000 < sizes["model.safetensors"]
    run = tmp_path / "run"
    for kind in ("checkpoint", "adapter"):
        (run / kind).mkdir(parents=True)
        (run / kind / "config.json").write_text("an earlier one")
    arguments = [str(tmp_path / "base"), str(run)]
    result = subprocess.run([sys.executable, "-c", FULL_DISK, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    *failed, last = result.stdout.splitlines()
    assert len(failed) == 5, result.stdout
    for kind, line in zip(("checkpoint", "adapter", "checkpoint", "adapter", "checkpoint"), failed, strict=True):
        assert line.startswith(f"cannot write {run / kind}: ")
        assert "File too large" in line
        assert line.endswith("a training goes on with resume=true")
    assert last == "saved adapter"
    assert contents(run / "checkpoint") == {"config.json": b"an earlier one"}
    assert (run / "adapter" / "adapter_model.safetensors").stat().st_size < 15_000
    assert not (run / "adapter" / "config.json").exists()
    assert {path.name for path in run.iterdir()} == {"checkpoint", "adapter"}


def test_a_folder_is_replaced_when_its_successor_is_whole(tmp_path):
    folder = tmp_path / "run" / "checkpoint"
    for content in ("first", "second"):
        with replaced_folder(folder) as temporary:
            (temporary / content).touch()
        assert contents(folder) == {content: b""}
    with pytest.raises(ZeroDivisionError), replaced_folder(folder) as temporary:
        (temporary / str(1 // 0)).touch()
    assert contents(folder) == {"second": b""}
    # A run that was killed between the two renames left both.
    folder.rename(folder.with_name(".checkpoint.old"))
    (folder.with_name(".checkpoint.tmp")).mkdir()
    with replaced_folder(folder) as temporary:
        (temporary / "fourth").touch()
    assert contents(folder) == {"fourth": b""}
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]


def test_a_folder_that_may_not_be_written_is_said_in_one_line(tmp_path):
    (tmp_path / "run").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot write"), replaced_folder(tmp_path / "run" / "checkpoint"):
        pass


def test_saving_leaves_the_model_as_it_was(tmp_path):
    speech = tiny_speech_model()
    before = {name: p.detach().clone() for name, p in speech.model.named_parameters()}
    save_checkpoint(tmp_path / "checkpoint", speech.model, speech.tokenizer, speech.card, torch.bfloat16)
    for name, parameter in speech.model.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, before[name])
    assert speech.model.config.use_cache is False


# --- who speaks

PLAIN = CheckpointCard(PromptRules(), CODEC, ("it",), 300)
TAGGED = CheckpointCard(PromptRules(speaker_tags=True), CODEC, ("it",), 300).with_speakers(["tara", "leo", "zoë"])


def test_a_card_keeps_its_speakers(tmp_path):
    """Fails when they are not written or not read; a card without any has the fields it always had."""
    TAGGED.save(tmp_path)
    assert CheckpointCard.load(str(tmp_path)) == TAGGED
    assert (TAGGED.speakers, TAGGED.num_speakers) == (("tara", "leo", "zoë"), 3)
    PLAIN.save(tmp_path)
    fields = json.loads((tmp_path / CARD).read_text())
    assert fields.keys() == {"format_version", "prompt", "codec", "languages", "max_length"}
    assert fields["prompt"].keys() == {"instruction", "date_string"}
    assert CheckpointCard.load(str(tmp_path)) == PLAIN


def test_a_card_names_so_many_speakers_and_counts_all(tmp_path):
    """Fails without the bound, and when a speaker beyond it cannot be asked for."""
    names = [f"speaker {number}" for number in range(MAX_SPEAKERS + 5)]
    card = TAGGED.with_speakers(names)
    assert card.speakers == tuple(names[:MAX_SPEAKERS])
    assert card.num_speakers == MAX_SPEAKERS + 8
    card.save(tmp_path)
    assert CheckpointCard.load(str(tmp_path)) == card
    assert card.knows(names[-1])
    assert card.speaker_for(names[-1]) == names[-1]
    assert card.with_speakers(["new"]).num_speakers == card.num_speakers


def test_training_on_adds_speakers_and_puts_its_own_first():
    card = TAGGED.with_speakers(["nuovo", "leo"])
    assert (card.speakers, card.num_speakers) == (("nuovo", "leo", "tara", "zoë"), 4)


def test_who_is_asked_for_must_be_known():
    """Fails when a name passes unseen, or is compared otherwise than it stands in the prompt."""
    assert TAGGED.speaker_for("leo") == "leo"
    assert TAGGED.speaker_for(" zoe\u0308 ") == " zoe\u0308 ", "its tag is that of zoë"
    with pytest.raises(UserError, match=r"speaker='tarra' is not among the 3 speakers .* did you mean tara\?"):
        TAGGED.speaker_for("tarra")
    with pytest.raises(UserError, match=r"speaker='x' is not among the 3 .* it knows tara, leo, zoë$"):
        TAGGED.speaker_for("x")
    with pytest.raises(UserError, match="speaker=':' is not among"):
        TAGGED.speaker_for(":")
    with pytest.raises(UserError, match=r"speaker='tara' .* trained without speaker tags; leave speaker= out"):
        PLAIN.speaker_for("tara")
    assert [TAGGED.knows(name) for name in ("tara", "x", "")] == [True, False, False]
    assert not PLAIN.knows("tara")


def test_who_speaks_where_nobody_is_asked_for():
    """The most frequent speaker, but with a recording nobody: it says itself whose voice it is."""
    assert TAGGED.speaker_for(None) == "tara"
    assert TAGGED.speaker_for(None, has_voice=True) == ""
    assert TAGGED.speaker_for("leo", has_voice=True) == "leo"
    assert TAGGED.speaker_for("") == PLAIN.speaker_for("") == PLAIN.speaker_for(None) == ""
