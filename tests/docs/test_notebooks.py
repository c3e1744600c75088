"""The notebooks of docs/notebooks run, and print what is stored in them."""

from __future__ import annotations

import json

import pytest

from gprune.ask.loading import quiet_transformers
from tests.docs.test_site import script

cells = script("cells")
NOTEBOOKS = sorted(cells.NOTEBOOKS.glob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_a_notebook_prints_what_is_stored(notebook):
    quiet_transformers()
    stored = [text for kind, _, text in cells.read(notebook) if kind == "code"]
    assert cells.run(notebook) == stored, "run python docs/cells.py"
    assert any(stored)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_a_notebook_is_valid_and_small(notebook):
    """As Jupyter's format 4.5 has it, without pictures and without numbers of executions."""
    assert notebook.stat().st_size < 20_000
    content = json.loads(notebook.read_text())
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    assert content["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in content["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in content["cells"]:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["execution_count"] is None
            assert {output["output_type"] for output in cell["outputs"]} <= {"stream"}
        else:
            assert set(cell) == {"cell_type", "id", "metadata", "source"}


def test_there_are_two():
    assert {notebook.stem for notebook in NOTEBOOKS} == {"transformers", "choosing"}


def test_a_page_of_a_notebook(tmp_path):
    """Cells in their order, with what they print, and links to the other notebooks' pages."""
    notebook = {
        "cells": [
            {"cell_type": "markdown", "source": ["# Title\n", "\n", "[other](other.ipynb)"]},
            {
                "cell_type": "code",
                "source": ["a = 1\n", "print(a)"],
                "outputs": [{"output_type": "stream", "text": ["old\n"]}],
            },
            {"cell_type": "code", "source": ["b = a + 1"], "outputs": []},
        ]
    }
    path = tmp_path / "some.ipynb"
    path.write_text(json.dumps(notebook))
    assert cells.run(path) == ["1\n", ""]
    cells.store(path)
    assert cells.page(path) == (
        "# Title\n\n*[Download this notebook](some.ipynb).*\n\n[other](other.md)\n\n"
        "```python\na = 1\nprint(a)\n```\n\n```text\n1\n```\n\n```python\nb = a + 1\n```\n"
    )
