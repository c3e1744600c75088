"""Prunes the encoded images of a server."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from gprune.layouts.base import Family
from gprune.pruners.base import Pruner
from gprune.pruners.image import GroupedImage, ReducedImage, assemble, reduce_images
from gprune.pruners.reduction import Reduction
from gprune.serving.plan import ImagePlan
from gprune.serving.row_numbers import with_row_numbers
from gprune.tokens import Group, VisualTokens

logger = logging.getLogger(__name__)

# Makes the method for an encoded budget, see `ServerSettings.pruner`.
PrunerFor: TypeAlias = Callable[[tuple[int, ...]], Pruner]


def prune_images(
    images: Sequence[Tensor],
    plans: Sequence[ImagePlan],
    family: Family,
    pruner_for: PrunerFor,
    width: int,
) -> list[Tensor]:
    """Prunes every image and appends the row number of each kept token in two channels.

    Args:
        images: projected features of each image, [n, width or more]. Channels beyond ``width``
            (Qwen3-VL's deepstack features) are gathered at the kept rows and not read.
        plans: of each image.
        family: of the model.
        pruner_for: makes the method for an encoded budget.
        width: channels of a projected feature.

    Returns:
        kept features of each image, [k, channels + 2], see `with_row_numbers`.

    Raises:
        RuntimeError: an image has another number of rows than its plan says.
    """
    if not images:
        return []
    finite = [image[:, :width].isfinite().all(1) for image in images]
    # Synchronises the host once for all images.
    all_finite = torch.stack([rows.all() for rows in finite]).tolist()
    pruned = []
    for image, plan, rows_finite, is_finite in zip(images, plans, finite, all_finite, strict=True):
        require_planned_rows(image, plan)
        if not is_finite:
            warn_not_finite(rows_finite)
        reduced = prune_image(
            image[:, :width], plan, family, pruner_for, None if is_finite else rows_finite
        )
        embeddings = torch.cat([reduced.features, image[reduced.rows, width:]], 1)
        pruned.append(with_row_numbers(embeddings, reduced.rows))
    return pruned


def require_planned_rows(image: Tensor, plan: ImagePlan) -> None:
    """Checks that the encoder returned as many rows as the plan says.

    Raises:
        RuntimeError: it did not.
    """
    if len(image) != plan.tokens:
        raise RuntimeError(
            f"the encoder returned {len(image)} rows for an image of {plan.tokens} visual tokens: "
            "the model and its processor do not fit together"
        )


def warn_not_finite(finite: Tensor) -> None:
    """Logs how many rows of an image are not finite; ``finite`` is bool [n]."""
    logger.warning(
        "%d of %d visual tokens of an image are NaN or infinite and rank last; find where "
        "the vision encoder overflows (float16 is the usual reason: try bfloat16)",
        int((~finite).sum()),
        len(finite),
    )


def prune_image(
    features: Tensor,
    plan: ImagePlan,
    family: Family,
    pruner_for: PrunerFor,
    finite: Tensor | None,
) -> ReducedImage:
    """Prunes one image.

    Args:
        features: projected features, [n, d].
        plan: of the image.
        family: of the model.
        pruner_for: makes the method for an encoded budget.
        finite: which rows are finite, bool [n]; None if all are. Others are kept last.

    Raises:
        RuntimeError: the method kept another number of tokens than there are placeholders.
    """
    placeholders = plan.kept_tokens(family)
    groups = plan.groups(family, features.device)
    if placeholders == plan.tokens:
        return keep_everything(features, groups)
    pruner = pruner_for(plan.keep)
    image = GroupedImage(features, groups)
    if finite is None:
        (reduced,) = reduce_images(pruner, [image])
    else:
        counts = [plan.kept_in(group) for group in groups]
        reduced = reduce_image_finite_first(pruner, image, finite, counts)
    if len(reduced.rows) != placeholders:
        raise RuntimeError(
            f"kept {len(reduced.rows)} visual tokens for {placeholders} placeholders"
        )
    return reduced


def keep_everything(features: Tensor, groups: Sequence[Group]) -> ReducedImage:
    """Returns an image [n, d] with all of its rows, without running the method."""
    every_row = torch.arange(len(features), device=features.device)
    kept = [torch.arange(len(group.rows), device=features.device) for group in groups]
    return ReducedImage(every_row, features, kept)


def reduce_image_finite_first(
    pruner: Pruner, image: GroupedImage, finite: Tensor, counts: Sequence[int]
) -> ReducedImage:
    """Reduces each group of an image to a count with `reduce_finite_first`; ``finite`` is [n]."""
    reductions = [
        reduce_finite_first(pruner, image.tokens(group), finite[group.rows], k)
        for group, k in zip(image.groups, counts, strict=True)
    ]
    return assemble(image, reductions)


def reduce_finite_first(pruner: Pruner, tokens: VisualTokens, finite: Tensor, k: int) -> Reduction:
    """Reduces a group to ``k`` tokens; rows that are not finite rank last.

    The method chooses among finite rows only. If there are fewer than ``k``, all of them are kept
    and then others, lowest index first.

    Args:
        pruner: the method.
        tokens: the group, [n, d].
        finite: which of its rows are finite, bool [n].
        k: how many to keep.
    """
    if bool(finite.all()):
        return pruner.reduce(tokens)
    finite_rows, other_rows = finite.nonzero().squeeze(1), (~finite).nonzero().squeeze(1)
    if k >= len(finite_rows):
        return Reduction(torch.cat([finite_rows, other_rows[: k - len(finite_rows)]]).sort().values)
    return Reduction(finite_rows[pruner.reduce_to(tokens.subset(finite_rows), k).kept])
