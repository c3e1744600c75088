"""Makes torchvision importable on a machine without CUDA; only for the tests.

A package index may have no CPU build of torchvision. The compiled part of the CUDA build does not
load without CUDA, and the Python part then fails because operators are missing. This declares those
operators, so that the import works; a call would fail, but no test calls them.
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
