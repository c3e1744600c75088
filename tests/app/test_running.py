"""A model that takes its time: progress, Cancel, free text. The tiny model, slowed down."""

from __future__ import annotations

import re
import threading
import time

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from gprune.app.running import run_comparison
from gprune.ask.comparison import Comparison, SharedModel
from gprune.ask.links import ComparisonSettings
from gprune.ask.progress import Progress
from gprune.tinyvlm import load
from tests.app.pages import NUMBER, ask, rows, screenshot, served, upload


class SlowModel:
    """A copy of the tiny model that is served as a model of the visitor's own.

    Attributes:
        seconds: how long each pass waits before its first layer.
        passes: passes so far.
    """

    def __init__(self) -> None:
        model, processor = load()
        self.seconds = 0.0
        self.passes = 0
        model.register_forward_pre_hook(self.wait)
        self.shared = SharedModel(model, processor, "slow/model", max_new_tokens=8)

    def wait(self, *_: object) -> None:
        self.passes += 1
        time.sleep(self.seconds)

    def rest(self) -> int:
        """Passes after which the model stands still, which it must within five seconds."""
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            before = self.passes
            time.sleep(3 * max(self.seconds, 0.1))
            if self.passes == before:
                return before
        raise AssertionError("the model still runs")


@pytest.fixture(scope="module")
def slow():
    return SlowModel()


@pytest.fixture(scope="module")
def slow_address(slow):
    with served(slow.shared) as url:
        yield url


@pytest.fixture
def visit_slow(visit, slow_address):
    """Opens the page of the slow model, and waits until the link is read."""

    def open_page(query: str = "") -> Page:
        page = visit(query, at=slow_address)
        expect(page.locator("#picture img")).to_be_visible()
        return page

    return open_page


@pytest.fixture(autouse=True)
def quick_again(slow):
    yield
    slow.seconds = 0.0


def test_progress_and_partial_answers(visit_slow, slow):
    page = visit_slow()
    slow.seconds = 1.0
    expect(page.locator("#ask")).to_be_enabled()
    expect(page.locator("#cancel")).to_be_disabled()
    assert not page.locator("#answers").is_visible()  # a large model answers when asked
    page.locator("#ask").click()
    expect(page.locator("#ask")).to_be_disabled()
    expect(page.locator("#cancel")).to_be_enabled()
    status = page.locator("#status")
    expect(status).to_contain_text("all tokens: answer 1 of 5")
    expect(status).to_contain_text("gprune: answer 2 of 5, 0 tokens")
    expect(status).to_contain_text(re.compile("gprune: answer 2 of 5, [1-3] token"))
    expect(status.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "20")
    expect(page.locator("#link textarea, #link input")).to_have_value("")
    expect(status).to_contain_text("graph_cover: answer 3 of 5")
    expect(page.locator("#table tbody tr")).to_have_count(2)  # the first is shown already
    screenshot(page, "progress")
    slow.seconds = 0.0
    expect(page.locator("#table tbody tr")).to_have_count(5)
    expect(page.locator("#get-json")).to_be_enabled()
    expect(status).to_have_text("")
    expect(page.locator("#ask")).to_be_enabled()


def test_cancel_stops_the_model_and_keeps_what_is_there(visit_slow, slow):
    page = visit_slow("?methods=random,gprune,graph_cover")
    slow.seconds = 0.4
    page.locator("#ask").click()
    expect(page.locator("#status")).to_contain_text("gprune: answer 3 of 4")
    page.locator("#cancel").click()
    expect(page.locator("#status")).to_contain_text("Cancelled")
    slow.rest()
    screenshot(page, "cancelled")
    expect(page.locator("#ask")).to_be_enabled()
    expect(page.locator("#cancel")).to_be_disabled()
    assert list(rows(page)) == ["all tokens", "random"]  # no row of gprune, nor one after it
    expect(page.locator("#get-json")).to_be_enabled()
    expect(page.locator("#words")).to_contain_text("Token")
    slow.seconds = 0.0
    page.locator("#ask").click()  # nothing of the cancelled one is left
    expect(page.locator("#table tbody tr")).to_have_count(4)
    expect(page.locator("#status")).to_have_text("")


def test_a_visitor_in_the_queue_can_cancel_too(visit_slow, slow):
    first, second = (visit_slow("?methods=random") for _ in range(2))
    slow.seconds = 0.5
    first.locator("#ask").click()
    expect(first.locator("#status")).to_contain_text("all tokens")
    second.locator("#ask").click()
    expect(second.locator("#status")).to_contain_text("waiting for the model")
    second.locator("#cancel").click()
    expect(second.locator("#status")).to_contain_text("Cancelled")
    expect(first.locator("#table tbody tr")).to_have_count(2)
    before = slow.rest()
    time.sleep(1)
    assert slow.passes == before
    expect(second.locator("#answers")).to_be_hidden()


@pytest.mark.parametrize("leave", ["a new picture", "closing the page"])
def test_the_model_stops_when_nobody_waits(visit_slow, slow, leave):
    page = visit_slow()
    slow.seconds = 0.4
    start = slow.passes
    page.locator("#ask").click()
    expect(page.locator("#status")).to_contain_text("gprune: answer 2 of 5")
    if leave == "closing the page":
        page.close()
    else:
        page.locator("#examples button.thumbnail-item").nth(1).click()
        expect(page.locator("#status")).to_have_text("")
        expect(page.locator("#answers")).to_be_hidden()
    before = slow.rest()
    time.sleep(1)
    assert slow.passes == before
    assert before - start < 12  # five answers take twenty passes
    if leave != "closing the page":
        expect(page.locator("#answers")).to_be_hidden()  # no late answer about the old picture


def test_a_model_of_ones_own_takes_free_text(visit_slow, slow, tmp_path):
    page = visit_slow()
    box = page.locator("#question textarea, #question input")
    question = "Which animal is this, and where does it look?"
    Image.new("RGB", (90, 60), "teal").save(tmp_path / "mine.png")
    box.fill(question)
    upload(page, tmp_path / "mine.png")
    expect(page.locator("#picture img")).to_be_visible()
    expect(page.locator("#picture-message")).to_be_hidden()  # nothing about drawn scenes
    expect(box).to_have_value(question)
    page.locator("#ask").click()
    expect(page.locator("#table .asked")).to_have_text(question)
    expect(page.locator("#table tbody tr")).to_have_count(5)
    page.locator("#examples button.thumbnail-item").nth(1).click()
    expect(page.locator("#answers")).to_be_hidden()
    expect(box).to_have_value(question)  # one's own question stays
    ask(page, " ")
    expect(page.locator("#status")).to_contain_text("Question is empty")


def test_closing_the_iterator_stops_the_model(slow):
    slow.seconds = 0.2
    steps = run_comparison(slow.shared, ComparisonSettings(), None, False)
    seen = [next(steps)]
    while not isinstance(seen[-1], Comparison):
        seen.append(next(steps))
    assert seen[0] == Progress(None, 0, 5)
    steps.close()
    before = slow.rest()
    assert before == slow.passes
    assert len(slow.shared.model._forward_pre_hooks) == 1  # the one that slows it down
    names = {thread.name for thread in threading.enumerate()}
    assert "gprune-comparison" not in names
    slow.seconds = 0.0
    *_, last = run_comparison(slow.shared, ComparisonSettings(NUMBER), None, False)
    assert [one.method for one in last.results] == list(ComparisonSettings.methods)


def test_errors_of_the_thread_are_raised(slow):
    with pytest.raises(ValueError, match="there is no picture"):
        list(run_comparison(slow.shared, ComparisonSettings(scene=None), None, False))
