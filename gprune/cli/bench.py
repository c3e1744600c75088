"""``gprune bench``: times of selection and prefill on this machine."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from gprune.ask.loading import device_and_dtype, quiet_transformers
from gprune.cli.console import console, error_console, exit_on_bad_use, print_json
from gprune.cli.options import (
    DEFAULT_METHOD,
    DeviceOption,
    DtypeOption,
    JsonOption,
    MethodOption,
)
from gprune.pruners import make


def bench(
    method: MethodOption = DEFAULT_METHOD,
    sizes: Annotated[
        str, typer.Option(help="Comma-separated numbers of tokens to select from.")
    ] = "576,2304",
    width: Annotated[int, typer.Option(min=1, help="Width of the tokens' features.")] = 4096,
    repeats: Annotated[int, typer.Option(min=1, help="Timed repetitions.")] = 3,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    as_json: JsonOption = False,
) -> None:
    """Time the selection of every method, and a prefill with and without pruning.

    Example: gprune bench --method graph_cover --json
    """
    with exit_on_bad_use():
        from gprune.costs.clock import machine_name
        from gprune.evaluation.bench import prefill_rows, selection_times

        name = make(method, keep=1.0).name
        place, kind = device_and_dtype(device, dtype)
        quiet_transformers()
        counts = parse_sizes(sizes)
        with error_console.status("timing prefill"):
            prefill = prefill_rows(method=name, repeats=repeats, device=place, dtype=kind)
        with error_console.status("timing selection"):
            selection = [selection_times(n, width, repeats=repeats, device=place) for n in counts]
    if as_json:
        values = {"method": name, "selection": selection, "prefill": prefill}
        print_json({"machine": machine_name(place), **values})
        return
    console.print(machine_name(place))
    console.print(selection_table(selection))
    console.print(prefill_table(prefill, name))


def parse_sizes(sizes: str) -> list[int]:
    """Parses comma-separated whole numbers.

    Raises:
        ValueError: one of them is not a whole number.
    """
    try:
        return [int(size) for size in sizes.split(",")]
    except ValueError:
        raise ValueError(
            f"sizes={sizes!r} must be comma-separated whole numbers, such as 576,2304"
        ) from None


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
