"""gprune: training-free visual token pruning for vision-language models.

>>> from gprune import GPrune
>>> with GPrune(keep=0.36)(model):  # doctest: +SKIP
...     model.generate(**inputs)
"""

from gprune.allocation.cover import CoverBudget
from gprune.allocation.thumbnail import ThumbnailGuided
from gprune.budget import kept_count
from gprune.errors import UnsupportedModelError, UnsupportedVersionError
from gprune.graph import SimilarityGraph
from gprune.pruners import (
    DART,
    EVS,
    SCOPE,
    TRIM,
    AveragePooling,
    CDPruner,
    D2Pruner,
    DivPrune,
    Downsampling,
    FastV,
    GPrune,
    GraphCover,
    HiPrune,
    HoloV,
    L2NormPruner,
    PruMerge,
    PruMergePlus,
    Pruner,
    PyramidDrop,
    RandomPruner,
    ScorePruner,
    SparseVLM,
    TextCover,
    ToDRE,
    ToMe,
    UniformGridPruner,
    VidCom2,
    VisionZip,
    VisPruner,
    VLMPruner,
    WeightedCover,
    WeightedGPrune,
    make,
    methods,
)
from gprune.tokens import VisualTokens

__version__ = "0.1.0"

__all__ = [
    "DART",
    "EVS",
    "SCOPE",
    "TRIM",
    "AveragePooling",
    "CDPruner",
    "CoverBudget",
    "D2Pruner",
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
    "SimilarityGraph",
    "SparseVLM",
    "TextCover",
    "ThumbnailGuided",
    "ToDRE",
    "ToMe",
    "UniformGridPruner",
    "UnsupportedModelError",
    "UnsupportedVersionError",
    "VLMPruner",
    "VidCom2",
    "VisPruner",
    "VisionZip",
    "VisualTokens",
    "WeightedCover",
    "WeightedGPrune",
    "__version__",
    "families",
    "kept_count",
    "make",
    "methods",
]


def families() -> dict[str, int]:
    """Every supported transformers model family with its tier: 1 is proven by every check."""
    # Imported here: choosing tokens needs torch alone, and transformers is slow to import.
    from gprune.hf import families as registered

    return registered()
