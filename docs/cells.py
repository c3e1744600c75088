"""Runs the notebooks of docs/notebooks and turns them into pages: python docs/cells.py

Stores what each cell prints in the notebooks, so that a reader sees it without running them. The
tests run them again and compare.
"""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

NOTEBOOKS = Path(__file__).parent / "notebooks"


def read(path: Path) -> list[tuple[str, str, str]]:
    """Returns the kind (``markdown`` or ``code``), source and printed text of each cell."""
    return [
        (cell["cell_type"], "".join(cell["source"]), printed(cell))
        for cell in json.loads(path.read_text())["cells"]
    ]


def printed(cell: dict[str, Any]) -> str:
    """Returns what a cell printed when it was stored."""
    return "".join(
        "".join(output["text"])
        for output in cell.get("outputs", ())
        if output["output_type"] == "stream"
    )


def run(path: Path) -> list[str]:
    """Runs the code of a notebook from top to bottom; returns what each code cell prints.

    Values at the end of a cell, such as figures, are not shown.
    """
    space: dict[str, Any] = {"__name__": "__main__"}
    outputs = []
    for number, (kind, source, _) in enumerate(read(path)):
        if kind == "code":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(source, f"{path.name}, cell {number}", "exec"), space)
            outputs.append(out.getvalue())
    return outputs


def store(path: Path) -> None:
    """Runs a notebook and stores what its cells print."""
    outputs = iter(run(path))
    notebook = json.loads(path.read_text())
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            text = next(outputs)
            stream = {
                "name": "stdout",
                "output_type": "stream",
                "text": text.splitlines(keepends=True),
            }
            cell |= {"execution_count": None, "outputs": [stream] if text else []}
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


def page(path: Path) -> str:
    """Returns a notebook as Markdown, with a link to the file below its heading.

    Links to other notebooks lead to their pages.
    """
    parts = []
    for kind, source, text in read(path):
        if kind == "markdown":
            parts.append(source.replace(".ipynb)", ".md)"))
        else:
            parts.append(f"```python\n{source}\n```")
            parts += [f"```text\n{text.rstrip()}\n```"] if text else []
    heading, _, rest = "\n\n".join(parts).partition("\n")
    return f"{heading}\n\n*[Download this notebook]({path.name}).*\n{rest}\n"


if __name__ == "__main__":
    for file in sorted(NOTEBOOKS.glob("*.ipynb")):
        store(file)
