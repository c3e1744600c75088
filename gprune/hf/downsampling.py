"""Shows a transformers model smaller pictures than its inputs hold.

What encodes images is replaced for the time being, so `generate`, which encodes before it calls the
model, gets the smaller picture's features too. The rest is the hook's work: a placeholder for each
feature stays, spread over the raster, and what follows is numbered as after a smaller picture.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from gprune.device import require
from gprune.errors import UnsupportedModelError
from gprune.hf.hook import EncodedImage, ImageChoice, Plan, PrunedModel, Selection
from gprune.hf.signals import replaced
from gprune.layouts import SquareTiles, has_pixtral, patches_a_side
from gprune.pruners.baselines import spread
from gprune.pruners.downsampling import Downsampling

# Families whose encoders take pictures of another size, proven by the tests.
FAMILIES = ("llava", "qwen2_vl", "qwen2_5_vl")


@dataclass(frozen=True, eq=False)
class MovedPlan(Plan):
    """A plan for M-RoPE, whose rows and columns are numbered anew.

    Attributes:
        moved: by how much time, row and column of each position fall, int64 [3, b, L].
    """

    moved: Tensor


class DownsampledModel(PrunedModel):
    """A model that sees smaller pictures; ``kept`` tells where in the raster their tokens stand."""

    pruner: Downsampling

    def __init__(self, model: PreTrainedModel, pruner: Downsampling) -> None:
        super().__init__(model, pruner, "compact")
        if self.family.name not in FAMILIES or has_pixtral(model.config):
            raise UnsupportedModelError(
                f"{pruner.name} has not been proven with pictures of another size in "
                f"{type(model).__name__} yet; it has in {', '.join(FAMILIES)}. Give the processor "
                "smaller pictures, or take average_pooling"
            )
        if isinstance(self.family, SquareTiles):
            tower = model.base_model.vision_tower
            if "interpolate_pos_encoding" not in inspect.signature(tower.forward).parameters:
                raise UnsupportedModelError(
                    f"{type(tower).__name__} cannot interpolate its position embeddings, so it "
                    "takes no smaller pictures; take average_pooling instead"
                )

    @contextmanager
    def inside(self) -> Iterator[None]:
        base = self.model.base_model
        encode = base.get_image_features
        smaller = self._squares if isinstance(self.family, SquareTiles) else self._patches
        shrunk = functools.wraps(encode)(functools.partial(smaller, encode))
        with replaced(base, "get_image_features", shrunk):
            yield

    def _squares(self, encode: Any, pixel_values: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Encodes images [b, 3, h, w] of one size at a smaller one."""
        side = patches_a_side(self.model.config)
        raster = self.pruner.raster(side, side)
        if raster == (side, side):
            return encode(pixel_values, *args, **kwargs)
        patch = pixel_values.shape[-1] // side
        small = resized(pixel_values, raster[0] * patch, raster[1] * patch)
        output = encode(small, *args, interpolate_pos_encoding=True, **kwargs)
        assert isinstance(self.family, SquareTiles)
        others = self.family.others(self.model.config)
        return self._at_full_length(output, [(side, side)] * len(small), others)

    def _patches(
        self, encode: Any, pixel_values: Tensor, image_grid_thw: Tensor, **kwargs: Any
    ) -> Any:
        """Encodes images that come as rows of patches, as Qwen's processors flatten them."""
        vision = self.model.config.vision_config
        merge, patch = vision.spatial_merge_size, vision.patch_size
        images, grids, rasters = [], [], []
        sizes = image_grid_thw.prod(1).tolist()
        for rows, grid in zip(torch.split(pixel_values, sizes), image_grid_thw, strict=True):
            t, high, wide = grid.tolist()
            rasters.append((high // merge, wide // merge))
            r, c = self.pruner.raster(*rasters[-1])
            grids.append([t, r * merge, c * merge])
            if (r * merge, c * merge) != (high, wide):
                picture = unflattened(rows, high, wide, merge, patch)
                small = resized(picture[None], r * merge * patch, c * merge * patch)[0]
                rows = flattened(small, merge, patch)
            images.append(rows)
        shrunk = torch.tensor(grids, device=image_grid_thw.device, dtype=image_grid_thw.dtype)
        output = encode(torch.cat(images), image_grid_thw=shrunk, **kwargs)
        return self._at_full_length(output, rasters)

    def _choose_images(self, modality: str, images: Sequence[EncodedImage]) -> list[ImageChoice]:
        if modality != "image":
            raise ValueError(
                f"{self.pruner.name} resizes images, but the prompt has a {modality}; sample fewer "
                "frames instead, or take evs"
            )
        return [self._choose_image(image) for image in images]

    def _choose_image(self, image: EncodedImage) -> ImageChoice:
        features = image.features
        (group,) = self.family.groups(self.model, "image", features, image.grid)
        assert group.grid is not None  # both kinds of families have rasters
        cells = self._cells(*group.grid).to(features.device)
        others = torch.arange(len(features) - len(group.rows), device=features.device)
        rows = torch.cat([others, group.rows[cells]])
        require(
            features[rows].isfinite().all() & (features.isfinite().all(1).sum() == len(rows)),
            f"image features were encoded without {self.pruner.name}, or hold NaN or infinite "
            "values; pass pixel_values instead of mm_encoder_outputs",
        )
        kept = (cells, len(group.rows), group.grid, group.kind)
        return ImageChoice(rows, features[rows], [kept])

    def _cells(self, rows: int, columns: int) -> Tensor:
        """Where the tokens of a smaller picture stand in the raster of the full one, ascending."""
        r, c = self.pruner.raster(rows, columns)
        down, across = torch.tensor(spread(r, rows)), torch.tensor(spread(c, columns))
        return (down[:, None] * columns + across).flatten()

    def _at_full_length(self, output: Any, rasters: list[tuple[int, int]], others: int = 0) -> Any:
        """An encoder's output with a row for each placeholder, NaN where there is no token.

        `generate` counts rows against placeholders when it deals images out to beams.
        """
        images = []
        for features, (rows, columns) in zip(output.pooler_output, rasters, strict=True):
            whole = features.new_full((others + rows * columns, features.shape[-1]), torch.nan)
            whole[:others] = features[:others]
            whole[self._cells(rows, columns).to(features.device) + others] = features[others:]
            images.append(whole)
        output.pooler_output = type(output.pooler_output)(images)
        return output

    def _plan(self, selections: list[Selection], mask: Tensor, past: int) -> Plan:
        plan = super()._plan(selections, mask, past)
        if not self.family.multimodal_positions:
            return plan
        moved = self._moved(selections[0])
        # After an image all three fall alike, and so will the positions of what is generated.
        return MovedPlan(plan.order, plan.real, plan.past, plan.length, moved[0], moved)

    def _compacted(self, positions: Tensor, plan: Plan) -> Tensor:
        if not isinstance(plan, MovedPlan):
            return super()._compacted(positions, plan)
        # A fourth row, before M-RoPE's three, numbers the text alone.
        fourth = torch.zeros_like(plan.moved[: len(positions) - 3])
        return positions - torch.cat([fourth, plan.moved])

    def _moved(self, selection: Selection) -> Tensor:
        """By how much M-RoPE's positions fall, int64 [3, b, L]: as for the smaller pictures."""
        placeholder = selection.placeholder
        moved = torch.zeros(3, *placeholder.shape, dtype=torch.long, device=placeholder.device)
        places = torch.split(placeholder.nonzero(), selection.lengths)
        for image, place in zip(selection.images, places, strict=True):
            ((cells, _, raster, _),) = image.groups
            assert raster is not None  # `_choose_image` gives one
            rows, columns = raster
            r, c = self.pruner.raster(rows, columns)
            row, where = place[0, 0], place[cells.to(place.device), 1]
            number = torch.arange(len(cells), device=place.device)
            moved[1, row, where] += cells.to(place.device) // columns - number // c
            moved[2, row, where] += cells.to(place.device) % columns - number % c
            moved[:, row, place[-1, 1] + 1 :] += max(rows, columns) - max(r, c)
        return moved


def resized(pixels: Tensor, height: int, width: int) -> Tensor:
    """Pictures [b, channels, h, w] at another size, in the same dtype."""
    small = F.interpolate(pixels.float(), (height, width), mode="bicubic", antialias=True)
    return small.to(pixels.dtype)


def unflattened(rows: Tensor, high: int, wide: int, merge: int, patch: int) -> Tensor:
    """A picture [channels, h, w] out of Qwen's patches, [high · wide, channels · patch · patch].

    ``high`` and ``wide`` count patches. Those that are merged into one token are neighbours; the
    frames that a patch spans count as channels.
    """
    blocks = rows.view(high // merge, wide // merge, merge, merge, -1, patch, patch)
    return blocks.permute(4, 0, 2, 5, 1, 3, 6).reshape(-1, high * patch, wide * patch)


def flattened(picture: Tensor, merge: int, patch: int) -> Tensor:
    """What `unflattened` takes apart, put together again."""
    channels, height, width = picture.shape
    block = merge * patch
    blocks = picture.view(
        channels, height // block, merge, patch, width // block, merge, patch
    ).permute(1, 4, 2, 5, 0, 3, 6)
    return blocks.reshape(height * width // patch**2, -1)
