"""What a proof reports: one verdict for each claim."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """The outcome of checking one claim."""

    PASSED = "passed"
    FAILED = "failed"
    # The claim says nothing about this model or method, or cannot be decided on it.
    NOT_APPLICABLE = "not applicable"
    # The model itself fails on the installed transformers, without gprune.
    NOT_RUNNABLE = "not runnable here"


@dataclass(frozen=True)
class Result:
    """The verdict on one claim.

    Attributes:
        name: of the claim.
        verdict: the outcome.
        detail: one sentence: what was compared, or the reason of another verdict than passed.
        measured: the measured value, for example the largest difference between two runs' logits;
            None if there is none.
        bound: the largest value that passes, or the smallest if the claim is one of size; None if
            there is none.
    """

    name: str
    verdict: Verdict
    detail: str
    measured: float | None = None
    bound: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the claim was checked and holds."""
        return self.verdict == Verdict.PASSED


@dataclass(frozen=True)
class FamilyProof:
    """The verdicts on a tiny random model of one family.

    Attributes:
        name: of the family.
        results: in the order of the claims.
    """

    name: str
    results: tuple[Result, ...]

    @property
    def failures(self) -> tuple[str, ...]:
        """A sentence for each claim that failed, or that could not be checked on this machine."""
        bad = (Verdict.FAILED, Verdict.NOT_RUNNABLE)
        return tuple(
            f"{result.name}: {result.detail}" for result in self.results if result.verdict in bad
        )

    @property
    def passed(self) -> bool:
        """Whether some claims hold and none failed."""
        return any(result.passed for result in self.results) and not self.failures


class Inapplicable(Exception):
    """Raised by a check whose claim says nothing about a model or method; holds the reason."""


def within(name: str, measured: float, bound: float, detail: str) -> Result:
    """Returns a result that passes if ``measured`` is at most ``bound``; NaN fails."""
    if measured <= bound:
        return Result(name, Verdict.PASSED, detail, measured, bound)
    detail = f"differs by {measured:.1e}, more than {bound:.1e}, so it is not true that {detail}"
    return Result(name, Verdict.FAILED, detail, measured, bound)


def holds(name: str, condition: bool, detail: str, failure: str) -> Result:
    """Returns a result for a yes-or-no claim: ``detail`` if it holds, ``failure`` if not."""
    if condition:
        return Result(name, Verdict.PASSED, detail)
    return Result(name, Verdict.FAILED, failure)
