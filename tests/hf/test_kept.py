"""Which tokens are kept, in which groups, and what `pruned` reports."""

from __future__ import annotations

import pytest
import torch

from gprune import GPrune, VisualTokens, kept_count
from gprune.layouts import family_of
from gprune.proof.batches import feature_length, finish_batch, forward, make_batch, noise
from gprune.proof.models import IMAGE, SIDE, SPECIMENS


@pytest.mark.parametrize("images", [[2, 0, 1], [1, 3]])
def test_kept_and_kept_mask_agree(specimen, model, images):
    batch = make_batch(specimen, model, images)
    keep = 0.3
    with GPrune(keep=keep)(model) as pruned:
        assert pruned.kept_mask is None
        assert pruned.kept == []
        output = forward(model, batch)
    # The longest row sets the length of the logits.
    assert output.logits.shape[1] == int(pruned.kept_mask.sum(1).max())
    ids, real = batch.inputs["input_ids"], batch.inputs["attention_mask"].bool()
    visual = ids == IMAGE
    assert torch.equal(pruned.kept_mask & ~visual, real & ~visual)
    tiles = [sum(map(specimen.tiles, row)) for row in batch.rows]
    numbers = [sorted({group.image for group in row}) for row in pruned.kept]
    assert numbers == [list(range(count)) for count in tiles]
    newlines = 0
    for row, groups in enumerate(pruned.kept):
        total = 0
        for group in groups:
            assert len(group.indices) == kept_count(group.size, keep)
            assert group.indices.tolist() == sorted(set(group.indices.tolist()))
            assert group.grid is not None
            assert group.grid[0] * group.grid[1] == group.size
            total += len(group.indices)
        newlines += int((pruned.kept_mask & visual)[row].sum()) - total
    sizes = sum(group.size for row in pruned.kept for group in row)
    assert newlines == sum(batch.lengths) - sizes


def test_llava_next_groups_and_newlines():
    model = SPECIMENS["llava_next"].build()
    batch = make_batch(SPECIMENS["llava_next"], model, [1], seed=1)
    with GPrune(keep=1)(model) as pruned:  # one token per group
        forward(model, batch)
    thumbnail, canvas = pruned.kept[0]
    assert thumbnail.grid == (SIDE, SIDE)
    rows, columns = canvas.grid
    assert batch.lengths == [SIDE * SIDE + rows * (columns + 1)]
    kept = pruned.kept_mask[0][batch.inputs["input_ids"][0] == IMAGE]
    newlines = kept[SIDE * SIDE :].view(rows, columns + 1)[:, -1]
    assert newlines.all()
    assert int(kept.sum()) == 2 + rows


def test_tokens_per_image_of_the_config(specimen, model):
    """`gprune flops MODEL` reads it; None where the number depends on the image's size."""
    images = [specimen.image(noise(0), index) for index in range(3)]
    lengths = {feature_length(specimen, model, image) // specimen.tiles(image) for image in images}
    count = family_of(model).tokens_per_image(model.config)
    assert {count} == lengths if count is not None else len(lengths) > 1


def test_selection_uses_the_projected_features(specimen, model):
    batch = make_batch(specimen, model, [1])
    with torch.no_grad():
        encoded = model.base_model.get_image_features(**batch.pixels, return_dict=True)
    features = encoded.pooler_output[0]
    with GPrune(keep=0.4)(model) as pruned:
        forward(model, batch)
    first = pruned.kept[0][0]
    expected = GPrune(keep=0.4).select(VisualTokens(features[: first.size]))
    assert torch.equal(first.indices, expected)


def test_other_rows_do_not_change_what_is_kept(specimen, model):
    together = make_batch(specimen, model, [1, 2])
    with GPrune(keep=0.3)(model) as pruned:
        forward(model, together)
        expected = [group.indices for group in pruned.kept[0]]
        ids = together.inputs["input_ids"][:1, -int(together.inputs["attention_mask"][0].sum()) :]
        alone = finish_batch(specimen, ids, torch.ones_like(ids), together.rows[:1], [])
        with torch.no_grad():
            model(**alone.inputs)
        actual = [group.indices for group in pruned.kept[0]]
    assert all(map(torch.equal, expected, actual))
