"""`Reduction`: what it refuses, appended rows, and its composition over parts of a group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gprune import Pruner, Reduction, VisualTokens, kept_count
from gprune.budget import PartBudgets
from gprune.pruners.image import GroupedImage, reduce_images
from gprune.pruners.ranking import highest, unchosen
from gprune.tokens import Group


@dataclass(frozen=True)
class FirstAndRest(Pruner):
    """The first tokens, and as an appended row the sum of all others; not registered.

    Attributes:
        how: whether the first tokens are merged by ``members``, by ``weights``, or not at all.
    """

    how: str = "dropped"

    name: ClassVar[str] = "first_and_rest"

    def choose(self, tokens: VisualTokens, k: int) -> Tensor | Reduction:
        if k == len(tokens):
            return torch.arange(k)
        kept = torch.arange(k - 1)
        appended = torch.ones(1, len(tokens))
        appended[:, : k - 1] = 0
        if self.how == "members" and k > 1:
            members = torch.full((len(tokens),), -1)
            members[: k - 1] = kept
            members[-1] = 0
            return Reduction(kept, members, appended=appended)
        if self.how == "weights" and k > 1:
            weights = torch.eye(len(tokens))[kept]
            weights[0, -1] = 1
            return Reduction(
                kept, weights=weights / weights.sum(1, keepdim=True), appended=appended
            )
        return Reduction(kept, appended=appended)


def numbered(n: int, **fields) -> VisualTokens:
    """Returns tokens whose only channel is 1 to n."""
    return VisualTokens(torch.arange(1.0, n + 1)[:, None], **fields)


def test_members_and_weights_exclude_each_other():
    kept = torch.tensor([0, 2])
    with pytest.raises(ValueError, match="members and weights are both given"):
        Reduction(kept, torch.tensor([0, 0, 1]), torch.ones(2, 3) / 3)


def test_a_plain_choice_changes_no_feature():
    found = Reduction(torch.tensor([1, 3]))
    x = torch.randn(5, 4)
    assert len(found) == 2
    assert not found.merges
    assert torch.equal(found.positions(5), found.kept)
    assert torch.equal(found.features(x), x[[1, 3]])
    assert found.member_counts().tolist() == [1, 1]


def test_members_are_averaged_and_counted():
    found = Reduction(torch.tensor([1, 3]), torch.tensor([0, 0, -1, 1, 0]))
    x = torch.tensor([[1.0], [2], [100], [7], [6]])
    assert found.merges
    assert found.features(x).squeeze(1).tolist() == [3, 7]
    assert found.member_counts().tolist() == [3, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_give_weighted_sums(dtype):
    found = Reduction(torch.tensor([0, 1]), weights=torch.tensor([[0.5, 0, 0.5], [0, 1, 0]]))
    x = torch.tensor([[1.0], [2], [5]], dtype=dtype)
    assert found.features(x).squeeze(1).tolist() == [3, 2]
    assert found.features(x).dtype == dtype
    with pytest.raises(ValueError, match="no whole number of tokens"):
        found.member_counts()


def test_appended_rows_take_the_positions_of_the_last_dropped_tokens():
    appended = torch.zeros(2, 6)
    appended[0, 1], appended[1, 5] = -1, -0.4
    found = Reduction(torch.tensor([0, 4]), appended=appended)
    x = torch.arange(6.0)[:, None]
    # Dropped are 1, 2, 3 and 5; the appended rows stand at 3 and 5.
    assert len(found) == 4
    assert found.merges
    assert found.positions(6).tolist() == [0, 3, 4, 5]
    assert found.features(x).squeeze(1).tolist() == [0, -1, 4, -2]
    assert found.features(x.bfloat16()).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="no whole number of tokens"):
        found.member_counts()


def test_appended_rows_beside_merged_ones():
    members = torch.tensor([0, -1, 0, -1])
    appended = torch.tensor([[0, 0.5, 0, 1]])
    found = Reduction(torch.tensor([2]), members, appended=appended)
    x = torch.tensor([[1.0], [2], [5], [8]])
    assert found.positions(4).tolist() == [2, 3]
    assert found.features(x).squeeze(1).tolist() == [3, 9]
    weighted = Reduction(
        torch.tensor([2]), weights=torch.tensor([[0.5, 0, 0.5, 0]]), appended=appended
    )
    assert torch.equal(weighted.features(x), found.features(x))


@pytest.mark.parametrize("use", [lambda found: found.positions(3), lambda found: found.features(X)])
def test_too_many_appended_rows(use):
    found = Reduction(torch.tensor([0, 1]), appended=torch.zeros(2, 3))
    with pytest.raises(
        ValueError, match=r"appended has 2 rows, but only 1 of 3 tokens are dropped"
    ):
        use(found)


X = torch.zeros(3, 1)


@given(n=st.integers(1, 30), k=st.integers(0, 30), rows=st.integers(1, 5), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_positions_and_features_agree(n, k, rows, seed):
    """Kept tokens keep their features; the others are the appended rows in order."""
    generator = torch.Generator().manual_seed(seed)
    rows = min(rows, n)
    k = min(k, n - rows)
    kept = torch.randperm(n, generator=generator)[:k].sort().values
    appended = torch.zeros(rows, n)
    appended[:, 0] = -torch.arange(1.0, rows + 1)
    found = Reduction(kept, appended=appended)
    positions = found.positions(n).tolist()
    assert positions == sorted(set(positions))
    assert len(positions) == len(found) == k + rows
    features = found.features(torch.arange(1.0, n + 1)[:, None]).squeeze(1)
    values = dict(zip(positions, features.tolist(), strict=True))
    dropped = [i for i in range(n) if i not in kept.tolist()]
    assert {i: values.pop(i) for i in kept.tolist()} == {i: i + 1.0 for i in kept.tolist()}
    assert values == {i: -1.0 - j for j, i in enumerate(dropped[-rows:])}


@pytest.mark.parametrize("keep", [1, 3, 0.5, 1.0])
@pytest.mark.parametrize("how", ["dropped", "members", "weights"])
def test_a_method_that_appends_a_row(how, keep):
    tokens = numbered(8)
    pruner = FirstAndRest(keep, how)
    found = pruner.reduce(tokens)
    k = kept_count(8, keep)
    assert len(found) == len(found.features(tokens.features)) == k
    assert torch.equal(pruner.select(tokens), found.kept)
    if k == 8:
        assert not found.merges
        return
    assert found.positions(8).tolist() == [*range(k - 1), 7]
    first = [4.5, *range(2, k)] if how != "dropped" else [*range(1, k)]
    expected = [*first[: k - 1], sum(range(k, 9))]
    assert found.features(tokens.features).squeeze(1).tolist() == expected


@pytest.mark.parametrize("how", ["dropped", "members", "weights"])
def test_appended_rows_with_protected_tokens(how):
    protected = torch.zeros(8, dtype=torch.bool)
    protected[[1, 7]] = True
    tokens = numbered(8, protected=protected)
    found = FirstAndRest(3, how).reduce(tokens)
    # Candidates are 1, 3, 4, 5, 6 and 7: the first two stay, the sum of the rest is appended.
    assert found.kept.tolist() == [0, 1, 2, 7]
    assert found.positions(8).tolist() == [0, 1, 2, 6, 7]
    first = 1 if how == "dropped" else (1 + 7) / 2
    assert found.features(tokens.features).squeeze(1).tolist() == [first, 2, 3, 22, 8]


@pytest.mark.parametrize("how", ["dropped", "members", "weights"])
def test_appended_rows_with_budgets_for_parts(how):
    """The rows of all parts take the positions of the last dropped tokens of the group."""
    parts = [(torch.arange(4), None), (torch.arange(4, 7), None), (torch.arange(7, 10), None)]
    budget = PartBudgets(parts, [2, 2, 0])
    tokens = numbered(10)
    found = FirstAndRest(lambda groups: [budget], how).reduce(tokens)
    assert found.kept.tolist() == [0, 4]
    assert len(found) == 4
    assert found.positions(10).tolist() == [0, 4, 8, 9]
    first = [1, 5] if how == "dropped" else [(1 + 4) / 2, (5 + 7) / 2]
    sums = [2 + 3 + 4, 6 + 7]
    assert found.features(tokens.features).squeeze(1).tolist() == [*first, *sums]


def test_parts_with_appended_rows_and_protected_tokens():
    protected = torch.zeros(6, dtype=torch.bool)
    protected[[0, 5]] = True
    parts = [(torch.arange(3), (1, 3)), (torch.arange(3, 6), (1, 3))]
    tokens = numbered(6, grid=(2, 3), protected=protected)
    found = FirstAndRest(lambda groups: [PartBudgets(parts, [1, 0])]).reduce(tokens)
    assert found.kept.tolist() == [0, 5]
    assert found.positions(6).tolist() == [0, 4, 5]
    assert found.features(tokens.features).squeeze(1).tolist() == [1, 2 + 3, 6]


def test_an_image_with_appended_rows():
    """Rows outside of all groups stay, and every appended row gets a row of the image."""
    features = torch.arange(1.0, 10)[:, None]
    groups = [Group(torch.arange(1, 5), (2, 2)), Group(torch.arange(5, 9), (2, 2))]
    [image] = reduce_images(FirstAndRest(2), [GroupedImage(features, groups)])
    assert image.merges
    assert [kept.tolist() for kept in image.kept] == [[0, 3], [0, 3]]
    assert image.rows.tolist() == [0, 1, 4, 5, 8]
    assert image.features.squeeze(1).tolist() == [1, 2, 3 + 4 + 5, 6, 7 + 8 + 9]
    assert image.member_counts is None


@given(n=st.integers(1, 40), k=st.integers(0, 40), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_unchosen_is_the_complement_of_highest(n, k, seed):
    scores = torch.randint(0, 4, (n,), generator=torch.Generator().manual_seed(seed)).float()
    chosen = highest(scores, min(k, n))
    rest = unchosen(chosen, n)
    assert chosen.tolist() == sorted(chosen.tolist())
    assert rest.tolist() == [i for i in range(n) if i not in chosen.tolist()]
    expected = sorted(range(n), key=lambda i: (-scores[i].item(), i))[: min(k, n)]
    assert chosen.tolist() == sorted(expected)
