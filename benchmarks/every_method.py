"""What every method's selection costs, side by side: python benchmarks/every_method.py

Groups of one picture's size are timed in turn with one product of the features, see
`gprune.evaluation.bench.selection_times`. A long video is selected from once, by a process of its
own, see `long_video.py`; a method that takes longer than ``--patience`` is given up.
"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Annotated, Any

import long_video
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from gprune.evaluation.bench import machine, selection_times
from gprune.pruners import group_methods

# Tokens of a long video, and the width of their features.
LONG, LONG_WIDTH = 16384, 1024


def once(method: str, patience: float) -> dict[str, Any] | None:
    """Time and memory among `LONG` tokens; None where that takes too long."""
    try:
        return long_video.apart(method, LONG, LONG_WIDTH, 0.0, patience=patience)
    except subprocess.TimeoutExpired:
        return None


def main(
    sizes: Annotated[str, typer.Option(help="Numbers of tokens.")] = "576,2304",
    width: Annotated[int, typer.Option(help="Width of the features.")] = 4096,
    repeats: Annotated[int, typer.Option(min=1, help="Counted runs of each.")] = 5,
    patience: Annotated[float, typer.Option(help="Most seconds for a long video.")] = 120,
    out: Annotated[Path | None, typer.Option(help="Write the numbers as JSON.")] = None,
) -> None:
    """Time every method and print the table, the fastest first."""
    start = time.perf_counter()
    counts = [int(size) for size in sizes.split(",")]
    groups = [selection_times(n, width, repeats=repeats) for n in track(counts, "one picture")]
    fastest = sorted(group_methods(), key=lambda name: groups[-1]["milliseconds"][name])
    rows = [
        {
            "method": name,
            "milliseconds": {str(row["n"]): row["milliseconds"][name] for row in groups},
            "long": once(name, patience),
        }
        for name in track(fastest, "a long video")
    ]
    products = {str(row["n"]): row["milliseconds"]["product"] for row in groups}
    table = Table("method", *(f"{n}, ms" for n in counts), f"{LONG}, s", "GiB", title=machine())
    for row in rows:
        long = row["long"]
        table.add_row(
            row["method"],
            *(f"{row['milliseconds'][str(n)]:.1f}" for n in counts),
            *(("", "") if long is None else cells(long)),
        )
    table.add_row("X @ X.T", *(f"{products[str(n)]:.1f}" for n in counts), "", "")
    Console().print(table)
    if out is not None:
        result = {
            "machine": machine(),
            "seconds": time.perf_counter() - start,
            "width": width,
            "product": products,
            "rows": rows,
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=2) + "\n")


def cells(long: dict[str, Any]) -> tuple[str, str]:
    return f"{long['seconds']:.1f}", f"{long['bytes_beyond_input'] / 2**30:.2f}"


if __name__ == "__main__":
    typer.run(main)
