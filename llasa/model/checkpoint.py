"""What a checkpoint folder says of itself: `llasa.json` beside the weights and the tokenizer.

It holds what inference needs and neither weights nor tokenizer know: the prompt rules, the codec and the
languages. A plain published LLaSA checkpoint has no such file and gets the published defaults.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llasa.codec.base import CodecSpec
from llasa.errors import UserError
from llasa.provenance import write_json
from llasa.tokens.prompt import PromptRules

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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

    def save(self, folder: Path) -> None:
        write_json(
            folder / CARD,
            {
                "format_version": FORMAT_VERSION,
                "prompt": self.rules.to_dict(),
                "codec": self.codec.to_dict(),
                "languages": list(self.languages),
                "max_length": self.max_length,
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
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    card: CheckpointCard,
    dtype: torch.dtype | None = None,
) -> None:
    """Write weights (safetensors), tokenizer and card; the folder appears whole and replaces an earlier one.

    This ends a training: with ``dtype`` the model itself is converted, and its cache is switched on again.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    if dtype is not None:
        model.to(dtype)
    model.config.use_cache = True  # training switched it off; whoever loads the weights will want to generate
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    card.save(temporary)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(temporary, folder)
