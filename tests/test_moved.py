"""Old module paths: still importable, with a warning that names the new one."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from gprune import VisualTokens
from gprune.moved import MOVED, MovedModules, install
from gprune.pruners.base import MergingPruner


@pytest.mark.parametrize("old", [name for name in MOVED if name != "gprune.kernels"])
def test_an_old_path_gives_the_new_module(old):
    if "vllm" in MOVED[old]:
        pytest.importorskip("vllm")
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is now {MOVED[old]}"):
        module = importlib.import_module(old)
    new = importlib.import_module(MOVED[old])
    assert module is new
    assert new.__spec__.name == MOVED[old]
    sys.modules.pop(old)


def test_kernels_point_at_the_triton_module():
    assert MOVED["gprune.kernels"] == "gprune.graph.triton"


def test_every_new_path_exists():
    for new in MOVED.values():
        assert importlib.util.find_spec(new) is not None, new


def test_other_names_are_left_alone():
    with pytest.raises(ModuleNotFoundError, match=r"gprune\.nothing"):
        importlib.import_module("gprune.nothing")


def test_installs_once():
    install()
    install()
    assert sum(isinstance(finder, MovedModules) for finder in sys.meta_path) == 1


def test_costs_are_still_found_in_evaluation():
    from gprune import costs, evaluation

    with pytest.warns(DeprecationWarning, match=r"gprune\.costs\.saving"):
        assert evaluation.saving is costs.saving
    with pytest.raises(AttributeError, match="nothing"):
        _ = evaluation.nothing


def test_a_merging_pruner_of_old_still_works():
    with pytest.warns(DeprecationWarning, match="derive Halves from Pruner"):

        @dataclass(frozen=True)
        class Halves(MergingPruner):
            weighted: bool = False

            name: ClassVar[str] = "halves"

            def partition(self, tokens, k):
                kept = torch.arange(k)
                members = torch.arange(len(tokens)) % k
                if not self.weighted:
                    return kept, members
                weights = (members == kept[:, None]).float()
                return kept, weights / weights.sum(1, keepdim=True)

    tokens = VisualTokens(torch.tensor([[1.0], [2.0], [3.0], [4.0]]))
    for weighted in (False, True):
        reduction = Halves(2, weighted).reduce(tokens)
        assert reduction.kept.tolist() == [0, 1]
        assert reduction.features(tokens.features).tolist() == [[2.0], [3.0]]
