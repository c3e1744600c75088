"""Which tokens the plugin keeps: the same as the hook in transformers, and what broken ones do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import gprune
from gprune import kept_count
from gprune.budget import KINDS
from gprune.layouts import family_of
from gprune.serving.families import SERVED
from gprune.serving.images import BASE, ImagePlan, numbered, prune_images, without_numbers
from gprune.serving.settings import Settings, encode, served_methods
from tests.hf.models import SIDE, SPECIMENS

BY_NAME = {family.name: family for family in SERVED}


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def plan_of(
    name: str, features: torch.Tensor, image: dict[str, torch.Tensor], keep: Any
) -> ImagePlan:
    """What the frontend would say of an image of tests/hf/models.py."""
    numbers = encode(keep)
    if "image_grid_thw" in image:
        _, rows, columns = (image["image_grid_thw"][0] // 2).tolist()
        return ImagePlan(len(features), rows, columns, numbers)
    if name in ("llava_next", "llava_onevision"):
        canvas = len(features) - SIDE * SIDE
        model = SPECIMENS[name].build()
        rows = int((features[SIDE * SIDE :] == model.model.image_newline).all(-1).sum())
        return ImagePlan(len(features), rows, canvas // rows - 1, numbers)
    return ImagePlan(len(features), SIDE, SIDE, numbers)


@pytest.mark.parametrize("keep", [0.36, 3, dict.fromkeys(KINDS, 0.5) | {"thumbnail": 1.0}])
@pytest.mark.parametrize("name", BY_NAME)
@torch.no_grad()
def test_every_method_keeps_what_it_keeps_in_transformers(name: str, keep: Any) -> None:
    specimen, served = SPECIMENS[name], BY_NAME[name]
    model = specimen.build()
    family = family_of(model)
    for index in range(3):
        image = specimen.image(noise, index)
        output = family.encode(model, "image", image)
        (features,) = family.features(model, output)
        plan = plan_of(name, features, image, keep)
        grid = (1, plan.rows, plan.columns) if served.raster_positions else None
        divided = family.groups(model, "image", features, grid)
        for method in served_methods():
            stays, expected = set(range(len(features))), features.clone()
            for group in divided:
                tokens = gprune.VisualTokens(features[group.rows], group.grid, kind=group.kind)
                budget = keep[group.kind] if isinstance(keep, dict) else keep
                chosen, means = gprune.make(method, keep=budget).reduce(tokens)
                stays -= set(group.rows.tolist()) - set(group.rows[chosen].tolist())
                expected[group.rows[chosen]] = means
            settings = Settings(keep, method)
            (found,) = prune_images(
                [features], [plan], served.divide, settings.pruner, features.shape[1]
            )
            kept, rows = without_numbers(found)
            assert rows.tolist() == sorted(stays), method
            assert torch.equal(kept, expected[rows]), method
            assert len(rows) == plan.kept(served.divide)


def prune(
    features: torch.Tensor, keep: Any, method: str = "gprune", width: int | None = None
) -> Any:
    plan = ImagePlan(len(features), 4, len(features) // 4, encode(keep))
    return prune_images(
        [features],
        [plan],
        BY_NAME["llava"].divide,
        Settings(keep, method).pruner,
        width or features.shape[1],
    )[0]


@pytest.mark.parametrize("method", served_methods())
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_rows_that_are_not_finite_rank_last(method: str, value: float, caplog: Any) -> None:
    features = noise(16, 8)
    features[[0, 5, 6], 2] = value
    kept, rows = without_numbers(prune(features, 0.5, method))
    assert len(rows) == 8
    assert not {0, 5, 6} & set(rows.tolist())
    assert kept.isfinite().all()
    assert [record.message for record in caplog.records] == [
        "3 of 16 visual tokens of an image are NaN or infinite and rank last; find where the "
        "vision encoder overflows (float16 is the usual reason: try bfloat16)"
    ]


@pytest.mark.parametrize("method", served_methods())
@pytest.mark.parametrize("value", [0.0, 1e30, 1e-30, -1e30])
def test_no_finite_features_stop_a_server(method: str, value: float) -> None:
    for features in (torch.full((16, 8), value), noise(16, 8) * value):
        kept, rows = without_numbers(prune(features, 0.36, method))
        assert len(kept) == len(set(rows.tolist())) == kept_count(16, 0.36)


def test_a_canvas_of_which_nothing_is_left_is_no_group() -> None:
    divide = BY_NAME["llava_next"].divide
    assert [group.kind for group in divide(16 + 8, 8, 0)] == ["thumbnail"]
    assert [group.kind for group in divide(16, 0, 0)] == ["thumbnail"]
    assert ImagePlan(16 + 8, 8, 0, encode(0.5)).kept(divide) == 8 + 8


def test_when_too_few_are_finite_others_fill_up_in_order() -> None:
    features = torch.full((16, 8), float("nan"))
    features[[3, 9]] = 1.0
    _, rows = without_numbers(prune(features, 4))
    assert rows.tolist() == [0, 1, 3, 9]


def test_all_broken_still_gives_as_many_rows_as_placeholders() -> None:
    features = torch.full((16, 8), float("nan"))
    assert len(prune(features, 0.36)) == kept_count(16, 0.36)


def test_what_is_beyond_the_width_is_cut_and_not_looked_at() -> None:
    features = noise(16, 8)
    deep = torch.arange(16.0)[:, None].expand(-1, 3)
    kept, rows = without_numbers(prune(torch.cat([features, deep], 1), 0.36, "tome", width=8))
    alone, same = without_numbers(prune(features, 0.36, "tome"))
    assert torch.equal(rows, same)
    assert torch.equal(kept[:, :8], alone)
    assert torch.equal(kept[:, 8], rows.float())


def test_other_rows_than_placeholders_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="made 16 rows of an image that has 20"):
        prune_images(
            [noise(16, 8)],
            [ImagePlan(20, 4, 5, encode(0.5))],
            BY_NAME["llava"].divide,
            Settings(0.5).pruner,
            8,
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_row_numbers_survive_every_dtype(dtype: torch.dtype) -> None:
    rows = torch.tensor([0, 1, 255, 256, 257, 4097, BASE**2 - 1])
    features = noise(len(rows), 8).to(dtype)
    kept, found = without_numbers(numbered(features, rows))
    assert torch.equal(found, rows)
    assert torch.equal(kept, features)


def test_a_kind_without_budget_is_refused_by_name() -> None:
    plan = ImagePlan(4 + 6, 2, 2, encode({"thumbnail": 0.5}))
    with pytest.raises(ValueError, match="no budget for groups of kind canvas"):
        plan.kept(BY_NAME["llava_next"].divide)


def test_an_image_too_large_to_number_is_refused() -> None:
    plan = ImagePlan(300 * 300, 300, 300, encode(0.5))
    with pytest.raises(ValueError, match="90000 visual tokens is too large"):
        plan.kept(BY_NAME["qwen2_vl"].divide)


def test_plans_travel_as_integers() -> None:
    plan = ImagePlan(2144, 24, 65, encode({"thumbnail": 1.0, "canvas": 64}))
    assert ImagePlan.from_tensor(plan.to_tensor()) == plan


def test_selecting_imports_no_vllm() -> None:
    import subprocess
    import sys

    code = "import sys, gprune, gprune.cli; sys.exit('vllm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
