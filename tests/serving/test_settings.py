"""What a server and a request may ask for, and how it travels."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gprune
from gprune import UnsupportedModelError, UnsupportedVersionError, kept_count
from gprune.budget import KINDS
from gprune.serving.families import SERVED, served_family
from gprune.serving.images import ImagePlan
from gprune.serving.settings import Settings, decode, encode, parse_keep, served_methods
from gprune.serving.versions import OVERRIDE, is_tested, require_tested_vllm


@given(st.floats(1e-9, 1.0), st.integers(1, 5000))
def test_a_share_travels_without_changing_a_count(keep: float, n: int) -> None:
    budget = decode(encode(keep))
    assert set(budget) == set(KINDS)
    assert kept_count(n, budget["tile"]) == kept_count(n, keep)


@given(st.integers(1, 10**6), st.integers(1, 5000))
def test_a_count_travels(keep: int, n: int) -> None:
    assert kept_count(n, decode(encode(keep))["image"]) == kept_count(n, keep)


def test_a_count_beyond_every_image_travels_and_keeps_everything() -> None:
    keep = encode(parse_keep(10**30))
    plan = ImagePlan(100, 10, 10, keep)
    assert ImagePlan.from_tensor(plan.to_tensor()) == plan
    assert kept_count(10**6, decode(keep)["image"]) == 10**6


def test_budgets_by_kind_travel() -> None:
    keep = parse_keep({"thumbnail": 1, "canvas": 0.25})
    assert decode(encode(keep)) == {"thumbnail": 1.0, "canvas": 0.25}


def test_one_is_everything_as_json_cannot_tell_it_from_a_share() -> None:
    assert parse_keep(1) == 1.0
    assert isinstance(parse_keep(1), float)
    assert parse_keep(2) == 2


@pytest.mark.parametrize(
    "keep", [0, -1, 1.5, float("nan"), "0.5", True, None, [0.5], {}, {"pixel": 0.5}, {"tile": 0}]
)
def test_what_is_no_budget_is_refused(keep: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="keep"):
        parse_keep(keep)


@pytest.mark.parametrize("method", [*served_methods(), "recommended"])
def test_every_features_only_method_is_served(method: str) -> None:
    settings = Settings(0.36, method)
    assert gprune.__version__ in settings.label()
    assert "0.36" in settings.describe()


def test_the_recommended_method_is_cached_under_its_own_name() -> None:
    recommended = type(gprune.make("recommended", keep=0.5)).name
    assert Settings(0.5, "recommended").label() == Settings(0.5, recommended).label()


def test_options_are_part_of_what_a_result_depends_on() -> None:
    assert Settings(0.5, options={"threshold": 0.7}).label() != Settings(0.5).label()


@pytest.mark.parametrize("method", ["visionzip", "trim", "fastv", "downsampling", "evs"])
def test_methods_that_need_more_are_refused_by_name(method: str) -> None:
    with pytest.raises(ValueError, match=rf"{method}.*choose one of gprune, graph_cover"):
        Settings(0.5, method)


def test_served_methods_are_most_of_those_without_signals() -> None:
    served = served_methods()
    assert {"gprune", "graph_cover", "divprune", "dart", "tome", "random"} <= set(served)
    assert all(name in gprune.methods() for name in served)


@pytest.mark.parametrize(
    ("given_settings", "message"),
    [
        (None, "--hf-overrides"),
        ({"method": "gprune"}, "--hf-overrides"),
        ({"keep": 0.5, "ratio": 0.5}, "unknown keys ratio"),
        ({"keep": 2.5}, "keep=2.5"),
        ({"keep": 0.5, "method": "gprun"}, "did you mean 'gprune'"),
        ({"keep": 0.5, "options": {"threshold": 7}}, "threshold"),
        ({"keep": 0.5, "options": [7]}, r"options=\[7\] a mapping"),
        ({"keep": 0.5, "options": None}, "options=None a mapping"),
        ({"keep": 0.5, "method": []}, r"method=\[\] must be a name"),
        ({"keep": 0.5, "options": {"threshold": "7"}}, "options=.*do not suit gprune"),
        ({"keep": 0.5, "options": {"threshold": [7]}}, "options=.*do not suit gprune"),
        ({"keep": 0.5, "options": {"keep": 1}}, "options=.*do not suit gprune"),
    ],
)
def test_wrong_settings_say_what_to_write(given_settings: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Settings.from_config(SimpleNamespace(gprune=given_settings))


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


def test_families_are_those_of_gprune() -> None:
    assert {family.name for family in SERVED} <= set(gprune.families())


def test_the_documentation_lists_every_family() -> None:
    text = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    listed = [line for line in text.splitlines() if "| GPrune" in line]
    assert len(listed) == len(SERVED)
    for family, line in zip(SERVED, listed, strict=True):
        assert line.startswith(f"| {family.name} ")
        assert f"| {family.pruned} |" in line


def test_other_versions_are_refused_unless_asked_for(monkeypatch: Any) -> None:
    monkeypatch.delenv(OVERRIDE, raising=False)
    for version in ("0.32.0", "0.32.3", "0.32.0+cpu"):
        assert is_tested(version)
        require_tested_vllm(version)
    for version in ("0.31.9", "0.33.0", "1.0"):
        with pytest.raises(UnsupportedVersionError, match=f"vllm {version} .*0.32.0"):
            require_tested_vllm(version)
    monkeypatch.setenv(OVERRIDE, "1")
    require_tested_vllm("0.33.0")
