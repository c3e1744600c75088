"""Old module paths: still importable, with a warning that names the new one."""

from __future__ import annotations

import importlib
import sys

import pytest

from gprune.moved import MOVED, MovedModules, install


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
