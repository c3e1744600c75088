"""What one call of ``generate`` costs: times, cache bytes and memory, all measured."""

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

from gprune.costs.prefill import synchronize
from gprune.hf.hook import find_cache
from gprune.pruners import Pruner

PROCESS = Path("/proc/self")


@dataclass
class Cost:
    """What answering one batch cost.

    Attributes:
        seconds: all of it.
        prefill: until the first token: image encoding, selection, language model.
        method: the selection alone, 0 without pruning.
        calls: of the model, the prefill among them; one for each token of the longest answer.
        kv_bytes: of the cache after the prefill, for the whole batch, padding included.
        memory_before: bytes held at the start: on an accelerator what torch has allocated, on a CPU
            the process's resident set; None where that cannot be known.
        memory_peak: the most of them until the end.
    """

    seconds: float = 0.0
    prefill: float = 0.0
    method: float = 0.0
    calls: int = 0
    kv_bytes: int = 0
    memory_before: int | None = None
    memory_peak: int | None = None

    @property
    def decode(self) -> float | None:
        """Seconds of a decoding step; None where no answer had a second token."""
        return (self.seconds - self.prefill) / (self.calls - 1) if self.calls > 1 else None


@contextmanager
def measured(model: Any, pruner: Pruner | None = None) -> Iterator[Cost]:
    """Measures one call of ``model.generate`` inside the block.

    The clock is read when an accelerator has done what was queued: at the start and the end, after
    the prefill, and around each selection.

    Args:
        model: pruned already, where it is to be.
        pruner: what prunes it.
    """
    device = model.device
    cost = Cost(memory_before=reset_peak(device))
    with nullcontext() if pruner is None else selection_timed(pruner, device, cost):

        def called(module: Any, arguments: Any, output: Any) -> None:
            if not cost.calls:
                synchronize(device)
                cost.prefill = time.perf_counter() - start
                cost.kv_bytes = cache_bytes(find_cache(output))
            cost.calls += 1

        hook = model.register_forward_hook(called)
        synchronize(device)
        start = time.perf_counter()
        try:
            yield cost
            synchronize(device)
            cost.seconds = time.perf_counter() - start
        finally:
            hook.remove()
    if cost.memory_before is not None:
        cost.memory_peak = peak(device)


# What a method decides in: for all images' groups, or from layer to layer.
DECIDING = ("reduce_images", "raters", "count", "drop")


@contextmanager
def selection_timed(pruner: Pruner, device: torch.device, cost: Cost) -> Iterator[None]:
    """Adds up in ``cost.method`` how long ``pruner`` takes to choose.

    The signals that it chooses by, recomputed attention for one, are part of the prefill alone.
    """

    def timed(decide: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(decide)
        def measured(*args: Any, **kwargs: Any) -> Any:
            synchronize(device)
            start = time.perf_counter()
            decided = decide(*args, **kwargs)
            synchronize(device)
            cost.method += time.perf_counter() - start
            return decided

        return measured

    names = [name for name in DECIDING if hasattr(pruner, name)]
    # On the one instance, which is frozen for everybody else.
    vars(pruner).update({name: timed(getattr(pruner, name)) for name in names})
    try:
        yield
    finally:
        for name in names:
            del vars(pruner)[name]


def cache_bytes(cache: Any) -> int:
    """Bytes of all that a cache's layers hold, recurrent states included; 0 without a cache."""
    layers = getattr(cache, "layers", ())
    return sum(
        value.nbytes
        for layer in layers
        for value in vars(layer).values()
        if isinstance(value, Tensor)
    )


def reset_peak(device: torch.device) -> int | None:
    """Bytes held now, from which `peak` counts on; None where that cannot be known."""
    if device.type != "cpu":
        torch.accelerator.reset_peak_memory_stats(device)
        return torch.accelerator.memory_allocated(device)
    try:
        # What earlier work freed, the allocator still holds: a peak would hide in it.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        (PROCESS / "clear_refs").write_text("5")
    except (OSError, AttributeError):  # no Linux, or one that forbids it
        return None
    return resident("VmRSS")


def peak(device: torch.device) -> int | None:
    """The most bytes held since `reset_peak`."""
    if device.type != "cpu":
        return torch.accelerator.max_memory_allocated(device)
    return resident("VmHWM")


def resident(entry: str) -> int | None:
    """Bytes that the kernel gives under ``entry``; None where there is no such entry."""
    try:
        lines = (PROCESS / "status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(entry)), None)
