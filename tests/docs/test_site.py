"""docs/generate.py and docs/check.py: the site's source, and its links after building."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

import gprune
from gprune.pruners.registry import METHODS, RECOMMENDED
from gprune.tinyvlm import load, make_scene
from tests.docs.blocks import blocks, run

ROOT = Path(__file__).parents[2]
# Methods for videos, which a picture cannot show.
VIDEOS = {"evs", "vidcom2"}


def script(name: str):
    """Imports a script of docs/, which may import others there."""
    if str(ROOT / "docs") not in sys.path:
        sys.path.append(str(ROOT / "docs"))
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
    for name in gprune.methods():
        page = source / "docs" / "methods" / f"{name}.md"
        assert "::: gprune.pruners" in page.read_text(), name
        assert settings.count(f"- {name}: methods/{name}.md\n") == 1
        assert f"| [{name}]({name}.md) |" in (source / "docs" / "methods" / "index.md").read_text()
    assert settings.index("methods/index.md") < settings.index("methods/gprune.md")


def test_the_source_says_what_the_classes_say():
    """The pages of methods are made without importing them."""
    found = script("method_pages").methods()
    assert set(found) == set(METHODS)
    assert next(iter(found)) == "gprune"
    for name, method in found.items():
        cls = METHODS[name]
        assert (method.module, method.cls) == (cls.__module__, cls.__name__)
        assert method.summary == cls.__doc__.splitlines()[0]
        for fact, value in method.facts.items():
            assert getattr(cls, fact) == value, (name, fact)


def test_every_method_stands_under_one_heading():
    pages, generate = script("method_pages"), script("generate")
    standings = {name: entry.get("standing", "") for name, entry in generate.fidelity().items()}
    groups = pages.grouped(pages.methods(standings))
    names = [method.name for members in groups.values() for method in members]
    assert sorted(names) == sorted(METHODS)
    assert all(groups.values())  # no heading without methods
    assert groups["Features alone"][0].name == "gprune"
    for heading, some in {
        "Of this project": {"graph_cover", "weighted_cover"},
        "The vision encoder": {"visionzip"},
        "The question": {"cdpruner"},
        "Inside the language model": {"fastv", "dart"},
        "Videos": VIDEOS,
        "Baselines": {"random", "uniform_grid"},
    }.items():
        assert some <= {method.name for method in groups[heading]}, heading


def test_the_overview_has_the_leaderboards_numbers(source):
    overview = (source / "docs" / "methods" / "index.md").read_text()
    keeps, rows = script("method_pages").leaderboard()
    row = next(line for line in overview.splitlines() if line.startswith("| [divprune]"))
    for keep in ("0.36", "0.1"):
        _, _, cell = rows["divprune"][keeps.index(keep)].partition("· ")
        assert f"| {cell.split()[0]} |" in row
    assert row.endswith("| 20 of 20 |")
    assert "all tokens reach 97.2 " in overview


@pytest.mark.parametrize("name", sorted(set(METHODS) - VIDEOS))
def test_the_snippet_of_a_methods_page_prunes_a_model(source, name):
    model, processor = load()
    content = [{"type": "image", "image": make_scene("test", 0, 4).draw()}]
    content.append({"type": "text", "text": "how many shapes are there?"})
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    page = source / "docs" / "methods" / f"{name}.md"
    (line, block), *_ = [pair for pair in blocks(page, "python") if "(model)" in pair[1]]
    space = {"model": model, "processor": processor, "inputs": inputs}
    run(block, page, line, space)
    named = 'make("recommended"' if name == RECOMMENDED else f"import {METHODS[name].__name__}\n"
    assert named in block


def test_commands_lose_their_prompt(source):
    for page in (source / "docs").rglob("*.md"):
        assert "```console" not in page.read_text(), page
        assert not re.search(r"^ *\$ ", page.read_text(), re.MULTILINE), page
    without_prompts = script("generate").without_prompts
    console = "    ```console\n    $ gprune a\n    $ gprune b\n    said\n    $ gprune c\n    ```\n"
    assert without_prompts(f"before\n{console}after") == (
        "before\n    ```bash\n    gprune a\n    gprune b\n    ```\n\n"
        "    ```text\n    said\n    ```\n\n    ```bash\n    gprune c\n    ```\nafter"
    )
    python = "```python\nprint('$ ')\n```\n"
    assert without_prompts(python) == python


@pytest.mark.parametrize(
    ("remote", "page"),
    [
        ("https://example.org/some/gprune.git", "https://example.org/some/gprune"),
        ("https://user:secret@example.org/some/gprune", "https://example.org/some/gprune"),
        ("git@example.org:some/gprune.git", "https://example.org/some/gprune"),
        ("ssh://git@example.org/some/gprune.git", "https://example.org/some/gprune"),
        ("/srv/gprune.git", None),
        ("../gprune", None),
        ("", None),
    ],
)
def test_the_page_of_a_remote(remote, page):
    assert script("generate").browsable(remote) == page


def test_the_start_page_links_to_the_repository(monkeypatch, tmp_path):
    generate = script("generate")
    monkeypatch.setattr(generate, "repository", lambda: "https://example.org/some/gprune")
    generate.generate(tmp_path / "site")
    start = (tmp_path / "site" / "docs" / "index.md").read_text()
    assert start.startswith("# gprune\n")
    assert "[Source code](https://example.org/some/gprune)" in start
    settings = (tmp_path / "site" / "mkdocs.yml").read_text()
    assert settings.startswith("repo_url: https://example.org/some/gprune\nrepo_name: gprune\n")
    assert (
        generate.with_repository("a\n<!-- docs/generate.py: repository -->\nb\n", None) == "a\nb\n"
    )


def test_the_start_page_has_three_doors():
    start = (ROOT / "docs" / "index.md").read_text()
    doors = start.partition('<div class="grid cards doors" markdown>')[2].partition("</div>")[0]
    assert re.findall(r"^- \*\*\[(\w+)\]", doors, re.MULTILINE) == [
        "transformers",
        "vLLM",
        "Research",
    ]


def test_the_api_begins_with_the_block():
    page = ROOT / "docs" / "api.md"
    (_, first), *_ = blocks(page, "python")
    assert "with GPrune(keep=" in first
    assert re.search(r"^::: (\S+)", page.read_text(), re.MULTILINE)[1].endswith(".GPrune")


def test_wide_tables_take_the_room_of_the_contents(source):
    assert (source / "docs" / "leaderboard.md").read_text().startswith("---\nhide: [toc]\n---\n")
    assert (source / "docs" / "install.md").read_text().startswith("# ")


def test_a_written_page_begins_the_methods_page(source):
    page = (source / "docs" / "methods" / "graph_cover.md").read_text()
    written = (ROOT / "docs" / "methods" / "graph_cover.md").read_text()
    assert page.removeprefix("---\nhide: [toc]\n---\n\n").startswith(written)
    assert "\n| 0.36 | **" in page  # its row of the leaderboard


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


def test_prompts_and_what_search_misses_are_found(tmp_path):
    check = script("check")
    write(tmp_path, "a/index.html", '<pre><span class="gp">$ </span>make</pre>')
    (line,) = check.problems(tmp_path)
    assert line == "a/index.html has a command with a prompt"
    items = [
        {"location": page, "title": f"About {word}".upper()}
        for word, page in check.SEARCHED.items()
    ]
    (tmp_path / "search.json").write_text(json.dumps({"items": items}))
    assert check.not_found(tmp_path) == []
    (tmp_path / "search.json").write_text(json.dumps({"items": items[1:]}))
    word, page = next(iter(check.SEARCHED.items()))
    assert check.not_found(tmp_path) == [f"search for {word} does not find {page}"]


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
