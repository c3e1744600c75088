"""The rule by which PruMerge, PruMerge+ and TRIM find the number of tokens themselves."""

from __future__ import annotations

import torch
from torch import Tensor

# A value is an outlier if it lies this many interquartile ranges above the third quartile.
REACH = 1.5


def outlier_count(values: Tensor) -> int:
    """Returns how many of ``values`` [n] are outliers: above Q3 + 1.5 (Q3 − Q1).

    Quartiles are interpolated linearly, in float64. Less than a quarter of the values are
    outliers. If none is, the highest value counts as one, so the result is at least 1.
    Synchronises an accelerator, because the number sets a shape.
    """
    values = values.double()
    first, third = torch.quantile(values, values.new_tensor([0.25, 0.75])).unbind()
    count = (values > third + REACH * (third - first)).sum()
    return max(int(count), 1)
