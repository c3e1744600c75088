"""Pictures that are hard to prune, for figures, tables and tests.

All have the height of the shipped model's input.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from gprune import VisualTokens
from gprune.tinyvlm import make_scene
from gprune.tinyvlm.contents import GRID, IMAGE_SIZE, LETTERS, TINTS
from gprune.tinyvlm.drawing import FONTS, TEXT_COLOR, load_font
from gprune.training.accuracy import to_pixels, vision_features

SQUARE = (IMAGE_SIZE, IMAGE_SIZE)


def blank(color: tuple[int, int, int] = TINTS["white"]) -> Image.Image:
    """Returns a picture of one color."""
    return Image.new("RGB", SQUARE, color)


def noise(seed: int = 0) -> Image.Image:
    """Returns uniform noise: no content, and no two similar patches."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*SQUARE, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def one_over_f(seed: int = 0) -> Image.Image:
    """Returns 1/f noise, with the spectrum of photographs: regions, edges and textures at once."""
    rng = np.random.default_rng(seed)
    frequency = np.fft.fftfreq(IMAGE_SIZE)
    radius = np.hypot(frequency[:, None], frequency[None])
    radius[0, 0] = np.inf  # removes the mean
    channels = np.fft.ifft2(np.fft.fft2(rng.standard_normal((3, *SQUARE))) / radius).real
    channels /= channels.std(axis=(1, 2), keepdims=True)
    return Image.fromarray(np.clip(128 + 45 * channels.transpose(1, 2, 0), 0, 255).astype(np.uint8))


def page(seed: int = 0) -> Image.Image:
    """Returns a page full of letters, six lines of seven."""
    rng = np.random.default_rng(seed)
    picture = blank()
    pen, font = ImageDraw.Draw(picture), load_font(FONTS[0], 16)
    for top in range(4, IMAGE_SIZE - 16, 21):
        for left in range(4, IMAGE_SIZE - 12, 16):
            letter = str(rng.choice(LETTERS)).upper()
            pen.text((left, top), letter, font=font, fill=TEXT_COLOR, anchor="lt")
    return picture


def strip() -> Image.Image:
    """Returns a picture four times as wide as high: a scene, a blank, a crowded scene, a blank."""
    crowded = make_scene("validation", 0, 0, crowded=True)
    parts = [make_scene("validation", 0, 2).draw(), blank(), crowded.draw(), blank(TINTS["sky"])]
    picture = Image.new("RGB", (len(parts) * IMAGE_SIZE, IMAGE_SIZE))
    for index, part in enumerate(parts):
        picture.paste(part, (index * IMAGE_SIZE, 0))
    return picture


def tokens_of(model: Any, picture: Image.Image) -> VisualTokens:
    """Returns the tokens of a picture; a wide one is encoded in squares, like tiles."""
    starts = range(0, picture.width, IMAGE_SIZE)
    squares = [picture.crop((x, 0, x + IMAGE_SIZE, IMAGE_SIZE)) for x in starts]
    with torch.inference_mode():
        features = model.model.multi_modal_projector(vision_features(model, to_pixels(squares)))
    # The squares side by side, in raster order: [GRID * GRID * len(squares), d].
    raster = features.unflatten(1, (GRID, GRID)).transpose(0, 1).flatten(0, 2)
    return VisualTokens(raster, grid=(GRID, GRID * len(squares)))


def gap(kept: torch.Tensor, tokens: VisualTokens) -> float:
    """Returns the largest distance from a patch to the nearest kept one, in patches."""
    coordinates = tokens.coordinates().float()
    return float(torch.cdist(coordinates, coordinates[kept]).amin(1).max())
