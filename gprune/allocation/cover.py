"""Budgets that depend on how many tokens cover an image, with a fixed average over images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from gprune.budget import check_keep, kept_count
from gprune.pruners.graph_cover import GraphCover
from gprune.pruners.joint_distance import POSITION_WEIGHT
from gprune.pruners.validation import check_weight
from gprune.tokens import VisualTokens


@dataclass(frozen=True)
class CoverBudget:
    """A ``keep`` that keeps more tokens of complex images.

    Keeps of every group as many tokens as `GraphCover` needs to leave none farther than ``radius``
    from a kept one: few for a plain wall, many for a page of text. All images share the radius, so
    an average over images is met by finding the radius on some of them:

    Examples:
        >>> budget = CoverBudget.calibrated(0.25, groups)  # doctest: +SKIP
        >>> with GraphCover(keep=budget)(model):  # doctest: +SKIP
        ...     model.generate(**inputs)

    It works with any method. How many tokens an image keeps is not known before it is encoded, so
    an engine that reserves placeholders beforehand needs a fixed ``keep``.

    Attributes:
        radius: largest distance D of `GraphCover` (not squared) that a dropped token may have from
            the nearest kept one, >= 0; smaller keeps more.
        least: least share of a group's tokens to keep, in (0, 1].
        most: largest share to keep, ``least`` to 1.
        place: weight of positions against features, see `GraphCover`.

    Raises:
        TypeError, ValueError: a number is out of range.
    """

    radius: float
    least: float = 0.01
    most: float = 1.0
    place: float = POSITION_WEIGHT

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
        place: float = POSITION_WEIGHT,
    ) -> Self:
        """Returns the budget that keeps ``average`` of the tokens of some representative groups.

        Its radius is the smallest whose average does not exceed ``average``.

        Args:
            average: share of all tokens of the groups, in (0, 1).
            groups: tokens of images like those to come; iterated over once.
            least: least share of every group; half the average by default.
            most: largest share of a group; twice the average by default, at most 1.
            place: weight of positions against features.

        Raises:
            TypeError, ValueError: a number is out of range, or there are no groups.
        """
        require_share("average", average, "0.25")
        least = average / 2 if least is None else least
        most = min(1.0, 2 * average) if most is None else most
        bounds = cls(0.0, least, most, place)  # raises for shares out of range
        if not least <= average <= most:
            raise ValueError(f"average={average} must lie between least={least} and most={most}")
        sizes_and_radii = [
            (len(tokens), bounds.radii(tokens)) for tokens in map(candidates, groups)
        ]
        if not sizes_and_radii:
            raise ValueError("groups are empty: pass the tokens of some representative images")
        wanted = sum(n for n, _ in sizes_and_radii) * average
        radius = bounds.smallest_radius(sizes_and_radii, wanted)
        return cls(radius, least, most, place)

    def smallest_radius(
        self, sizes_and_radii: Sequence[tuple[int, Tensor]], wanted: float
    ) -> float:
        """Returns the smallest radius at which groups keep at most ``wanted`` tokens in total.

        Args:
            sizes_and_radii: of each group the number of tokens and its `radii`.
            wanted: number of tokens; more are kept if ``least`` requires it.
        """

        def total(radius: float) -> int:
            return sum(self.count(n, radii, radius) for n, radii in sizes_and_radii)

        # The total falls as the radius grows, and changes only at radii of some group.
        distinct = sorted({radius for _, radii in sizes_and_radii for radius in radii.tolist()})
        low, high = 0, len(distinct) - 1
        while low < high:
            middle = (low + high) // 2
            if total(distinct[middle]) <= wanted:
                high = middle
            else:
                low = middle + 1
        return distinct[low]

    def __call__(self, groups: Sequence[VisualTokens]) -> list[int]:
        """Returns how many tokens of each group to keep, protected ones not counted."""
        return [
            self.count(len(tokens), self.radii(tokens), self.radius)
            for tokens in map(candidates, groups)
        ]

    def radii(self, tokens: VisualTokens) -> Tensor:
        """Returns the covering radius of each number of centres from ``least`` to ``most``.

        Returns:
            float64 [m], not increasing.
        """
        n = len(tokens)
        first, last = kept_count(n, self.least), kept_count(n, self.most)
        squared, order = GraphCover(1.0, place=self.place).centres(tokens, last)
        # [last, n], distance of every token to the nearest of the first centres.
        nearest = squared[order].cummin(0).values
        radii = nearest.amax(1).clamp(min=0).double().sqrt()
        return radii[first - 1 :]

    def count(self, n: int, radii: Tensor, radius: float) -> int:
        """Returns how many of ``n`` tokens leave none farther than ``radius`` from a kept one.

        Args:
            n: number of tokens.
            radii: what `radii` returns for them.
            radius: the largest distance allowed.
        """
        enough = int((radii > radius).sum())
        return kept_count(n, self.least) + min(enough, len(radii) - 1)


def require_share(name: str, share: float, example: str) -> None:
    """Checks that ``share`` is a float in (0, 1].

    Raises:
        TypeError: it is a count.
        ValueError: it is out of range.
    """
    if not isinstance(check_keep(share), float):
        raise TypeError(f"{name}={share} must be a share in (0, 1] such as {example}, not a count")


def candidates(tokens: VisualTokens) -> VisualTokens:
    """Returns the unprotected tokens of a group, or the group if all are protected.

    A budget is at least one token, so it needs a group that is not empty.
    """
    if tokens.protected is None:
        return tokens
    rows = (~tokens.protected).nonzero().squeeze(1)
    return tokens.subset(rows) if len(rows) else tokens
