"""What a checkpoint folder says of itself, `llasa.json` beside the weights and the tokenizer; and writing the folder.

The card holds what inference needs and neither weights nor tokenizer know: the prompt rules, the codec and the
languages. A plain published LLaSA checkpoint has no such file and gets the published defaults.

RUN/checkpoint   a plain Llama, adapters merged
RUN/adapter      finetune=lora|qlora: the adapter alone, in peft's form
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llasa.codec.base import CodecSpec
from llasa.errors import UserError, first_line
from llasa.model.finetune import adapter_state_dict, merged_model
from llasa.provenance import write_json
from llasa.tokens.prompt import PromptRules, speaker_tag

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

CARD = "llasa.json"
FORMAT_VERSION = 1
MAX_SPEAKERS = 1000
"""Names in a card; of more speakers it has the most frequent ones, and their number."""

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
    """Prompt rules, codec, languages, training length and speakers of a checkpoint."""

    rules: PromptRules
    codec: CodecSpec
    languages: tuple[str, ...] = ()
    max_length: int = 2048
    """Tokens of the longest sequence it was trained on, prompt and speech together."""
    quantisation: str | None = None
    """Of the weights under an adapter: nf4, or none."""
    speakers: tuple[str, ...] = ()
    """With speaker tags: those whom it knows, the most frequent first, at most ``MAX_SPEAKERS``."""
    num_speakers: int = 0
    """How many it knows, with those who are not named."""

    def with_speakers(self, names: Sequence[str]) -> CheckpointCard:
        """The card after training on these speakers' tags, the most frequent first; earlier ones follow them."""
        known = tuple(dict.fromkeys([*names, *self.speakers]))
        return replace(self, speakers=known[:MAX_SPEAKERS], num_speakers=max(len(known), self.num_speakers))

    def knows(self, speaker: str) -> bool:
        """Whether the model may be asked for a speaker. Where not all are named, any name may be one of them."""
        tag, all_named = speaker_tag(speaker), len(self.speakers) == self.num_speakers
        return self.rules.speaker_tags and tag != "" and (tag in self.speakers or not all_named)

    def speaker_for(self, speaker: str | None, *, has_voice: bool = False) -> str:
        """Whose tag belongs in front of a text: what :meth:`PromptBuilder.prompt` wants. "" is nobody's.

        Nobody asked for is the most frequent speaker, as the model has read few texts without a tag or none; with a
        recording to imitate it is nobody, for that says whose voice it is.

        Raises:
            UserError: the model was trained without tags, or not with this one.
        """
        if speaker is None:
            return next(iter(self.speakers), "") if self.rules.speaker_tags and not has_voice else ""
        if speaker == "" or self.knows(speaker):
            return speaker
        if not self.rules.speaker_tags:
            raise UserError(
                f"speaker={speaker!r} is asked for, but the model was trained without speaker tags",
                remedy="leave speaker= out, clone a recording with voice=, or train with speaker_tags=true",
            )
        close = difflib.get_close_matches(speaker_tag(speaker), self.speakers, n=3)
        named = ", ".join(self.speakers[:10]) + (", …" if len(self.speakers) > 10 else "")
        raise UserError(
            f"speaker={speaker[:100]!r} is not among the {self.num_speakers:,} speakers of the model",
            remedy=f"did you mean {' or '.join(close)}?" if close else f"it knows {named}",
        )

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
                **({"speakers": list(self.speakers), "num_speakers": self.num_speakers} if self.num_speakers else {}),
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
                tuple(fields.get("speakers", ())),
                fields.get("num_speakers", 0),
            )
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not a checkpoint card ({type(error).__name__}: {error})") from None


def fingerprint(checkpoint: str) -> str:
    """What tells the weights and prompt rules of a checkpoint from any others: of a folder its content, of the hub's
    its commit. A model card (README.md), which may be written later, is no part of it. 1 s for each GB."""
    folder = Path(checkpoint)
    if not folder.is_dir():
        from transformers import AutoConfig

        try:
            return f"{checkpoint}@{AutoConfig.from_pretrained(checkpoint)._commit_hash}"
        except (OSError, ValueError):
            return checkpoint  # loading it will say what is wrong
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(
        path for path in folder.iterdir() if path.is_file() and path.name[0] != "." and path.suffix != ".md"
    ):
        digest.update(f"{file.name}\0".encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "blake2b").digest())
    return digest.hexdigest()


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
                remedy="make space, or choose another place; a training goes on with resume=true",
            ) from error
        raise
    shutil.rmtree(earlier, ignore_errors=True)
