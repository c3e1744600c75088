"""G-Prune's selection beside its matrix-power form: python benchmarks/selection.py

The matrix-power form is the same method written the direct way (see `gprune.evaluation.bench`).
Both are timed in turn in one run, and must select the same tokens; `gprune bench` times the others.
"""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from gprune.evaluation.bench import machine, selection_times
from gprune.graph import tiled

CPU = torch.device("cpu")
# What is timed: the features' dtype, whether tokens are screened in bfloat16 first, where the
# machine has units for it, and how much all tokens have in common (see `selection_times`).
CASES = (
    ("float32", True, 0.0),
    ("bfloat16", True, 0.0),
    ("float32", False, 0.0),
    ("float32", True, 2.0),
)


def cases(device: torch.device = CPU) -> list[tuple[str, bool, float]]:
    """The cases that a device has; nothing is screened on a GPU."""
    if device.type != "cpu":
        return [("bfloat16", False, 0.0), ("float32", False, 0.0), ("bfloat16", False, 2.0)]
    has = tiled.has_bfloat16(device)
    return [case for case in CASES if has or not case[1]]


def measure(
    n: int,
    width: int,
    case: tuple[str, bool, float],
    repeats: int,
    device: torch.device = CPU,
    kernels: bool = False,
) -> dict[str, Any]:
    """One row: `selection_times` of a case."""
    dtype, screened, shared = case
    without = patch.object(tiled, "has_bfloat16", lambda device: False)
    with nullcontext() if screened else without:
        kind = getattr(torch, dtype)
        row = selection_times(n, width, ["gprune"], repeats, device, kind, shared, kernels)
    return {**row, "screened": screened}


def main(
    sizes: Annotated[str, typer.Option(help="Numbers of tokens.")] = "576,1152,2304,2880",
    width: Annotated[int, typer.Option(help="Width of the features.")] = 4096,
    repeats: Annotated[int, typer.Option(min=1, help="Counted runs of each.")] = 7,
    threads: Annotated[int | None, typer.Option(help="CPU threads; all by default.")] = None,
    device: Annotated[str, typer.Option(help="Such as cpu or cuda.")] = "cpu",
    kernels: Annotated[bool, typer.Option(help="Time the Triton kernels too.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the numbers as JSON.")] = None,
) -> None:
    """Time both forms side by side and print the ratios."""
    if threads is not None:
        torch.set_num_threads(threads)
    start = time.perf_counter()
    place = torch.device(device)
    todo = [(case, int(size)) for case in cases(place) for size in sizes.split(",")]
    rows = [
        measure(n, width, case, max(3, min(repeats, repeats * 2304 // n)), place, kernels)
        for case, n in track(todo, "timing selection", transient=True)
    ]
    table = Table(
        *("dtype", "screened", "shared", "tokens", "gprune, ms", "X @ X.T, ms"),
        *("matrix power, ms", *(["triton, ms"] if kernels else []), "of X @ X.T", "faster"),
        title=machine(place),
    )
    names = ["gprune", "product", "matrix_power", *(["gprune_triton"] if kernels else [])]
    for row in rows:
        times = (row["milliseconds"][name] for name in names)
        table.add_row(
            *(row["dtype"], str(row["screened"]), str(row["shared"]), str(row["n"])),
            *(f"{value:.1f}" for value in times),
            *(f"{row['of_product']:.2f}", f"{row['faster']:.1f}x"),
        )
    Console(width=max(110, Console().width)).print(table)
    if out is not None:
        seconds = time.perf_counter() - start
        out.parent.mkdir(parents=True, exist_ok=True)
        result = {"machine": machine(place), "seconds": seconds, "rows": rows}
        out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
