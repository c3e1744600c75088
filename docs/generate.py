"""Writes the source of the site: python docs/generate.py OUT, then zensical build -f OUT/mkdocs.yml

Without OUT it writes the tables of docs/fidelity.md anew: from docs/fidelity.toml, the table of
sources beside the golden vectors, and the counts that `python -m tests.parity` stored.

OUT gets mkdocs.yml and the pages of docs/, and in addition:

- a page for every method, an overview, and both in the menu (docs/method_pages.py);
- a page for every notebook (docs/cells.py);
- the cards of the shipped models, which lie beside their weights.

Pages are changed on the way: commands lose their prompt, pages with wide tables their table of
contents, and the start page gets a link to the repository.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import cells
from method_pages import DOCS, ROOT, Method, menu, method_page, methods, overview

SOURCES = ROOT / "tests" / "parity" / "vectors" / "SOURCES.md"
COUNTS = ROOT / "benchmarks" / "results" / "parity.json"
CARDS = {
    "tiny_card.md": "gprune/tinyvlm/checkpoint/README.md",
    "tiny_siglip_card.md": "gprune/tinyvlm/checkpoint_siglip/README.md",
}
# The line of mkdocs.yml in whose place the methods' pages stand.
METHODS = "      # docs/generate.py: methods\n"
# The line of a page in whose place the link to the repository stands.
REPOSITORY = "<!-- docs/generate.py: repository -->"
# A block of commands, with the blanks before it.
CONSOLE = re.compile(r"^( *)```console\n(.*?)^\1```\n", re.MULTILINE | re.DOTALL)
# Columns from which a table needs the whole page.
WIDE = 8

# Between these lines of docs/fidelity.md stands what is written here.
FIDELITY = ("<!-- docs/generate.py begins -->\n", "<!-- docs/generate.py ends -->")


def fidelity() -> dict[str, dict[str, Any]]:
    """Returns what docs/fidelity.md says of each method, G-Prune first.

    ``exact`` and ``vectors`` are counts; ``source``, ``commit`` and ``licence`` are of the released
    code; the rest stands in docs/fidelity.toml. A method without vectors has a ``standing``.
    """
    entries: dict[str, dict[str, Any]] = tomllib.loads((DOCS / "fidelity.toml").read_text())
    for name, counted in json.loads(COUNTS.read_text()).items():
        entries[name] |= counted
    for name, source in sources().items():
        entries[name] |= source
    return entries


def sources() -> dict[str, dict[str, str]]:
    """Returns repository, commit and licence of each method's released code, from SOURCES.md."""
    lines = SOURCES.read_text().splitlines()
    start = lines.index("| method | repository: files | commit | licence |")
    found = {}
    for line in lines[start + 2 : lines.index("", start)]:
        names, files, commit, licence = (cell.strip() for cell in line.strip("|").split("|"))
        row = {"source": files.partition(":")[0], "commit": commit, "licence": licence}
        found |= {name.strip(): row for name in names.split(",")}
    return found


def badge(name: str) -> str:
    """Returns the line on a method's page that says what it was compared with."""
    entry = fidelity()[name]
    link = "([what was compared](../fidelity.md))"
    if "vectors" not in entry:
        return f"**{entry['standing']}** {link}"
    agreed = f"Agrees with the released code in {entry['exact']} of {entry['vectors']} vectors"
    with_settings = f", asked with {entry['settings']}" if "settings" in entry else ""
    return f"**{agreed}**{with_settings} {link}"


def fidelity_page() -> str:
    """Returns docs/fidelity.md with its tables written anew."""
    page = (DOCS / "fidelity.md").read_text()
    before, begins, rest = page.partition(FIDELITY[0])
    _, ends, after = rest.partition(FIDELITY[1])
    if not ends:
        raise SystemExit(f"docs/fidelity.md lacks the lines {' and '.join(FIDELITY)}")
    return before + begins + fidelity_tables() + ends + after


def fidelity_tables() -> str:
    """Returns how many vectors agree, and the tables of methods with vectors and without."""
    compared = {name: entry for name, entry in fidelity().items() if "vectors" in entry}
    alone = {name: entry for name, entry in fidelity().items() if "vectors" not in entry}
    exact, total = (sum(e[key] for e in compared.values()) for key in ("exact", "vectors"))
    lines = [
        f"**{len(compared)} methods agree in {exact} of {total} vectors.**",
        "",
        "| method | source of the facts | agrees | asked with | differs on purpose | published |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| [{name}](methods/{name}.md) | {e['source']} at {e['commit']}; {e['licence']} "
        f"| {e['exact']} of {e['vectors']} | {e.get('settings', 'defaults')} | {e['differs']} "
        f"| {e['published']} |"
        for name, e in compared.items()
    ]
    lines += ["", "Without vectors:", "", "| method | compared with | published |", "|---|---|---|"]
    lines += [
        f"| [{name}](methods/{name}.md) | {e['standing']} | {e.get('published', '')} |"
        for name, e in alone.items()
    ]
    return "\n".join(lines) + "\n"


def agreement() -> dict[str, str]:
    """Returns how many vectors each method agrees with, by name; none for those without."""
    return {
        name: f"{entry['exact']} of {entry['vectors']}"
        for name, entry in fidelity().items()
        if "vectors" in entry
    }


def repository() -> str | None:
    """Returns the address of the repository: of pyproject.toml, else of the remote it came from.

    None if neither has one that a browser can open.
    """
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("urls", {})
    if "Repository" in urls:
        return str(urls["Repository"])
    command = ["git", "-C", str(ROOT), "config", "--get", "remote.origin.url"]
    with contextlib.suppress(OSError):
        origin = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        return browsable(origin.strip())
    return None


def browsable(remote: str) -> str | None:
    """Returns the page of a git remote, without a password; None for a local folder."""
    address = re.fullmatch(
        r"(?:(?:https|ssh)://)?(?:[^@/]+@)?([\w.-]+\.\w+)[:/](.+?)(\.git)?/?", remote
    )
    return f"https://{address[1]}/{address[2]}" if address else None


def with_repository(page: str, address: str | None) -> str:
    """Returns a page with a link to the repository in its place."""
    link = "" if address is None else f"[Source code]({address}){{ .md-button }}\n"
    return page.replace(f"{REPOSITORY}\n", link)


def without_prompts(page: str) -> str:
    """Returns a page whose commands have no prompt, so that copy buttons copy none.

    Lines of a console block that are no commands become a block of text below them.
    """

    def block(match: re.Match[str]) -> str:
        indent, parts = match[1], []
        for line in match[2].splitlines():
            line = line.removeprefix(indent)
            language = "bash" if line.startswith("$ ") else "text"
            if not parts or parts[-1][0] != language:
                parts.append((language, []))
            parts[-1][1].append(line.removeprefix("$ "))
        return "\n".join(
            "".join(f"{indent}{line}\n" for line in (f"```{language}", *lines, "```"))
            for language, lines in parts
        )

    return CONSOLE.sub(block, page)


def without_contents(page: str) -> str:
    """Returns a page with a wide table without its table of contents, which takes the room."""
    rows = [line for line in page.splitlines() if line.lstrip().startswith("|")]
    widest = max((line.count("|") - 1 for line in rows), default=0)
    return f"---\nhide: [toc]\n---\n\n{page}" if widest >= WIDE else page


def settings(found: dict[str, Method], address: str | None) -> str:
    """Returns mkdocs.yml with every method's page in the menu."""
    text = (ROOT / "mkdocs.yml").read_text()
    before, line, after = text.partition(METHODS)
    if not line:
        raise SystemExit(f"mkdocs.yml lacks the line {METHODS.strip()!r}")
    text = before + menu(found) + after
    if address is not None:
        text = f"repo_url: {address}\nrepo_name: {address.rsplit('/', 1)[1]}\n{text}"
    return text.replace("@ROOT@", str(ROOT))


def generate(out: Path) -> None:
    """Writes the site's settings and pages into a folder, which is emptied first."""
    shutil.rmtree(out, ignore_errors=True)
    ignored = shutil.ignore_patterns("*.py", "*.toml", "__pycache__", ".ipynb_checkpoints")
    shutil.copytree(DOCS, out / "docs", ignore=ignored)
    pages = {
        str(path.relative_to(DOCS)): path.read_text()
        for path in DOCS.rglob("*.md")
        if ".ipynb_checkpoints" not in path.parts
    }
    pages["fidelity.md"] = fidelity_page()
    found = methods({name: entry.get("standing", "") for name, entry in fidelity().items()})
    for name, method in found.items():
        pages[f"methods/{name}.md"] = method_page(method, badge(name))
    pages["methods/index.md"] = overview(found, agreement())
    for name, card in CARDS.items():
        _, _, pages[name] = (ROOT / card).read_text().split("---\n", 2)  # without front matter
    for notebook in sorted(cells.NOTEBOOKS.glob("*.ipynb")):
        pages[f"notebooks/{notebook.stem}.md"] = cells.page(notebook)
    address = repository()
    for name, page in pages.items():
        # The page of a notebook stands in its place; it links to the file.
        page = re.sub(r"(\]\(\S*notebooks/\w+)\.ipynb\)", r"\1.md)", page)
        page = without_contents(without_prompts(with_repository(page, address)))
        (out / "docs" / name).write_text(page)
    (out / "mkdocs.yml").write_text(settings(found, address))


if __name__ == "__main__":
    if sys.argv[1:]:
        generate(Path(sys.argv[1]))
    else:
        (DOCS / "fidelity.md").write_text(fidelity_page())
