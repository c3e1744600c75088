"""G-Prune's selection beside its matrix-power form: python benchmarks/selection.py

The matrix-power form is the same method written the direct way (see `gprune.evaluation.bench`).
Both are timed in turn in one run, and must select the same tokens; `gprune bench` times the others.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from gprune.evaluation.bench import machine, selection_times


def main(
    sizes: Annotated[str, typer.Option(help="Numbers of tokens.")] = "576,2304,2880",
    width: Annotated[int, typer.Option(help="Width of the features.")] = 4096,
    repeats: Annotated[int, typer.Option(min=1, help="Counted runs of each.")] = 5,
    threads: Annotated[int | None, typer.Option(help="CPU threads; all by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the numbers as JSON.")] = None,
) -> None:
    """Time both forms side by side and print the ratios."""
    if threads is not None:
        torch.set_num_threads(threads)
    table = Table(
        "tokens", "matrix power, ms", "gprune, ms", "X @ X.T, ms", "faster", title=machine()
    )
    rows = []
    for n in (int(size) for size in sizes.split(",")):
        row = selection_times(n, width, ["gprune"], repeats)
        rows.append(row)
        times = [row["milliseconds"][name] for name in ("matrix_power", "gprune", "product")]
        table.add_row(str(n), *(f"{time:.1f}" for time in times), f"{row['faster']:.2f}x")
    Console().print(table)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
