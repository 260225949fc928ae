"""One step after another: clips, the codec's losses, its judges', two optimizers, a running mean of the weights.

    clips ─► codec ─┬─► mel, STFT, latent losses ────────────────────┐
                    └─► discriminators ─► adversarial, features ─────┴─► gradients ─mean over processes─► AdamW ─► EMA
                                     └──► their own loss ──────────────► gradients ─────────────────────► AdamW

Codec and discriminators are judged by each other as they were before the step, so a clip goes through the codec once.
Whatever is random in step N (clips, noise, dropout) is drawn from (seed, N, process, part of the step), so the weights,
the optimizers' states and a few sums are all that a resumed run needs.

Processes share a step's clips and average their gradients: with the same clips the same step as in one process, to
rounding. There is no DistributedDataParallel: of its parts only the averaging is needed, and a codec's backward is
too short to hide it in.

Cost: the nano on two CPU cores see experiments/xcodec2_nano; memory: weights 4 times (with gradients, Adam's states:
6 times what learns).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast, reduce
from torch import nn
from transformers import Xcodec2Model

from llasa.codec.features import KaldiFilterBank
from llasa.codec_training.clips import Clips
from llasa.codec_training.discriminators import (
    Discriminators,
    adversarial_loss,
    discriminator_loss,
    feature_matching_loss,
)
from llasa.codec_training.forward import reconstruct, semantic_features
from llasa.codec_training.losses import SpectralLosses, latent_penalty
from llasa.codec_training.phonetic import PhoneticLoss
from llasa.codec_training.usage import CodeUsage
from llasa.config import TrainCodecConfig
from llasa.training.optim import parameter_groups
from llasa.training.schedule import share_of_peak

BUCKET = 25_000_000
"""Numbers that are averaged over the processes at a time: 100 MB."""


class CodecTrainer:
    """Args:
    model: on its device, with gradients for what learns (:func:`~llasa.codec_training.forward.trained_parameters`).
    discriminators: none = spectral losses alone.
    num_steps: of the whole run; the learning rates follow from it.

    Attributes:
        step: steps done.
        skipped, skipped_in_a_row: steps whose gradient was no number; they changed nothing.
        sums, num_summed: losses since the last line of the metrics, and of how many steps.
    """

    def __init__(
        self,
        model: Xcodec2Model,
        discriminators: Discriminators | None,
        clips: Clips,
        config: TrainCodecConfig,
        *,
        num_steps: int,
        device: str,
        precision: str,
    ) -> None:
        self.model, self.discriminators, self.clips, self.config = model, discriminators, clips, config
        self.num_steps, self.device, self.precision = num_steps, device, precision
        self.filter_bank = KaldiFilterBank().to(device)
        self.spectral = SpectralLosses(model.config.sampling_rate).to(device)
        recognizer = config.losses.recognizer
        self.phonetic = PhoneticLoss(recognizer).to(device) if recognizer is not None else None
        self.usage = CodeUsage(list(model.config.quantization_levels))
        self.learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizer = self._optimizer(model, config.codec_model.lr)
        self.optimizers = [(self.optimizer, config.codec_model.lr, 0)]
        if discriminators is not None:
            adversary = self._optimizer(discriminators, config.adversary.lr)
            self.optimizers.append((adversary, config.adversary.lr, config.adversary.start))
        modules = [model, *([discriminators] if discriminators is not None else [])]
        for tensor in (tensor for module in modules for tensor in module.state_dict().values()):
            tensor.copy_(broadcast(tensor))  # equal already, but for the last bits of other machines
        self.ema = {name: parameter.detach().clone() for name, parameter in self.learning.items()}
        self.step = self.skipped = self.skipped_in_a_row = 0
        self.last_rounding = 1.0
        self.sums: dict[str, float] = {}
        self.num_summed = 0

    def _optimizer(self, module: nn.Module, lr: float) -> torch.optim.AdamW:
        settings = self.config.trainer
        return torch.optim.AdamW(
            parameter_groups(module),
            lr=lr,
            betas=(settings.betas[0], settings.betas[1]),
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def rounding(self) -> float:
        """How far the quantizer rounds in the next step: 0 = noise instead, 1 = always."""
        noise, mixed = self.config.codec_model.noise_steps, self.config.codec_model.mixed_steps
        return float(np.clip((self.step - noise + 1) / (mixed + 1), 0, 1)) if self.step < noise + mixed else 1.0

    def judges(self) -> Discriminators | None:
        """The discriminators, where they take part in the next step."""
        return self.discriminators if self.step >= self.config.adversary.start else None

    def train_step(self) -> None:
        """One optimizer step over `trainer.clips_per_step` clips."""
        parts = self._parts()
        judges, rounding = self.judges(), self.rounding()
        self.last_rounding = rounding
        self.model.train()
        totals: dict[str, torch.Tensor] = {}
        for part, indices in enumerate(parts):
            generator = self._seeded(part)
            waveforms = torch.from_numpy(self.clips.batch(self.step, indices)).to(self.device)
            for name, value in self._backward(waveforms, rounding, judges, generator, len(parts)).items():
                totals[name] = totals.get(name, torch.zeros((), device=self.device)) + value / len(parts)
        active = self.optimizers if judges is not None else self.optimizers[:1]
        norms = {}
        for name, (optimizer, _, _) in zip(("grad_norm", "adversary/grad_norm"), active, strict=False):
            parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            average_gradients(parameters)
            norms[name] = nn.utils.clip_grad_norm_(parameters, self.config.trainer.max_grad_norm)
        values = reduce(torch.stack([*totals.values()]), "mean").tolist()
        losses = dict(zip(totals, values, strict=True)) | {name: float(norm) for name, norm in norms.items()}
        if all(np.isfinite(value) for value in losses.values()):
            self._update(active)
            self.skipped_in_a_row = 0
            for name, value in losses.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
            self.num_summed += 1
        else:
            self.skipped += 1
            self.skipped_in_a_row += 1
        for optimizer, _, _ in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        self.step += 1

    def _parts(self) -> list[range]:
        """This process' clips of a step, in pieces of what it holds at a time."""
        process, processes = PartialState().process_index, PartialState().num_processes
        own = self.config.trainer.clips_per_step // processes
        size = min(self.config.trainer.clips_per_device, own)
        first = process * own
        return [range(start, min(start + size, first + own)) for start in range(first, first + own, size)]

    def _seeded(self, part: int) -> torch.Generator:
        """A generator for the noise, after the global one (dropout) was seeded too."""
        seeds = np.random.SeedSequence([self.config.seed, self.step, PartialState().process_index, part])
        dropout, noise = (int(number) for number in seeds.generate_state(2))
        torch.manual_seed(dropout)
        return torch.Generator(self.device).manual_seed(noise)

    def _backward(
        self,
        waveforms: torch.Tensor,
        rounding: float,
        judges: Discriminators | None,
        generator: torch.Generator,
        num_parts: int,
    ) -> dict[str, torch.Tensor]:
        """Add the gradients of a part's losses; float32 [clips, samples] → the losses, unweighted but for "loss"."""
        weights, adversary = self.config.losses, self.config.adversary
        features = semantic_features(self.model, self.filter_bank, waveforms)
        with self._autocast():
            result = reconstruct(self.model, waveforms, features, rounding=rounding, generator=generator)
        losses = self.spectral(result.waveforms, waveforms)
        total = weights.mel * losses["mel"] + weights.stft * losses["stft"]
        if self.phonetic is not None:
            losses["phonetic"] = self.phonetic(result.waveforms, waveforms)
            total = total + weights.phonetic * losses["phonetic"]
        penalty = self.config.codec_model.latent_penalty
        if penalty > 0 and result.latents.requires_grad:
            losses["latent"] = latent_penalty(result.latents)
            total = total + penalty * losses["latent"]
        if judges is not None:
            judges.requires_grad_(True)
            with self._autocast():
                real, fake = judges(waveforms), judges(result.waveforms.detach())
                losses["adversary/loss"] = discriminator_loss(real, fake)
            (losses["adversary/loss"] / num_parts).backward()
            judges.requires_grad_(False)
            real = [(score.detach(), [feature.detach() for feature in maps]) for score, maps in real]
            with self._autocast():
                fake = judges(result.waveforms)
                losses["adversarial"] = adversarial_loss(fake)
                losses["feature_matching"] = feature_matching_loss(real, fake)
            total = total + adversary.adversarial * losses["adversarial"]
            total = total + adversary.feature_matching * losses["feature_matching"]
        (total / num_parts).backward()
        self.usage.add(result.codes)
        return {"loss": total.detach(), **{name: value.detach().float() for name, value in losses.items()}}

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16")

    def _update(self, active: Sequence[tuple[torch.optim.Optimizer, float, int]]) -> None:
        for optimizer, lr, start in active:
            share = share_of_peak(self.config.schedule, self.step - start, max(1, self.num_steps - start))
            for group in optimizer.param_groups:
                group["lr"] = lr * share
            optimizer.step()
        # A mean over few steps at first, or the random start would stay in it for long.
        decay = min(self.config.trainer.ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_([*self.ema.values()], [p.detach() for p in self.learning.values()], 1 - decay)

    @contextmanager
    def averaged_weights(self) -> Iterator[Xcodec2Model]:
        """The model with the weights that are saved, in eval mode."""
        self._exchange()
        self.model.eval()
        try:
            yield self.model
        finally:
            self._exchange()

    def _exchange(self) -> None:
        if self.config.trainer.ema_decay == 0:
            return
        for name, parameter in self.learning.items():
            parameter.data, self.ema[name] = self.ema[name], parameter.data

    def state_dict(self) -> dict[str, Any]:
        """All that step ``step`` + 1 depends on, and what is logged after it; the same in every process but for the
        codes that were seen. A model that was loaded gives its frozen weights back itself."""
        frozen = self.config.codec_model.checkpoint is None
        weights = self.model.state_dict() if frozen else {name: p.detach() for name, p in self.learning.items()}
        return {
            "step": self.step,
            "model": weights,
            "ema": self.ema,
            "discriminators": None if self.discriminators is None else self.discriminators.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer, _, _ in self.optimizers],
            "usage": self.usage.state_dict(),
            "skipped": [self.skipped, self.skipped_in_a_row],
            "sums": self.sums,
            "num_summed": self.num_summed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the step of ``state``. Settings of the optimizers are those of this run's config."""
        self.step, self.sums, self.num_summed = state["step"], state["sums"], state["num_summed"]
        self.skipped, self.skipped_in_a_row = state["skipped"]
        self.model.load_state_dict(state["model"], strict=self.config.codec_model.checkpoint is None)
        for name, tensor in state["ema"].items():
            self.ema[name].copy_(tensor)
        if self.discriminators is not None and state["discriminators"] is not None:
            self.discriminators.load_state_dict(state["discriminators"])
        for (optimizer, _, _), saved in zip(self.optimizers, state["optimizers"], strict=False):
            settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
            optimizer.load_state_dict(saved)
            for group, configured in zip(optimizer.param_groups, settings, strict=True):
                group.update(configured)
        self.usage.load_state_dict(state["usage"])

    def take_losses(self) -> dict[str, float]:
        """Mean of each loss since the last call; empty where every step was skipped."""
        means = {name: total / self.num_summed for name, total in self.sums.items()} if self.num_summed else {}
        self.sums, self.num_summed = {}, 0
        return means

    def lr(self) -> float:
        """Of the codec, in the last step."""
        return self.optimizer.param_groups[0]["lr"]


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace gradients by their means over the processes."""
    if PartialState().num_processes == 1:
        return
    waiting: list[torch.Tensor] = []
    for position, parameter in enumerate(parameters):
        assert parameter.grad is not None
        waiting.append(parameter.grad)
        if sum(grad.numel() for grad in waiting) >= BUCKET or position == len(parameters) - 1:
            means = reduce(torch.cat([grad.flatten() for grad in waiting]), "mean")
            for grad, mean in zip(waiting, means.split([grad.numel() for grad in waiting]), strict=True):
                grad.copy_(mean.view_as(grad))
            waiting = []
