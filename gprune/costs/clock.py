"""Wall-clock timing that waits for the device, and the name of the machine it ran on."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def synchronize(device: torch.device) -> None:
    """Waits until an accelerator has finished its queued work; a no-op on a CPU."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def time_in_turn(
    contenders: dict[str, Callable[[], Any]],
    repeats: int,
    device: torch.device,
    after_call: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Times several calls in turn, so that drift of the machine affects all of them alike.

    Args:
        contenders: the calls to time, by name.
        repeats: timed rounds through all calls, after one warm-up round.
        device: the device to synchronize before and after each call.
        after_call: called after each call, ``(repeats + 1) * len(contenders)`` times.

    Returns:
        the milliseconds of each timed call, ``repeats`` for each name.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        for name, call in contenders.items():
            synchronize(device)
            start = time.perf_counter()
            call()
            synchronize(device)
            if repeat:  # round 0 is the warm-up
                times[name].append(1000 * (time.perf_counter() - start))
            after_call()
    return times


def machine_name(device: torch.device | None = None) -> str:
    """Returns the processor's name, the CPU features and threads torch uses, and torch's version.

    Args:
        device: the device that ran the work; the CPU by default.
    """
    if device is not None and device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor()
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{name} ({capability}), {torch.get_num_threads()} threads, torch {torch.__version__}"
