"""Draws the contents of a scene with Pillow."""

from __future__ import annotations

import functools
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gprune.tinyvlm.boxes import SIDE
from gprune.tinyvlm.contents import (
    COLORS,
    GRID,
    PATCH_SIZE,
    PATTERNS,
    POLYGONS,
    TINTS,
    Contents,
    Object,
)

# Shapes and text are drawn at twice the size and averaged down for antialiasing.
SUPERSAMPLE = 2
TEXT_COLOR = (25, 25, 45)

# matplotlib, a core dependency, ships these fonts, so no system font is needed.
FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSansMono-Bold.ttf",
    "STIXGeneralBol.ttf",
)


def draw_contents(contents: Contents, grid: int = GRID) -> Image.Image:
    """Returns the RGB picture for a model with ``grid`` patches of ``PATCH_SIZE`` pixels a side."""
    size = SIDE * SUPERSAMPLE
    canvas = Image.fromarray(draw_background(contents))
    canvas = canvas.resize((size, size), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(canvas)
    for item in contents.objects:
        draw_shape(pen, item, COLORS[item.color], SUPERSAMPLE)
    for text in contents.texts:
        font = load_font(text.font, text.size * SUPERSAMPLE)
        left, top = text.box[0] * SUPERSAMPLE, text.box[1] * SUPERSAMPLE
        pen.text((left, top), text.signs.upper(), font=font, fill=TEXT_COLOR, anchor="lt")
    return canvas.resize((grid * PATCH_SIZE, grid * PATCH_SIZE), Image.Resampling.BOX)


def draw_background(contents: Contents) -> np.ndarray:
    """Returns the background at one pixel per scene unit, uint8 [SIDE, SIDE, 3]."""
    pixels = np.empty((SIDE, SIDE, 3), dtype=np.uint8)
    for half, region in enumerate(contents.halves()):
        tint = np.array(TINTS[contents.tints[half]])
        pattern_color = (tint * 0.72).astype(np.uint8)
        mask = pattern_mask(contents.patterns[half], contents.phases[half])
        pixels[region] = np.where(mask[..., None], pattern_color, tint.astype(np.uint8))[region]
    return pixels


def pattern_mask(pattern: str, phase: float) -> np.ndarray:
    """Returns the pixels that a pattern darkens, bool [SIDE, SIDE].

    Args:
        pattern: one of ``PATTERNS``.
        phase: shift of the pattern, in [0, 1).

    Raises:
        ValueError: ``pattern`` is unknown.
    """
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    shift = int(phase * 12)
    if pattern == "plain":
        return np.zeros((SIDE, SIDE), dtype=bool)
    if pattern == "stripes":
        return (x + shift) % 8 < 3
    if pattern == "dots":
        return ((x + shift) % 8 - 3.5) ** 2 + ((y + shift) % 8 - 3.5) ** 2 < 5
    if pattern == "checks":
        return ((x + shift) // 6 + (y + shift) // 6) % 2 == 0
    if pattern == "zigzag":
        return (y + shift + np.abs(x % 12 - 6)) % 9 < 3
    raise ValueError(f"pattern must be one of {', '.join(PATTERNS)}, got {pattern!r}")


def draw_shape(
    pen: ImageDraw.ImageDraw, item: Object, fill: tuple[int, int, int] | int, scale: float
) -> None:
    """Draws ``item`` on a canvas with ``scale`` pixels per scene unit."""
    x, y, r = item.x * scale, item.y * scale, item.radius * scale
    box = (x - r, y - r, x + r, y + r)
    if item.shape == "circle":
        pen.ellipse(box, fill=fill)
    elif item.shape == "ring":
        # An outline rather than two discs: the background stays visible in the middle.
        pen.ellipse(box, outline=fill, width=max(1, round(r * 0.42)))
    elif item.shape == "rectangle":
        pen.rectangle((x - r, y - 0.72 * r, x + r, y + 0.72 * r), fill=fill)
    elif item.shape == "cross":
        pen.rectangle((x - r, y - 0.33 * r, x + r, y + 0.33 * r), fill=fill)
        pen.rectangle((x - 0.33 * r, y - r, x + 0.33 * r, y + r), fill=fill)
    else:
        pen.polygon([(x + r * dx, y + r * dy) for dx, dy in POLYGONS[item.shape]], fill=fill)


@functools.lru_cache(maxsize=256)
def load_font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """Loads a font that matplotlib ships, at ``size`` pixels."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    # The basic layout engine works everywhere; the other needs libraries that may be missing.
    return ImageFont.truetype(str(folder / name), size, layout_engine=ImageFont.Layout.BASIC)
