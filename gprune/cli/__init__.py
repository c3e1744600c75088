"""The ``gprune`` command: a module for each command or group of commands.

Commands import transformers and matplotlib inside their functions, so that ``--help`` and errors
are quick.
"""

from __future__ import annotations

from typing import Annotated

import typer

from gprune import __version__
from gprune.cli import bench, demo, doctor, evaluate, flops, listings, run, serve, web

__all__ = ["app", "main", "parse_keep"]

app = typer.Typer(
    name="gprune",
    help="Training-free visual token pruning for vision-language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("demo")(demo.demo)
app.command("run")(run.run)
app.command("methods")(listings.methods)
app.command("eval")(evaluate.evaluate)
app.command("bench")(bench.bench)
app.command("app")(web.web_page)
app.command("doctor")(doctor.doctor)
app.command("families")(listings.families)
app.command("flops")(flops.flops)
app.command("serve", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(
    serve.serve
)


def print_version(requested: bool) -> None:
    """Prints the version and exits, if it was requested."""
    if requested:
        typer.echo(f"gprune {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Training-free visual token pruning for vision-language models."""


def main() -> None:
    """Runs the ``gprune`` command."""
    app()
