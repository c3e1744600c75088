"""Writes the source of the site: python docs/generate.py OUT, then zensical build -f OUT/mkdocs.yml

OUT gets mkdocs.yml and the pages of docs/, and in addition:

- a page for every method, made from its docstring and its row of the leaderboard; it begins with
  docs/methods/<name>.md where that exists;
- these pages in the navigation, under "Methods";
- the cards of the shipped models, which lie beside their weights.

A method is found in the source, without importing it: a class in gprune/pruners with a `name`.
"""

from __future__ import annotations

import ast
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
LEADERBOARD = DOCS / "leaderboard.md"
CARDS = {
    "tiny_card.md": "gprune/tinyvlm/checkpoint/README.md",
    "tiny_siglip_card.md": "gprune/tinyvlm/checkpoint_siglip/README.md",
}
# The line of mkdocs.yml that the methods' pages follow.
METHODS = "  - Methods:\n"


def methods() -> dict[str, tuple[str, str]]:
    """Returns each method's module and class by its name, G-Prune first."""
    found = {}
    folder = ROOT / "gprune" / "pruners"
    for path in sorted(folder.rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and (name := method_name(node)):
                found[name] = (module, node.name)
    return dict(sorted(found.items(), key=lambda item: (item[0] != "gprune", item[0])))


def method_name(node: ast.ClassDef) -> str | None:
    """Returns the value of a class's annotated `name`, or None where it has none."""
    for line in node.body:
        match line:
            case ast.AnnAssign(target=ast.Name(id="name"), value=ast.Constant(value=str(name))):
                return name
    return None


def method_page(name: str, module: str, cls: str) -> str:
    """Returns a method's page in Markdown."""
    written = DOCS / "methods" / f"{name}.md"
    head = f"{written.read_text()}\n## Reference\n" if written.is_file() else f"# {name}\n"
    options = "    options:\n      members: false\n      show_bases: false\n"
    return f"{head}\n::: {module}.{cls}\n{options}\n{results(name)}"


def results(name: str) -> str:
    """Returns the method's row of the leaderboard, or nothing where it was not measured."""
    lines = LEADERBOARD.read_text().splitlines()
    after = lines.index("## Macro accuracy")
    start = next(i for i in range(after, len(lines)) if lines[i].startswith("| method |"))
    table = lines[start : lines.index("", start)]
    rows = [line for line in table if line.startswith(f"| {name} |")]
    if not rows:
        return ""
    text = (
        "## Results\n\nRank and macro accuracy in % on the shipped tiny model, by share of tokens "
        "kept; [the leaderboard](../leaderboard.md) has the other methods.\n\n"
    )
    return text + "\n".join([*table[:2], *rows]) + "\n"


def settings() -> str:
    """Returns mkdocs.yml with every method's page in the navigation."""
    text = (ROOT / "mkdocs.yml").read_text()
    before, line, after = text.partition(METHODS)
    if not line:
        raise SystemExit(f"mkdocs.yml lacks the line {METHODS.strip()!r}")
    pages = "".join(f"      - {name}: methods/{name}.md\n" for name in methods())
    section, end = after.split("\n  - ", 1)
    return f"{before}{line}{section}\n{pages}  - {end}".replace("@ROOT@", str(ROOT))


def generate(out: Path) -> None:
    """Writes the site's settings and pages into a folder, which is emptied first."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(DOCS, out / "docs", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for name, (module, cls) in methods().items():
        (out / "docs" / "methods" / f"{name}.md").write_text(method_page(name, module, cls))
    for page, card in CARDS.items():
        _, _, text = (ROOT / card).read_text().split("---\n", 2)  # without its front matter
        (out / "docs" / page).write_text(text)
    (out / "mkdocs.yml").write_text(settings())


if __name__ == "__main__":
    generate(Path(sys.argv[1]))
