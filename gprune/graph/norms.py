"""L2 norms of tokens in float64, and exact scaling of features whose norms float32 cannot hold."""

from __future__ import annotations

import torch
from torch import Tensor

from gprune.graph.products import ROW_MULTIPLE

# Entries of the features that a CPU converts to float64 at a time: 3 MB, twice the second-level
# cache. More and shorter passes cost more (a seventh at d = 4,096, a third at 1,024).
PASS_ENTRIES = 3 * 2**17
# Between these norms, products and squares of tokens and their channels fit in float32.
SAFE_NORMS = (2.0**-40, 2.0**60)


def token_norms(features: Tensor) -> Tensor:
    """Returns the L2 norm of every token, float64 [..., n]; ``features`` [..., n, d]."""
    rows = features.reshape(-1, features.shape[-1])
    norms = torch.empty(len(rows), dtype=torch.float64, device=features.device)
    chunks = cache_chunks(rows)
    # Converted first: reading float32 and summing in float64 has no fast kernel on a CPU. The
    # chunks have one length and share one buffer: memory in use is faster than new memory.
    buffer = norms.new_empty(len(rows[chunks[0]]), rows.shape[1])
    for chunk in chunks:
        norms[chunk] = torch.linalg.vector_norm(buffer.copy_(rows[chunk]), dim=-1)
    return norms.view(features.shape[:-1])


def cache_chunks(features: Tensor) -> list[slice]:
    """Splits the rows of ``features`` [n, d] into equal slices that fit in a CPU's cache.

    The last slice may overlap the one before it. On an accelerator one slice covers all rows.
    """
    n, d = features.shape
    rows = max(ROW_MULTIPLE, PASS_ENTRIES // max(1, d))
    if features.device.type != "cpu" or n <= rows:
        return [slice(0, n)]
    # Equal lengths: a kernel that is given a single row sums it in another order.
    return [slice(min(start, n - rows), start + rows) for start in range(0, n, rows)]


def unit_scaling(features: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """Computes what scales tokens [n, d] to unit norm in float32.

    Returns:
        norms: float64 [n].
        exponents: int32 [n], powers of two to divide the tokens by first (see
            `divide_by_power_of_two`); None if that is not needed.
        scaled_norms: float32 [n], norms after that division; 1 for tokens of zero norm.
    """
    norms = token_norms(features)
    exponents: Tensor | None = None
    scaled_norms = norms
    on_cpu = features.device.type == "cpu"
    # An accelerator would have to synchronise with the host to check its norms: it always scales.
    if not on_cpu or not bool(((norms > SAFE_NORMS[0]) & (norms < SAFE_NORMS[1])).all()):
        # Finite features can have a norm that float32 cannot hold. Dividing by a power of two is
        # exact.
        least = -1000 if features.dtype == torch.float64 else -120
        exponents = torch.frexp(norms).exponent.clamp(min=least)
        scaled_norms = torch.ldexp(norms, -exponents)
    scaled_norms = scaled_norms.float()
    return norms, exponents, scaled_norms.masked_fill_(scaled_norms == 0, 1)


def divide_by_power_of_two(features: Tensor, exponents: Tensor | None) -> Tensor:
    """Returns features [r, d] divided by ``2**exponents`` [r], in float32; None divides by 1."""
    if exponents is None:
        return features.float()
    wide = features if features.dtype == torch.float64 else features.float()
    return torch.ldexp(wide, -exponents.unsqueeze(-1)).float()
