"""Keeps the module paths of gprune 0.1 importable for one release, with a warning."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "gprune.adaptive": "gprune.allocation.cover",
    "gprune.asking": "gprune.ask.answers",
    "gprune.checks": "gprune.device",
    "gprune.comparison": "gprune.ask.comparison",
    "gprune.evaluation.flops": "gprune.costs.flops",
    "gprune.evaluation.measure": "gprune.costs.generation",
    "gprune.evaluation.timing": "gprune.costs.prefill",
    "gprune.hf.families": "gprune.layouts",
    "gprune.hf.hook": "gprune.hf",
    "gprune.kernels": "gprune.graph.triton",
    "gprune.prompts": "gprune.ask.prompts",
    "gprune.pruners.cover": "gprune.pruners.graph_cover",
    "gprune.pruners.pyramid": "gprune.pruners.pyramiddrop",
    "gprune.serving.plugin": "gprune.serving.vllm.plugin",
    "gprune.thumbnail": "gprune.allocation.thumbnail",
    "gprune.tiles": "gprune.graph.tiled",
    "gprune.tinyvlm.grounding": "gprune.training.grounding",
    "gprune.transfer": "gprune.device",
}


class MovedModules(MetaPathFinder, Loader):
    """Imports the new module in the place of an old one."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Returns a spec for the old name of a module, None for every other name."""
        return ModuleSpec(name, self) if name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        """Replaces the empty module that Python made for the old name by the new module."""
        old = module.__name__
        warnings.warn(
            f"{old} is now {MOVED[old]}; the old path goes in the next release",
            DeprecationWarning,
            # Frames of importlib are not counted: this is the line with the import.
            stacklevel=2,
        )
        sys.modules[old] = importlib.import_module(MOVED[old])


def install() -> None:
    """Makes the old paths importable; has no effect if they are already."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
