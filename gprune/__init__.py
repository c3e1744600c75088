"""gprune: training-free visual token pruning for vision-language models.

>>> from gprune import GPrune
>>> with GPrune(keep=0.36)(model):  # doctest: +SKIP
...     model.generate(**inputs)
"""

from gprune.allocation.cover import CoverBudget as CoverBudget
from gprune.allocation.thumbnail import ThumbnailGuided as ThumbnailGuided
from gprune.budget import kept_count as kept_count
from gprune.errors import UnsupportedModelError as UnsupportedModelError
from gprune.errors import UnsupportedVersionError as UnsupportedVersionError
from gprune.graph import SimilarityGraph as SimilarityGraph
from gprune.layouts import families as families
from gprune.moved import install as _install_moved_modules
from gprune.pruners import *  # noqa: F403  # every method and its contract
from gprune.tokens import VisualTokens as VisualTokens

__version__ = "0.1.0"

_install_moved_modules()
