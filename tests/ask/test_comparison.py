"""Comparisons of methods, without the web page and Gradio; `make test-app` tests the page."""

from __future__ import annotations

import json
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
from gprune.ask.comparison import Comparison, SharedModel
from gprune.ask.links import ComparisonSettings, scene_answers, scene_picture
from gprune.ask.progress import Cancelled, Progress
from gprune.tinyvlm import load

NUMBER = "what number is written in the image?"


@pytest.fixture(scope="module")
def tiny():
    return load()


def test_a_link_restores_the_settings():
    settings = ComparisonSettings("what color is the circle?", ("tome", "gprune"), 0.07, 3)
    query = dict(parse_qsl(settings.to_query()))
    assert ComparisonSettings.from_query(query) == (settings, [])
    own = ComparisonSettings("é & ?", ("random",), 1.0, None)
    query = dict(parse_qsl(own.to_query(), keep_blank_values=True))
    restored, problems = ComparisonSettings.from_query(query)
    assert (restored, problems) == (own, [])
    assert isinstance(restored.keep, float)  # a share of one, not a count
    assert ComparisonSettings.from_query({"other": "1"}) == (ComparisonSettings(), [])


BAD_FIELDS = [
    ({"keep": "much"}, "keep: 'much' is no number; write 0.25"),
    ({"keep": "0"}, "keep: keep=0 is no share"),
    ({"keep": "64"}, "keep: keep=64 is no share"),
    ({"keep": "nan"}, "keep: keep=nan is no share"),
    ({"scene": "1.5"}, "scene: '1.5' is no whole number"),
    ({"scene": "-1"}, "scene: scene=-1 does not exist"),
    ({"methods": "nosuch"}, "methods: method 'nosuch' is unknown"),
    ({"methods": ""}, "methods: method '' is unknown"),
    (
        {"methods": "gprune,tome,dart,random,l2_norm"},
        "methods: 5 methods are chosen",
    ),
    ({"question": " "}, "question: question is empty"),
    ({"question": "x" * 501}, "question: question has 501 characters"),
]


@pytest.mark.parametrize(("query", "message"), BAD_FIELDS)
def test_one_bad_field_of_a_link_is_named_and_drops_no_other(query, message):
    good = {"question": "is it?", "methods": "tome, dart", "keep": "0.5", "scene": "3"}
    settings, problems = ComparisonSettings.from_query({**good, **query})
    assert len(problems) == 1
    assert problems[0].startswith(message)
    (bad,) = query
    wanted = {"question": "is it?", "methods": ("tome", "dart"), "keep": 0.5, "scene": 3}
    assert settings == ComparisonSettings(**{k: v for k, v in wanted.items() if k != bad})


def test_all_fields_of_a_link_may_be_bad():
    bad = {"question": "", "methods": "nosuch", "keep": "x", "scene": "x"}
    settings, problems = ComparisonSettings.from_query(bad)
    assert settings == ComparisonSettings()
    assert [problem.split(":")[0] for problem in problems] == list(bad)
    for problem in problems:  # the words of Python are in none
        assert "convert" not in problem
        assert "literal" not in problem


def test_weighted_cover_is_among_the_first_four_methods():
    assert "weighted_cover" in ComparisonSettings.methods
    assert len(ComparisonSettings.methods) == 4


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


def test_the_comparison_as_json(tiny):
    shared = SharedModel(*tiny, "the name", tiny=True)
    settings = ComparisonSettings(NUMBER, ("gprune", "graph_cover"), 0.25, 4)
    *_, last = shared.compare(settings, None)
    read = json.loads(json.dumps(last.to_dict()))
    assert read["gprune"] == gprune.__version__
    assert read["model"] == "the name"
    assert (read["question"], read["keep"], read["scene"]) == (NUMBER, 0.25, 4)
    assert (read["right_answer"], read["answer"]) == ("556", last.answer_full)
    assert (read["tokens"], read["grid"]) == (256, [16, 16])
    for one, result in zip(read["methods"], last.results, strict=True):
        assert (one["method"], one["answer"]) == (result.method, result.answer)
        assert (one["refusal"], one["kept"]) == (None, list(result.kept))
        assert one["saving"]["flops_pruned"] == result.saving.flops_pruned
        assert one["prefill"]["full_ms"] == result.times.full_ms
    *_, own = shared.compare(settings, scene_picture(4), timed=False)
    assert own.to_dict()["scene"] is None  # an uploaded picture
    assert own.to_dict()["right_answer"] is None
    assert own.to_dict()["methods"][0]["prefill"] is None


def test_progress_counts_answers_and_tokens(tiny):
    seen: list[Progress] = []
    settings = ComparisonSettings(NUMBER, ("gprune", "random"), 0.25, 4)
    *_, last = SharedModel(*tiny, "tiny").compare(settings, None, True, seen.append)
    order = list(dict.fromkeys((one.method, one.answered, one.timing) for one in seen))
    assert order == [
        (None, 0, False),
        *[("gprune", 1, False), ("gprune", 1, True)],
        *[("random", 2, False), ("random", 2, True)],
    ]
    assert {one.total for one in seen} == {3}
    # Three digits and the end of the sequence: three tokens are there before the fourth pass.
    assert last.results[0].answer == "556"
    tokens = [one.tokens for one in seen if one.method == "gprune" and not one.timing]
    assert tokens == sorted(tokens)
    assert set(tokens) == {0, 1, 2, 3}
    assert not any(module._forward_pre_hooks for module in tiny[0].modules())


@pytest.mark.parametrize("calls", [1, 5, 40, 120])
def test_a_listener_can_stop_the_model_anywhere(tiny, calls):
    """Also within a pass; nothing is left behind, and the next comparison is right."""
    shared = SharedModel(*tiny, "tiny")
    settings = ComparisonSettings(NUMBER, ("gprune", "random"), 0.25, 4)
    # transformers adds hooks of its own in the first call, which collect hidden states.
    *_, right = shared.compare(settings, None, False)
    hooks = [len(module._forward_hooks) for module in tiny[0].modules()]
    seen = 0

    def stop(progress: Progress) -> None:
        nonlocal seen
        seen += 1
        if seen == calls:
            raise Cancelled

    with pytest.raises(Cancelled):
        list(shared.compare(settings, None, True, stop))
    assert seen == calls
    assert not any(module._forward_pre_hooks for module in tiny[0].modules())
    assert [len(module._forward_hooks) for module in tiny[0].modules()] == hooks
    *_, last = shared.compare(settings, None, False)
    assert last.to_dict() == right.to_dict()


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
