"""SCOPE against plain loops: products and sums of gain and saliency, and which features it reads.

`test_relevance_methods.py` has the tests of greedy coverage.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gprune import SCOPE, VisualTokens
from gprune.graph import cosine_similarity
from gprune.pruners.scope import greedy_cover


def reference(x: torch.Tensor, saliency: list[float], k: int, add: bool) -> list[int]:
    """Follows the rule of the released code, in float64."""
    unit = x.double().numpy()
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    cosine, n = unit @ unit.T, len(x)
    covered = np.zeros(n)
    chosen: list[int] = []
    for _ in range(k):
        gain = [round(float(np.maximum(0, cosine[:, j] - covered).sum()), 7) for j in range(n)]
        score = [gain[j] + saliency[j] if add else gain[j] * saliency[j] for j in range(n)]
        best = max((j for j in range(n) if j not in chosen), key=lambda j: (score[j], -j))
        chosen.append(best)
        covered = np.maximum(covered, cosine[:, best])
    return sorted(chosen)


@given(
    n=st.integers(1, 30),
    seed=st.integers(0, 9999),
    share=st.floats(0.01, 1),
    power=st.sampled_from([1.0, 2.0]),
    add=st.booleans(),
    before=st.booleans(),
)
@settings(deadline=None, max_examples=100)
def test_scope(n, seed, share, power, add, before):
    random = np.random.default_rng(seed)
    x = torch.from_numpy(random.standard_normal((2, n, 5))).float()
    heads = torch.from_numpy(random.dirichlet(np.ones(n), 4)).float()
    attention = heads.mean(0)
    tokens = VisualTokens(x[0], attention=attention, vision=x[1] if before else None)
    k = max(1, int(n * share))
    total = (attention.double() * 4).tolist()  # the released code sums over heads
    expected = reference(x[int(before)], [value**power for value in total], k, add)
    pruner = SCOPE(k, power=power, combine="add" if add else "multiply", heads=4)
    assert pruner.select(tokens).tolist() == expected


@pytest.mark.parametrize("k", [1, 7, 40])
def test_lazy_sums_are_the_same(k):
    generator = torch.Generator().manual_seed(k)
    similarity = cosine_similarity(torch.randn(40, 3, generator=generator))
    saliency = (torch.rand(40, generator=generator, dtype=torch.float64) * 3).round()
    lazy, eager = (greedy_cover(similarity, saliency, k, lazy, add=True) for lazy in (True, False))
    assert torch.equal(lazy[0], eager[0])
    assert torch.equal(lazy[1], eager[1])


def test_the_number_of_heads_matters_only_in_sums():
    generator = torch.Generator().manual_seed(3)
    x, attention = torch.randn(60, 8, generator=generator), torch.rand(60, generator=generator)
    tokens = VisualTokens(x, attention=attention.softmax(0))
    one, many = SCOPE(20, heads=1), SCOPE(20, heads=4096)
    assert torch.equal(one.select(tokens), many.select(tokens))
    few, most = (SCOPE(20, combine="add", heads=h).select(tokens) for h in (1, 10**6))
    assert not torch.equal(few, most)
    assert torch.equal(most, attention.topk(20).indices.sort().values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"power": -1.0}, "power=-1.0"),
        ({"combine": "multi"}, "combine='multi'"),
        ({"heads": 0}, "heads=0"),
    ],
)
def test_parameters_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        SCOPE(0.5, **options)
