"""ServerSettings of servers and requests, and how budgets are sent to the workers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gprune
from gprune import UnsupportedModelError, UnsupportedVersionError, kept_count
from gprune.budget import GROUP_KINDS
from gprune.layouts import families_with, family_of_architecture
from gprune.serving.families import (
    SERVED,
    pruned_architecture,
    served_family,
    stock_architecture,
)
from gprune.serving.plan import ImagePlan, decode_keep, encode_keep
from gprune.serving.settings import ServerSettings, keep_from_json, served_methods
from gprune.versions import RANGES, is_tested, require_tested

NOT_SUITED = "options=.*do not suit gprune"


@given(st.floats(1e-9, 1.0), st.integers(1, 5000))
def test_a_decoded_share_gives_the_same_count(keep: float, n: int) -> None:
    budget = decode_keep(encode_keep(keep))
    assert set(budget) == set(GROUP_KINDS)
    assert kept_count(n, budget["tile"]) == kept_count(n, keep)


@given(st.integers(1, 10**6), st.integers(1, 5000))
def test_a_decoded_count_is_the_same(keep: int, n: int) -> None:
    assert kept_count(n, decode_keep(encode_keep(keep))["image"]) == kept_count(n, keep)


def test_a_huge_count_fits_an_integer_and_keeps_everything() -> None:
    keep = encode_keep(keep_from_json(10**30))
    plan = ImagePlan(100, 10, 10, keep)
    assert ImagePlan.from_tensor(plan.to_tensor()) == plan
    assert kept_count(10**6, decode_keep(keep)["image"]) == 10**6


def test_budgets_by_kind_are_decoded() -> None:
    keep = keep_from_json({"thumbnail": 1, "canvas": 0.25})
    assert decode_keep(encode_keep(keep)) == {"thumbnail": 1.0, "canvas": 0.25}


def test_one_keeps_everything_because_json_cannot_tell_it_from_a_share() -> None:
    assert keep_from_json(1) == 1.0
    assert isinstance(keep_from_json(1), float)
    assert keep_from_json(2) == 2


@pytest.mark.parametrize(
    "keep",
    [
        *(0, -1, 1.5, float("nan"), "0.5", "adaptive", True, None, [0.5], {}),
        *({"pixel": 0.5}, {"tile": 0}, {"tile": "adaptive"}),
    ],
)
def test_invalid_budgets_are_refused(keep: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="keep"):
        keep_from_json(keep)


@pytest.mark.parametrize("method", [*served_methods(), "recommended"])
def test_every_features_only_method_is_served(method: str) -> None:
    settings = ServerSettings(0.36, method)
    assert gprune.__version__ in settings.label()
    assert "0.36" in settings.describe()


def test_the_recommended_method_has_the_label_of_its_method() -> None:
    recommended = type(gprune.make("recommended", keep=0.5)).name
    assert ServerSettings(0.5, "recommended").label() == ServerSettings(0.5, recommended).label()


def test_the_label_contains_the_options() -> None:
    plain = ServerSettings(0.5, "gprune")
    assert ServerSettings(0.5, "gprune", {"threshold": 0.7}).label() != plain.label()


@pytest.mark.parametrize("method", ["visionzip", "trim", "fastv", "downsampling", "evs"])
def test_methods_that_need_signals_are_refused_by_name(method: str) -> None:
    with pytest.raises(ValueError, match=rf"{method}.*choose one of gprune, graph_cover"):
        ServerSettings(0.5, method)


@pytest.mark.parametrize("method", ["dart", "vlm_pruner"])
def test_methods_inside_the_language_model_are_served_before_it(method: str) -> None:
    assert "layer=0" in ServerSettings(0.5, method, {"layer": 0}).label()
    with pytest.raises(ValueError, match=r"dart or vlm_pruner with options=\{'layer': 0\}"):
        ServerSettings(0.5, method)


@pytest.mark.parametrize(
    ("method", "options"), [("dart", {"overspend": True}), ("vlm_pruner", {"fill": False})]
)
def test_methods_that_miss_their_budget_are_not_served(method: str, options: Any) -> None:
    with pytest.raises(ValueError, match="does not meet its budget exactly"):
        ServerSettings(0.5, method, {"layer": 0, **options})


def test_the_default_method_is_the_recommended_one() -> None:
    config = SimpleNamespace(gprune={"keep": 0.5})
    assert ServerSettings.from_config(config) == ServerSettings(0.5, "recommended")


def test_served_methods_include_the_methods_without_signals() -> None:
    served = served_methods()
    assert {"gprune", "graph_cover", "divprune", "tome", "random"} <= set(served)
    assert all(name in gprune.methods() for name in served)


@pytest.mark.parametrize(
    ("given_settings", "message"),
    [
        (None, "--hf-overrides"),
        ({"method": "gprune"}, "--hf-overrides"),
        ({"keep": 0.5, "ratio": 0.5}, "unknown keys ratio"),
        ({"keep": 2.5}, "keep=2.5"),
        ({"keep": 0.5, "method": "gprun"}, "did you mean 'gprune'"),
        ({"keep": 0.5, "method": "gprune", "options": {"threshold": 7}}, "threshold"),
        ({"keep": 0.5, "options": [7]}, r"options=\[7\] a mapping"),
        ({"keep": 0.5, "options": None}, "options=None a mapping"),
        ({"keep": 0.5, "method": []}, r"method=\[\] must be a name"),
        ({"keep": 0.5, "method": "gprune", "options": {"threshold": "7"}}, NOT_SUITED),
        ({"keep": 0.5, "method": "gprune", "options": {"threshold": [7]}}, NOT_SUITED),
        ({"keep": 0.5, "method": "gprune", "options": {"keep": 1}}, NOT_SUITED),
    ],
)
def test_invalid_settings_are_refused_with_a_correction(given_settings: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        ServerSettings.from_config(SimpleNamespace(gprune=given_settings))


def test_other_models_are_refused_by_name() -> None:
    tower = SimpleNamespace(model_type="siglip")
    other = SimpleNamespace(model_type="paligemma", vision_config=tower)
    with pytest.raises(UnsupportedModelError, match=r"paligemma.*llava, llava_next, .*internvl"):
        served_family(other)
    pixtral = SimpleNamespace(
        model_type="llava", vision_config=SimpleNamespace(model_type="pixtral")
    )
    with pytest.raises(UnsupportedModelError, match="pixtral tower"):
        served_family(pixtral)


def test_served_families_are_those_that_declare_it() -> None:
    assert [family.name for family in SERVED] == families_with("served")
    assert {family.name for family in SERVED} <= set(gprune.families())
    for family in SERVED:
        assert family_of_architecture(stock_architecture(family)) is family


def test_the_documentation_lists_every_family() -> None:
    text = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    listed = [line for line in text.splitlines() if "| GPrune" in line]
    assert len(listed) == len(SERVED)
    for family, line in zip(SERVED, listed, strict=True):
        assert line.startswith(f"| {family.name} ")
        assert f"| {pruned_architecture(family)} |" in line


def test_untested_versions_are_refused_without_the_override(monkeypatch: Any) -> None:
    override = RANGES["vllm"].override
    monkeypatch.delenv(override, raising=False)
    for version in ("0.32.0", "0.32.3", "0.32.0+cpu", "0.33.0", "0.33.1"):
        assert is_tested("vllm", version)
        require_tested("vllm", version)
    for version in ("0.31.9", "0.34.0", "1.0"):
        with pytest.raises(UnsupportedVersionError, match=f"vllm {version} .*0.32.0"):
            require_tested("vllm", version)
    monkeypatch.setenv(override, "1")
    require_tested("vllm", "0.34.0")
