"""Pictures that are hard to prune, of the shipped model's height: for figures, tables and tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from gprune import VisualTokens
from gprune.tinyvlm import make_scene
from gprune.tinyvlm.scenes import FONTS, GRID, IMAGE_SIZE, INK, LETTERS, TINTS, load_font
from gprune.training.accuracy import to_pixels, vision_features

SQUARE = (IMAGE_SIZE, IMAGE_SIZE)


def blank(color: tuple[int, int, int] = TINTS["white"]) -> Image.Image:
    """One color and nothing else."""
    return Image.new("RGB", SQUARE, color)


def noise(seed: int = 0) -> Image.Image:
    """Every pixel by itself: nothing to see, and no two patches alike."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*SQUARE, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def one_over_f(seed: int = 0) -> Image.Image:
    """Noise whose spectrum falls as a photograph's does: regions, edges and textures at once."""
    rng = np.random.default_rng(seed)
    frequency = np.fft.fftfreq(IMAGE_SIZE)
    fall = np.hypot(frequency[:, None], frequency[None])
    fall[0, 0] = np.inf  # no mean
    channels = np.fft.ifft2(np.fft.fft2(rng.standard_normal((3, *SQUARE))) / fall).real
    channels /= channels.std(axis=(1, 2), keepdims=True)
    return Image.fromarray(np.clip(128 + 45 * channels.transpose(1, 2, 0), 0, 255).astype(np.uint8))


def page(seed: int = 0) -> Image.Image:
    """A page full of signs, six lines of seven."""
    rng = np.random.default_rng(seed)
    picture = blank()
    pen, font = ImageDraw.Draw(picture), load_font(FONTS[0], 16)
    for top in range(4, IMAGE_SIZE - 16, 21):
        for left in range(4, IMAGE_SIZE - 12, 16):
            sign = str(rng.choice(LETTERS)).upper()
            pen.text((left, top), sign, font=font, fill=INK, anchor="lt")
    return picture


def strip() -> Image.Image:
    """A picture four times as wide as high: a scene, a wall, a crowded scene, a wall."""
    crowded = make_scene("validation", 0, 0, crowded=True)
    parts = [make_scene("validation", 0, 2).draw(), blank(), crowded.draw(), blank(TINTS["sky"])]
    picture = Image.new("RGB", (len(parts) * IMAGE_SIZE, IMAGE_SIZE))
    for place, part in enumerate(parts):
        picture.paste(part, (place * IMAGE_SIZE, 0))
    return picture


def tokens_of(model: Any, picture: Image.Image) -> VisualTokens:
    """A picture's tokens; one wider than high is encoded square by square, as tiles are."""
    starts = range(0, picture.width, IMAGE_SIZE)
    squares = [picture.crop((x, 0, x + IMAGE_SIZE, IMAGE_SIZE)) for x in starts]
    with torch.inference_mode():
        features = model.model.multi_modal_projector(vision_features(model, to_pixels(squares)))
    lines = features.unflatten(1, (GRID, GRID)).transpose(0, 1).flatten(0, 2)
    return VisualTokens(lines, grid=(GRID, GRID * len(squares)))


def gap(kept: torch.Tensor, tokens: VisualTokens) -> float:
    """How far the loneliest patch is from a kept one, in patches."""
    places = tokens.coordinates().float()
    return float(torch.cdist(places, places[kept]).amin(1).max())
