"""The decoding loop: sequences come in, each step gives each of them its next code, and they leave when they end.

    Request ─add─► prefill ─► slot ┐
    Request ─add─► prefill ─► slot ┴─step─► CodesPart of whole frames, with a finish_reason at the end

A sequence depends on its own prompt, bounds, sampling and seed alone, up to the order in which BLAS adds; neighbours
and slots change nothing. So sequences may come and go at any step (continuous batching: Yu et al., "Orca", OSDI 2022).

Cost of a step: one pass over the weights for all sequences, so up to some tens of them it costs about as much as for
one.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch

from llasa.config import SamplingConfig
from llasa.generation.cache import SlotCache, attending_slots
from llasa.generation.engine import CodesPart, Request, Utterance
from llasa.generation.sampling import END, Chooser, CodeRules, code_logits, pick_columns, sliceable_head
from llasa.model.llama import SpeechModel


@dataclass
class _Sequence:
    utterance: Utterance
    length: int
    """Places of its slot that are filled."""
    next_id: int
    chooser: Chooser
    """Sequences with the same `sampling.*` share one, and are chosen for together."""


class Decoder:
    """Decodes up to ``slots`` sequences at a time; implements :class:`llasa.generation.engine.Batch`.

    Args:
        capacity: places of each slot; :meth:`add` wants ``len(prompt) + max_codes`` of them.
        synced: all processes decode the same requests (FSDP), and the first one's choices count.
    """

    def __init__(self, speech: SpeechModel, *, slots: int, capacity: int, synced: bool = False) -> None:
        self.speech, self.model, self.vocabulary = speech, speech.model, speech.vocabulary
        self.synced = synced
        self.device = speech.model.device
        self.slots = slots
        self.sequences: list[_Sequence] = []
        self._cache = SlotCache(slots, capacity)
        self._rules = CodeRules(self.vocabulary.num_codes, speech.card.codec.code_ranges, self.device)
        self._sliceable = sliceable_head(speech.model)
        self._said: torch.Tensor | None = None
        """Columns that each slot's utterance has said, bool [slots, 1 + codes]; from the first penalty on."""

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def free(self) -> int:
        """Slots that wait for a sequence."""
        return self.slots - len(self.sequences)

    @torch.inference_mode()
    def add(self, index: int, request: Request, sampling: SamplingConfig) -> None:
        assert self.free, "no free slot"
        assert len(request.prompt) + request.max_codes <= self._cache.capacity, "a request longer than its slot"
        slot, prompt = len(self.sequences), request.prompt
        chooser = self._chooser_for(sampling)
        if chooser.penalty != 1:
            if self._said is None:
                self._said = torch.zeros(self.slots, 1 + self.vocabulary.num_codes, dtype=torch.bool).to(self.device)
            spoken = self.vocabulary.ids_to_codes(prompt[len(prompt) - request.num_spoken :])
            self._said[slot] = False
            self._said[slot, torch.from_numpy(1 + spoken).to(self.device)] = True
        # The last id is left to the first step, which gives the first code.
        filled = len(prompt) - 1
        twins = (row for row, s in enumerate(self.sequences) if np.array_equal(s.utterance.request.prompt, prompt))
        twin = next(twins, None)
        if twin is not None:
            self._cache.copy(twin, slot, filled)
        else:
            self._cache.prefill(slot)
            ids = torch.from_numpy(prompt[:-1]).to(self.device)[None]
            self._forward(ids, torch.arange(filled, device=self.device)[None], None)
        utterance = Utterance(index, request, self.speech, sampling)
        self.sequences.append(_Sequence(utterance, filled, int(prompt[-1]), chooser))

    def _chooser_for(self, sampling: SamplingConfig) -> Chooser:
        """One that a sequence under way has already, where its `sampling.*` are the same."""
        known = (s.chooser for s in self.sequences if s.utterance.sampling == sampling)
        return next(known, None) or Chooser(sampling, self.device)

    @torch.inference_mode()
    def step(self) -> list[CodesPart]:
        """See :class:`llasa.generation.engine.Batch`.

        Of a loop the turns are out by then; :func:`llasa.generation.retries.without_loop` finds the first.
        """
        rows = self.sequences
        places = torch.tensor([row.length for row in rows], device=self.device)
        mask = self._cache.decode(places, max(row.length for row in rows))
        ids = torch.tensor([[row.next_id] for row in rows], device=self.device)
        logits = self._forward(ids, places[:, None], mask)
        columns = self._choose(logits)
        if self.synced:
            torch.distributed.broadcast(columns, src=0)
        if self._said is not None:
            self._said[torch.arange(len(rows), device=self.device), columns] = True
        parts, ended = [], []
        for number, (row, column) in enumerate(zip(rows, columns.tolist(), strict=True)):
            row.length, row.next_id = row.length + 1, self.vocabulary.first_code + column - 1
            part = row.utterance.take(None if column == END else column - 1)
            if part is not None:
                parts.append(part)
                if part.finish_reason is not None:
                    ended.append(number)
        for number in reversed(ended):
            self._remove(number)
        return parts

    def _choose(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [n, 1 + codes] → columns, int64 [n], of each by its own `sampling.*`."""
        alike: dict[int, list[int]] = defaultdict(list)
        for number, row in enumerate(self.sequences):
            alike[id(row.chooser)].append(number)
        if len(alike) == 1:
            return self._choose_alike(logits, self.sequences, slice(len(logits)))
        columns = torch.empty(len(logits), dtype=torch.int64, device=self.device)
        for numbers in alike.values():
            members = torch.tensor(numbers, device=self.device)
            columns[members] = self._choose_alike(logits[members], [self.sequences[n] for n in numbers], members)
        return columns

    def _choose_alike(self, logits: torch.Tensor, rows: list[_Sequence], slots: torch.Tensor | slice) -> torch.Tensor:
        """Of rows, in these slots, that share a chooser."""
        chooser, spoken = rows[0].chooser, [row.utterance for row in rows]
        if chooser.penalty != 1:
            assert self._said is not None
            logits = chooser.penalise(logits, self._said[slots])
        in_frame = [one.place for one in spoken]
        self._rules.apply(logits, in_frame, [one.may_end for one in spoken])
        draws = [(one.request.seed, one.num_codes) for one in spoken]
        return chooser.choose(logits, draws, self._rules.spans(in_frame))

    @torch.inference_mode()
    def cancel(self, index: int) -> None:
        for number, row in enumerate(self.sequences):
            if row.utterance.index == index:
                self._remove(number)
                return

    def _remove(self, number: int) -> None:
        """The last sequence moves into the slot of one that ended."""
        last = self.sequences.pop()
        if number < len(self.sequences):
            self._cache.copy(len(self.sequences), number, last.length)
            if self._said is not None:
                self._said[number] = self._said[len(self.sequences)]
            self.sequences[number] = last

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """ids and positions [n, length] → logits of what follows the last, float32 [n, 1 + codes]; fills the cache."""
        inputs = {
            "input_ids": ids,
            "position_ids": positions,
            "attention_mask": mask,
            "past_key_values": self._cache,
            "use_cache": True,
        }
        with attending_slots(self.model):
            if self._sliceable:
                hidden = self.model.model(**inputs).last_hidden_state[:, -1]
                return code_logits(self.model, hidden, self.vocabulary)
            logits = self.model(**inputs, logits_to_keep=1).logits[:, -1]
            return pick_columns(logits, self.vocabulary)
