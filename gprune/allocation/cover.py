"""Budgets that follow how hard an image is to cover, at the same average."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from gprune.budget import check_keep, kept_count
from gprune.pruners.base import check_weight
from gprune.pruners.cover import GraphCover
from gprune.tokens import VisualTokens


@dataclass(frozen=True)
class CoverBudget:
    """A ``keep`` that spends tokens where the graph says that an image is complex.

    Of every group as many tokens are kept as `GraphCover` needs to leave none farther than
    ``radius`` from a kept one: few for a plain wall, many for a page of text. The radius is what
    images have in common, so an average over images is met by finding the radius on some of them:

    >>> budget = CoverBudget.calibrated(0.25, groups)  # doctest: +SKIP
    >>> with GraphCover(keep=budget)(model):  # doctest: +SKIP
    ...     model.generate(**inputs)

    It serves any method; how many tokens an image keeps is not known before it is encoded, so an
    engine that reserves places beforehand needs a fixed ``keep`` instead.

    Attributes:
        radius: largest distance D of `GraphCover` (not squared) that a dropped token may have from
            the nearest kept one, >= 0; smaller keeps more.
        least: share of a group's tokens that is always kept, in (0, 1].
        most: share that is never exceeded, ``least`` to 1.
        place: weight of where tokens lie, see `GraphCover`.

    Raises:
        TypeError, ValueError: a number is out of range.
    """

    radius: float
    least: float = 0.01
    most: float = 1.0
    place: float = 1.0

    def __post_init__(self) -> None:
        check_weight("radius", self.radius)
        for name in ("least", "most"):
            require_share(name, getattr(self, name), "0.1")
        if self.least > self.most:
            raise ValueError(f"least={self.least} must not exceed most={self.most}")
        GraphCover(1.0, place=self.place)  # raises for a weight out of range

    @classmethod
    def calibrated(
        cls,
        average: float,
        groups: Iterable[VisualTokens],
        least: float | None = None,
        most: float | None = None,
        place: float = 1.0,
    ) -> Self:
        """The budget that keeps ``average`` of the tokens of some representative groups.

        Args:
            average: share of all tokens of the groups, in (0, 1).
            groups: tokens of images like those to come; each is looked at once.
            least: share that every group keeps; half the average by default.
            most: share that no group exceeds; twice the average by default, at most 1.
            place: weight of where tokens lie.

        Returns:
            the smallest radius whose average does not exceed ``average``, as a budget.

        Raises:
            TypeError, ValueError: a number is out of range, or there are no groups.
        """
        require_share("average", average, "0.25")
        least = average / 2 if least is None else least
        most = min(1.0, 2 * average) if most is None else most
        bounds = cls(0.0, least, most, place)  # raises for shares out of range
        if not least <= average <= most:
            raise ValueError(f"average={average} must lie between least={least} and most={most}")
        free = map(unprotected, groups)
        curves = [(len(tokens), bounds.radii(tokens)) for tokens in free]
        if not curves:
            raise ValueError("groups are empty: pass the tokens of some representative images")
        wanted = sum(n for n, _ in curves) * average

        def spent(radius: float) -> int:
            return sum(bounds.count(n, radii, radius) for n, radii in curves)

        # Fewer tokens are kept the larger the radius is; only radii that occur make a difference.
        candidates = sorted({radius for _, radii in curves for radius in radii.tolist()})
        low, high = 0, len(candidates) - 1
        while low < high:
            middle = (low + high) // 2
            if spent(candidates[middle]) <= wanted:
                high = middle
            else:
                low = middle + 1
        return cls(candidates[low], least, most, place)

    def __call__(self, groups: Sequence[VisualTokens]) -> list[int]:
        """How many tokens of each group to keep."""
        free = map(unprotected, groups)
        return [self.count(len(tokens), self.radii(tokens), self.radius) for tokens in free]

    def radii(self, tokens: VisualTokens) -> Tensor:
        """The radius that is left with each number of centres from ``least`` to ``most``.

        Returns:
            float64 [m], not increasing.
        """
        n = len(tokens)
        first, last = kept_count(n, self.least), kept_count(n, self.most)
        squared, order = GraphCover(1.0, place=self.place).centres(tokens, last)
        # [last, n]: distance of every token to the nearest of the first centres.
        nearest = squared[order].cummin(0).values
        radii = nearest.amax(1).clamp(min=0).double().sqrt()
        return radii[first - 1 :]

    def count(self, n: int, radii: Tensor, radius: float) -> int:
        """How many of ``n`` tokens leave none farther than ``radius`` from a kept one."""
        enough = int((radii > radius).sum())
        return kept_count(n, self.least) + min(enough, len(radii) - 1)


def require_share(name: str, share: float, example: str) -> None:
    """Raises TypeError for a count, ValueError for a share outside (0, 1]."""
    if not isinstance(check_keep(share), float):
        raise TypeError(f"{name}={share} must be a share in (0, 1] such as {example}, not a count")


def unprotected(tokens: VisualTokens) -> VisualTokens:
    """The candidates of a group; all of it where none is left, since a budget is for some token."""
    if tokens.protected is None:
        return tokens
    rows = (~tokens.protected).nonzero().squeeze(1)
    return tokens.subset(rows) if len(rows) else tokens
