"""What `export.py` writes, read by the programs it is written for."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from llasa.config import ExportConfig, FinetuneConfig
from llasa.errors import UserError
from llasa.generation.export import GGUF_FILE, RECORD, export
from llasa.model.checkpoint import PUBLISHED_CODEC, CheckpointCard, save_adapter, save_checkpoint
from llasa.model.llama import load_contract, load_for_inference
from llasa.tokens.prompt import PromptRules
from llasa.tokens.vocabulary import SpeechVocabulary, extend_tokenizer
from tests.codec.tiny_xcodec2 import save_tiny_xcodec2
from tests.model.tiny import build_from, save_tiny
from tests.tokens.llama3 import llama3_tokenizer

CONVERTER, LLAMA_CPP = os.environ.get("LLASA_TEST_GGUF_CONVERTER"), os.environ.get("LLASA_TEST_LLAMA_CPP")
TEXTS = ("Ciao, come stai?", "Il gatto dorme.", "Perché no?")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("plain") / "checkpoint")


@pytest.fixture(scope="module")
def adapter(plain, tmp_path_factory):
    """An adapter whose factors are all drawn at random, over the plain checkpoint."""
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    speech = build_from(plain, FinetuneConfig(name="lora", rank=4, alpha=8.0, embeddings="lora"))
    torch.manual_seed(1)
    for parameter in speech.model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    save_adapter(folder, speech.model, speech.tokenizer, speech.card)
    return folder


def greedy(model, contract, count=60):
    """Ids of ``count`` tokens after each text's prompt, the likeliest at every step."""
    settings = {"do_sample": False, "max_new_tokens": count, "eos_token_id": -1, "pad_token_id": 0}
    prompts = [torch.from_numpy(contract.prompt.prompt(text))[None] for text in TEXTS]
    return [model.generate(ids, **settings)[0, ids.shape[1] :].tolist() for ids in prompts]


@pytest.mark.parametrize("source", ["plain", "adapter"])
def test_the_merged_folder_says_the_same_in_plain_transformers(source, request, tmp_path):
    """Greedy ids before and after, in fp32. Fails when the adapter is left out, or a tied head is written as zeros."""
    checkpoint = request.getfixturevalue(source)
    export(ExportConfig(checkpoint=str(checkpoint), output=str(tmp_path / "out"), dtype="fp32"))
    before, contract = load_for_inference(str(checkpoint), "cpu").model, load_contract(str(checkpoint))
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert after.dtype == torch.float32
    said = greedy(after, contract)
    assert said == greedy(before, contract)
    assert len({tuple(ids) for ids in said}) == len(TEXTS), "it says the same to every text"
    other = load_for_inference(str(request.getfixturevalue("plain")), "cpu").model
    assert (said == greedy(other, contract)) == (source == "plain")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab() == contract.tokenizer.get_vocab()


@pytest.mark.parametrize(("dtype", "held"), [(None, torch.bfloat16), ("fp16", torch.float16)])
def test_weights_are_rounded_once_to_the_type_that_was_asked_for(adapter, tmp_path, dtype, held):
    """Fails when the base is rounded before the adapter is added to it."""
    export(ExportConfig(checkpoint=str(adapter), output=str(tmp_path / "out"), dtype=dtype))
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").state_dict()
    exact = load_for_inference(str(adapter), "cpu").model.state_dict()
    assert written.keys() == exact.keys()
    assert all(torch.equal(weight, exact[name].to(held)) for name, weight in written.items())
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == str(held).removeprefix("torch.")


def test_the_merged_folder_says_how_to_sample_and_where_speech_ends(adapter, tmp_path):
    """Fails when the end of a chat turn is left as the end, or transformers' own top_k applies."""
    export(ExportConfig(checkpoint=str(adapter), output=str(tmp_path / "out")))
    contract = load_contract(str(adapter))
    generation = json.loads((tmp_path / "out/generation_config.json").read_text())
    expected = {"do_sample": True, "temperature": 0.8, "top_k": 0, "top_p": 1.0, "max_length": contract.card.max_length}
    assert generation.items() >= expected.items()
    assert generation["eos_token_id"] == contract.vocabulary.speech_end
    assert CheckpointCard.load(str(tmp_path / "out")) == CheckpointCard.load(str(adapter))
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert (record["format"], record["dtype"], record["checkpoint"]) == ("merged", "bf16", str(adapter))


def test_only_an_earlier_export_is_replaced(plain, tmp_path):
    """Fails when overwrite=true takes any folder, or the checkpoint itself."""
    out = tmp_path / "out"
    out.mkdir()  # an empty folder is nobody's
    export(ExportConfig(checkpoint=str(plain), output=str(out)))
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"^output=\S+ holds an earlier export; pass overwrite=true"):
        export(ExportConfig(checkpoint=str(plain), output=str(out)))
    assert (out / "model.safetensors").read_bytes() == before
    export(ExportConfig(checkpoint=str(plain), output=str(out), dtype="fp32", overwrite=True))
    assert (out / "model.safetensors").stat().st_size > 1.5 * len(before)
    with pytest.raises(UserError, match="is the checkpoint itself; choose another output="):
        export(ExportConfig(checkpoint=str(out), output=str(out), overwrite=True))
    with pytest.raises(UserError, match="is there already and is no earlier export"):
        export(ExportConfig(checkpoint=str(out), output=str(plain), overwrite=True))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is there already and is no earlier export"):
        export(ExportConfig(checkpoint=str(plain), output=str(tmp_path / "file"), overwrite=True))
    assert {path.name for path in tmp_path.iterdir()} == {"out", "file"}


@pytest.mark.parametrize("form", ["merged", "codec_torch_export"])
def test_no_such_checkpoint_is_said_in_one_line(tmp_path, form):
    with pytest.raises(UserError, match=r"^there is no checkpoint folder at \S+; pass a folder, or a hub name"):
        export(ExportConfig(checkpoint=str(tmp_path / "nothing"), output=str(tmp_path / "out"), format=form))
    assert list(tmp_path.iterdir()) == []


def test_the_codec_of_a_checkpoint_is_exported(tmp_path, plain):
    """Fails when another codec than the checkpoint's is taken."""
    weights = save_tiny_xcodec2(tmp_path / "xcodec2")
    codec = {"_target_": "llasa.codec.xcodec2.XCodec2", "checkpoint": str(weights), "device": "auto"}
    out = tmp_path / "out"
    settings = {"output": str(out), "format": "codec_torch_export", "codec": codec}
    with pytest.raises(UserError, match="speaks toy, the codec is xcodec2"):
        export(ExportConfig(checkpoint=str(plain), **settings))
    assert not out.exists()
    export(ExportConfig(**settings))
    assert {path.name for path in out.iterdir()} == {"decoder.pt2", "codec.json", RECORD}
    assert json.loads((out / RECORD).read_text())["codec"] == "xcodec2"


@pytest.mark.parametrize(
    ("program", "said"), [("", "nothing"), ("raise SystemExit('no such tokenizer')", "no such to")]
)
def test_a_converter_that_makes_no_file_is_said_in_one_line(plain, tmp_path, program, said):
    """Fails when the converter's exit status, or the missing file, is overlooked."""
    converter = tmp_path / "converter.py"
    converter.write_text(program)
    config = ExportConfig(checkpoint=str(plain), output=str(tmp_path / "out"), format="gguf", converter=str(converter))
    with pytest.raises(UserError, match=rf"does not take \S+: {said}"):
        export(config)
    assert list(tmp_path.iterdir()) == [converter]
    converter.unlink()
    with pytest.raises(UserError, match=r"is no file; pass the path of convert_hf_to_gguf\.py"):
        export(config)


def save_llama3(folder: Path, *, tied: bool, scaled: bool) -> Path:
    """A tiny Llama with Llama 3's real tokenizer and all speech tokens: 193,800 rows, as published."""
    tokenizer = llama3_tokenizer()
    extend_tokenizer(tokenizer, PUBLISHED_CODEC.codebook_size)
    vocabulary = SpeechVocabulary.from_tokenizer(tokenizer, PUBLISHED_CODEC.codebook_size)
    assert (vocabulary.speech_end, vocabulary.first_code, len(tokenizer)) == (128_261, 128_264, 193_800)
    rope = {"rope_type": "default", "rope_theta": 500_000.0}
    if scaled:
        lengths = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
        rope |= {"rope_type": "llama3", "factor": 32.0, **lengths}
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        tie_word_embeddings=tied,
        initializer_range=0.3,
        rope_parameters=rope,
        **shape,
        **heads,
    )
    save_checkpoint(
        folder, LlamaForCausalLM(config), tokenizer, CheckpointCard(PromptRules(), PUBLISHED_CODEC, ("it",))
    )
    return folder


GREEDY = """
import json, sys
from llama_cpp import Llama
model = Llama(sys.argv[1], n_ctx=512, n_threads=1, n_gpu_layers=0, type_k=0, type_v=0, verbose=False)
said = []
for ids in json.load(sys.stdin):
    model.reset()
    said.append([token for token, _ in zip(model.generate(ids, temp=0.0, repeat_penalty=1.0), range(60))])
speech = model.tokenize(b"<|SPEECH_GENERATION_END|><|s_0|><|s_65535|>", add_bos=False, special=True)
print(json.dumps({"ids": said, "eos": model.token_eos(), "speech": speech}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not CONVERTER, reason="needs LLASA_TEST_GGUF_CONVERTER, llama.cpp's convert_hf_to_gguf.py")
@pytest.mark.skipif(not LLAMA_CPP, reason="needs LLASA_TEST_LLAMA_CPP, a python that has llama-cpp-python")
@pytest.mark.parametrize(("tied", "scaled"), [(True, True), (False, False)])
def test_llama_cpp_says_the_same_token_for_token(tmp_path, tied, scaled):
    """The whole published vocabulary, converted and read by llama.cpp in fp32. Fails when the end of a chat turn is
    left as the end of speech."""
    checkpoint = save_llama3(tmp_path / "checkpoint", tied=tied, scaled=scaled)
    settings = {"format": "gguf", "converter": CONVERTER, "dtype": "fp32"}
    export(ExportConfig(checkpoint=str(checkpoint), output=str(tmp_path / "out"), **settings))
    speech = load_for_inference(str(checkpoint), "cpu")
    expected = greedy(speech.model, speech)
    assert len({tuple(ids) for ids in expected}) == len(TEXTS), "it says the same to every text"
    prompts = json.dumps([speech.prompt.prompt(text).tolist() for text in TEXTS])
    command = [LLAMA_CPP, "-c", GREEDY, str(tmp_path / "out" / GGUF_FILE)]
    done = subprocess.run(command, input=prompts, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert result["ids"] == expected
    assert (result["eos"], result["speech"]) == (128_261, [128_261, 128_264, 193_799])
    assert CheckpointCard.load(str(tmp_path / "out")) == speech.card


@pytest.mark.slow
@pytest.mark.skipif(not CONVERTER, reason="needs LLASA_TEST_GGUF_CONVERTER, llama.cpp's convert_hf_to_gguf.py")
def test_the_byte_tokenizer_is_not_taken(plain, tmp_path):
    """If this fails, the converter has learned it: say so in docs/export.md."""
    settings = {"format": "gguf", "converter": CONVERTER}
    with pytest.raises(UserError, match="BPE pre-tokenizer was not recognized"):
        export(ExportConfig(checkpoint=str(plain), output=str(tmp_path / "out"), **settings))
