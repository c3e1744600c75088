"""Have the ratios got worse? python benchmarks/check.py (make bench-check)

Times a part of what benchmarks/results holds and compares ratios, never times: both sides of a
ratio are measured in turn, so a slower or a busy machine changes them little.
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

from gprune.graph import tiled

RESULTS = Path(__file__).parent / "results"
SIZES = (576, 2304)
KEEPS = (0.36, 0.1)


def selections(repeats: int) -> list[tuple[str, float, float]]:
    """What, the committed and the measured time of G-Prune in units of one similarity product.

    Committed on a machine that has units for bfloat16 or none, as this one.
    """
    kind = "selection" if tiled.has_bfloat16(torch.device("cpu")) else "selection_avx2"
    committed = json.loads((RESULTS / f"{kind}.json").read_text())["rows"]
    pairs = []
    for case in selection.cases():
        for row in committed:
            same = (row["dtype"], row["screened"], row["shared"]) == case
            if same and row["n"] in SIZES:
                now = selection.measure(row["n"], row["d"], case, repeats)
                screen = "screened" if case[1] else "unscreened"
                label = f"selection, {case[0]}, {screen}, shared {case[2]}, {row['n']} tokens"
                pairs.append((label, row["of_product"], now["of_product"]))
    return pairs


def prefills(repeats: int) -> list[tuple[str, float, float]]:
    """What, the committed and the measured share of a pruned prefill's time that is not wasted."""
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
                # Pruned against as many tokens of plain text: above 1 is what pruning itself costs.
                values = [row["speedup_without_hook"] / row["speedup"] for row in (old, new)]
                pairs.append((f"prefill's overhead, keep {new['keep']}", *values))
    return pairs


def main(
    tolerance: Annotated[float, typer.Option(help="How much larger a ratio may be.")] = 0.35,
    repeats: Annotated[int, typer.Option(min=1, help="Counted runs of each.")] = 3,
) -> None:
    """Compare this machine's ratios with the committed ones; exit code 1 if one is much worse."""
    table = Table("ratio, less is better", "committed", "now", "")
    worse = 0
    for label, before, now in selections(repeats) + prefills(repeats):
        bad = now > before * (1 + tolerance)
        worse += bad
        table.add_row(label, f"{before:.2f}", f"{now:.2f}", "worse" if bad else "")
    Console().print(table)
    if worse:
        sys.exit(
            f"{worse} ratios are more than {tolerance:.0%} worse than in {RESULTS.name}/: find the "
            "change that made them so, or measure anew and commit what is there (make bench)"
        )


if __name__ == "__main__":
    typer.run(main)
