"""To an accelerator without making the host wait for what is queued there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def uploaded(values: Sequence[int] | Tensor, device: torch.device) -> Tensor:
    """Whole numbers, int64, or a tensor of the host's, on ``device``.

    Unlike ``torch.tensor(values, device=device)``, which waits until all that was queued on an
    accelerator before has been done.
    """
    host = values if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.int64)
    return host.to(device, non_blocking=True)
