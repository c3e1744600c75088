"""Options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gprune.pruners import methods

# The method that every command takes unless it says otherwise; `gprune.make` resolves it.
DEFAULT_METHOD = "recommended"
DEFAULT_KEEP = "0.36"

KEEP_HELP = "Share of the visual tokens to keep, in (0, 1], or a number of tokens above 1."
METHOD_HELP = (
    "A name from `gprune methods`. Take `recommended`; `gprune` is the paper's method, for "
    "reproducing it."
)
DEFAULT_DEVICE = DEFAULT_DTYPE = "auto"
MODEL_HELP = "Folder or Hub id of a supported model, or a shipped one: tinyvlm, tinyvlm-siglip."
DTYPE_HELP = "Floating-point dtype, such as float32; auto: bfloat16 on a GPU, else float32."
DEVICE_HELP = "Device, such as cpu or cuda:1; auto: the GPU if there is one."
OUT_HELP = "File for the picture; .png is appended to a name without suffix."


def complete_method(incomplete: str) -> list[str]:
    """Returns the method names that start with ``incomplete``, for shell completion."""
    return [name for name in (*methods(), "recommended") if name.startswith(incomplete)]


KeepOption = Annotated[str, typer.Option(help=KEEP_HELP)]
MethodOption = Annotated[str, typer.Option(help=METHOD_HELP, autocompletion=complete_method)]
ModelArgument = Annotated[str, typer.Argument(help=MODEL_HELP)]
DeviceOption = Annotated[str, typer.Option(help=DEVICE_HELP)]
DtypeOption = Annotated[str, typer.Option(help=DTYPE_HELP)]
MaxNewTokensOption = Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")]
TemplateOption = Annotated[
    str | None,
    typer.Option(help="Prompt used in place of the chat format, such as '{question} Answer:'."),
]
OutOption = Annotated[Path, typer.Option(help=OUT_HELP)]
RunOutOption = Annotated[
    Path | None, typer.Option(help=f"{OUT_HELP} In a folder it is called kept.png.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
