"""G-Prune's selection beside its matrix-power form: python benchmarks/selection.py

The matrix-power form is the same method written the direct way: a full similarity product, a row
softmax over an n-by-n matrix, and the fifth power of that matrix. Both are timed in turn in one
run, so that the machine's drift hits both alike, and must select the same tokens.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from gprune import GPrune, VisualTokens, kept_count


def matrix_power_form(features: Tensor, pruner: GPrune) -> Tensor:
    """The indices that the direct form keeps, ascending."""
    norms = features.norm(dim=-1)
    unit = features / norms[:, None]
    similarity = unit @ unit.T
    edge = similarity >= pruner.threshold
    logits = (similarity / pruner.temperature).masked_fill(~edge, -torch.inf)
    transition = torch.softmax(logits, -1)
    information = norms @ torch.matrix_power(transition, pruner.iterations)
    scores = information / edge.sum(-1)
    order = torch.sort(scores, descending=True, stable=True).indices
    return order[: kept_count(len(features), pruner.keep)].sort().values


def clustered(n: int, d: int, seed: int = 0) -> Tensor:
    """Features with the redundancy of an image: noisy copies of n / 20 directions."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(max(1, n // 20), d, generator=generator)
    which = torch.randint(0, len(centres), (n,), generator=generator)
    return centres[which] + 0.7 * torch.randn(n, d, generator=generator)


def machine() -> str:
    """The processor's name, its instruction set, and how many threads torch uses."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor()
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{name} ({capability}), {torch.get_num_threads()} threads, torch {torch.__version__}"


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
    pruner = GPrune(0.36)
    table = Table(
        "tokens", "matrix power, ms", "gprune, ms", "X @ X.T, ms", "faster", title=machine()
    )
    rows = []
    for n in (int(size) for size in sizes.split(",")):
        features = clustered(n, width)
        tokens = VisualTokens(features)
        if not torch.equal(matrix_power_form(features, pruner), pruner.select(tokens)):
            raise SystemExit(f"the two forms select different tokens at n = {n}")
        contenders = {
            "matrix_power": lambda: matrix_power_form(features, pruner),  # noqa: B023
            "gprune": lambda: pruner.select(tokens),  # noqa: B023
            "product": lambda: features @ features.T,  # noqa: B023
        }
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(repeats):
            for name, call in contenders.items():
                start = time.perf_counter()
                call()
                times[name].append(1000 * (time.perf_counter() - start))
        medians = {name: statistics.median(values) for name, values in times.items()}
        ratio = statistics.median(
            a / b for a, b in zip(times["matrix_power"], times["gprune"], strict=True)
        )
        rows.append({"n": n, "d": width, "milliseconds": medians, "faster": ratio})
        cells = [f"{medians[name]:.1f}" for name in contenders]
        table.add_row(str(n), *cells, f"{ratio:.2f}x")
    Console().print(table)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
