"""The list of methods: its order, registration, and construction by name."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import gprune
from gprune import Pruner, ScorePruner, VisualTokens, make, methods, pruners, register
from gprune.pruners import METHODS, group_methods

ORDER = [
    "gprune",
    "graph_cover",
    "weighted_cover",
    "weighted_gprune",
    "divprune",
    "dart",
    "todre",
    "tome",
    "average_pooling",
    "visionzip",
    "vispruner",
    "hiprune",
    "prumerge",
    "prumerge_plus",
    "trim",
    "cdpruner",
    "text_cover",
    "scope",
    "holov",
    "d2pruner",
    "vlm_pruner",
    "random",
    "uniform_grid",
    "l2_norm",
    "downsampling",
    "fastv",
    "pyramiddrop",
    "sparsevlm",
    "evs",
    "vidcom2",
]


@pytest.fixture
def registry(monkeypatch):
    """Restores the list of methods afterwards."""
    monkeypatch.setattr("gprune.pruners.registry.METHODS", dict(METHODS))


def last_token(name: str | None = "last_token") -> type[Pruner]:
    """Returns a new method that ranks tokens by their index."""

    @dataclass(frozen=True)
    class LastToken(ScorePruner):
        def score(self, tokens: VisualTokens) -> Tensor:
            return torch.arange(float(len(tokens)))

    if name is not None:
        LastToken.name = name
    return LastToken


def test_the_order_of_methods():
    assert methods() == ORDER
    assert [name for name in ORDER if METHODS[name].scope == "group"] == group_methods()


def test_every_method_has_a_summary():
    for name, method in METHODS.items():
        assert method.name == name
        assert method.__doc__.splitlines()[0].endswith("."), name


def test_every_method_module_is_imported():
    """A method that is missing in `gprune.pruners` would be missing in every list."""
    for module in pkgutil.iter_modules(pruners.__path__):
        found = importlib.import_module(f"gprune.pruners.{module.name}")
        for value in vars(found).values():
            own = isinstance(value, type) and value.__module__ == found.__name__
            if own and issubclass(value, Pruner) and "name" in vars(value):
                assert METHODS[value.name] is value
                assert getattr(gprune, value.__name__) is value


def test_a_registered_method_is_built_by_name(registry):
    method = register(last_token())
    assert methods() == [*ORDER, "last_token"]
    pruner = make("last_token", keep=2)
    assert isinstance(pruner, method)
    assert pruner.select(VisualTokens(torch.ones(5, 2))).tolist() == [3, 4]
    assert register(method) is method  # again, as when a notebook cell is run twice
    assert register(last_token()) is not method  # the same class, defined again
    assert methods() == [*ORDER, "last_token"]


@pytest.mark.parametrize("name", ["gprune", "recommended"])
def test_a_name_that_is_taken(registry, name):
    with pytest.raises(ValueError, match=f"name='{name}' of LastToken is taken; choose another"):
        register(last_token(name))
    assert methods() == ORDER


@pytest.mark.parametrize("name", [None, "", 7])
def test_a_method_without_a_name(registry, name):
    with pytest.raises(ValueError, match="LastToken has no name; add name: ClassVar"):
        register(last_token(name))
    assert methods() == ORDER


def test_make_checks_name_keep_and_options():
    assert make("recommended", keep=0.5) == make("graph_cover", keep=0.5)
    assert make("graph_cover", keep=0.5, place=2.0).place == 2.0
    with pytest.raises(ValueError, match="method 'gprun' is unknown; did you mean 'gprune'"):
        make("gprun", keep=0.5)
    with pytest.raises(ValueError, match=r"or recommended$"):
        make("nosuch", keep=0.5)
    with pytest.raises(ValueError, match=r"keep=1\.5"):
        make("gprune", keep=1.5)
    with pytest.raises(TypeError, match="place"):
        make("gprune", keep=0.5, place=1.0)


def test_methods_describe_themselves():
    @dataclass(frozen=True)
    class Weighted(ScorePruner):
        proportional: ClassVar[bool] = True

        def score(self, tokens: VisualTokens) -> Tensor:
            return tokens.features[:, 0]

    assert not Weighted(0.5).needs_features_only()
    assert gprune.GPrune(0.5).needs_features_only()
    assert not gprune.VisionZip(0.5).needs_features_only()
    assert not gprune.EVS(0.5).needs_features_only()
    assert not gprune.DART(0.5).needs_features_only()
    assert gprune.DART(0.5, layer=0).needs_features_only()
    assert not gprune.DART(0.5, layer=0, overspend=True).needs_features_only()
    assert gprune.VLMPruner(0.5, layer=0).needs_features_only()
    assert not gprune.VLMPruner(0.5, layer=0, fill=False).needs_features_only()
