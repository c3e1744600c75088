"""The pruning methods, one file each, and the contract that they implement.

This is the only list of methods: each class registers itself under its name when it is imported
here, and `gprune` exports every name imported here. The order is that of `gprune.methods()`.
"""

# isort: skip_file
from types import ModuleType as _ModuleType
from typing import TYPE_CHECKING

from gprune.pruners.base import Pruner as Pruner, ScorePruner as ScorePruner
from gprune.pruners.reduction import Reduction as Reduction
from gprune.pruners.registry import (
    METHODS as METHODS,
    RECOMMENDED as RECOMMENDED,
    RECOMMENDED_REASON as RECOMMENDED_REASON,
    group_methods as group_methods,
    make as make,
    methods as methods,
    register as register,
)

# Methods that read features only.
from gprune.pruners.gprune import GPrune as GPrune
from gprune.pruners.graph_cover import GraphCover as GraphCover
from gprune.pruners.weighted_cover import WeightedCover as WeightedCover
from gprune.pruners.weighted_gprune import WeightedGPrune as WeightedGPrune
from gprune.pruners.divprune import DivPrune as DivPrune
from gprune.pruners.dart import DART as DART
from gprune.pruners.todre import ToDRE as ToDRE
from gprune.pruners.tome import ToMe as ToMe
from gprune.pruners.average_pooling import AveragePooling as AveragePooling

# Methods that read the vision encoder's attention or the question.
from gprune.pruners.visionzip import VisionZip as VisionZip
from gprune.pruners.vispruner import VisPruner as VisPruner
from gprune.pruners.hiprune import HiPrune as HiPrune
from gprune.pruners.prumerge import PruMerge as PruMerge
from gprune.pruners.prumerge_plus import PruMergePlus as PruMergePlus
from gprune.pruners.trim import TRIM as TRIM
from gprune.pruners.cdpruner import CDPruner as CDPruner
from gprune.pruners.text_cover import TextCover as TextCover
from gprune.pruners.scope import SCOPE as SCOPE
from gprune.pruners.holov import HoloV as HoloV
from gprune.pruners.d2pruner import D2Pruner as D2Pruner
from gprune.pruners.vlm_pruner import VLMPruner as VLMPruner

# Baselines.
from gprune.pruners.random_subset import RandomPruner as RandomPruner
from gprune.pruners.uniform_grid import UniformGridPruner as UniformGridPruner
from gprune.pruners.l2_norm import L2NormPruner as L2NormPruner
from gprune.pruners.downsampling import Downsampling as Downsampling

# Methods inside the language model, and methods for videos.
from gprune.pruners.decoder import DecoderPruner as DecoderPruner
from gprune.pruners.fastv import FastV as FastV
from gprune.pruners.pyramiddrop import PyramidDrop as PyramidDrop
from gprune.pruners.sparsevlm import SparseVLM as SparseVLM
from gprune.pruners.evs import EVS as EVS
from gprune.pruners.vidcom2 import VidCom2 as VidCom2

if not TYPE_CHECKING:
    # `import *` would export the modules of this package too. Type checkers read the aliases.
    __all__ = [
        name
        for name, value in list(globals().items())
        if not name.startswith("_") and not isinstance(value, _ModuleType | bool)
    ]
