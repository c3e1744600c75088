"""Rules of structure that no linter checks: sizes, private names, import cycles between files.

Which room may import which is checked by import-linter, see pyproject.toml.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import gprune

PACKAGE = Path(gprune.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST_FILE = 400
LONGEST_FUNCTION = 40
# Begins the comment with the reason above a function that is longer.
REASON = "# Over 40 lines"


def module_of(file: Path) -> str:
    """The dotted name of a file of the package."""
    parts = ["gprune", *file.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts).removesuffix(".__init__")


MODULES = {module_of(file): file for file in FILES}


def imports_of(file: Path) -> Iterator[tuple[str, list[str]]]:
    """Modules of gprune that a file imports when it is imported, with the names it takes."""
    stack: list[ast.AST] = [ast.parse(file.read_text())]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gprune"):
            yield node.module or "", [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("gprune"):
                    yield alias.name, []
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            stack += ast.iter_child_nodes(node)


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_files_are_short(file):
    lines = len(file.read_text().splitlines())
    assert lines <= LONGEST_FILE, f"{lines} lines: split the file along its jobs"


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_functions_are_short_or_say_why_not(file):
    text = file.read_text()
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        reason = ""
        for line in reversed(lines[: first - 1]):
            if not line.strip().startswith("#"):
                break
            reason = line.strip()
        assert length <= LONGEST_FUNCTION or reason.startswith(REASON), (
            f"{node.name} has {length} lines: split it, or give the reason in a comment above it "
            f"that begins with {REASON!r}"
        )


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_private_names_stay_in_their_module(file):
    tree = ast.parse(file.read_text())
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gprune"):
            taken = [alias.name for alias in node.names]
            private = [name for name in taken if name.startswith("_") and name[:2] != "__"]
            assert not private, f"{private} of {node.module} are private"
            modules |= {name for name in taken if f"{node.module}.{name}" in MODULES}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            foreign = node.value.id in modules and node.attr.startswith("_")
            assert not foreign or node.attr.startswith("__"), f"{ast.unparse(node)} is private"


def test_no_import_cycles_between_files():
    def target(module: str, name: str) -> str:
        return f"{module}.{name}" if f"{module}.{name}" in MODULES else module

    edges = {
        module: {
            target(imported, name)
            for imported, names in imports_of(file)
            for name in (names or [""])
            if target(imported, name) in MODULES
        }
        for module, file in MODULES.items()
    }
    # Peels off modules that import no other; what is left hangs in a cycle.
    left = {module: targets - {module} for module, targets in edges.items()}
    while free := [module for module, targets in left.items() if not targets]:
        for module in free:
            del left[module]
        for targets in left.values():
            targets.difference_update(free)
    assert not left, f"in cycles, or above one: {sorted(left)}"
