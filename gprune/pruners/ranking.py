"""Rankings with a fixed order of ties, and complements of a choice."""

from __future__ import annotations

import torch
from torch import Tensor


def highest(scores: Tensor, k: int) -> Tensor:
    """Returns the indices of the ``k`` highest ``scores`` [n], ascending; ties: lowest index."""
    # `topk` leaves the order of ties to the device; a stable sort does not.
    order = torch.sort(scores, descending=True, stable=True).indices
    return order[:k].sort().values


def unchosen(chosen: Tensor, n: int) -> Tensor:
    """Returns the indices below ``n`` that are not in ``chosen``, ascending.

    Does not synchronise an accelerator.
    """
    flags = torch.zeros(n, dtype=torch.uint8, device=chosen.device).index_fill(0, chosen, 1)
    return torch.sort(flags, stable=True).indices[: n - len(chosen)]
