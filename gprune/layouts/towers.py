"""Facts about vision towers: patches per side, CLS tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor

# Model types of vision towers without a CLS token.
WITHOUT_CLS = ("siglip_vision_model", "siglip2_vision_model", "pixtral")


def has_pixtral(config: Any) -> bool:
    """Returns whether a model's vision tower is Pixtral's, which takes images of any shape."""
    return bool(config.vision_config.model_type == "pixtral")


def has_cls(tower: Any) -> bool:
    """Returns whether the first token of a vision encoder is a CLS token."""
    embeddings = getattr(tower, "embeddings", None)
    return hasattr(embeddings, "class_embedding") or hasattr(embeddings, "cls_token")


def cls_tokens(config: Any) -> int:
    """Returns how many CLS tokens a LLaVA model passes to its language model, 0 or 1."""
    has = config.vision_config.model_type not in WITHOUT_CLS
    return int(has and config.vision_feature_select_strategy == "full")


def drop_unused_cls(tower: Any, config: Any, patches: Tensor) -> Tensor:
    """Returns per-patch values [b, patches, c] without the CLS token, if the model drops it."""
    strategy = getattr(config, "vision_feature_select_strategy", None)
    drops = has_cls(tower) if strategy is None else strategy == "default"
    return patches[:, 1:] if drops else patches


def tile_size(config: Any) -> int:
    """Returns the side of the square image that the vision tower takes, in pixels."""
    size = config.vision_config.image_size
    return size if isinstance(size, int) else size[0]


def patches_per_side(config: Any) -> int:
    """Returns the number of patches along one side of the tower's square image."""
    patch = config.vision_config.patch_size
    return tile_size(config) // (patch if isinstance(patch, int) else patch[0])
