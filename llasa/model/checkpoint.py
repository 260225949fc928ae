"""What a checkpoint folder says of itself, `llasa.json` beside the weights and the tokenizer; and writing the folder.

The card holds what inference needs and neither weights nor tokenizer know: the prompt rules, the codec and the
languages. A plain published LLaSA checkpoint has no such file and gets the published defaults.

RUN/checkpoint   a plain Llama, adapters merged
RUN/adapter      finetune=lora|qlora: the adapter alone, in peft's form
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llasa.codec.base import CodecSpec
from llasa.errors import UserError, first_line
from llasa.model.finetune import adapter_state_dict, merged_model
from llasa.provenance import write_json
from llasa.tokens.prompt import PromptRules

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

CARD = "llasa.json"
FORMAT_VERSION = 1

PUBLISHED_CODEC = CodecSpec(
    name="xcodec2",
    fingerprint="",  # not recorded by checkpoints that others made, so not compared
    sample_rate=16_000,
    tokens_per_second=50.0,
    codebook_size=65_536,
    code_ranges=((0, 65_536),),
    checkpoint="HKUSTAudio/xcodec2-hf",
)


@dataclass(frozen=True)
class CheckpointCard:
    """Prompt rules, codec, languages and training length of a checkpoint."""

    rules: PromptRules
    codec: CodecSpec
    languages: tuple[str, ...] = ()
    max_length: int = 2048
    """Tokens of the longest sequence it was trained on, prompt and speech together."""
    quantisation: str | None = None
    """Of the weights under an adapter: nf4, or none."""

    def save(self, folder: Path) -> None:
        write_json(
            folder / CARD,
            {
                "format_version": FORMAT_VERSION,
                "prompt": self.rules.to_dict(),
                "codec": self.codec.to_dict(),
                "languages": list(self.languages),
                "max_length": self.max_length,
                **({"quantisation": self.quantisation} if self.quantisation else {}),
            },
        )

    @classmethod
    def load(cls, checkpoint: str) -> CheckpointCard:
        """The card of a local folder or a hub repository; the published defaults where there is none.

        Raises:
            UserError: the card cannot be read, or a later version of this code wrote it.
        """
        path = Path(checkpoint) / CARD if Path(checkpoint).is_dir() else hub_card(checkpoint)
        if path is None or not path.is_file():
            return cls(PromptRules(), PUBLISHED_CODEC)
        try:
            fields: dict[str, Any] = json.loads(path.read_text())
            if fields["format_version"] != FORMAT_VERSION:
                raise UserError(f"{path} has format {fields['format_version']}, this code reads {FORMAT_VERSION}")
            return cls(
                PromptRules(**fields["prompt"]),
                CodecSpec.from_dict(fields["codec"]),
                tuple(fields["languages"]),
                fields["max_length"],
                fields.get("quantisation"),
            )
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not a checkpoint card ({type(error).__name__}: {error})") from None


def hub_card(name: str) -> Path | None:
    """The card in a hub repository, if it has one (one that is offline and not cached counts as having none)."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(name, CARD))
    except EntryNotFoundError:
        return None


def require_same_codec(checkpoint: CodecSpec, other: CodecSpec, checkpoint_name: str, other_name: str) -> None:
    """The codes of two codecs are different languages: refuse to mix them.

    Raises:
        UserError: another codec, or the same one with other weights.
    """
    if checkpoint.name != other.name:
        raise UserError(
            f"{checkpoint_name} speaks {checkpoint.name}, {other_name} is {other.name}",
            remedy=f"use a store and a checkpoint of one codec (preprocess.py codec={checkpoint.name})",
        )
    if checkpoint.fingerprint and other.fingerprint and checkpoint.fingerprint != other.fingerprint:
        raise UserError(
            f"{checkpoint_name} and {other_name} both name {checkpoint.name}, but with different weights or settings",
            remedy=f"use the codec weights it was trained with ({checkpoint.checkpoint or checkpoint.fingerprint})",
        )


def save_checkpoint(
    folder: Path,
    model: LlamaForCausalLM | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    card: CheckpointCard,
    dtype: torch.dtype | None = None,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write plain weights (safetensors, adapters merged), tokenizer and card; the model stays as it is.

    Args:
        dtype: of the weights in the file; none = as they are held.
        state_dict: whole weights by name, where the model holds a part of them (gathered from the processes of a
            sharded run).

    Raises:
        UserError: the disk is full; an earlier folder is as it was.
    """
    plain = merged_model(model, dtype, state_dict)
    with replaced_folder(folder) as temporary:
        plain.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        replace(card, quantisation=None).save(temporary)


def save_adapter(
    folder: Path,
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    card: CheckpointCard,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write an adapter alone as peft does, with tokenizer and card; arguments and errors of :func:`save_checkpoint`.

    The base it belongs to is named in `adapter_config.json`.
    """
    base = model.get_base_model()
    tensors = adapter_state_dict(model, state_dict)
    with replaced_folder(folder) as temporary:
        model.save_pretrained(temporary, state_dict=tensors, save_embedding_layers=False)
        (temporary / "README.md").unlink()  # a form with nothing filled in
        tokenizer.save_pretrained(temporary)
        replace(card, quantisation="nf4" if getattr(base, "is_loaded_in_4bit", False) else None).save(temporary)


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to fill; it takes the name of ``folder``, and the place of an earlier one, when it is whole.

    Raises:
        UserError: writing failed (no space left, …); what was written is removed and an earlier folder untouched.
    """
    temporary, earlier = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("tmp", "old"))
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if folder.exists():
            shutil.rmtree(earlier, ignore_errors=True)
            os.replace(folder, earlier)
        os.replace(temporary, folder)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        # safetensors and tokenizers write in Rust, whose errors are not Python's OSError but end like this.
        if isinstance(error, OSError) or "(os error " in str(error):
            raise UserError(
                f"cannot write {folder}: {first_line(error)}",
                remedy="make space, then resume=true writes it again",
            ) from error
        raise
    shutil.rmtree(earlier, ignore_errors=True)
