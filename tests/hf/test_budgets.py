"""Budgets for kinds of groups, and budgets that depend on all groups of an image."""

from __future__ import annotations

import pytest
import torch

from gprune import GPrune, ThumbnailGuided, ToMe, UniformGridPruner, VisualTokens, kept_count
from gprune.layouts import family_of
from gprune.proof.batches import GREEDY, STEPS, add_video, forward, make_batch, masked_greedy
from gprune.proof.models import SPECIMENS


def test_a_budget_for_each_kind_of_group():
    specimen = SPECIMENS["llava_onevision"]
    model = specimen.build()
    batch, _ = add_video(specimen, model, make_batch(specimen, model, [1]))
    keep = {"thumbnail": 1.0, "canvas": 0.25, "frame": 2}
    with GPrune(keep)(model) as pruned:
        model.generate(**batch.inputs, **GREEDY)
    kinds = [group.kind for group in pruned.kept[0]]
    assert kinds == ["thumbnail", "canvas", "frame", "frame", "frame"]
    for group in pruned.kept[0]:
        assert len(group.indices) == kept_count(group.size, keep[group.kind])
    with GPrune({"canvas": 0.5})(model), pytest.raises(ValueError, match=r"frame|thumbnail"):
        forward(model, batch)


def test_a_function_that_divides_a_budget():
    """The function gets all groups of an image at once."""
    specimen = SPECIMENS["llava_next"]
    model = specimen.build()
    batch = make_batch(specimen, model, [1])

    def keep(groups):
        assert [group.kind for group in groups] == ["thumbnail", "canvas"]
        return [5, 10 - 5]

    with UniformGridPruner(keep)(model) as pruned:
        forward(model, batch)
    assert [len(group.indices) for group in pruned.kept[0]] == [5, 5]


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision", "llava_next_video"])
@pytest.mark.parametrize("method", [GPrune, ToMe])
def test_the_thumbnail_divides_the_budget_of_the_tiles(name, method):
    specimen = SPECIMENS[name]
    model = specimen.build()
    batch = make_batch(specimen, model, [2, 0, 1])
    policy = ThumbnailGuided(0.3, temperature=0.02)
    with method(policy)(model) as pruned:
        output = model.generate(**batch.inputs, **GREEDY)
        kept, kept_mask = [group for row in pruned.kept for group in row], pruned.kept_mask
        uncached = model.generate(**batch.inputs, **GREEDY, use_cache=False)
    assert torch.equal(output.sequences, uncached.sequences)
    with torch.no_grad():
        encoded = model.base_model.get_image_features(**batch.pixels, return_dict=True)
    uneven = False
    for image, features in enumerate(encoded.pooler_output):
        thumbnail, canvas = kept[2 * image : 2 * image + 2]
        assert len(thumbnail.indices) == kept_count(thumbnail.size, 0.3)
        assert len(canvas.indices) == kept_count(canvas.size, 0.3)
        divided = family_of(model).groups(model, "image", features, None)
        groups = [VisualTokens(features[g.rows], g.grid, kind=g.kind) for g in divided]
        shares = policy(groups)[1]
        counts = [int(torch.isin(canvas.indices, rows).sum()) for rows, _ in shares.parts]
        assert counts == list(shares.counts)
        uneven |= len(set(counts)) > 1
    assert uneven
    if method is GPrune:  # merged features are tested in test_masked_reference.py
        tokens, logits = masked_greedy(model, batch, kept_mask, STEPS)
        assert torch.equal(output.sequences[:, -STEPS:], tokens)
        assert torch.stack(output.logits, 1).sub(logits).abs().max() <= 1e-5


def test_thumbnail_guidance_without_a_thumbnail_is_refused():
    specimen = SPECIMENS["llava"]
    model = specimen.build()
    batch = make_batch(specimen, model, [1])
    with GPrune(ThumbnailGuided(0.3))(model), pytest.raises(ValueError, match="of kind image"):
        forward(model, batch)
