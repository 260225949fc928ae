"""Muon for the hidden matrices and AdamW for all else, as one optimizer (`optimizer=muon`).

Muon (Jordan et al. 2024; scaled by Liu et al. 2025, arXiv 2502.16982) makes the momentum of a matrix orthogonal
before it is applied. It is meant for matrices between hidden states: embeddings, the head and norms learn by AdamW.
The update is scaled to the size that AdamW's usually has, so both share `optimizer.lr` and its schedule.

Memory: one state instead of two for the matrices, of the parameters' type. Time: five products of three matrices
for each matrix and step, in bf16: nothing beside a GPU's forward pass over thousands of tokens, dear on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


class MuonAdamW(torch.optim.Optimizer):
    """Two optimizers of torch over one list of groups and one state, which save, resume and schedule as one.

    Args:
        params: groups; those of kind "matrices" (see `optim.parameter_groups`) learn by Muon.
        lr, weight_decay: of both.
        momentum: Muon's.
        betas, eps: AdamW's.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
    ) -> None:
        groups = list(params)
        by_muon = [group for group in groups if group.get("kind") == "matrices"]
        by_adamw = [group for group in groups if group.get("kind") != "matrices"]
        self.parts: list[tuple[bool, torch.optim.Optimizer]] = []
        if by_muon:
            muon = torch.optim.Muon(
                by_muon, lr=lr, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw"
            )
            self.parts.append((True, muon))
        if by_adamw:
            adamw = torch.optim.AdamW(by_adamw, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)
            self.parts.append((False, adamw))
        super().__init__([group for _, part in self.parts for group in part.param_groups], {})

    # torch states the two cases of the closure as overloads, for the same one signature.
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both.

        The parts own nothing: they are handed the groups and the state of this optimizer, which loading a state, or
        a wrapper, may have replaced since.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for is_muon, part in self.parts:
            part.param_groups = [group for group in self.param_groups if (group.get("kind") == "matrices") == is_muon]
            part.state = self.state
            part.step()
        return loss
