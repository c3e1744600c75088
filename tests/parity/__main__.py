"""Compares gprune with a folder of golden vectors: ``python -m tests.parity FOLDER [-v]``.

Prints a line for each method and, last, ``M of N cases exact``. The exit code is 0 only if all
cases are exact, 1 if some are not, 2 for bad use.
"""

import argparse
import json
import sys
import warnings
from pathlib import Path

import torch

from tests.parity.methods import adapters
from tests.parity.vectors_io import Comparison, compare, load


def comparisons(folder: Path, only: str | None = None) -> list[Comparison]:
    """Returns how each vector of a folder, or of one method, compares."""
    known = adapters()
    return [
        compare(vector, expected, known.get(vector.method))
        for vector, expected in load(folder)
        if only in (None, vector.method)
    ]


def by_method(compared: list[Comparison]) -> dict[str, list[Comparison]]:
    """Groups comparisons by method, methods in the order of their first vector."""
    groups: dict[str, list[Comparison]] = {}
    for comparison in compared:
        groups.setdefault(comparison.vector.method, []).append(comparison)
    return groups


def method_line(method: str, compared: list[Comparison]) -> str:
    """Returns a method's line: how many are exact, and the largest errors of rows."""
    exact, kept = sum(c.exact for c in compared), sum(c.kept for c in compared)
    line = f"{method:14s} exact {exact:3d} of {len(compared):3d}  kept {kept:3d}"
    for what in ("merged", "extra"):
        errors = [c.errors[what] for c in compared if what in c.errors]
        if errors:
            line += f"  {what}: max error {max(errors):.2g}"
    raised = sum(bool(c.trouble) for c in compared)
    return f"{line}  trouble in {raised}" if raised else line


def vector_line(comparison: Comparison) -> str:
    """Returns a vector's line for ``-v``."""
    vector = comparison.vector
    verdict = "exact" if comparison.exact else "kept" if comparison.kept else "-"
    errors = " ".join(f"{what} {error:.2g}" for what, error in comparison.errors.items())
    line = (
        f"{vector.method:14s} {vector.case:12s} k={vector.k!s:9s} {vector.variant:34s} "
        f"{verdict:6s} overlap {comparison.overlap:.3f} {errors} {comparison.trouble}"
    )
    return line.rstrip()


def counts(compared: list[Comparison]) -> dict[str, dict[str, int]]:
    """Returns how many vectors of each method are exact, by method, as ``--out`` writes them."""
    return {
        method: {"exact": sum(c.exact for c in group), "vectors": len(group)}
        for method, group in sorted(by_method(compared).items())
    }


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument("folder", type=Path, help="a folder with expected.json")
    parser.add_argument("-v", "--verbose", action="store_true", help="a line for each vector")
    parser.add_argument("--only", metavar="METHOD", help="compare this method alone")
    parser.add_argument("--out", type=Path, help="write the counts of exact vectors, as JSON")
    chosen = parser.parse_args(arguments)
    if not (chosen.folder / "expected.json").is_file():
        parser.error(f"{chosen.folder} has no expected.json")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    compared = comparisons(chosen.folder, chosen.only)
    if not compared:
        parser.error(f"{chosen.folder} has no vectors of {chosen.only or 'any method'}")
    if chosen.verbose:
        print(*map(vector_line, compared), sep="\n")
    for method, group in by_method(compared).items():
        print(method_line(method, group))
    if chosen.out:
        chosen.out.write_text(json.dumps(counts(compared), indent=2) + "\n")
    exact = sum(c.exact for c in compared)
    print(f"{exact} of {len(compared)} cases exact")
    return 0 if exact == len(compared) else 1


if __name__ == "__main__":
    sys.exit(main())
