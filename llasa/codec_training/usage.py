"""Which codes a codec uses: how many different ones, how evenly, and each level of each dimension.

A codec that collapses shows here first, long before it is heard.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from llasa.pictures import colours

WINDOW = 65_536
"""Codes, the last ones: 22 minutes of speech."""
CELL = 24
"""Pixels."""


class CodeUsage:
    """The last ``WINDOW`` codes of a codec whose dimensions have ``levels``; as many as there were so far."""

    def __init__(self, levels: list[int]) -> None:
        self.levels = levels
        self._codes = torch.zeros(0, dtype=torch.int32)

    def add(self, codes: torch.Tensor) -> None:
        """int64 [...]"""
        self._codes = torch.cat([self._codes, codes.flatten().to("cpu", torch.int32)])[-WINDOW:]

    def state_dict(self) -> dict[str, Any]:
        return {"codes": self._codes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._codes = state["codes"].clone()

    def metrics(self) -> dict[str, float]:
        """How many of the codes are different ones, and their perplexity: the number of codes that, used equally,
        would be as hard to foretell."""
        return code_metrics(self._codes.numpy())

    def picture(self) -> np.ndarray:
        """uint8 [height, width, 3]: a row for each dimension, a column for each level; the brighter, the more used.

        Evenly used levels are all half as bright as can be; a dark column is a level that is lost.
        """
        size = max(self.levels)
        picture = np.zeros((len(self.levels) * CELL, size * CELL, 3), dtype=np.uint8)
        codes = self._codes.numpy()
        for row, share in enumerate(level_shares(codes, self.levels)):
            shades = np.clip(share * len(share) / 2, 0, 1)
            cells = colours()[np.rint(255 * shades).astype(np.uint8)]
            picture[row * CELL : (row + 1) * CELL - 1, : len(share) * CELL] = np.repeat(cells, CELL, axis=0)
        picture[:, CELL - 1 :: CELL] = 0
        return picture


def code_metrics(codes: np.ndarray) -> dict[str, float]:
    """int [codes] → ``codes``, the number of different ones, and ``perplexity``; empty without any."""
    if len(codes) == 0:
        return {}
    _, counts = np.unique(codes, return_counts=True)
    shares = counts / counts.sum()
    return {"codes": len(counts), "perplexity": round(float(np.exp(-(shares * np.log(shares)).sum())), 1)}


def level_shares(codes: np.ndarray, levels: list[int]) -> list[np.ndarray]:
    """For each dimension, the first one first, the share of the codes at each of its levels."""
    shares = []
    rest = codes.astype(np.int64)
    for count in levels:
        shares.append(np.bincount(rest % count, minlength=count) / max(1, len(codes)))
        rest = rest // count
    return shares
