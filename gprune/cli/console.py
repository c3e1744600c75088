"""Output of the commands: text, JSON, progress, and one sentence with exit code 2 for bad use."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from gprune.errors import UnsupportedModelError, UnsupportedVersionError, plain_message

if TYPE_CHECKING:
    from gprune.costs import Saving

console = Console()
# Progress and errors go to stderr, so that stdout contains the result only.
error_console = Console(stderr=True)

# Whether the command was called with ``--json``.
json_requested = ContextVar("json_requested", default=False)


def fail(message: str) -> NoReturn:
    """Prints one line to stderr and exits with code 2; with ``--json`` an object on stdout too."""
    if json_requested.get():
        print_json({"error": message})
    print_error(message)
    raise typer.Exit(2)


def print_error(message: str) -> None:
    """Prints one line to stderr."""
    error_console.print(f"error: {message}", style="red", markup=False, soft_wrap=True)


@contextmanager
def exit_on_bad_use() -> Iterator[None]:
    """Turns errors that a user can cause into one sentence and exit code 2.

    Other errors are defects and keep their traceback; so do all TypeErrors but
    `UnsupportedModelError`.
    """
    try:
        yield
    except (
        *(UnsupportedModelError, UnsupportedVersionError),
        *(ValueError, OSError, ImportError),
    ) as error:
        fail(plain_message(error))


def print_json(values: dict[str, Any]) -> None:
    """Prints one JSON object on one line."""
    typer.echo(json.dumps(values))


def print_line(text: str) -> None:
    """Prints one line as it is, without markup and line breaks."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def print_costs(saving: Saving) -> None:
    """Prints multiply-adds and KV-cache size with and without pruning, one line each."""
    print_line(
        f"language model {saving.flops_full / 1e9:.3f} -> {saving.flops_pruned / 1e9:.3f} G "
        f"multiply-adds at prefill ({saving.flops_saved:.1%} saved, "
        f"convention {saving.convention})"
    )
    print_line(
        f"KV cache {saving.kv_bytes_full / 2**20:.2f} -> {saving.kv_bytes_pruned / 2**20:.2f} MiB"
    )


def progress_bar() -> Progress:
    """Creates a progress bar on stderr with a count and the remaining time."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=error_console,
    )
