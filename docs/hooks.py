"""What mkdocs cannot read from its settings: a page for every method, made from its docstring.

A method is found in the source, without importing it: a class in gprune/pruners with a `name`. The
page shows its docstring, and its row of the tiny model's results. A page of the same name that
someone wrote comes before, whole.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "tiny_accuracy.json"


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
    """The method's macro accuracy by budget as a table, or nothing where it was not measured."""
    measured = json.loads(RESULTS.read_text())["rows"]
    full = next(row["macro"] for row in measured if row["method"] == "all tokens")
    rows = [row for row in measured if row["method"] == name]
    if not rows:
        return ""
    rows.sort(key=lambda row: -row["keep"])
    lines = [
        "## Results",
        "",
        "On the tiny model, macro accuracy in % and its share of what all tokens reach; "
        "[every question type](../tiny_accuracy.md).",
        "",
        "| keep | accuracy | retained |",
        "|---|---|---|",
    ]
    lines += [
        f"| {row['keep']} | {row['macro']:.1f} | {100 * row['macro'] / full:.1f} |" for row in rows
    ]
    return "\n".join(lines) + "\n"


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
    return target.startswith("methods/") or (ROOT / "docs" / target).is_file()


def on_files(files: Files, config: Any) -> Files:
    """Puts the methods' pages where mkdocs looks for them."""
    for name, (module, kind) in methods().items():
        path = f"methods/{name}.md"
        old = files.get_file_from_path(path)
        if old is not None:
            files.remove(old)
        files.append(File.generated(config, path, content=page(name, module, kind)))
    return files
