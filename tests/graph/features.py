"""Random features for the tests of the graph."""

from __future__ import annotations

from typing import Any

import torch


def features(n: int, d: int, seed: int = 0, **options: Any) -> torch.Tensor:
    """Returns independent normal features [n, d]; ``options`` go to `torch.randn`."""
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), **options)


def clustered(n: int, d: int, size: int = 12, seed: int = 0, noise: float = 0.7) -> torch.Tensor:
    """Returns features [n, d] around n / size random centres."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(max(1, n // size), d, generator=generator)
    which = torch.randint(0, len(centres), (n,), generator=generator)
    return centres[which] + noise * torch.randn(n, d, generator=generator)
