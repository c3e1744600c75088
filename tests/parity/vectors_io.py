"""Reads a folder of golden vectors: what a method was given, and what its released code gave."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

# Merged and extra rows agree to this share of the largest entry. Released code that casts to
# float16 is off by 4e-4; ours is usually within 1e-6.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Vector:
    """One question: a method, its settings, and the tensors of its case.

    Args:
        method: the method's name in the registry.
        case: name of the case; adapters must not depend on it.
        k: what was asked for: a count, a share, a ratio such as "1/8", or "adaptive".
        variant: which form or setting of the method; "" if there is only one.
        params: the settings that the released code ran with.
        raw: the whole entry of ``expected.json``.
        tensors: the inputs of the case by name, float32.
        grid: rows and columns of the case's image or frame; None if it has none.
        n_kept: how many tokens the released code kept.
    """

    method: str
    case: str
    k: int | float | str
    variant: str
    params: dict[str, Any]
    raw: dict[str, Any]
    tensors: dict[str, Tensor]
    grid: tuple[int, int] | None
    n_kept: int

    @property
    def label(self) -> str:
        """Returns the case, the budget and the variant in one word, for names of tests."""
        return "-".join(str(part) for part in (self.case, self.k, self.variant) if part != "")


@dataclass(frozen=True)
class Outcome:
    """What gprune gives for a vector.

    Args:
        kept: indices of the tokens that stay, ascending.
        merged: [len(kept), d] a row for each kept token, in the order of ``kept``; None if the
            method changes no row.
        extra: [a, d] rows that are no token's own; None if there are none.
        facts: further facts, each compared with the entry of that name in ``Vector.raw``.
    """

    kept: list[int]
    merged: Tensor | None = None
    extra: Tensor | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Expected:
    """What the released code gave: kept tokens and, where they were stored, its rows."""

    kept: list[int]
    merged: Tensor | None = None
    extra: Tensor | None = None


Adapter = Callable[[Vector], Outcome]


@dataclass(frozen=True)
class Comparison:
    """How far an outcome is from what was expected.

    Args:
        vector: the vector that was asked.
        kept: whether the kept tokens are the same.
        overlap: size of the intersection over size of the union.
        errors: largest difference of an entry over the largest entry, by "merged" and "extra";
            inf if rows are missing or of another shape.
        trouble: what else differs, or the error that was raised; "" if nothing.
    """

    vector: Vector
    kept: bool = False
    overlap: float = 0.0
    errors: Mapping[str, float] = field(default_factory=dict)
    trouble: str = ""

    @property
    def exact(self) -> bool:
        """Returns whether tokens, rows and facts agree."""
        close = all(error <= TOLERANCE for error in self.errors.values())
        return self.kept and close and not self.trouble


def load(folder: Path) -> list[tuple[Vector, Expected]]:
    """Returns all vectors of a folder with what is expected of them, in the file's order.

    Raises:
        FileNotFoundError: if the folder has no ``expected.json``.
    """
    document = json.loads((folder / "expected.json").read_text())
    cases = document["cases"]
    tensors = {name: load_file(folder / case["file"]) for name, case in cases.items()}
    return [
        (_vector(entry, cases[entry["case"]], tensors[entry["case"]]), _expected(entry, folder))
        for entry in document["vectors"]
    ]


def _vector(entry: dict[str, Any], case: dict[str, Any], tensors: dict[str, Tensor]) -> Vector:
    grid = case.get("grid")
    return Vector(
        method=entry["method"],
        case=entry["case"],
        k=entry["k"],
        variant=entry.get("variant", ""),
        params=entry.get("params", {}),
        raw=entry,
        tensors=tensors,
        grid=(int(grid[0]), int(grid[1])) if grid else None,
        n_kept=len(entry["kept"]),
    )


def _expected(entry: dict[str, Any], folder: Path) -> Expected:
    stored = entry.get("tensors", {})
    rows = load_file(folder / stored["file"]) if stored else {}
    named = {what: rows[stored[what]] for what in ("merged", "extra") if what in stored}
    return Expected(entry["kept"], **named)


def compare(vector: Vector, expected: Expected, adapter: Adapter | None) -> Comparison:
    """Asks an adapter and compares its outcome; an error it raises is part of the result."""
    if adapter is None:
        trouble = f"no adapter for {vector.method!r} in tests/parity/methods"
        return Comparison(vector, trouble=trouble)
    try:
        with torch.no_grad():
            outcome = adapter(vector)
        return _compared(vector, expected, outcome)
    except Exception as error:  # one vector that fails must not hide the others
        return Comparison(vector, trouble=f"{type(error).__name__}: {error}")


def _compared(vector: Vector, expected: Expected, outcome: Outcome) -> Comparison:
    both = len(set(expected.kept) & set(outcome.kept))
    either = len(set(expected.kept) | set(outcome.kept))
    same = outcome.kept == expected.kept
    errors = {}
    if expected.merged is not None:
        errors["merged"] = difference(_aligned(outcome, expected), expected.merged)
    if expected.extra is not None:
        errors["extra"] = difference(outcome.extra, expected.extra)
    wrong = [name for name, value in outcome.facts.items() if vector.raw.get(name) != value]
    trouble = f"other facts: {', '.join(wrong)}" if wrong else ""
    return Comparison(vector, same, both / max(either, 1), errors, trouble)


def _aligned(outcome: Outcome, expected: Expected) -> Tensor | None:
    """Returns merged rows in the expected order; None unless both keep the same tokens."""
    return outcome.merged if outcome.kept == expected.kept else None


def difference(rows: Tensor | None, wanted: Tensor) -> float:
    """Returns the largest difference of an entry over the largest entry; inf for other shapes."""
    if rows is None or rows.shape != wanted.shape:
        return float("inf")
    if not wanted.numel():
        return 0.0
    apart = (rows.double() - wanted.double()).abs().max()
    error = float(apart / wanted.double().abs().max().clamp(min=1e-9))
    return error if error == error else float("inf")
