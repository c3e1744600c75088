"""The ``gprune`` command: a module for each command or group of commands.

Commands import transformers and matplotlib inside their functions, so that ``--help`` and errors
are quick.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from gprune import __version__
from gprune.cli import bench, demo, doctor, evaluate, flops, listings, prove, run, serve, web
from gprune.cli.console import json_requested, print_json

__all__ = ["app", "main", "parse_keep"]


# typer does not export it; it brings a copy of click in some versions.
UsageError: Any = typer.BadParameter.__base__


class Commands(TyperGroup):
    """The commands; with ``--json`` a wrong option is reported as JSON on stdout too."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        words = sys.argv[1:] if args is None else args
        if "--json" not in words:
            return super().main(args, *rest, **options)
        token = json_requested.set(True)
        try:
            code = super().main(args, *rest, **{**options, "standalone_mode": False})
        except UsageError as error:
            print_json({"error": error.format_message()})
            error.show()
            sys.exit(error.exit_code)
        finally:
            json_requested.reset(token)
        sys.exit(code if isinstance(code, int) else 0)


app = typer.Typer(
    cls=Commands,
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
app.command("prove")(prove.prove)
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
