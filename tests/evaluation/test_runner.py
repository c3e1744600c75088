"""Runs: correct answers, resumed after a kill, independent of failures, with templates."""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys
import time

import pytest

from gprune import GPrune, L2NormPruner, UniformGridPruner
from gprune.cli.console import console
from gprune.evaluation.runner import Evaluation
from gprune.evaluation.runs import Run, plan_runs
from gprune.evaluation.tasks import load_tasks, read_jsonl
from gprune.training.accuracy import held_out, score
from tests.evaluation.command import evaluate


def test_planned_runs():
    labels = [run.label for run in plan_runs(["gprune", "random"], [0.5, 64])]
    assert labels == [
        "full",
        *("gprune-0.5", "random-0.5-seed0", "random-0.5-seed1", "random-0.5-seed2"),
        *("gprune-64", "random-64-seed0", "random-64-seed1", "random-64-seed2"),
    ]
    assert Run("gprune", 0.5).pruner() == GPrune(0.5)
    with pytest.raises(ValueError, match="unknown"):
        plan_runs(["nosuch"], [0.5])


def test_answers_equal_those_of_the_packed_scorer(tiny, tmp_path):
    """Each question with `generate`, against all questions of a picture in one forward pass."""
    model, processor = tiny
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


def test_an_interrupted_evaluation_is_resumed(jsonl, tmp_path):
    options = ["--methods", "l2_norm", "--keep", "0.3", "--tasks", jsonl]
    assert evaluate(*options, "--out", tmp_path / "whole").exit_code == 0
    whole = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert evaluate(*options, "--out", tmp_path / "cut").exit_code == 0
    file = tmp_path / "cut" / "predictions" / "l2_norm-0.3.jsonl"
    lines = file.read_text().splitlines()
    marked = json.loads(lines[0]) | {"prediction": "stored before"}
    file.write_text(json.dumps(marked) + "\n" + lines[1] + "\n" + lines[2][:20])
    assert evaluate(*options, "--out", tmp_path / "cut").exit_code == 0
    after = [json.loads(line) for line in file.read_text().splitlines()]
    assert after[0] == marked  # finished examples are not repeated
    assert [line["id"] for line in after] == [json.loads(line)["id"] for line in lines]
    cut = json.loads((tmp_path / "cut" / "results.json").read_text())
    assert cut["rows"][1]["types"] == whole["rows"][1]["types"]


def test_a_killed_evaluation_is_resumed(jsonl, tmp_path):
    """Kills the process while it writes; the same command then answers only the rest."""
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
    assert after[: len(before)] == before  # times included: no question was asked twice
    assert [json.loads(line)["id"] for line in after] == [f"mine/{n}" for n in range(1, 61)]
    assert (out / "predictions" / "full.jsonl").read_text() == full


def test_a_failing_method_does_not_stop_the_others(jsonl, tmp_path, monkeypatch):
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
    assert evaluate(*options, "--out", tmp_path / "out").exit_code == 0  # resumed after the fix
    assert not trace.exists()


def test_a_folder_with_other_settings_is_refused(jsonl, tmp_path):
    options = ["--methods", "gprune", "--keep", "0.3", "--tasks", jsonl, "--out", tmp_path / "out"]
    assert evaluate(*options).exit_code == 0
    done = evaluate(*options, "--limit", 2)
    assert done.exit_code == 2
    assert "with other settings" in done.output


def test_a_template_replaces_the_chat_format(jsonl, tmp_path, tiny):
    """The tiny model's format is placeholder and question; as a template it changes nothing."""
    model, processor = tiny
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
        fields = ("id", "prediction", "text_tokens", "visual_tokens")
        lines[name] = [{key: line[key] for key in fields} for line in evaluation.lines(run)]
    assert lines["chat"] == lines["bare"] == lines["written"]
    longer = [line["text_tokens"] + 2 for line in lines["chat"]]
    assert [line["text_tokens"] for line in lines["longer"]] == longer


def test_unusable_templates_are_refused(jsonl, tmp_path):
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


def test_a_template_is_a_stored_setting(jsonl, tmp_path):
    """Uses the other name of the shipped model."""
    options = ["--methods", "gprune", "--keep", "0.5", "--tasks", jsonl, "--out", tmp_path]
    run = functools.partial(evaluate, *options, model="tinyvlm")
    done = run("--template", "{question}", "--json")
    assert done.exit_code == 0, done.output
    settings = json.loads(done.stdout)["settings"]
    assert (settings["model"], settings["template"]) == ("tinyvlm", "{question}")
    for other in ((), ("--template", "is there {question}")):
        done = run(*other)
        assert done.exit_code == 2
        assert "with other settings" in done.output


def test_unusable_options_are_refused(tmp_path, jsonl):
    for options, message in (
        (["--tasks", "nosuch"], "task 'nosuch' is neither"),
        (["--tasks", jsonl, "--methods", "gprun"], "did you mean 'gprune'"),
        (["--tasks", jsonl, "--keep", "0"], "keep=0"),
    ):
        done = evaluate(*options, "--out", tmp_path / "out")
        assert done.exit_code == 2
        assert message in " ".join(done.output.split())
    (tmp_path / "absent.jsonl").write_text(
        json.dumps({"image": "absent.png", "question": "what?", "answer": "1"})
    )
    done = evaluate("--tasks", tmp_path / "absent.jsonl", "--out", tmp_path / "absent")
    assert done.exit_code == 2
    assert "absent.png" in done.output


def test_results_are_not_lost_without_overwrite(jsonl, tmp_path):
    out = tmp_path / "out"
    options = ["--tasks", jsonl, "--out", out]
    assert evaluate(*options, "--methods", "gprune,graph_cover", "--keep", "0.3").exit_code == 0
    before = (out / "results.json").read_text()
    refused = evaluate(*options, "--methods", "gprune", "--keep", "0.5")
    assert refused.exit_code == 2
    assert "holds results of gprune 0.3, graph_cover 0.3, which would be lost" in refused.stderr
    assert (out / "results.json").read_text() == before
    more = evaluate(*options, "--methods", "gprune,graph_cover", "--keep", "0.3,0.5")
    assert more.exit_code == 0
    assert len(json.loads((out / "results.json").read_text())["rows"]) == 5
    replaced = evaluate(*options, "--methods", "gprune", "--keep", "0.5", "--overwrite")
    assert replaced.exit_code == 0
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert [(row["method"], row["keep"]) for row in rows] == [("full", 1.0), ("gprune", 0.5)]
    other = ["--max-new-tokens", "3", "--overwrite"]
    assert evaluate(*options, "--methods", "gprune", "--keep", "0.5", *other).exit_code == 0


def test_the_table_fits_eighty_columns(jsonl, tmp_path, monkeypatch):
    options = ["--tasks", jsonl, "--out", tmp_path / "out", "--methods", "gprune", "--keep", "0.5"]
    brief = evaluate(*options)
    for heading in ("method", "keep", "accuracy, %", "retained", "prefill ms"):
        assert heading in brief.stdout
    table = [line for line in brief.stdout.splitlines() if line.startswith(("\u2502", "\u2503"))]
    assert len(table) == 3  # no row is broken
    assert all(len(line) <= 80 for line in table)
    monkeypatch.setattr(console, "width", 200)
    assert "loyalty" in evaluate(*options, "--wide").stdout


def test_an_interrupted_evaluation_says_how_to_go_on(jsonl, tmp_path, monkeypatch):
    def interrupt(self, tokens):
        raise KeyboardInterrupt

    monkeypatch.setattr(L2NormPruner, "score", interrupt)
    options = ["--methods", "l2_norm", "--keep", "0.3", "--tasks", jsonl, "--out", tmp_path / "out"]
    stopped = evaluate(*options)
    assert stopped.exit_code == 130
    stored = len((tmp_path / "out" / "predictions" / "full.jsonl").read_text().splitlines())
    assert f"interrupted: {stored} of {2 * stored} answers are stored in" in stopped.stderr
    assert "run the same command again to go on" in stopped.stderr
    monkeypatch.undo()
    assert evaluate(*options).exit_code == 0
