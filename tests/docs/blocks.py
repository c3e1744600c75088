"""Fenced blocks of Markdown pages."""

from __future__ import annotations

import re
from pathlib import Path

FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def fenced(page: Path) -> list[tuple[str, int, str]]:
    """Returns language, line and text of each fenced block of a page."""
    text = page.read_text()
    return [
        (match[1], text.count("\n", 0, match.start(2)), match[2]) for match in FENCE.finditer(text)
    ]


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """Returns the fenced blocks of a language with the line on which each begins."""
    return [(line, block) for own, line, block in fenced(page) if own == language]


def run(code: str, page: Path, line: int, space: dict[str, object]) -> None:
    """Runs a block of a page; a traceback points into the page."""
    exec(compile("\n" * line + code, str(page), "exec", dont_inherit=True), space)
