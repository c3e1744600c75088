"""Accuracy by type with its uncertainty, and what pruning retains of it, in the field's terms."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

RESAMPLES = 2000

# Whether a prediction is one of the right answers.
Match = Callable[[str, Sequence[str]], bool]


@dataclass(frozen=True)
class Record:
    """How one example was answered.

    Attributes:
        id: the example's.
        picture: its picture, by which intervals resample.
        kind: its type.
        prediction: what the model said.
        right: whether that is an answer.
    """

    id: str
    picture: str
    kind: str
    prediction: str
    right: bool


def is_right(prediction: str, answers: Sequence[str]) -> bool:
    """Exact match, apart from case, articles, spaces and punctuation at the ends."""
    return normalised(prediction) in {normalised(answer) for answer in answers}


def begins_right(prediction: str, answers: Sequence[str], match: Match = is_right) -> bool:
    """Whether its first words are an answer, which then perhaps did not end.

    Args:
        prediction: what the model said.
        answers: any of them is right.
        match: whether words are an answer; what it takes as a whole is right here too.
    """
    words = prediction.split()
    begun = (" ".join(words[:count]) for count in range(1, len(words)))
    return match(prediction, answers) or any(match(said, answers) for said in begun)


def normalised(text: str) -> str:
    """Lower case, no articles, single spaces, no punctuation at the ends.

    An article alone stays: it is the letter of a choice.
    """
    lower = text.lower()
    bare, whole = (
        " ".join(words.split()).strip(" .,;:!?\"'")
        for words in (re.sub(r"\b(a|an|the)\b", " ", lower), lower)
    )
    return bare or whole


@dataclass(frozen=True)
class Tally:
    """Right answers and questions of each picture by type, both [pictures, types]."""

    kinds: list[str]
    right: np.ndarray
    asked: np.ndarray

    @classmethod
    def of(cls, records: Sequence[Record], kinds: Sequence[str] | None = None) -> Tally:
        """Counts records; types in the order of ``kinds`` or of their first appearance."""
        order = list(kinds or dict.fromkeys(record.kind for record in records))
        pictures = {name: row for row, name in enumerate(dict.fromkeys(r.picture for r in records))}
        right = np.zeros((len(pictures), len(order)))
        asked = np.zeros_like(right)
        for record in records:
            place = pictures[record.picture], order.index(record.kind)
            right[place] += record.right
            asked[place] += 1
        return cls(order, right, asked)

    @property
    def accuracy(self) -> np.ndarray:
        """Share of right answers by type, in %, [types]; NaN where nothing was asked."""
        with np.errstate(invalid="ignore"):
            return 100 * self.right.sum(0) / self.asked.sum(0)

    @property
    def macro(self) -> float:
        """The mean over types, in %."""
        return float(np.nanmean(self.accuracy))

    @cached_property
    def _shares(self) -> np.ndarray:
        """Shares of right answers by type in bootstrap samples of the pictures, [RESAMPLES, types].

        NaN where a sample has no question of a type.
        """
        weights = drawn(len(self.right))
        with np.errstate(invalid="ignore"):
            return (weights @ self.right) / (weights @ self.asked)

    def resampled(self) -> np.ndarray:
        """Macro accuracies of bootstrap samples of the pictures, in %, [RESAMPLES].

        NaN where a sample has no question, as of a single rare type. Of the same pictures, samples
        are the same: the difference of two tallies is paired.
        """
        known = ~np.isnan(self._shares)
        with np.errstate(invalid="ignore"):
            return 100 * np.where(known, self._shares, 0).sum(1) / known.sum(1)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% bootstrap interval of `macro`."""
        return between(self.resampled())

    @property
    def type_intervals(self) -> list[tuple[float, float] | None]:
        """The 95% bootstrap interval of each type's accuracy; None where nothing was asked."""
        samples = zip(100 * self._shares.T, self.asked.sum(0), strict=True)
        return [between(values) if asked else None for values, asked in samples]


@functools.lru_cache(maxsize=8)
def drawn(pictures: int) -> np.ndarray:
    """How often each picture is in each bootstrap sample, float64 [RESAMPLES, pictures].

    Draws are always the same: the difference of two tallies of the same pictures is paired.
    """
    share = np.full(pictures, 1 / pictures)
    weights = np.random.default_rng(0).multinomial(pictures, share, size=RESAMPLES)
    return weights.astype(np.float64)  # integers have no fast product


def between(values: np.ndarray) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile of those that are numbers."""
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def mean_tally(tallies: Sequence[Tally]) -> Tally:
    """The mean of several seeds on the same pictures."""
    right = np.mean([tally.right for tally in tallies], 0)
    return Tally(tallies[0].kinds, right, tallies[0].asked)


def tied_ranks(tallies: Mapping[str, Tally]) -> dict[str, int]:
    """Ranks from 1, tied where the data cannot tell two apart.

    A rank is one more than the number of those that are better: whose 95% interval of the paired
    difference lies above 0. Being told apart is not transitive, so equal ranks are no groups.

    Args:
        tallies: of the same pictures, by name.
    """
    drawn = {name: tally.resampled() for name, tally in tallies.items()}
    return {
        name: 1 + sum(between(other - own)[0] > 0 for other in drawn.values())
        for name, own in drawn.items()
    }


def loyalty(full: Sequence[Record], pruned: Sequence[Record]) -> float:
    """Share of examples answered as without pruning, right or wrong, in % (EffiVLM-Bench, 2025)."""
    said = {record.id: normalised(record.prediction) for record in full}
    same = [said[record.id] == normalised(record.prediction) for record in pruned]
    return 100 * float(np.mean(same))


def overall_performance(full: Tally, pruned: Tally) -> float | None:
    """sqrt(mean over types of (pruned accuracy / full accuracy)²), in % (EffiVLM-Bench, 2025).

    Types that the full model never answers right are left out; None where that is all of them.
    """
    answered = full.accuracy > 0
    if not answered.any():
        return None
    ratio = pruned.accuracy[answered] / full.accuracy[answered]
    return 100 * float(np.sqrt(np.mean(ratio**2)))


def groups_of(
    full: Sequence[Record], reference: Sequence[Record]
) -> tuple[frozenset[str], frozenset[str]]:
    """The examples that are hard and easy to compress (VTC-Bench, arXiv 2510.07143; ACL 2026).

    Of the examples that the full model answers right, group A are those that it gets wrong after
    plain image downsampling, and group B those that it still gets right. Group B says little about
    a method: fewer pixels would have done.

    Args:
        full: the unpruned run.
        reference: the run with downsampling, at the budget of the methods to be compared.

    Returns:
        the ids of group A and of group B.
    """
    right = {record.id for record in full if record.right}
    still = right & {record.id for record in reference if record.right}
    asked = {record.id for record in reference}
    return frozenset((right & asked) - still), frozenset(still)


def tally_of(records: Sequence[Record], ids: frozenset[str]) -> Tally:
    """The records with those ids, all as one type: their `macro` is the share of right answers."""
    return Tally.of([replace(record, kind="") for record in records if record.id in ids])
