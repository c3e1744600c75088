"""GraphCover, TextCover and CoverBudget on pictures that they were not tuned on.

Distances are recomputed here in float64, from differences of vectors instead of cosines. The
quality of a choice is checked by a certificate: R is the distance of the worst covered token from
the nearest kept one. If that token and the kept ones are pairwise at least R apart, no choice of
as many tokens has a radius below R / 2, because two of those k + 1 tokens share a centre.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks import hard_pictures
from gprune import (
    CoverBudget,
    DivPrune,
    GPrune,
    GraphCover,
    RandomPruner,
    TextCover,
    ThumbnailGuided,
    UniformGridPruner,
    VisualTokens,
    kept_count,
)
from gprune.proof.batches import make_batch
from gprune.proof.models import SPECIMENS
from gprune.tinyvlm import load, make_scene
from gprune.training.accuracy import to_pixels, vision_features

GRIDS = [(1, 1), (1, 40), (40, 1), (2, 33), (7, 40), (64, 3), (16, 16), (5, 48)]
SQUARE = (16, 16)
# The largest error of float32 cosines, on pictures that are not nearly blank.
TOLERANCE = 1e-4


def random_tokens(grid: tuple[int, int], seed: int = 0, d: int = 24) -> VisualTokens:
    """Returns features like a picture's: homogeneous regions, and single tokens that differ."""
    rng = np.random.default_rng(seed)
    rows, columns = grid
    regions = rng.standard_normal((6, d))
    row, column = np.divmod(np.arange(rows * columns), columns)
    region = 2 * (3 * row // rows) + 2 * column // columns
    x = regions[region] + 0.2 * rng.standard_normal((rows * columns, d))
    apart = rng.random(rows * columns) < 0.1
    x[apart] = rng.standard_normal((int(apart.sum()), d))
    text = torch.from_numpy(rng.standard_normal((3, d)))
    return VisualTokens(torch.from_numpy(x), grid=grid, text=text)


def like(tokens: VisualTokens, features: torch.Tensor) -> VisualTokens:
    """Returns tokens at the same positions with other features."""
    return VisualTokens(features, grid=tokens.grid, text=tokens.text)


def squares(points: np.ndarray) -> np.ndarray:
    """Returns squared distances of all pairs over their mean; zero if all points are equal."""
    found = np.square(points[:, None] - points[None]).sum(-1)
    return found / found.mean() if found.any() else found


def plane(grid: tuple[int, int] | None) -> np.ndarray:
    """Returns distances between the cells of a raster, in cells."""
    rows, columns = grid
    places = np.stack(np.divmod(np.arange(rows * columns), columns), 1).astype(float)
    return np.sqrt(np.square(places[:, None] - places[None]).sum(-1))


def joint(tokens: VisualTokens, place: float = 1.0) -> np.ndarray:
    """Returns D of all pairs by its definition, for tokens that are not blank."""
    unit = tokens.features.double().numpy()
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    return np.sqrt(squares(unit) + place * squares(tokens.coordinates().double().numpy()))


def radius(distance: np.ndarray, kept: torch.Tensor) -> float:
    """Returns the distance of the worst covered token from the nearest kept one."""
    return float(distance[:, kept.numpy()].min(1).max())


def within_twice_the_best(distance: np.ndarray, kept: torch.Tensor, slack: float = 0.0) -> bool:
    """Returns whether the certificate above holds."""
    worst = int(distance[:, kept.numpy()].min(1).argmax())
    points = [*kept.tolist(), worst]
    apart = distance[np.ix_(points, points)]
    pairs = apart[~np.eye(len(points), dtype=bool)]
    return bool(pairs.min() >= radius(distance, kept) - slack)


shapes = st.tuples(st.integers(1, 70), st.integers(1, 70)).filter(lambda grid: np.prod(grid) <= 250)


@given(grid=shapes, seed=st.integers(0, 2**31 - 1), keep=st.floats(0.01, 1))
@settings(deadline=None, max_examples=60)
def test_any_shape_is_covered_within_twice_the_best(grid, seed, keep):
    tokens = random_tokens(grid, seed)
    kept = GraphCover(keep).select(tokens)
    assert len(kept) == kept_count(len(tokens), keep)
    assert within_twice_the_best(joint(tokens), kept, TOLERANCE)


@given(grid=shapes, seed=st.integers(0, 2**31 - 1), keep=st.floats(0.01, 1))
@settings(deadline=None, max_examples=40)
def test_text_cover_on_any_shape(grid, seed, keep):
    """Counts are exact, and the unweighted radius within the documented factor of GraphCover's."""
    tokens = random_tokens(grid, seed)
    pruner = TextCover(keep)
    kept = pruner.select(tokens)
    assert len(kept) == kept_count(len(tokens), keep)
    weight = pruner.text_weight
    factor = (1 + weight) * min(3, 2 + weight)
    plainly = radius(joint(tokens), GraphCover(keep).select(tokens))
    assert radius(joint(tokens), kept) <= factor * plainly + TOLERANCE


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("keep", [0.25, 0.1])
def test_the_radius_is_no_larger_than_that_of_other_methods(grid, keep):
    """In its own metric, on every shape, on average over several pictures.

    A regular grid is left out: if few tokens of a line are kept, it can be better.
    """
    pictures = [random_tokens(grid, seed) for seed in range(8)]
    distances = [joint(tokens) for tokens in pictures]

    def mean(pruner) -> float:
        pairs = zip(distances, pictures, strict=True)
        return float(np.mean([radius(distance, pruner.select(x)) for distance, x in pairs]))

    others = [RandomPruner(keep), RandomPruner(keep, seed=1), DivPrune(keep), GPrune(keep)]
    assert all(mean(GraphCover(keep)) <= mean(other) + TOLERANCE for other in others)


BLANKS = {
    "equal": lambda base, noise: base.expand_as(noise),
    "zero": lambda base, noise: torch.zeros_like(noise),
    "float32 rounding": lambda base, noise: base * (1 + 1e-7 * noise),
    "bf16 rounding": lambda base, noise: (base * (1 + 1e-3 * noise)).bfloat16(),
    # Just above one, where steps are largest, and halfway between two numbers in every channel.
    "bf16 at its worst": lambda base, noise: (1 + 2.0**-8 + 1e-6 * noise).bfloat16(),
}


@pytest.mark.parametrize("blank", BLANKS)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("method", [GraphCover, TextCover])
def test_on_a_blank_picture_only_positions_count(blank, grid, method):
    """The same tokens are kept whatever rounding does, and they spread over the picture."""
    n = grid[0] * grid[1]
    generator = torch.Generator().manual_seed(1)
    base, noise, text = (torch.randn(rows, 64, generator=generator) for rows in (1, n, 2))
    tokens = VisualTokens(BLANKS[blank](base, noise), grid=grid, text=text)
    equal = VisualTokens(torch.ones(n, 64), grid=grid)
    for keep in (0.25, 0.1, 1):
        kept = method(keep).select(tokens)
        assert torch.equal(kept, GraphCover(keep).select(equal))
        assert len(kept) == kept_count(n, keep)
        assert within_twice_the_best(plane(grid), kept, 1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1e-2, 0.1, 1.0])
def test_noise_beyond_rounding_leaves_no_large_gaps(scale):
    """Features that vary independently of position leave at most twice a regular grid's gaps.

    The rounding that a deep encoder in bf16 accumulates is of that kind.
    """
    noise = torch.randn(256, 64, generator=torch.Generator().manual_seed(3))
    base = torch.randn(64, generator=torch.Generator().manual_seed(4))
    tokens = VisualTokens(base * (1 + scale * noise), grid=SQUARE)
    for keep in (0.25, 0.1, 0.05):
        gaps = radius(plane(SQUARE), UniformGridPruner(keep).select(tokens))
        assert radius(plane(SQUARE), GraphCover(keep).select(tokens)) <= 2 * gaps


def test_feature_confidence_falls_without_a_step():
    """The features' part in D² falls from all of it at 1e-4 to none where they are rounding."""
    generator = torch.Generator().manual_seed(5)
    base, noise = torch.randn(64, generator=generator), torch.randn(48, 64, generator=generator)
    places = GraphCover(1.0).distance(VisualTokens(torch.ones(48, 64), grid=(6, 8)))
    part, mean = np.zeros(60), np.zeros(60)
    for step, scale in enumerate(np.geomspace(1e-3, 3e-2, 60)):
        x = base * (1 + scale * noise)
        tokens = VisualTokens(x, grid=(6, 8))
        part[step] = (GraphCover(1.0).distance(tokens) - places).mean()
        mean[step] = (1 - torch.cosine_similarity(x[:, None], x[None], dim=-1)).mean()
    assert np.allclose(part[mean < 1.5e-5], 0, atol=1e-6)
    assert np.allclose(part[mean > 1e-4], 1, atol=1e-3)
    steps = np.diff(part)
    assert steps.min() > -1e-3
    assert steps.max() < 0.2


def in_two_ways(method, tokens: VisualTokens, monkeypatch) -> torch.Tensor:
    """Returns what is kept, after checking that it is the same without the whole matrix."""
    whole = method.select(tokens)
    with monkeypatch.context() as patch:
        patch.setattr("gprune.graph.cosine.MAX_DENSE_TOKENS", 4)
        assert torch.equal(method.select(tokens), whole)
    return whole


@pytest.mark.parametrize("method", [GraphCover, TextCover])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_tokens_of_zero_norm_are_a_plain_region(method, share, monkeypatch):
    """They behave like equal tokens with a direction that no other token has."""
    tokens = random_tokens((12, 14))
    x = tokens.features.float()
    dead = torch.arange(168) < 168 * share
    x[dead] = 0
    marked = torch.cat([x, 3 * dead[:, None].float()], 1)
    text = torch.cat([tokens.text.float(), torch.zeros(3, 1)], 1)
    for keep in (0.3, 0.1):
        kept = in_two_ways(method(keep), like(tokens, x), monkeypatch)
        region = VisualTokens(marked, grid=tokens.grid, text=text)
        assert torch.equal(kept, in_two_ways(method(keep), region, monkeypatch))


@pytest.mark.parametrize("wanted_radius", [0.3, 0.7, 1.2])
def test_budgets_do_not_count_zeros_as_detail(wanted_radius, monkeypatch):
    budget = CoverBudget(wanted_radius)
    blank = [VisualTokens(x, grid=SQUARE) for x in (torch.zeros(256, 8), torch.ones(256, 8))]
    assert len(set(budget(blank))) == 1
    tokens = random_tokens((10, 10))
    x = tokens.features.float()
    x[40:] = 0
    counts = budget([like(tokens, x)])
    region = torch.cat([x, (x == 0).all(1, keepdim=True).float()], 1)
    assert counts == budget([VisualTokens(region, grid=(10, 10))])
    monkeypatch.setattr("gprune.graph.cosine.MAX_DENSE_TOKENS", 4)
    assert counts == budget([like(tokens, x)])


@given(
    seed=st.integers(0, 2**31 - 1),
    kinds=st.lists(st.integers(0, 7), min_size=1, max_size=40),
    share=st.floats(0.01, 1),
)
@settings(deadline=None, max_examples=60)
def test_of_equal_tokens_the_first_are_kept(seed, kinds, share):
    """Without positions, the kept tokens of a kind are those of the lowest index."""
    rng = np.random.default_rng(seed)
    pool = torch.from_numpy(rng.standard_normal((8, 16))).float()
    pool[7] = 0
    tokens = VisualTokens(pool[kinds], text=torch.from_numpy(rng.standard_normal((2, 16))).float())
    for pruner in (GraphCover(share), TextCover(share)):
        kept = pruner.select(tokens).tolist()
        for kind in set(kinds):
            equal = [i for i, other in enumerate(kinds) if other == kind]
            chosen = [i for i in equal if i in kept]
            assert chosen == equal[: len(chosen)]


@given(
    grid=shapes,
    seed=st.integers(0, 2**31 - 1),
    scale=st.sampled_from([1e-3, 1e3]),
    tailed=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_scales_and_long_tails_of_norms_do_not_matter(grid, seed, scale, tailed):
    """Norms of trained encoders have long tails, but these methods ignore norms."""
    tokens = random_tokens(grid, seed)
    factor = torch.full((len(tokens), 1), scale, dtype=torch.float64)
    if tailed:
        rng = np.random.default_rng(seed + 1)
        factor *= torch.from_numpy(rng.pareto(1.0, (len(tokens), 1)) + 0.1)
    scaled = like(tokens, tokens.features * factor)
    single = like(tokens, (tokens.features * factor).float())
    for pruner in (GraphCover(0.2), TextCover(0.2)):
        kept = pruner.select(tokens)
        assert torch.equal(pruner.select(scaled), kept)
        assert torch.equal(pruner.select(single), kept)
    budget = CoverBudget(0.8)
    assert budget([scaled]) == budget([tokens])


def test_groups_are_independent_of_each_other():
    groups = [random_tokens(grid, seed) for seed, grid in enumerate(GRIDS)]
    for pruner in (GraphCover(0.2), TextCover(0.2), GraphCover(CoverBudget(0.7))):
        together = pruner.reduce_groups(groups)
        for tokens, found in zip(groups, together, strict=True):
            assert torch.equal(pruner.select(tokens), found.kept)


def test_a_channel_that_dwarfs_the_rest():
    """Encoders have channels that are huge in every token; the other channels still decide.

    A channel a hundred times the rest raises all cosines above 0.999.
    """
    tokens = random_tokens((12, 12))
    huge = torch.full((144, 1), 100.0, dtype=torch.float64)
    narrow = VisualTokens(torch.cat([tokens.features, huge], 1), grid=(12, 12))
    kept = GraphCover(0.2).select(narrow)
    assert within_twice_the_best(joint(narrow), kept, 1e-2)
    plainly = radius(joint(tokens), GraphCover(0.2).select(tokens))
    random = np.mean(
        [radius(joint(tokens), RandomPruner(0.2, seed=s).select(tokens)) for s in range(10)]
    )
    assert radius(joint(tokens), kept) < (plainly + random) / 2


# Features of the shipped model's vision tower.


@pytest.fixture(scope="module")
def model():
    return load()[0]


PICTURES = {
    "white": hard_pictures.blank((255, 255, 255)),
    "grey": hard_pictures.blank((128, 128, 128)),
    "noise": hard_pictures.noise(),
    "1/f noise": hard_pictures.one_over_f(),
    "crowded": make_scene("validation", 0, 0, crowded=True).draw(),
    "page": hard_pictures.page(),
}


@torch.inference_mode()
def encoded(model, pictures: list[Image.Image]) -> list[VisualTokens]:
    """Returns pictures as a pruner receives them in the shipped model."""
    features = model.model.multi_modal_projector(vision_features(model, to_pixels(pictures)))
    return [VisualTokens(x.clone(), grid=SQUARE) for x in features]


@pytest.mark.parametrize("name", PICTURES)
def test_real_features(model, name):
    [tokens] = encoded(model, [PICTURES[name]])
    distance = joint(tokens)
    for keep in (0.25, 0.1, 0.05):
        kept = GraphCover(keep).select(tokens)
        assert len(kept) == kept_count(256, keep)
        assert within_twice_the_best(distance, kept, TOLERANCE)
        others = [GPrune(keep), *(RandomPruner(keep, seed) for seed in range(5))]
        if keep >= 0.1:  # with less, a regular grid covers a grey picture better
            others.append(UniformGridPruner(keep))
        left = [radius(distance, other.select(tokens)) for other in others]
        assert radius(distance, kept) <= min(left)
        # Positions alone have no guarantee, because features count too; yet no gap is large.
        gaps = radius(plane(SQUARE), UniformGridPruner(keep).select(tokens))
        assert radius(plane(SQUARE), kept) <= 2 * gaps


def test_real_features_in_a_batch(model):
    pictures = list(PICTURES.values())
    for together, picture in zip(encoded(model, pictures), pictures, strict=True):
        [alone] = encoded(model, [picture])
        for keep in (0.25, 0.1):
            pruner = GraphCover(keep)
            assert torch.equal(pruner.select(together), pruner.select(alone))


def parts(kept: torch.Tensor, side: int) -> torch.Tensor:
    """Returns how many kept tokens lie in each of ``side * side`` equal parts of the picture."""
    part = kept // 16 * side // 16 * side + kept % 16 * side // 16
    return torch.bincount(part, minlength=side * side)


@pytest.mark.parametrize("seed", range(4))
def test_every_quarter_of_a_page_is_kept(model, seed):
    """Each quarter keeps at least half of its share, because none is plainer than another."""
    [tokens] = encoded(model, [hard_pictures.page(seed)])
    for keep in (0.25, 0.1, 0.05):
        assert parts(GraphCover(keep).select(tokens), 2).min() >= kept_count(256, keep) / 8


def test_few_parts_of_a_crowded_scene_are_left_empty(model):
    """Of sixteen parts, at keep=0.1: fewer than by chance, while G-Prune leaves more."""
    pictures = [make_scene("validation", 0, index, crowded=True).draw() for index in range(12)]
    tokens = encoded(model, pictures)

    def empty(pruner) -> float:
        return float(np.mean([int((parts(pruner.select(x), 4) == 0).sum()) for x in tokens]))

    chance = np.mean([empty(RandomPruner(0.1, seed=seed)) for seed in range(5)])
    assert empty(GraphCover(0.1)) < chance < empty(GPrune(0.1))


def test_budgets_follow_the_content(model):
    """At one radius, an ordinary scene keeps less than a crowded one."""
    ordinary, crowded = (
        [make_scene("validation", 0, index, crowded=crowded).draw() for index in range(8)]
        for crowded in (False, True)
    )
    budget = CoverBudget.calibrated(0.25, encoded(model, ordinary), least=0.05, most=1.0)
    assert np.mean(budget(encoded(model, ordinary))) < np.mean(budget(encoded(model, crowded)))


# Other models: rasters that follow the picture, tiles with a thumbnail, no CLS token.


class Recording(GraphCover):
    """GraphCover that records the groups that it receives."""

    def reduce_groups(self, groups):
        RECEIVED.extend(groups)
        return super().reduce_groups(groups)


RECEIVED: list[VisualTokens] = []


def received(specimen, model, images: list[int], pruner, blank: bool = False):
    """Returns the groups that a pruner received of a batch, and what was kept of each."""
    RECEIVED.clear()
    batch = make_batch(specimen, model, images, seed=3)
    if blank:
        batch.inputs["pixel_values"].fill_(0.6)
    with torch.no_grad(), pruner(model) as pruned:
        model(**batch.inputs)
    return list(RECEIVED), [group for row in pruned.kept for group in row]


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_next", "paligemma", "mistral3"])
@pytest.mark.parametrize("blank", [False, True])
def test_models_of_every_shape(name, blank):
    specimen = SPECIMENS[name]
    model = specimen.build()
    groups, kept = received(specimen, model, [1, 2], Recording(0.25), blank)
    assert len(groups) == len(kept) >= 3
    for tokens, group in zip(groups, kept, strict=True):
        rows = torch.arange(len(tokens))
        fixed = set() if tokens.protected is None else set(rows[tokens.protected].tolist())
        chosen = [row for row in group.indices.tolist() if row not in fixed]
        assert len(chosen) == kept_count(len(tokens) - len(fixed), 0.25)
        assert fixed <= set(group.indices.tolist())
        free = [row for row in rows.tolist() if row not in fixed]
        places = tokens.coordinates().double().numpy()[free]
        x = tokens.features.double().numpy()[free]
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        blank_features = np.square(unit[:, None] - unit[None]).sum(-1).mean() < 1e-5
        terms = squares(places) if blank_features else squares(places) + squares(unit)
        order = torch.tensor([free.index(row) for row in chosen])
        assert within_twice_the_best(np.sqrt(terms), order, TOLERANCE)


def test_a_blank_picture_without_absolute_positions():
    """Qwen2.5-VL's tower gives all of its patches one feature up to rounding: positions decide."""
    specimen = SPECIMENS["qwen2_5_vl"]
    groups, kept = received(specimen, specimen.build(), [3], Recording(0.25), blank=True)
    assert not all(torch.equal(x.features, x.features[:1].expand_as(x.features)) for x in groups)
    for tokens, group in zip(groups, kept, strict=True):
        equal = VisualTokens(torch.ones(len(tokens), 4), grid=tokens.grid)
        assert torch.equal(group.indices, GraphCover(0.25).select(equal))


def test_every_tile_is_covered_with_a_thumbnail_guided_budget():
    """Even of a blank picture, the canvas keeps its budget, and no tile is left out."""
    specimen = SPECIMENS["llava_next"]
    keep = ThumbnailGuided(0.5)
    groups, kept = received(specimen, specimen.build(), [1], Recording(keep), blank=True)
    _, canvas = groups
    rows, columns = canvas.grid
    ends = 0 if canvas.protected is None else int(canvas.protected.sum())
    assert len(kept[1].indices) - ends == kept_count(rows * columns - ends, 0.5)
    cell = kept[1].indices // columns * 2 // rows * 2 + kept[1].indices % columns * 2 // columns
    assert set(cell.tolist()) == {0, 1, 2, 3}
