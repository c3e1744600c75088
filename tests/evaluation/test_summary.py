"""Rows of the results: scores, costs and groups computed from stored lines."""

from __future__ import annotations

import json

import numpy as np
import pytest

from gprune.costs import LanguageModelShape, saving
from gprune.evaluation import summary
from gprune.evaluation.metrics import Record, Tally, is_right
from gprune.evaluation.runner import Evaluation
from gprune.evaluation.runs import Run, plan_runs
from gprune.evaluation.tasks import Example, load_tasks
from gprune.tinyvlm import make_scene


def test_pruning_in_a_later_layer_costs_more(tiny, tmp_path):
    """FastV against a method that keeps as many tokens, but already in the first layer."""
    model, processor = tiny
    examples = load_tasks(["scenes"], limit=1)
    evaluation = Evaluation(model, processor, examples, tmp_path, {}, batch=5)
    runs = [Run(method, keep) for method, keep in (("full", 1.0), ("random", 49), ("fastv", 49))]
    for run in runs:
        evaluation.perform(run)
    assert not evaluation.failures
    full, random, fastv = evaluation.results(runs)["rows"]
    assert random["kept_tokens"] == fastv["kept_tokens"] == 49
    text = full["text_tokens"]
    shape = LanguageModelShape.from_config(model.config)
    expected = saving(shape, 256, text, 49, kept_tokens=[256, 256, 49, 49, 49])
    costs = [row["flops"]["exact"]["pruned"] for row in (random, fastv, full)]
    assert costs[1] == expected.flops_pruned
    assert costs == sorted(costs)
    assert random["kv_bytes_pruned"] < fastv["kv_bytes_pruned"] < full["kv_bytes_full"]
    assert fastv["method_ms"] > 0


def test_group_a_holds_what_the_reference_gets_wrong(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(summary, "REFERENCE", "l2_norm")
    model, processor = tiny
    evaluation = Evaluation(model, processor, load_tasks(["scenes"], 6), tmp_path, {})
    runs = plan_runs(["l2_norm", "graph_cover", "random"], [0.1])
    for run in runs:
        evaluation.perform(run)
    right = {
        run.label: {line["id"] for line in evaluation.lines(run) if line["right"]} for run in runs
    }
    hard = right["full"] - right["l2_norm-0.1"]
    easy = right["full"] & right["l2_norm-0.1"]
    results = evaluation.results(runs)
    rows = {row["method"]: row for row in results["rows"]}
    assert not results["notes"]
    assert rows["full"]["group_a"] is None
    assert rows["l2_norm"]["group_a"]["accuracy"] == 0
    assert rows["l2_norm"]["group_b"]["accuracy"] == 100
    for name, ids in (("group_a", hard), ("group_b", easy)):
        assert rows["graph_cover"][name]["examples"] == len(ids) > 0
        expected = 100 * len(ids & right["graph_cover-0.1"]) / len(ids)
        assert rows["graph_cover"][name]["accuracy"] == pytest.approx(expected)
        low, high = rows["graph_cover"][name]["interval"]
        assert low <= expected <= high
    seeds = [len(hard & right[f"random-0.1-seed{seed}"]) for seed in range(3)]
    assert rows["random"]["group_a"]["accuracy"] == pytest.approx(100 * np.mean(seeds) / len(hard))


def test_an_empty_group_a_has_no_accuracy():
    """The accuracy is None instead of a division by zero."""
    full = [Record("0", "p", "", "", True)]
    scores = summary.group_scores(full, full, [full])
    assert scores["group_a"] == {"examples": 0, "accuracy": None, "interval": None}
    assert scores["group_b"]["accuracy"] == 100


def test_a_type_without_questions_is_null():
    """NaN would not be valid JSON."""
    tally = Tally.from_records([Record("0", "p", "present", "", True)], ["present", "absent"])
    scores = summary.accuracy_fields(tally)
    assert scores["types"] == {"present": 100, "absent": None}
    assert json.loads(json.dumps(scores, allow_nan=False))["type_intervals"]["absent"] is None
    assert scores["macro"] == 100


def test_lenient_accuracy_is_stored_beside_strict(tiny, tmp_path):
    """The model answers with a single digit; the test edits one line so that only its beginning is
    right."""
    model, processor = tiny
    scene = make_scene("test", 0, 4)
    question = "how many shapes are there?"

    def make_example(name, kind, answers, match=is_right):
        return Example(name, name, kind, question, answers, lambda: [scene.draw()], match)

    digits, calls = tuple("0123456789"), []

    def recording_match(prediction, answers):
        calls.append((prediction, answers))
        return prediction.strip() in answers

    examples = [
        make_example("0", "count", digits),
        make_example("1", "own", ("7", *digits), recording_match),
    ]
    run = Run("full", 1.0)
    evaluation = Evaluation(model, processor, examples, tmp_path, {})
    evaluation.perform(run)
    assert not evaluation.failures
    assert calls
    assert all(answers == ("7", *digits) for _, answers in calls)
    lines = evaluation.lines(run)
    assert [(line["right"], line["begins_right"]) for line in lines] == [(True, True)] * 2
    # As if the second answer had continued after the digit.
    lines[1] |= {"right": False}
    file = tmp_path / "predictions" / "full.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (row,) = evaluation.results([run])["rows"]
    assert (row["macro"], row["types"]) == (50, {"count": 100, "own": 0})
    assert (row["lenient"]["macro"], row["lenient"]["types"]) == (100, {"count": 100, "own": 100})
    assert row["type_intervals"]["own"] == (0, 0)
    assert row["lenient"]["type_intervals"]["own"] == (100, 100)
