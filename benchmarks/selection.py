"""Times G-Prune's selection beside its matrix-power form: python benchmarks/selection.py

The matrix-power form is the method as the paper writes it (see `gprune.evaluation.bench`). Both are
timed in turn in one run and must select the same tokens; `gprune bench` times the other methods.
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

from gprune.costs.clock import machine_name
from gprune.evaluation.bench import selection_times
from gprune.graph import screening

CPU = torch.device("cpu")
# Dtype of the features; whether tokens are screened in bfloat16 first, if the machine has units for
# it; and the weight of what all tokens have in common (see `selection_times`).
CASES = (
    ("float32", True, 0.0),
    ("bfloat16", True, 0.0),
    ("float32", False, 0.0),
    ("float32", True, 2.0),
)


def supported_cases(device: torch.device = CPU) -> list[tuple[str, bool, float]]:
    """Returns the cases that a device supports; a GPU does not screen."""
    if device.type != "cpu":
        return [("bfloat16", False, 0.0), ("float32", False, 0.0), ("bfloat16", False, 2.0)]
    can_screen = screening.supports_bfloat16(device)
    return [case for case in CASES if can_screen or not case[1]]


def measure(
    n: int,
    width: int,
    case: tuple[str, bool, float],
    repeats: int,
    device: torch.device = CPU,
    kernels: bool = False,
) -> dict[str, Any]:
    """Returns one row of the results: `selection_times` of a case."""
    dtype, screened, shared = case
    no_screen = patch.object(screening, "supports_bfloat16", lambda device: False)
    with nullcontext() if screened else no_screen:
        row = selection_times(
            n, width, ["gprune"], repeats, device, getattr(torch, dtype), shared, kernels
        )
    return {**row, "screened": screened}


def print_table(rows: list[dict[str, Any]], title: str, kernels: bool) -> None:
    """Prints one line per row of the results."""
    table = Table(
        *("dtype", "screened", "shared", "tokens", "gprune, ms", "X @ X.T, ms"),
        *("matrix power, ms", *(["triton, ms"] if kernels else []), "of X @ X.T", "faster"),
        title=title,
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


def main(
    sizes: Annotated[str, typer.Option(help="Numbers of tokens.")] = "576,1152,2304,2880",
    width: Annotated[int, typer.Option(help="Width of the features.")] = 4096,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each form.")] = 7,
    threads: Annotated[int | None, typer.Option(help="CPU threads; all by default.")] = None,
    device: Annotated[str, typer.Option(help="For example cpu or cuda.")] = "cpu",
    kernels: Annotated[bool, typer.Option(help="Also time the Triton kernels.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the results as JSON.")] = None,
) -> None:
    """Time both forms side by side and print the ratios."""
    if threads is not None:
        torch.set_num_threads(threads)
    start = time.perf_counter()
    torch_device = torch.device(device)
    jobs = [
        (case, int(size)) for case in supported_cases(torch_device) for size in sizes.split(",")
    ]
    rows = [
        measure(n, width, case, max(3, min(repeats, repeats * 2304 // n)), torch_device, kernels)
        for case, n in track(jobs, "timing selection", transient=True)
    ]
    print_table(rows, machine_name(torch_device), kernels)
    if out is not None:
        seconds = time.perf_counter() - start
        out.parent.mkdir(parents=True, exist_ok=True)
        result = {"machine": machine_name(torch_device), "seconds": seconds, "rows": rows}
        out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
