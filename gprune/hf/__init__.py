"""Pruning inside Hugging Face transformers."""

from gprune.hf.hook import KeptGroup, PrunedModel, prune
from gprune.hf.text import CLIPTextTower
from gprune.layouts import FAMILIES, Family, Group, families, family_of

__all__ = [
    "FAMILIES",
    "CLIPTextTower",
    "Family",
    "Group",
    "KeptGroup",
    "PrunedModel",
    "families",
    "family_of",
    "prune",
]
