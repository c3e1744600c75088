"""Cases for the selection core: valid and invalid features, signals, budgets and options."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st

import gprune
from gprune import VisualTokens, kept_count
from gprune.budget import GROUP_KINDS
from gprune.pruners import METHODS
from gprune.pruners.decoder import DecoderTokens
from gprune.pruners.reduction import Reduction

FLOAT_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
OTHER_DTYPES = (torch.int64, torch.int8, torch.bool, torch.complex64)
# The last two are finite only in float64.
NON_FINITE_VALUES = tuple(
    torch.tensor(value, dtype=torch.float64)
    for value in (math.nan, math.inf, -math.inf, 1e39, -1e300)
)
# Finite in every floating dtype after clamping to its range.
EXTREME_VALUES = (0.0, -0.0, 1e-45, 1e-30, 6e-5, 65504.0, 1e30, -1e30, 3.4e38)
VALID_KEEPS = (0.01, 0.1, 0.36, 0.5, 0.999, 1.0, 1, 2, 7, 10**6)
INVALID_KEEPS = (
    *(0, -1, 0.0, -0.5, 1.0001, math.nan, math.inf, -math.inf, True, False, None, "0.5", 1j),
    *([0.5], (), {}, {"image": 0}, {"nosuch": 0.5}, {"image": "0.5"}, b"1"),
)
GROUP_METHODS = [name for name, method in METHODS.items() if method.scope == "group"]
VIDEO_METHODS = [name for name, method in METHODS.items() if method.scope == "video"]
DECODER_METHODS = [name for name, method in METHODS.items() if method.scope == "decoder"]
SIGNALS = (
    *("grid", "positions", "attention", "text", "protected"),
    *("object_attention", "keys", "aligned"),
)


@dataclass(frozen=True, eq=False)
class SelectionCase:
    """One call of `Pruner.select`.

    Attributes:
        method: name of the method.
        keep: the budget.
        options: options of the method, possibly out of range.
        features: possibly of an invalid shape or dtype, or with values that are not finite.
        signals: the other arguments of `VisualTokens`.
        valid: whether the call must succeed; otherwise it must raise.
    """

    method: str
    keep: Any
    options: dict[str, Any]
    features: torch.Tensor
    signals: dict[str, Any]
    valid: bool

    def __repr__(self) -> str:
        return (
            f"SelectionCase({self.method}, keep={self.keep!r}, {self.options}, "
            f"{self.features.dtype} {list(self.features.shape)}, {sorted(self.signals)}, "
            f"valid={self.valid}, {self.features.flatten()[:6].tolist()})"
        )


def make_features(kind: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Returns float64 features of one kind, such as ``copies`` or ``extreme``."""
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
    if kind == "extreme":
        table = torch.tensor(EXTREME_VALUES, dtype=torch.float64)
        return table[torch.randint(0, len(table), shape, generator=random)]
    return values


@st.composite
def selection_cases(draw: st.DrawFn) -> SelectionCase:
    """Draws valid cases, and in about a third of them makes one argument invalid."""
    seed = draw(st.integers(0, 2**31))
    invalid = draw(st.sampled_from((None,) * 8 + ("shape", "type", "value", "keep", "signal")))
    rows, columns = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    n, d = rows * columns, draw(st.integers(1, 9))
    shape: tuple[int, ...] = (n, d)
    if invalid == "shape":
        shape = draw(st.sampled_from(((0, d), (n, 0), (n,), (1, n, d), ())))
    kinds = ("normal", "copies", "constant", "zero", "cone", "extreme")
    values = make_features(draw(st.sampled_from(kinds)), shape, seed)
    dtype = draw(st.sampled_from(OTHER_DTYPES if invalid == "type" else FLOAT_DTYPES))
    if dtype.is_floating_point:
        limits = torch.finfo(dtype)
        values = values.clamp(limits.min, limits.max)
    features = values.to(dtype)
    if invalid == "value":
        index = tuple(draw(st.integers(0, size - 1)) for size in shape)
        features[index] = draw(st.sampled_from(NON_FINITE_VALUES))
    keep = draw(st.sampled_from(INVALID_KEEPS if invalid == "keep" else VALID_KEEPS))
    mask = draw(st.integers(0, 2 ** len(SIGNALS) - 1))
    signals = valid_signals(mask, rows, columns, d, dtype, seed)
    if invalid == "signal":
        signals[draw(st.sampled_from(SIGNALS))] = draw(st.sampled_from(invalid_signals(n, d)))
    if draw(st.booleans()):
        signals["kind"] = draw(st.sampled_from(GROUP_KINDS))
    options = draw(draw_options(method := draw(st.sampled_from(GROUP_METHODS))))
    return SelectionCase(method, keep, options, features, signals, valid=invalid is None)


def valid_signals(
    mask: int, rows: int, columns: int, d: int, dtype: torch.dtype, seed: int
) -> dict[str, Any]:
    """Returns valid values of the `SIGNALS` whose bit is set in ``mask``."""
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
    return {name: every[name] for bit, name in enumerate(SIGNALS) if mask >> bit & 1}


def invalid_signals(n: int, d: int) -> list[Any]:
    """Returns values that are invalid for every signal."""
    return [
        torch.full((n + 1, d + 3), math.nan),
        torch.zeros(n + 1),
        torch.zeros(0, d + 1),
        torch.zeros(n + 2, 2, 2, dtype=torch.bool),
        "signal",
        [0.5] * (n + 1),
    ]


def draw_options(method: str) -> st.SearchStrategy[dict[str, Any]]:
    """Draws no options in most cases, otherwise one with a value in or out of range."""
    fields = [field.name for field in dataclasses.fields(METHODS[method]) if field.name != "keep"]
    if not fields:
        return st.just({})
    numbers = st.sampled_from((0, 1, 2, 5, -1, 0.0, 0.5, 0.7, 1.0, 2.5, math.nan, math.inf, 1e-9))
    one = st.tuples(st.sampled_from(fields), numbers).map(lambda pair: dict([pair]))
    return st.one_of(st.just({}), st.just({}), one)


def check_selection(case: SelectionCase) -> None:
    """Checks that a valid case is answered by the contract and an invalid one is refused.

    Raises:
        AssertionError: neither is true.
    """
    try:
        pruner = gprune.make(case.method, case.keep, **case.options)
        tokens = VisualTokens(case.features, **case.signals)
        reduction = pruner.reduce(tokens)
        again = pruner.reduce(tokens).positions(len(tokens))
    except (ValueError, TypeError) as error:
        # A method may name a signal that it needs and the case lacks; options may be out of range.
        absent = [name for name in SIGNALS if name not in case.signals and name in str(error)]
        check_refusal(error, bool(not case.valid or absent or case.options))
    else:
        check_answer(case, tokens, reduction, again)


def check_refusal(error: Exception, allowed: bool) -> None:
    """Checks that the case may be refused, and that the message is a sentence."""
    assert len(str(error)) > 20, "the message does not say what is wrong"
    assert allowed, f"a valid case was refused: {error}"


def check_answer(
    case: SelectionCase,
    tokens: VisualTokens,
    reduction: Reduction,
    again: torch.Tensor,
) -> None:
    """Checks the contract of `Pruner.reduce` and `Pruner.select`."""
    n = len(tokens)
    kept, features = reduction.positions(n), reduction.features(tokens.features)
    assert case.valid, f"an invalid case was answered with {kept.tolist()}"
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
        method: name of the method.
        keep: the budget.
        frames: arguments of `VisualTokens` for each frame.
        valid: whether the call must succeed; otherwise it must raise.
    """

    method: str
    keep: Any
    frames: list[dict[str, Any]]
    valid: bool


@st.composite
def video_cases(draw: st.DrawFn) -> VideoCase:
    """Draws mostly valid videos; in the others one frame or the budget is invalid."""
    seed = draw(st.integers(0, 2**31))
    invalid = draw(st.sampled_from((None,) * 6 + ("size", "kind", "value", "keep", "protected")))
    n, d = draw(st.integers(1, 12)), draw(st.integers(1, 9))
    kind = draw(st.sampled_from(("normal", "copies", "constant", "zero", "cone", "extreme")))
    dtype = draw(st.sampled_from(FLOAT_DTYPES))
    limits = torch.finfo(dtype)
    frames: list[dict[str, Any]] = [
        {
            "features": make_features(kind, (n, d), seed + number)
            .clamp(limits.min, limits.max)
            .to(dtype),
            "kind": "frame",
        }
        for number in range(draw(st.integers(2 if invalid == "size" else 1, 5)))
    ]
    odd = draw(st.sampled_from(frames))
    if invalid == "size":
        odd["features"] = odd["features"].repeat(2, 1)
    elif invalid == "kind":
        odd["kind"] = draw(st.sampled_from([kind for kind in GROUP_KINDS if kind != "frame"]))
    elif invalid == "value":
        odd["features"][draw(st.integers(0, n - 1)), 0] = draw(st.sampled_from(NON_FINITE_VALUES))
    elif invalid == "protected":
        odd["protected"] = torch.zeros(n, dtype=torch.bool)
    keep = draw(st.sampled_from(INVALID_KEEPS if invalid == "keep" else VALID_KEEPS))
    return VideoCase(draw(st.sampled_from(VIDEO_METHODS)), keep, frames, valid=invalid is None)


def check_video(case: VideoCase) -> None:
    """Checks how many tokens a video keeps.

    EVS keeps what is asked for of the whole video, and at least the first frame; VidCom2 rounds
    each frame by itself, at least to one token, see its documentation.
    """
    try:
        pruner = gprune.make(case.method, case.keep)
        frames = [VisualTokens(**frame) for frame in case.frames]
        reduced = pruner.reduce_groups(frames)
        again = pruner.reduce_groups(frames)
    except (ValueError, TypeError) as error:
        check_refusal(error, not case.valid)
        return
    assert case.valid, "an invalid case was answered"
    n = len(frames[0])
    t, total = len(frames), sum(map(len, reduced))
    counted = isinstance(case.keep, int)
    asked = t * kept_count(n, case.keep) if counted else kept_count(t * n, case.keep)
    if case.method == "evs":
        assert total == max(asked, n)
        assert reduced[0].kept.tolist() == list(range(n))
    elif asked == t * n:
        assert total == asked
    else:
        assert t <= total <= asked + t / 2 + t
    for reduction, repeated in zip(reduced, again, strict=True):
        kept = reduction.kept
        assert not reduction.merges
        assert kept.dtype == torch.int64
        assert torch.equal(kept, repeated.kept), "two runs differ"
        assert kept.tolist() == sorted(set(kept.tolist()) & set(range(n)))


@dataclass(frozen=True, eq=False)
class DecoderCase:
    """One prompt for a method that prunes inside the language model.

    Attributes:
        method: name of the method.
        keep: the budget.
        options: options of the method, possibly out of range.
        depth: number of layers of the language model.
        total: visual tokens of the prompt.
        raters: text tokens whose attention ranks the visual tokens.
        width: width of the hidden states.
        kind: kind of the hidden states, see `make_features`.
        seed: seed of hidden states and attention.
        valid: whether the budget is valid; ``options`` and ``depth`` may still be refused.
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
    valid: bool


# Mostly valid budgets, and whether each is valid: a flag, because True is invalid but equals 1.
BUDGETS = st.one_of(
    *[st.tuples(st.sampled_from(VALID_KEEPS), st.just(True))] * 4,
    st.tuples(st.sampled_from(INVALID_KEEPS), st.just(False)),
)


@st.composite
def decoder_cases(draw: st.DrawFn) -> DecoderCase:
    """Draws prompts and models of all sizes, with budgets and options in and out of range."""
    method = draw(st.sampled_from(DECODER_METHODS))
    layers = st.lists(st.integers(-1, 9), max_size=4).map(tuple)
    options = draw(draw_options(method).filter(lambda options: "layers" not in options))
    if method != "fastv" and draw(st.booleans()):
        options = {"layers": draw(layers)}
    keep, valid = draw(BUDGETS)
    return DecoderCase(
        method,
        keep,
        options,
        depth=draw(st.integers(1, 40)),
        total=draw(st.integers(1, 60)),
        raters=draw(st.integers(1, 5)),
        width=draw(st.integers(1, 6)),
        kind=draw(st.sampled_from(("normal", "copies", "constant", "zero", "cone"))),
        seed=draw(st.integers(0, 2**31)),
        valid=valid,
    )


def check_decoder(case: DecoderCase) -> None:
    """Checks that stages never add tokens, keep as many as they count, and end at the budget."""
    try:
        pruner = gprune.make(case.method, case.keep, **case.options)
        stages = pruner.stages(case.depth)
    except (ValueError, TypeError) as error:
        shallow = case.depth < 4  # too few layers for a method's default layers
        check_refusal(error, bool(not case.valid or case.options or shallow))
        return
    assert case.valid, "an invalid budget was accepted"
    assert list(stages) == sorted(set(stages) & set(range(1, case.depth)))
    if not stages:
        assert pruner.scope == "group"  # before the language model
        return
    random = torch.Generator().manual_seed(case.seed)
    hidden = make_features(case.kind, (case.total, case.width), case.seed).float()
    text = make_features(case.kind, (case.raters, case.width), case.seed + 1).float()
    for stage in range(len(stages)):
        tokens = decoder_tokens(case, hidden, text, random)
        k = pruner.count(stage, len(stages), tokens)
        assert k >= 1
        reduction = pruner.at_stage(stage, len(stages), tokens)
        if reduction is None:
            assert k >= len(hidden)
            continue
        assert len(reduction) <= k < len(hidden)
        # Released forms of DART and VLM-Pruner may miss the budget.
        assert len(reduction) == k or {"fill", "overspend"} & case.options.keys()
        check_reduction(reduction, len(hidden))
        hidden = reduction.features(hidden)
    if case.method in ("fastv", "pyramiddrop"):
        assert len(hidden) == kept_count(case.total, case.keep)
    elif case.method == "sparsevlm":
        assert len(hidden) == pruner.planned(len(stages) - 1, len(stages), case.total)


def decoder_tokens(
    case: DecoderCase, hidden: torch.Tensor, text: torch.Tensor, random: torch.Generator
) -> DecoderTokens:
    """Returns tokens with every field that a method may read."""
    n = len(hidden)
    attention = torch.softmax(torch.randn(case.raters, n, generator=random), 1)
    if case.kind in ("constant", "zero"):
        attention = torch.full((case.raters, n), 1 / n)  # every token ties
    index = torch.arange(n)
    return DecoderTokens(
        hidden,
        attention,
        case.total,
        keys=hidden,
        text_keys=text,
        text_hidden=text,
        normed=hidden,
        normed_text=text,
        coordinates=torch.stack([index // 8, index % 8], 1),
        rasters=torch.tensor([[8, 8]]).expand(n, 2),
        groups=torch.zeros_like(index),
        columns=index + 5,
    )


def check_reduction(reduction: Reduction, n: int) -> None:
    """Checks that indices of a reduction of n tokens are in order and weights are finite."""
    kept, members = reduction.kept.tolist(), reduction.members
    assert kept == sorted(set(kept) & set(range(n)))
    if members is not None:
        assert members[reduction.kept].tolist() == list(range(len(kept)))
        assert -1 <= int(members.min()) <= int(members.max()) < len(kept)
    for weights in (reduction.weights, reduction.appended):
        assert weights is None or (weights.shape[1] == n and bool(weights.isfinite().all()))


@st.composite
def rasters(draw: st.DrawFn) -> tuple[Any, bool, int, int]:
    """Draws a budget, whether it is valid, and an image's raster for downsampling."""
    size = st.integers(1, 5000)
    return *draw(BUDGETS), draw(size), draw(size)


def check_raster(case: tuple[Any, bool, int, int]) -> None:
    """Checks that the new raster is within the budget and no side is longer than before."""
    keep, valid, rows, columns = case
    try:
        new_rows, new_columns = gprune.make("downsampling", keep).raster(rows, columns)
    except (ValueError, TypeError) as error:
        check_refusal(error, not valid)
        return
    assert valid, "an invalid budget was accepted"
    assert 1 <= new_rows <= rows
    assert 1 <= new_columns <= columns
    assert new_rows * new_columns <= kept_count(rows * columns, keep)
