import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from llasa.codec.base import CodecSpec
from llasa.config import KernelsConfig, ModelConfig
from llasa.errors import UserError
from llasa.model.checkpoint import PUBLISHED_CODEC, CheckpointCard, require_same_codec, save_checkpoint
from llasa.model.llama import build_for_training, load_for_inference
from llasa.tokens.prompt import PromptRules
from tests.model.tiny import CODEC, examples, tiny_speech_model

TORCH = KernelsConfig(name="torch", attn="sdpa")


@pytest.fixture
def checkpoint(tmp_path):
    speech = tiny_speech_model()
    card = CheckpointCard(PromptRules(date_string="02 Feb 2026"), CODEC, ("it",), 300)
    save_checkpoint(tmp_path / "checkpoint", speech.model, speech.tokenizer, card)
    return tmp_path / "checkpoint", speech


def test_a_saved_checkpoint_is_a_plain_llama_with_a_card(checkpoint):
    folder, speech = checkpoint
    assert AutoConfig.from_pretrained(folder).architectures == ["LlamaForCausalLM"]
    assert not list(folder.parent.glob(".*"))
    assert {file.suffix for file in folder.iterdir()} <= {".json", ".safetensors", ".jinja"}
    loaded = load_for_inference(str(folder), "cpu")
    assert loaded.card == CheckpointCard(PromptRules(date_string="02 Feb 2026"), CODEC, ("it",), 300)
    sample = examples(speech, 1)[0]
    ids = torch.from_numpy(sample.input_ids)[None]
    torch.testing.assert_close(loaded.model(ids).logits, speech.model(input_ids=ids, use_cache=False).logits)
    assert loaded.prompt.prompt("Ciao").tolist() == speech.prompt.prompt("Ciao").tolist()


def test_saving_again_replaces_the_folder_and_narrows_the_type(checkpoint):
    folder, speech = checkpoint
    (folder / "leftover").touch()
    save_checkpoint(folder, speech.model, speech.tokenizer, CheckpointCard(PromptRules(), CODEC), torch.bfloat16)
    assert not (folder / "leftover").exists()
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = list(file.keys())
        assert {file.get_tensor(name).dtype for name in names} == {torch.bfloat16}
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names, "a tied head is stored once"
    config = AutoConfig.from_pretrained(folder)
    assert (config.dtype, config.use_cache) == (torch.bfloat16, True)


def test_fine_tuning_continues_an_own_checkpoint_with_its_rules(checkpoint):
    folder, speech = checkpoint
    config = ModelConfig(name="own", checkpoint=str(folder), lr=1e-4, max_length=256)
    again = build_for_training(config, TORCH, CODEC, "cpu", "fp32")
    assert again.card.rules.date_string == "02 Feb 2026"
    assert len(again.tokenizer) == len(speech.tokenizer)
    torch.testing.assert_close(again.model.state_dict(), speech.model.state_dict())
    assert again.model.config.use_cache is False


def test_another_codec_is_refused(checkpoint):
    folder, _ = checkpoint
    config = ModelConfig(name="own", checkpoint=str(folder), lr=1e-4, max_length=256)
    retrained = CodecSpec(**{**vars(CODEC), "fingerprint": "toy-2"})
    with pytest.raises(UserError, match="different weights"):
        build_for_training(config, TORCH, retrained, "cpu", "fp32")
    with pytest.raises(UserError, match=r"speaks toy, the store is xcodec2"):
        build_for_training(config, TORCH, PUBLISHED_CODEC, "cpu", "fp32")
    config = ModelConfig(name="llasa_1b", checkpoint="HKUSTAudio/Llasa-1B", codec="xcodec2", lr=1e-4, max_length=256)
    with pytest.raises(UserError, match=r"model=llasa_1b speaks xcodec2.*codes of toy.*codec=xcodec2"):
        build_for_training(config, TORCH, CODEC, "cpu", "fp32")
    require_same_codec(PUBLISHED_CODEC, CodecSpec(**{**vars(PUBLISHED_CODEC), "fingerprint": "x"}), "a", "b")


def test_what_is_no_checkpoint_is_said_in_one_line(tmp_path, checkpoint):
    folder, _ = checkpoint
    with pytest.raises(UserError, match="there is no checkpoint folder at"):
        load_for_inference(str(tmp_path / "nothing"), "cpu")
    with pytest.raises(UserError, match="its subfolder checkpoint is one"):
        load_for_inference(str(folder.parent), "cpu")
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:100])
    with pytest.raises(UserError, match="cannot load the model"):
        load_for_inference(str(folder), "cpu")
    weights.write_bytes(content)
    (folder / "llasa.json").write_text("{}")
    with pytest.raises(UserError, match="is not a checkpoint card"):
        load_for_inference(str(folder), "cpu")
    (folder / "llasa.json").write_text(json.dumps({"format_version": 99}))
    with pytest.raises(UserError, match="format 99"):
        load_for_inference(str(folder), "cpu")


def test_a_published_checkpoint_without_a_card_gets_the_published_defaults(tmp_path):
    from llasa.tokens.vocabulary import extend_tokenizer
    from tests.tokens.llama3 import llama3_tokenizer

    tokenizer = llama3_tokenizer()
    extend_tokenizer(tokenizer, 65536)
    shape = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    speech = load_for_inference(str(tmp_path), "cpu")
    assert speech.card.codec == PUBLISHED_CODEC
    assert speech.vocabulary.first_code == 128264
    assert speech.prompt.prompt("Ciao")[-1] == 128260


def test_a_model_from_scratch_notes_what_was_done():
    speech = tiny_speech_model(spread=0.1)
    assert speech.notes["vocabulary"] == {
        "initialisation": "normal, deviation 0.1",
        "rows_after": len(speech.tokenizer),
        "tied": True,
    }
    weights = sum(p.numel() for p in speech.model.parameters())
    assert speech.notes["finetune"] == {"trainable": weights, "all": weights}
