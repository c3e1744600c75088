"""Token ids of the tiny models, and images and videos as processors make them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

IMAGE, PAD, BOS, BREAK, VIDEO = 3, 0, 1, 58, 59


WORDS = 60


SIDE = 4  # tokens per side: 16 per image or tile


# One image or video as the processor returns it.
Image = dict[str, Tensor]


# Returns a random tensor of a shape, in the model's dtype.
Noise = Callable[..., Tensor]


def one_run(image: Image, length: int) -> list[int]:
    """Returns the placeholders of an image, with nothing between them."""
    return [IMAGE] * length


def stacked(rows: list[list[Image]]) -> Image:
    """Concatenates the images of all rows, as most families take them."""
    images = [image for row in rows for image in row]
    return {key: torch.cat([image[key] for image in images]) for key in images[0]} if images else {}


def square(pixels: int) -> Callable[[Noise, int], Image]:
    """Returns a maker of images of one size."""
    return lambda noise, index: {"pixel_values": noise(1, 3, pixels, pixels)}


def anyres(noise: Noise, index: int) -> Image:
    """Makes an image of LLaVA-NeXT; sizes unpad to canvases of different sizes."""
    shapes = [(30, 50), (61, 29), (64, 64), (20, 64)]
    shape = torch.tensor([shapes[index % len(shapes)]])
    return {"pixel_values": noise(1, 5, 3, 8 * SIDE, 8 * SIDE), "image_sizes": shape}


def square_frames(noise: Noise) -> tuple[Image, int]:
    """Makes a video of three frames for the LLaVA families."""
    return {"pixel_values_videos": noise(1, 3, 3, 8 * SIDE, 8 * SIDE)}, 3


def patches(size: int) -> tuple[Any, Any]:
    """Returns makers of images and of videos, flattened to patches as by Qwen's processors.

    Args:
        size: pixels along the side of a patch.
    """
    width = 3 * 2 * size * size

    def image(noise: Noise, index: int) -> Image:
        grids = [(1, 6, 10), (1, 8, 4), (1, 4, 12)]  # before merging two by two
        grid = torch.tensor([grids[index % len(grids)]])
        return {"pixel_values": noise(int(grid.prod()), width), "image_grid_thw": grid}

    def video(noise: Noise) -> tuple[Image, int]:
        grid = torch.tensor([[3, 6, 4]])
        return {"pixel_values_videos": noise(int(grid.prod()), width), "video_grid_thw": grid}, 3

    return image, video


def several_tiles(noise: Noise, index: int) -> Image:
    """Makes an image of Idefics3, with one to three tiles."""
    return {"pixel_values": noise(1, 1 + index % 3, 3, 16 * SIDE, 16 * SIDE)}


def tile_prompt(image: Image, length: int) -> list[int]:
    """Returns placeholders with a text token before each tile."""
    tiles = image["pixel_values"].shape[1]
    return ([BREAK] + [IMAGE] * (length // tiles)) * tiles


def padded_tiles(rows: list[list[Image]]) -> Image:
    """Joins the tiles of each prompt into one row, padded with black tiles."""
    if not any(rows):
        return {}
    tiles = [[image["pixel_values"][0] for image in row] for row in rows]
    most = max(sum(map(len, row)) for row in tiles)
    blank = next(image for row in tiles for image in row).new_zeros(most, 3, 16 * SIDE, 16 * SIDE)
    return {"pixel_values": torch.stack([torch.cat([*row, blank])[:most] for row in tiles])}


def pixtral_image(noise: Noise, index: int) -> Image:
    """Makes an image of Mistral 3, of its own size, padded to the largest of the batch."""
    shapes = [(32, 48), (64, 32), (48, 48), (16, 64)]
    height, width = shapes[index % len(shapes)]
    pixels = torch.zeros(1, 3, 64, 64)
    pixels[..., :height, :width] = noise(1, 3, height, width)
    return {
        "pixel_values": pixels.to(noise(1).dtype),
        "image_sizes": torch.tensor([[height, width]]),
    }


def pixtral_prompt(image: Image, length: int) -> list[int]:
    """Returns placeholders with a text token after each row of the raster."""
    height = int(image["image_sizes"][0, 0]) // 16
    return ([IMAGE] * (length // height) + [BREAK]) * height


def naflex(noise: Noise, index: int) -> Image:
    """Makes an image of LFM2-VL: patches of a raster of any shape, padded to the maximum."""
    rows, columns = [(4, 6), (6, 4), (4, 4)][index % 3]
    pixels = torch.zeros(1, 24, 3 * 8 * 8, dtype=noise(1).dtype)
    pixels[:, : rows * columns] = noise(1, rows * columns, 3 * 8 * 8)
    return {
        "pixel_values": pixels,
        "spatial_shapes": torch.tensor([[rows, columns]]),
        "pixel_attention_mask": (torch.arange(24) < rows * columns).long()[None],
    }


def gemma4_image(noise: Noise, index: int) -> Image:
    """Makes an image of Gemma 4: patches with positions, pooled three by three, padded."""
    rows, columns = [(12, 12), (12, 6), (6, 12)][index % 3]
    places = torch.full((1, 144, 2), -1)
    places[0, : rows * columns] = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    pixels = torch.zeros(1, 144, 3 * 4 * 4, dtype=noise(1).dtype)
    pixels[:, : rows * columns] = noise(1, rows * columns, 3 * 4 * 4)
    return {"pixel_values": pixels, "image_position_ids": places.flip(-1)}  # (x, y)
