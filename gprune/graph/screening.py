"""A screen in bfloat16 that excludes pairs of tokens that cannot have an edge.

Most pairs have no edge, and bfloat16 often suffices to show that: a CPU with bfloat16 units
computes its products four times as fast as float32's. Rounding to bfloat16 moves a cosine by less
than a bound that holds for every input (`screen_error`), so the screen excludes no edge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gprune.graph.norms import cache_chunks
from gprune.graph.rows import UnitRows

# Fewest tokens for which a screen saves time.
MIN_SCREENED_TOKENS = 128
# Tokens sampled, at least, to estimate the share of candidates: 0.1 % of the screen at 2,304
# tokens.
SAMPLE_TOKENS = 64
# A screen that lets a larger share of pairs through is not used. Tiles hold more entries than
# candidates, and above twice this share they are no faster than plain blocks (see
# `gprune.graph.tiling.MAX_TILED_SHARE`).
MAX_CANDIDATE_SHARE = 0.35


def supports_bfloat16(device: torch.device) -> bool:
    """Returns whether the device is a CPU with units for bfloat16 products."""
    backends: Any = torch.backends
    on_cpu = device.type == "cpu" and backends.mkldnn.is_available()
    return on_cpu and torch.cpu._is_avx512_bf16_supported()


def screen_error(d: int) -> float:
    """Bounds how far a bfloat16 product of two unit vectors [d] can lie from their cosine.

    Rounding a vector moves it by at most 2⁻⁸ of its length, so the product of two by at most twice
    that (and its square). Sums of d products in float32 add d·2⁻²⁴, in the screen and in the
    float32 product alike, doubled here to be safe. Rounding the result to bfloat16 keeps the order,
    so it adds nothing as long as the cutoff that it is compared with is rounded too.
    """
    return 2**-7 + sum_error(d)


def sum_error(d: int) -> float:
    """Returns the bound of `screen_error` for bfloat16 features that are not scaled to unit norm.

    It is in units of the product of the two norms. Products of bfloat16 values are exact in
    float32; what remains is the summation, and 2⁻¹⁶ for the rounding of the norms, of their
    product, and of the unit vectors in the float32 product.
    """
    return 2**-16 + d * 2**-22


@dataclass(frozen=True, eq=False)
class Screen:
    """Finds, in bfloat16, the pairs of tokens that can reach a threshold.

    Attributes:
        rows: the tokens, bfloat16 [n, d].
        norms: their L2 norms, float32 [n]; None if the rows are at unit norm.
        cutoff: least product of a pair at the threshold, in units of the product of its norms.
    """

    rows: Tensor
    norms: Tensor | None
    cutoff: float

    @classmethod
    def build(cls, unit: UnitRows, threshold: float) -> Screen:
        """Builds the screen of some tokens for a threshold."""
        d = unit.features.shape[-1]
        if unit.features.dtype == torch.bfloat16 and unit.needs_no_scaling:
            # Used as they are: a copy at unit norm takes longer than a bound for every pair.
            return cls(unit.features, unit.norms.float(), threshold - sum_error(d))
        return cls(_unit_bfloat16(unit), None, threshold - screen_error(d))

    def candidates(self, rows: slice, columns: slice) -> Tensor:
        """Returns the pairs that the screen cannot exclude, bool [r, c]."""
        left, right = self.rows[rows], self.rows[columns]
        products = left.new_empty(len(left), len(right))
        torch.mm(left, right.mT, out=products)  # `out=` bypasses autocast
        if self.norms is None:
            return products >= torch.tensor(self.cutoff).to(products.dtype)
        least = torch.outer(self.cutoff * self.norms[rows], self.norms[columns])
        return products >= least.to(products.dtype)


def useful_screen(unit: UnitRows, threshold: float) -> Screen | None:
    """Returns the screen of some tokens, or None if it would not save time.

    That is: on a device without bfloat16 units, for few tokens, or if a sample of the tokens shows
    that it would exclude too few pairs.
    """
    n = len(unit)
    if n < MIN_SCREENED_TOKENS or not supports_bfloat16(unit.features.device):
        return None
    screen = Screen.build(unit, threshold)
    sample = slice(None, None, max(1, n // SAMPLE_TOKENS))
    share = float(screen.candidates(sample, sample).float().mean())
    return screen if share <= MAX_CANDIDATE_SHARE else None


def _unit_bfloat16(unit: UnitRows) -> Tensor:
    """Returns the unit rows in bfloat16, [n, d]."""
    rows = torch.empty_like(unit.features, dtype=torch.bfloat16)
    for chunk in cache_chunks(unit.features):
        rows[chunk] = unit[chunk]
    return rows
