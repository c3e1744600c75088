"""Encodes images at a smaller size than a transformers model's inputs have.

The model's encoding method is overridden, because `generate` encodes before it calls the model.
Its output has a row for each placeholder of the full image, NaN where there is no token; the call
is then shortened as for other methods. What follows is numbered as after a smaller image.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from gprune.device import require
from gprune.errors import UnsupportedModelError
from gprune.hf.choice import EncodedImage, ImageChoice, Selection, TokenChooser
from gprune.hf.model import PrunedModel
from gprune.hf.overrides import override_method
from gprune.hf.rewrite import Plan
from gprune.layouts import families_with, has_pixtral, patches_per_side
from gprune.pruners.downsampling import Downsampling
from gprune.pruners.image import ReducedImage
from gprune.pruners.raster import spread


class RasterChooser(TokenChooser):
    """Keeps the rows of an image's features that the smaller image filled."""

    pruner: Downsampling

    def choose(self, modality: str, images: Sequence[EncodedImage]) -> list[ImageChoice]:
        """Finds the rows of each image.

        Raises:
            ValueError: the prompt has a video, or features were encoded at full size.
        """
        if modality != "image":
            raise ValueError(
                f"{self.pruner.name} resizes images, but the prompt has a {modality}; sample fewer "
                "frames instead, or use evs"
            )
        return [self._choose_image(image) for image in images]

    def _choose_image(self, image: EncodedImage) -> ImageChoice:
        features = image.features
        groups = self.family.groups(self.model, "image", features, image.grid)
        (group,) = groups
        assert group.grid is not None  # families that take smaller images have rasters
        cells = smaller_cells(self.pruner, *group.grid).to(features.device)
        prefix = torch.arange(len(features) - len(group.rows), device=features.device)
        rows = torch.cat([prefix, group.rows[cells]])
        require(
            features[rows].isfinite().all() & (features.isfinite().all(1).sum() == len(rows)),
            f"image features were encoded without {self.pruner.name}, or hold NaN or infinite "
            "values; pass pixel_values instead of mm_encoder_outputs",
        )
        return ImageChoice(groups, ReducedImage(rows, features[rows], [cells]))


class DownsampledModel(PrunedModel):
    """A model that encodes smaller images; ``kept`` holds the positions that their tokens take."""

    pruner: Downsampling
    chooser_type = RasterChooser

    def __init__(self, model: PreTrainedModel, pruner: Downsampling, positions: str) -> None:
        """Prepares pruning; ``positions`` is ignored: positions are always compact."""
        super().__init__(model, pruner, "compact")
        if not self.family.takes_smaller_images or has_pixtral(model.config):
            raise UnsupportedModelError(
                f"{pruner.name} is not proven with images of another size in "
                f"{type(model).__name__} yet; it is with "
                f"{', '.join(families_with('takes_smaller_images'))}. Give the processor smaller "
                "images, or use average_pooling"
            )
        tower = self.family.tower(model)
        parameters = inspect.signature(tower.forward).parameters
        if not self._has_patch_rows and "interpolate_pos_encoding" not in parameters:
            raise UnsupportedModelError(
                f"{type(tower).__name__} cannot interpolate its position embeddings, so it "
                "takes no smaller images; use average_pooling instead"
            )

    @property
    def _has_patch_rows(self) -> bool:
        """Whether images come as rows of patches with a grid, not as squares of one size."""
        encode = self.model.base_model.get_image_features
        return "image_grid_thw" in inspect.signature(encode).parameters

    @contextmanager
    def patched(self) -> Iterator[None]:
        """Overrides the encoding method of images."""
        base = self.model.base_model
        encode = base.get_image_features
        smaller = self._encode_patches if self._has_patch_rows else self._encode_squares
        wrapped = functools.wraps(encode)(functools.partial(smaller, encode))
        with override_method(base, "get_image_features", wrapped):
            yield

    def plan(self, selections: list[Selection], mask: Tensor, past: int) -> Plan:
        """Plans as `PrunedModel.plan`; M-RoPE numbers rows and columns as of the smaller images."""
        plan = super().plan(selections, mask, past)
        if not self.family.multimodal_positions:
            return plan
        return replace(plan, position_shift=self._mrope_shift(selections[0]))

    def _encode_squares(self, encode: Any, pixel_values: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Encodes images [b, 3, h, w] of one size at a smaller one."""
        side = patches_per_side(self.model.config)
        raster = self.pruner.raster(side, side)
        if raster == (side, side):
            return encode(pixel_values, *args, **kwargs)
        patch = pixel_values.shape[-1] // side
        small = resize(pixel_values, raster[0] * patch, raster[1] * patch)
        output = encode(small, *args, interpolate_pos_encoding=True, **kwargs)
        return self._at_full_length(output, [(side, side)] * len(small))

    def _encode_patches(
        self, encode: Any, pixel_values: Tensor, image_grid_thw: Tensor, **kwargs: Any
    ) -> Any:
        """Encodes images that come as rows of patches, as Qwen's processors flatten them."""
        vision = self.model.config.vision_config
        merge, patch = vision.spatial_merge_size, vision.patch_size
        images, grids, rasters = [], [], []
        sizes = image_grid_thw.prod(1).tolist()
        for rows, grid in zip(torch.split(pixel_values, sizes), image_grid_thw, strict=True):
            t, height, width = grid.tolist()
            rasters.append((height // merge, width // merge))
            r, c = self.pruner.raster(*rasters[-1])
            grids.append([t, r * merge, c * merge])
            if (r * merge, c * merge) != (height, width):
                image = unflatten_patches(rows, height, width, merge, patch)
                small = resize(image[None], r * merge * patch, c * merge * patch)[0]
                rows = flatten_patches(small, merge, patch)
            images.append(rows)
        grid_thw = torch.tensor(grids, device=image_grid_thw.device, dtype=image_grid_thw.dtype)
        output = encode(torch.cat(images), image_grid_thw=grid_thw, **kwargs)
        return self._at_full_length(output, rasters)

    def _at_full_length(self, output: Any, rasters: list[tuple[int, int]]) -> Any:
        """Spreads an encoder's output over the placeholders of full images; NaN in between.

        `generate` compares the numbers of rows and placeholders when it repeats images for beams.
        """
        images = []
        for features, (rows, columns) in zip(output.pooler_output, rasters, strict=True):
            cells = smaller_cells(self.pruner, rows, columns).to(features.device)
            prefix = len(features) - len(cells)  # tokens before the raster, such as CLS
            full = features.new_full((prefix + rows * columns, features.shape[-1]), torch.nan)
            full[:prefix] = features[:prefix]
            full[cells + prefix] = features[prefix:]
            images.append(full)
        output.pooler_output = type(output.pooler_output)(images)
        return output

    def _mrope_shift(self, selection: Selection) -> Tensor:
        """Returns what is subtracted from M-RoPE's position ids, int64 [3, b, L]."""
        placeholder = selection.placeholder
        shift = torch.zeros(3, *placeholder.shape, dtype=torch.long, device=placeholder.device)
        indices = torch.split(placeholder.nonzero(), selection.lengths)  # (row, column) each
        for image, index in zip(selection.images, indices, strict=True):
            (group,), (cells,) = image.groups, image.reduced.kept
            assert group.grid is not None  # families that take smaller images have rasters
            rows, columns = group.grid
            r, c = self.pruner.raster(rows, columns)
            cells = cells.to(index.device)
            row, where = index[0, 0], index[cells, 1]
            number = torch.arange(len(cells), device=index.device)
            shift[1, row, where] += cells // columns - number // c
            shift[2, row, where] += cells % columns - number % c
            shift[:, row, index[-1, 1] + 1 :] += max(rows, columns) - max(r, c)
        return shift


def smaller_cells(pruner: Downsampling, rows: int, columns: int) -> Tensor:
    """Returns the cells of a full image's raster that the smaller image's tokens take, ascending.

    Args:
        pruner: the method.
        rows: of the full image's raster.
        columns: of the full image's raster.
    """
    r, c = pruner.raster(rows, columns)
    down, across = torch.tensor(spread(r, rows)), torch.tensor(spread(c, columns))
    return (down[:, None] * columns + across).flatten()


def resize(pixels: Tensor, height: int, width: int) -> Tensor:
    """Resizes images [b, channels, h, w], bicubic and antialiased, in the same dtype."""
    small = F.interpolate(pixels.float(), (height, width), mode="bicubic", antialias=True)
    return small.to(pixels.dtype)


def unflatten_patches(rows: Tensor, height: int, width: int, merge: int, patch: int) -> Tensor:
    """Returns the image [channels, h, w] of Qwen's patches [height · width, channels · patch²].

    Patches that are merged into one token are adjacent; the frames that a patch spans count as
    channels.

    Args:
        rows: the patches.
        height: number of patches.
        width: number of patches.
        merge: patches along a side of a token.
        patch: pixels along a side of a patch.
    """
    blocks = rows.view(height // merge, width // merge, merge, merge, -1, patch, patch)
    return blocks.permute(4, 0, 2, 5, 1, 3, 6).reshape(-1, height * patch, width * patch)


def flatten_patches(image: Tensor, merge: int, patch: int) -> Tensor:
    """Inverts `unflatten_patches`."""
    channels, height, width = image.shape
    block = merge * patch
    blocks = image.view(
        channels, height // block, merge, patch, width // block, merge, patch
    ).permute(1, 4, 2, 5, 0, 3, 6)
    return blocks.reshape(height * width // patch**2, -1)
