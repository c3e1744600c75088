"""Which tokens the plugin keeps: the same as in transformers, also of broken features."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import gprune
from gprune import kept_count
from gprune.budget import GROUP_KINDS
from gprune.layouts import family_of
from gprune.proof.models import SIDE, SPECIMENS
from gprune.serving.families import SERVED
from gprune.serving.images import prune_images
from gprune.serving.plan import ImagePlan, encode_keep
from gprune.serving.row_numbers import BASE, split_row_numbers, with_row_numbers
from gprune.serving.settings import ServerSettings, served_methods

BY_NAME = {family.name: family for family in SERVED}


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def plan_of(
    name: str, features: torch.Tensor, image: dict[str, torch.Tensor], keep: Any
) -> ImagePlan:
    """Returns the frontend's plan for an image of gprune/proof/models.py."""
    encoded = encode_keep(keep)
    if "image_grid_thw" in image:
        _, rows, columns = (image["image_grid_thw"][0] // 2).tolist()
        return ImagePlan(len(features), rows, columns, encoded)
    if name in ("llava_next", "llava_onevision"):
        canvas = len(features) - SIDE * SIDE
        model = SPECIMENS[name].build()
        rows = int((features[SIDE * SIDE :] == model.model.image_newline).all(-1).sum())
        return ImagePlan(len(features), rows, canvas // rows - 1, encoded)
    return ImagePlan(len(features), SIDE, SIDE, encoded)


@pytest.mark.parametrize("keep", [0.36, 3, dict.fromkeys(GROUP_KINDS, 0.5) | {"thumbnail": 1.0}])
@pytest.mark.parametrize("name", BY_NAME)
@torch.no_grad()
def test_every_method_keeps_the_same_tokens_as_in_transformers(name: str, keep: Any) -> None:
    specimen, family = SPECIMENS[name], BY_NAME[name]
    model = specimen.build()
    assert family is family_of(model)
    for index in range(3):
        image = specimen.image(noise, index)
        output = family.encode(model, "image", image)
        (features,) = family.features(model, output)
        plan = plan_of(name, features, image, keep)
        grid = (1, plan.rows, plan.columns) if family.multimodal_positions else None
        groups = family.groups(model, "image", features, grid)
        for method in served_methods():
            stays, expected = set(range(len(features))), features.clone()
            for group in groups:
                tokens = gprune.VisualTokens(features[group.rows], group.grid, kind=group.kind)
                budget = keep[group.kind] if isinstance(keep, dict) else keep
                reduction = gprune.make(method, keep=budget).reduce(tokens)
                kept_rows = group.rows[reduction.positions(len(tokens))]
                stays -= set(group.rows.tolist()) - set(kept_rows.tolist())
                expected[kept_rows] = reduction.features(tokens.features)
            settings = ServerSettings(keep, method)
            (pruned,) = prune_images([features], [plan], family, settings.pruner, features.shape[1])
            kept, rows = split_row_numbers(pruned)
            assert rows.tolist() == sorted(stays), method
            assert torch.equal(kept, expected[rows]), method
            assert len(rows) == plan.kept_tokens(family)


@pytest.mark.parametrize("name", BY_NAME)
@torch.no_grad()
def test_groups_from_counts_are_those_from_features(name: str) -> None:
    specimen, family = SPECIMENS[name], BY_NAME[name]
    model = specimen.build()
    for index in range(3):
        image = specimen.image(noise, index)
        (features,) = family.features(model, family.encode(model, "image", image))
        plan = plan_of(name, features, image, 0.5)
        grid = (1, plan.rows, plan.columns) if family.multimodal_positions else None
        from_features = family.groups(model, "image", features, grid)
        from_counts = plan.groups(family)
        assert [group.rows.tolist() for group in from_counts] == [
            group.rows.tolist() for group in from_features
        ]
        assert [(group.grid, group.kind) for group in from_counts] == [
            (group.grid, group.kind) for group in from_features
        ]


def prune(
    features: torch.Tensor, keep: Any, method: str = "gprune", width: int | None = None
) -> Any:
    plan = ImagePlan(len(features), 4, len(features) // 4, encode_keep(keep))
    return prune_images(
        [features],
        [plan],
        BY_NAME["llava"],
        ServerSettings(keep, method).pruner,
        width or features.shape[1],
    )[0]


@pytest.mark.parametrize("method", served_methods())
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_rows_that_are_not_finite_rank_last(method: str, value: float, caplog: Any) -> None:
    features = noise(16, 8)
    features[[0, 5, 6], 2] = value
    kept, rows = split_row_numbers(prune(features, 0.5, method))
    assert len(rows) == 8
    assert not {0, 5, 6} & set(rows.tolist())
    assert kept.isfinite().all()
    assert [record.message for record in caplog.records] == [
        "3 of 16 visual tokens of an image are NaN or infinite and rank last; find where the "
        "vision encoder overflows (float16 is the usual reason: try bfloat16)"
    ]


@pytest.mark.parametrize("method", served_methods())
@pytest.mark.parametrize("value", [0.0, 1e30, 1e-30, -1e30])
def test_extreme_finite_features_are_pruned(method: str, value: float) -> None:
    for features in (torch.full((16, 8), value), noise(16, 8) * value):
        kept, rows = split_row_numbers(prune(features, 0.36, method))
        assert len(kept) == len(set(rows.tolist())) == kept_count(16, 0.36)


def test_an_empty_canvas_is_no_group() -> None:
    family = BY_NAME["llava_next"]
    assert [group.kind for group in family.layout(16 + 8, 8, 0)] == ["thumbnail"]
    assert [group.kind for group in family.layout(16, 0, 0)] == ["thumbnail"]
    assert ImagePlan(16 + 8, 8, 0, encode_keep(0.5)).kept_tokens(family) == 8 + 8


def test_lowest_indices_fill_up_where_too_few_rows_are_finite() -> None:
    features = torch.full((16, 8), float("nan"))
    features[[3, 9]] = 1.0
    _, rows = split_row_numbers(prune(features, 4))
    assert rows.tolist() == [0, 1, 3, 9]


def test_an_image_without_finite_rows_has_a_row_for_each_placeholder() -> None:
    features = torch.full((16, 8), float("nan"))
    assert len(prune(features, 0.36)) == kept_count(16, 0.36)


def test_no_images_are_no_work() -> None:
    settings = ServerSettings(0.5)
    assert prune_images([], [], BY_NAME["llava"], settings.pruner, 8) == []


def test_channels_beyond_the_width_are_gathered_and_not_read() -> None:
    features = noise(16, 8)
    deepstack = torch.arange(16.0)[:, None].expand(-1, 3)
    kept, rows = split_row_numbers(
        prune(torch.cat([features, deepstack], 1), 0.36, "tome", width=8)
    )
    alone, same_rows = split_row_numbers(prune(features, 0.36, "tome"))
    assert torch.equal(rows, same_rows)
    assert torch.equal(kept[:, :8], alone)
    assert torch.equal(kept[:, 8], rows.float())


def test_another_number_of_rows_than_planned_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="returned 16 rows for an image of 20"):
        prune_images(
            [noise(16, 8)],
            [ImagePlan(20, 4, 5, encode_keep(0.5))],
            BY_NAME["llava"],
            ServerSettings(0.5).pruner,
            8,
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_row_numbers_survive_every_dtype(dtype: torch.dtype) -> None:
    rows = torch.tensor([0, 1, 255, 256, 257, 4097, BASE**2 - 1])
    features = noise(len(rows), 8).to(dtype)
    kept, numbers = split_row_numbers(with_row_numbers(features, rows))
    assert torch.equal(numbers, rows)
    assert torch.equal(kept, features)


def test_a_kind_without_budget_is_refused_by_name() -> None:
    plan = ImagePlan(4 + 6, 2, 2, encode_keep({"thumbnail": 0.5}))
    with pytest.raises(ValueError, match="no budget for groups of kind canvas"):
        plan.kept_tokens(BY_NAME["llava_next"])


def test_an_image_too_large_to_number_is_refused() -> None:
    plan = ImagePlan(300 * 300, 300, 300, encode_keep(0.5))
    with pytest.raises(ValueError, match="90000 visual tokens is too large"):
        plan.kept_tokens(BY_NAME["qwen2_vl"])


def test_plans_survive_conversion_to_integers() -> None:
    plan = ImagePlan(2144, 24, 65, encode_keep({"thumbnail": 1.0, "canvas": 64}))
    assert ImagePlan.from_tensor(plan.to_tensor()) == plan


def test_gprune_does_not_import_vllm() -> None:
    import subprocess
    import sys

    code = "import sys, gprune, gprune.cli; sys.exit('vllm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_serving_does_not_import_the_hook_in_transformers() -> None:
    import subprocess
    import sys

    code = (
        "import sys, gprune.serving.command, gprune.serving.images; "
        "sys.exit('gprune.hf' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
