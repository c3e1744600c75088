"""LLaVA-1.5, and the families that add a canvas of tiles or frames of video to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gprune.layouts.anyres import tile_count
from gprune.layouts.base import Family, Patches
from gprune.layouts.division import thumbnail_and_canvas, video_frames
from gprune.layouts.grids import grids_from_row_breaks
from gprune.layouts.square import SquareRaster
from gprune.layouts.towers import (
    cls_tokens,
    drop_unused_cls,
    has_pixtral,
    patches_per_side,
    tile_size,
)
from gprune.tokens import Group


def row_projector(model: Any) -> Callable[[Tensor], Tensor] | None:
    """Returns the projector of a LLaVA model; None if it reads several layers of its encoder."""
    if not isinstance(getattr(model.config, "vision_feature_layer", None), int):
        return None
    projector = model.base_model.multi_modal_projector

    def project(vision: Tensor) -> Tensor:
        # The model's dtype: a quantised projector can have integer weights, or no parameters.
        projected: Tensor = projector(vision.to(model.dtype)[None])[0]
        return projected

    return project


class Llava(SquareRaster):
    """LLaVA-1.5, and models of its class with a Pixtral tower, which have rasters of any shape."""

    def projector(self, model: Any, modality: str) -> Callable[[Tensor], Tensor] | None:
        return None if has_pixtral(model.config) else row_projector(model)

    def prefix_tokens(self, config: Any) -> int:
        return cls_tokens(config)

    def tokens_per_image(self, config: Any) -> int | None:
        return None if has_pixtral(config) else super().tokens_per_image(config)

    def grids(
        self, model: Any, positions: Tensor, placeholder: Tensor, lengths: Sequence[int]
    ) -> list[tuple[int, int, int] | None]:
        if has_pixtral(model.config):
            return grids_from_row_breaks(positions, placeholder, lengths)
        return super().grids(model, positions, placeholder, lengths)

    def groups(
        self, model: Any, modality: str, features: Tensor, grid: tuple[int, int, int] | None
    ) -> list[Group]:
        if has_pixtral(model.config):
            return Family.groups(self, model, modality, features, grid)
        return super().groups(model, modality, features, grid)


class Mistral3(Family):
    """Mistral Small 3.1 and later: a Pixtral tower whose patches are merged 2 x 2."""

    def grids(
        self, model: Any, positions: Tensor, placeholder: Tensor, lengths: Sequence[int]
    ) -> list[tuple[int, int, int] | None]:
        return grids_from_row_breaks(positions, placeholder, lengths)


class LlavaNext(Family):
    """LLaVA-NeXT: the thumbnail and the unpadded canvas of tiles are two groups.

    Each canvas row ends with the `image_newline` token, which is in no group. G-Prune (arXiv
    2501.02268) also prunes thumbnail and canvas separately at the same ratio.
    """

    def projector(self, model: Any, modality: str) -> Callable[[Tensor], Tensor] | None:
        # Frames of video are pooled after the projector or before it, so they have none.
        return row_projector(model) if modality == "image" else None

    def layout(
        self, tokens: int, rows: int, columns: int, device: torch.device | None = None
    ) -> list[Group]:
        return thumbnail_and_canvas(tokens, rows, columns, device)

    def groups(
        self, model: Any, modality: str, features: Tensor, grid: tuple[int, int, int] | None
    ) -> list[Group]:
        thumbnail = patches_per_side(model.config) ** 2
        newline = model.base_model.image_newline.to(features)
        # `generate` passes features without the image size, so the shape of the canvas is read off
        # its newlines, which end each row.
        canvas = features[thumbnail:]
        ends = (canvas == newline).all(-1).nonzero().squeeze(1)
        width = len(canvas) // max(len(ends), 1)
        regular = torch.arange(1, len(ends) + 1, device=features.device) * width - 1
        if len(ends) == 0 or len(ends) * width != len(canvas) or not torch.equal(ends, regular):
            raise ValueError(
                f"image features have {len(features)} rows, expected a thumbnail of {thumbnail} "
                "rows and then a canvas whose rows end with image_newline: they are part of an "
                "image or come from another model"
            )
        return self.layout(len(features), len(ends), width - 1, features.device)

    def token_values(self, model: Any, patches: Patches) -> list[Tensor]:
        values = drop_unused_cls(self.tower(model), model.config, patches.values)
        packed, _ = model.base_model.pack_image_features(
            torch.split(values, self.tile_counts(model.config, patches.call)),
            patches.call["image_sizes"],
            image_newline=values.new_zeros(values.shape[-1]),
            **self.packing_arguments(model.config, patches.call),
        )
        return list(packed)

    def tile_counts(self, config: Any, call: dict[str, Any]) -> list[int]:
        """Returns the number of tiles of each image, thumbnail included."""
        pinpoints, tile = config.image_grid_pinpoints, tile_size(config)
        sizes = (torch.as_tensor(size).tolist() for size in call["image_sizes"])
        return [tile_count(size, pinpoints, tile) for size in sizes]

    def packing_arguments(self, config: Any, call: dict[str, Any]) -> dict[str, Any]:
        """Returns further arguments of the model's ``pack_image_features``."""
        return {"vision_feature_select_strategy": None}  # the model reads it for a warning only


class LlavaOnevision(LlavaNext):
    """LLaVA-OneVision: images as in LLaVA-NeXT; each frame of a video is a group.

    A video ends with one newline, which is in no group.
    """

    def groups(
        self, model: Any, modality: str, features: Tensor, grid: tuple[int, int, int] | None
    ) -> list[Group]:
        if modality == "image":
            return super().groups(model, modality, features, grid)
        side = math.ceil(patches_per_side(model.config) / 2)  # frames are pooled 2 x 2
        return video_frames(len(features), side, newlines=1, device=features.device)

    def tile_counts(self, config: Any, call: dict[str, Any]) -> list[int]:
        counts = super().tile_counts(config, call)
        images_per_prompt = call.get("batch_num_images")
        if images_per_prompt is None:
            return counts
        # An image is cut into tiles only if it is the only one of its prompt.
        alone = [int(number) == 1 for number in images_per_prompt for _ in range(int(number))]
        return [count if cut else 1 for count, cut in zip(counts, alone, strict=True)]

    def packing_arguments(self, config: Any, call: dict[str, Any]) -> dict[str, Any]:
        return {
            "vision_aspect_ratio": call.get("vision_aspect_ratio") or config.vision_aspect_ratio
        }

    def token_values(self, model: Any, patches: Patches) -> list[Tensor]:
        if patches.modality == "image":
            return super().token_values(model, patches)
        values = drop_unused_cls(self.tower(model), model.config, patches.values)
        pooled = model.base_model.apply_pooling(values)
        videos = pooled.reshape(len(patches.call["pixel_values_videos"]), -1, pooled.shape[-1])
        return list(F.pad(videos, (0, 0, 0, 1)))  # the newline


class LlavaNextVideo(LlavaNext):
    """LLaVA-NeXT-Video: images as in LLaVA-NeXT; each pooled frame of a video is a group."""

    def features(self, model: Any, output: Any) -> list[Tensor]:
        # transformers 5.19 keeps the frames of a video apart: [frames, n, d]
        return [features.flatten(0, -2) for features in output.pooler_output]

    def shorten(self, output: Any, kept: Sequence[Tensor], images: list[Tensor]) -> Any:
        shortened = super().shorten(output, kept, images)
        if isinstance(output.pooler_output, Tensor) and output.pooler_output.ndim == 4:
            frames = output.pooler_output.shape[1]
            shortened.pooler_output = shortened.pooler_output.unflatten(1, (frames, -1))
        return shortened

    def groups(
        self, model: Any, modality: str, features: Tensor, grid: tuple[int, int, int] | None
    ) -> list[Group]:
        if modality == "image":
            return super().groups(model, modality, features, grid)
        side = patches_per_side(model.config) // int(model.config.spatial_pool_stride)
        return video_frames(len(features), side, newlines=0, device=features.device)

    def token_values(self, model: Any, patches: Patches) -> list[Tensor]:
        if patches.modality == "image":
            return super().token_values(model, patches)
        values = drop_unused_cls(self.tower(model), model.config, patches.values)
        side = patches_per_side(model.config)
        raster = values.view(len(values), side, side, -1).permute(0, 3, 1, 2)  # [b, c, side, side]
        pooled = F.avg_pool2d(raster, int(model.config.spatial_pool_stride)).flatten(2).mT
        return list(pooled.reshape(len(patches.call["pixel_values_videos"]), -1, pooled.shape[-1]))
