"""Lets torchvision be imported on a machine without CUDA; for the tests alone.

The package index that tests must do with may have no CPU build of torchvision. The compiled part of
its CUDA build does not load without CUDA, and its Python part then asks for operators that are
missing. Declared, they import; called, they would fail, and nothing here calls them.
"""

import importlib.util
from pathlib import Path

import torch

found = importlib.util.find_spec("torchvision")
if found is not None and found.origin is not None:
    try:
        torch.ops.load_library(Path(found.origin).parent / "_C.so")
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
