"""``gprune serve``: vLLM with pruned images."""

from __future__ import annotations

import os
import shlex
from typing import Annotated

import typer

from gprune.ask.loading import locate_model, read_config
from gprune.budget import parse_keep
from gprune.cli.console import exit_on_bad_use
from gprune.cli.options import DEFAULT_KEEP, DEFAULT_METHOD, KEEP_HELP, MethodOption

SERVE_KEEP_HELP = (
    f"{KEEP_HELP} Requests can set another if vLLM gets --trust-request-mm-kwargs, see "
    "docs/serving.md."
)


def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a model that vLLM serves.")],
    method: MethodOption = DEFAULT_METHOD,
    keep: Annotated[str, typer.Option(help=SERVE_KEEP_HELP)] = DEFAULT_KEEP,
    show: Annotated[
        bool, typer.Option("--show", help="Print the `vllm serve` command and start nothing.")
    ] = False,
) -> None:
    """Serve a model with vLLM and prune its images; all other options are passed to vLLM.

    Example: gprune serve llava-hf/llava-1.5-7b-hf --keep 0.36 --port 8000
    """
    from gprune.serving.command import require_vllm, serve_arguments, vllm_command
    from gprune.serving.settings import ServerSettings

    with exit_on_bad_use():
        settings = ServerSettings(parse_keep(keep), method)
        if not show:
            require_vllm()
        config = read_config(model)
        arguments = serve_arguments(locate_model(model)[0], config, settings, context.args)
    if show:
        typer.echo(shlex.join(["vllm", *arguments]))
        return
    command = vllm_command(arguments)
    os.execv(command[0], command)
