"""What is particular to each model family, and nothing else.

A family is an adapter of a few lines: how its encoder output divides into groups of tokens. The
rest of `gprune.hf` knows no family.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gprune.errors import UnsupportedModelError


@dataclass(frozen=True, eq=False)
class Group:
    """Rows of an image's features that are pruned together.

    Attributes:
        rows: which rows of the image's features, int64 [n], ascending.
        grid: (rows, columns) of the raster they form, or None.
    """

    rows: Tensor
    grid: tuple[int, int] | None


@dataclass(frozen=True)
class Family:
    """A model family; the defaults fit models with one raster of patches an image.

    Attributes:
        name: as `gprune.families()` gives it.
        architectures: class names of the models with a language-modelling head.
        tier: 1 proven by every check, 2 proven where the checks apply, 3 experimental.
    """

    name: str
    architectures: tuple[str, ...]
    tier: int = 1

    def encode(self, model: Any, call: dict[str, Any]) -> Any:
        """Runs the vision encoder on a call's images and takes what it used out of ``call``."""
        encoder = model.base_model.get_image_features
        names = set(inspect.signature(encoder).parameters) - {"kwargs"}
        arguments = {name: call.pop(name) for name in names & call.keys()}
        return encoder(**arguments, return_dict=True)

    def features(self, output: Any) -> list[Tensor]:
        """The projected features of each image in the order of the prompt, each [n, d]."""
        return list(output.pooler_output)

    def groups(self, model: Any, features: Tensor) -> list[Group]:
        """How one image's features [n, d] divide; rows in no group are always kept."""
        return [Group(torch.arange(len(features), device=features.device), None)]

    def shorten(self, output: Any, kept: Sequence[Tensor]) -> Any:
        """A copy of an encoder output with only the ``kept`` rows of each image."""
        shortened = copy.copy(output)
        images = [image[rows] for image, rows in zip(self.features(output), kept, strict=True)]
        container = type(output.pooler_output)
        # A tensor holds images of one size, of which equally many rows are kept.
        shortened.pooler_output = (
            torch.stack(images) if issubclass(container, Tensor) else container(images)
        )
        return shortened

    def default_positions(self, model: Any, call: dict[str, Any], past: int) -> Tensor:
        """The position ids that the model would take by default, [1, L]; ``past`` were seen."""
        ids: Tensor = call["input_ids"]
        return torch.arange(past, past + ids.shape[1], device=ids.device).unsqueeze(0)


class SquareTiles(Family):
    """Families whose vision tower sees squares of one size: a square raster an image or tile."""

    def side(self, config: Any) -> int:
        """Visual tokens along one side of the square."""
        return patches_a_side(config)

    def others(self, config: Any) -> int:
        """Tokens before the raster that are no patches: kept, and no nodes of the graph."""
        return 0

    def groups(self, model: Any, features: Tensor) -> list[Group]:
        side, others = self.side(model.config), self.others(model.config)
        if len(features) != others + side * side:
            raise ValueError(
                f"image features have {len(features)} rows, expected {others + side * side}: this "
                "is part of an image (prefill_chunk_size splits images; leave it unset to prune) "
                "or comes from another model"
            )
        rows = torch.arange(others, len(features), device=features.device)
        return [Group(rows, (side, side))]


class Llava(SquareTiles):
    """LLaVA-1.5. With a Pixtral tower rasters vary, and have no known grid."""

    def others(self, config: Any) -> int:
        return int(config.vision_feature_select_strategy == "full")  # the CLS token

    def groups(self, model: Any, features: Tensor) -> list[Group]:
        if model.config.vision_config.model_type == "pixtral":
            return [Group(torch.arange(len(features), device=features.device), None)]
        return super().groups(model, features)


class InternVL(SquareTiles):
    """InternVL: every tile of 448 pixels is an image of its own, its patches merged two by two."""

    def side(self, config: Any) -> int:
        return int(patches_a_side(config) * config.downsample_ratio)


class LlavaNext(Family):
    """LLaVA-NeXT: the thumbnail and the unpadded canvas of tiles are two groups.

    Each canvas row ends with the `image_newline` token, which is always kept and belongs to no
    group. (G-Prune, arXiv 2501.02268, prunes thumbnail and canvas apart at the same ratio.)
    """

    def groups(self, model: Any, features: Tensor) -> list[Group]:
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
                "followed by rows that end with image_newline: this is part of an image "
                "(prefill_chunk_size splits images; leave it unset to prune) or comes from "
                "another model"
            )
        rows = torch.arange(len(features), device=features.device)
        groups = [Group(rows[:thumbnail], (side, side))]
        if width > 1:  # an image of one tile has a newline and no canvas
            raster = rows[thumbnail:].view(len(ends), width)[:, :-1]
            groups.append(Group(raster.flatten(), (len(ends), width - 1)))
        return groups


def patches_a_side(config: Any) -> int:
    """Patches along one side of the square that the vision tower sees."""
    vision = config.vision_config
    sizes = (vision.image_size, vision.patch_size)
    image, patch = (size if isinstance(size, int) else size[0] for size in sizes)
    return image // patch


FAMILIES: tuple[Family, ...] = (
    Llava("llava", ("LlavaForConditionalGeneration",)),
    LlavaNext("llava_next", ("LlavaNextForConditionalGeneration",)),
    InternVL("internvl", ("InternVLForConditionalGeneration",)),
    SquareTiles("vipllava", ("VipLlavaForConditionalGeneration",), tier=2),
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
