"""The pruning methods, by name."""

from __future__ import annotations

import difflib
from typing import Any

from gprune.budget import Keep
from gprune.pruners.base import Pruner, ScorePruner
from gprune.pruners.baselines import L2NormPruner, RandomPruner, UniformGridPruner
from gprune.pruners.cdpruner import CDPruner
from gprune.pruners.cover import GraphCover
from gprune.pruners.d2pruner import D2Pruner
from gprune.pruners.decoder import DecoderPruner
from gprune.pruners.diversity import DART, DivPrune
from gprune.pruners.downsampling import Downsampling
from gprune.pruners.fastv import FastV
from gprune.pruners.gprune import GPrune
from gprune.pruners.hiprune import HiPrune
from gprune.pruners.holov import HoloV
from gprune.pruners.merging import AveragePooling, ToMe
from gprune.pruners.prumerge import PruMerge, PruMergePlus
from gprune.pruners.pyramid import PyramidDrop
from gprune.pruners.scope import SCOPE
from gprune.pruners.sparsevlm import SparseVLM
from gprune.pruners.text_cover import TextCover
from gprune.pruners.todre import ToDRE
from gprune.pruners.trim import TRIM
from gprune.pruners.video import EVS, VidCom2
from gprune.pruners.visionzip import VisionZip
from gprune.pruners.vispruner import VisPruner
from gprune.pruners.vlm_pruner import VLMPruner
from gprune.pruners.weighted import WeightedCover, WeightedGPrune

METHODS: dict[str, type[Pruner]] = {
    method.name: method
    for method in (
        GPrune,
        GraphCover,
        WeightedCover,
        WeightedGPrune,
        DivPrune,
        DART,
        ToDRE,
        ToMe,
        AveragePooling,
        VisionZip,
        VisPruner,
        HiPrune,
        PruMerge,
        PruMergePlus,
        TRIM,
        CDPruner,
        TextCover,
        SCOPE,
        HoloV,
        D2Pruner,
        VLMPruner,
        RandomPruner,
        UniformGridPruner,
        L2NormPruner,
        Downsampling,
        FastV,
        PyramidDrop,
        SparseVLM,
        EVS,
        VidCom2,
    )
}

# What the evidence in README.md says to take by default.
RECOMMENDED = GraphCover.name


def methods() -> list[str]:
    """The name of every method, G-Prune first."""
    return list(METHODS)


def group_methods() -> list[str]:
    """The methods that choose from the tokens of one group, whatever it is of: `Pruner.select`."""
    return [name for name, method in METHODS.items() if method.scope == "group"]


def make(name: str, keep: Keep, **options: Any) -> Pruner:
    """Builds a method by name: ``make("gprune", keep=0.36, threshold=0.7)``.

    ``recommended`` is the one that the evidence of this project recommends.

    Raises:
        ValueError: there is no such method, or ``keep`` or an option is out of range.
        TypeError: the method has no such option.
    """
    name = RECOMMENDED if name == "recommended" else name
    if name not in METHODS:
        near = difflib.get_close_matches(name, [*METHODS, "recommended"], 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"method {name!r} is unknown; {hint}choose one of {', '.join(METHODS)}, or recommended"
        )
    return METHODS[name](keep, **options)


__all__ = [
    "DART",
    "EVS",
    "SCOPE",
    "TRIM",
    "AveragePooling",
    "CDPruner",
    "D2Pruner",
    "DecoderPruner",
    "DivPrune",
    "Downsampling",
    "FastV",
    "GPrune",
    "GraphCover",
    "HiPrune",
    "HoloV",
    "L2NormPruner",
    "PruMerge",
    "PruMergePlus",
    "Pruner",
    "PyramidDrop",
    "RandomPruner",
    "ScorePruner",
    "SparseVLM",
    "TextCover",
    "ToDRE",
    "ToMe",
    "UniformGridPruner",
    "VLMPruner",
    "VidCom2",
    "VisPruner",
    "VisionZip",
    "WeightedCover",
    "WeightedGPrune",
    "group_methods",
    "make",
    "methods",
]
