"""Pruning inside Hugging Face transformers."""

from gprune.hf.calls import find_cache
from gprune.hf.entry import prune
from gprune.hf.model import PrunedModel
from gprune.hf.records import KeptGroup
from gprune.hf.text import CLIPTextTower
from gprune.layouts import FAMILIES, Family, families, family_of
from gprune.tokens import Group

__all__ = [
    "FAMILIES",
    "CLIPTextTower",
    "Family",
    "Group",
    "KeptGroup",
    "PrunedModel",
    "families",
    "family_of",
    "find_cache",
    "prune",
]
