"""Times every method's selection, side by side: python benchmarks/every_method.py

Groups of one image's size are timed in turn with one product of the features (see
`gprune.evaluation.bench.selection_times`). Each method also selects once from a long video, in a
process of its own (see `long_video.py`); a method that takes longer than ``--patience`` is stopped.
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

from gprune.costs.clock import machine_name
from gprune.evaluation.bench import selection_times
from gprune.pruners import group_methods

# Tokens of a long video, and the width of their features.
LONG_TOKENS, LONG_WIDTH = 16384, 1024


def measure_long_video(method: str, timeout: float) -> dict[str, Any] | None:
    """Returns time and memory for `LONG_TOKENS` tokens; None after ``timeout`` seconds."""
    try:
        return long_video.measure_in_process(method, LONG_TOKENS, LONG_WIDTH, 0.0, timeout=timeout)
    except subprocess.TimeoutExpired:
        return None


def print_table(rows: list[dict[str, Any]], products: dict[str, float]) -> None:
    """Prints one line per method, and one for the product of the features."""
    header = (*(f"{n}, ms" for n in products), f"{LONG_TOKENS}, s", "GiB")
    table = Table("method", *header, title=machine_name())
    for row in rows:
        video = row["long"]
        table.add_row(
            row["method"],
            *(f"{row['milliseconds'][n]:.1f}" for n in products),
            *(("", "") if video is None else video_cells(video)),
        )
    table.add_row("X @ X.T", *(f"{value:.1f}" for value in products.values()), "", "")
    Console().print(table)


def video_cells(video: dict[str, Any]) -> tuple[str, str]:
    """Formats seconds and GiB of a long video."""
    return f"{video['seconds']:.1f}", f"{video['bytes_beyond_input'] / 2**30:.2f}"


def main(
    sizes: Annotated[str, typer.Option(help="Numbers of tokens.")] = "576,2304",
    width: Annotated[int, typer.Option(help="Width of the features.")] = 4096,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each method.")] = 5,
    patience: Annotated[float, typer.Option(help="Most seconds for a long video.")] = 120,
    out: Annotated[Path | None, typer.Option(help="Write the results as JSON.")] = None,
) -> None:
    """Time every method and print the table, the fastest first."""
    start = time.perf_counter()
    counts = [int(size) for size in sizes.split(",")]
    groups = [selection_times(n, width, repeats=repeats) for n in track(counts, "one image")]
    fastest = sorted(group_methods(), key=lambda name: groups[-1]["milliseconds"][name])
    rows = [
        {
            "method": name,
            "milliseconds": {str(row["n"]): row["milliseconds"][name] for row in groups},
            "long": measure_long_video(name, patience),
        }
        for name in track(fastest, "a long video")
    ]
    products = {str(row["n"]): row["milliseconds"]["product"] for row in groups}
    print_table(rows, products)
    if out is not None:
        result = {
            "machine": machine_name(),
            "seconds": time.perf_counter() - start,
            "width": width,
            "product": products,
            "rows": rows,
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
