"""Families whose vision tower takes square images of one size."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from gprune.layouts.base import Family, Patches
from gprune.layouts.division import equal_rasters
from gprune.layouts.towers import drop_unused_cls, patches_per_side
from gprune.tokens import Group


class SquareRaster(Family):
    """Families with a square raster of one size per image."""

    def side(self, config: Any) -> int:
        """Returns the number of visual tokens along one side of the raster."""
        return patches_per_side(config)

    def prefix_tokens(self, config: Any) -> int:
        """Returns the number of tokens before the raster (a CLS token); they are in no group."""
        return 0

    def tokens_per_image(self, config: Any) -> int | None:
        return self.prefix_tokens(config) + self.side(config) ** 2

    def groups(
        self, model: Any, modality: str, features: Tensor, grid: tuple[int, int, int] | None
    ) -> list[Group]:
        side, prefix = self.side(model.config), self.prefix_tokens(model.config)
        if len(features) != prefix + side * side:
            raise ValueError(
                f"image features have {len(features)} rows, expected {prefix + side * side}: they "
                "are part of an image or come from another model"
            )
        return self.layout(len(features), side, side, features.device)

    def token_values(self, model: Any, patches: Patches) -> list[Tensor]:
        config = model.config
        values = drop_unused_cls(self.tower(model), config, patches.values)
        prefix, side = self.prefix_tokens(config), self.side(config)
        merge = patches_per_side(config) // side
        blocks = (len(values), side, merge, side, merge, values.shape[-1])
        raster = values[:, prefix:].reshape(blocks).mean((2, 4))  # [b, side, side, c]
        return list(torch.cat([values[:, :prefix], raster.flatten(1, 2)], 1))


class TiledImages(SquareRaster):
    """Families that cut an image into square tiles; to the model each tile is an image."""

    def layout(
        self, tokens: int, rows: int, columns: int, device: torch.device | None = None
    ) -> list[Group]:
        return equal_rasters(tokens, rows, columns, "tile", device)


class InternVL(TiledImages):
    """InternVL: tiles of 448 pixels; patches are merged 2 x 2."""

    def side(self, config: Any) -> int:
        return int(patches_per_side(config) * config.downsample_ratio)


class CohereVision(TiledImages):
    """Aya Vision and Command A Vision: patches are merged 2 x 2."""

    def side(self, config: Any) -> int:
        return patches_per_side(config) // int(config.downsample_factor)


class Gemma3(SquareRaster):
    """Gemma 3: patches are pooled to a fixed number of tokens, with bidirectional attention."""

    def side(self, config: Any) -> int:
        return math.isqrt(config.mm_tokens_per_image)


class PaliGemma(SquareRaster):
    """PaliGemma: position ids start at 1; image and prompt have bidirectional attention."""

    def default_positions(self, model: Any, call: dict[str, Any], past: int) -> Tensor:
        return super().default_positions(model, call, past) + 1


class Idefics3(TiledImages):
    """Idefics3 and SmolVLM.

    The encoder returns one tensor per prompt, with the tiles of all its images; in transformers
    5.19 one tensor with all tiles.
    """

    def side(self, config: Any) -> int:
        return patches_per_side(config) // int(config.scale_factor)

    def features(self, model: Any, output: Any) -> list[Tensor]:
        tile = self.side(model.config) ** 2
        prompts = [prompt for prompt in output.pooler_output if len(prompt)]
        return [part for prompt in prompts for part in torch.split(prompt, tile)]


class Llama4(TiledImages):
    """Llama 4: patches are merged 2 x 2.

    The model takes the output of the vision tower and projects it itself. So pruners choose among
    projected features, and `shorten` removes rows from the unprojected output.
    """

    takes_features: ClassVar[bool] = False

    def side(self, config: Any) -> int:
        return int(patches_per_side(config) * config.vision_config.pixel_shuffle_ratio)

    def features(self, model: Any, output: Any) -> list[Tensor]:
        with torch.no_grad():
            return list(model.multi_modal_projector(output.last_hidden_state))

    def shorten(self, output: Any, kept: Sequence[Tensor], images: list[Tensor]) -> Any:
        shortened = copy.copy(output)
        tiles = zip(output.last_hidden_state, kept, strict=True)
        shortened.last_hidden_state = torch.cat([tile[rows] for tile, rows in tiles])
        return shortened
