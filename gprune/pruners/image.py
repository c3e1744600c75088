"""Prunes whole images: features -> groups -> choice -> rows. Both engines go through here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gprune.pruners.base import Pruner
from gprune.pruners.reduction import Reduction
from gprune.tokens import Group, VisualTokens


@dataclass(frozen=True, eq=False)
class GroupedImage:
    """One image or video, divided into groups.

    Attributes:
        features: projected features, one row per placeholder, [n, d].
        groups: disjoint rows that are pruned together; rows in no group are always kept.
        signals: what the method reads besides features, by field of `VisualTokens`: tensors with
            one row per token, except ``text``, which all tokens share.
        project: maps rows of the signal ``vision`` to rows of ``features``, [k, c] to [k, d]; None
            if the model has no projector that works row by row.
    """

    features: Tensor
    groups: Sequence[Group]
    signals: Mapping[str, Tensor] = field(default_factory=dict)
    project: Callable[[Tensor], Tensor] | None = None

    def tokens(self, group: Group) -> VisualTokens:
        """Returns a group as a pruner receives it."""
        signals = {name: rows_of(name, x, group.rows) for name, x in self.signals.items()}
        features = self.features[group.rows].detach()
        return VisualTokens(features, grid=group.grid, kind=group.kind, **signals)


@dataclass(frozen=True, eq=False)
class ReducedImage:
    """One image after pruning.

    Attributes:
        rows: rows of the image that stay, int64 [k], ascending.
        features: their features, merged ones included, [k, d].
        kept: for each group the indices within it that stay, int64, ascending.
        merges: whether any of these features differs from the image's own.
        member_counts: for each row of the image, dropped rows included, how many tokens are
            averaged into it, float32 [n]; 1 for a dropped row. None unless the method is
            proportional.
    """

    rows: Tensor
    features: Tensor
    kept: list[Tensor]
    merges: bool = False
    member_counts: Tensor | None = None


def reduce_images(pruner: Pruner, images: Sequence[GroupedImage]) -> list[ReducedImage]:
    """Runs a method on every group of every image, in one call for methods that batch images.

    Raises:
        TypeError, ValueError: see `Pruner.reduce_groups`.
    """
    tokens = [[image.tokens(group) for group in image.groups] for image in images]
    reduced = pruner.reduce_images(tokens)
    return [
        assemble(image, reductions, pruner.proportional, pruner.merges_before_projector)
        for image, reductions in zip(images, reduced, strict=True)
    ]


def assemble(
    image: GroupedImage,
    reductions: Sequence[Reduction],
    proportional: bool = False,
    before_projector: bool = False,
) -> ReducedImage:
    """Joins the reductions of an image's groups.

    Args:
        image: its groups are on the device of its features.
        reductions: one for each group.
        proportional: whether to count members.
        before_projector: whether to merge the rows of the signal ``vision`` and then project them,
            if the image has both; else projected features are merged.

    Raises:
        ValueError: members cannot be counted, see `Reduction.member_counts`.
    """
    features, groups = image.features, image.groups
    stays = torch.ones(len(features), dtype=torch.bool, device=features.device)
    merged, count = features, len(features)
    member_counts = features.new_ones(len(features), dtype=torch.float32) if proportional else None
    kept = []
    for group, reduction in zip(groups, reductions, strict=True):
        indices = reduction.positions(len(group.rows))
        rows = group.rows[indices]
        stays[group.rows] = False
        stays[rows] = True
        if reduction.merges:
            new = merged_features(image, group, reduction, before_projector)
            merged = merged.index_copy(0, rows, new)
        if member_counts is not None:
            member_counts[rows] = reduction.member_counts()
        kept.append(indices)
        count += len(indices) - len(group.rows)
    # The count is known from the groups: reading it off the flags would synchronise a GPU.
    order = torch.sort(stays.to(torch.uint8), descending=True, stable=True).indices
    rows = order[:count]
    merges = any(reduction.merges for reduction in reductions)
    return ReducedImage(rows, merged[rows], kept, merges, member_counts)


def merged_features(
    image: GroupedImage, group: Group, reduction: Reduction, before_projector: bool
) -> Tensor:
    """Returns a group's features after merging, [k, d]; arguments as `assemble`."""
    own = image.features[group.rows]
    vision = image.signals.get("vision")
    if not before_projector or vision is None or image.project is None:
        return reduction.features(own)
    return project_merged(reduction, own, vision[group.rows], image.project)


def project_merged(
    reduction: Reduction,
    features: Tensor,
    vision: Tensor,
    project: Callable[[Tensor], Tensor],
) -> Tensor:
    """Merges features before the projector; rows of a single token keep their projected feature.

    Args:
        reduction: of the group.
        features: projected features of the group, [n, d].
        vision: features before the projector, [n, c].
        project: see `GroupedImage`.

    Returns:
        the features at ``reduction.positions(n)``, [k, d].
    """
    rows = project(reduction.features(vision)).to(features)
    changed = reduction.changed(len(features))
    return torch.where(changed[:, None], rows, features[reduction.positions(len(features))])


def rows_of(name: str, values: Tensor, rows: Tensor) -> Tensor:
    """Returns the rows of a signal; all rows of ``text``, and attention as a vector."""
    if name == "text":
        return values
    part = values[rows]
    return part.squeeze(1) if name.endswith("attention") else part
