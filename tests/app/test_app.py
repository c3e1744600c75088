"""The web page in a real browser: `make test-app`. Screenshots are written to out/app."""

from __future__ import annotations

import io
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

import gprune
from gprune import SimilarityGraph, viz
from gprune.ask.answers import answer
from gprune.ask.comparison import (
    SCENES,
    ComparisonSettings,
    SharedModel,
    scene_answers,
    scene_picture,
)
from gprune.ask.pictures import first_group, model_view
from gprune.tinyvlm import load

SCREENSHOTS = Path(__file__).parents[2] / "out" / "app"
TIMEOUT = 60_000  # milliseconds, for a busy machine
NUMBER = "what number is written in the image?"


@pytest.fixture(scope="module")
def address():
    """The address of a page that the command serves."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "gprune", "app", "--port", str(port)]
    limits = ["--max-megabytes", "1", "--max-megapixels", "2"]
    server = subprocess.Popen([*command, *limits])
    url = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(240):
            assert server.poll() is None, "the server has ended"
            try:
                urllib.request.urlopen(url).close()
                break
            except urllib.error.URLError:
                time.sleep(0.5)
        yield url
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def browser():
    executable = os.environ.get("CHROMIUM") or shutil.which("chromium")
    assert executable, "no Chromium: apt-get install --no-install-recommends chromium"
    with sync_playwright() as driver:
        # Chromium refuses its own sandbox to root, which containers run as.
        chromium = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Browser, address):
    """Opens pages; no request may go to another machine."""
    elsewhere: list[str] = []
    contexts = []

    def record_foreign(request):
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and parts.netloc != urlsplit(address).netloc:
            elsewhere.append(request.url)

    def open_page(query: str = "") -> Page:
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        context.on("request", record_foreign)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(TIMEOUT)
        page.goto(address + query)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert elsewhere == []


@pytest.fixture(scope="module")
def tiny():
    return load()


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
    expect(page.locator("#table tbody tr")).to_have_count(methods + 1, timeout=TIMEOUT)
    expect(page.locator("#words")).to_contain_text("Token", timeout=TIMEOUT)


def picture(page: Page, name: str) -> Image.Image:
    """A picture as the browser got it."""
    source = page.locator(f"#{name} img").get_attribute("src")
    return Image.open(io.BytesIO(page.request.get(source).body())).convert("RGB")


def screenshot(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
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


def test_a_first_visit_shows_an_answer_at_once(visit, tiny):
    page = visit()
    wait_for_answers(page, 3)
    screenshot(page, "first-visit")
    table = rows(page)
    outcome = reference(tiny, SCENES[0], NUMBER, "gprune", 0.25)
    assert list(table) == ["all tokens", "gprune", "graph_cover", "random"]
    assert table["all tokens"][0] == outcome.answer_full == "556"
    assert table["gprune"][0] == outcome.answer_pruned
    assert table["gprune"][1] == "64 of 256"
    assert table["gprune"][2] == f"−{outcome.saving.flops_saved:.0%}"
    assert re.fullmatch(r"[\d.]+ → [\d.]+ ms", table["gprune"][4])
    for column, method in enumerate(("gprune", "graph_cover", "random")):
        outcome = reference(tiny, SCENES[0], NUMBER, method, 0.25)
        seen = model_view(tiny[1], outcome, None)
        group = outcome.pruned.kept[0][0]
        drawn = viz.overlay(seen, group.indices, group.grid)
        assert picture(page, f"overlay-{column}").tobytes() == drawn.tobytes()
    scores = gprune.GPrune(0.25).score(first_group(tiny[0], outcome))
    assert picture(page, "scores-0").tobytes() == viz.score_map(seen, scores, (16, 16)).tobytes()
    expect(page.locator("#scores-1")).to_be_hidden()  # graph_cover chooses a set


def test_four_methods_the_graph_and_the_link(visit, tiny):
    page = visit()
    wait_for_answers(page, 3)
    page.locator("#examples button.thumbnail-item").nth(2).click()
    scene = SCENES[2]
    question = page.locator("#question input")
    expect(question).to_have_value(next(iter(scene_answers(scene))), timeout=TIMEOUT)
    question.click()
    page.get_by_role("option", name="what color is the circle?").click()
    page.locator("#methods input").click()
    page.get_by_role("option", name="divprune").click()
    page.keyboard.press("Escape")
    share = page.locator("#keep input[type=number]")
    share.fill("0.1")
    share.press("Enter")
    page.locator("#ask").click()
    expect(page.locator("#table .asked")).to_have_text("what color is the circle?")
    wait_for_answers(page, 4)
    table = rows(page)
    assert list(table) == ["all tokens", "gprune", "graph_cover", "random", "divprune"]
    for method in ("gprune", "graph_cover", "random", "divprune"):
        outcome = reference(tiny, scene, "what color is the circle?", method, 0.1)
        assert table[method][0] == outcome.answer_pruned
        assert table[method][1] == "25 of 256"
    assert scene_answers(scene)["what color is the circle?"] in page.inner_text("#table .expected")

    tokens = first_group(tiny[0], outcome)
    graph = SimilarityGraph.build(tokens.features, 0.5, 0.03)
    for name, token in (("overlay-0", 45), ("shown", 0), ("overlay-3", 255)):
        click_token(page, name, token)
        edges = int(graph.degree[token]) - 1
        expect(page.locator("#words")).to_contain_text(f"Token {token} ", timeout=TIMEOUT)
        expect(page.locator("#words")).to_contain_text(f"resembles {edges} of the other 255")
    seen = model_view(tiny[1], outcome, None)
    drawn = viz.graph_picture(seen, graph, 255, (16, 16))
    assert picture(page, "graph").tobytes() == drawn.tobytes()
    screenshot(page, "four-methods")

    threshold = page.locator("#threshold input[type=number]")
    threshold.fill("0.9")
    threshold.press("Enter")
    threshold.blur()
    edges = int(SimilarityGraph.build(tokens.features, 0.9, 0.03).degree[255]) - 1
    expect(page.locator("#words")).to_contain_text(f"resembles {edges} of", timeout=TIMEOUT)

    link = page.locator("#link textarea, #link input").input_value()
    assert link == page.url
    assert parse_qs(urlsplit(link).query)["keep"] == ["0.1"]
    other = visit("?" + urlsplit(link).query)
    wait_for_answers(other, 4)
    expect(other.locator("#question input")).to_have_value("what color is the circle?")
    expect(other.locator("#keep input[type=number]")).to_have_value("0.1")
    again = rows(other)
    assert {name: cells[:2] for name, cells in again.items()} == {
        name: cells[:2] for name, cells in table.items()
    }


def test_an_uploaded_picture(visit, tmp_path, tiny):
    page = visit()
    wait_for_answers(page, 3)
    scene_picture(SCENES[1]).resize((640, 480)).save(tmp_path / "mine.jpg", quality=95)
    upload(page, tmp_path / "mine.jpg")
    ask(page, "where is my dog?")
    expect(page.get_by_text("does not know: my, dog")).to_be_visible(timeout=TIMEOUT)
    ask(page, "what color is the ring?")
    expect(page.locator("#table .asked")).to_have_text("what color is the ring?", timeout=TIMEOUT)
    wait_for_answers(page, 3)
    screenshot(page, "own-picture")
    assert page.locator("#table .expected").count() == 0
    with Image.open(tmp_path / "mine.jpg") as stored:
        outcome = answer(
            *tiny, gprune.GPrune(0.25), [stored.convert("RGB")], "what color is the ring?"
        )
    assert rows(page)["gprune"][0] == outcome.answer_pruned
    assert parse_qs(urlsplit(page.url).query, keep_blank_values=True)["scene"] == [""]


def upload(page: Page, path: Path) -> None:
    remove = page.locator("#picture button[aria-label='Remove Image']")
    if remove.count():
        remove.click()
    page.locator("#picture input[type=file]").set_input_files(path)
    page.wait_for_timeout(300)


def ask(page: Page, question: str) -> None:
    box = page.locator("#question input")
    box.fill(question)
    box.press("Enter")
    box.blur()
    page.locator("#ask").click()


def make_bad_files(folder: Path) -> dict[str, str]:
    """Writes files that cannot be used and returns what the page says about each."""
    Image.new("RGB", (300, 300), "red").save(folder / "whole.png")
    (folder / "truncated.png").write_bytes((folder / "whole.png").read_bytes()[:200])
    Image.new("1", (3000, 3000)).save(folder / "huge.png")
    (folder / "words.png").write_text("no picture")
    return {
        "truncated.png": "cannot be read",
        "huge.png": "3000 x 3000 pixels are more than 2000000",
        "words.png": "it is none of PNG, JPEG",
    }


def test_bad_uploads_are_refused_and_the_page_still_works(visit, tmp_path, address):
    page = visit()
    wait_for_answers(page, 3)
    for name, sentence in make_bad_files(tmp_path).items():
        upload(page, tmp_path / name)
        page.locator("#ask").click()
        message = page.get_by_text(sentence).first
        expect(message).to_be_visible(timeout=TIMEOUT)
        assert message.inner_text().startswith(f"image '{name}' cannot be read: ")
    screenshot(page, "bad-uploads")
    noise = torch.randint(0, 256, (800, 800, 3), dtype=torch.uint8).numpy()
    Image.fromarray(noise).save(tmp_path / "heavy.png")  # does not compress: 1.9 MB
    upload(page, tmp_path / "heavy.png")
    expect(page.get_by_text("exceed the maximum allowed size").first).to_be_visible(timeout=TIMEOUT)
    response = page.request.post(  # past the page, which checks on its own
        f"{address}gradio_api/upload",
        multipart={
            "files": {
                "name": "heavy.png",
                "mimeType": "image/png",
                "buffer": (tmp_path / "heavy.png").read_bytes(),
            }
        },
    )
    assert response.status == 413
    page.locator("#examples button.thumbnail-item").nth(1).click()
    expect(page.locator("#question input")).to_have_value(
        next(iter(scene_answers(SCENES[1]))), timeout=TIMEOUT
    )
    page.locator("#ask").click()
    right = scene_answers(SCENES[1])[NUMBER]
    expect(page.locator("#table .expected")).to_contain_text(right, timeout=TIMEOUT)
    wait_for_answers(page, 3)
    assert rows(page)["all tokens"][0] == right


def test_a_bad_link_gives_a_message_and_the_defaults(visit):
    page = visit("?keep=7.5&methods=gprune")
    expect(page.get_by_text("keep=7.5").first).to_be_visible(timeout=TIMEOUT)
    wait_for_answers(page, 3)
    expect(page.locator("#keep input[type=number]")).to_have_value("0.25")


def test_html_in_a_question_is_not_executed(visit):
    page = visit("?question=%3Cimg+src%3Dx+onerror%3Ddocument.title%3D1%3E")
    expect(page.get_by_text("does not know").first).to_be_visible(timeout=TIMEOUT)
    assert page.title() != "1"


def test_two_users_at_once(visit, tiny):
    """Both press the button at the same moment; each gets the answers to their own question."""
    pages = [visit(f"?scene={scene}&keep=0.5&methods=gprune,tome") for scene in SCENES[2:4]]
    questions = ["what color is the circle?", "what color is the star?"]
    for page, question in zip(pages, questions, strict=True):
        wait_for_answers(page, 2)
        box = page.locator("#question input")
        box.fill(question)
        box.press("Enter")
        box.blur()
    for page in pages:
        page.evaluate("setTimeout(() => document.querySelector('#ask').click(), 200)")
    for page, scene, question in zip(pages, SCENES[2:4], questions, strict=True):
        expect(page.locator("#table .asked")).to_have_text(question, timeout=TIMEOUT)
        wait_for_answers(page, 2)
        for method in ("gprune", "tome"):
            outcome = reference(tiny, scene, question, method, 0.5)
            assert rows(page)[method][0] == outcome.answer_pruned
        assert rows(page)["all tokens"][0] == outcome.answer_full


def test_threads_without_the_queue_are_answered_one_by_one(tiny):
    """Without its lock, a `SharedModel` would run one thread's hooks in another's call."""
    shared = SharedModel(*tiny, "tiny", tiny=True)
    answers: dict[int, list[str]] = {}

    def request(scene: int) -> None:
        settings = ComparisonSettings(NUMBER, ("gprune", "random"), 0.5, scene)
        *_, last = shared.compare(settings, None, timed=False)
        answers[scene] = [result.answer for result in last.results]

    threads = [threading.Thread(target=request, args=(scene,)) for scene in (4, 0, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for scene, texts in answers.items():
        for method, text in zip(("gprune", "random"), texts, strict=True):
            assert text == reference(tiny, scene, NUMBER, method, 0.5).answer_pruned
    assert len(answers) == 3
