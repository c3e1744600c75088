"""The results and the report of `gprune eval`."""

from __future__ import annotations

import json
import re
import sys

import pytest

from tests.evaluation.command import evaluate
from tests.evaluation.questions import write_questions


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The folder of an evaluation with two methods and two budgets."""
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def results(out, tmp_path_factory):
    """What the command prints with ``--json``."""
    questions = write_questions(tmp_path_factory.mktemp("questions"))
    options = ["--methods", "gprune,random", "--keep", "0.5,9", "--batch", 3, "--out", out]
    done = evaluate("--tasks", questions, *options, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_rows_of_the_results(results, out):
    assert results == json.loads((out / "results.json").read_text())
    assert [(row["method"], row["keep"]) for row in results["rows"]] == [
        ("full", 1.0),
        *(("gprune", 0.5), ("random", 0.5), ("gprune", 9), ("random", 9)),
    ]
    assert any("group A" in note and "downsampling" in note for note in results["notes"])
    assert not any("random are not known" in note for note in results["notes"])


def test_scores_of_the_rows(results):
    full, half = results["rows"][:2]
    assert full["loyalty"] == full["retained"] == full["overall_performance"] == 100
    assert full["types"]["other"] == 0 < full["types"]["count"]
    assert set(full["types"]) == {"other", "count"}
    for row in results["rows"]:
        for scores in (row, row["lenient"]):
            assert scores["types"].keys() == scores["type_intervals"].keys()
            for kind, (low, high) in scores["type_intervals"].items():
                assert low <= scores["types"][kind] <= high
        assert row["macro"] <= row["lenient"]["macro"]
    low, high = half["minus_random"]["interval"]
    assert low <= half["minus_random"]["macro"] <= high


def test_costs_of_the_rows(results):
    full, half = results["rows"][:2]
    assert (full["kept_tokens"], half["kept_tokens"], half["visual_tokens"]) == (256, 128, 256)
    for row in results["rows"]:
        assert row["flops"].keys() == {"fastv", "linear", "exact"}
        assert row["ms_an_answer"] > row["prefill_ms"] > row["method_ms"] >= 0
        assert (row["method_ms"] == 0) == (row["method"] == "full")
        assert row["decode_ms_a_token"] > 0
        # Prompts of a batch have equal length here: no padding on top of the formula's bytes.
        assert row["kv_bytes_measured"] == row["kv_bytes_pruned"]
        if sys.platform == "linux":
            assert row["peak_memory_bytes"] > row["peak_growth_bytes"] >= 0
    assert half["flops"]["linear"]["saved"] > 0.4


def test_the_report_shows_the_results(results, out):
    report = (out / "report.html").read_text()
    # Four tables (scores, costs, types strict and lenient) of a heading and five runs.
    assert report.count("<tr") == 4 * 6
    full = results["rows"][0]
    for kind in full["types"]:
        for scores in (full, full["lenient"]):
            low, high = scores["type_intervals"][kind]
            assert f"<td>{scores['types'][kind]:.1f} ({low:.1f} to {high:.1f})</td>" in report
    assert "<svg" in report
    assert not re.search(r"(src|href)=.?https?:", report)
