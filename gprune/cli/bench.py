"""``gprune bench``: times of selection and prefill on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from gprune.ask.loading import device_and_dtype, quiet_transformers
from gprune.cli.console import console, exit_on_bad_use, print_json, progress_bar
from gprune.cli.options import (
    DEFAULT_DEVICE,
    DEFAULT_DTYPE,
    DEFAULT_METHOD,
    DeviceOption,
    DtypeOption,
    JsonOption,
    MethodOption,
)
from gprune.pruners import make

if TYPE_CHECKING:
    import torch

SIZES, WIDTH, REPEATS = "576,2304", 4096, 3
# The similarity of more tokens does not fit into memory in the matrix-power form (float32, 4 GB).
MOST_TOKENS = 32_768
# What `--quick` takes in place of the defaults.
QUICK_SIZES, QUICK_WIDTH, QUICK_REPEATS = "576", 1024, 1
KEEPS, QUICK_KEEPS = (1.0, 0.5, 0.36, 0.25, 0.1), (1.0, 0.36)


# Over 40 lines: eight options.
def bench(
    method: MethodOption = DEFAULT_METHOD,
    sizes: Annotated[
        str | None,
        typer.Option(help=f"Comma-separated numbers of tokens to select from; {SIZES} by default."),
    ] = None,
    width: Annotated[
        int | None, typer.Option(min=1, help=f"Width of the features; {WIDTH} by default.")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(min=1, help=f"Timed rounds; {REPEATS} by default.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer and smaller cases: seconds, less exact.")
    ] = False,
    device: DeviceOption = DEFAULT_DEVICE,
    dtype: DtypeOption = DEFAULT_DTYPE,
    as_json: JsonOption = False,
) -> None:
    """Time the selection of every method, and a prefill with and without pruning.

    Example: gprune bench --method graph_cover --quick
    """
    with exit_on_bad_use():
        counts = parse_sizes(sizes or (QUICK_SIZES if quick else SIZES))
        width = width or (QUICK_WIDTH if quick else WIDTH)
        repeats = repeats or (QUICK_REPEATS if quick else REPEATS)
        name = make(method, keep=1.0).name
        place, kind = device_and_dtype(device, dtype)
        quiet_transformers()
        keeps = QUICK_KEEPS if quick else KEEPS
        prefill = time_prefill(name, keeps, repeats, place, kind)
        selection = time_selection(counts, width, repeats, place)
    from gprune.costs.clock import machine_name

    if as_json:
        values = {"method": name, "selection": selection, "prefill": prefill}
        print_json({"machine": machine_name(place), **values})
        return
    console.print(machine_name(place))
    console.print(selection_table(selection))
    console.print(prefill_table(prefill, name))


def time_prefill(
    method: str, keeps: tuple[float, ...], repeats: int, device: torch.device, dtype: torch.dtype
) -> list[dict[str, Any]]:
    """Times the prefill at each budget with a progress bar, see `prefill_rows`."""
    from gprune.evaluation.bench import prefill_rows

    with progress_bar() as progress:
        bar = progress.add_task("prefill", total=len(keeps))
        return prefill_rows(
            keeps, method, repeats, device, dtype, after_row=lambda: progress.advance(bar)
        )


def time_selection(
    counts: list[int], width: int, repeats: int, device: torch.device
) -> list[dict[str, Any]]:
    """Times the selection from each number of tokens with a progress bar, see `selection_times`."""
    from gprune.evaluation.bench import selection_calls, selection_times

    rows = []
    with progress_bar() as progress:
        for n in counts:
            bar = progress.add_task(f"selection, {n} tokens", total=selection_calls(repeats))
            rows.append(
                selection_times(
                    n,
                    width,
                    repeats=repeats,
                    device=device,
                    after_call=lambda bar=bar: progress.advance(bar),  # type: ignore[misc]
                )
            )
    return rows


def parse_sizes(sizes: str) -> list[int]:
    """Parses comma-separated numbers of tokens.

    Raises:
        ValueError: one of them is not a whole number from 1 to `MOST_TOKENS`.
    """
    counts = [int(size) if size.strip().isdecimal() else 0 for size in sizes.split(",")]
    if not all(1 <= count <= MOST_TOKENS for count in counts):
        raise ValueError(
            f"sizes={sizes!r} must be comma-separated whole numbers from 1 to {MOST_TOKENS}, such "
            f"as {SIZES}"
        )
    return counts


def selection_table(selection: list[dict[str, Any]]) -> Table:
    """Builds a table of selection times, with a column for each number of tokens."""
    table = Table("selection, ms", *(f"{row['n']} tokens" for row in selection))
    for label in selection[0]["milliseconds"]:
        table.add_row(label, *(f"{row['milliseconds'][label]:.1f}" for row in selection))
    return table


def prefill_table(prefill: list[dict[str, Any]], method: str) -> Table:
    """Builds a table of prefill times, with a row for each budget."""
    table = Table(
        *("keep", "prefill, ms", f"with {method}, ms", "selection, ms"),
        *("speedup", "multiply-adds"),
        title="prefill of a language model with random weights, 576 visual and 64 text tokens",
    )
    for row in prefill:
        table.add_row(
            *(str(row["keep"]), f"{row['full_ms']:.0f}", f"{row['pruned_ms']:.0f}"),
            "in the prefill" if row["method_ms"] is None else f"{row['method_ms']:.0f}",
            *(f"{row['speedup']:.2f}x", f"{row['ideal']:.2f}x fewer"),
        )
    return table
