"""benchmarks/half_precision.py, and the numbers of it that G-Prune's docstring states."""

from __future__ import annotations

import importlib
import json

import pytest

from gprune import GPrune, VisualTokens
from tests.benchmarks.test_benchmarks import BENCHMARKS
from tests.graph.test_half import overlapping


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("half_precision")


def test_compares_both_degrees(script):
    scenes = [VisualTokens(overlapping(200, 48, seed)) for seed in range(3)]
    result = script.compare(scenes, 0.5)
    assert 0 < result["degrees"] < 1
    assert result["scenes"] == 1
    for choice in result["choices"]:
        kept = [
            [
                set(GPrune(choice["keep"], degree=degree).select(tokens).tolist())
                for degree in ("float32", "float16")
            ]
            for tokens in scenes
        ]
        assert choice["changed"] == pytest.approx(sum(a != b for a, b in kept) / 3)
        assert choice["overlap"] == pytest.approx(sum(len(a & b) / len(a) for a, b in kept) / 3)
    assert "| 0.5 | " in script.table([result])
    assert script.compare(scenes, 0.7)["degrees"] == 0


def test_the_docstring_states_the_stored_numbers(script):
    stored = json.loads(script.RESULTS.read_text())
    usual, paper = stored["rows"]
    text = " ".join((GPrune.__doc__ or "").split())
    changed = [f"{choice['changed']:.0%}" for choice in usual["choices"]]
    same = [f"{choice['overlap']:.0%}" for choice in usual["choices"]]
    keeps = [str(choice["keep"]) for choice in usual["choices"]]
    assert f"features of {stored['scenes']} validation scenes" in text
    assert f"{usual['degrees']:.0%} of the tokens have another degree" in text
    for listed in (changed, keeps, same):
        assert f"{', '.join(listed[:-1])} and {listed[-1]}" in text
    assert all(choice["changed"] == 0 for choice in paper["choices"])
    assert "At threshold 0.7 nothing changes" in text
