"""What the tests of the page share: reading a page, and using it as a visitor does."""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect

import gprune
from gprune.app import launch, temporary_files
from gprune.ask.answers import answer
from gprune.ask.comparison import SharedModel
from gprune.ask.links import scene_picture

SCREENSHOTS = Path(__file__).parents[2] / "out" / "app"
TIMEOUT = 60_000  # milliseconds, for a busy machine
NUMBER = "what number is written in the image?"
# What the page compares at first.
METHODS = ("gprune", "graph_cover", "weighted_cover", "random")


def free_port() -> int:
    """A port that is free now; Gradio's own choice is that of the command, which others test."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def served(shared: SharedModel) -> Iterator[str]:
    """Serves the page from a thread of this process; gives its address."""
    with temporary_files():
        page = launch(shared, "127.0.0.1", free_port(), 10, 40, block=False)
        try:
            yield page.local_url
        finally:
            page.close()


def reference(tiny, scene: int, question: str, method: str, keep: float):
    """The outcome that the page has to show, from the library itself."""
    pruner = gprune.make(method, keep)
    return answer(*tiny, pruner, [scene_picture(scene)], question)


def rows(page: Page) -> dict[str, list[str]]:
    """The table: for each method its answer, tokens and savings."""
    table = {}
    for line in page.locator("#table tbody tr").all():
        cells = [cell.inner_text() for cell in line.locator("td").all()]
        text = line.locator(".answer").inner_text()
        table[line.locator("th").inner_text()] = [text, *cells[1:]]
    return table


def wait_for_answers(page: Page, methods: int) -> None:
    """Waits until all methods have answered and the graph and the downloads are there."""
    expect(page.locator("#table tbody tr")).to_have_count(methods + 1)
    expect(page.locator("#words")).to_contain_text("Token")
    expect(page.locator("#get-json")).to_be_enabled()


def picture(page: Page, name: str) -> Image.Image:
    """A picture as the browser got it."""
    source = page.locator(f"#{name} img").get_attribute("src")
    return Image.open(io.BytesIO(page.request.get(source).body())).convert("RGB")


def load_pictures(page: Page) -> None:
    """Scrolls to every picture: browsers load those below the fold only then."""
    for image in page.locator("img").all():
        if image.is_visible():
            image.scroll_into_view_if_needed()
            expect(image).to_have_js_property("complete", True)
    page.evaluate("scrollTo(0, 0)")


def screenshot(page: Page, name: str) -> None:
    """Writes a picture of the whole page."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    load_pictures(page)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


def click_token(page: Page, name: str, token: int) -> None:
    """Clicks the centre of one of the 16 x 16 patches."""
    box = page.locator(f"#{name} img").bounding_box()
    row, column = divmod(token, 16)
    position = {
        "x": box["width"] * (column + 0.5) / 16,
        "y": box["height"] * (row + 0.5) / 16,
    }
    page.locator(f"#{name} img").click(position=position)


def upload(page: Page, path: Path) -> None:
    """Puts a file in the place of the picture."""
    remove = page.locator("#picture button[aria-label='Remove Image']")
    if remove.count():
        remove.click()
    page.locator("#picture input[type=file]").set_input_files(path)


def ask(page: Page, question: str) -> None:
    """Types a question and presses the button."""
    box = page.locator("#question input, #question textarea")
    box.fill(question)
    box.press("Enter")
    box.blur()
    page.locator("#ask").click()
