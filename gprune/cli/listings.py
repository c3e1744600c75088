"""``gprune methods`` and ``gprune families``: what can be used with what."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from gprune.cli.console import console, print_json
from gprune.cli.options import JsonOption
from gprune.pruners import METHODS, RECOMMENDED, RECOMMENDED_REASON, Pruner

# What methods read, in the order of the list.
FEATURES = "projected features alone"
QUESTION = "features and the question"
VISION_ENCODER = "features, and attention or keys of the vision encoder"
FRAMES = "all frames of a video"
LANGUAGE_MODEL = "attention, keys or hidden states of the language model"
PIXELS = "the pixels, before the encoder"
METHOD_GROUPS = (FEATURES, QUESTION, VISION_ENCODER, FRAMES, LANGUAGE_MODEL, PIXELS)


def methods(as_json: JsonOption = False) -> None:
    """List the pruning methods with their options.

    Example: gprune methods --json
    """
    rows = [described(name) for name in METHODS]
    if as_json:
        print_json({"methods": rows})
        return
    table = Table("method", "what it does", "options")
    for group in METHOD_GROUPS:
        members = [row for row in rows if row["reads"] == group]
        if members:
            table.add_section()
            table.add_row(Text(f"reads {group}", style="bold"))
        for row in members:
            mark = " (recommended)" if row["recommended"] else ""
            options = ", ".join(f"{key}={value}" for key, value in row["options"].items())
            table.add_row(row["name"] + mark, row["summary"], options)
    console.print(table)
    console.print(RECOMMENDED_REASON, markup=False, highlight=False)


def described(name: str) -> dict[str, Any]:
    """Returns what the list of methods says about one of them."""
    method = METHODS[name]
    fields = [field for field in dataclasses.fields(method) if field.name != "keep"]
    return {
        "name": name,
        "summary": (inspect.getdoc(method) or "").splitlines()[0],
        "recommended": name == RECOMMENDED,
        "reads": method_group(method),
        "signals": list(method.signals),
        "options": {field.name: field.default for field in fields},
    }


def method_group(method: type[Pruner]) -> str:
    """Returns what a method reads, one of `METHOD_GROUPS`."""
    scopes = {"video": FRAMES, "decoder": LANGUAGE_MODEL, "pixels": PIXELS}
    if method.scope in scopes:
        return scopes[method.scope]
    if "text" in method.signals:
        return QUESTION
    return VISION_ENCODER if method.signals else FEATURES


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
