"""Our choice of the next code inside vLLM: :mod:`llasa.generation.sampling` as a logits processor.

    logits of all ids [n, ids] ─pick_columns, penalise, CodeRules, choose─► 0 at the chosen id, -inf at all others

vLLM then takes the only id that is left, so `sampling.*`, seeds and the places in a frame mean the same in both
engines, and there is one implementation of them. vLLM's own sampling knows no frames, counts the prompt's codes as
repetitions, and draws other numbers from a seed.

This module imports vLLM; :mod:`llasa.generation.engine_vllm` imports it once that is known to be there. Cost of a step:
what the choice costs in the other engine, and one pass over the logits.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

import torch
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.sampling_params import RequestOutputKind
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from llasa.codec.base import CodecSpec
from llasa.config import SamplingConfig
from llasa.generation.engine import Request
from llasa.generation.sampling import END, Chooser, CodeRules, pick_columns
from llasa.tokens.vocabulary import SpeechVocabulary

KEY = "llasa"
"""Ours among what vLLM hands through: of the engine to the processor, and of a request to its row."""


def processor_settings(vocabulary: SpeechVocabulary, codec: CodecSpec) -> dict[str, Any]:
    """``additional_config`` of an engine with a :class:`CodeProcessor`."""
    return {KEY: {"vocabulary": asdict(vocabulary), "code_ranges": [list(places) for places in codec.code_ranges]}}


def sampling_params(request: Request, sampling: SamplingConfig, vocabulary: SpeechVocabulary) -> SamplingParams:
    """What vLLM is told of a request, and what the processor is."""
    ours = {"seed": request.seed, "num_spoken": request.num_spoken, "min_codes": request.fewest_codes}
    return SamplingParams(
        temperature=0.0,  # of what the processor leaves, which is one id
        max_tokens=request.max_codes + 1,  # one more than the codes: END itself
        stop_token_ids=[vocabulary.speech_end],
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        extra_args={KEY: ours | {"sampling": asdict(sampling)}},
    )


@dataclass
class _Row:
    """A request in vLLM's batch. One that was preempted comes back as a new row with the ids it has."""

    output_ids: list[int]
    """vLLM's own list, which grows by an id a step."""
    seed: int
    min_codes: int
    sampling: tuple[Any, ...]
    """Rows with the same are chosen for together."""
    chooser: Chooser
    said: torch.Tensor | None
    """Columns of codes that the utterance has said, bool [1 + codes]; none without a penalty."""
    num_noted: int = 0
    """Output ids that are in ``said``."""


class CodeProcessor(LogitsProcessor):
    """Chooses for all rows of a batch; all requests must bear :func:`sampling_params`."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        settings = vllm_config.additional_config[KEY]
        self._vocabulary = SpeechVocabulary(**settings["vocabulary"])
        self._rules = CodeRules(self._vocabulary.num_codes, settings["code_ranges"], device)
        self._device = device
        self._rows: dict[int, _Row] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self._rows, batch_update, self._new_row)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [n, ids], in place."""
        assert len(self._rows) == len(logits), "rows that are not ours"
        columns = pick_columns(logits, self._vocabulary)
        alike: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for number in range(len(logits)):
            alike[self._rows[number].sampling].append(number)
        chosen = torch.empty(len(logits), dtype=torch.int64, device=self._device)
        for numbers in alike.values():
            members = columns if len(alike) == 1 else columns[numbers]
            chosen[numbers] = self._choose(members, [self._rows[number] for number in numbers])
        ids = torch.where(chosen == END, self._vocabulary.speech_end, self._vocabulary.first_code + chosen - 1)
        return logits.fill_(float("-inf")).scatter_(1, ids[:, None], 0.0)

    def _choose(self, columns: torch.Tensor, rows: list[_Row]) -> torch.Tensor:
        """Logits [n, 1 + codes] of rows with the same sampling → columns, int64 [n]."""
        chooser = rows[0].chooser
        if chooser.penalty != 1:
            columns = chooser.penalise(columns, torch.stack([self._said(row) for row in rows]))
        lengths = [len(row.output_ids) for row in rows]
        frame = self._rules.frame
        may_end = [n % frame == 0 and n >= row.min_codes for n, row in zip(lengths, rows, strict=True)]
        places = [n % frame for n in lengths]
        self._rules.apply(columns, places, may_end)
        draws = [(row.seed, n) for n, row in zip(lengths, rows, strict=True)]
        return chooser.choose(columns, draws, self._rules.spans(places))

    def _said(self, row: _Row) -> torch.Tensor:
        assert row.said is not None
        self._note(row.said, row.output_ids[row.num_noted :])
        row.num_noted = len(row.output_ids)
        return row.said

    def _note(self, said: torch.Tensor, ids: list[int]) -> None:
        said[torch.tensor(ids, dtype=torch.int64, device=self._device) - self._vocabulary.first_code + 1] = True

    def _new_row(self, params: SamplingParams, prompt_ids: list[int] | None, output_ids: list[int]) -> _Row:
        assert params.extra_args is not None
        ours = params.extra_args[KEY]
        chooser = Chooser(SamplingConfig(**ours["sampling"]), self._device)
        said = None
        if chooser.penalty != 1:
            assert prompt_ids is not None
            said = torch.zeros(1 + self._vocabulary.num_codes, dtype=torch.bool, device=self._device)
            self._note(said, prompt_ids[len(prompt_ids) - ours["num_spoken"] :])
        sampling = tuple(ours["sampling"].values())
        return _Row(output_ids, ours["seed"], ours["min_codes"], sampling, chooser, said)
