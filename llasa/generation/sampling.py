"""Which code comes next.

    hidden [n, width] ─code_logits─► [n, 1 + codes] ─CodeRules─► -inf where not allowed ─choose─► END or a code, [n]

Column 0 is END, column 1 + c is code c. Text tokens and markers have no column at all, codes of another place in the
frame get no probability, and END stands only where a frame ends: whatever the sampling, the result is a whole number of
frames that the codec can decode. The head is multiplied for these columns only, two thirds less at 128,256 text tokens
and 65,536 codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import (
    LlamaForCausalLM,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llasa.config import SamplingConfig
from llasa.tokens.vocabulary import SpeechVocabulary

END = 0
"""The column of SPEECH_GENERATION_END."""


def sliceable_head(model: LlamaForCausalLM) -> bool:
    """Whether rows of the head can be had: a plain linear layer, no adapter in it, not in 4 bits, not in shards."""
    head = model.get_output_embeddings()
    return type(head) is nn.Linear and type(head.weight) is nn.Parameter


def code_logits(model: LlamaForCausalLM, hidden: torch.Tensor, vocabulary: SpeechVocabulary) -> torch.Tensor:
    """Hidden states [n, width] → logits of END and the codes, float32 [n, 1 + codes], of a :func:`sliceable_head`."""
    weight, first = model.get_output_embeddings().weight, vocabulary.first_code
    end = nn.functional.linear(hidden, weight[vocabulary.speech_end, None])
    codes = nn.functional.linear(hidden, weight[first : first + vocabulary.num_codes])
    return torch.cat([end, codes], dim=-1).float()


def pick_columns(logits: torch.Tensor, vocabulary: SpeechVocabulary) -> torch.Tensor:
    """Logits of all ids [n, ids] → those of END and the codes, float32 [n, 1 + codes]."""
    first = vocabulary.first_code
    end = logits[:, vocabulary.speech_end, None]
    return torch.cat([end, logits[:, first : first + vocabulary.num_codes]], dim=-1).float()


class CodeRules:
    """What the codec's frame layout allows.

    Args:
        code_ranges: half-open code ranges of one frame, in order (:attr:`CodecSpec.code_ranges`).
    """

    def __init__(self, num_codes: int, code_ranges: Sequence[tuple[int, int]], device: torch.device) -> None:
        self.frame = len(code_ranges)
        self._spans = [(1 + start, 1 + stop) for start, stop in code_ranges]
        self._refused = torch.ones(self.frame, 1 + num_codes, dtype=torch.bool, device=device)
        for place, (start, stop) in enumerate(self._spans):
            self._refused[place, start:stop] = False
        self._all_codes = self._spans == [(1, 1 + num_codes)]

    def spans(self, places: Sequence[int]) -> list[tuple[int, int]]:
        """First and last column (half-open) of the codes that may stand in each place."""
        return [self._spans[place] for place in places]

    def apply(self, logits: torch.Tensor, places: Sequence[int], may_end: Sequence[bool]) -> torch.Tensor:
        """Logits [n, 1 + codes], in place: -inf where not allowed.

        Args:
            places: in the frame, of the code that comes next.
            may_end: whether END may come instead.
        """
        infinity = float("-inf")
        if not self._all_codes:
            refused = self._refused[torch.tensor(places, device=logits.device)]
            end = logits[:, END].clone()
            logits.masked_fill_(refused, infinity)
            logits[:, END] = end
        if not all(may_end):
            logits[:, END].masked_fill_(~torch.tensor(may_end, device=logits.device), infinity)
        return logits


class Chooser:
    """The next code of each row, by `sampling.*`.

    A code is sampled by an exponential race: each column draws a waiting time, and the shortest by its probability
    wins. (The same as the Gumbel-max trick.) The draws are those of the row's own seed and the code's number, so they
    depend on no other row, nor on what was drawn before; and another choice needs two columns that nearly tie. The
    point of a cumulative distribution would be simpler, but every border in it moves with every logit: with noise of
    1e-5 on the logits, as between batch sizes, 0.9 of 1,646 draws were expected to change
    (experiments/vllm_agreement).

    Temperature comes first, then top-k, top-p and min-p, by transformers' warpers.
    """

    def __init__(self, sampling: SamplingConfig, device: torch.device) -> None:
        self._generator = torch.Generator(device)
        self.greedy = sampling.temperature == 0
        self.penalty = sampling.repetition_penalty
        self._warpers = LogitsProcessorList()
        if not self.greedy and sampling.temperature != 1:
            self._warpers.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k > 0:
            self._warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))
        if sampling.min_p > 0:
            self._warpers.append(MinPLogitsWarper(sampling.min_p))

    def penalise(self, logits: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
        """Less likely where ``said``, bool [n, 1 + codes]. Source: Keskar et al., "CTRL" (2019), section 4.1."""
        lowered = torch.where(logits < 0, logits * self.penalty, logits / self.penalty)
        return torch.where(said, lowered, logits)

    def choose(
        self, logits: torch.Tensor, draws: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]
    ) -> torch.Tensor:
        """Logits [n, 1 + codes] → columns, int64 [n].

        Args:
            draws: of each row its seed and the number of the code, from 0.
            spans: of each row the columns of the codes that are allowed in this place; only they and END draw.
        """
        if self.greedy:
            return logits.argmax(dim=-1)
        probabilities = self._warpers(None, logits).softmax(dim=-1)
        # Uniform numbers in double and a logarithm for all rows: a fifth of the time of `exponential_` on a CPU.
        numbers = logits.new_zeros(len(draws), 1 + max(stop - start for start, stop in spans), dtype=torch.double)
        for row, (seed, number), (start, stop) in zip(numbers, draws, spans, strict=True):
            row[: 1 + stop - start].uniform_(generator=self._generator.manual_seed(mixed(seed, number)))
        drawn = torch.log1p(-numbers).neg_().float().clamp_min_(1e-30)
        times = torch.full_like(probabilities, float("inf"))
        times[:, END] = drawn[:, 0]
        for row, (start, stop) in enumerate(spans):
            times[row, start:stop] = drawn[row, 1 : 1 + stop - start]
        return (probabilities / times).argmax(dim=-1)


def mixed(seed: int, number: int) -> int:
    """A seed for one draw, in [0, 2**32), which is what torch's generator on a CPU takes of a seed.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (2014), the mixing of SplitMix64.
    """
    bits = (seed * 0x9E3779B97F4A7C15 + number * 0xD1B54A32D192ED03 + 1) & 0xFFFFFFFFFFFFFFFF
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (bits ^ (bits >> 31)) >> 32
