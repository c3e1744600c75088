from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gprune import GPrune, RandomPruner, VisualTokens, kept_count
from gprune.budget import budgets


@pytest.mark.parametrize(
    ("n", "keep", "expected"),
    [
        (576, 0.36, 207),
        (2880, 0.36, 1036),
        (100, 0.29, 29),  # 100 * 0.29 is 28.999999999999996 in floats
        (10, 0.01, 1),
        (10, 1.0, 10),
        (10, 1, 1),
        (10, 64, 10),
        (1, 0.5, 1),
        (576, np.float32(0.25), 144),
        (576, np.int64(64), 64),
    ],
)
def test_kept_count(n, keep, expected):
    assert kept_count(n, keep) == expected


@given(st.integers(1, 100_000), st.integers(1, 10**6))
def test_equals_exact_arithmetic(n, millionths):
    exact = Fraction(millionths, 10**6) * n
    assert kept_count(n, millionths / 10**6) == max(1, exact.numerator // exact.denominator)


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.01, float("nan"), float("inf"), 0, -3])
def test_out_of_range(keep):
    with pytest.raises(ValueError, match=r"keep=.*(ratio|count)"):
        kept_count(10, keep)
    with pytest.raises(ValueError, match="keep="):
        GPrune(keep)


@pytest.mark.parametrize("keep", [True, None, "0.5", 1 + 2j])
def test_not_a_number(keep):
    with pytest.raises(TypeError, match="keep must be"):
        GPrune(keep)


def test_empty_group():
    with pytest.raises(ValueError, match="n=0"):
        kept_count(0, 0.5)


def test_a_budget_for_each_kind():
    tile, frame = (VisualTokens(torch.ones(4, 2), kind=kind) for kind in ("tile", "frame"))
    assert budgets({"tile": 0.5, "frame": 3}, [tile, frame, tile]) == [0.5, 3, 0.5]
    assert budgets(0.25, [tile, frame]) == [0.25, 0.25]
    assert budgets(lambda groups: [len(group) // 2 for group in groups], [tile]) == [2]
    assert RandomPruner({"tile": 2}).select(tile).shape == (2,)


def test_the_result_of_a_function_is_checked():
    tile = VisualTokens(torch.ones(4, 2), kind="tile")
    with pytest.raises(TypeError, match="keep must be"):
        budgets(lambda groups: [True], [tile])
    (given,) = budgets(lambda groups: [np.float32(0.25)], [tile])
    assert type(given) is float


@pytest.mark.parametrize(
    ("keep", "error", "message"),
    [
        ({}, ValueError, "must map kinds of groups"),
        ({"picture": 0.5}, ValueError, "kinds are image"),
        ({"tile": 1.5}, ValueError, "must lie in"),
        ({"tile": "all"}, TypeError, "ratio in"),
    ],
)
def test_bad_rules(keep, error, message):
    with pytest.raises(error, match=message):
        RandomPruner(keep)


def test_mappings_and_functions_that_do_not_fit_the_groups():
    tile = VisualTokens(torch.ones(4, 2), kind="tile")
    with pytest.raises(ValueError, match="no budget for groups of kind tile"):
        RandomPruner({"frame": 2}).select(tile)
    with pytest.raises(ValueError, match="returned 2 budgets for 1 groups"):
        RandomPruner(lambda groups: [1, 2]).select(tile)
    with pytest.raises(ValueError, match="must lie in"):
        RandomPruner(lambda groups: [0.0]).select(tile)
    with pytest.raises(ValueError, match="kind='picture' must be one of"):
        VisualTokens(torch.ones(4, 2), kind="picture")
