"""What ``gprune prove`` prints: verdicts as tables or as JSON."""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from gprune import __version__
from gprune.cli.console import console, print_line

if TYPE_CHECKING:
    from gprune.proof import FamilyProof, Result
    from gprune.pruners import Pruner

STYLES = {
    "passed": "green",
    "failed": "bold red",
    "not applicable": "dim",
    "not runnable here": "yellow",
}


class Report(ABC):
    """What was proven, and where.

    Attributes:
        versions: of what pruning depends on.
        setting: the method and the machine, for JSON.
    """

    def __init__(self, pruner: Pruner, device: str, dtype: str, attention: str) -> None:
        self.versions = {
            "gprune": __version__,
            "torch": metadata.version("torch"),
            "transformers": metadata.version("transformers"),
            "python": platform.python_version(),
        }
        self.setting: dict[str, Any] = {
            "method": pruner.name,
            "keep": pruner.keep,
            "device": device,
            "dtype": dtype,
            "attention": attention,
            "versions": self.versions,
        }

    @property
    def title(self) -> str:
        """The setting in one line."""
        where = self.setting
        versions = ", ".join(f"{name} {value}" for name, value in self.versions.items())
        return (
            f"{where['method']} keep {where['keep']} on {where['device']}, {where['dtype']}, "
            f"{where['attention']} ({versions})"
        )

    @property
    @abstractmethod
    def passed(self) -> bool:
        """Whether the command succeeds."""

    @abstractmethod
    def values(self) -> dict[str, Any]:
        """Returns the JSON object."""

    @abstractmethod
    def show(self) -> None:
        """Prints the verdicts."""


class CheckpointReport(Report):
    """The claims about one model."""

    def __init__(self, name: str, results: Sequence[Result], *setting: Any) -> None:
        super().__init__(*setting)
        self.name, self.results = name, results

    @property
    def passed(self) -> bool:
        """Whether no claim failed, and the model could be run."""
        return all(result.verdict in ("passed", "not applicable") for result in self.results)

    def values(self) -> dict[str, Any]:
        results = [result_values(result) for result in self.results]
        return {"model": self.name, **self.setting, "passed": self.passed, "results": results}

    def show(self) -> None:
        table = Table("claim", "verdict", "measured", "bound", "detail", title=self.title)
        for result in self.results:
            table.add_row(
                Text(result.name),
                Text(result.verdict, STYLES[result.verdict]),
                Text(number(result.measured)),
                Text(number(result.bound)),
                Text(result.detail),
            )
        console.print(table)
        counts = dict.fromkeys(STYLES, 0)
        for result in self.results:
            counts[result.verdict] += 1
        found = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
        print_line(f"{self.name}: {found}")


class FamiliesReport(Report):
    """The claims about tiny random models of families."""

    def __init__(self, proofs: Sequence[FamilyProof], *setting: Any) -> None:
        super().__init__(*setting)
        self.proofs = proofs

    @property
    def passed(self) -> bool:
        """Whether no claim failed and some family is proven.

        A family that transformers itself cannot run here is not gprune's failure.
        """
        results = [result for proof in self.proofs for result in proof.results]
        failed = any(result.verdict == "failed" for result in results)
        return not failed and any(result.passed for result in results)

    def values(self) -> dict[str, Any]:
        proven = [
            {
                "name": proof.name,
                "passed": proof.passed,
                "results": [result_values(result) for result in proof.results],
            }
            for proof in self.proofs
        ]
        return {"model": None, **self.setting, "passed": self.passed, "families": proven}

    def show(self) -> None:
        table = Table("family", "verdict", "claims", title=self.title)
        for proof in self.proofs:
            verdict = family_verdict(proof)
            table.add_row(proof.name, Text(verdict, STYLES[verdict]), counted(proof.results))
        console.print(table)
        for verdict in ("not applicable", "not runnable here", "failed"):
            for (claim, detail), names in self.reasons(verdict).items():
                line = Text(f"{verdict}: ", STYLES[verdict])
                line.append(f"{claim} of {', '.join(names)}: {detail}", "default")
                console.print(line, soft_wrap=True)
        print_line(self.summary())

    def reasons(self, verdict: str) -> dict[tuple[str, str], list[str]]:
        """Returns the families of each claim and detail with a verdict."""
        found: dict[tuple[str, str], list[str]] = {}
        for proof in self.proofs:
            for result in proof.results:
                if result.verdict == verdict:
                    found.setdefault((result.name, result.detail), []).append(proof.name)
        return found

    def summary(self) -> str:
        """Returns one line about all families."""
        found: dict[str, list[str]] = {}
        for proof in self.proofs:
            found.setdefault(family_verdict(proof), []).append(proof.name)
        line = f"{len(found.pop('passed', []))} of {len(self.proofs)} families proven"
        return "; ".join([line, *(f"{one}: {', '.join(names)}" for one, names in found.items())])


def family_verdict(proof: FamilyProof) -> str:
    """Returns the verdict on a family: the worst of its claims, if any was checked."""
    verdicts = {str(result.verdict) for result in proof.results}
    worst = ("failed", "not runnable here", "passed", "not applicable")
    return next(verdict for verdict in worst if verdict in verdicts)


def counted(results: Sequence[Result]) -> str:
    """Counts the claims of each verdict, and names those that did not pass."""
    parts = []
    for verdict in STYLES:
        names = [result.name for result in results if result.verdict == verdict]
        if verdict == "passed" and names:
            parts.append(f"{len(names)} passed")
        elif names:
            parts.append(f"{verdict}: {', '.join(names)}")
    return "; ".join(parts)


def number(value: float | None) -> str:
    """Formats a measured value or a bound."""
    return "" if value is None else f"{value:.3g}"


def result_values(result: Result) -> dict[str, Any]:
    """Returns a result as JSON."""
    return {
        "claim": result.name,
        "verdict": str(result.verdict),
        "measured": finite(result.measured),
        "bound": finite(result.bound),
        "detail": result.detail,
    }


def finite(value: float | None) -> float | str | None:
    """Returns a number as JSON has it, which knows no infinity."""
    return value if value is None or abs(value) < float("inf") else str(value)
