"""Tells how far a model is with an answer, and lets the listener stop it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeAlias

from torch import nn


@dataclass(frozen=True)
class Progress:
    """How far a comparison is.

    Attributes:
        method: the method that answers now; None without pruning.
        answered: answers that are finished.
        total: answers in all, the one without pruning included.
        tokens: tokens of the present answer so far.
        timing: whether the prefill is being timed, after the answer.
    """

    method: str | None
    answered: int
    total: int
    tokens: int = 0
    timing: bool = False


# Called before every layer of the model; what it raises ends the comparison.
Watch: TypeAlias = Callable[[Progress], None]


class Cancelled(Exception):
    """The listener stopped the comparison."""


@contextmanager
def watched(model: nn.Module, start: Progress, watch: Watch | None) -> Iterator[None]:
    """Calls ``watch`` before every layer that runs inside the block.

    Hooks on the layers, not on the model alone: the prefill of a large model takes seconds, and
    nobody should have to wait for its end after a click on Cancel.

    Args:
        model: generates one token with each of its forward passes.
        start: passed on with the number of ``tokens`` so far.
        watch: the listener; None adds no hooks.
    """
    if watch is None:
        yield
        return
    passes = 0

    def count_pass(*_: object) -> None:
        nonlocal passes
        passes += 1

    def report(*_: object) -> None:
        watch(replace(start, tokens=max(0, passes - 1)))

    layers = {
        layer for module in model.modules() if isinstance(module, nn.ModuleList) for layer in module
    }
    handles = [model.register_forward_pre_hook(count_pass)]
    handles += [layer.register_forward_pre_hook(report) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
