"""The methods, read from their source without importing it, and the site's pages about them.

A method is a class in gprune/pruners with a `name`. Its page is made from its docstring; it begins
with docs/methods/<name>.md where that exists.
"""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
LEADERBOARD = DOCS / "leaderboard.md"

# What the class of a method says about it, with the values of `gprune.pruners.base.Pruner`.
FACTS: dict[str, Any] = {"name": None, "scope": "group", "signals": (), "proportional": False}

# Headings of the overview and the menu, in their order, with the sentence below each.
GROUPS = {
    "Of this project": "Written here, on the similarity graph of G-Prune's features.",
    "Features alone": "Read the projected features and nothing else.",
    "The vision encoder": "Read attention or keys of the vision encoder "
    "([signals](peers.md#signals)).",
    "The question": "Read the question too, so each question has its own selection "
    "([how](peers.md#the-question)).",
    "Inside the language model": "Drop tokens between layers of the language model "
    "([how](decoder.md)).",
    "Videos": "Read all frames of a video together.",
    "Baselines": "What every method has to beat.",
}
# How the fidelity of methods without released code begins, see docs/fidelity.toml.
OWN, BASELINE = "A method of this project", "A baseline"


@dataclass(frozen=True)
class Method:
    """A method as its source describes it.

    Attributes:
        name: in `gprune.methods()`.
        module: where the class is.
        cls: the name of the class.
        summary: the first line of its docstring.
        facts: values of the class attributes in `FACTS`.
        standing: what it was compared with, for methods without vectors; else empty.
    """

    name: str
    module: str
    cls: str
    summary: str
    facts: Mapping[str, Any]
    standing: str = ""

    @cached_property
    def group(self) -> str:
        """The heading that the method stands under, one of `GROUPS`."""
        if self.standing.startswith(OWN):
            return "Of this project"
        if self.standing.startswith(BASELINE):
            return "Baselines"
        if self.facts["scope"] == "video":
            return "Videos"
        if self.facts["scope"] == "decoder":
            return "Inside the language model"
        if "text" in self.facts["signals"]:
            return "The question"
        return "The vision encoder" if self.facts["signals"] else "Features alone"


def methods(standings: Mapping[str, str] | None = None) -> dict[str, Method]:
    """Returns the methods by name, G-Prune first.

    Args:
        standings: of methods without vectors, by name; they decide groups.
    """
    classes: dict[str, tuple[str, ast.ClassDef]] = {}
    for path in sorted((ROOT / "gprune" / "pruners").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                classes[node.name] = (module, node)
    found = []
    for cls, (module, node) in classes.items():
        name = assigned(node).get("name")
        if isinstance(name, str):
            summary = (ast.get_docstring(node) or "").partition("\n")[0]
            facts = FACTS | inherited(node, classes)
            found.append(Method(name, module, cls, summary, facts, (standings or {}).get(name, "")))
    found.sort(key=lambda method: (method.name != "gprune", method.name))
    return {method.name: method for method in found}


def assigned(node: ast.ClassDef) -> dict[str, Any]:
    """Returns the values of a class's annotated attributes in `FACTS` that are literals."""
    values = {}
    for line in node.body:
        match line:
            case ast.AnnAssign(target=ast.Name(id=attribute), value=ast.expr() as value):
                if attribute in FACTS:
                    with contextlib.suppress(ValueError):  # no literal
                        values[attribute] = ast.literal_eval(value)
    return values


def inherited(
    node: ast.ClassDef, classes: Mapping[str, tuple[str, ast.ClassDef]]
) -> dict[str, Any]:
    """Returns `assigned` of a class and of its bases, of which earlier ones come first."""
    values: dict[str, Any] = {}
    for base in reversed(node.bases):
        if isinstance(base, ast.Name) and base.id in classes:
            values |= inherited(classes[base.id][1], classes)
    return values | assigned(node)


def grouped(found: Mapping[str, Method]) -> dict[str, list[Method]]:
    """Returns the methods under each heading of `GROUPS`."""
    return {
        heading: [method for method in found.values() if method.group == heading]
        for heading in GROUPS
    }


def method_page(method: Method, badge: str) -> str:
    """Returns a method's page in Markdown.

    Args:
        method: the method.
        badge: the line about its fidelity.
    """
    written = DOCS / "methods" / f"{method.name}.md"
    if written.is_file():
        head = f"{written.read_text()}\n## Reference\n\n{badge}\n"
    else:
        head = f"# {method.name}\n\n{badge}\n\n{usage(method)}"
    options = "    options:\n      members: false\n      show_bases: false\n"
    return f"{head}\n::: {method.module}.{method.cls}\n{options}\n{results(method.name)}"


def usage(method: Method) -> str:
    """Returns a snippet that prunes a model with a method."""
    return (
        f"```python\nfrom gprune import {method.cls}\n\n"
        f"with {method.cls}(keep=0.36)(model) as pruned:\n"
        "    output = model.generate(**inputs)\n```\n\n"
        f'By name: `gprune.make("{method.name}", keep=0.36)`, or `--method {method.name}` of '
        "`gprune run` and `gprune eval`.\n"
    )


def leaderboard() -> tuple[list[str], dict[str, list[str]]]:
    """Returns the budgets of the leaderboard, and each method's cells by name."""
    lines = LEADERBOARD.read_text().splitlines()
    after = lines.index("## Macro accuracy")
    start = next(i for i in range(after, len(lines)) if lines[i].startswith("| method |"))
    table = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines[start : lines.index("", start)]
    ]
    return table[0][1:], {row[0]: row[1:] for row in table[2:]}


def results(name: str) -> str:
    """Returns the method's row of the leaderboard, or nothing where it was not measured."""
    keeps, rows = leaderboard()
    if name not in rows:
        return ""
    text = (
        "## Results\n\nRank and macro accuracy in % on the shipped tiny model, by share of tokens "
        "kept; [the leaderboard](../leaderboard.md) has the other methods.\n\n"
        "| keep | rank and accuracy |\n|---|---|\n"
    )
    cells = zip(keeps, rows[name], strict=True)
    return text + "".join(f"| {keep} | {cell} |\n" for keep, cell in cells if cell)


def overview(found: Mapping[str, Method], agreement: Mapping[str, str]) -> str:
    """Returns the page with a table of all methods.

    Args:
        found: the methods.
        agreement: with released code, by name; empty for methods without vectors.
    """
    keeps, rows = leaderboard()
    at = [keeps.index(keep) for keep in ("0.36", "0.1")]
    full = LEADERBOARD.read_text().partition("- **All tokens**: ")[2].partition(" ")[0]
    lines = [
        f"# {len(found)} methods",
        "",
        "Start with `weighted_cover` in transformers and `graph_cover` (`recommended`) elsewhere; "
        "[which method?](../which_method.md) says why. *0.36* and *0.1* are macro accuracy in % on "
        f"the shipped tiny model at that keep, where all tokens reach {full} "
        "([leaderboard](../leaderboard.md)); *as released* counts the golden vectors of the "
        "authors' code that a method agrees with ([fidelity](../fidelity.md)). `gprune methods` "
        "prints a list with all options.",
    ]
    for heading, members in grouped(found).items():
        lines += ["", f"## {heading}", "", GROUPS[heading], ""]
        lines += ["| method | what it keeps | 0.36 | 0.1 | as released |", "|---|---|---|---|---|"]
        for method in members:
            cells = rows.get(method.name, [""] * len(keeps))
            accuracy = [cells[i].partition("·")[2].partition("(")[0].strip() for i in at]
            row = [
                f"[{method.name}]({method.name}.md)",
                method.summary,
                *accuracy,
                agreement.get(method.name, ""),
            ]
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def menu(found: Mapping[str, Method]) -> str:
    """Returns the lines of the menu for the methods, a section for each heading."""
    lines = []
    for heading, members in grouped(found).items():
        lines.append(f"      - {heading}:\n")
        lines += [f"          - {method.name}: methods/{method.name}.md\n" for method in members]
    return "".join(lines)
