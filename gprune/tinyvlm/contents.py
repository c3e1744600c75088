"""The contents of a scene: background halves, coloured shapes and texts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gprune.tinyvlm.boxes import Box

# Patches per side of the shipped models, and pixels per side of a patch in every tiny model.
GRID = 16
PATCH_SIZE = 8
IMAGE_SIZE = GRID * PATCH_SIZE

SHAPES = ("circle", "rectangle", "triangle", "star", "cross", "ring", "diamond", "heart")
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (215, 30, 40),
    "green": (20, 150, 60),
    "blue": (30, 60, 215),
    "yellow": (235, 200, 0),
    "teal": (0, 150, 160),
    "gray": (115, 115, 120),
    "brown": (125, 70, 25),
    "black": (15, 15, 15),
    "purple": (140, 40, 170),
    "orange": (245, 125, 10),
}
TINTS: dict[str, tuple[int, int, int]] = {
    "white": (248, 248, 248),
    "pink": (255, 200, 215),
    "sky": (190, 222, 252),
    "mint": (195, 242, 210),
    "cream": (252, 240, 190),
    "lavender": (218, 200, 248),
}
PATTERNS = ("plain", "stripes", "dots", "checks", "zigzag")
SIDES = {"columns": ("left", "right"), "rows": ("top", "bottom")}
DIGITS = tuple("0123456789")
# No vowels, so that no row of letters spells a word of the questions.
LETTERS = tuple("bcdfghklmnprtvxz")


def _star() -> list[tuple[float, float]]:
    return [
        (
            (1 if i % 2 == 0 else 0.42) * math.sin(math.pi * i / 5),
            -(1 if i % 2 == 0 else 0.42) * math.cos(math.pi * i / 5),
        )
        for i in range(10)
    ]


def _heart() -> list[tuple[float, float]]:
    angles = [2 * math.pi * i / 40 for i in range(40)]
    return [
        (
            math.sin(a) ** 3,
            -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 16,
        )
        for a in angles
    ]


# Vertices of the polygons in units of the radius, y downwards.
POLYGONS: dict[str, list[tuple[float, float]]] = {
    "triangle": [(0, -1), (1, 0.9), (-1, 0.9)],
    "diamond": [(0, -1), (0.75, 0), (0, 1), (-0.75, 0)],
    "star": _star(),
    "heart": _heart(),
}


# Half-width, extent above and extent below the centre in units of the radius, where not all are 1.
EXTENTS = {
    "rectangle": (1.0, 0.72, 0.72),
    **{
        shape: (
            max(abs(dx) for dx, _ in vertices),
            -min(dy for _, dy in vertices),
            max(dy for _, dy in vertices),
        )
        for shape, vertices in POLYGONS.items()
    },
}


@dataclass(frozen=True)
class Object:
    """A coloured shape: centre (x, y) and radius in scene units."""

    shape: str
    color: str
    x: float
    y: float
    radius: float

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"

    @property
    def box(self) -> Box:
        """The tight bounding box of the drawn shape, in scene units."""
        half_width, above, below = EXTENTS.get(self.shape, (1.0, 1.0, 1.0))
        x, y, r = self.x, self.y, self.radius
        return x - half_width * r, y - above * r, x + half_width * r, y + below * r


@dataclass(frozen=True)
class Text:
    """Three signs (digits or letters) in one line.

    Attributes:
        signs: the digits or lower-case letters; they are drawn in upper case.
        font: file name of the font.
        size: font size in scene units.
        box: bounding box, in scene units.
        edges: left edge of each sign, in scene units.
    """

    signs: str
    font: str
    size: int
    box: Box
    edges: tuple[float, ...]

    def sign_boxes(self, scale: float) -> list[Box]:
        """Returns the box of each sign in pixels, at ``scale`` pixels per scene unit.

        The whole box represents a sign, because the strokes of a glyph are thin.
        """
        _, top, right, bottom = (edge * scale for edge in self.box)
        starts = [edge * scale for edge in self.edges]
        ends = (*starts[1:], right)
        return [
            (start, top, max(start, end - 1), bottom - 1)
            for start, end in zip(starts, ends, strict=True)
        ]


@dataclass(frozen=True)
class Contents:
    """Everything that is drawn in a picture.

    Attributes:
        layout: ``columns`` (left and right halves) or ``rows`` (top and bottom halves).
        border: where the halves meet, in scene units.
        patterns: of the two halves, from ``PATTERNS``.
        tints: of the two halves, from ``TINTS``.
        phases: shift of each pattern, in [0, 1).
        objects: in drawing order.
        texts: drawn after the objects.
    """

    layout: str
    border: int
    patterns: tuple[str, str]
    tints: tuple[str, str]
    phases: tuple[float, float]
    objects: tuple[Object, ...]
    texts: tuple[Text, ...]

    def halves(self, scale: float = 1) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Returns the (rows, columns) slices of both halves, at ``scale`` pixels per scene unit."""
        whole = slice(0, None)
        border = round(self.border * scale)
        first, second = slice(0, border), slice(border, None)
        if self.layout == "columns":
            return (whole, first), (whole, second)
        return (first, whole), (second, whole)
