"""VisionZip: the released form and the paper's, against naive implementations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gprune import VisionZip, VisualTokens, kept_count
from tests.pruners import released_merging as released


def group(n: int, seed: int) -> VisualTokens:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return VisualTokens(normal(n, 5), attention=(2 * normal(n)).softmax(0), keys=normal(n, 3, 4))


@given(n=st.integers(1, 90), seed=st.integers(0, 9999), share=st.floats(0.01, 1))
@settings(deadline=None, max_examples=100)
def test_visionzip(n, seed, share):
    tokens = group(n, seed)
    k = kept_count(n, share)
    x = tokens.features.double().numpy()
    keys = tokens.keys.double().numpy()
    kept, rows, _ = released.visionzip(x, tokens.attention.tolist(), keys, k, 10 * k // 64)
    found = VisionZip(k).reduce(tokens)
    assert found.kept.tolist() == kept
    assert np.allclose(found.features(tokens.features).numpy(), np.stack(rows), atol=1e-5)
    if k == n:
        assert not found.merges


@given(n=st.integers(2, 60), seed=st.integers(0, 999), share=st.floats(0.1, 0.9))
@settings(deadline=None, max_examples=40)
def test_the_papers_form_is_a_mean(n, seed, share):
    """Both forms keep the same tokens, and each token goes to the same target."""
    tokens = group(n, seed)
    k = kept_count(n, share)
    one = VisionZip(k, contextual=0.4).reduce(tokens)
    other = VisionZip(k, contextual=0.4, form="paper").reduce(tokens)
    assert torch.equal(one.kept, other.kept)
    if other.members is None:
        assert int(k * 0.4) == 0
        return
    assert other.members.min() >= 0  # no token is lost
    x = tokens.features
    sizes = torch.bincount(other.members, minlength=k)
    total = (other.features(x) * sizes[:, None]).sum(0)
    assert torch.allclose(total, x.sum(0), atol=1e-4)
    for place, token in enumerate(one.kept.tolist()):
        came = [i for i in (other.members == place).nonzero().squeeze(1).tolist() if i != token]
        expected = x[token] + (x[came].mean(0) if came else 0)
        assert torch.allclose(one.features(x)[place], expected, atol=1e-5)


def test_dominant_rows_and_targets_to_which_none_came_are_exact():
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    keys = torch.ones(12, 2)
    keys[6:] *= -1  # all of the rest go to the first target
    keys[[4, 8]] = torch.tensor([[1.0, 1.0], [0.0, -1.0]])
    tokens = VisualTokens(x, attention=torch.linspace(1, 0, 12), keys=keys)
    found = VisionZip(6, contextual=0.34).reduce(tokens)
    assert found.kept.tolist() == [0, 1, 2, 3, 4, 8]
    changed = found.changed(12)
    assert changed.tolist() == [False, False, False, False, True, True]
    assert torch.equal(found.features(x)[:4], x[:4])
    alone = VisionZip(8, contextual=0.25)
    tokens = VisualTokens(x, attention=torch.linspace(1, 0, 12), keys=torch.ones(12, 2))
    found = alone.reduce(tokens)  # equal keys: all go to the first target
    assert found.kept.tolist() == [0, 1, 2, 3, 4, 5, 6, 9]
    assert found.changed(12).tolist() == [False] * 6 + [True, False]
    assert torch.equal(found.features(x)[7], x[9])
    assert torch.allclose(found.features(x)[6], x[6] + x[[7, 8, 10, 11]].mean(0))


def test_keys_are_averaged_over_heads():
    """Two heads whose parts cancel say nothing; joint keys would say something else."""
    tokens = group(40, 5)
    averaged = VisualTokens(tokens.features, attention=tokens.attention, keys=tokens.keys.mean(1))
    joint = VisualTokens(tokens.features, attention=tokens.attention, keys=tokens.keys.flatten(1))
    pruner = VisionZip(12, contextual=0.4)
    x = tokens.features
    assert torch.allclose(pruner.reduce(tokens).features(x), pruner.reduce(averaged).features(x))
    assert not torch.allclose(pruner.reduce(tokens).features(x), pruner.reduce(joint).features(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VisionZip(0.5, contextual=1.0), "contextual=1.0"),
        (lambda: VisionZip(0.5, form="mean"), "form='mean' must be released or paper"),
        (lambda: VisionZip("adaptive"), "keep='adaptive' needs a method that finds"),
    ],
)
def test_parameters_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
