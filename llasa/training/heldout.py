"""Loss and accuracy on speech that is not trained on, measured while a model trains.

HeldOutRows ─every N steps─► a tally of each example ─summed up─► the whole, each language, each speaker

The loss is that of training: the mean over supervised tokens. The accuracy is the share of speech codes that the model
would have guessed, out of its whole vocabulary, from the right codes before them; markers do not count.

Nothing of the training is touched: no random numbers, gradients or modes. Cost: a forward pass over the rows, with
logits of `kernels.loss_chunk_size` positions at a time; each process takes its share of the rows.
"""

from __future__ import annotations

import math
import sys
import time
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import reduce, send_to_device
from torch.nn.functional import cross_entropy, pad
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llasa.config import TrainConfig
from llasa.model.attention import needs_flat_rows, variable_lengths
from llasa.model.finetune import is_adapted
from llasa.model.llama import SpeechModel
from llasa.packing.collate import PackingCollator
from llasa.provenance import write_json
from llasa.tokens.prompt import IGNORE_INDEX
from llasa.training.heldout_rows import HeldOutRows
from llasa.training.saving import disk_failure, step_of

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    from llasa.tracking import Tracker

FOLDER = "heldout"
COLUMNS = ("loss", "tokens", "right", "codes")
"""Of a tally: summed loss, supervised tokens, codes that were guessed, codes."""


def score(
    self: LlamaForCausalLM, input_ids: torch.Tensor, labels: torch.Tensor, position_ids: torch.Tensor, chunk_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A `forward` that scores each supervised position: (target, loss in fp32, best guess, number of its example).

    Examples are counted along the rows; padding is none, since it has nothing supervised.
    """
    lengths = variable_lengths(self.config._attn_implementation, position_ids)
    outputs = self.model(input_ids=input_ids, position_ids=position_ids, use_cache=False, **lengths)
    targets = pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX).flatten()
    index = (targets != IGNORE_INDEX).nonzero().squeeze(1)
    hidden, targets = outputs.last_hidden_state.flatten(0, 1)[index], targets[index]
    losses, guesses = [], []
    for states, wanted in zip(hidden.split(chunk_size), targets.split(chunk_size), strict=True):
        logits = self.lm_head(states).float()
        losses.append(cross_entropy(logits, wanted, reduction="none"))
        guesses.append(logits.argmax(-1))
    places = (position_ids.flatten() == 0).cumsum(0)[index]
    _, examples = torch.unique_consecutive(places, return_inverse=True)
    return targets, torch.cat(losses), torch.cat(guesses), examples


@contextmanager
def scoring(model: LlamaForCausalLM | PeftModel) -> Iterator[LlamaForCausalLM]:
    """The Llama inside of a model that trains, in evaluation mode and with :func:`score` as its forward.

    The forward is exchanged, not passed by: only inside of the model's own call are weights whole that FSDP2 has shared
    among processes.
    """
    from torch.distributed.fsdp import FSDPModule

    llama = model.get_base_model() if is_adapted(model) else model
    modes = [(module, module.training) for module in model.modules()]
    forward = llama.__dict__.get("forward")
    model.eval()
    llama.forward = types.MethodType(score, llama)
    try:
        yield llama
    finally:
        del llama.forward
        if forward is not None:
            llama.forward = forward
        for module, training in modes:
            module.training = training
            if isinstance(module, FSDPModule):  # the outermost one keeps its weights whole for a backward pass
                module.reshard()


class HeldOutCallback(TrainerCallback):
    """Measures every `heldout.every` steps and after the last one; all processes take part.

    Metrics go to the tracker, which the first process alone has, and every speaker's to RUN/heldout/step-N.json.

    Attributes:
        seconds: spent here so far, which are not the training's.
    """

    def __init__(
        self,
        rows: HeldOutRows,
        speech: SpeechModel,
        config: TrainConfig,
        run: Path,
        tracker: Tracker | None,
    ) -> None:
        self.rows, self.vocabulary, self.every = rows, speech.vocabulary, config.heldout.every
        self.rows_per_device, self.chunk_size = config.trainer.rows_per_device, config.kernels.loss_chunk_size
        # Any id pads: padding is never attended to by an example and never supervised.
        self.collate = PackingCollator(pad_token_id=speech.vocabulary.speech_end, flatten=needs_flat_rows(speech.attn))
        self.folder, self.tracker = run / FOLDER, tracker
        self.seconds = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.tracker is not None:
            for file in self.folder.glob("step-*.json"):  # of a future that a resumed run replaces
                if step_of(file.with_suffix("")) > state.global_step:
                    file.unlink()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        step = state.global_step
        if step % self.every and step < state.max_steps:
            return
        began = time.perf_counter()
        tally = self.measure(model, args)
        seconds = time.perf_counter() - began
        if self.tracker is not None:
            metrics = {"step": step} | self.metrics(tally) | {"heldout/seconds": round(seconds, 3)}
            self.tracker.log(metrics)
            self.write(step, tally)
            tqdm.write(
                f"step {step}: held-out loss {metrics['heldout/loss']:.3f}, "
                f"{metrics['heldout/accuracy']:.1%} of the speech codes right"
            )
        self.seconds += time.perf_counter() - began

    def measure(self, model: LlamaForCausalLM | PeftModel, args: TrainingArguments) -> np.ndarray:
        """The tally of each example, float64 [examples, columns], added up over the processes."""
        rows, processes = self.rows.rows, args.world_size
        starts = np.cumsum([0, *map(len, rows)])
        tally = torch.zeros(int(starts[-1]), len(COLUMNS), dtype=torch.float64, device=args.device)
        size = min(self.rows_per_device, math.ceil(len(rows) / processes))
        autocast = torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16)
        with scoring(model) as llama, torch.no_grad(), autocast:
            # Processes that wait for each other's weights take the same number of passes: some rows twice.
            for first in range(0, len(rows), size * processes):
                start = first + size * args.process_index
                mine = rows[start : start + size] or rows[:size]
                batch = send_to_device(self.collate(mine), args.device)
                targets, losses, guesses, examples = llama(**batch, chunk_size=self.chunk_size)
                if start >= len(rows):
                    continue
                codes = (targets >= self.vocabulary.first_code) & (
                    targets < self.vocabulary.first_code + self.vocabulary.num_codes
                )
                columns = [losses, torch.ones_like(losses), codes & (guesses == targets), codes]
                found = torch.stack([column.double() for column in columns], dim=1)
                tally.index_add_(0, examples + int(starts[start]), found)
        return reduce(tally, reduction="sum").cpu().numpy()

    def metrics(self, tally: np.ndarray) -> dict[str, float | int]:
        """What a tally says of the whole, of each language, and of the best and worst speaker."""
        whole = summary(tally)
        metrics: dict[str, float | int] = {f"heldout/{key}": whole[key] for key in ("loss", "accuracy")}
        languages = by_group(tally, self.rows.languages)
        if len(languages) > 1:
            for language, part in languages.items():
                metrics |= {f"heldout/{key}/{language}": part[key] for key in ("loss", "accuracy")}
        losses = [part["loss"] for speaker, part in by_group(tally, self.rows.speakers).items() if speaker]
        if len(losses) > 1:
            metrics |= {"heldout/loss/worst_speaker": max(losses), "heldout/loss/best_speaker": min(losses)}
        return metrics | {"heldout/tokens": whole["tokens"]}

    def write(self, step: int, tally: np.ndarray) -> None:
        """RUN/heldout/step-N.json: the whole, each language, each speaker (those nobody knows are one)."""
        speakers = [speaker or "unknown" for speaker in self.rows.speakers]
        facts = {"step": step, "split": self.rows.split} | summary(tally)
        facts |= {"languages": by_group(tally, self.rows.languages), "speakers": by_group(tally, speakers)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / f"step-{step}.json", without_nan(facts))
        except OSError as error:
            tqdm.write(
                f"warning: {self.folder / f'step-{step}.json'} could not be written "
                f"({disk_failure(error, self.folder.parent)}); training goes on",
                file=sys.stderr,
            )


def summary(tally: np.ndarray) -> dict[str, float | int]:
    """Mean loss of a supervised token, share of the codes that were guessed, and how many there are of all three."""
    loss, tokens, right, codes = tally.sum(axis=0).tolist()
    return {
        "loss": loss / tokens,
        "accuracy": right / max(codes, 1),
        "tokens": round(tokens),
        "codes": round(codes),
        "examples": len(tally),
    }


def by_group(tally: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, float | int]]:
    """The summary of the examples of each name, in the order of the names."""
    groups = np.asarray(names)
    return {str(name): summary(tally[groups == name]) for name in np.unique(groups)}


def without_nan(value: Any) -> Any:
    """Numbers that are none as null, which JSON has."""
    if isinstance(value, dict):
        return {key: without_nan(part) for key, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
