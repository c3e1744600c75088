"""The committed leaderboard is that of the committed results, and those are the model's."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gprune.pruners
from gprune import RandomPruner, UniformGridPruner, UnsupportedModelError
from gprune.evaluation.metrics import Tally, percentile_interval, tied_ranks
from gprune.tinyvlm import load
from gprune.training.accuracy import held_out, score

ROOT = Path(__file__).parents[2]
SCENES, EASY_VQA = 3, 2


@pytest.fixture
def accuracy(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import tiny_accuracy

    return tiny_accuracy


@pytest.fixture
def leaderboard(accuracy):
    import leaderboard

    return leaderboard


@pytest.fixture
def measure(accuracy, tmp_path):
    """Runs the benchmark on few pictures; returns the folder of its results."""

    def run(names, keeps="0.3,0.1", **options):
        out = tmp_path / "results"
        settings = {"checkpoint": None, "again": False, "out": out, "work": tmp_path / "work"}
        sizes = {"scenes": SCENES, "easy_vqa": EASY_VQA}
        accuracy.main(names=names, keeps=keeps, **(settings | sizes | options))
        return out

    return run


def test_the_committed_page(leaderboard, monkeypatch):
    monkeypatch.chdir(ROOT)
    committed = leaderboard.PAGE.read_text()
    assert leaderboard.page(leaderboard.RESULTS) == committed, "run benchmarks/leaderboard.py"
    with pytest.raises(ValueError, match="lacks"):
        leaderboard.between_marks("no marks", "")


@pytest.mark.parametrize(("path", "text"), [("README", "readme_table"), ("IN_SHORT", "in_short")])
def test_the_committed_tables(leaderboard, monkeypatch, path, text):
    """Every method stands in docs/results.md; README.md has some of its rows."""
    monkeypatch.chdir(ROOT)
    committed = getattr(leaderboard, path).read_text()
    generated = getattr(leaderboard, text)(leaderboard.RESULTS)
    assert leaderboard.between_marks(committed, generated) == committed, (
        "run benchmarks/leaderboard.py"
    )
    assert f"| {leaderboard.README_METHODS[0]} | 97.4 (100%) |" in generated


def test_the_question_types_are_folded(leaderboard, monkeypatch):
    """A reader opens the types that matter; every folded table closes."""
    monkeypatch.chdir(ROOT)
    board = leaderboard.Board(leaderboard.RESULTS)
    page = leaderboard.page(leaderboard.RESULTS).partition("## By question type")[2]
    assert page.count("<details markdown") == page.count("</details>") == len(board.questions.kinds)


def test_what_is_stored_is_what_was_answered(accuracy, measure):
    folder = measure("random,uniform_grid")
    model, _ = load()
    samples = held_out("test", SCENES, EASY_VQA)
    count = sum(len(sample.questions) for sample in samples)
    assert len(accuracy.read_questions(folder)) == count
    for method, seed, pruner in (
        ("full", None, None),
        ("uniform_grid", None, UniformGridPruner(0.3)),
        ("random", 2, RandomPruner(0.3, seed=2)),
    ):
        runs = accuracy.read_method(folder, method)["runs"]
        keep = 1.0 if pruner is None else 0.3
        (stored,) = [run for run in runs if (run["keep"], run["seed"]) == (keep, seed)]
        expected = [right for results in score(model, samples, pruner) for right in results]
        assert accuracy.unpacked(stored["right"], count).tolist() == expected


def test_finished_runs_are_not_repeated(accuracy, measure, monkeypatch):
    folder = measure("random", "0.3")
    before = {path.name: path.read_text() for path in folder.iterdir()}
    done = []
    right = accuracy.Scorer.right
    monkeypatch.setattr(
        accuracy.Scorer, "right", lambda self, run: done.append(run.label) or right(self, run)
    )
    # As a kill leaves it: one seed of three is missing.
    stored = json.loads(before["random.json"])
    stored["runs"].pop(1)
    (folder / "random.json").write_text(json.dumps(stored))
    measure("random,uniform_grid", "0.3")
    assert done == ["random-0.3-seed1", "uniform_grid-0.3"]
    assert (folder / "random.json").read_text() == before["random.json"]
    done.clear()
    measure("uniform_grid", "0.3", again=True)
    assert done == ["uniform_grid-0.3"]


def test_other_questions_are_refused(measure):
    measure("uniform_grid", "0.3")
    with pytest.raises(ValueError, match="results of other questions"):
        measure("uniform_grid", "0.3", scenes=SCENES + 1)


@dataclasses.dataclass(frozen=True)
class InsideAlone(UniformGridPruner):
    """Stands for methods that need what only the model in its place has."""

    name: ClassVar[str] = "inside_alone"

    def reduce(self, tokens):
        raise ValueError("attention is missing")


@dataclasses.dataclass(frozen=True)
class Nowhere(InsideAlone):
    """Stands for methods that the model lacks something for."""

    name: ClassVar[str] = "nowhere"

    def __call__(self, model, positions="original"):
        raise UnsupportedModelError("the encoder has no CLS token")


def test_methods_that_features_do_not_serve(accuracy, leaderboard, measure, monkeypatch):
    for method in (InsideAlone, Nowhere):
        monkeypatch.setitem(gprune.pruners.METHODS, method.name, method)
    folder = measure("uniform_grid,inside_alone,nowhere", "0.3")
    same, refused = (accuracy.read_method(folder, name) for name in ("inside_alone", "nowhere"))
    # Asked one by one through generate, it answers as in one pass.
    assert same["runs"] == accuracy.read_method(folder, "uniform_grid")["runs"]
    assert refused["runs"] == []
    page = leaderboard.page(folder)
    assert "- `nowhere`: UnsupportedModelError: the encoder has no CLS token" in page
    # A refusal is an answer too: it is not asked for again.
    monkeypatch.setattr(accuracy.Scorer, "right", None)
    measure("nowhere", "0.3")


def test_a_page(leaderboard, measure, monkeypatch):
    monkeypatch.setattr(leaderboard, "REFERENCE", "uniform_grid")
    folder = measure("gprune,random,uniform_grid")
    page = leaderboard.page(folder)
    board = leaderboard.Board(folder)
    assert board.keeps == [0.3, 0.1]
    means = [
        board.tallies[name, 0.3].macro + board.tallies[name, 0.1].macro for name in board.methods
    ]
    assert sorted(means, reverse=True) == means
    for keep in board.keeps:
        ranks = tied_ranks(board.at(keep))
        for name in board.methods:
            assert f"**{ranks[name]}** · {board.tallies[name, keep].macro:.1f} (" in page
    assert page.count("- keep ") == len(board.keeps)
    poor = page.partition("to be in the mean: ")[2].partition("\n")[0]
    full = board.whole["full", 1.0]
    for kind, accuracy in zip(full.kinds, full.accuracy, strict=True):
        well = accuracy >= (80 if kind in ("box", "relation") else 90)
        assert (kind in board.kinds) == well
        assert (f"{kind.replace('_', ' ')} (" in poor) == (not well)
    assert board.full.kinds == board.kinds
    assert board.full.macro == np.mean(
        [a for k, a in zip(full.kinds, full.accuracy, strict=True) if k in board.kinds]
    )
    assert "| uniform_grid | 0.0 |" in page  # on what it got wrong itself
    assert page.count("\n### ") == 1 + len(board.questions.kinds)


def test_a_page_without_random_or_reference(leaderboard, measure):
    page = leaderboard.page(measure("gprune", "0.3"))
    assert "there are no results of `downsampling` yet" in page
    assert "| gprune |  |" in page


@given(st.lists(st.booleans()))
def test_packing(right):
    import sys

    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from tiny_accuracy import packed, unpacked
    finally:
        sys.path.pop(0)
    assert unpacked(packed(right), len(right)).tolist() == right


def test_ranks_are_tied_where_nothing_tells_apart():
    rng = np.random.default_rng(0)
    asked = np.ones((300, 1))
    base = rng.random((300, 1))
    tallies = {
        "good": Tally(["x"], (base < 0.9).astype(float), asked),
        "as good": Tally(["x"], (rng.random((300, 1)) < 0.88).astype(float), asked),
        "poor": Tally(["x"], (base < 0.5).astype(float), asked),
        # Barely below the good one, but on every picture: pairing tells.
        "paired": Tally(["x"], (base < 0.87).astype(float), asked),
    }
    ranks = tied_ranks(tallies)
    assert (ranks["good"], ranks["as good"], ranks["poor"]) == (1, 1, 4)
    assert ranks["paired"] == 2
    low, _ = tallies["good"].interval
    assert low < tallies["paired"].interval[1]  # by their own intervals they would be tied
    for name, tally in tallies.items():
        better = [
            other
            for other in tallies.values()
            if percentile_interval(other.resampled() - tally.resampled())[0] > 0
        ]
        assert ranks[name] == 1 + len(better)


def test_rare_types_have_intervals():
    """A type that few pictures ask about is missing from some bootstrap samples."""
    right = np.zeros((40, 1))
    asked = np.zeros((40, 1))
    right[0], asked[:2] = 1, 1
    tally = Tally(["rare"], right, asked)
    assert np.isnan(tally.resampled()).any()
    assert tally.interval == (0, 100)
