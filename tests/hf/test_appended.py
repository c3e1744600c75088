"""Rows that a method appends reach the language model at the positions of dropped tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from gprune import Pruner, kept_count
from gprune.layouts import family_of
from gprune.proof.batches import GREEDY, STEPS, forward, make_batch, masked_greedy
from gprune.proof.models import IMAGE, SPECIMENS
from gprune.pruners.ranking import unchosen
from gprune.pruners.reduction import Reduction


@dataclass(frozen=True)
class MeanOfTheRest(Pruner):
    """Keeps the first k - 1 tokens and appends the mean of all others."""

    name: ClassVar[str] = "mean_of_the_rest"

    def choose(self, tokens, k):
        kept = torch.arange(k - 1, device=tokens.features.device)
        mean = tokens.features.new_zeros(1, len(tokens), dtype=torch.float32)
        mean[0, unchosen(kept, len(tokens))] = 1 / (len(tokens) - len(kept))
        return Reduction(kept, appended=mean)


@pytest.mark.parametrize("images", [[1], [2, 0, 1]])
def test_appended_rows_reach_the_language_model(images):
    specimen = SPECIMENS["llava"]
    model = specimen.build()
    family = family_of(model)
    batch = make_batch(specimen, model, images, seed=7)
    keep = 0.36
    with MeanOfTheRest(keep)(model) as pruned:
        output = model.generate(**batch.inputs, **GREEDY)
        kept_mask, kept = pruned.kept_mask, [group for row in pruned.kept for group in row]
        shortened = forward(model, batch).logits
    ids, real = batch.inputs["input_ids"], batch.inputs["attention_mask"].bool()
    k = kept_count(kept[0].size, keep)
    assert 1 < k < kept[0].size
    by_image = (kept_mask & real)[ids == IMAGE].split(batch.lengths)
    for stays, group in zip(by_image, kept, strict=True):
        # The appended row takes the position of the last dropped token, the last of the image.
        assert stays.nonzero().squeeze(1).tolist() == [*range(k - 1), group.size - 1]
        assert group.indices.tolist() == [*range(k - 1), group.size - 1]

    with torch.no_grad():
        encoded = model.base_model.get_image_features(**batch.pixels, return_dict=True)
    replaced = []
    for features in family.features(model, encoded):
        by_hand = features.clone()
        by_hand[-1] = features[k - 1 :].mean(0)
        replaced.append(by_hand)
    full = family.shorten(encoded, [torch.arange(len(x)) for x in replaced], replaced)
    with torch.no_grad():
        expected = model(
            **batch.text
            | {"attention_mask": (real & kept_mask).long(), "position_ids": batch.positions(model)},
            mm_encoder_outputs={"image": full},
            use_cache=False,
        ).logits[:, -1]
    assert (shortened[:, -1] - expected).abs().max() <= 1e-5
    assert (output.logits[0] - expected).abs().max() <= 1e-5
    # Without the appended row's own feature the result differs, or nothing was tested.
    _, unreplaced = masked_greedy(model, batch, kept_mask, 1)
    assert (output.logits[0] - unreplaced[:, 0]).abs().max() > 1e-4
    assert output.sequences.shape[1] == ids.shape[1] + STEPS
