"""Merges features of whole images by hand, for the full-length references."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gprune import Pruner, VisualTokens
from gprune.layouts import family_of
from gprune.proof.batches import Batch


@torch.no_grad()
def merged_outputs(model: Any, batch: Batch, pruner: Pruner) -> tuple[Any, list[Tensor]]:
    """Merges the features of a batch's images as a method does, but keeps their full length.

    Returns:
        the encoder's output with means in place of kept features, and the member count of each
        row of each image, [n].
    """
    family = family_of(model)
    encoded = model.base_model.get_image_features(**batch.pixels, return_dict=True)
    images, counts = [], []
    for number, features in enumerate(family.features(model, encoded)):
        grid = None
        if family.multimodal_positions:
            grid = tuple(
                (batch.pixels["image_grid_thw"][number] // torch.tensor([1, 2, 2])).tolist()
            )
        full, member_counts = features.clone(), torch.ones(len(features))
        for group in family.groups(model, "image", features, grid):
            own = features[group.rows]
            reduction = pruner.reduce(VisualTokens(own, grid=group.grid, kind=group.kind))
            assert reduction.members is not None
            full[group.rows[reduction.kept]] = reduction.features(own)
            members = reduction.members.tolist()
            for position, index in enumerate(reduction.kept.tolist()):
                member_counts[group.rows[index]] = members.count(position)
        images.append(full)
        counts.append(member_counts)
    everything = [torch.arange(len(image)) for image in images]
    return family.shorten(encoded, everything, images), counts
