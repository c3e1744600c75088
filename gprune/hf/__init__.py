"""Pruning inside Hugging Face transformers."""

from gprune.hf.families import FAMILIES, Family, Group, families, family_of
from gprune.hf.hook import KeptGroup, PrunedModel, prune
from gprune.hf.text import CLIPTextTower

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
