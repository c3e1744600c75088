"""``gprune app`` without Gradio; tests/app tests the page in a browser."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from PIL import Image

from gprune import viz
from gprune.ask.comparison import ComparisonSettings
from tests.cli.calling import call
from tests.folders import save_llava_next


@pytest.mark.parametrize("options", [(), ("--model", "tiny"), ("--model", "tinyvlm")])
def test_app_shows_the_shipped_model(monkeypatch, options):
    """By each of its names; the page knows that its vocabulary is small."""
    launched = []
    page = SimpleNamespace(
        launch=lambda shared, *limits: launched.append(shared), temporary_files=nullcontext
    )
    monkeypatch.setitem(sys.modules, "gprune.app", page)
    monkeypatch.setattr("gprune.cli.web.require_module", lambda name, extra: None)
    monkeypatch.setattr("gprune.cli.web.require_address", lambda host, port: None)
    assert call("app", *options).exit_code == 0
    (shared,) = launched
    assert shared.tiny
    assert (shared.name, shared.max_new_tokens) == ("gprune's tiny VLM", None)


def test_app_shows_another_model(monkeypatch, tmp_path):
    """A LLaVA-NeXT from a folder: open vocabulary, an uploaded image, a thumbnail and tiles."""
    folder = tmp_path / "next"
    save_llava_next(folder)
    launched = []
    page = SimpleNamespace(
        launch=lambda shared, *limits: launched.append(shared), temporary_files=nullcontext
    )
    monkeypatch.setitem(sys.modules, "gprune.app", page)
    monkeypatch.setattr("gprune.cli.web.require_module", lambda name, extra: None)
    monkeypatch.setattr("gprune.cli.web.require_address", lambda host, port: None)
    assert call("app", "--model", folder, "--max-new-tokens", 3).exit_code == 0
    (shared,) = launched
    assert (shared.tiny, shared.name, shared.max_new_tokens) == (False, str(folder), 3)
    methods = ("gprune", "tome", "visionzip", "fastv")
    settings = ComparisonSettings("what is a dog?", methods, 0.25, None)
    *_, last = shared.compare(settings, Image.new("RGB", (90, 30), (200, 30, 30)))
    assert len(last.tokens) == 16  # the thumbnail's
    assert last.expected is None
    for result in last.results:
        assert result.refusal is None, result.method
        assert result.overlay.size == viz.enlarged(last.view).size
        assert result.times.full_ms > 0
        assert result.saving.kept_tokens < result.saving.visual_tokens
    assert [len(result.kept) for result in last.results[:3]] == [4, 4, 4]
    _, words = last.graph(last.token_at(1, 1), 0.5)
    assert "**Token 0**" in words
