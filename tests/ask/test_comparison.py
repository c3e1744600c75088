"""What the web page shows, without a page and without Gradio; `make test-app` tests the page."""

from __future__ import annotations

import subprocess
import sys
from urllib.parse import parse_qsl

import pytest
import torch
from PIL import Image

import gprune
from gprune import GPrune, UnsupportedModelError, VisualTokens
from gprune.ask import comparison
from gprune.ask.answers import answer
from gprune.ask.comparison import Asker, Comparison, Settings, scene_answers, scene_picture
from gprune.tinyvlm import load

NUMBER = "what number is written in the image?"


@pytest.fixture(scope="module")
def tiny():
    return load()


def test_a_link_restores_the_settings():
    settings = Settings("what color is the circle?", ("tome", "gprune"), 0.07, 3)
    assert Settings.of_link(dict(parse_qsl(settings.link()))) == settings
    own = Settings("é & ?", ("random",), 1.0, None)
    restored = Settings.of_link(dict(parse_qsl(own.link(), keep_blank_values=True)))
    assert restored == own
    assert isinstance(restored.keep, float)  # a share of one, not a count
    assert Settings.of_link({}) == Settings()


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"keep": "much"}, "the link cannot be read: could not convert"),
        ({"keep": "0"}, "keep=0"),
        ({"keep": "nan"}, "keep=nan"),
        ({"scene": "1.5"}, "the link cannot be read"),
        ({"scene": "-1"}, "scene=-1"),
        ({"methods": "nosuch"}, "method 'nosuch' is unknown"),
        ({"methods": "gprune,tome,dart,random,l2_norm"}, "choose 1 to 4"),
        ({"question": " "}, "question is empty"),
        ({"question": "x" * 501}, "501 characters"),
    ],
)
def test_bad_links_say_what_is_wrong(query, message):
    with pytest.raises(ValueError, match=message):
        Settings.of_link(query)


def test_compare_answers_method_by_method(tiny):
    asker = Asker(*tiny, "tiny", tiny=True)
    settings = Settings(NUMBER, ("gprune", "graph_cover"), 0.25, 4)
    pages = list(asker.compare(settings, None))
    assert [len(page.columns) for page in pages] == [1, 2]
    last = pages[-1]
    assert last.expected == scene_answers(4)[NUMBER] == "556"
    for column in last.columns:
        outcome = answer(*tiny, gprune.make(column.method, 0.25), [scene_picture(4)], NUMBER)
        assert last.full == outcome.answer_full
        assert column.text == outcome.answer_pruned
        assert list(column.kept) == outcome.pruned.kept[0][0].indices.tolist()
        assert column.saving == outcome.saving
        assert column.times.full_ms > 0
    assert last.columns[0].scores is not None
    assert last.columns[1].scores is None  # it chooses a set


def test_a_method_that_cannot_is_no_end_for_the_others(tiny, monkeypatch):
    def refuses(self, tokens, k):
        raise UnsupportedModelError("attention is missing; take another method")

    monkeypatch.setattr(gprune.DivPrune, "choose", refuses)
    settings = Settings(NUMBER, ("divprune", "random"), 0.25, 4)
    *_, last = Asker(*tiny, "tiny").compare(settings, None, timed=False)
    assert last.columns[0].refusal == "attention is missing; take another method"
    assert last.columns[1].text
    assert not tiny[0]._forward_pre_hooks


def test_what_cannot_be_asked(tiny):
    asker = Asker(*tiny, "tiny", tiny=True)
    with pytest.raises(ValueError, match="there is no picture"):
        next(asker.compare(Settings(scene=None), None))
    with pytest.raises(ValueError, match="does not know: dog"):
        next(asker.compare(Settings("what color is the dog?"), None))


def test_large_pictures_are_drawn_small(tiny, monkeypatch):
    """Of models that take patches the page has the picture itself, of whatever size."""
    monkeypatch.setattr(comparison, "shown_to", lambda processor, outcome, picture: picture)
    picture = Image.new("RGB", (3000, 1500))
    (page,) = Asker(*tiny, "tiny").compare(Settings(NUMBER, ("random",)), picture, timed=False)
    assert page.shown.size == (1024, 512)
    assert picture.size == (3000, 1500)


@pytest.fixture
def page():
    features = torch.eye(6)
    features[4] = features[1]
    tokens = VisualTokens(features, grid=(2, 3))
    return Comparison(Settings(), "", None, Image.new("RGB", (450, 450)), tokens)


@pytest.mark.parametrize(
    ("x", "y", "token"), [(0, 0, 0), (149, 224, 0), (151, 0, 1), (449, 449, 5), (0, 226, 3)]
)
def test_the_token_under_a_click(page, x, y, token):
    assert page.token_at(x, y) == token


def test_the_graph_around_a_token(page):
    _, words = page.graph(1, 0.5)
    assert "**Token 1** (row 0, column 1) resembles **1** of the other 5" in words
    assert "**Token 1**" in page.graph(None, 0.5)[1]  # the best-connected
    with pytest.raises(ValueError, match="outside the picture"):
        page.token_at(450, 0)
    with pytest.raises(ValueError, match="threshold=2"):
        page.graph(1, 2)


def test_pages_without_a_raster_say_so():
    tokens = VisualTokens(torch.ones(4, 2))
    page = Comparison(Settings(), "", None, Image.new("RGB", (9, 9)), tokens)
    for ask in (lambda: page.token_at(1, 1), lambda: page.graph(0, 0.5)):
        with pytest.raises(ValueError, match="no raster"):
            ask()


def test_the_command_without_gradio_says_what_to_install():
    code = (
        "import sys; sys.modules['gradio'] = None; sys.argv = ['gprune', 'app'];"
        "from gprune.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'gprune[app]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_selecting_is_what_it_was():
    """`GPrune` on the page's own example: isolated tokens stay, copies go."""
    features = torch.eye(6)
    features[4] = features[1]
    assert GPrune(keep=4).select(VisualTokens(features)).tolist() == [0, 2, 3, 5]
