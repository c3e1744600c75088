"""``gprune methods`` and ``gprune families``: what can be used with what."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Annotated

import typer
from rich.table import Table

from gprune.cli.console import console, print_json
from gprune.cli.options import JsonOption
from gprune.pruners import METHODS, RECOMMENDED_REASON


def methods(as_json: JsonOption = False) -> None:
    """List the pruning methods with their options.

    Example: gprune methods --json
    """
    rows = []
    for name, kind in METHODS.items():
        fields = [field for field in dataclasses.fields(kind) if field.name != "keep"]
        summary = (inspect.getdoc(kind) or "").splitlines()[0]
        options = {field.name: field.default for field in fields}
        rows.append((name, summary, list(kind.signals), options))
    if as_json:
        keys = ("name", "summary", "signals", "options")
        print_json({"methods": [dict(zip(keys, row, strict=True)) for row in rows]})
        return
    table = Table("method", "what it does", "reads beside features", "options")
    for name, summary, signals, options in rows:
        written = ", ".join(f"{key}={value}" for key, value in options.items())
        table.add_row(name, summary, ", ".join(signals), written)
    console.print(table)
    console.print(RECOMMENDED_REASON, markup=False, highlight=False)


def families(
    markdown: Annotated[
        bool, typer.Option(help="Print the Markdown table of the documentation.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the model families that can be pruned.

    Example: gprune families --json
    """
    from gprune.layouts import FAMILIES

    if as_json:
        print_json({"families": [dataclasses.asdict(family) for family in FAMILIES]})
        return
    heads = ("family", "tier", "model", "takes", "pruned together", "class")
    rows = [
        (
            family.name,
            str(family.tier),
            family.title,
            " and ".join(f"{modality}s" for modality in family.modalities),
            family.divided,
            ", ".join(family.architectures),
        )
        for family in FAMILIES
    ]
    if markdown:
        for row in (heads, ("---",) * len(heads), *rows):
            typer.echo(f"| {' | '.join(row)} |")
        return
    table = Table(*heads)
    for row in rows:
        table.add_row(*row)
    console.print(table)
