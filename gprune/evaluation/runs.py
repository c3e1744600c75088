"""Runs of an evaluation: one pass over the examples with one method, budget and seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gprune.pruners import Pruner, make

# Seeds over which random selection is averaged.
RANDOM_SEEDS = (0, 1, 2)

# Method name of the run without pruning.
FULL = "full"


@dataclass(frozen=True)
class Run:
    """One pass over the examples.

    Attributes:
        method: name of a method, or `FULL` for no pruning.
        keep: the budget.
        seed: for random selection only.
    """

    method: str
    keep: float | int
    seed: int | None = None

    @property
    def label(self) -> str:
        """Name of the run in messages and file names."""
        if self.method == FULL:
            return self.method
        seed = "" if self.seed is None else f"-seed{self.seed}"
        return f"{self.method}-{self.keep}{seed}"

    def pruner(self) -> Pruner | None:
        """Returns the method's pruner, or None for no pruning."""
        if self.method == FULL:
            return None
        options = {} if self.seed is None else {"seed": self.seed}
        return make(self.method, keep=self.keep, **options)


def plan_runs(methods: Sequence[str], keeps: Sequence[float | int]) -> list[Run]:
    """Lists the unpruned run, then every method at every budget.

    Raises:
        ValueError: a method is unknown, or a budget is out of range.
    """
    runs = [Run(FULL, 1.0)]
    for keep in keeps:
        for method in methods:
            seeds = RANDOM_SEEDS if method == "random" else (None,)
            runs += [Run(method, keep, seed) for seed in seeds]
    for run in runs:
        run.pruner()  # finds bad names and budgets before hours of work
    return runs
