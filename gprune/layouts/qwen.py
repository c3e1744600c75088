"""Families with M-RoPE: Qwen-VL and GLM-4V."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from gprune.device import require
from gprune.layouts.arguments import cache_name, cache_of
from gprune.layouts.base import PIXELS, Family, Patches
from gprune.layouts.division import equal_rasters
from gprune.layouts.grids import grids_from_coordinates
from gprune.layouts.windows import window_order
from gprune.tokens import Group

GRIDS = {"image": "image_grid_thw", "video": "video_grid_thw"}


class QwenVL(Family):
    """Qwen2-VL and later: rasters of any shape; each frame of a video is a group.

    `generate` encodes images before it calls the model and does not pass the grids on, so they are
    read off the position ids. The encoder makes one frame of `temporal_patch_size` pictures.
    """

    multimodal_positions: ClassVar[bool] = True

    # HiPrune takes the 16th of Qwen2.5-VL's 32 layers.
    object_depth: ClassVar[float] = 16 / 32

    def check(self, call: dict[str, Any]) -> None:
        for modality, name in PIXELS.items():
            pixels, grid = call.get(name), call.get(GRIDS[modality])
            if pixels is not None and grid is not None:
                require(
                    grid.prod(-1).sum() == len(pixels),
                    f"{GRIDS[modality]} does not fit {name}, which has {len(pixels)} patches: pass "
                    "both as the processor returns them",
                )

    def grids(
        self, model: Any, positions: Tensor, placeholder: Tensor, lengths: Sequence[int]
    ) -> list[tuple[int, int, int] | None]:
        return grids_from_coordinates(positions, placeholder, lengths)

    def groups(
        self, model: Any, modality: str, features: Tensor, grid: tuple[int, int, int] | None
    ) -> list[Group]:
        if grid is None or grid[0] * grid[1] * grid[2] != len(features):
            raise ValueError(
                f"{modality} features have {len(features)} rows, but their position ids form a "
                f"grid of {grid}: pass image_grid_thw, video_grid_thw and mm_token_type_ids as the "
                "processor returns them"
            )
        kind = "image" if modality == "image" else "frame"
        return equal_rasters(len(features), grid[1], grid[2], kind, features.device)

    def token_values(self, model: Any, patches: Patches) -> list[Tensor]:
        # The patches of a token are adjacent.
        merged = model.config.vision_config.spatial_merge_size**2
        tokens = patches.values[0].view(-1, merged, patches.values.shape[-1]).mean(1)
        order = self.encoder_order(model.config, patches.call[GRIDS[patches.modality]])
        if order is not None:
            tokens = tokens[order.to(tokens.device).argsort()]
        return list(torch.split(tokens, list(patches.lengths)))

    def encoder_order(self, config: Any, grids: Tensor) -> Tensor | None:
        """Returns the raster index of each token inside the encoder, int64 [n].

        None if the encoder keeps tokens in raster order.
        """
        return None

    def default_positions(self, model: Any, call: dict[str, Any], past: int) -> Tensor:
        types = call.get("mm_token_type_ids")
        has_grid = any(call.get(name) is not None for name in GRIDS.values())
        has_grid = has_grid or call.get("second_per_grid_ts") is not None
        if has_grid and types is not None and past == 0:
            return multimodal_positions(model, call)
        return text_positions(model, call, past)


class Qwen25VL(QwenVL):
    """Qwen2.5-VL: its encoder sorts tokens by attention window."""

    def encoder_order(self, config: Any, grids: Tensor) -> Tensor | None:
        vision = config.vision_config
        sizes = (vision.spatial_merge_size, vision.window_size, vision.patch_size)
        return window_order(grids, *sizes)


class Qwen3VL(QwenVL):
    """Qwen3-VL: early layers add deepstack features, which are pruned to the same rows."""

    def shorten(self, output: Any, kept: Sequence[Tensor], images: list[Tensor]) -> Any:
        shortened = super().shorten(output, kept, images)
        shortened.deepstack_features = [
            tuple(image[rows] for image, rows in zip(layer, kept, strict=True))
            for layer in output.deepstack_features
        ]
        return shortened


class Glm4V(QwenVL):
    """GLM-4V: the frames of a video use the image placeholder."""

    def token_id(self, model: Any, modality: str) -> int:
        return super().token_id(model, "image")


def multimodal_positions(model: Any, call: dict[str, Any]) -> Tensor:
    """Returns the position ids of a first call that has images or videos, [3, b, L]."""
    ids = call["input_ids"]
    timing = call.get("second_per_grid_ts")
    compute = model.base_model.compute_3d_position_ids
    return compute(
        input_ids=ids,
        # Only its shape is read.
        inputs_embeds=ids.new_empty(*ids.shape, 0),
        attention_mask=call.get("attention_mask"),
        mm_token_type_ids=call["mm_token_type_ids"],
        **{name: call.get(name) for name in GRIDS.values()},
        **{cache_name(compute): cache_of(call)},
        # Only models that use it have this argument.
        **({} if timing is None else {"second_per_grid_ts": timing}),
    )


def text_positions(model: Any, call: dict[str, Any], past: int) -> Tensor:
    """Returns the position ids of a call without images, [3, b, L].

    Tokens are counted from the attention mask, and shifted by as much as the images of earlier
    calls shifted them (``rope_deltas``).
    """
    ids, mask = call["input_ids"], call.get("attention_mask")
    b, length = ids.shape
    if mask is None:
        text = torch.arange(past, past + length, device=ids.device).expand(b, -1)
    else:
        text = (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)[:, -length:]
    deltas = model.base_model.rope_deltas
    if past and deltas is not None:
        text = text + deltas.to(text).repeat_interleave(b // len(deltas), 0)
    return text.expand(3, -1, -1)
