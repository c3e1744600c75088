"""What is particular to each model family, and nothing else.

A family is an adapter of a few lines: how its encoder output divides into groups of tokens. The
rest of `gprune.hf` knows no family.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from gprune.device import require
from gprune.errors import UnsupportedModelError

# Where a call holds each modality's pixels.
PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


@dataclass(frozen=True, eq=False)
class Group:
    """Rows of an image's (or video's) features that are pruned together.

    Attributes:
        rows: which rows of those features, int64 [n], ascending.
        grid: (rows, columns) of the raster they form, or None.
        kind: what they are, one of `gprune.budget.KINDS`.
    """

    rows: Tensor
    grid: tuple[int, int] | None
    kind: str = "image"


@dataclass(frozen=True, eq=False)
class Patches:
    """What a vision encoder knows of the patches of one call.

    Attributes:
        values: of every patch (and CLS token) as the encoder sees them, [b, patches, c].
        modality: ``image`` or ``video``.
        call: the arguments of the encoding method.
        lengths: tokens of each image.
    """

    values: Tensor
    modality: str
    call: dict[str, Any]
    lengths: Sequence[int]


@dataclass(frozen=True)
class Family:
    """A model family; the defaults fit models with one raster of patches an image.

    Attributes:
        name: as `gprune.families()` gives it.
        architectures: class names of the models with a language-modelling head.
        title: the name that people know it by.
        divided: what is pruned together, for the table of families.
        tier: 1 proven by every check, 2 proven where the checks apply, 3 experimental.
        modalities: ``image``, ``video`` or both, as the model takes them.
    """

    # Whether position ids have rows for time, row and column.
    multimodal_positions: ClassVar[bool] = False

    # Whether the model takes projected features, into which others can be merged.
    takes_features: ClassVar[bool] = True

    # Whether vision tokens are no positions of the sequence, but attended to across.
    cross_attention: ClassVar[bool] = False

    name: str
    architectures: tuple[str, ...]
    title: str
    divided: str = "an image"
    tier: int = 1
    modalities: tuple[str, ...] = ("image",)

    def tokens_an_image(self, config: Any) -> int | None:
        """Visual tokens of every image (or tile), or None where they depend on its shape."""
        return None

    def encode(self, model: Any, modality: str, call: dict[str, Any]) -> Any:
        """Runs the vision encoder on a call's images or videos, as `generate` does.

        ``call`` stays as it is; `encoder_arguments` are what the encoder takes from it.
        """
        encoder = getattr(model.base_model, f"get_{modality}_features")
        arguments = {name: call[name] for name in self.encoder_arguments(model, modality, call)}
        return encoder(**arguments, return_dict=True)

    def encoder_arguments(self, model: Any, modality: str, call: dict[str, Any]) -> set[str]:
        """The names of the arguments in ``call`` that belong to the encoder."""
        encoder = getattr(model.base_model, f"get_{modality}_features")
        return (set(inspect.signature(encoder).parameters) - {"kwargs"}) & call.keys()

    def check(self, call: dict[str, Any]) -> None:
        """Requires that the pixels of a call and what describes them belong together.

        Raises:
            ValueError: they do not.
        """

    def token_id(self, model: Any, modality: str) -> int:
        """The placeholder of a modality."""
        return getattr(model.config, f"{modality}_token_id")

    def features(self, model: Any, output: Any) -> list[Tensor]:
        """The projected features of each image in the order of the prompt, each [n, d]."""
        return list(output.pooler_output)

    def tower(self, model: Any) -> Any:
        """The vision encoder."""
        base = model.base_model
        names = ("vision_tower", "visual", "vision_model")
        return next(getattr(base, name) for name in names if hasattr(base, name))

    def per_token(self, model: Any, patches: Patches) -> list[Tensor]:
        """What the encoder knows of patches, for the tokens that the model makes of them.

        Args:
            model: the model.
            patches: what the encoder knows; several patches of one token are averaged.

        Returns:
            for each image values [n, c]; those of tokens in no group mean nothing.

        Raises:
            UnsupportedModelError: how the family makes tokens of patches has not been proven.
        """
        raise UnsupportedModelError(
            f"{self.title} makes tokens of patches in a way that attention cannot be traced "
            "through yet; take a method that needs features alone, such as graph_cover"
        )

    def grids(
        self, model: Any, positions: Tensor, placeholder: Tensor, lengths: Sequence[int]
    ) -> list[tuple[int, int, int] | None]:
        """(frames, rows, columns) of each image, where position ids tell; else None.

        Args:
            model: the model.
            positions: position ids of the call, [..., b, L].
            placeholder: where the modality's placeholders are, bool [b, L].
            lengths: rows of each image's features.
        """
        return [None] * len(lengths)

    def groups(
        self, model: Any, modality: str, features: Tensor, grid: tuple[int, int, int] | None
    ) -> list[Group]:
        """How one image's features [n, d] divide; rows in no group are always kept."""
        rows = torch.arange(len(features), device=features.device)
        return [Group(rows, None if grid is None else grid[1:])]

    def shorten(self, output: Any, kept: Sequence[Tensor], images: list[Tensor]) -> Any:
        """A copy of an encoder output with ``images`` [k, d] in the place of the features.

        ``kept`` tells which rows they come from, for what else the output has of them.
        """
        shortened = copy.copy(output)
        container = type(output.pooler_output)
        # A tensor holds images of one size, of which equally many rows are kept.
        shortened.pooler_output = (
            torch.stack(images) if issubclass(container, Tensor) else container(images)
        )
        return shortened

    def default_positions(self, model: Any, call: dict[str, Any], past: int) -> Tensor:
        """The position ids that the model takes by default, [..., b, L] (b may be 1).

        ``past`` positions were seen before.
        """
        ids: Tensor = call["input_ids"]
        return torch.arange(past, past + ids.shape[1], device=ids.device).unsqueeze(0)


class SquareTiles(Family):
    """Families whose vision tower sees squares of one size: a square raster an image or tile."""

    kind: ClassVar[str] = "image"

    def side(self, config: Any) -> int:
        """Visual tokens along one side of the square."""
        return patches_a_side(config)

    def others(self, config: Any) -> int:
        """Tokens before the raster that are no patches: kept, and no nodes of the graph."""
        return 0

    def tokens_an_image(self, config: Any) -> int | None:
        return self.others(config) + self.side(config) ** 2

    def groups(
        self, model: Any, modality: str, features: Tensor, grid: tuple[int, int, int] | None
    ) -> list[Group]:
        side, others = self.side(model.config), self.others(model.config)
        if len(features) != others + side * side:
            raise ValueError(
                f"image features have {len(features)} rows, expected {others + side * side}: they "
                "are part of an image or come from another model"
            )
        rows = torch.arange(others, len(features), device=features.device)
        return [Group(rows, (side, side), self.kind)]

    def per_token(self, model: Any, patches: Patches) -> list[Tensor]:
        config = model.config
        values = selected(self.tower(model), config, patches.values)
        others, side = self.others(config), self.side(config)
        merge = patches_a_side(config) // side
        sizes = (len(values), side, merge, side, merge, values.shape[-1])
        raster = values[:, others:].reshape(sizes).mean((2, 4))
        return list(torch.cat([values[:, :others], raster.flatten(1, 2)], 1))


class Llava(SquareTiles):
    """LLaVA-1.5, and the models of its class with a Pixtral tower (see `raster_of_runs`)."""

    def others(self, config: Any) -> int:
        return cls_tokens(config)

    def tokens_an_image(self, config: Any) -> int | None:
        return None if has_pixtral(config) else super().tokens_an_image(config)

    def grids(
        self, model: Any, positions: Tensor, placeholder: Tensor, lengths: Sequence[int]
    ) -> list[tuple[int, int, int] | None]:
        if has_pixtral(model.config):
            return raster_of_runs(positions, placeholder, lengths)
        return super().grids(model, positions, placeholder, lengths)

    def groups(
        self, model: Any, modality: str, features: Tensor, grid: tuple[int, int, int] | None
    ) -> list[Group]:
        if has_pixtral(model.config):
            return Family.groups(self, model, modality, features, grid)
        return super().groups(model, modality, features, grid)


class Mistral3(Family):
    """Mistral Small 3.1 and later: a Pixtral tower whose patches are merged two by two."""

    def grids(
        self, model: Any, positions: Tensor, placeholder: Tensor, lengths: Sequence[int]
    ) -> list[tuple[int, int, int] | None]:
        return raster_of_runs(positions, placeholder, lengths)


class InternVL(SquareTiles):
    """InternVL: every tile of 448 pixels is an image of its own, its patches merged two by two."""

    kind: ClassVar[str] = "tile"

    def side(self, config: Any) -> int:
        return int(patches_a_side(config) * config.downsample_ratio)


class CohereVision(SquareTiles):
    """Aya Vision and Command A Vision: every tile is an image, its patches merged two by two."""

    kind: ClassVar[str] = "tile"

    def side(self, config: Any) -> int:
        return patches_a_side(config) // int(config.downsample_factor)


class Gemma3(SquareTiles):
    """Gemma 3: patches are pooled to a fixed number of tokens, which see each other both ways."""

    def side(self, config: Any) -> int:
        return math.isqrt(config.mm_tokens_per_image)


class PaliGemma(SquareTiles):
    """PaliGemma: positions count from 1; image and prompt see each other both ways."""

    def default_positions(self, model: Any, call: dict[str, Any], past: int) -> Tensor:
        return super().default_positions(model, call, past) + 1


class Idefics3(SquareTiles):
    """Idefics3 and SmolVLM: every tile of an image is an image of its own.

    The encoder's output has one tensor for each prompt, with the tiles of all its images; in
    transformers 5.19 one tensor of all tiles.
    """

    kind: ClassVar[str] = "tile"

    def side(self, config: Any) -> int:
        return patches_a_side(config) // int(config.scale_factor)

    def features(self, model: Any, output: Any) -> list[Tensor]:
        tile = self.side(model.config) ** 2
        prompts = [prompt for prompt in output.pooler_output if len(prompt)]
        return [part for prompt in prompts for part in torch.split(prompt, tile)]


class LlavaNext(Family):
    """LLaVA-NeXT: the thumbnail and the unpadded canvas of tiles are two groups.

    Each canvas row ends with the `image_newline` token, which is always kept and belongs to no
    group. (G-Prune, arXiv 2501.02268, prunes thumbnail and canvas apart at the same ratio.)
    """

    def groups(
        self, model: Any, modality: str, features: Tensor, grid: tuple[int, int, int] | None
    ) -> list[Group]:
        side = patches_a_side(model.config)
        thumbnail = side * side
        newline = model.base_model.image_newline.to(features)
        # `generate` hands over features without the image's size, so the canvas is read off its
        # newlines: they repeat once a row.
        canvas = features[thumbnail:]
        ends = (canvas == newline).all(-1).nonzero().squeeze(1)
        width = len(canvas) // max(len(ends), 1)
        regular = torch.arange(1, len(ends) + 1, device=features.device) * width - 1
        if len(ends) == 0 or len(ends) * width != len(canvas) or not torch.equal(ends, regular):
            raise ValueError(
                f"image features have {len(features)} rows, which are no thumbnail of {thumbnail} "
                "followed by rows that end with image_newline: they are part of an image or come "
                "from another model"
            )
        rows = torch.arange(len(features), device=features.device)
        groups = [Group(rows[:thumbnail], (side, side), "thumbnail")]
        if width > 1:  # an image of one tile has a newline and no canvas
            raster = rows[thumbnail:].view(len(ends), width)[:, :-1]
            groups.append(Group(raster.flatten(), (len(ends), width - 1), "canvas"))
        return groups

    def per_token(self, model: Any, patches: Patches) -> list[Tensor]:
        values = selected(self.tower(model), model.config, patches.values)
        packed, _ = model.base_model.pack_image_features(
            torch.split(values, self.tiles(model.config, patches.call)),
            patches.call["image_sizes"],
            image_newline=values.new_zeros(values.shape[-1]),
            **self.packing(model.config, patches.call),
        )
        return list(packed)

    def tiles(self, config: Any, call: dict[str, Any]) -> list[int]:
        """Tiles of each image, the thumbnail among them."""
        from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

        return [
            image_size_to_num_patches(size, config.image_grid_pinpoints, tile_size(config))
            for size in call["image_sizes"]
        ]

    def packing(self, config: Any, call: dict[str, Any]) -> dict[str, Any]:
        """What else the model's packing of tiles takes."""
        return {"vision_feature_select_strategy": None}  # it decides on a warning alone


class LlavaOnevision(LlavaNext):
    """LLaVA-OneVision: images as in LLaVA-NeXT; of a video every frame is a group.

    A video's one newline, at its end, is always kept.
    """

    def groups(
        self, model: Any, modality: str, features: Tensor, grid: tuple[int, int, int] | None
    ) -> list[Group]:
        if modality == "image":
            return super().groups(model, modality, features, grid)
        side = math.ceil(patches_a_side(model.config) / 2)  # frames are pooled two by two
        return frames(features, side, newlines=1)

    def tiles(self, config: Any, call: dict[str, Any]) -> list[int]:
        whole = super().tiles(config, call)
        numbers = call.get("batch_num_images")
        if numbers is None:
            return whole
        # Only an image alone in its prompt is cut into tiles.
        alone = [int(number) == 1 for number in numbers for _ in range(int(number))]
        return [count if cut else 1 for count, cut in zip(whole, alone, strict=True)]

    def packing(self, config: Any, call: dict[str, Any]) -> dict[str, Any]:
        return {
            "vision_aspect_ratio": call.get("vision_aspect_ratio") or config.vision_aspect_ratio
        }

    def per_token(self, model: Any, patches: Patches) -> list[Tensor]:
        if patches.modality == "image":
            return super().per_token(model, patches)
        values = selected(self.tower(model), model.config, patches.values)
        pooled = model.base_model.apply_pooling(values)
        videos = pooled.reshape(len(patches.call["pixel_values_videos"]), -1, pooled.shape[-1])
        return list(F.pad(videos, (0, 0, 0, 1)))  # the newline


class LlavaNextVideo(LlavaNext):
    """LLaVA-NeXT-Video: images as in LLaVA-NeXT; of a video every pooled frame is a group."""

    def features(self, model: Any, output: Any) -> list[Tensor]:
        # transformers 5.19 keeps a video's frames apart: [frames, n, d]
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
        side = patches_a_side(model.config) // int(model.config.spatial_pool_stride)
        return frames(features, side, newlines=0)

    def per_token(self, model: Any, patches: Patches) -> list[Tensor]:
        if patches.modality == "image":
            return super().per_token(model, patches)
        values = selected(self.tower(model), model.config, patches.values)
        side = patches_a_side(model.config)
        raster = values.view(len(values), side, side, -1).permute(0, 3, 1, 2)
        pooled = F.avg_pool2d(raster, int(model.config.spatial_pool_stride)).flatten(2).mT
        return list(pooled.reshape(len(patches.call["pixel_values_videos"]), -1, pooled.shape[-1]))


class QwenVL(Family):
    """Qwen2-VL and Qwen2.5-VL: rasters of any shape, M-RoPE; of a video every frame is a group.

    `generate` encodes before the model is called and hands on no grid, so grids are read off the
    position ids, whose last two rows are (row, column). A frame is what the encoder makes of
    `temporal_patch_size` pictures; where text stands between frames (Qwen3-VL, GLM-4V), each
    counts its rows and columns from another start.
    """

    multimodal_positions: ClassVar[bool] = True

    def check(self, call: dict[str, Any]) -> None:
        for modality, name in PIXELS.items():
            pixels, grid = call.get(name), call.get(f"{modality}_grid_thw")
            if pixels is not None and grid is not None:
                require(
                    grid.prod(-1).sum() == len(pixels),
                    f"{modality}_grid_thw is of other pictures than {name}, which has "
                    f"{len(pixels)} patches: pass both as the processor gives them",
                )

    def grids(
        self, model: Any, positions: Tensor, placeholder: Tensor, lengths: Sequence[int]
    ) -> list[tuple[int, int, int] | None]:
        places = positions[-2:].expand(2, *placeholder.shape)[:, placeholder].cpu()  # [2, total]
        found: list[tuple[int, int, int] | None] = []
        for rows, columns in torch.split(places, list(lengths), 1):
            wide = leading_run(columns)
            high = leading_run(rows[::wide])
            found.append((len(rows) // (high * wide), high, wide))
        return found

    def groups(
        self, model: Any, modality: str, features: Tensor, grid: tuple[int, int, int] | None
    ) -> list[Group]:
        if grid is None or grid[0] * grid[1] * grid[2] != len(features):
            raise ValueError(
                f"{modality} features have {len(features)} rows, but their position ids form a "
                f"grid of {grid}: pass image_grid_thw, video_grid_thw and mm_token_type_ids as the "
                "processor gives them"
            )
        rows = torch.arange(len(features), device=features.device)
        kind = "image" if modality == "image" else "frame"
        return [Group(part, grid[1:], kind) for part in torch.split(rows, grid[1] * grid[2])]

    def per_token(self, model: Any, patches: Patches) -> list[Tensor]:
        # The patches of a token follow each other.
        unit = model.config.vision_config.spatial_merge_size**2
        tokens = patches.values[0].view(-1, unit, patches.values.shape[-1]).mean(1)
        order = self.encoder_order(model.config, patches.call[f"{patches.modality}_grid_thw"])
        if order is not None:
            tokens = tokens[order.to(tokens.device).argsort()]
        return list(torch.split(tokens, list(patches.lengths)))

    def encoder_order(self, config: Any, grid: Tensor) -> Tensor | None:
        """Which token each one in the encoder is, int64 [n]; None where their order is the same."""
        return None

    def default_positions(self, model: Any, call: dict[str, Any], past: int) -> Tensor:
        ids, cache = call["input_ids"], call.get("past_key_values")
        b, length = ids.shape
        mask = call.get("attention_mask")
        grids = {
            name: call[name]
            for name in ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
            if call.get(name) is not None
        }
        types = call.get("mm_token_type_ids")
        if grids and types is not None and past == 0:
            grids = {"image_grid_thw": None, "video_grid_thw": None, **grids}
            return model.base_model.compute_3d_position_ids(
                input_ids=ids,
                inputs_embeds=ids.new_empty(b, length, 0),
                attention_mask=mask,
                past_key_values=cache,
                mm_token_type_ids=types,
                **grids,
            )
        if mask is None:
            text = torch.arange(past, past + length, device=ids.device).expand(b, -1)
        else:
            text = (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)[:, -length:]
        deltas = model.base_model.rope_deltas
        if past and deltas is not None:
            text = text + deltas.to(text).repeat_interleave(b // len(deltas), 0)
        return text.expand(3, -1, -1)


class Qwen25VL(QwenVL):
    """Qwen2.5-VL: as Qwen2-VL; its encoder sorts tokens by the windows that most layers see."""

    def encoder_order(self, config: Any, grid: Tensor) -> Tensor | None:
        from transformers.vision_utils import get_vision_window_index

        vision = config.vision_config
        sizes = (vision.spatial_merge_size, vision.window_size, vision.patch_size)
        return get_vision_window_index(grid, *sizes)[0]


class Qwen3VL(QwenVL):
    """Qwen3-VL: as Qwen2.5-VL; early layers add deepstack features, which are cut the same way."""

    def shorten(self, output: Any, kept: Sequence[Tensor], images: list[Tensor]) -> Any:
        shortened = super().shorten(output, kept, images)
        shortened.deepstack_features = [
            tuple(image[rows] for image, rows in zip(layer, kept, strict=True))
            for layer in output.deepstack_features
        ]
        return shortened


class Glm4V(QwenVL):
    """GLM-4V: as Qwen2.5-VL; a video's frames stand behind the image placeholder."""

    def token_id(self, model: Any, modality: str) -> int:
        return super().token_id(model, "image")


class Llama4(SquareTiles):
    """Llama 4: every tile is an image, its patches merged two by two.

    The model takes what the vision tower says and projects it itself: what is chosen among are
    projected features, what is cut are rows before the projection.
    """

    kind: ClassVar[str] = "tile"
    takes_features: ClassVar[bool] = False

    def side(self, config: Any) -> int:
        return int(patches_a_side(config) * config.vision_config.pixel_shuffle_ratio)

    def features(self, model: Any, output: Any) -> list[Tensor]:
        with torch.no_grad():
            return list(model.multi_modal_projector(output.last_hidden_state))

    def shorten(self, output: Any, kept: Sequence[Tensor], images: list[Tensor]) -> Any:
        shortened = copy.copy(output)
        tiles = zip(output.last_hidden_state, kept, strict=True)
        shortened.last_hidden_state = torch.cat([tile[rows] for tile, rows in tiles])
        return shortened


class Mllama(Family):
    """Mllama: text attends across to the tiles of its images, see `gprune.hf.cross`.

    Every tile starts with a CLS token, which is always kept.
    """

    cross_attention: ClassVar[bool] = True

    def groups(
        self, model: Any, modality: str, features: Tensor, grid: tuple[int, int, int] | None
    ) -> list[Group]:
        side = patches_a_side(model.config)
        rows = torch.arange(len(features), device=features.device).view(-1, 1 + side * side)
        return [Group(tile[1:], (side, side), "tile") for tile in rows]


def frames(features: Tensor, side: int, newlines: int) -> list[Group]:
    """A group for each frame of a video [n, d]; the newlines at its end are always kept."""
    frame = side * side
    rows = torch.arange(len(features) - newlines, device=features.device)
    if len(rows) == 0 or len(rows) % frame:
        raise ValueError(
            f"video features have {len(features)} rows, which are no frames of {frame} with "
            f"{newlines} newlines at the end: they are part of a video or come from another model"
        )
    return [Group(part, (side, side), "frame") for part in torch.split(rows, frame)]


def leading_run(values: Tensor) -> int:
    """How many of the first values [n] each exceed the one before by 1."""
    breaks = (values.diff() != 1).nonzero()
    return int(breaks[0]) + 1 if len(breaks) else len(values)


def has_pixtral(config: Any) -> bool:
    """Whether the vision tower is Pixtral's."""
    return bool(config.vision_config.model_type == "pixtral")


def raster_of_runs(
    positions: Tensor, placeholder: Tensor, lengths: Sequence[int]
) -> list[tuple[int, int, int] | None]:
    """(1, rows, columns) of images whose raster rows each end with a text token.

    A Pixtral tower takes images of any shape. The break after each row is text to the language
    model, so it stays, and the raster shows in the gaps between placeholders; None where the gaps
    are no raster's. Arguments as `Family.grids` has them.
    """
    places = positions.expand(placeholder.shape)[placeholder].cpu()
    found: list[tuple[int, int, int] | None] = []
    for part in torch.split(places, list(lengths)):
        columns = leading_run(part)
        ends = (part.diff() != 1).nonzero().squeeze(1) + 1
        regular = torch.equal(ends, torch.arange(columns, len(part), columns))
        whole = regular and len(part) % columns == 0
        found.append((1, len(part) // columns, columns) if whole else None)
    return found


# Vision towers whose first token is a patch.
WITHOUT_CLS = ("siglip_vision_model", "siglip2_vision_model", "pixtral")


def has_cls(tower: Any) -> bool:
    """Whether the first token of a vision encoder is a CLS token."""
    embeddings = getattr(tower, "embeddings", None)
    return hasattr(embeddings, "class_embedding") or hasattr(embeddings, "cls_token")


def cls_tokens(config: Any) -> int:
    """How many CLS tokens of a CLIP or SigLIP tower a model of LLaVA's kind hands on, 0 or 1."""
    has = config.vision_config.model_type not in WITHOUT_CLS
    return int(has and config.vision_feature_select_strategy == "full")


def selected(tower: Any, config: Any, patches: Tensor) -> Tensor:
    """Values [b, patches, c] without those of the CLS token, where the model drops it."""
    strategy = getattr(config, "vision_feature_select_strategy", None)
    drops = has_cls(tower) if strategy is None else strategy == "default"
    return patches[:, 1:] if drops else patches


def tile_size(config: Any) -> int:
    """Pixels along one side of the square that the vision tower sees."""
    size = config.vision_config.image_size
    return size if isinstance(size, int) else size[0]


def patches_a_side(config: Any) -> int:
    """Patches along one side of the square that the vision tower sees."""
    patch = config.vision_config.patch_size
    return tile_size(config) // (patch if isinstance(patch, int) else patch[0])


BOTH = ("image", "video")
FRAMES = "an image; a frame"
CANVAS = "the thumbnail; the canvas of tiles, without its row ends"

FAMILIES: tuple[Family, ...] = (
    Llava("llava", ("LlavaForConditionalGeneration",), "LLaVA-1.5, Pixtral"),
    LlavaNext("llava_next", ("LlavaNextForConditionalGeneration",), "LLaVA-NeXT", CANVAS),
    LlavaOnevision(
        "llava_onevision",
        ("LlavaOnevisionForConditionalGeneration",),
        "LLaVA-OneVision",
        f"{CANVAS}; a frame",
        modalities=BOTH,
    ),
    QwenVL("qwen2_vl", ("Qwen2VLForConditionalGeneration",), "Qwen2-VL", FRAMES, modalities=BOTH),
    Qwen25VL(
        "qwen2_5_vl", ("Qwen2_5_VLForConditionalGeneration",), "Qwen2.5-VL", FRAMES, modalities=BOTH
    ),
    Qwen3VL("qwen3_vl", ("Qwen3VLForConditionalGeneration",), "Qwen3-VL", FRAMES, modalities=BOTH),
    InternVL("internvl", ("InternVLForConditionalGeneration",), "InternVL", "a tile"),
    SquareTiles("vipllava", ("VipLlavaForConditionalGeneration",), "ViP-LLaVA", tier=2),
    LlavaNextVideo(
        "llava_next_video",
        ("LlavaNextVideoForConditionalGeneration",),
        "LLaVA-NeXT-Video",
        f"{CANVAS}; a frame",
        tier=2,
        modalities=BOTH,
    ),
    Idefics3("idefics3", ("Idefics3ForConditionalGeneration",), "Idefics3", "a tile", tier=2),
    Idefics3("smolvlm", ("SmolVLMForConditionalGeneration",), "SmolVLM", "a tile", tier=2),
    PaliGemma("paligemma", ("PaliGemmaForConditionalGeneration",), "PaliGemma", tier=2),
    Gemma3("gemma3", ("Gemma3ForConditionalGeneration",), "Gemma 3", tier=2),
    Mistral3("mistral3", ("Mistral3ForConditionalGeneration",), "Mistral Small 3", tier=2),
    CohereVision(
        "aya_vision", ("AyaVisionForConditionalGeneration",), "Aya Vision", "a tile", tier=2
    ),
    CohereVision(
        "cohere2_vision",
        ("Cohere2VisionForConditionalGeneration",),
        "Command A Vision",
        "a tile",
        tier=2,
    ),
    Glm4V("glm4v", ("Glm4vForConditionalGeneration",), "GLM-4V", FRAMES, tier=2, modalities=BOTH),
    Qwen3VL(
        "qwen3_vl_moe",
        ("Qwen3VLMoeForConditionalGeneration",),
        "Qwen3-VL MoE",
        FRAMES,
        tier=3,
        modalities=BOTH,
    ),
    QwenVL(
        "qwen3_5",
        ("Qwen3_5ForConditionalGeneration",),
        "Qwen3.5",
        FRAMES,
        tier=3,
        modalities=BOTH,
    ),
    QwenVL(
        "qwen3_5_moe",
        ("Qwen3_5MoeForConditionalGeneration",),
        "Qwen3.5 MoE",
        FRAMES,
        tier=3,
        modalities=BOTH,
    ),
    Family("gemma4", ("Gemma4ForConditionalGeneration",), "Gemma 4", tier=3),
    Family("lfm2_vl", ("Lfm2VlForConditionalGeneration",), "LFM2-VL", "a tile", tier=3),
    Llama4("llama4", ("Llama4ForConditionalGeneration",), "Llama 4", "a tile", tier=3),
    Mllama("mllama", ("MllamaForConditionalGeneration",), "Llama 3.2 Vision", "a tile", tier=3),
)


def families() -> dict[str, int]:
    """Every supported model family with its tier: 1 is proven by every check."""
    return {family.name: family.tier for family in FAMILIES}


def family_of(model: Any) -> Family:
    """The family of a model with a language-modelling head.

    Raises:
        UnsupportedModelError: the class belongs to none of `families`.
    """
    return family_of_architecture(*(kind.__name__ for kind in type(model).__mro__))


def family_of_architecture(*names: str) -> Family:
    """The family of a class, given its name and those of the classes it derives from.

    Raises:
        UnsupportedModelError: none of the names belongs to a supported family.
    """
    for family in FAMILIES:
        if any(name in family.architectures for name in names):
            return family
    supported = ", ".join(name for family in FAMILIES for name in family.architectures)
    raise UnsupportedModelError(
        f"model is a {names[0]}, which gprune cannot prune yet; supported: {supported}. Pass the "
        "model with its language-modelling head, unwrapped; CONTRIBUTING.md says how to add one"
    )
