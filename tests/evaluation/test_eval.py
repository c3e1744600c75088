"""`gprune eval`: the right answers counted, nothing done twice, nothing lost, nothing hidden."""

from __future__ import annotations

import functools
import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from gprune import GPrune, L2NormPruner, UniformGridPruner
from gprune.cli import app
from gprune.costs import LanguageModelShape, saving, summary
from gprune.evaluation.metrics import (
    RESAMPLES,
    Record,
    Tally,
    begins_right,
    groups_of,
    is_right,
    loyalty,
    mean_tally,
    overall_performance,
    tally_of,
)
from gprune.evaluation.runner import Evaluation, Run, runs_of
from gprune.evaluation.tasks import Example, box_is_right, load_tasks, read_jsonl
from gprune.tinyvlm import load, make_scene
from gprune.tinyvlm.scenes import BINS, EDGES, QUESTION_TYPES
from gprune.training.accuracy import held_out, score


@pytest.fixture(scope="module")
def tiny():
    return load()


@pytest.fixture
def jsonl(tmp_path):
    """Four pictures with questions that the tiny model's vocabulary has."""
    rows = []
    for index in range(4):
        Image.new("RGB", (80, 60), (40 * index, 90, 200)).save(tmp_path / f"{index}.png")
        rows.append(
            {
                "image": f"{index}.png",
                "question": "how many shapes are there?",
                # Whatever digit it says is right; the other type it never gets right.
                "answer": list("0123456789") if index % 2 else "none of them",
                "type": "count" if index % 2 else "other",
            }
        )
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def evaluate(*arguments, model="tiny"):
    return CliRunner().invoke(app, ["eval", model, *map(str, arguments)])


def test_answers_are_those_of_the_packed_scorer(tiny, tmp_path):
    """Question by question through generate, against all questions of a picture in one pass."""
    model, processor = tiny
    processor.tokenizer.padding_side = "left"
    examples = load_tasks(["scenes", "easy_vqa"], limit=3)
    evaluation = Evaluation(model, processor, examples, tmp_path, {}, batch=5)
    samples = held_out("test", scenes=3, easy_vqa=3)
    for run, pruner in (
        (Run("full", 1.0), None),
        (Run("uniform_grid", 0.3), UniformGridPruner(0.3)),
    ):
        evaluation.perform(run)
        assert not evaluation.failures
        expected = [right for results in score(model, samples, pruner) for right in results]
        assert [line["right"] for line in evaluation.lines(run)] == expected


def test_layers_that_see_more_tokens_cost_more(tiny, tmp_path):
    """FastV beside a method that keeps as many tokens, but from the first layer on."""
    model, processor = tiny
    processor.tokenizer.padding_side = "left"
    examples = load_tasks(["scenes"], limit=1)
    evaluation = Evaluation(model, processor, examples, tmp_path, {}, batch=5)
    runs = [Run(method, keep) for method, keep in (("full", 1.0), ("random", 49), ("fastv", 49))]
    for run in runs:
        evaluation.perform(run)
    assert not evaluation.failures
    full, before, inside = evaluation.results(runs)["rows"]
    assert before["kept_tokens"] == inside["kept_tokens"] == 49
    text = full["text_tokens"]
    shape = LanguageModelShape.from_config(model.config)
    expected = saving(shape, 256, text, 49, kept_tokens=[256, 256, 49, 49, 49])
    costs = [row["flops"]["exact"]["pruned"] for row in (before, inside, full)]
    assert costs[1] == expected.flops_pruned
    assert costs == sorted(costs)
    assert before["kv_bytes_pruned"] < inside["kv_bytes_pruned"] < full["kv_bytes_full"]
    assert inside["method_ms"] > 0


def test_results_and_report(jsonl, tmp_path):
    out = tmp_path / "out"
    options = ["--methods", "gprune,random", "--keep", "0.5,9", "--batch", 3, "--out", out]
    done = evaluate("--tasks", jsonl, *options, "--json")
    assert done.exit_code == 0, done.output
    results = json.loads(done.stdout)
    assert results == json.loads((out / "results.json").read_text())
    assert [(row["method"], row["keep"]) for row in results["rows"]] == [
        ("full", 1.0),
        *(("gprune", 0.5), ("random", 0.5), ("gprune", 9), ("random", 9)),
    ]
    full, half = results["rows"][:2]
    assert (full["kept_tokens"], half["kept_tokens"], half["visual_tokens"]) == (256, 128, 256)
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
    for row in results["rows"]:
        assert row["flops"].keys() == {"fastv", "linear", "exact"}
        assert row["ms_an_answer"] > row["prefill_ms"] > row["method_ms"] >= 0
        assert (row["method_ms"] == 0) == (row["method"] == "full")
        assert row["decode_ms_a_token"] > 0
        # Prompts of a batch are equally long here: no padding beside the formula's bytes.
        assert row["kv_bytes_measured"] == row["kv_bytes_pruned"]
        if sys.platform == "linux":
            assert row["peak_memory_bytes"] > row["peak_growth_bytes"] >= 0
    assert half["flops"]["linear"]["saved"] > 0.4
    assert any("group A" in note and "downsampling" in note for note in results["notes"])
    assert not any("random are not known" in note for note in results["notes"])
    report = (out / "report.html").read_text()
    # Scores, costs, types strict and lenient: each with headings, all tokens, and four runs.
    assert report.count("<tr") == 4 * 6
    for kind in full["types"]:
        for scores in (full, full["lenient"]):
            low, high = scores["type_intervals"][kind]
            assert f"<td>{scores['types'][kind]:.1f} ({low:.1f} to {high:.1f})</td>" in report
    assert "<svg" in report
    assert not re.search(r"(src|href)=.?https?:", report)


def test_a_killed_evaluation_goes_on(jsonl, tmp_path):
    options = ["--methods", "l2_norm", "--keep", "0.3", "--tasks", jsonl]
    assert evaluate(*options, "--out", tmp_path / "whole").exit_code == 0
    whole = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert evaluate(*options, "--out", tmp_path / "torn").exit_code == 0
    file = tmp_path / "torn" / "predictions" / "l2_norm-0.3.jsonl"
    lines = file.read_text().splitlines()
    marked = json.loads(lines[0]) | {"prediction": "what was there"}
    file.write_text(json.dumps(marked) + "\n" + lines[1] + "\n" + lines[2][:20])
    assert evaluate(*options, "--out", tmp_path / "torn").exit_code == 0
    after = [json.loads(line) for line in file.read_text().splitlines()]
    assert after[0] == marked  # finished work is not repeated
    assert [line["id"] for line in after] == [json.loads(line)["id"] for line in lines]
    torn = json.loads((tmp_path / "torn" / "results.json").read_text())
    assert torn["rows"][1]["types"] == whole["rows"][1]["types"]


def test_a_kill_in_the_middle(jsonl, tmp_path):
    """The process is killed while it writes; the same command then does the rest, and no more."""
    out = tmp_path / "out"
    line = jsonl.read_text().splitlines()[1]
    jsonl.write_text("\n".join([line] * 60))
    options = ["--methods", "gprune", "--keep", "0.5", "--batch", "1", "--out", str(out), "--json"]
    command = [
        sys.executable,
        "-c",
        "from gprune.cli import main; main()",
        "eval",
        "tiny",
        "--tasks",
        str(jsonl),
        *options,
    ]
    file = out / "predictions" / "gprune-0.5.jsonl"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (file.is_file() and file.stat().st_size):
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    before = file.read_text().rpartition("\n")[0].splitlines()
    full = (out / "predictions" / "full.jsonl").read_text()
    assert 0 < len(before) < 60
    done = evaluate("--tasks", jsonl, *options)
    assert done.exit_code == 0, done.output
    after = file.read_text().splitlines()
    assert after[: len(before)] == before  # times and all: nothing was asked twice
    assert [json.loads(line)["id"] for line in after] == [f"mine/{n}" for n in range(1, 61)]
    assert (out / "predictions" / "full.jsonl").read_text() == full


def test_one_method_that_fails_does_not_lose_the_others(jsonl, tmp_path, monkeypatch):
    def explode(self, tokens):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(L2NormPruner, "score", explode)
    options = ["--methods", "l2_norm,gprune", "--keep", "0.3", "--tasks", jsonl]
    done = evaluate(*options, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "l2_norm-0.3: RuntimeError: out of luck" in " ".join(done.output.split())
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["method"] for row in results["rows"]] == ["full", "gprune"]
    assert "out of luck" in (tmp_path / "out" / "report.html").read_text()
    trace = tmp_path / "out" / "l2_norm-0.3.traceback.txt"
    assert "out of luck" in trace.read_text()
    monkeypatch.undo()
    assert evaluate(*options, "--out", tmp_path / "out").exit_code == 0  # mended, it goes on
    assert not trace.exists()


def test_other_settings_in_the_same_folder_are_refused(jsonl, tmp_path):
    options = ["--methods", "gprune", "--keep", "0.3", "--tasks", jsonl, "--out", tmp_path / "out"]
    assert evaluate(*options).exit_code == 0
    done = evaluate(*options, "--limit", 2)
    assert done.exit_code == 2
    assert "with other settings" in done.output


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 cannot be read"),
        ('{"question": "what?", "answer": "1"}', "line 2 cannot be read: 'image' is missing"),
        ('{"image": "a.png", "question": "what?", "answer": 3}', "line 2 cannot be read"),
        ('{"image": [], "question": "what?", "answer": "3"}', "must be text"),
        ('["a.png", "what?", "3"]', "line 2 cannot be read: expected an object, found list"),
        ('{"image": "b.png", "question": "what?", "answer": "3"}', "image 'b.png' does not exist"),
        (
            '{"image": "a.png", "question": "wh\xe4t?", "answer": "3"}',
            "line 2 cannot be read: 'utf",
        ),
        ('{"image": "a.png", "question": "\\ud800", "answer": "3"}', "surrogates not allowed"),
        ('{"image": {"a.png": 1}, "question": "what?", "answer": "3"}', "must be text"),
        ('{"image": "%s", "question": "what?", "answer": "3"}' % ("a" * 5000), "too long"),
        ("[" * 100_000, "line 2 cannot be read: maximum recursion depth"),
    ],
    ids=range(11),
)
def test_bad_lines_are_named(tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    (tmp_path / "a.png").touch()
    good = '{"image": "a.png", "question": "what?", "answer": "1"}'
    path.write_bytes(f"{good}\n{line}\n".encode("latin-1"))
    with pytest.raises(ValueError, match=re.escape(str(path))) as raised:
        read_jsonl(path)
    assert message in str(raised.value)


def test_only_line_feeds_end_lines(tmp_path):
    (tmp_path / "a.png").touch()
    path = tmp_path / "mine.jsonl"
    row = {"image": "a.png", "question": "one\u2028two\x85three?", "answer": "1"}
    path.write_text(json.dumps(row, ensure_ascii=False) + "\r\n\n", newline="")
    assert [example.question for example in read_jsonl(path)] == [row["question"]]


def test_bad_use(tmp_path, jsonl):
    for options, message in (
        (["--tasks", "nosuch"], "task 'nosuch' is neither"),
        (["--tasks", jsonl, "--methods", "gprun"], "did you mean 'gprune'"),
        (["--tasks", jsonl, "--keep", "0"], "keep=0"),
    ):
        done = evaluate(*options, "--out", tmp_path / "out")
        assert done.exit_code == 2
        assert message in " ".join(done.output.split())
    (tmp_path / "gone.jsonl").write_text(
        json.dumps({"image": "gone.png", "question": "what?", "answer": "1"})
    )
    done = evaluate("--tasks", tmp_path / "gone.jsonl", "--out", tmp_path / "gone")
    assert done.exit_code == 2
    assert "gone.png" in done.output


def test_group_a_is_what_the_reference_gets_wrong(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(summary, "REFERENCE", "l2_norm")
    model, processor = tiny
    processor.tokenizer.padding_side = "left"
    evaluation = Evaluation(model, processor, load_tasks(["scenes"], 6), tmp_path, {})
    runs = runs_of(["l2_norm", "graph_cover", "random"], [0.1])
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


def test_groups_by_hand():
    def answered(*right):
        return [Record(str(i), str(i), "", "", good) for i, good in enumerate(right)]

    full = answered(True, True, True, False, False)
    a, b = groups_of(full, answered(True, False, False, True, False))
    assert (a, b) == ({"1", "2"}, {"0"})  # what all tokens get wrong is in neither
    assert tally_of(answered(False, True, False, True, True), a).macro == 50
    a, b = groups_of(full, answered(True, True))  # a reference that was asked less
    assert (a, b) == (set(), {"0", "1"})


def test_a_budget_that_nothing_fails():
    """Group A can be empty; that is said, not divided by."""
    full = [Record("0", "p", "", "", True)]
    scores = summary.group_scores(full, full, [full])
    assert scores["group_a"] == {"examples": 0, "accuracy": None, "interval": None}
    assert scores["group_b"]["accuracy"] == 100


def test_runs():
    labels = [run.label for run in runs_of(["gprune", "random"], [0.5, 64])]
    assert labels == [
        "full",
        *("gprune-0.5", "random-0.5-seed0", "random-0.5-seed1", "random-0.5-seed2"),
        *("gprune-64", "random-64-seed0", "random-64-seed1", "random-64-seed2"),
    ]
    assert Run("gprune", 0.5).pruner() == GPrune(0.5)
    with pytest.raises(ValueError, match="unknown"):
        runs_of(["nosuch"], [0.5])


def records(*rows):
    return [Record(str(i), picture, kind, said, right) for i, (picture, kind, said, right) in rows]


def test_metrics_by_hand():
    full = records(
        (0, ("p", "count", "3", True)),
        (1, ("p", "color", "red", True)),
        (2, ("q", "count", "2", True)),
        (3, ("q", "color", "blue", False)),
    )
    pruned = records(
        (0, ("p", "count", "3", True)),
        (1, ("p", "color", "Red.", True)),
        (2, ("q", "count", "5", False)),
        (3, ("q", "color", "blue", False)),
    )
    one, other = Tally.of(full), Tally.of(pruned)
    assert one.accuracy.tolist() == [100, 50]
    assert (one.macro, other.macro) == (75, 50)
    assert loyalty(full, pruned) == 75
    assert overall_performance(one, other) == pytest.approx(100 * np.sqrt((0.25 + 1) / 2))
    assert mean_tally([one, other]).macro == 62.5
    wrong = Tally.of(records((0, ("p", "count", "3", False))))
    assert overall_performance(wrong, wrong) is None
    low, high = one.interval
    assert 50 <= low <= 75 <= high <= 100
    # Resampled alike: a run minus itself has no spread.
    assert np.ptp(one.resampled() - one.resampled()) == 0


def test_type_intervals_are_those_of_a_loop():
    """Samples drawn and counted one after another, over pictures that ask unevenly."""
    rng = np.random.default_rng(1)
    pictures, kinds = 30, ["often", "seldom", "never"]
    asked = np.stack(
        [rng.integers(1, 4, pictures), rng.random(pictures) < 0.1, np.zeros(pictures)], 1
    )
    right = np.floor(asked * rng.random((pictures, 3)) + 0.5)
    found = Tally(kinds, right, asked).type_intervals
    draws = np.random.default_rng(0).multinomial(pictures, [1 / pictures] * pictures, RESAMPLES)
    for kind in range(2):
        accuracies = []
        for times in draws:
            drawn = [picture for picture in range(pictures) for _ in range(times[picture])]
            if total := sum(asked[picture, kind] for picture in drawn):
                accuracies.append(100 * sum(right[picture, kind] for picture in drawn) / total)
        assert found[kind] == pytest.approx(np.percentile(accuracies, [2.5, 97.5]))
    assert len(accuracies) < RESAMPLES  # some samples lack the seldom type
    assert found[2] is None


def test_a_type_that_nobody_asked_is_null():
    """Not NaN, which is no JSON."""
    scores = summary.accuracies(Tally.of([Record("0", "p", "asked", "", True)], ["asked", "not"]))
    assert scores["types"] == {"asked": 100, "not": None}
    assert json.loads(json.dumps(scores, allow_nan=False))["type_intervals"]["not"] is None
    assert scores["macro"] == 100


def test_interval_covers_what_it_should():
    """About 95 of 100 intervals of a known accuracy hold it."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(100):
        right = rng.random((80, 4)) < 0.7
        low, high = Tally(list("abcd"), right.astype(float), np.ones((80, 4))).interval
        inside += low <= 70 <= high
    assert 88 <= inside <= 100


@pytest.mark.parametrize(
    ("said", "right"), [("Red", True), (" a red.", True), ("blue", False), ("redder", False)]
)
def test_right(said, right):
    assert is_right(said, ["red"]) is right


@pytest.mark.parametrize(("said", "right"), [("A.", True), ("", False), ("the", False)])
def test_an_article_alone_is_an_answer(said, right):
    """The letter of a choice, which must not be right for having been left out."""
    assert is_right(said, ["a"]) is right


@pytest.mark.parametrize(
    ("said", "answers", "right"),
    [
        ("red red red", ["red"], True),
        ("The red, and blue", ["red"], True),
        ("red. blue", ["blue", "red"], True),
        ("blue red", ["red"], False),
        ("redder than red", ["red"], False),
        ("12.50 euro", ["12"], False),
        ("12. 50", ["12"], True),
        ("a dark red circle", ["Dark Red"], True),
        ("dark redcircle", ["dark red"], False),
        ("dark", ["dark red"], False),
        ("", ["red"], False),
    ],
)
def test_begins_right(said, answers, right):
    assert begins_right(said, answers) is right


SOME = ("red", "Red.", "dark", "the", "a", "12", "12.5", "?")
WORDS = st.lists(st.sampled_from(SOME), max_size=4)


@given(WORDS, WORDS, WORDS)
@example([], ["the"], [])
def test_what_is_right_is_right_leniently(before, answer, after):
    """And so it stays, whatever is said after it."""
    said, wanted = " ".join(before), [" ".join(answer)]
    if is_right(said, wanted):
        assert begins_right(said, wanted)
        if said:
            assert begins_right(" ".join([said, *after]), wanted)
    # Word by word: no other way to be right than an answer that ends where a word does.
    parts = [said, *(said[:end] for end, sign in enumerate(said) if sign == " ")]
    assert begins_right(said, wanted) is any(is_right(part, wanted) for part in parts)


def test_lenient_is_stored_and_reported_beside_strict(tiny, tmp_path):
    """The model says a digit and ends; an answer that it only begins with is made by hand."""
    model, processor = tiny
    processor.tokenizer.padding_side = "left"
    scene = make_scene("test", 0, 4)
    question = "how many shapes are there?"

    def asked(name, kind, answers, match=is_right):
        return Example(name, name, kind, question, answers, lambda: [scene.draw()], match)

    digits, seen = tuple("0123456789"), []

    def watched(said, answers):
        seen.append((said, answers))
        return said.strip() in answers

    examples = [asked("0", "count", digits), asked("1", "own", ("7", *digits), watched)]
    run = Run("full", 1.0)
    evaluation = Evaluation(model, processor, examples, tmp_path, {})
    evaluation.perform(run)
    assert not evaluation.failures
    assert seen
    assert all(answers == ("7", *digits) for _, answers in seen)
    lines = evaluation.lines(run)
    assert [(line["right"], line["begins_right"]) for line in lines] == [(True, True)] * 2
    # As if the second answer had not ended.
    lines[1] |= {"right": False}
    file = tmp_path / "predictions" / "full.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (row,) = evaluation.results([run])["rows"]
    assert (row["macro"], row["types"]) == (50, {"count": 100, "own": 0})
    assert (row["lenient"]["macro"], row["lenient"]["types"]) == (100, {"count": 100, "own": 100})
    assert row["type_intervals"]["own"] == (0, 0)
    assert row["lenient"]["type_intervals"]["own"] == (100, 100)


edges = st.lists(st.integers(0, BINS - 1), min_size=4, max_size=4)


@given(edges, edges)
@example([3, 10, 7, 14], [3, 10, 7, 12])  # half of the union exactly
@example([3, 10, 3, 14], [3, 10, 3, 14])  # without an area
def test_boxes_are_right_from_half_their_union_on(told, true):
    """Against cells counted one by one."""

    def words(box):
        return " ".join(f"{edge}{step}" for edge, step in zip(EDGES, box, strict=True))

    def cells(box):
        left, top, right, bottom = box
        return {(x, y) for x in range(left, right) for y in range(top, bottom)}

    shared, union = cells(told) & cells(true), cells(told) | cells(true)
    expected = bool(union) and 2 * len(shared) >= len(union)
    assert box_is_right(words(told), [words(true)]) is expected
    assert box_is_right(f" {words(told).title()}. ", ["nowhere", words(true)]) is expected


def test_what_is_no_box_is_not_right():
    true = "left3 top10 right7 bottom14"
    for said in ("", "red", "left3 top10 right7", f"{true} left3", "left-3 top10 right7 bottom14"):
        assert not box_is_right(said, [true])
    assert begins_right(f"{true} left3", [true], box_is_right)
    assert not begins_right("left3 top10 right7", [true], box_is_right)


def test_boxes_of_scenes_are_matched_as_boxes():
    """The boxes alone need not be told to the step."""
    examples = load_tasks(["scenes"], 20)
    assert {one.kind for one in examples} == set(QUESTION_TYPES)
    for one in examples:
        assert one.match is (box_is_right if one.kind == "box" else is_right)
        assert one.match(one.answers[0], one.answers)


def test_a_template_takes_the_place_of_the_chat_format(jsonl, tmp_path, tiny):
    """Of the tiny model it is the placeholder and the question: written out, nothing changes."""
    model, processor = tiny
    processor.tokenizer.padding_side = "left"
    run, lines = Run("gprune", 0.5), {}
    for name, template in (
        ("chat", None),
        ("bare", "{question}"),
        ("written", "<image>{question}"),
        ("longer", "is there {question}"),
    ):
        evaluation = Evaluation(
            model, processor, read_jsonl(jsonl), tmp_path / name, {}, template=template
        )
        evaluation.perform(run)
        assert not evaluation.failures
        said = ("id", "prediction", "text_tokens", "visual_tokens")
        lines[name] = [{key: line[key] for key in said} for line in evaluation.lines(run)]
    assert lines["chat"] == lines["bare"] == lines["written"]
    longer = [line["text_tokens"] + 2 for line in lines["chat"]]
    assert [line["text_tokens"] for line in lines["longer"]] == longer


def test_templates_that_do_not_fit(jsonl, tmp_path):
    options = ["--methods", "gprune", "--keep", "0.5", "--tasks", jsonl]
    done = evaluate(*options, "--out", tmp_path / "none", "--template", "Answer:")
    assert done.exit_code == 2
    assert "template='Answer:'" in done.output
    assert "{question}" in done.output
    assert not (tmp_path / "none").exists()
    two = ["--out", tmp_path / "two", "--template", "<image> <image> {question}"]
    done = evaluate(*options, *two)
    assert done.exit_code == 2
    assert "has <image> 2 times" in " ".join(done.output.split())
    with pytest.raises(ValueError, match=r"write \{question\}"):
        Evaluation(None, None, [], tmp_path / "none", {}, template="Answer:")


def test_a_template_is_a_setting(jsonl, tmp_path):
    """Asked by the other name of the shipped model."""
    options = ["--methods", "gprune", "--keep", "0.5", "--tasks", jsonl, "--out", tmp_path]
    ask = functools.partial(evaluate, *options, model="tinyvlm")
    done = ask("--template", "{question}", "--json")
    assert done.exit_code == 0, done.output
    settings = json.loads(done.stdout)["settings"]
    assert (settings["model"], settings["template"]) == ("tinyvlm", "{question}")
    for other in ((), ("--template", "is there {question}")):
        done = ask(*other)
        assert done.exit_code == 2
        assert "with other settings" in done.output
