"""DART against its definition, its two ways to count, and the order of turns."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import gprune
from gprune import DART, VisualTokens
from gprune.pruners.one_layer import states_of_features
from tests.pruners import decoder_references as references
from tests.pruners.decoder_references import decoder_tokens

SIZES = {
    "n": st.integers(1, 40),
    "m": st.integers(0, 6),
    "seed": st.integers(0, 2**31 - 1),
    "k": st.integers(1, 40),
    "pivots": st.integers(1, 9),
    "text_pivots": st.integers(0, 5),
}


def features(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(**SIZES, overspend=st.booleans())
@settings(deadline=None)
def test_each_pivot_takes_the_least_similar(n, m, seed, k, pivots, text_pivots, overspend):
    tokens, k = decoder_tokens(n, m, seed), min(k, n)
    pruner = DART(k, pivots=pivots, text_pivots=text_pivots, overspend=overspend)
    expected = references.dart(tokens, k, pivots, text_pivots, overspend)
    number = pruner.count(0, 1, tokens)
    assert number == len(expected)
    assert pruner.drop(tokens, number).kept.tolist() == expected
    if not overspend:
        assert number == k


@given(**SIZES, overspend=st.booleans())
@settings(deadline=None)
def test_before_the_language_model(n, m, seed, k, pivots, text_pivots, overspend):
    """All pivots are visual, and features stand for keys and hidden states."""
    x, k = features(n, 6, seed), min(k, n)
    pruner = DART(k, layer=0, pivots=pivots, text_pivots=text_pivots, overspend=overspend)
    tokens = replace(decoder_tokens(n, 0, seed), keys=x, normed=x)
    expected = references.dart(tokens, k, pivots + text_pivots, 0, overspend)
    assert pruner.select(VisualTokens(x)).tolist() == expected


@given(seed=st.integers(0, 2**31 - 1), k=st.integers(8, 60))
@settings(deadline=None)
def test_turns_of_a_set(seed, k):
    """Eight integers in a set of CPython stand by their remainder of 32, unless two share one."""
    n = 64
    tokens = decoder_tokens(n, 12, seed)
    start = int(tokens.columns[0])
    pruner = DART(k, turns="set", overspend=True)
    pivots = pruner.find_pivots(tokens, k)
    places = [*pivots.visual.tolist(), *(n + pivots.text).tolist()]
    assume(len({(start + place) % 32 for place in places}) == 8)
    turns = [places[turn] for turn in pivots.order.tolist()]
    assert turns == sorted(places, key=lambda place: (start + place) % 32)
    expected = references.dart(tokens, k, overspend=True, turns=turns)
    assert pruner.drop(tokens, 0).kept.tolist() == expected


def test_turns_of_a_set_depend_on_where_the_image_starts():
    tokens = decoder_tokens(64, 12, 5)

    def orders(turns: str) -> set[tuple[int, ...]]:
        moved = [replace(tokens, columns=tokens.columns + shift) for shift in range(32)]
        pivots = [DART(30, turns=turns).find_pivots(one, 30) for one in moved]
        return {tuple(one.order.tolist()) for one in pivots}

    assert len(orders("set")) > 1
    assert len(orders("norm")) == 1


@pytest.mark.parametrize(
    ("k", "m", "number"), [(64, 12, 68), (128, 12, 132), (63, 12, 60), (64, 2, 64), (3, 12, 4)]
)
def test_the_released_number(k, m, number):
    """4 visual pivots, and of all pivots each a rounded down share of the budget."""
    tokens = decoder_tokens(196, m, 1)
    pruner = DART(k, overspend=True)
    assert pruner.count(0, 1, tokens) == number
    assert len(pruner.drop(tokens, number)) == number
    if m == 12:
        assert pruner.planned(0, 1, 196) == number
        assert pruner.schedule(196, 4) == [196, 196, number, number]
    assert DART(k).schedule(196, 4) == [196, 196, k, k]


def test_all_tokens_at_most():
    tokens = decoder_tokens(9, 4, 2)
    pruner = DART(8, overspend=True)
    assert pruner.count(0, 1, tokens) == 9
    assert pruner.at_stage(0, 1, tokens) is None
    assert len(pruner.drop(tokens, 9)) == 9


def test_text_decides_too():
    tokens = decoder_tokens(64, 8, 3)
    other = replace(tokens, normed_text=-tokens.normed_text)
    kept = DART(32).drop(tokens, 32).kept
    assert not torch.equal(kept, DART(32).drop(other, 32).kept)
    without = DART(32, text_pivots=0)
    assert torch.equal(without.drop(tokens, 32).kept, without.drop(other, 32).kept)


def test_an_instance_before_the_language_model():
    assert DART.scope == DART(0.3).scope == "decoder"
    pruner = DART(0.3, layer=0)
    assert pruner.scope == "group"
    for same in (pickle.loads(pickle.dumps(pruner)), replace(pruner, turns="norm")):
        assert same == pruner
        assert same.scope == "group"
    assert replace(pruner, layer=1).scope == "decoder"
    assert gprune.make("dart", keep=0.3, layer=0) == pruner
    assert pruner.stages(3) == ()
    assert pruner.schedule(100, 3) == [30, 30, 30]
    x = VisualTokens(features(20, 4, 0), kind="canvas")
    assert len(DART({"canvas": 0.5}, layer=0).select(x)) == 10
    with pytest.raises(TypeError, match="must be a ratio or a count"):
        DART({"canvas": 0.5})
    with pytest.raises(ValueError, match=r"dart reads keys.*DART\(keep, layer=0\)"):
        DART(0.5).select(x)


def test_protected_tokens_are_kept_on_top():
    x = features(20, 4, 0)
    protected = torch.zeros(20, dtype=torch.bool)
    protected[[3, 4]] = True
    rest = [i for i in range(20) if i not in (3, 4)]
    alone = DART(6, layer=0).select(VisualTokens(x[rest])).tolist()
    kept = DART(6, layer=0).select(VisualTokens(x, protected=protected)).tolist()
    assert kept == sorted([3, 4, *(rest[i] for i in alone)])


def test_dart_keeps_its_pivots():
    x = features(40, 8, 2)
    longest = x.abs().sum(1).topk(8).indices.tolist()
    assert set(longest) <= set(DART(20, layer=0).select(VisualTokens(x)).tolist())


def test_threads_and_dtypes():
    x = features(300, 64, 0).float()
    pruner = DART(0.2, layer=0)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = pruner.select(VisualTokens(x))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one, pruner.select(VisualTokens(x)))
    half = pruner.select(VisualTokens(x.bfloat16()))
    assert torch.equal(half, pruner.select(VisualTokens(x.bfloat16().float())))


def test_ties_and_tokens_of_zero_norm():
    pruner = DART(4, layer=0)
    assert pruner.select(VisualTokens(torch.ones(9, 4))).tolist() == [0, 1, 2, 3]
    x = torch.cat([torch.zeros(3, 4), torch.randn(5, 4)])
    assert DART(8, layer=0).select(VisualTokens(x)).tolist() == list(range(8))
    assert len(pruner.select(VisualTokens(x))) == 4
    assert DART(2, layer=0).select(VisualTokens(torch.zeros(4, 3))).tolist() == [0, 1]


def test_features_as_states():
    x = features(6, 4, 0)
    tokens = states_of_features(VisualTokens(x, grid=(2, 3)))
    assert tokens.keys is tokens.normed is tokens.hidden is x
    assert tokens.rasters.tolist() == [[2, 3]] * 6
    assert tokens.coordinates.tolist()[4] == [1, 1]
    assert states_of_features(VisualTokens(x)).rasters.tolist() == [[-1, -1]] * 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pivots": 0}, "pivots=0"),
        ({"text_pivots": -1}, "text_pivots=-1"),
        ({"layer": -1}, "layer=-1"),
        ({"turns": "random"}, "turns='random' must be one of norm, set"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        DART(0.5, **options)


@pytest.mark.parametrize("options", [{"pivots": 2.0}, {"layer": 0.0}, {"layer": True}])
def test_options_that_are_no_whole_number(options):
    with pytest.raises(TypeError, match="must be a whole number"):
        DART(0.5, **options)


@pytest.mark.parametrize("field", ["keys", "text_keys", "normed", "normed_text"])
def test_a_missing_field_is_named(field):
    tokens = replace(decoder_tokens(12, 5, 0), **{field: None})
    with pytest.raises(ValueError, match=f"{field} is missing"):
        DART(8).drop(tokens, 8)


def test_layers_that_a_model_does_not_have():
    assert DART(0.5).stages(3) == (2,)
    with pytest.raises(ValueError, match=r"layers=\(2,\) must be ascending"):
        DART(0.5).stages(2)
