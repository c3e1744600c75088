from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gprune
from gprune import L2NormPruner, RandomPruner, UniformGridPruner, VisualTokens, kept_count
from gprune.pruners import group_methods
from tests.pruners.signals import with_signals


@given(
    name=st.sampled_from(group_methods()),
    rows=st.integers(1, 15),
    columns=st.integers(1, 15),
    keep=st.one_of(st.floats(1e-6, 1), st.integers(1, 300)),
)
@settings(deadline=None, max_examples=300)
def test_every_method_keeps_the_right_number(name, rows, columns, keep):
    n = rows * columns
    tokens = with_signals(torch.randn(n, 5), grid=(rows, columns))
    # Rows that are no token's own count in the budget.
    kept = gprune.make(name, keep=keep).reduce(tokens).positions(n).tolist()
    assert len(kept) == kept_count(n, keep)
    assert kept == sorted(set(kept))
    assert kept[0] >= 0
    assert kept[-1] < n


@pytest.mark.parametrize("name", group_methods())
def test_every_method_keeps_everything_at_one(name):
    tokens = with_signals(torch.randn(12, 5), grid=(3, 4))
    assert gprune.make(name, keep=1.0).select(tokens).tolist() == list(range(12))


@pytest.mark.parametrize("seed", [0.0, True, "7", None, 2**63])
def test_random_needs_a_whole_seed(seed):
    with pytest.raises(ValueError, match="must be a whole number of 64 bits"):
        RandomPruner(0.3, seed=seed)


def test_random_depends_only_on_its_seed():
    tokens = VisualTokens(torch.randn(100, 4))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = RandomPruner(0.3, seed=7).select(tokens)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, RandomPruner(0.3, seed=7).select(VisualTokens(torch.rand(100, 9))))
    assert not torch.equal(one, RandomPruner(0.3, seed=8).select(tokens))
    assert set(RandomPruner(0.1, seed=7).select(tokens).tolist()) <= set(one.tolist())


def test_random_is_uniform():
    tokens = VisualTokens(torch.ones(10, 1))
    counts = torch.zeros(10)
    for seed in range(2000):
        counts[RandomPruner(3, seed=seed).select(tokens)] += 1
    assert ((counts / 2000 - 0.3).abs() < 0.05).all()


def test_uniform_grid_is_even():
    tokens = VisualTokens(torch.ones(64, 1), grid=(8, 8))
    kept = UniformGridPruner(16).select(tokens)
    cells = torch.stack([kept // 8, kept % 8], 1) // 2
    assert len({tuple(cell) for cell in cells.tolist()}) == 16  # one in each 2x2 cell
    line = UniformGridPruner(3).select(VisualTokens(torch.ones(9, 1)))
    assert line.tolist() == [1, 4, 7]


def test_l2_norm_keeps_the_longest():
    x = torch.tensor([[1.0, 0], [0, 3], [2, 2], [0, 3], [0, 0]])
    assert L2NormPruner(2).select(VisualTokens(x)).tolist() == [1, 3]
    assert L2NormPruner(1).select(VisualTokens(x)).tolist() == [1]


def test_make_and_methods():
    assert gprune.methods()[0] == "gprune"
    assert gprune.make("gprune", keep=0.5, threshold=0.7) == gprune.GPrune.paper(0.5)
    assert gprune.make("recommended", keep=0.5).name in gprune.methods()
    with pytest.raises(ValueError, match=r"method 'nosuch' is unknown; choose one of gprune"):
        gprune.make("nosuch", keep=0.5)
    with pytest.raises(ValueError, match="did you mean 'divprune'"):
        gprune.make("div_prune", keep=0.5)
    with pytest.raises(TypeError):
        gprune.make("random", keep=0.5, threshold=0.7)
