"""Boxes in scene units: their wording in questions, and intersection over union.

A box is (left, top, right, bottom). The unit is 1/112 of the picture's side, whatever its size in
pixels, with x to the right and y downwards.
"""

from __future__ import annotations

import re
from typing import TypeAlias

Box: TypeAlias = tuple[float, float, float, float]

# Side of a picture in scene units.
SIDE = 112
# A box is written as its four edges, each quantised to one of BINS equal steps: `left3`, `top10`.
EDGES = ("left", "top", "right", "bottom")
BINS = 32
# A predicted box counts as found from this IoU on, as in PASCAL VOC detection.
MIN_IOU = 0.5


def bin_edges(box: Box) -> list[int]:
    """Returns the bin in [0, BINS) of each edge of a box."""
    return [min(BINS - 1, max(0, int(edge * BINS / SIDE))) for edge in box]


def format_box(box: Box) -> str:
    """Returns a box in the model's words.

    Examples:
        >>> format_box((12, 36, 26, 50))
        'left3 top10 right7 bottom14'
    """
    return " ".join(f"{edge}{step}" for edge, step in zip(EDGES, bin_edges(box), strict=True))


def parse_box(text: str) -> Box | None:
    """Returns the box that `format_box` wrote, with each edge at the centre of its bin.

    Returns None if ``text`` is not a box.
    """
    pattern = " ".join(rf"{edge}(\d{{1,2}})" for edge in EDGES)
    match = re.fullmatch(pattern, text.strip())
    if match is None:
        return None
    left, top, right, bottom = ((int(step) + 0.5) * SIDE / BINS for step in match.groups())
    return left, top, right, bottom


def iou(first: Box, second: Box) -> float:
    """Returns the intersection over union of two boxes; 0 if either is empty."""

    def area(left: float, top: float, right: float, bottom: float) -> float:
        return max(0.0, right - left) * max(0.0, bottom - top)

    starts = map(max, first[:2], second[:2])
    ends = map(min, first[2:], second[2:])
    intersection = area(*starts, *ends)
    return intersection / (area(*first) + area(*second) - intersection) if intersection else 0.0


def box_is_found(predicted: str, expected: str) -> bool:
    """Checks that two boxes in words overlap with an IoU of at least `MIN_IOU`."""
    first, second = parse_box(predicted), parse_box(expected)
    return first is not None and second is not None and iou(first, second) >= MIN_IOU
