"""Matrix products in float32 whose entries depend on their two rows alone.

Matrix libraries compute the last rows of a product, where the height is no multiple of their tile,
with another kernel and another order of summation. Products here have padded heights and widths,
so an entry does not depend on where its rows stand or on what else is in the product.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Heights and widths of products are padded to a multiple of this.
ROW_MULTIPLE = 32
# Rows of the similarity matrix computed at a time: a few MB, and a multiple of ROW_MULTIPLE.
BLOCK_ROWS = 512
# Bytes that matrix libraries read at a time: rows that begin elsewhere may be summed in another
# order.
CACHE_LINE = 64


def round_up(count: int) -> int:
    """Returns the smallest multiple of `ROW_MULTIPLE` that is at least ``count``."""
    return count + -count % ROW_MULTIPLE


def row_blocks(count: int) -> list[slice]:
    """Splits ``count`` rows into slices of `BLOCK_ROWS`; the last one may reach past the end."""
    return [slice(start, start + BLOCK_ROWS) for start in range(0, count, BLOCK_ROWS)]


def pad_rows(rows: Tensor) -> Tensor:
    """Pads ``rows`` [r, d] with zero rows to a multiple of `ROW_MULTIPLE`."""
    missing = -len(rows) % ROW_MULTIPLE
    return F.pad(rows, (0, 0, 0, missing)) if missing else rows


def align(rows: Tensor) -> Tensor:
    """Returns ``rows`` [r, d], copied if their memory does not begin at a cache line of the CPU."""
    if rows.device.type == "cpu" and rows.data_ptr() % CACHE_LINE:
        return rows.clone()
    return rows


@contextmanager
def true_float32(device: torch.device) -> Iterator[None]:
    """Computes float32 products on ``device`` in float32; restores the caller's precision.

    Since torch 2.9 each backend has its own precision, and torch refuses to mix it with the
    process-wide one. Before, there is only the process-wide one, which torch reads for CUDA
    (TF32) and for CPUs with bfloat16 units.
    """
    backends: Any = torch.backends
    backend = backends.mkldnn if device.type == "cpu" else backends.cuda
    matmul: Any = getattr(backend, "matmul", None)
    if hasattr(matmul, "fp32_precision"):
        callers_precision = matmul.fp32_precision
        matmul.fp32_precision = "ieee"
        try:
            yield
        finally:
            matmul.fp32_precision = callers_precision
        return
    process_wide = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(process_wide)


def product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """Returns ``left @ right`` in true float32, whatever precision the caller's settings allow.

    Args:
        left: float32 [r, d].
        right: float32 [d, c].
        out: float32 [r, c] to write the product to; None allocates it.
    """
    if out is None:
        out = left.new_empty(left.shape[0], right.shape[1])  # `out=` bypasses autocast
    with true_float32(left.device):
        return torch.mm(left, right, out=out)


def to_cosines(products: Tensor, left_norms: Tensor, right_norms: Tensor) -> Tensor:
    """Divides products [r, c] in place by the norms [r] and [c] of their rows; clamps to ±1."""
    # Divided by the product of both norms, so that a pair has the same cosine in either order.
    return products.div_(torch.outer(left_norms, right_norms)).clamp_(-1, 1)
