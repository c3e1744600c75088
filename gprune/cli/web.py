"""``gprune app``: the web page."""

from __future__ import annotations

import socket
from importlib import util
from typing import Annotated

import typer

from gprune.ask.loading import TINY, load_model, quiet_transformers
from gprune.cli.console import error_console, exit_on_bad_use, print_line
from gprune.cli.options import (
    DEFAULT_DEVICE,
    DEFAULT_DTYPE,
    MODEL_HELP,
    DeviceOption,
    DtypeOption,
    MaxNewTokensOption,
)

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def web_page(
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = "tinyvlm",
    host: Annotated[
        str, typer.Option(help="Address to listen on; the default is reachable from here only.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    device: DeviceOption = DEFAULT_DEVICE,
    dtype: DtypeOption = DEFAULT_DTYPE,
    max_new_tokens: MaxNewTokensOption = 64,
    max_megabytes: Annotated[int, typer.Option(min=1, help="Largest upload.")] = 10,
    max_megapixels: Annotated[int, typer.Option(min=1, help="Largest image.")] = 40,
) -> None:
    """Open a local web page that compares methods on an image; needs Gradio, the extra "app".

    Example: gprune app --model llava-hf/llava-1.5-7b-hf --device cuda --dtype bfloat16
    """
    with exit_on_bad_use():
        require_module("gradio", "app")
        from gprune.app import launch, temporary_files
        from gprune.ask.comparison import SharedModel

        require_address(host, port)
        quiet_transformers()
        with error_console.status("loading the model"):
            tiny = model in TINY
            title = "gprune's tiny VLM" if tiny else model
            longest = None if tiny else max_new_tokens  # its checkpoint has a limit of its own
            shared = SharedModel(*load_model(model, device, dtype), title, tiny, longest)
        if host not in LOOPBACK:
            error_console.print(
                f"host {host} can be reached from other machines, and the page has no password",
                style="yellow",
            )
        with temporary_files():
            print_line(f"the page is at http://{host}:{port} until Ctrl+C")
            launch(shared, host, port, max_megabytes, max_megapixels)


def require_module(name: str, extra: str) -> None:
    """Checks that the module of an extra is installed, without importing it.

    Raises:
        ImportError: it is not.
    """
    if util.find_spec(name) is None:
        raise ImportError(f"{name} is not installed; run: pip install 'gprune[{extra}]'")


def require_address(host: str, port: int) -> None:
    """Checks that the page can listen at an address, before a model is loaded for it.

    Raises:
        ValueError: another program listens there, or the address is not this machine's.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as trial:
            # As the server does: a port that was closed a moment ago is free.
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except (OSError, UnicodeError):  # the latter for names that are none
        raise ValueError(
            f"host={host} and port={port} cannot be used: another program listens there, or the "
            "address is not this machine's; take another port or host"
        ) from None
