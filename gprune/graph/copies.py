"""Tokens whose features are exactly equal: they tie, so all take the score of the first."""

from __future__ import annotations

import torch
from torch import Tensor

# Copies have a cosine similarity of 1, except for rounding.
COPY_SIMILARITY = 1 - 1e-5


def confirm_copies(features: Tensor, suspected: Tensor) -> Tensor:
    """Compares every token with the token that it is suspected to be a copy of.

    Args:
        features: [..., n, d].
        suspected: int64 [..., n].

    Returns:
        int64 [..., n]: ``suspected`` where the features are exactly equal, else the token itself.
    """
    own = torch.arange(features.shape[-2], device=features.device).expand_as(suspected)
    # The usual case. An accelerator would have to synchronise with the host to compare values.
    if features.device.type == "cpu" and torch.equal(own, suspected):
        return own
    equal = features.gather(-2, suspected.unsqueeze(-1).expand_as(features)) == features
    return torch.where(equal.all(-1), suspected, own)
