"""The documentation's Python runs, and its commands exist with their options."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer
from PIL import Image

from gprune.ask.prompts import prepare
from gprune.cli import app
from gprune.pruners.registry import METHODS
from gprune.tinyvlm import load, make_scene
from gprune.tinyvlm.model import checkpoint_folder
from tests.docs.blocks import blocks, run

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# A checkpoint of a hub; the shipped one takes its place.
HUB = re.compile(r'"(?:[\w.-]+/[\w.-]+-hf|Qwen/[\w.-]+)"')


def names(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(ROOT)) for page in pages]


# test_guides.py runs the guides, on other models.
WITH_PYTHON = [page for page in PAGES if blocks(page, "python") and page.parent.name != "guides"]
COMMANDS = [
    (str(page.relative_to(ROOT)), line[2:])
    for page in PAGES
    for _, block in blocks(page, "console")
    for line in block.splitlines()
    if line.startswith("$ ")
]


@pytest.fixture(scope="module")
def tiny():
    """Returns the names that a page may use without defining them: model, processor, inputs."""
    model, processor = load()
    image = make_scene("test", 0, 4).draw()
    inputs = prepare(model, processor, [([image], "how many shapes are there?")])
    return {"model": model, "processor": processor, "inputs": inputs}


@pytest.fixture
def registered():
    """Removes the methods that a page registers."""
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


@pytest.mark.parametrize("page", WITH_PYTHON, ids=names(WITH_PYTHON))
def test_python_blocks_run_from_top_to_bottom(page, tiny, tmp_path, monkeypatch, registered):
    monkeypatch.chdir(tmp_path)
    for name in ("cat.jpg", "photo.jpg"):
        Image.new("RGB", (64, 64), "red").save(name)
    space = {**tiny, "__name__": "__main__"}
    for line, block in blocks(page, "python"):
        if block.startswith("# not run: "):
            continue  # and the reader sees why
        run(HUB.sub(repr(str(checkpoint_folder())), block), page, line, space)


def test_the_guides_have_blocks():
    """The pattern finds what it should."""
    assert {"README.md", "docs/index.md", "docs/adding_a_method.md"} <= set(names(WITH_PYTHON))
    assert len(COMMANDS) > 5


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_commands_exist_with_their_options(page, command):
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in words[1:] if "=" not in word} <= set(targets)
    elif words[0] == "gprune":
        known = typer.main.get_command(app).commands
        assert words[1] in known
        options = {name for one in known[words[1]].params for name in one.opts + one.secondary_opts}
        given = {word.split("=")[0] for word in words[2:] if word.startswith("--")}
        # `serve` hands what it does not know to vLLM.
        passed_on = known[words[1]].context_settings.get("ignore_unknown_options")
        assert passed_on or given <= options | {"--help"}


def test_the_navigation_leaves_nothing_out():
    """Every page that someone wrote is in the menu of the site."""
    listed = (ROOT / "mkdocs.yml").read_text()
    folder = ROOT / "docs"
    for page in [*folder.glob("*.md"), *folder.glob("guides/*.md")]:
        assert f": {page.relative_to(folder)}\n" in listed, page.name
    for notebook in folder.glob("notebooks/*.ipynb"):
        assert f": notebooks/{notebook.stem}.md\n" in listed, notebook.name


def test_the_readme_fits_on_seven_screens():
    readme = ROOT / "README.md"
    assert len(readme.read_bytes()) <= 8192
    text = readme.read_text()
    assert "make demo" in text
    assert "make test" in text


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_no_page_installs_by_name_without_a_word(page):
    """The name is not on the package index yet, so a page that uses it says so."""
    text = page.read_text()
    if re.search(r"pip install '?gprune", text):
        assert "not on the package index yet" in " ".join(text.split())


def test_the_install_page_has_every_extra():
    """With no other, so that a name on the page can be installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (ROOT / "docs" / "install.md").read_text()
    table = page.partition("| extra |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(
        project["optional-dependencies"]
    )
    torch = next(line for line in project["dependencies"] if line.startswith("torch"))
    assert f"torch {torch.removeprefix('torch>=')} or later" in page
    assert f"Python {project['requires-python'].removeprefix('>=')} or later" in page


def test_the_readme_leads_to_the_guides():
    assert "](docs/transformers.md#guides)" in (ROOT / "README.md").read_text()


def test_the_readme_counts_the_methods():
    assert f"lists all {len(METHODS)}" in " ".join((ROOT / "README.md").read_text().split())
