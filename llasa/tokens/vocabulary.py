"""Speech tokens: which ids of a tokenizer are codes, and which mark their beginning and end.

A LLaSA vocabulary is a text vocabulary followed by eight markers and one token for each code of the codec, in
order. Codes become ids by adding an offset, never by building strings of 500 special tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llasa.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARKERS = (
    "<|TEXT_GENERATION_START|>",
    "<|TEXT_GENERATION_END|>",
    "<|TEXT_UNDERSTANDING_START|>",
    "<|TEXT_UNDERSTANDING_END|>",
    "<|SPEECH_GENERATION_START|>",
    "<|SPEECH_GENERATION_END|>",
    "<|SPEECH_UNDERSTANDING_START|>",
    "<|SPEECH_UNDERSTANDING_END|>",
)
"""In the order of the published checkpoints: ids 128256 to 128263 there."""


def speech_token(code: int) -> str:
    return f"<|s_{code}|>"


@dataclass(frozen=True)
class SpeechVocabulary:
    """Ids of the speech tokens in one tokenizer. Code ``c`` has id ``first_code + c``."""

    speech_start: int
    speech_end: int
    first_code: int
    num_codes: int

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase, num_codes: int) -> SpeechVocabulary:
        """Read the ids, and check that the codes are all there and contiguous.

        Raises:
            UserError: the tokenizer has no speech tokens, or not those of a codec with ``num_codes`` codes.
        """
        names = [*MARKERS[4:6], speech_token(0), speech_token(num_codes - 1)]
        ids = dict(zip(names, tokenizer.convert_tokens_to_ids(names), strict=True))
        unknown = tokenizer.unk_token_id
        missing = [name for name, token_id in ids.items() if token_id is None or token_id == unknown]
        if missing:
            raise UserError(
                f"the tokenizer has no token {missing[0]}",
                remedy=f"use a LLaSA checkpoint whose codec has {num_codes:,} codes, or a text model (model=llama_1b)",
            )
        start, end, first, last = (ids[name] for name in names)
        if last - first != num_codes - 1:
            raise UserError(
                f"the speech tokens of this tokenizer are not contiguous: {names[2]} is {first}, {names[3]} is {last}",
                remedy="use a LLaSA checkpoint",
            )
        if len(tokenizer) > first + num_codes and tokenizer.convert_ids_to_tokens(first + num_codes) == speech_token(
            num_codes
        ):
            raise UserError(
                f"the tokenizer has speech tokens beyond {names[3]}, so it belongs to another codec",
                remedy=f"use a checkpoint whose codec has {num_codes:,} codes",
            )
        return cls(start, end, first, num_codes)

    def codes_to_ids(self, codes: np.ndarray) -> np.ndarray:
        """Codes [n] → token ids [n], int64."""
        return codes.astype(np.int64) + self.first_code

    def ids_to_codes(self, ids: np.ndarray) -> np.ndarray:
        """Token ids [n] → codes [n], int64. An id that is no code is an error of the caller."""
        codes = np.asarray(ids, dtype=np.int64) - self.first_code
        assert ((codes >= 0) & (codes < self.num_codes)).all(), "an id that is not a speech code"
        return codes


def extend_tokenizer(tokenizer: PreTrainedTokenizerBase, num_codes: int) -> int:
    """Add the markers and ``num_codes`` speech tokens that are missing; returns how many were added."""
    return tokenizer.add_tokens([*MARKERS, *map(speech_token, range(num_codes))], special_tokens=True)
