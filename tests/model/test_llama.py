import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from llasa.codec.base import CodecSpec
from llasa.config import KernelsConfig, ModelConfig
from llasa.errors import UserError
from llasa.model.checkpoint import PUBLISHED_CODEC, CheckpointCard, require_same_codec, save_checkpoint
from llasa.model.kernels import resolve_attention, resolve_kernels
from llasa.model.llama import build_for_training, load_for_inference
from llasa.packing.collate import PackingCollator
from llasa.tokens.byte_tokenizer import byte_tokenizer
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


@pytest.mark.parametrize("tied", [True, False])
def test_a_text_llama_is_extended_with_the_codes(tmp_path, tied):
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text_model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=tied, **shape))
    text_model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = ModelConfig(name="llama_1b", checkpoint=str(tmp_path), lr=1e-4, max_length=256)
    speech = build_for_training(config, TORCH, CODEC, "cpu", "fp32")
    old = len(tokenizer)
    assert len(speech.tokenizer) == speech.model.vocab_size == old + 8 + CODEC.codebook_size
    embeddings, head = speech.model.get_input_embeddings().weight, speech.model.get_output_embeddings().weight
    assert (embeddings is head) == tied
    torch.testing.assert_close(embeddings[:old], text_model.get_input_embeddings().weight)
    assert embeddings[old:].std() > 0
    assert examples(speech, 1)[0].input_ids.max() < speech.model.vocab_size


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


def test_kernels_are_resolved_by_the_device():
    assert resolve_kernels("auto", "cpu") == resolve_kernels("torch", "cuda") == "torch"
    assert resolve_attention(KernelsConfig(name="auto"), "cpu", "bf16") == "sdpa"
    assert resolve_attention(KernelsConfig(name="auto"), "cuda", "fp32") == "sdpa"
    assert resolve_attention(KernelsConfig(name="auto", attn="eager"), "cuda", "bf16") == "eager"
    with pytest.raises(UserError, match="CUDA"):
        resolve_kernels("liger", "cpu")
    with pytest.raises(UserError, match="flash-attn"):
        resolve_attention(KernelsConfig(name="auto", attn="flash_attention_2"), "cpu", "bf16")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_liger_gives_the_loss_of_plain_transformers(checkpoint):
    folder, speech = checkpoint
    batch = PackingCollator(pad_token_id=0)([examples(speech, 5)])
    count = int((batch["labels"] != -100).sum())
    expected = speech.model(**batch, num_items_in_batch=count).loss  # before Liger patches the process
    expected.backward()
    config = ModelConfig(name="own", checkpoint=str(folder), lr=1e-4, max_length=256)
    liger = build_for_training(config, KernelsConfig(name="liger", attn="sdpa"), CODEC, "cuda", "fp32")
    assert liger.kernels == "liger"
    model = liger.model.to("cuda").train()  # the fused loss is used in training only
    loss = model(**{key: value.cuda() for key, value in batch.items()}, num_items_in_batch=count).loss
    loss.backward()
    torch.testing.assert_close(loss.detach().cpu(), expected.detach(), atol=1e-4, rtol=1e-4)
    for (name, p), (_, q) in zip(model.named_parameters(), speech.model.named_parameters(), strict=True):
        torch.testing.assert_close(p.grad.cpu(), q.grad, atol=1e-3, rtol=1e-3, msg=name)
