"""Runs tests beside the newest transformers; says which families and which tests it breaks.

``make newest`` calls it with ``.venv/newest`` in front of the pinned packages. Arguments are
pytest's.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable

import pytest


class Recorder:
    """A pytest plugin that records what ran and what failed, also under xdist."""

    def __init__(self) -> None:
        self.ran = 0
        self.failed: dict[str, None] = {}  # ids in order, each once

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.ran += report.when == "call"
        if report.failed:
            self.failed[report.nodeid] = None

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed[report.nodeid] = None


def family_of_test(nodeid: str, families: Iterable[str]) -> str | None:
    """Returns the family that a test is about, by the parameters in its id; None if it names none.

    A parameter may be a variant: ``llava_siglip`` is about ``llava``.
    """
    parameters = re.search(r"\[(.*)\]$", nodeid)
    words = parameters[1].split("-") if parameters else []
    found = [
        family
        for family in families
        for word in words
        if word == family or word.startswith(family + "_")
    ]
    return max(found, key=len, default=None)


def summary(versions: str, recorder: Recorder, families: Iterable[str]) -> str:
    """Returns a line on what ran, then what failed by family and by file of tests."""
    failed = list(recorder.failed)
    if not failed:
        return f"{versions}: {recorder.ran} tests ran, none failed"
    broken = Counter(family_of_test(one, families) or "of no family" for one in failed)
    files = Counter(one.split("::")[0] for one in failed)
    return "\n".join(
        [f"{versions}: {len(failed)} of {recorder.ran} tests failed"]
        + [
            f"  {kind}: {', '.join(f'{name} ({count})' for name, count in counts.most_common())}"
            for kind, counts in (("families", broken), ("tests", files))
        ]
    )


def main(arguments: list[str]) -> int:
    """Runs pytest; prints the summary; returns pytest's exit code."""
    import torch
    import transformers

    import gprune

    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    print(versions, flush=True)
    recorder = Recorder()
    code = pytest.main(arguments, plugins=[recorder])
    print(summary(versions, recorder, gprune.families()))
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
