"""Prefill time with and without pruning, measured side by side."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

from gprune.pruners import Pruner


@dataclass(frozen=True)
class PrefillTimes:
    """Medians in milliseconds: image encoding, selection and language model together."""

    full_ms: float
    pruned_ms: float


def synchronize(device: torch.device) -> None:
    """Waits until an accelerator has done what was queued; nothing on a CPU."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@torch.inference_mode()
def prefill_times(
    model: Any, inputs: dict[str, Any], pruner: Pruner, repeats: int = 9
) -> PrefillTimes:
    """Times the prefill of one prompt, full and pruned in turn so that drift hits both alike.

    Args:
        model: a supported model.
        inputs: what the processor made, on the model's device.
        pruner: the method.
        repeats: counted runs of each, after one that is not counted.
    """

    def once() -> float:
        synchronize(model.device)
        start = time.perf_counter()
        model(**inputs, logits_to_keep=1)
        synchronize(model.device)
        return 1000 * (time.perf_counter() - start)

    def once_pruned() -> float:
        with pruner(model):
            return once()

    full, pruned = [], []
    for repeat in range(repeats + 1):
        one, other = once(), once_pruned()
        if repeat:
            full.append(one)
            pruned.append(other)
    return PrefillTimes(statistics.median(full), statistics.median(pruned))
