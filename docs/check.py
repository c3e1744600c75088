"""Checks the built site: python docs/check.py SITE

Fails on

- a link or picture whose target does not exist;
- a script, style sheet or picture that a page would load from a network;
- a command with a prompt, which copy buttons would copy;
- a word that search has to find and that no title has.
"""

from __future__ import annotations

import json
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a browser loads by itself, as opposed to a link that a reader follows.
LOADED = {("script", "src"), ("img", "src"), ("source", "src"), ("iframe", "src")}

# A prompt in a block of commands, as it is highlighted.
PROMPT = '<span class="gp">$ '

# What people search for first, and the page that search has to find by its title.
SEARCHED = {
    "streaming": "guides/streaming/",
    "LoRA": "guides/peft/",
    "pipeline": "guides/pipeline/",
    "GPU": "guides/gpu/",
    "Trainer": "guides/trainer/",
    "device_map": "guides/gpu/",
}


class Page(HTMLParser):
    """The ids of a page, and what it links to and loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids |= {str(values[name]) for name in ("id", "name") if values.get(name)}
        for name in ("href", "src"):
            target = values.get(name)
            if target is None:
                continue
            style = tag == "link" and "stylesheet" in (values.get("rel") or "")
            (self.loaded if (tag, name) in LOADED or style else self.links).append(target)


def problems(site: Path) -> list[str]:
    """Returns a line for every broken link, for all that a network loads, and for prompts."""
    texts = {path.resolve(): path.read_text() for path in site.rglob("*.html")}
    pages = {path: Page(text) for path, text in texts.items()}
    found = [
        f"{path.relative_to(site.resolve())} has a command with a prompt"
        for path, text in texts.items()
        if PROMPT in text
    ]
    for path, page in pages.items():
        if path.name == "404.html":
            continue  # its links are absolute, since it is served at any address
        for target in page.loaded + page.links:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                if target in page.loaded and parts.scheme != "data":
                    found.append(f"{path.relative_to(site.resolve())} loads {target}")
            elif not exists(path, unquote(parts.path), unquote(parts.fragment), pages):
                found.append(f"{path.relative_to(site.resolve())} links to {target}")
    return found


def exists(page: Path, target: str, fragment: str, pages: dict[Path, Page]) -> bool:
    """Whether a relative link from a page leads to a file, and its fragment to an id."""
    path = (page.parent / target).resolve() if target else page
    path = path / "index.html" if path.is_dir() else path
    if not path.is_file():
        return False
    return not fragment or path not in pages or fragment in pages[path].ids


def not_found(site: Path) -> list[str]:
    """Returns a line for every word of `SEARCHED` that the title of its page does not have."""
    items = json.loads((site / "search.json").read_text())["items"]
    return [
        f"search for {word} does not find {page}"
        for word, page in SEARCHED.items()
        if not any(
            item["location"].split("#")[0] == page and word.lower() in item["title"].lower()
            for item in items
        )
    ]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    lines = problems(folder) + not_found(folder)
    if lines:
        sys.exit("\n".join(lines))
    print("links lead somewhere, no network is needed, copies have no prompt, search finds words")
