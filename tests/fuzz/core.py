"""Cases for the selection core: features, signals, budgets and options, good and bad."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st

import gprune
from gprune import VisualTokens, kept_count
from gprune.budget import KINDS
from gprune.pruners import METHODS
from gprune.pruners.decoder import DecoderTokens

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
OTHERS = (torch.int64, torch.int8, torch.bool, torch.complex64)
# The last two are finite in float64 alone.
BAD_VALUES = tuple(
    torch.tensor(value, dtype=torch.float64)
    for value in (math.nan, math.inf, -math.inf, 1e39, -1e300)
)
# Finite in every floating type they are put into, after clamping to its range.
HARSH_VALUES = (0.0, -0.0, 1e-45, 1e-30, 6e-5, 65504.0, 1e30, -1e30, 3.4e38)
GOOD_KEEPS = (0.01, 0.1, 0.36, 0.5, 0.999, 1.0, 1, 2, 7, 10**6)
BAD_KEEPS = (
    *(0, -1, 0.0, -0.5, 1.0001, math.nan, math.inf, -math.inf, True, False, None, "0.5", 1j),
    *([0.5], (), {}, {"image": 0}, {"nosuch": 0.5}, {"image": "0.5"}, b"1"),
)
CHOOSING = [name for name, method in METHODS.items() if method.scope == "group"]
VIDEO = [name for name, method in METHODS.items() if method.scope == "video"]
DECODER = [name for name, method in METHODS.items() if method.scope == "decoder"]
SIGNALS = (
    *("grid", "positions", "attention", "text", "protected"),
    *("object_attention", "keys", "aligned"),
)


@dataclass(frozen=True, eq=False)
class Case:
    """One call of `select`.

    Attributes:
        method: name.
        keep: the budget.
        options: of the method, possibly out of range.
        features: possibly of a wrong shape or type, or with values that cannot be ranked.
        signals: the other arguments of `VisualTokens`.
        good: whether it has to be answered (else it has to be refused).
    """

    method: str
    keep: Any
    options: dict[str, Any]
    features: torch.Tensor
    signals: dict[str, Any]
    good: bool

    def __repr__(self) -> str:
        return (
            f"Case({self.method}, keep={self.keep!r}, {self.options}, {self.features.dtype} "
            f"{list(self.features.shape)}, {sorted(self.signals)}, good={self.good}, "
            f"{self.features.flatten()[:6].tolist()})"
        )


def features_like(kind: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Features of one of several kinds, float64."""
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=random, dtype=torch.float64)
    if kind == "copies" and shape and shape[0]:
        return values[torch.randint(0, max(1, len(values) // 3), (len(values),), generator=random)]
    if kind == "constant":
        return torch.full(shape, 0.25, dtype=torch.float64)
    if kind == "zero":
        return torch.zeros(shape, dtype=torch.float64)
    if kind == "cone" and len(shape) == 2:
        return values * 0.01 + torch.ones(shape[-1], dtype=torch.float64)
    if kind == "harsh":
        table = torch.tensor(HARSH_VALUES, dtype=torch.float64)
        return table[torch.randint(0, len(table), shape, generator=random)]
    return values


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Mostly good cases with one thing wrong in about a third."""
    seed = draw(st.integers(0, 2**31))
    wrong = draw(st.sampled_from((None,) * 8 + ("shape", "type", "value", "keep", "signal")))
    rows, columns = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    n, d = rows * columns, draw(st.integers(1, 9))
    shape: tuple[int, ...] = (n, d)
    if wrong == "shape":
        shape = draw(st.sampled_from(((0, d), (n, 0), (n,), (1, n, d), ())))
    kinds = ("normal", "copies", "constant", "zero", "cone", "harsh")
    values = features_like(draw(st.sampled_from(kinds)), shape, seed)
    dtype = draw(st.sampled_from(OTHERS if wrong == "type" else FLOATS))
    if dtype.is_floating_point:
        limits = torch.finfo(dtype)
        values = values.clamp(limits.min, limits.max)
    features = values.to(dtype)
    if wrong == "value":
        place = tuple(draw(st.integers(0, size - 1)) for size in shape)
        features[place] = draw(st.sampled_from(BAD_VALUES))
    keep = draw(st.sampled_from(BAD_KEEPS if wrong == "keep" else GOOD_KEEPS))
    chosen = draw(st.integers(0, 2 ** len(SIGNALS) - 1))
    signals = good_signals(chosen, rows, columns, d, dtype, seed)
    if wrong == "signal":
        signals[draw(st.sampled_from(SIGNALS))] = draw(st.sampled_from(bad_signals(n, d)))
    if draw(st.booleans()):
        signals["kind"] = draw(st.sampled_from(KINDS))
    options = draw(options_of(method := draw(st.sampled_from(CHOOSING))))
    return Case(method, keep, options, features, signals, good=wrong is None)


def good_signals(
    chosen: int, rows: int, columns: int, d: int, dtype: torch.dtype, seed: int
) -> dict[str, Any]:
    """Those of `SIGNALS` whose bit is set in ``chosen``."""
    random = torch.Generator().manual_seed(seed + 1)
    n = rows * columns
    every = {
        "grid": (rows, columns),
        "positions": torch.rand(n, 2, generator=random),
        "attention": torch.rand(n, generator=random),
        "text": torch.randn(3, d, generator=random).to(dtype if dtype.is_floating_point else None),
        "protected": torch.rand(n, generator=random) < 0.2,
        "object_attention": torch.rand(n, generator=random),
        "keys": torch.randn(n, 4, generator=random),
        "aligned": torch.randn(n, d, generator=random),
    }
    return {name: every[name] for bit, name in enumerate(SIGNALS) if chosen >> bit & 1}


def bad_signals(n: int, d: int) -> list[Any]:
    """Values that are wrong for every signal."""
    return [
        torch.full((n + 1, d + 3), math.nan),
        torch.zeros(n + 1),
        torch.zeros(0, d + 1),
        torch.zeros(n + 2, 2, 2, dtype=torch.bool),
        "signal",
        [0.5] * (n + 1),
    ]


def options_of(method: str) -> st.SearchStrategy[dict[str, Any]]:
    """None for most cases, else one option with a value in or out of range."""
    fields = [field.name for field in dataclasses.fields(METHODS[method]) if field.name != "keep"]
    if not fields:
        return st.just({})
    numbers = st.sampled_from((0, 1, 2, 5, -1, 0.0, 0.5, 0.7, 1.0, 2.5, math.nan, math.inf, 1e-9))
    one = st.tuples(st.sampled_from(fields), numbers).map(lambda pair: dict([pair]))
    return st.one_of(st.just({}), st.just({}), one)


def check(case: Case) -> None:
    """Answers a good case by the contract, refuses a bad one with a sentence.

    Raises:
        AssertionError: neither.
    """
    try:
        pruner = gprune.make(case.method, case.keep, **case.options)
        tokens = VisualTokens(case.features, **case.signals)
        kept, features = pruner.reduce(tokens)
        again = pruner.select(tokens)
    except (ValueError, TypeError) as error:
        # A method may need a signal that did not come, and says which; options may be out of range.
        absent = [name for name in SIGNALS if name not in case.signals and name in str(error)]
        check_refusal(error, bool(not case.good or absent or case.options))
    else:
        check_answer(case, tokens, kept, features, again)


def check_refusal(error: Exception, allowed: bool) -> None:
    """A refusal is a sentence, and of a case that may be refused."""
    assert len(str(error)) > 20, "an error has to say what is wrong"
    assert allowed, f"a good case was refused: {error}"


def check_answer(
    case: Case,
    tokens: VisualTokens,
    kept: torch.Tensor,
    features: torch.Tensor,
    again: torch.Tensor,
) -> None:
    """The contract of `Pruner.reduce` and `Pruner.select`."""
    assert case.good, f"a bad case was answered with {kept.tolist()}"
    n = len(tokens)
    protected = case.signals.get("protected", torch.zeros(n, dtype=torch.bool))
    free = int((~protected).sum())
    expected = int(protected.sum()) + (kept_count(free, case.keep) if free else 0)
    assert kept.dtype == torch.int64
    assert kept.shape == (expected,)
    assert torch.equal(kept, again), "two runs differ"
    assert bool((kept[1:] > kept[:-1]).all()), "not ascending"
    assert int(kept.min()) >= 0
    assert int(kept.max()) < n
    assert set(protected.nonzero().flatten().tolist()) <= set(kept.tolist())
    assert features.shape == (expected, case.features.shape[1])
    assert features.dtype == case.features.dtype
    assert bool(torch.isfinite(features).all()), "finite features became infinite"


@dataclass(frozen=True, eq=False)
class VideoCase:
    """One call of `reduce_groups` with the frames of a video.

    Attributes:
        method: name.
        keep: the budget.
        frames: the groups.
        good: whether it has to be answered (else it has to be refused).
    """

    method: str
    keep: Any
    frames: list[dict[str, Any]]
    good: bool


@st.composite
def video_cases(draw: st.DrawFn) -> VideoCase:
    """Mostly good videos; the others have one frame that is no frame like the others."""
    seed = draw(st.integers(0, 2**31))
    wrong = draw(st.sampled_from((None,) * 6 + ("size", "kind", "value", "keep", "protected")))
    n, d = draw(st.integers(1, 12)), draw(st.integers(1, 9))
    kind = draw(st.sampled_from(("normal", "copies", "constant", "zero", "cone", "harsh")))
    dtype = draw(st.sampled_from(FLOATS))
    limits = torch.finfo(dtype)
    frames: list[dict[str, Any]] = [
        {
            "features": features_like(kind, (n, d), seed + number)
            .clamp(limits.min, limits.max)
            .to(dtype),
            "kind": "frame",
        }
        for number in range(draw(st.integers(2 if wrong == "size" else 1, 5)))
    ]
    odd = draw(st.sampled_from(frames))
    if wrong == "size":
        odd["features"] = odd["features"].repeat(2, 1)
    elif wrong == "kind":
        odd["kind"] = draw(st.sampled_from([kind for kind in KINDS if kind != "frame"]))
    elif wrong == "value":
        odd["features"][draw(st.integers(0, n - 1)), 0] = draw(st.sampled_from(BAD_VALUES))
    elif wrong == "protected":
        odd["protected"] = torch.zeros(n, dtype=torch.bool)
    keep = draw(st.sampled_from(BAD_KEEPS if wrong == "keep" else GOOD_KEEPS))
    return VideoCase(draw(st.sampled_from(VIDEO)), keep, frames, good=wrong is None)


def check_video(case: VideoCase) -> None:
    """Frames together keep what each would keep alone; EVS the whole first one at least."""
    try:
        pruner = gprune.make(case.method, case.keep)
        frames = [VisualTokens(**frame) for frame in case.frames]
        reduced = pruner.reduce_groups(frames)
        again = pruner.reduce_groups(frames)
    except (ValueError, TypeError) as error:
        check_refusal(error, not case.good)
        return
    assert case.good, "a bad case was answered"
    n = len(frames[0])
    expected = len(frames) * kept_count(n, case.keep)
    if case.method == "evs":
        expected = max(expected, n)
        assert reduced[0][0].tolist() == list(range(n))
    assert sum(len(kept) for kept, _ in reduced) == expected
    for (kept, members), (second, _) in zip(reduced, again, strict=True):
        assert members is None
        assert kept.dtype == torch.int64
        assert torch.equal(kept, second), "two runs differ"
        assert kept.tolist() == sorted(set(kept.tolist()) & set(range(n)))


@dataclass(frozen=True, eq=False)
class InsideCase:
    """A method inside the language model on one prompt.

    Attributes:
        method: name.
        keep: the budget.
        options: of the method, possibly out of range.
        depth: layers of the language model.
        total: visual tokens of the prompt.
        raters: text tokens whose attention ranks them.
        width: channels.
        kind: of the hidden states, see `features_like`.
        seed: of hidden states and attention.
        good: whether the budget is one; options and depths say by themselves.
    """

    method: str
    keep: Any
    options: dict[str, Any]
    depth: int
    total: int
    raters: int
    width: int
    kind: str
    seed: int
    good: bool


# Mostly good budgets, and whether it is one (True, which is none, equals 1).
BUDGETS = st.one_of(
    *[st.tuples(st.sampled_from(GOOD_KEEPS), st.just(True))] * 4,
    st.tuples(st.sampled_from(BAD_KEEPS), st.just(False)),
)


@st.composite
def inside_cases(draw: st.DrawFn) -> InsideCase:
    """Prompts and models of all sizes, budgets and options in and out of range."""
    method = draw(st.sampled_from(DECODER))
    layers = st.lists(st.integers(-1, 9), max_size=4).map(tuple)
    options = draw(options_of(method).filter(lambda options: "layers" not in options))
    if method != "fastv" and draw(st.booleans()):
        options = {"layers": draw(layers)}
    keep, good = draw(BUDGETS)
    return InsideCase(
        method,
        keep,
        options,
        depth=draw(st.integers(1, 40)),
        total=draw(st.integers(1, 60)),
        raters=draw(st.integers(1, 5)),
        width=draw(st.integers(1, 6)),
        kind=draw(st.sampled_from(("normal", "copies", "constant", "zero", "cone"))),
        seed=draw(st.integers(0, 2**31)),
        good=good,
    )


def check_inside(case: InsideCase) -> None:
    """Stages never rise, end at the budget, and each keeps as many tokens as it counts."""
    try:
        pruner = gprune.make(case.method, case.keep, **case.options)
        stages = pruner.stages(case.depth)
    except (ValueError, TypeError) as error:
        shallow = case.depth < 4  # too few layers for the ones that a method takes by itself
        check_refusal(error, bool(not case.good or case.options or shallow))
        return
    assert case.good, "a bad budget was taken"
    assert list(stages) == sorted(set(stages) & set(range(1, case.depth)))
    random = torch.Generator().manual_seed(case.seed)
    hidden = features_like(case.kind, (case.total, case.width), case.seed).float()
    for stage in range(len(stages)):
        n = len(hidden)
        attention = torch.softmax(torch.randn(case.raters, n, generator=random), 1)
        if case.kind in ("constant", "zero"):
            attention = torch.full((case.raters, n), 1 / n)  # every token ties
        tokens = DecoderTokens(hidden, attention, case.total)
        k = pruner.count(stage, len(stages), tokens)
        assert kept_count(case.total, case.keep) <= k <= n
        kept, members = pruner.drop(tokens, k)
        assert kept.tolist() == sorted(set(kept.tolist()) & set(range(n)))
        assert len(kept) == k
        if members is not None:
            assert members[kept].tolist() == list(range(k))
            assert -1 <= int(members.min()) <= int(members.max()) < k
        hidden = hidden[kept]
    assert len(hidden) == kept_count(case.total, case.keep)


@st.composite
def rasters(draw: st.DrawFn) -> tuple[Any, bool, int, int]:
    """A budget, whether it is one, and the raster of an image for downsampling."""
    size = st.integers(1, 5000)
    return *draw(BUDGETS), draw(size), draw(size)


def check_raster(case: tuple[Any, bool, int, int]) -> None:
    """A raster within the budget, no side longer than it was."""
    keep, good, rows, columns = case
    try:
        high, wide = gprune.make("downsampling", keep).raster(rows, columns)
    except (ValueError, TypeError) as error:
        check_refusal(error, not good)
        return
    assert good, "a bad budget was taken"
    assert 1 <= high <= rows
    assert 1 <= wide <= columns
    assert high * wide <= kept_count(rows * columns, keep)
