"""What a pruned model reports about its latest prefill."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class KeptGroup:
    """The kept tokens of one group of visual tokens.

    Attributes:
        indices: kept tokens of the group, int64 [k], ascending.
        size: number of tokens of the group before pruning.
        grid: (rows, columns) of its raster, or None.
        kind: ``image``, ``thumbnail``, ``canvas``, ``tile`` or ``frame``.
        image: number of its image (or video) in the prompt, from 0.
        modality: ``image`` or ``video``.
    """

    indices: Tensor
    size: int
    grid: tuple[int, int] | None
    kind: str
    image: int
    modality: str = "image"
