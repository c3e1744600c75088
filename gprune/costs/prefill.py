"""Prefill time with and without pruning, measured side by side."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

from gprune.costs.clock import synchronize
from gprune.pruners import Pruner


@dataclass(frozen=True)
class PrefillTimes:
    """Median prefill times in milliseconds: image encoding, selection and language model.

    Attributes:
        full_ms: without pruning.
        pruned_ms: with pruning; adding and removing the hooks is not counted.
    """

    full_ms: float
    pruned_ms: float


@torch.inference_mode()
def prefill_times(
    model: Any, inputs: dict[str, Any], pruner: Pruner, repeats: int = 9
) -> PrefillTimes:
    """Times the prefill of one prompt, full and pruned in turn so that drift affects both alike.

    Args:
        model: a supported model.
        inputs: the processor's output, on the model's device.
        pruner: the method.
        repeats: timed runs of each, after one warm-up run.
    """

    def time_prefill() -> float:
        synchronize(model.device)
        start = time.perf_counter()
        model(**inputs, logits_to_keep=1)
        synchronize(model.device)
        return 1000 * (time.perf_counter() - start)

    full_times, pruned_times = [], []
    for repeat in range(repeats + 1):
        full_ms = time_prefill()
        with pruner(model):
            pruned_ms = time_prefill()
        if repeat:  # round 0 is the warm-up
            full_times.append(full_ms)
            pruned_times.append(pruned_ms)
    return PrefillTimes(statistics.median(full_times), statistics.median(pruned_times))
