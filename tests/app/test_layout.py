"""The page on a phone and in dark mode: nothing is off the screen, and everything can be read."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from gprune.app.page import build
from gprune.ask.comparison import SharedModel
from gprune.ask.links import ComparisonSettings
from tests.app.pages import (
    METHODS,
    ask,
    load_pictures,
    screenshot,
    upload,
    wait_for_answers,
)

PHONE = 390  # CSS pixels, an iPhone's width

# The visible elements that reach out of the screen, or out of a box that cuts them off, sideways.
CUT_OFF = """() => {
  const out = [];
  for (const element of document.querySelectorAll("body *")) {
    const box = element.getBoundingClientRect();
    // Gradio puts texts for screen readers into boxes of one pixel, and a label's input under it.
    if (!element.checkVisibility({checkVisibilityCSS: true, checkOpacity: true})) continue;
    if (box.width < 2 || box.height < 2 || element.closest("svg svg, svg *, option")) continue;
    let [left, right] = [0, innerWidth];
    for (let parent = element.parentElement; parent; parent = parent.parentElement) {
      const style = getComputedStyle(parent);
      if (style.overflowX !== "visible") {
        const edge = parent.getBoundingClientRect();
        [left, right] = [Math.max(left, edge.left), Math.min(right, edge.right)];
      }
    }
    if (box.left < left - 1 || box.right > right + 1) {
      const name = `${element.tagName}#${element.id}.${element.className}`;
      out.push(`${name} ${box.left}..${box.right} in ${left}..${right}`);
    }
    const text = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (text && element.scrollWidth > element.clientWidth + 1 && element.clientWidth > 0)
      out.push(`text of ${element.tagName}#${element.id}.${element.className}`);
  }
  return out;
}"""

# Colour, and background under it, as [r, g, b] between 0 and 255, of the first match of a selector.
COLORS = """([selector, property]) => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = (text) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = text;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const over = (top, below) => {
    const alpha = top[3] / 255;
    return [0, 1, 2].map((i) => alpha * top[i] + (1 - alpha) * below[i]);
  };
  const element = [...document.querySelectorAll(selector)].find((one) => one.checkVisibility());
  const layers = [];
  let opacity = 1;
  for (let one = element; one; one = one.parentElement) {
    const style = getComputedStyle(one);
    opacity *= Number(style.opacity);
    if (one !== element || property === "color") layers.unshift(rgba(style.backgroundColor));
  }
  let below = [255, 255, 255];
  for (const layer of layers) below = over(layer, below);
  const color = rgba(getComputedStyle(element)[property]);
  color[3] *= opacity;
  return [over(color, below), below];
}"""


def luminance(color: list[float]) -> float:
    """Relative luminance of sRGB, as WCAG 2.2 defines it."""
    parts = [one / 255 for one in color]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(page: Page, selector: str, prop: str = "color") -> float:
    """WCAG 2.2's contrast ratio of an element with what is below it."""
    first, second = sorted(luminance(color) for color in page.evaluate(COLORS, [selector, prop]))
    return (second + 0.05) / (first + 0.05)


def check_widths(page: Page) -> None:
    """Checks that the page is as wide as the screen, and that nothing reaches out of it."""
    load_pictures(page)
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width == page.viewport_size["width"]
    assert page.evaluate(CUT_OFF) == []


@pytest.mark.parametrize("width", [320, PHONE, 768, 1400])
def test_nothing_is_off_the_screen(visit, width, tmp_path):
    page = visit(width=width)
    wait_for_answers(page, 4)
    check_widths(page)
    page.locator("#show input[value=scores]").check()
    check_widths(page)
    screenshot(page, f"width-{width}")
    (tmp_path / "no_picture_but_a_very_long_name_of_a_file_without_any_blank.png").write_text("no")
    upload(page, next(tmp_path.iterdir()))
    expect(page.locator("#picture-message")).to_contain_text("cannot be read")
    check_widths(page)


def test_long_texts_and_many_bad_fields_fit_a_phone(visit):
    page = visit(f"?keep=x&methods=nosuch&scene=z&question={'w' * 501}", width=PHONE)
    wait_for_answers(page, 4)
    expect(page.locator("#link-message li")).to_have_count(4)
    check_widths(page)
    ask(page, "is there a " + "supercalifragilistic" * 10)
    expect(page.locator("#status")).to_contain_text("does not know")
    check_widths(page)


def test_a_phone_can_do_everything(visit):
    page = visit(width=PHONE)
    wait_for_answers(page, 4)
    page.locator("#examples button.thumbnail-item").nth(1).click()
    expect(page.locator("#answers")).to_be_hidden()
    page.locator("#ask").click()
    wait_for_answers(page, 4)
    first, second = (page.locator(f"#overlay-{index}").bounding_box() for index in (0, 1))
    assert second["width"] > 150  # two pictures side by side, large enough to click a patch
    assert first["x"] > second["x"]  # the first beside what the model sees, the second below it
    heads = page.locator("#table tbody tr").nth(1).locator("td").nth(2)
    assert heads.evaluate("e => getComputedStyle(e, '::before').content") == '"multiply-adds"'


def test_the_link_is_beside_the_button(visit):
    page = visit(width=1400)
    wait_for_answers(page, 4)
    button, link = (page.locator(name).bounding_box() for name in ("#ask", "#link"))
    assert link["x"] > button["x"] + button["width"]
    assert abs(link["y"] - button["y"]) < 5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_and_charts_can_be_read(visit, scheme):
    """WCAG 2.2 asks for 4.5 between text and background (1.4.3) and 3 for graphics (1.4.11)."""
    page = visit(scheme=scheme)
    wait_for_answers(page, 4)
    screenshot(page, scheme)
    for text in (
        *(".headline p", "#table .expected", "#table thead th", "#table tbody th"),
        *("#table .answer.same", "#table .answer.other", "#table .verdict", "#table .count"),
        *(".title", "#words", "#get-json"),
    ):
        if page.locator(text).count():
            assert contrast(page, text) >= 4.5, text
    assert page.locator("#table .answer.same, #table .answer.other").count()
    bar = "#table .bar span"
    assert contrast(page, bar, "backgroundColor") >= 3  # with the rest of the bar
    background = page.evaluate(COLORS, ["#table .count", "color"])[1]
    filled = page.evaluate(COLORS, [bar, "backgroundColor"])[0]
    low, high = sorted((luminance(background), luminance(filled)))
    assert (high + 0.05) / (low + 0.05) >= 3
    ask(page, "where is my dog?")
    expect(page.locator("#status .message")).to_be_visible()
    assert contrast(page, "#status .message") >= 4.5


def test_the_first_methods_offered(tiny):
    page = build(SharedModel(*tiny, "tiny", tiny=True), 10**6)
    (methods,) = (one for one in page.blocks.values() if one.elem_id == "methods")
    assert methods.value == list(METHODS) == list(ComparisonSettings.methods)
    assert "weighted_cover" in [name for name, _ in methods.choices[:4]]
