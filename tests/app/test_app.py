"""The web page in a real browser: `make test-app`. Screenshots are written to out/app."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import gradio
import pytest
import torch
from PIL import Image
from playwright.sync_api import expect

import gprune
from gprune import SimilarityGraph, viz
from gprune.app.callbacks import OPEN_QUESTIONS, Callbacks
from gprune.app.downloads import SPACE, WIDTH
from gprune.ask.answers import answer
from gprune.ask.comparison import SharedModel
from gprune.ask.links import SCENES, ComparisonSettings, scene_answers, scene_picture
from gprune.ask.pictures import first_group, model_view
from gprune.ask.prompts import open_image
from tests.app.pages import (
    METHODS,
    NUMBER,
    TIMEOUT,
    ask,
    click_token,
    picture,
    reference,
    rows,
    screenshot,
    upload,
    wait_for_answers,
)


def test_a_first_visit_shows_an_answer_at_once(visit, tiny):
    page = visit()
    wait_for_answers(page, 4)
    screenshot(page, "first-visit")
    table = rows(page)
    outcome = reference(tiny, SCENES[0], NUMBER, "gprune", 0.25)
    assert list(table) == ["all tokens", *METHODS]
    assert table["all tokens"][0] == outcome.answer_full == "556"
    assert table["gprune"][0] == outcome.answer_pruned
    assert table["gprune"][1] == "64 of 256"
    assert table["gprune"][2] == f"−{outcome.saving.flops_saved:.0%}"
    assert re.fullmatch(r"[\d.]+ → [\d.]+ ms", table["gprune"][4])
    for column, method in enumerate(METHODS):
        outcome = reference(tiny, SCENES[0], NUMBER, method, 0.25)
        seen = model_view(tiny[1], outcome, None)
        group = outcome.pruned.kept[0][0]
        drawn = viz.overlay(seen, group.indices, group.grid)
        assert picture(page, f"overlay-{column}").tobytes() == drawn.tobytes()
    scores = gprune.GPrune(0.25).score(first_group(tiny[0], outcome))
    assert picture(page, "scores-0").tobytes() == viz.score_map(seen, scores, (16, 16)).tobytes()


def test_a_switch_shows_scores_in_the_place_of_kept_tokens(visit):
    page = visit()
    wait_for_answers(page, 4)
    kept, scores, title = (page.locator(name) for name in ("#overlay-0", "#scores-0", ".title"))
    expect(kept).to_be_visible()
    expect(scores).to_be_hidden()
    expect(title.nth(1)).to_have_text("gprune keeps", use_inner_text=True)
    page.locator("#show input[value=scores]").check()
    expect(kept).to_be_hidden()
    expect(scores).to_be_visible()
    expect(title.nth(1)).to_have_text("gprune scores", use_inner_text=True)
    # graph_cover chooses a set: its kept tokens stay, and its title says why.
    expect(page.locator("#overlay-1")).to_be_visible()
    expect(title.nth(2)).to_have_text("graph_cover (no scores)", use_inner_text=True)
    click_token(page, "scores-0", 45)
    expect(page.locator("#words")).to_contain_text("Token 45 ")
    screenshot(page, "scores")
    only = visit("?methods=graph_cover")  # without scores there is nothing to switch to
    wait_for_answers(only, 1)
    expect(only.locator("#show")).to_have_count(0)


def test_other_methods_the_graph_and_the_link(visit, tiny):
    page = visit()
    wait_for_answers(page, 4)
    page.locator("#examples button.thumbnail-item").nth(2).click()
    expect(page.locator("#table")).to_be_hidden()  # the answers are about another picture
    expect(page.locator("#inside")).to_be_hidden()
    scene = SCENES[2]
    question = page.locator("#question input")
    expect(question).to_have_value(next(iter(scene_answers(scene))))
    question.click()
    page.get_by_role("option", name="what color is the circle?").click()
    page.locator("#methods input").click()
    page.keyboard.press("Backspace")  # the last one, random
    page.get_by_role("option", name="divprune").click()
    page.keyboard.press("Escape")
    share = page.locator("#keep input[type=number]")
    share.fill("0.1")
    share.press("Enter")
    page.locator("#ask").click()
    expect(page.locator("#table .asked")).to_have_text("what color is the circle?")
    wait_for_answers(page, 4)
    table = rows(page)
    chosen = [*METHODS[:3], "divprune"]
    assert list(table) == ["all tokens", *chosen]
    for method in chosen:
        outcome = reference(tiny, scene, "what color is the circle?", method, 0.1)
        assert table[method][0] == outcome.answer_pruned
        assert table[method][1] == "25 of 256"
    assert scene_answers(scene)["what color is the circle?"] in page.inner_text("#table .expected")

    tokens = first_group(tiny[0], outcome)
    graph = SimilarityGraph.build(tokens.features, 0.5, 0.03)
    for name, token in (("overlay-0", 45), ("shown", 0), ("overlay-3", 255)):
        click_token(page, name, token)
        edges = int(graph.degree[token]) - 1
        expect(page.locator("#words")).to_contain_text(f"Token {token} ")
        expect(page.locator("#words")).to_contain_text(f"resembles {edges} of the other 255")
    seen = model_view(tiny[1], outcome, None)
    drawn = viz.graph_picture(seen, graph, 255, (16, 16))
    assert picture(page, "graph").tobytes() == drawn.tobytes()
    screenshot(page, "other-methods")

    threshold = page.locator("#threshold input[type=number]")
    threshold.fill("0.9")
    threshold.press("Enter")
    threshold.blur()
    edges = int(SimilarityGraph.build(tokens.features, 0.9, 0.03).degree[255]) - 1
    expect(page.locator("#words")).to_contain_text(f"resembles {edges} of")

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
    wait_for_answers(page, 4)
    scene_picture(SCENES[1]).resize((640, 480)).save(tmp_path / "mine.jpg", quality=95)
    upload(page, tmp_path / "mine.jpg")
    expect(page.locator("#picture-message")).to_contain_text("drawn scenes only")
    expect(page.locator("#table")).to_be_hidden()
    expect(page.locator("#link textarea, #link input")).to_have_value("")
    ask(page, "where is my dog?")
    expect(page.locator("#status")).to_contain_text("does not know: my, dog")
    ask(page, "what color is the ring?")
    expect(page.locator("#table .asked")).to_have_text("what color is the ring?")
    wait_for_answers(page, 4)
    expect(page.locator("#status")).to_have_text("")
    screenshot(page, "own-picture")
    assert page.locator("#table .expected").count() == 0
    with Image.open(tmp_path / "mine.jpg") as stored:
        outcome = answer(
            *tiny, gprune.GPrune(0.25), [stored.convert("RGB")], "what color is the ring?"
        )
    assert rows(page)["gprune"][0] == outcome.answer_pruned
    assert parse_qs(urlsplit(page.url).query, keep_blank_values=True)["scene"] == [""]
    ask(page, "where is my dog?")  # an error removes the answers too
    expect(page.locator("#status")).to_contain_text("does not know: my, dog")
    expect(page.locator("#answers")).to_be_hidden()
    expect(page.locator("#inside")).to_be_hidden()


@pytest.mark.parametrize("name", ["cheetah.jpg", "lion.jpg", "tower.jpg"])
def test_a_photograph_gets_questions_that_the_tiny_model_can_answer(name, tiny):
    """On photographs that Gradio brings with it."""
    photograph = Path(gradio.__file__).parent / "media_assets" / "images" / name
    calls = Callbacks(SharedModel(*tiny, "tiny", tiny=True), 10**7)
    _, scene, question, note, *_ = calls.take_upload("", NUMBER, str(photograph))
    assert scene is None
    assert "drawn scenes only" in note
    assert question.value == OPEN_QUESTIONS[0]
    assert [text for text, _ in question.choices] == list(OPEN_QUESTIONS)
    for text in OPEN_QUESTIONS:
        outcome = answer(*tiny, gprune.GPrune(0.25), [open_image(photograph)], text)
        first = text.split()[0]
        wanted = {"what": r"[a-z]+ [a-z]+", "how": r"\d", "is": "yes|no"}[first]
        assert re.fullmatch(wanted, outcome.answer_full), text


def make_bad_files(folder: Path) -> dict[str, str]:
    """Writes files that cannot be used and returns what the page says about each."""
    Image.new("RGB", (300, 300), "red").save(folder / "whole.png")
    (folder / "truncated.png").write_bytes((folder / "whole.png").read_bytes()[:200])
    Image.new("1", (3000, 3000)).save(folder / "huge.png")
    (folder / "words.png").write_text("no picture")
    return {
        "truncated.png": "image file is truncated",
        "huge.png": "3000 x 3000 pixels are more than 2000000",
        "words.png": "it is none of PNG, JPEG",
    }


def test_bad_uploads_are_refused_at_once_and_the_page_still_works(visit, tmp_path, address):
    page = visit()
    wait_for_answers(page, 4)
    for name, sentence in make_bad_files(tmp_path).items():
        upload(page, tmp_path / "whole.png")
        expect(page.locator("#picture-message")).to_contain_text("drawn scenes only")
        expect(page.locator("#picture img")).to_be_visible()
        upload(page, tmp_path / name)  # without a click on Ask
        message = page.locator("#picture-message")
        expect(message).to_contain_text(sentence)
        assert message.inner_text().startswith(f"Image '{name}' cannot be read: ")
        expect(page.locator("#answers")).to_be_hidden()
        expect(page.locator("#picture img")).to_have_count(0)
    page.locator("#ask").click()
    expect(page.locator("#status")).to_contain_text("There is no picture; upload one")
    screenshot(page, "bad-uploads")
    noise = torch.randint(0, 256, (800, 800, 3), dtype=torch.uint8).numpy()
    Image.fromarray(noise).save(tmp_path / "heavy.png")  # does not compress: 1.9 MB
    upload(page, tmp_path / "heavy.png")
    expect(page.get_by_text("exceed the maximum allowed size").first).to_be_visible()
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
    expect(page.locator("#picture-message")).to_be_hidden()
    page.locator("#ask").click()
    right = scene_answers(SCENES[1])[NUMBER]
    expect(page.locator("#table .expected")).to_contain_text(right)
    wait_for_answers(page, 4)
    assert rows(page)["all tokens"][0] == right


def test_bad_fields_of_a_link_are_named_and_the_others_kept(visit):
    page = visit("?keep=7.5&methods=gprune,tome&scene=3&question=what+color+is+the+circle%3F")
    message = page.locator("#link-message")
    expect(message).to_contain_text("keep: keep=7.5 is no share")
    expect(message.locator("li")).to_have_count(1)
    wait_for_answers(page, 2)
    expect(page.locator("#keep input[type=number]")).to_have_value("0.25")
    assert list(rows(page)) == ["all tokens", "gprune", "tome"]
    expect(page.locator("#question input")).to_have_value("what color is the circle?")
    assert scene_answers(3)["what color is the circle?"] in page.inner_text("#table .expected")


def test_a_link_without_a_question_asks_about_its_scene(visit):
    page = visit("?scene=3&methods=random")
    wait_for_answers(page, 1)
    question, right = next(iter(scene_answers(3).items()))
    assert question != NUMBER
    expect(page.locator("#table .asked")).to_have_text(question)
    expect(page.locator("#table .expected")).to_contain_text(right)


def test_a_link_to_an_uploaded_picture_asks_for_it(visit):
    page = visit("?scene=&question=how+many+shapes+are+there%3F")
    expect(page.locator("#status")).to_contain_text("There is no picture; upload one")
    expect(page.locator("#question input")).to_have_value("how many shapes are there?")
    expect(page.locator("#ask")).to_be_enabled()


def test_downloads_contain_what_the_page_shows(visit, tiny, tmp_path):
    page = visit("?methods=gprune,random&keep=0.1")
    wait_for_answers(page, 2)
    for name in ("get-json", "get-picture"):
        with page.expect_download() as started:
            page.locator(f"#{name}").click()
        started.value.save_as(tmp_path / started.value.suggested_filename)
    read = json.loads((tmp_path / "gprune.json").read_text())
    assert (read["question"], read["keep"], read["scene"]) == (NUMBER, 0.1, SCENES[0])
    for result, method in zip(read["methods"], ("gprune", "random"), strict=True):
        outcome = reference(tiny, SCENES[0], NUMBER, method, 0.1)
        assert read["answer"] == outcome.answer_full
        assert result["answer"] == outcome.answer_pruned
        assert result["kept"] == outcome.pruned.kept[0][0].indices.tolist()
        assert result["saving"]["kept_tokens"] == outcome.saving.kept_tokens == 25
    with Image.open(tmp_path / "gprune.png") as sheet:
        whole = sheet.convert("RGB")
    assert whole.width == SPACE + 3 * (WIDTH + SPACE)
    drawn = picture(page, "overlay-1")
    assert drawn.size == (WIDTH, WIDTH)
    left = SPACE + 2 * (WIDTH + SPACE)
    tops = [
        top
        for top in range(whole.height - WIDTH + 1)
        if whole.crop((left, top, left + WIDTH, top + WIDTH)).tobytes() == drawn.tobytes()
    ]
    assert len(tops) == 1


def test_html_in_a_question_is_not_executed(visit):
    page = visit("?question=%3Cimg+src%3Dx+onerror%3Ddocument.title%3D1%3E")
    expect(page.locator("#status")).to_contain_text("does not know")
    assert page.title() != "1"
    bad = visit("?methods=%3Cimg+src%3Dx+onerror%3Ddocument.title%3D1%3E")
    expect(bad.locator("#link-message")).to_contain_text("<img src=x")
    wait_for_answers(bad, 4)
    assert bad.title() != "1"


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
        expect(page.locator("#table .asked")).to_have_text(question)
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
