"""Which weights of the graph float16 can hold: those below vanish, and with them their edges.

A row softmax in float16, as models in half precision compute it, sums in float32 and rounds its
result. The least float16 above 0 is 2⁻²⁴, and what is at most half of it is rounded to 0 (a tie
goes to the even neighbour, which is 0). At G-Prune's T = 0.03 an edge at similarity 0.5 has
``exp((0.5 - 1) / 0.03)`` = 5.8e-8 before it is divided by the sum of its row, so it vanishes as
soon as that sum reaches 1.94. An edge at 0.7 has 4.5e-5, and the sum would have to reach 1,523.
"""

from __future__ import annotations

import torch
from torch import Tensor

# The largest number that rounds to 0 in float16.
FLOAT16_VANISHES = 2.0**-25


def vanishing_weights(row_sums: Tensor) -> Tensor:
    """Returns the largest weight of each row that is 0 in float16 after division by the row's sum.

    Args:
        row_sums: sum of each token's weights, float64 [...].

    Returns:
        float32 [...]. A float32 weight above it stays above 0. The comparison is exact: a multiple
        by a power of two is, and the result is rounded down to float32.
    """
    bound = FLOAT16_VANISHES * row_sums
    narrow = bound.float()
    below = torch.nextafter(narrow, torch.zeros_like(narrow))
    return torch.where(narrow.double() > bound, below, narrow)
