"""What the visual tokens of each model family look like, for both engines; torch alone."""

from gprune.layouts.arguments import cache_name, cache_of
from gprune.layouts.base import PIXELS, Family, Patches
from gprune.layouts.registry import (
    FAMILIES,
    families,
    families_with,
    family_of,
    family_of_architecture,
)
from gprune.layouts.square import SquareRaster
from gprune.layouts.towers import cls_tokens, has_cls, has_pixtral, patches_per_side

__all__ = [
    "FAMILIES",
    "PIXELS",
    "Family",
    "Patches",
    "SquareRaster",
    "cache_name",
    "cache_of",
    "cls_tokens",
    "families",
    "families_with",
    "family_of",
    "family_of_architecture",
    "has_cls",
    "has_pixtral",
    "patches_per_side",
]
