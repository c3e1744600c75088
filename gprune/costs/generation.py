"""Measures the times, KV-cache bytes and memory of one call of ``generate``."""

from __future__ import annotations

import ctypes
import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gprune.costs.clock import synchronize
from gprune.hf import find_cache
from gprune.pruners import Pruner

PROCESS = Path("/proc/self")


@dataclass
class GenerationCost:
    """Measured cost of generating the answers of one batch.

    Attributes:
        seconds: wall-clock time of the whole call.
        prefill: seconds until the first token: image encoding, selection and language model.
        selection: seconds of the selection alone, 0 without pruning.
        calls: forward calls of the model, prefill included: one for each token of the longest
            answer.
        kv_bytes: bytes of the KV cache after the prefill, for the whole batch, padding included.
        memory_before: bytes in use at the start: the bytes torch has allocated on an accelerator,
            the resident set size of the process on a CPU; None if unknown.
        memory_peak: peak of the same measure until the end; None if unknown.
    """

    seconds: float = 0.0
    prefill: float = 0.0
    selection: float = 0.0
    calls: int = 0
    kv_bytes: int = 0
    memory_before: int | None = None
    memory_peak: int | None = None

    @property
    def decode_step(self) -> float | None:
        """Mean seconds of a decoding step; None if no answer has a second token."""
        return (self.seconds - self.prefill) / (self.calls - 1) if self.calls > 1 else None


@contextmanager
def measure_generation(model: Any, pruner: Pruner | None = None) -> Iterator[GenerationCost]:
    """Measures one call of ``model.generate`` inside the ``with`` block.

    Synchronizes an accelerator before each reading of the clock: at the start and the end, after
    the prefill, and around each selection.

    Args:
        model: the model, already pruned if the call is to be pruned.
        pruner: the pruner that is active on ``model``.
    """
    device = model.device
    cost = GenerationCost(memory_before=reset_peak_memory(device))
    with nullcontext() if pruner is None else time_selection(pruner, device, cost):

        def record_call(module: Any, arguments: Any, output: Any) -> None:
            if not cost.calls:
                synchronize(device)
                cost.prefill = time.perf_counter() - start
                cost.kv_bytes = cache_bytes(find_cache(output))
            cost.calls += 1

        hook = model.register_forward_hook(record_call)
        synchronize(device)
        start = time.perf_counter()
        try:
            yield cost
            synchronize(device)
            cost.seconds = time.perf_counter() - start
        finally:
            hook.remove()
    if cost.memory_before is not None:
        cost.memory_peak = peak_memory(device)


# Pruner methods that choose tokens: for the groups of all images, or from layer to layer.
SELECTION_METHODS = ("reduce_images", "raters", "count", "drop")


@contextmanager
def time_selection(pruner: Pruner, device: torch.device, cost: GenerationCost) -> Iterator[None]:
    """Adds the seconds that ``pruner`` spends on choosing tokens to ``cost.selection``.

    Computing its input signals, such as recomputed attention, counts as prefill only.
    """

    def timed(select: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(select)
        def timed_select(*args: Any, **kwargs: Any) -> Any:
            synchronize(device)
            start = time.perf_counter()
            result = select(*args, **kwargs)
            synchronize(device)
            cost.selection += time.perf_counter() - start
            return result

        return timed_select

    names = [name for name in SELECTION_METHODS if hasattr(pruner, name)]
    # Through vars(), because the dataclass is frozen; on this instance only.
    vars(pruner).update({name: timed(getattr(pruner, name)) for name in names})
    try:
        yield
    finally:
        for name in names:
            del vars(pruner)[name]


def cache_bytes(cache: Any) -> int:
    """Returns the bytes of all tensors of a cache's layers, recurrent states included.

    Returns 0 without a cache.
    """
    layers = getattr(cache, "layers", ())
    return sum(
        value.nbytes
        for layer in layers
        for value in vars(layer).values()
        if isinstance(value, Tensor)
    )


def reset_peak_memory(device: torch.device) -> int | None:
    """Restarts the peak that `peak_memory` reads; returns the bytes in use, None if unknown."""
    if device.type != "cpu":
        torch.get_device_module(device).reset_peak_memory_stats(device)
        return torch.get_device_module(device).memory_allocated(device)
    try:
        # The allocator keeps memory that earlier work freed; a new peak could stay below it.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        (PROCESS / "clear_refs").write_text("5")
    except (OSError, AttributeError):  # not Linux, or not permitted
        return None
    return read_status("VmRSS")


def peak_memory(device: torch.device) -> int | None:
    """Returns the peak of the bytes in use since `reset_peak_memory`; None if unknown."""
    if device.type != "cpu":
        return torch.get_device_module(device).max_memory_allocated(device)
    return read_status("VmHWM")


def read_status(entry: str) -> int | None:
    """Reads a size from ``/proc/self/status``, in bytes; None if there is no such entry."""
    try:
        lines = (PROCESS / "status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(entry)), None)
