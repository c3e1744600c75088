"""docs/generate.py and docs/check.py: the site's source, and its links after building."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import gprune

ROOT = Path(__file__).parents[2]


def script(name: str):
    """Imports a script of docs/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("site")
    (out / "stale").touch()
    script("generate").generate(out)
    return out


def test_every_method_has_a_page_in_the_menu(source):
    settings = (source / "mkdocs.yml").read_text()
    assert list(script("generate").methods()) != []
    for name in gprune.methods():
        page = source / "docs" / "methods" / f"{name}.md"
        assert "::: gprune.pruners" in page.read_text(), name
        assert f"      - {name}: methods/{name}.md\n" in settings
    # G-Prune comes first, after the pages about several methods.
    names = [line for line in settings.splitlines() if ": methods/" in line]
    assert names[2].strip() == "- gprune: methods/gprune.md"


def test_a_written_page_begins_the_methods_page(source):
    page = (source / "docs" / "methods" / "graph_cover.md").read_text()
    written = (ROOT / "docs" / "methods" / "graph_cover.md").read_text()
    assert page.startswith(written)
    assert "| graph_cover | **" in page  # its row of the leaderboard


def test_the_source_is_whole_and_nothing_else(source):
    assert not (source / "stale").exists()
    assert not list(source.rglob("*.py"))
    written = {path.relative_to(ROOT) for path in (ROOT / "docs").rglob("*.md")}
    assert written <= {path.relative_to(source) for path in source.rglob("*.md")}
    card = (source / "docs" / "tiny_card.md").read_text()
    assert card.lstrip().startswith("# ")  # without its front matter


def test_the_menu_names_pages_that_exist(source):
    lines = (source / "mkdocs.yml").read_text().partition("nav:")[2].splitlines()
    pages = [line.rsplit(": ", 1)[1] for line in lines if line.endswith(".md")]
    assert len(pages) == len(set(pages))
    for page in pages:
        assert (source / "docs" / page).is_file(), page


def write(site: Path, name: str, html: str) -> None:
    (site / name).parent.mkdir(parents=True, exist_ok=True)
    (site / name).write_text(html)


def test_broken_links_are_found(tmp_path):
    check = script("check")
    write(
        tmp_path,
        "a/index.html",
        '<h1 id="top">A</h1><a href="../b/#here">b</a><a href="#top">t</a>',
    )
    write(
        tmp_path,
        "b/index.html",
        '<p id="here"><img src="../x.svg"><a href="https://example.org">e</a>',
    )
    write(tmp_path, "x.svg", "<svg/>")
    assert check.problems(tmp_path) == []
    write(
        tmp_path,
        "a/index.html",
        '<a href="../b/#gone">b</a><a href="../c/">c</a><img src="no.png">',
    )
    found = check.problems(tmp_path)
    assert {line.split(" links to ")[1] for line in found} == {"../b/#gone", "../c/", "no.png"}


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://example.org/x.js"></script>',
        '<link rel="stylesheet" href="https://example.org/x.css">',
        '<img src="//example.org/x.png">',
    ],
)
def test_what_comes_from_a_network_is_found(tmp_path, html):
    write(tmp_path, "index.html", html)
    (line,) = script("check").problems(tmp_path)
    assert "loads" in line
