"""Checks that speed ratios are not worse than committed: python benchmarks/check.py

Measures some rows of benchmarks/results again and compares ratios, never times: both sides of a
ratio are measured in turn, so that a slower or busy machine changes it little.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import prefill
import selection
import torch
import typer
from rich.console import Console
from rich.table import Table

from gprune.graph import screening

RESULTS = Path(__file__).parent / "results"
SIZES = (576, 2304)
KEEPS = (0.36, 0.1)


def selection_ratios(repeats: int) -> list[tuple[str, float, float]]:
    """Returns label, committed ratio and measured ratio of G-Prune's time to a similarity product.

    The committed ratios are of a machine that has bfloat16 units if, and only if, this one has.
    """
    can_screen = screening.supports_bfloat16(torch.device("cpu"))
    name = "selection" if can_screen else "selection_avx2"
    committed = json.loads((RESULTS / f"{name}.json").read_text())["rows"]
    pairs = []
    for case in selection.supported_cases():
        for row in committed:
            same = (row["dtype"], row["screened"], row["shared"]) == case
            if same and row["n"] in SIZES:
                now = selection.measure(row["n"], row["d"], case, repeats)
                screen = "screened" if case[1] else "unscreened"
                label = f"selection, {case[0]}, {screen}, shared {case[2]}, {row['n']} tokens"
                pairs.append((label, row["of_product"], now["of_product"]))
    return pairs


def prefill_ratios(repeats: int) -> list[tuple[str, float, float]]:
    """Returns label, committed and measured ratio of a pruned prefill's time to an ideal one's.

    The ideal prefill has as many tokens of plain text; the ratio is above 1 by the cost of pruning
    itself.
    """
    committed = next(
        shape
        for shape in json.loads((RESULTS / "prefill.json").read_text())["shapes"]
        if shape["shape"] == "cpu"
    )
    dtype = getattr(torch, committed["dtype"])
    now = prefill.measure("cpu", [1], committed["method"], repeats, torch.device("cpu"), dtype)
    pairs = []
    for old in committed["rows"]:
        for new in now["rows"]:
            if (new["batch"], new["keep"]) == (old["batch"], old["keep"]) and new["keep"] in KEEPS:
                values = [row["speedup_without_hook"] / row["speedup"] for row in (old, new)]
                pairs.append((f"prefill's overhead, keep {new['keep']}", *values))
    return pairs


def main(
    tolerance: Annotated[float, typer.Option(help="Largest relative increase.")] = 0.35,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each row.")] = 3,
) -> None:
    """Compare this machine's ratios with the committed ones; exit code 1 if one is worse."""
    table = Table("ratio, less is better", "committed", "now", "")
    worse = 0
    for label, before, now in selection_ratios(repeats) + prefill_ratios(repeats):
        bad = now > before * (1 + tolerance)
        worse += bad
        table.add_row(label, f"{before:.2f}", f"{now:.2f}", "worse" if bad else "")
    Console().print(table)
    if worse:
        sys.exit(
            f"{worse} ratios are more than {tolerance:.0%} worse than in {RESULTS.name}/; fix the "
            "change that caused it, or run `make bench` and commit the new results"
        )


if __name__ == "__main__":
    typer.run(main)
