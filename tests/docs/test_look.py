"""The built site in Chromium: `make docs`, then this file. Screenshots are written to out/look.

Skipped where Playwright (requirements-app.lock), Chromium or the built site is missing.
"""

from __future__ import annotations

import functools
import http.server
import importlib.util
import os
import shutil
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SITE = ROOT / "site"
SCREENSHOTS = ROOT / "out" / "look"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
WIDTHS = (1400, 390)
# Pixels; longer pages are hard to find anything in.
TALLEST = 38_000
SHOWN = (
    "",
    "install/",
    "transformers/",
    "guides/chat/",
    "guides/threads/",
    "notebooks/choosing/",
    "methods/",
    "methods/gprune/",
    "api/",
    "leaderboard/",
)

missing = next(
    (
        reason
        for reason, there in (
            (
                "playwright is not installed: make .venv/app/ready",
                importlib.util.find_spec("playwright"),
            ),
            ("there is no Chromium", CHROMIUM),
            ("there is no site: make docs", (SITE / "index.html").is_file()),
        )
        if not there
    ),
    None,
)
pytestmark = pytest.mark.skipif(missing is not None, reason=str(missing))

# Tables that are wider than their place and cannot be scrolled there.
CUT_TABLES = """() => [...document.querySelectorAll('.md-content table')].filter(table => {
    const right = table.getBoundingClientRect().right;
    for (let box = table.parentElement; box; box = box.parentElement) {
        const style = getComputedStyle(box).overflowX;
        if (style === 'auto' || style === 'scroll') return false;
        if (right > box.getBoundingClientRect().right + 1 && style === 'hidden') return true;
    }
    return right > innerWidth;
}).map(table => table.innerText.slice(0, 60))"""
# How far a table reaches beyond the text around it.
BEYOND = """() => Math.max(0, ...[...document.querySelectorAll('.md-content table')].map(table =>
    table.getBoundingClientRect().right -
    document.querySelector('.md-content').getBoundingClientRect().right))"""


@pytest.fixture(scope="module")
def address():
    """The address of a server of the built site."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=SITE)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # Chromium refuses its own sandbox to root, which containers run as.
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def open_pages(browser, width: int, scheme: str = "light"):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    return context.new_page()


@pytest.mark.parametrize("width", WIDTHS)
def test_every_page_fits(browser, address, width):
    page = open_pages(browser, width)
    for file in sorted(SITE.rglob("index.html")):
        name = file.parent.relative_to(SITE).as_posix()
        page.goto(f"{address}{'' if name == '.' else f'{name}/'}")
        size = "() => [document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
        wide, tall = page.evaluate(size)
        assert wide <= width, f"{name} is {wide} pixels wide"
        assert tall <= TALLEST, f"{name} is {tall} pixels tall"
        assert page.evaluate(CUT_TABLES) == [], name
        if width == max(WIDTHS):
            assert page.evaluate(BEYOND) <= 1, name


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_screenshots(browser, address, width, scheme):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page = open_pages(browser, width, scheme)
    for name in SHOWN:
        page.goto(address + name)
        file = SCREENSHOTS / f"{name.strip('/').replace('/', '_') or 'home'}-{width}-{scheme}.png"
        page.screenshot(path=file)
        assert file.stat().st_size > 5_000
    hero = "hero_dark.png" if scheme == "dark" else "hero.png"
    page.goto(address)
    shown = page.locator(".hero img:visible")
    assert shown.count() == 1
    assert hero in shown.get_attribute("src")


def test_copied_commands_have_no_prompt(browser, address):
    page = open_pages(browser, max(WIDTHS))
    for name in ("", "install/", "serving/"):
        page.goto(address + name)
        page.wait_for_selector(".md-code__button")
        for button in page.locator(".md-code__button").all():
            if button.is_visible():
                button.click()
                page.wait_for_function("navigator.clipboard.readText().then(text => text !== '')")
                assert not page.evaluate("navigator.clipboard.readText()").startswith("$ ")


@pytest.mark.parametrize("word", ["streaming", "LoRA", "pipeline", "GPU"])
def test_search_finds(browser, address, word):
    page = open_pages(browser, max(WIDTHS))
    page.goto(address)
    page.wait_for_timeout(500)
    page.keyboard.press("Control+k")
    page.keyboard.type(word)
    page.wait_for_timeout(1500)
    guide = {"LoRA": "LoRA (PEFT)", "GPU": "bfloat16 on a GPU"}.get(word, word.capitalize())
    assert guide in page.evaluate(FOUND)


# The text of search results, which stand in a shadow root.
FOUND = """() => {
    const texts = [];
    const visit = node => {
        if (node.shadowRoot) { texts.push(node.shadowRoot.textContent); visit(node.shadowRoot); }
        for (const child of node.children || []) visit(child);
    };
    visit(document.body);
    return texts.join('\\n');
}"""
