"""Accuracy with bootstrap intervals, and the scores that compare pruned with unpruned answers."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

# Number of bootstrap samples.
RESAMPLES = 2000

# Whether a prediction matches one of the accepted answers.
Match = Callable[[str, Sequence[str]], bool]


@dataclass(frozen=True)
class Record:
    """The scored answer to one example.

    Attributes:
        id: id of the example.
        picture: id of its picture; bootstrap intervals resample pictures.
        kind: type of the question.
        prediction: the model's answer.
        right: whether the prediction counts as correct.
    """

    id: str
    picture: str
    kind: str
    prediction: str
    right: bool


def is_right(prediction: str, answers: Sequence[str]) -> bool:
    """Checks for an exact match, ignoring case, articles, spaces, and punctuation at the ends."""
    return normalize(prediction) in {normalize(answer) for answer in answers}


def begins_right(prediction: str, answers: Sequence[str], match: Match = is_right) -> bool:
    """Checks whether the prediction, or any number of its first words, matches an answer.

    Args:
        prediction: the model's answer.
        answers: the accepted answers.
        match: checks a text against the accepted answers.
    """
    words = prediction.split()
    prefixes = (" ".join(words[:count]) for count in range(1, len(words)))
    return match(prediction, answers) or any(match(prefix, answers) for prefix in prefixes)


def normalize(text: str) -> str:
    """Lowercases; removes articles, repeated spaces, and punctuation at the ends.

    Keeps an article if nothing else remains: "a" can be the letter of a multiple choice.
    """
    lower = text.lower()
    without_articles, with_articles = (
        " ".join(words.split()).strip(" .,;:!?\"'")
        for words in (re.sub(r"\b(a|an|the)\b", " ", lower), lower)
    )
    return without_articles or with_articles


@dataclass(frozen=True)
class Tally:
    """Counts of correct answers and of questions for each picture and question type.

    Attributes:
        kinds: the question types.
        right: correct answers, [pictures, types]; a mean over seeds can be fractional.
        total: questions, [pictures, types].
    """

    kinds: list[str]
    right: np.ndarray
    total: np.ndarray

    @classmethod
    def from_records(cls, records: Sequence[Record], kinds: Sequence[str] | None = None) -> Tally:
        """Counts records; types are in the order of ``kinds``, or of their first appearance."""
        order = list(kinds or dict.fromkeys(record.kind for record in records))
        rows = {name: row for row, name in enumerate(dict.fromkeys(r.picture for r in records))}
        right = np.zeros((len(rows), len(order)))
        total = np.zeros_like(right)
        for record in records:
            cell = rows[record.picture], order.index(record.kind)
            right[cell] += record.right
            total[cell] += 1
        return cls(order, right, total)

    @property
    def accuracy(self) -> np.ndarray:
        """Accuracy of each type in %, [types]; NaN for a type without questions."""
        with np.errstate(invalid="ignore"):
            return 100 * self.right.sum(0) / self.total.sum(0)

    @property
    def macro(self) -> float:
        """Mean of the accuracies of all types, in %."""
        return float(np.nanmean(self.accuracy))

    @cached_property
    def _type_samples(self) -> np.ndarray:
        """Shares of correct answers by type in each bootstrap sample, [RESAMPLES, types].

        NaN if a sample has no question of a type.
        """
        weights = bootstrap_weights(len(self.right))
        with np.errstate(invalid="ignore"):
            return (weights @ self.right) / (weights @ self.total)

    def resampled(self) -> np.ndarray:
        """Returns the macro accuracy of each bootstrap sample of the pictures, in %, [RESAMPLES].

        NaN if a sample has no question, which can happen with a single rare type. Tallies of the
        same pictures use the same samples, so their differences are paired.
        """
        known = ~np.isnan(self._type_samples)
        with np.errstate(invalid="ignore"):
            return 100 * np.where(known, self._type_samples, 0).sum(1) / known.sum(1)

    @property
    def interval(self) -> tuple[float, float]:
        """95% bootstrap interval of `macro`."""
        return percentile_interval(self.resampled())

    @property
    def type_intervals(self) -> list[tuple[float, float] | None]:
        """95% bootstrap interval of each type's accuracy; None for a type without questions."""
        samples = zip(100 * self._type_samples.T, self.total.sum(0), strict=True)
        return [percentile_interval(values) if total else None for values, total in samples]


@functools.lru_cache(maxsize=8)
def bootstrap_weights(pictures: int) -> np.ndarray:
    """Returns how often each bootstrap sample draws each picture, float64 [RESAMPLES, pictures].

    The seed is fixed, so differences between tallies of the same pictures are paired.
    """
    share = np.full(pictures, 1 / pictures)
    weights = np.random.default_rng(0).multinomial(pictures, share, size=RESAMPLES)
    return weights.astype(np.float64)  # NumPy multiplies integer matrices slowly


def percentile_interval(values: np.ndarray) -> tuple[float, float]:
    """Returns the 2.5th and 97.5th percentile, ignoring NaN."""
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def mean_tally(tallies: Sequence[Tally]) -> Tally:
    """Averages the correct answers of several seeds on the same pictures."""
    right = np.mean([tally.right for tally in tallies], 0)
    return Tally(tallies[0].kinds, right, tallies[0].total)


def tied_ranks(tallies: Mapping[str, Tally]) -> dict[str, int]:
    """Ranks tallies from 1 by macro accuracy, with ties where the data do not separate two.

    A rank is one more than the number of better tallies. A tally is better if the 95% interval of
    the paired difference lies above 0. This relation is not transitive: tallies of equal rank do
    not form a group of equals.

    Args:
        tallies: tallies of the same pictures, by name.
    """
    samples = {name: tally.resampled() for name, tally in tallies.items()}
    return {
        name: 1 + sum(percentile_interval(other - own)[0] > 0 for other in samples.values())
        for name, own in samples.items()
    }


def loyalty(full: Sequence[Record], pruned: Sequence[Record]) -> float:
    """Returns the share of answers equal to the unpruned ones, right or wrong, in %.

    Source: EffiVLM-Bench (2025).
    """
    unpruned = {record.id: normalize(record.prediction) for record in full}
    same = [unpruned[record.id] == normalize(record.prediction) for record in pruned]
    return 100 * float(np.mean(same))


def overall_performance(full: Tally, pruned: Tally) -> float | None:
    """Returns sqrt(mean over types of (pruned accuracy / full accuracy)²), in %.

    Leaves out types that the full model never answers correctly; returns None if that is true of
    all types. Source: EffiVLM-Bench (2025).
    """
    answered = full.accuracy > 0
    if not answered.any():
        return None
    ratio = pruned.accuracy[answered] / full.accuracy[answered]
    return 100 * float(np.sqrt(np.mean(ratio**2)))


def compression_groups(
    full: Sequence[Record], reference: Sequence[Record]
) -> tuple[frozenset[str], frozenset[str]]:
    """Splits the examples into hard and easy to compress (VTC-Bench, arXiv 2510.07143; ACL 2026).

    Of the examples that the full model answers correctly, group A holds those that become wrong
    after plain image downsampling, and group B those that stay correct. Group B says little about
    a method, because fewer pixels are enough for it.

    Args:
        full: the unpruned run.
        reference: the run with downsampling, at the budget of the compared methods.

    Returns:
        the ids of group A and of group B.
    """
    full_right = {record.id for record in full if record.right}
    easy = full_right & {record.id for record in reference if record.right}
    answered = {record.id for record in reference}
    return frozenset((full_right & answered) - easy), frozenset(easy)


def tally_subset(records: Sequence[Record], ids: frozenset[str]) -> Tally:
    """Counts the records with these ids as one type: `macro` is the share of correct answers."""
    return Tally.from_records([replace(record, kind="") for record in records if record.id in ids])
