from __future__ import annotations

import pytest
import torch

from gprune import GPrune, VisualTokens


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"features": torch.zeros(2, 3, 4)}, r"features must have shape \[n, d\]"),
        ({"features": torch.zeros(0, 4)}, "empty"),
        ({"features": torch.zeros(4, 0)}, "empty"),
        ({"features": torch.zeros(4, 2, dtype=torch.long)}, "floating point"),
        ({"grid": (2, 3)}, r"grid=\(2, 3\) has 6 cells but features have 4"),
        ({"grid": (-2, -2)}, "grid="),
        ({"positions": torch.zeros(4)}, r"positions must have shape \[4, 2\]"),
        ({"attention": torch.zeros(3)}, r"attention must have shape \[4\]"),
        ({"protected": torch.zeros(4)}, "protected must be a bool tensor"),
        ({"protected": torch.zeros(3, dtype=torch.bool)}, r"protected must have shape \[4\]"),
        ({"text": torch.zeros(3, 9)}, r"text must have shape \[m, 8\]"),
    ],
)
def test_bad_shapes(fields, message):
    with pytest.raises(ValueError, match=message):
        VisualTokens(**{"features": torch.ones(4, 8), **fields})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e39, -1e300])
@pytest.mark.parametrize("name", ["features", "attention", "text", "positions"])
def test_values_that_cannot_be_ranked(name, value):
    """Values are compared in float32, so a float64 value beyond its range is refused too."""
    shapes = {"features": (4, 8), "attention": (4,), "text": (2, 8), "positions": (4, 2)}
    fields = {"features": torch.ones(4, 8), name: torch.ones(shapes[name])}
    fields[name] = fields[name].to(torch.float64 if abs(value) < torch.inf else torch.float32)
    fields[name].view(-1)[-1] = value
    with pytest.raises(ValueError, match=f"{name} of shape .* NaN or infinite"):
        GPrune(0.5).select(VisualTokens(**fields))


def test_coordinates():
    tokens = VisualTokens(torch.ones(6, 2), grid=(2, 3))
    expected = [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert tokens.coordinates().tolist() == expected
    own = torch.rand(6, 2)
    assert VisualTokens(torch.ones(6, 2), positions=own).coordinates() is own
    with pytest.raises(ValueError, match="both missing"):
        VisualTokens(torch.ones(6, 2)).coordinates()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"features": [[1.0]]}, "features must be a tensor, got list"),
        ({"grid": torch.tensor([2, 3])}, "grid must be"),
        ({"grid": (2, 3, 1)}, "grid must be"),
        ({"grid": (2.0, 3.0)}, "two whole numbers"),
        ({"text": "what?"}, "text must be a tensor, got str"),
        ({"attention": [0.1] * 6}, "attention must be a tensor, got list"),
    ],
)
def test_a_field_of_the_wrong_type_is_named(fields, message):
    with pytest.raises(TypeError, match=message):
        VisualTokens(**{"features": torch.ones(6, 4), **fields})
