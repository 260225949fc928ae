"""The prompt: the one function behind training rows and inference prompts.

    user       Convert the text to speech:<|TEXT_UNDERSTANDING_START|>TEXT<|TEXT_UNDERSTANDING_END|>
    assistant  <|SPEECH_GENERATION_START|>CODES<|SPEECH_GENERATION_END|>

The chat template is rendered once around a sentinel and cut there, so that per example only the text is
tokenised; the markers on both sides of it keep the pieces' tokens the same as those of the whole. Text is
tokenised with special tokens disabled: a transcript cannot end its own turn.

With `speaker_tags` TEXT is "SPEAKER: text", the form that Orpheus speaks its voices by ("tara: Hello"; canopyai/
Orpheus-TTS, `engine_class.py`): plain text, so that no token has to be added and a base model can read the name.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from llasa.errors import UserError
from llasa.tokens.vocabulary import MARKERS, SpeechVocabulary
from llasa.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100


@dataclass(frozen=True)
class PromptRules:
    """Everything about the prompt that the tokenizer does not fix; saved with the checkpoint."""

    instruction: str = "Convert the text to speech:"
    date_string: str = "26 Jul 2024"
    """Llama 3.2's template writes a date into the system block; unpinned it is today's, and training and
    inference differ by the day."""
    speaker_tags: bool = False
    """Whether a text begins with who speaks it, see :meth:`PromptBuilder.tagged`."""

    def to_dict(self) -> dict[str, Any]:
        rules = asdict(self)
        if not self.speaker_tags:  # cards and keys of caches stay those of before there were tags
            del rules["speaker_tags"]
        return rules


@lru_cache(maxsize=100_000)
def speaker_tag(speaker: str) -> str:
    """A speaker's name as it stands in a prompt: on one line, and without a colon, which ends it."""
    return " ".join(unicodedata.normalize("NFC", speaker).replace(":", " ").split())


class PromptBuilder:
    """Builds token ids for training and inference from text and codes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: SpeechVocabulary, rules: PromptRules) -> None:
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self.rules = rules
        sentinel = "\N{OBJECT REPLACEMENT CHARACTER}"
        conversation = [
            {"role": "user", "content": f"{rules.instruction}{MARKERS[2]}{sentinel}{MARKERS[3]}"},
            {"role": "assistant", "content": MARKERS[4]},
        ]
        rendered = tokenizer.apply_chat_template(
            conversation, tokenize=False, continue_final_message=True, date_string=rules.date_string
        )
        before, found, after = rendered.partition(sentinel)
        if not found or not after.endswith(MARKERS[4]):
            raise UserError(
                "the tokenizer's chat template changes the messages it is given",
                remedy="use the template of a Llama 3 or LLaSA checkpoint",
            )
        self._before = np.asarray(tokenizer(before, add_special_tokens=False)["input_ids"], dtype=np.int64)
        self._after = np.asarray(tokenizer(after, add_special_tokens=False)["input_ids"], dtype=np.int64)

    @property
    def overhead(self) -> int:
        """Tokens of a training example that are neither text nor codes."""
        return len(self._before) + len(self._after) + 1

    def text_ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text alone, int64 [n]."""
        encoded = self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [np.asarray(ids, dtype=np.int64) for ids in encoded]

    def tagged(self, text: str, speaker: str) -> str:
        """The text with its speaker in front, where the rules say so: of training, lengths and inference alike.

        Without a speaker it is the text alone, as is a row whose corpus does not tell one. Text cannot take the place
        of the tag: ``tagged("tara: ciao", "leo")`` is "leo: tara: ciao".
        """
        tag = speaker_tag(speaker) if self.rules.speaker_tags else ""
        return f"{tag}: {text}" if tag else text

    def prompt(self, text: str, codes: np.ndarray | None = None, speaker: str = "") -> np.ndarray:
        """Ids from the beginning of text to SPEECH_GENERATION_START and the ``codes`` of a voice, int64 [n]."""
        text_ids = self.text_ids([self.tagged(text, speaker)])[0]
        speech = [] if codes is None else [self.vocabulary.codes_to_ids(codes)]
        return np.concatenate([self._before, text_ids, self._after, *speech])

    def example(self, text: str, codes: np.ndarray, speaker: str = "") -> Example:
        """A training example: the prompt, the codes and SPEECH_GENERATION_END.

        Labels are set from SPEECH_GENERATION_START on; the prompt before it is not supervised.
        """
        input_ids = np.append(self.prompt(text, codes, speaker), self.vocabulary.speech_end)
        labels = input_ids.copy()
        labels[: len(input_ids) - len(codes) - 2] = IGNORE_INDEX
        return Example(input_ids, labels)

    def lengths(self, texts: Sequence[str], num_codes: np.ndarray, speakers: Sequence[str] | None = None) -> np.ndarray:
        """Length of each example in tokens, int64 [n], without building it."""
        if speakers is not None:
            texts = [self.tagged(text, speaker) for text, speaker in zip(texts, speakers, strict=True)]
        text_lengths = np.fromiter((len(ids) for ids in self.text_ids(texts)), np.int64, len(texts))
        return text_lengths + np.asarray(num_codes, dtype=np.int64) + self.overhead
