"""TRIM: the released form and the paper's, against naive implementations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gprune import TRIM, VisualTokens, kept_count
from tests.pruners import released_merging as released


def group(n: int, seed: int, clip: bool, parts: int = 1) -> VisualTokens:
    """Returns tokens with a question, in CLIP's space or in that of the features."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    aligned = 3 * normal(n, 4) if clip else None
    return VisualTokens(normal(n, 6), text=normal(parts, 4 if clip else 6), aligned=aligned)


def products(tokens: VisualTokens) -> list[float]:
    space = tokens.in_text_space().double().numpy()
    text = tokens.text.double().numpy()
    return [float(np.mean([row @ part for part in text])) for row in space]


def scores(tokens: VisualTokens) -> list[float]:
    """Softmax of minus the dot product in CLIP's space, of the dot product elsewhere."""
    sign = 1 if tokens.aligned is None else -1
    logits = np.array([sign * value for value in products(tokens)])
    weights = np.exp(logits - logits.max())
    return (weights / weights.sum()).tolist()


@pytest.mark.parametrize("clip", [True, False])
@given(
    n=st.integers(1, 60),
    seed=st.integers(0, 9999),
    share=st.floats(0.01, 1),
    parts=st.integers(1, 3),
)
@settings(deadline=None, max_examples=60)
def test_trim(n, seed, share, parts, clip):
    tokens = group(n, seed, clip, parts)
    x = tokens.features
    for keep in (kept_count(n, share), "adaptive"):
        found = TRIM(keep).reduce(tokens)
        score = scores(tokens)
        count = released.outliers(score) if keep == "adaptive" else keep - 1
        if count + 1 >= n and len(found) == n:
            assert torch.equal(found.features(x), x)
            continue
        kept, _, mean = released.trim(x.double().numpy(), score, count)
        assert found.kept.tolist() == kept
        assert len(found) == len(kept) + 1
        assert np.allclose(found.appended_features(x)[0].numpy(), mean, atol=1e-5)
        positions = found.positions(n).tolist()
        for token in kept:
            assert torch.equal(found.features(x)[positions.index(token)], x[token])


def test_the_least_similar_stay_in_clips_space():
    """And the most similar in the paper's form, and in the language model's space."""
    x = torch.eye(5)
    text = torch.tensor([[5.0, 4, 3, 2, 1]])
    clip = VisualTokens(x, text=text, aligned=x)
    assert TRIM(3).select(clip).tolist() == [3, 4]
    assert TRIM(3, form="paper").select(clip).tolist() == [0, 1]
    assert TRIM(3).select(VisualTokens(x, text=text)).tolist() == [0, 1]


def test_lengths_count_except_in_the_papers_form():
    aligned = torch.tensor([[1.0, 0], [3, 3], [-0.1, 0], [0, 1]])
    tokens = VisualTokens(torch.eye(4), text=torch.tensor([[1.0, 0]]), aligned=aligned)
    # Products are 1, 3, -0.1 and 0; cosines 1, 0.71, -1 and 0.
    assert TRIM(2, form="paper").select(tokens).tolist() == [0]
    assert TRIM(4).reduce(tokens).kept.tolist() == [0, 1, 2, 3]
    assert TRIM(3).select(tokens).tolist() == [2, 3]
    grown = aligned.clone()
    grown[2] *= -50  # from the least to the most
    changed = VisualTokens(torch.eye(4), text=tokens.text, aligned=grown)
    assert TRIM(3).select(changed).tolist() == [0, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_budgets_at_both_ends(dtype):
    tokens = group(9, 2, True)
    x = tokens.features.to(dtype)
    tokens = VisualTokens(x, text=tokens.text, aligned=tokens.aligned)
    everything = TRIM(1.0).reduce(tokens)
    assert not everything.merges
    assert everything.kept.tolist() == list(range(9))
    mean = TRIM(1).reduce(tokens)
    assert mean.kept.tolist() == []
    assert mean.positions(9).tolist() == [8]
    assert mean.features(x).dtype == dtype
    assert torch.allclose(mean.features(x)[0].float(), x.float().mean(0), atol=0.01)


def test_without_outliers_one_token_is_kept():
    """The released code raises an error there."""
    aligned = torch.linspace(0, 0.1, 8)[:, None]
    tokens = VisualTokens(torch.eye(8), text=torch.ones(1, 1), aligned=aligned)
    found = TRIM("adaptive").reduce(tokens)
    assert found.kept.tolist() == [0]
    assert len(found) == 2


def test_huge_products_are_ordered():
    x = torch.full((6, 2), 3e38)
    x[3] = -3e38
    found = TRIM(3).reduce(VisualTokens(x, text=torch.full((1, 2), 3e38)))
    assert found.kept.tolist() == [0, 1]
    assert len(TRIM("adaptive").reduce(VisualTokens(x, text=torch.full((1, 2), 3e38)))) >= 2


def test_bad_input():
    with pytest.raises(ValueError, match="form='code' must be released or paper"):
        TRIM(0.5, form="code")
    for keep in (0.5, "adaptive"):
        with pytest.raises(ValueError, match="text is missing: trim needs"):
            TRIM(keep).reduce(VisualTokens(torch.eye(4)))
