"""Checks on tensor values that do not stall an accelerator.

Reading a value from a GPU makes the host wait for everything queued before it. So a check computes
its verdict on the device, starts a copy to the host, and goes on. On CPU the verdict is there at
once and a violation raises where it happens. On an accelerator it raises at the first later moment
when the copy has arrived: the next check, or at the latest when a pruning context is left or
`raise_pending` is called. A violation is therefore reported late there, but never lost.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Pending:
    """A verdict on its way to the host: ``ok`` is readable once ``event`` has happened."""

    ok: Tensor
    event: Any
    message: str


# One queue a thread: a violation belongs to the thread whose call caused it.
_local = threading.local()


def _queue() -> list[Pending]:
    if not hasattr(_local, "queue"):
        _local.queue = []
    queue: list[Pending] = _local.queue
    return queue


def require(ok: Tensor, message: str) -> None:
    """Raises ``ValueError(message)`` unless the bool scalar ``ok`` is true: now, or soon."""
    if torch.compiler.is_compiling() or ok.device.type == "meta":
        return
    if ok.device.type == "cpu":
        if not bool(ok):
            raise ValueError(message)
        return
    raise_pending(wait=False)
    arrived = ok.to("cpu", non_blocking=True)
    event = torch.Event(device=ok.device)
    event.record()
    _queue().append(Pending(arrived, event, message))


def raise_pending(wait: bool = True) -> None:
    """Raises the first violation that has arrived; ``wait`` waits for those under way.

    Raises:
        ValueError: a check failed since the last call.
    """
    queue = _queue()
    while queue:
        if wait:
            queue[0].event.synchronize()
        elif not queue[0].event.query():
            return
        pending = queue.pop(0)
        if not bool(pending.ok):
            queue.clear()  # what followed was computed from the same bad input
            raise ValueError(pending.message)


def require_finite(values: Tensor, name: str) -> None:
    """Requires every value of ``values`` to be finite in float32, in which it is ranked."""
    if not values.numel():
        return
    # Of a NaN both are NaN; much faster on a CPU than looking at every value by itself.
    low, high = values.aminmax()
    require(
        torch.isfinite(low.float()) & torch.isfinite(high.float()),
        f"{name} of shape {list(values.shape)} holds NaN or infinite values, or some beyond "
        f"float32's range; find where the vision encoder overflows (float16 is the usual reason: "
        f"try bfloat16) before pruning its output",
    )


def uploaded(values: Sequence[int] | Tensor, device: torch.device) -> Tensor:
    """Whole numbers, int64, or a tensor of the host's, on ``device``.

    Unlike ``torch.tensor(values, device=device)``, which waits until all that was queued on an
    accelerator before has been done.
    """
    host = values if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.int64)
    return host.to(device, non_blocking=True)
