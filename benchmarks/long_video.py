"""Measures G-Prune's time and memory on long videos: python benchmarks/long_video.py

Each row runs in a process of its own. Its memory is the peak that the operating system reports,
minus the peak before selection, when the features exist; on an accelerator, the peak of allocated
memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from gprune import VisualTokens, make
from gprune.costs.clock import machine_name, synchronize
from gprune.evaluation.bench import with_signals

CPU = torch.device("cpu")
# Number of tokens, and the weight of what all have in common (see `selection_times`): with 2 nearly
# every pair is an edge, the graph does not fit in memory, and weights are computed at every step.
CASES = ((4096, 0.0), (8192, 0.0), (16384, 0.0), (32768, 0.0), (8192, 2.0), (32768, 2.0))


def make_features(n: int, d: int, shared: float) -> torch.Tensor:
    """Returns clustered features [n, d]; makes a few rows at a time, to keep the peak low."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(n // 20, d, generator=generator)
    offset = shared * torch.randn(d, generator=generator)
    result = torch.empty(n, d)
    for rows in torch.split(result, 1024):
        which = torch.randint(0, len(centres), (len(rows),), generator=generator)
        torch.randn(rows.shape, generator=generator, out=rows)
        rows.mul_(0.7).add_(centres[which]).add_(offset)
    return result


def make_video(n: int, d: int, shared: float, device: torch.device) -> VisualTokens:
    """Returns a video's tokens in one raster, 128 wide."""
    return with_signals(make_features(n, d, shared).to(device), (n // 128, 128))


def measure(
    method: str, n: int, d: int, shared: float, device: torch.device = CPU
) -> dict[str, Any]:
    """Selects once in this process and returns one row of the results."""
    import resource  # not on Windows

    def peak_bytes() -> int:
        if device.type != "cpu":
            return torch.get_device_module(device).max_memory_allocated(device)
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    pruner = make(method, keep=0.25)
    pruner.select(make_video(512, d, shared, device))  # warm-up
    tokens = make_video(n, d, shared, device)
    synchronize(device)
    before, start = peak_bytes(), time.perf_counter()
    pruner.select(tokens)
    synchronize(device)
    seconds = time.perf_counter() - start
    return {
        "method": method,
        "n": n,
        "d": d,
        "shared": shared,
        "seconds": seconds,
        "bytes_beyond_input": peak_bytes() - before,
        "bytes_of_input": tokens.features.nbytes,
    }


def measure_in_process(
    method: str, n: int, d: int, shared: float, device: str = "cpu", timeout: float | None = None
) -> dict[str, Any]:
    """Runs `measure` in a process of its own.

    Raises:
        subprocess.TimeoutExpired: it takes more than ``timeout`` seconds.
    """
    command = [sys.executable, __file__, "--method", method, "--width", str(d)]
    command += ["--device", device, "--case", f"{n},{shared}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=timeout)
    row: dict[str, Any] = json.loads(done.stdout)
    return row


def main(
    method: Annotated[str, typer.Option(help="A name from `gprune methods`.")] = "gprune",
    width: Annotated[int, typer.Option(help="Width of the features.")] = 1024,
    device: Annotated[str, typer.Option(help="For example cpu or cuda.")] = "cpu",
    case: Annotated[str, typer.Option(help="Print only this case, e.g. 8192,0, as JSON.")] = "",
    out: Annotated[Path | None, typer.Option(help="Write the results as JSON.")] = None,
) -> None:
    """Time one selection for each number of tokens."""
    if case:
        n, shared = case.split(",")
        print(json.dumps(measure(method, int(n), width, float(shared), torch.device(device))))
        return
    machine = machine_name(torch.device(device))
    start = time.perf_counter()
    rows = [
        measure_in_process(method, n, width, shared, device)
        for n, shared in track(CASES, "timing long videos", transient=True)
    ]
    table = Table("tokens", "shared", "seconds", "GiB beyond the input", title=machine)
    for row in rows:
        memory = row["bytes_beyond_input"] / 2**30
        table.add_row(
            *(str(row["n"]), str(row["shared"])), f"{row['seconds']:.2f}", f"{memory:.2f}"
        )
    Console().print(table)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        seconds = time.perf_counter() - start
        result = {"machine": machine, "seconds": seconds, "rows": rows}
        out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
