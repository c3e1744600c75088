"""What mkdocs cannot read from its settings: a page for every method, made from its docstring, and
the cards of the shipped models.

A method is found in the source, without importing it: a class in gprune/pruners with a `name`. The
page shows its docstring, and its row of the leaderboard. A page of the same name that
someone wrote comes before, whole.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
LEADERBOARD = ROOT / "docs" / "leaderboard.md"
# A model's card lies beside its weights.
CARDS = {
    page: ROOT / "gprune" / "tinyvlm" / folder / "README.md"
    for page, folder in (
        ("tiny_card.md", "checkpoint"),
        ("tiny_siglip_card.md", "checkpoint_siglip"),
    )
}


def methods() -> dict[str, tuple[str, str]]:
    """Name of each method, with its module and class."""
    found = {}
    for path in sorted((ROOT / "gprune" / "pruners").glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and (name := named(node)):
                found[name] = (f"gprune.pruners.{path.stem}", node.name)
    # G-Prune first, as `gprune.methods()` has it.
    return dict(sorted(found.items(), key=lambda item: (item[0] != "gprune", item[0])))


def named(node: ast.ClassDef) -> str | None:
    """What a class says that `gprune.methods()` calls it, or None."""
    for line in node.body:
        match line:
            case ast.AnnAssign(target=ast.Name(id="name"), value=ast.Constant(value=str(name))):
                return name
    return None


def results(name: str) -> str:
    """The method's row of the leaderboard's first table, or nothing where it was not measured."""
    lines = LEADERBOARD.read_text().splitlines()
    start = lines.index("## Macro accuracy") + 2
    rows = [
        line for line in lines[start : lines.index("", start)] if line.startswith(f"| {name} |")
    ]
    if not rows:
        return ""
    heading = (
        "## Results\n\nOn the tiny model, rank and macro accuracy in % by share of tokens kept"
    )
    table = "\n".join([*lines[start : start + 2], *rows])
    return f"{heading}; [the leaderboard](../leaderboard.md) has the others.\n\n{table}\n"


def page(name: str, module: str, kind: str) -> str:
    """A method's page in Markdown."""
    written = ROOT / "docs" / "methods" / f"{name}.md"
    head = f"# {name}\n"
    if written.is_file():
        head = f"{written.read_text()}\n## Reference\n"
    options = "    options:\n      members: false\n      show_bases: false\n"
    return f"{head}\n::: {module}.{kind}\n{options}\n{results(name)}"


def on_config(config: Any) -> Any:
    """Completes the navigation: every method, and of the pages named those that are there."""
    for section in config.nav:
        if "Methods" in section:
            written = sorted(path.stem for path in (ROOT / "docs" / "methods").glob("*.md"))
            names = dict.fromkeys([*methods(), *written])
            section["Methods"] = [{name: f"methods/{name}.md"} for name in names]
        for title, content in section.items():
            if isinstance(content, list):
                section[title] = [one for one in content if exists(one)]
    config.nav = [section for section in config.nav if all(section.values())]
    return config


def exists(entry: dict[str, str]) -> bool:
    target = next(iter(entry.values()))
    return target.startswith("methods/") or CARDS.get(target, ROOT / "docs" / target).is_file()


def on_files(files: Files, config: Any) -> Files:
    """Puts the methods' pages and the cards where mkdocs looks for them."""
    for path, card in CARDS.items():
        _, _, content = card.read_text().split("---\n", 2)  # its settings come first
        files.append(File.generated(config, path, content=content))
    for name, (module, kind) in methods().items():
        path = f"methods/{name}.md"
        old = files.get_file_from_path(path)
        if old is not None:
            files.remove(old)
        files.append(File.generated(config, path, content=page(name, module, kind)))
    return files
