"""Small recipes for tests."""

from __future__ import annotations

from gprune.training.model import Architecture
from gprune.training.recipe import Recipe

RECIPE = Recipe(
    batch=3,
    patch_steps=4,
    answer_steps=4,
    warmup=2,
    easy_vqa_images=1,
)

SMALL = Recipe(
    architecture=Architecture("siglip", grid=6, vision_width=32, vision_layers=1, text_layers=2),
    asked=2,
    most_asked=5,
    batch=3,
    patch_steps=1,
    answer_steps=1,
    easy_vqa_images=1,
)
