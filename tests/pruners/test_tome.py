"""ToMe against plain lists of members: odd numbers, the order between rounds, sizes."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from gprune import ToMe, VisualTokens


def features(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, d))).float()


def reference(x: np.ndarray, k: int) -> list[list[int]]:
    """Merges in rounds; returns the members of each token, the one that keeps its place last."""
    groups = [[i] for i in range(len(x))]

    def unit(members: list[int]) -> np.ndarray:
        mean = sum(x[i] for i in members) / len(members)
        return mean / np.linalg.norm(mean)

    while len(groups) > k:
        first, second = groups[::2], groups[1::2]
        pairs = []
        for i, one in enumerate(first):
            near = [float(unit(one) @ unit(other)) for other in second]
            pairs.append((max(near), i, int(np.argmax(near))))
        pairs.sort(key=lambda pair: (-pair[0], pair[1]))
        assume(all(a[0] - b[0] > 1e-5 for a, b in itertools.pairwise(pairs)))
        merging = min(len(groups) - k, len(groups) // 2)
        for _, i, j in pairs[:merging]:
            second[j][:0] = first[i]
        # The first set's others in the order of similarity, then the second set.
        groups = [first[i] for _, i, _ in pairs[merging:]] + second
    return sorted(groups, key=lambda members: members[-1])


@example(n=25, seed=0, k=3)
@example(n=27, seed=1, k=5)
@given(n=st.integers(2, 40), seed=st.integers(0, 9999), k=st.integers(1, 40))
@settings(deadline=None, max_examples=100)
def test_bipartite_soft_matching(n, seed, k):
    x = features(n, 6, seed)
    k = min(k, n)
    groups = reference(x.double().numpy(), k)
    found = ToMe(k).reduce(VisualTokens(x))
    assert found.kept.tolist() == [members[-1] for members in groups]
    assert found.member_counts().tolist() == [len(members) for members in groups]
    means = found.features(x)
    for index, members in enumerate(groups):
        assert (found.members == index).nonzero().squeeze(1).tolist() == sorted(members)
        assert torch.allclose(means[index], x[members].mean(0), atol=1e-5)


def test_a_round_leaves_one_of_an_odd_number():
    """Of 5 tokens at most 2 merge in a round, so the third is left and comes first in the next."""
    angles = torch.tensor([0.0, 0.1, 2.0, 2.1, 5.5])
    x = torch.stack([angles.cos(), angles.sin()], 1)
    found = ToMe(3).reduce(VisualTokens(x))
    assert found.kept.tolist() == [1, 3, 4]
    assert found.members.tolist() == [0, 0, 1, 1, 2]
    # The next round begins with token 4, so its sets are {4, 3} and {1}.
    again = ToMe(2).reduce(VisualTokens(x))
    assert again.kept.tolist() == [1, 3]
    assert again.members.tolist() == [0, 0, 1, 1, 0]


def test_copies_merge_first():
    x = features(12, 5, 2).repeat_interleave(2, 0)
    found = ToMe(12).reduce(VisualTokens(x))
    assert found.kept.tolist() == list(range(1, 24, 2))
    assert torch.equal(found.features(x), x[1::2])
