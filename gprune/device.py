"""Checks of tensor values that never stall an accelerator, and copies to it that do not.

Reading a value from a GPU makes the host wait for everything queued before it. So a check computes
its result on the device, starts a copy to the host, and returns. On a CPU the result is available
at once, and a failed check raises where it is made. On an accelerator it raises at the first later
moment when the copy has arrived: at the next check, or at the latest when a pruning context exits
or `raise_pending` is called. There a failure is reported late, but never lost.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class PendingCheck:
    """A check whose result is being copied to the host.

    Attributes:
        ok: bool scalar on the host, valid once ``event`` has completed.
        event: recorded after the copy.
        message: of the error to raise if ``ok`` is false.
    """

    ok: Tensor
    event: Any
    message: str


# One queue per thread: a failed check raises in the thread whose call made it.
_local = threading.local()


def pending_checks() -> list[PendingCheck]:
    """Returns this thread's checks whose results have not been read, oldest first."""
    if not hasattr(_local, "queue"):
        _local.queue = []
    queue: list[PendingCheck] = _local.queue
    return queue


def require(ok: Tensor, message: str) -> None:
    """Raises ``ValueError(message)``, now or later, unless the bool scalar ``ok`` is true.

    A no-op while compiling and on the meta device, where there are no values.
    """
    if torch.compiler.is_compiling() or ok.device.type == "meta":
        return
    if ok.device.type == "cpu":
        if not bool(ok):
            raise ValueError(message)
        return
    raise_pending(wait=False)
    host_ok = ok.to("cpu", non_blocking=True)
    event = torch.Event(device=ok.device)
    event.record()
    pending_checks().append(PendingCheck(host_ok, event, message))


def raise_pending(wait: bool = True) -> None:
    """Raises the error of the first pending check that failed.

    Args:
        wait: whether to wait for results that have not arrived yet.

    Raises:
        ValueError: a check since the last call failed.
    """
    queue = pending_checks()
    while queue:
        if wait:
            queue[0].event.synchronize()
        elif not queue[0].event.query():
            return
        check = queue.pop(0)
        if not bool(check.ok):
            queue.clear()  # later checks saw results of the same bad input
            raise ValueError(check.message)


def require_finite(values: Tensor, name: str) -> None:
    """Requires all ``values`` to be finite in float32, in which tokens are ranked.

    ``name`` names them in the error message; see `require` for when it is raised.
    """
    if not values.numel():
        return
    # If there is a NaN, both are NaN. Much faster on a CPU than `isfinite` of every value.
    low, high = values.aminmax()
    require(
        torch.isfinite(low.float()) & torch.isfinite(high.float()),
        f"{name} of shape {list(values.shape)} holds NaN or infinite values, or values beyond "
        f"float32's range; find where the vision encoder overflows (float16 is the usual reason: "
        f"try bfloat16) before pruning its output",
    )


def to_device(values: Sequence[int] | Tensor, device: torch.device) -> Tensor:
    """Copies integers, as int64, or a tensor on the host to ``device`` without waiting for it.

    ``torch.tensor(values, device=device)`` would wait for everything queued on an accelerator.
    """
    host = values if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.int64)
    return host.to(device, non_blocking=True)
