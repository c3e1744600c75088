"""How one image's tokens divide, how many stay, and which: the part that knows no vLLM."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gprune.budget import Budget, budgets, kept_count
from gprune.pruners import Pruner
from gprune.pruners.base import assembled
from gprune.serving.settings import decode
from gprune.tokens import VisualTokens

if TYPE_CHECKING:
    from gprune.layouts import Group

logger = logging.getLogger(__name__)

# Rows are numbered in two base-256 digits, which bfloat16 holds exactly.
BASE = 256
MOST_TOKENS = BASE**2


def whole_raster(tokens: int, rows: int, columns: int) -> list[Group]:
    """One raster, after tokens that are no patches (a CLS token)."""
    from gprune.layouts import Group

    return [Group(torch.arange(tokens - rows * columns, tokens), (rows, columns))]


def tiles(tokens: int, rows: int, columns: int) -> list[Group]:
    """Tiles of one size, one after another."""
    from gprune.layouts import Group

    parts = torch.split(torch.arange(tokens), rows * columns)
    return [Group(part, (rows, columns), "tile") for part in parts]


def thumbnail_and_canvas(tokens: int, rows: int, columns: int) -> list[Group]:
    """A square thumbnail, then a canvas whose rows each end with a newline (in no group)."""
    from gprune.layouts import Group

    thumbnail = tokens - rows * (columns + 1)
    side = math.isqrt(thumbnail)
    index = torch.arange(tokens)
    canvas = index[thumbnail:].view(rows, columns + 1)[:, :-1]
    groups = [Group(index[:thumbnail], (side, side), "thumbnail")]
    if rows * columns:  # nothing is left of the canvas of a very narrow picture
        groups.append(Group(canvas.flatten(), (rows, columns), "canvas"))
    return groups


Division = Callable[[int, int, int], list["Group"]]


@dataclass(frozen=True)
class ImagePlan:
    """What frontend and workers have to agree on about one image; travels as a row of integers.

    Attributes:
        tokens: of the image before pruning.
        rows, columns: of its raster, of one tile, or of the canvas without its newlines.
        keep: a budget for each kind of group, see `settings.encode`.
    """

    tokens: int
    rows: int
    columns: int
    keep: tuple[int, ...]

    def to_tensor(self) -> Tensor:
        """int64 [3 + number of kinds]."""
        return torch.tensor([self.tokens, self.rows, self.columns, *self.keep])

    @classmethod
    def from_tensor(cls, values: Tensor) -> ImagePlan:
        tokens, rows, columns, *keep = values.tolist()
        return cls(tokens, rows, columns, tuple(keep))

    def budget(self, group: Group) -> Budget:
        """The budget of a group.

        Raises:
            ValueError: keep has none for its kind.
        """
        given = decode(self.keep)
        if group.kind not in given:
            raise ValueError(
                f"keep={given!r} has no budget for groups of kind {group.kind}; add one for each"
            )
        return given[group.kind]

    def kept(self, divide: Division) -> int:
        """How many tokens stay.

        Raises:
            ValueError: see `budget`; or the image has more tokens than can be numbered.
        """
        if self.tokens > MOST_TOKENS:
            raise ValueError(
                f"an image of {self.tokens} visual tokens is too large, {MOST_TOKENS} is the most; "
                "send a smaller one"
            )
        groups = divide(self.tokens, self.rows, self.columns)
        dropped = sum(
            len(group.rows) - kept_count(len(group.rows), self.budget(group)) for group in groups
        )
        return self.tokens - dropped


def choose(
    pruner: Pruner, features: Tensor, groups: Sequence[Group], finite: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Runs the pruner on every group of one image, as `gprune.hf` does.

    Args:
        pruner: the method.
        features: projected features of the image, [n, d].
        groups: of its rows.
        finite: which rows are finite, bool [n], or None where all are. Others are kept last.

    Returns:
        the rows that stay, int64 [k], ascending, and the features, [n, d], with what a merging
        method made of those that stay.
    """
    reduced: list[tuple[Tensor, Tensor | None]] = []
    places = [group.rows.to(features.device) for group in groups]
    for group, rows in zip(groups, places, strict=True):
        tokens = VisualTokens(features[rows], grid=group.grid, kind=group.kind)
        if finite is None or bool(finite[rows].all()):
            reduced += pruner.reduce_groups([tokens])
        else:
            reduced.append((choose_finite(pruner, tokens, finite[rows]), None))
    return assembled(features, places, reduced)


def choose_finite(pruner: Pruner, tokens: VisualTokens, finite: Tensor) -> Tensor:
    """The indices to keep of a group [n] some rows of which are not finite; those rank last.

    The finite ones are chosen among themselves; where they are too few, others follow in order.
    """
    (budget,) = budgets(pruner.keep, [tokens])
    assert isinstance(budget, float | int)  # what travels is a number
    k = kept_count(len(tokens), budget)
    good, bad = finite.nonzero().squeeze(1), (~finite).nonzero().squeeze(1)
    if k >= len(good):
        return torch.cat([good, bad[: k - len(good)]]).sort().values
    chosen, _ = pruner.partition(tokens.subset(good), k)
    return good[chosen]


def numbered(features: Tensor, rows: Tensor) -> Tensor:
    """``features`` [k, d] with the number of their row [k] in two more channels, [k, d + 2]."""
    digits = torch.stack([rows // BASE, rows % BASE], 1).to(features.dtype)
    return torch.cat([features, digits], 1)


def without_numbers(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """What `numbered` was given: features [k, d] and rows, int64 [k]."""
    high, low = embeddings[:, -2:].long().unbind(1)
    return embeddings[:, :-2], high * BASE + low


def prune_images(
    images: Sequence[Tensor],
    plans: Sequence[ImagePlan],
    divide: Division,
    pruner_for: Callable[[tuple[int, ...]], Pruner],
    width: int,
) -> list[Tensor]:
    """The features of every image that stay, each row with its number in two more channels.

    Args:
        images: projected features of each, [n, width or more]; what is beyond ``width`` (Qwen3-VL's
            deepstack features) is cut the same way and not looked at.
        plans: of each.
        divide: the family's division into groups.
        pruner_for: `Settings.pruner`.
        width: channels of a projected feature.

    Raises:
        RuntimeError: an image has other rows than the frontend made placeholders for.
    """
    finite = [image[:, :width].isfinite().all(1) for image in images]
    clean = torch.stack([rows.all() for rows in finite]).tolist() if images else []
    pruned = []
    for image, plan, rows_finite, is_clean in zip(images, plans, finite, clean, strict=True):
        if len(image) != plan.tokens:
            raise RuntimeError(
                f"the encoder made {len(image)} rows of an image that has {plan.tokens} visual "
                "tokens by its size; the model and its processor do not fit together"
            )
        if not is_clean:
            logger.warning(
                "%d of %d visual tokens of an image are NaN or infinite and rank last; find where "
                "the vision encoder overflows (float16 is the usual reason: try bfloat16)",
                int((~rows_finite).sum()),
                len(image),
            )
        groups = divide(plan.tokens, plan.rows, plan.columns)
        kept = plan.kept(divide)
        if kept == plan.tokens:
            rows, features = torch.arange(kept, device=image.device), image[:, :width]
        else:
            rows, features = choose(
                pruner_for(plan.keep), image[:, :width], groups, None if is_clean else rows_finite
            )
        if len(rows) != kept:
            raise RuntimeError(f"kept {len(rows)} visual tokens for {kept} placeholders")
        pruned.append(numbered(torch.cat([features, image[:, width:]], 1)[rows], rows))
    return pruned
