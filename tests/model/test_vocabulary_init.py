"""Rows for new speech tokens: what they are drawn from, what stays, and the first loss they give."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from llasa.errors import UserError
from llasa.model.finetune import is_tied
from llasa.model.vocabulary_init import draw_rows, extend_vocabulary
from llasa.packing.collate import PackingCollator
from tests.model.tiny import CODEC, build_from, examples, save_tiny, tiny_text_model


def test_new_rows_have_the_mean_and_covariance_of_the_old():
    """Fails for transformers' `mean_resizing` (its covariance is 1e-9 of it) and without the division by 4."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(6, 6, generator=generator)
    old = torch.randn(500, 6, generator=generator) @ mix + torch.arange(6.0)
    torch.manual_seed(0)
    rows = draw_rows(old, 40_000)
    torch.testing.assert_close(rows.mean(0), old.mean(0), atol=0.06, rtol=0)
    scale = old.T.cov().diag().max().item()
    torch.testing.assert_close(rows.T.cov(), old.T.cov(correction=0), atol=0.03 * scale, rtol=0)
    torch.manual_seed(0)
    assert torch.equal(draw_rows(old, 40_000), rows)
    assert len(rows.unique(dim=0)) == 40_000
    assert draw_rows(old.bfloat16(), 3).dtype == torch.bfloat16


@pytest.mark.parametrize("parameters", ["fp32", "bf16"])
@pytest.mark.parametrize("padding", [0, 5, 500])
@pytest.mark.parametrize("tied", [True, False])
def test_a_text_llama_is_extended(tmp_path, tied, padding, parameters):
    """Old rows keep their values, the head its tie; the rows a text model has beyond its tokens become new tokens.

    Fails when the head of an untied model keeps the small random rows of the resize, or padding rows are kept.
    """
    folder = tiny_text_model(tmp_path, tied=tied, padding_rows=padding)
    before = load_file(folder / "model.safetensors")
    speech = build_from(folder, parameters=parameters)
    new = 8 + CODEC.codebook_size
    old = len(speech.tokenizer) - new
    rows = max(old + new, old + padding)
    model = speech.model
    assert model.vocab_size == model.config.vocab_size == rows
    assert is_tied(model) == model.config.tie_word_embeddings == tied
    for name, weight in (
        ("model.embed_tokens", model.get_input_embeddings().weight),
        ("lm_head", model.get_output_embeddings().weight),
    ):
        was = before.get(f"{name}.weight", before["model.embed_tokens.weight"]).to(weight.dtype)
        assert weight.shape == (rows, 32)
        assert torch.equal(weight[:old], was[:old])
        assert torch.equal(weight[old + new :], was[old + new :])
        assert not torch.equal(weight[old : old + padding], was[old : old + padding]) or padding == 0
        assert weight[old : old + new].float().std().item() == pytest.approx(was[:old].float().std().item(), rel=0.15)
        assert len(weight[old : old + new].float().unique(dim=0)) == new, "two codes start as one"
    notes = speech.notes["vocabulary"]
    assert (notes["rows_before"], notes["rows_after"], notes["tied"]) == (old + padding, rows, tied)
    assert notes["new_tokens"] == new
    assert f"of the {old} text rows" in notes["initialisation"]
    if not tied:
        parts = model.get_input_embeddings().weight[old:], model.get_output_embeddings().weight[old:]
        assert not torch.equal(*parts)
    again = build_from(folder, parameters=parameters).model
    assert torch.equal(again.get_output_embeddings().weight, model.get_output_embeddings().weight)


@pytest.mark.parametrize("tied", [True, False])
def test_the_first_loss_is_that_of_a_guess(tmp_path, tied):
    """New tokens neither rule nor vanish: their share of the probability is near their share of the vocabulary.

    Fails for rows of ten times the spread.
    """
    speech = build_from(tiny_text_model(tmp_path, tied=tied))
    rows = speech.model.vocab_size
    batch = PackingCollator(pad_token_id=0)([examples(speech, 20)])
    loss = speech.model(**batch).loss.item()
    assert abs(loss - math.log(rows)) < 1.5
    share = speech.model(input_ids=batch["input_ids"]).logits.softmax(-1)[..., speech.vocabulary.first_code :].sum(-1)
    assert 0.5 < share.mean().item() * rows / CODEC.codebook_size < 2


def test_a_head_that_the_config_calls_tied_is_not_lost(tmp_path):
    """A file with a head of its own under `tie_word_embeddings: true`, as Llasa-1B-Multilingual's may be.

    Fails when the config is left as it was: the resize then ties the head, and the checkpoint saved says so.
    """
    folder = tiny_text_model(tmp_path, tied=False)
    config = LlamaConfig.from_pretrained(folder)
    config.tie_word_embeddings = True
    config.save_pretrained(folder)
    head = load_file(folder / "model.safetensors")["lm_head.weight"]
    speech = build_from(folder)
    assert not is_tied(speech.model)
    assert speech.model.config.tie_word_embeddings is speech.notes["vocabulary"]["tied"] is False
    assert torch.equal(speech.model.lm_head.weight[: len(head)], head)


def test_a_head_that_is_in_neither_file_nor_config_is_an_error(tmp_path):
    """transformers would draw it at random, with a warning. The other way round, equal weights in both, is a tie."""
    folder = save_tiny(tmp_path, tied=True)
    config = LlamaConfig.from_pretrained(folder)
    config.tie_word_embeddings = False
    config.save_pretrained(folder)
    with pytest.raises(UserError, match=r"lack lm_head.weight.*tie_word_embeddings"):
        build_from(folder)
    config.tie_word_embeddings = True
    config.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert is_tied(build_from(folder).model)


def test_a_vocabulary_that_needs_no_rows_is_only_drawn(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_text_model(tmp_path, padding_rows=50))
    rows = model.config.vocab_size
    before = model.get_input_embeddings().weight.detach().clone()
    notes = extend_vocabulary(model, rows - 50, rows - 10)
    after = model.get_input_embeddings().weight
    changed = (after != before).any(dim=1).nonzero().flatten()
    assert changed.tolist() == list(range(rows - 50, rows - 10))
    assert notes["rows_before"] == notes["rows_after"] == rows
