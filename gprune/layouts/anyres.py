"""How LLaVA-NeXT and its relatives cut an image of any resolution into tiles."""

from __future__ import annotations

from collections.abc import Sequence


def best_resolution(size: Sequence[int], pinpoints: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Returns the pinpoint (height, width) on which an image loses least.

    It has the largest effective resolution: the pixels of the image scaled to fit inside, at most
    those that the image has. Ties go to the pinpoint with least padding, then to the first.
    (LLaVA-NeXT's ``select_best_resolution``.)

    Args:
        size: (height, width) of the image in pixels.
        pinpoints: (height, width) of each allowed resolution.
    """
    height, width = size

    def fit(pinpoint: Sequence[int]) -> tuple[int, int]:
        # In floating point like the original, whose rounding decides ties.
        scale = min(pinpoint[1] / width, pinpoint[0] / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        padding = pinpoint[0] * pinpoint[1] - effective
        return effective, -padding

    best = max(pinpoints, key=fit)
    return best[0], best[1]


def tile_count(size: Sequence[int], pinpoints: Sequence[Sequence[int]], tile: int) -> int:
    """Returns the number of tiles of an image, thumbnail included.

    Args:
        size: (height, width) of the image in pixels.
        pinpoints: (height, width) of each allowed resolution.
        tile: side of a tile in pixels.
    """
    height, width = best_resolution(size, pinpoints)
    return 1 + -(-height // tile) * -(-width // tile)
