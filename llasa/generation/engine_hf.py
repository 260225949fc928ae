"""Generation with transformers: batches of left-padded prompts, on any device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm
from transformers import LogitsProcessorList

from llasa.config import SamplingConfig, require
from llasa.generation.sampling import CodeConstraint
from llasa.model.llama import SpeechModel


@dataclass(frozen=True)
class GeneratedCodes:
    """Codes [num_codes] that followed a prompt, and why they ended: "stop" or "length"."""

    codes: np.ndarray
    finish_reason: str


class TransformersEngine:
    """`model.generate` under a :class:`CodeConstraint`.

    Args:
        batch_size: prompts that are generated together, neighbours in length.
        progress: whether a bar shows how far it is, where there is more than one prompt and a person to see it.
        synced: whether several processes share the model's weights (FSDP), so that all must go on until the last is
            done.
    """

    def __init__(self, *, batch_size: int, progress: bool = True, synced: bool = False) -> None:
        require(batch_size >= 1, "engine.batch_size", batch_size, "use 1 or more")
        self.batch_size, self.progress, self.synced = batch_size, progress, synced

    def generate(
        self,
        speech: SpeechModel,
        prompts: Sequence[np.ndarray],
        sampling: SamplingConfig,
        max_codes: Sequence[int],
        seed: int,
    ) -> list[GeneratedCodes]:
        """Continue each prompt (token ids [n]) with at most ``max_codes`` codes; a list in the prompts' order."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        results: dict[int, GeneratedCodes] = {}
        quiet = None if self.progress and len(prompts) > 1 else True
        with tqdm(total=len(prompts), unit=" sentences", desc="speaking", disable=quiet) as bar:
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                torch.manual_seed(seed)
                generated = self._generate(speech, [prompts[i] for i in batch], sampling, [max_codes[i] for i in batch])
                results.update(zip(batch, generated, strict=True))
                bar.update(len(batch))
        return [results[i] for i in range(len(prompts))]

    @torch.inference_mode()
    def _generate(
        self, speech: SpeechModel, prompts: list[np.ndarray], sampling: SamplingConfig, max_codes: list[int]
    ) -> list[GeneratedCodes]:
        vocabulary, model = speech.vocabulary, speech.model
        longest = max(map(len, prompts))
        # The mask comes from lengths: the padding id stands in the prompt as well.
        input_ids = torch.full((len(prompts), longest), vocabulary.speech_end)
        attention_mask = torch.zeros_like(input_ids)
        for row, prompt in enumerate(prompts):
            input_ids[row, longest - len(prompt) :] = torch.from_numpy(prompt)
            attention_mask[row, longest - len(prompt) :] = 1
        chosen = (
            {"do_sample": True, "temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
            if sampling.temperature > 0
            else {"do_sample": False}
        )
        constraint = CodeConstraint(vocabulary, speech.card.codec.code_ranges, prompt_length=longest)
        output = model.generate(
            input_ids.to(model.device),
            attention_mask=attention_mask.to(model.device),
            logits_processor=LogitsProcessorList([constraint]),
            max_new_tokens=max(max_codes) + 1,  # one more than the codes: END itself
            eos_token_id=vocabulary.speech_end,
            pad_token_id=vocabulary.speech_end,
            use_cache=True,
            synced_gpus=self.synced,
            **chosen,
        )
        new_ids = output[:, longest:].cpu().numpy()
        return [self._cut(ids, limit, speech) for ids, limit in zip(new_ids, max_codes, strict=True)]

    @staticmethod
    def _cut(ids: np.ndarray, limit: int, speech: SpeechModel) -> GeneratedCodes:
        """Codes up to END, or up to the limit's last whole frame. No code before END is ever dropped."""
        ends = np.flatnonzero(ids == speech.vocabulary.speech_end)
        if len(ends) and ends[0] <= limit:
            return GeneratedCodes(speech.vocabulary.ids_to_codes(ids[: ends[0]]), "stop")
        frame = len(speech.card.codec.code_ranges)
        stop = min(limit, ends[0] if len(ends) else len(ids)) // frame * frame
        return GeneratedCodes(speech.vocabulary.ids_to_codes(ids[:stop]), "length")
