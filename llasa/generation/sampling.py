"""What may come next: codes in their place, END at the end of a frame, nothing else.

Text tokens, markers and codes of another place in the frame get no probability at all, so whatever the sampling,
the result is a whole number of frames that the codec can decode.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LogitsProcessor

from llasa.tokens.vocabulary import SpeechVocabulary


class CodeConstraint(LogitsProcessor):
    """Allow only what the codec's frame layout allows at this place.

    Args:
        code_ranges: half-open code ranges of one frame, in order (:attr:`CodecSpec.code_ranges`).
        prompt_length: tokens before the first generated one (left-padded prompts, so the same for all rows).
    """

    def __init__(
        self, vocabulary: SpeechVocabulary, code_ranges: Sequence[tuple[int, int]], *, prompt_length: int
    ) -> None:
        self.vocabulary, self.code_ranges, self.prompt_length = vocabulary, code_ranges, prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """input_ids [batch, length], scores [batch, vocabulary] → scores with -inf where not allowed."""
        generated = input_ids.shape[1] - self.prompt_length
        frame, place = divmod(generated, len(self.code_ranges))
        start, stop = (self.vocabulary.first_code + code for code in self.code_ranges[place])
        allowed = torch.full_like(scores, float("-inf"))
        allowed[:, start:stop] = scores[:, start:stop]
        if place == 0 and frame > 0:  # speech is never empty
            end = self.vocabulary.speech_end
            allowed[:, end] = scores[:, end]
        return allowed
