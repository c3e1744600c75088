"""Comparisons of methods, without the web page and Gradio; `make test-app` tests the page."""

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
from gprune.ask.comparison import (
    Comparison,
    ComparisonSettings,
    SharedModel,
    scene_answers,
    scene_picture,
)
from gprune.tinyvlm import load

NUMBER = "what number is written in the image?"


@pytest.fixture(scope="module")
def tiny():
    return load()


def test_a_link_restores_the_settings():
    settings = ComparisonSettings("what color is the circle?", ("tome", "gprune"), 0.07, 3)
    assert ComparisonSettings.from_query(dict(parse_qsl(settings.to_query()))) == settings
    own = ComparisonSettings("é & ?", ("random",), 1.0, None)
    restored = ComparisonSettings.from_query(
        dict(parse_qsl(own.to_query(), keep_blank_values=True))
    )
    assert restored == own
    assert isinstance(restored.keep, float)  # a share of one, not a count
    assert ComparisonSettings.from_query({}) == ComparisonSettings()


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
        ComparisonSettings.from_query(query)


def test_compare_answers_method_by_method(tiny):
    shared = SharedModel(*tiny, "tiny", tiny=True)
    settings = ComparisonSettings(NUMBER, ("gprune", "graph_cover"), 0.25, 4)
    pages = list(shared.compare(settings, None))
    assert [len(page.results) for page in pages] == [1, 2]
    last = pages[-1]
    assert last.expected == scene_answers(4)[NUMBER] == "556"
    for result in last.results:
        outcome = answer(*tiny, gprune.make(result.method, 0.25), [scene_picture(4)], NUMBER)
        assert last.answer_full == outcome.answer_full
        assert result.answer == outcome.answer_pruned
        assert list(result.kept) == outcome.pruned.kept[0][0].indices.tolist()
        assert result.saving == outcome.saving
        assert result.times.full_ms > 0
    assert last.results[0].scores is not None
    assert last.results[1].scores is None  # it chooses a set


def test_a_refused_method_does_not_end_the_others(tiny, monkeypatch):
    def refuses(self, tokens, k):
        raise UnsupportedModelError("attention is missing; take another method")

    monkeypatch.setattr(gprune.DivPrune, "choose", refuses)
    settings = ComparisonSettings(NUMBER, ("divprune", "random"), 0.25, 4)
    *_, last = SharedModel(*tiny, "tiny").compare(settings, None, timed=False)
    assert last.results[0].refusal == "attention is missing; take another method"
    assert last.results[1].answer
    assert not tiny[0]._forward_pre_hooks


def test_questions_that_cannot_be_answered(tiny):
    shared = SharedModel(*tiny, "tiny", tiny=True)
    with pytest.raises(ValueError, match="there is no picture"):
        next(shared.compare(ComparisonSettings(scene=None), None))
    with pytest.raises(ValueError, match="does not know: dog"):
        next(shared.compare(ComparisonSettings("what color is the dog?"), None))


def test_large_images_are_drawn_small(tiny, monkeypatch):
    """Models that take patches are shown with the image itself, whatever its size."""
    monkeypatch.setattr(comparison, "model_view", lambda processor, outcome, picture: picture)
    picture = Image.new("RGB", (3000, 1500))
    (page,) = SharedModel(*tiny, "tiny").compare(
        ComparisonSettings(NUMBER, ("random",)), picture, timed=False
    )
    assert page.view.size == (1024, 512)
    assert picture.size == (3000, 1500)


@pytest.fixture
def page():
    features = torch.eye(6)
    features[4] = features[1]
    tokens = VisualTokens(features, grid=(2, 3))
    return Comparison(ComparisonSettings(), "", None, Image.new("RGB", (450, 450)), tokens)


@pytest.mark.parametrize(
    ("x", "y", "token"), [(0, 0, 0), (149, 224, 0), (151, 0, 1), (449, 449, 5), (0, 226, 3)]
)
def test_the_token_under_a_point(page, x, y, token):
    assert page.token_at(x, y) == token


def test_the_graph_around_a_token(page):
    _, words = page.graph(1, 0.5)
    assert "**Token 1** (row 0, column 1) resembles **1** of the other 5" in words
    assert "**Token 1**" in page.graph(None, 0.5)[1]  # the best-connected
    with pytest.raises(ValueError, match="outside the picture"):
        page.token_at(450, 0)
    with pytest.raises(ValueError, match="threshold=2"):
        page.graph(1, 2)


def test_tokens_without_a_raster_are_refused():
    tokens = VisualTokens(torch.ones(4, 2))
    page = Comparison(ComparisonSettings(), "", None, Image.new("RGB", (9, 9)), tokens)
    for call in (lambda: page.token_at(1, 1), lambda: page.graph(0, 0.5)):
        with pytest.raises(ValueError, match="no raster"):
            call()


def test_the_command_without_gradio_says_what_to_install():
    code = (
        "import sys; sys.modules['gradio'] = None; sys.argv = ['gprune', 'app'];"
        "from gprune.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'gprune[app]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_isolated_tokens_are_kept_and_copies_dropped():
    """`GPrune` on the features of the fixture above."""
    features = torch.eye(6)
    features[4] = features[1]
    assert GPrune(keep=4).select(VisualTokens(features)).tolist() == [0, 2, 3, 5]
