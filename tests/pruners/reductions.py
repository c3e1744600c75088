"""Comparison of reductions."""

from __future__ import annotations

import torch

from gprune import Reduction


def assert_same_reduction(actual: Reduction, expected: Reduction) -> None:
    """Checks that two reductions have equal kept tokens, members, weights and appended rows."""
    for name in ("kept", "members", "weights", "appended"):
        one, other = getattr(actual, name), getattr(expected, name)
        assert one is other is None or torch.equal(one, other), name
