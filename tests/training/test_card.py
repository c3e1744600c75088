"""What stands beside a checkpoint: accuracy, the log of its training, checksums."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gprune.tinyvlm import card, load
from gprune.tinyvlm.model import SHIPPED as NAMES
from gprune.tinyvlm.model import checkpoint_folder
from gprune.training.accuracy import held_out, score
from gprune.training.train import Recipe
from gprune.training.train import app as train

SHIPPED = checkpoint_folder()


@pytest.fixture(scope="module")
def accuracy():
    return card.measure(load()[0], scenes=12, easy_vqa=3)


@pytest.mark.parametrize("name", NAMES)
def test_checksums_of_the_shipped_checkpoints(name):
    """In the format of the command sha256sum."""
    folder = checkpoint_folder(name)
    stored = dict(line.split("  ")[::-1] for line in (folder / card.SUMS).read_text().splitlines())
    assert stored == card.sums_of(folder)
    assert {"model.safetensors", "config.json", card.CARD, card.LOG} < stored.keys()


def test_the_shipped_recipe_is_the_default():
    from dataclasses import asdict

    # It was trained when there was no other attention to choose.
    stored = {"attention": "sdpa", **json.loads((SHIPPED / "recipe.json").read_text())}
    assert stored == asdict(Recipe())


def test_accuracy_is_that_of_the_scored_questions(accuracy):
    model, _ = load()
    samples = held_out("test", 12, 3)
    right, asked = Counter(), Counter()
    for sample, results in zip(samples, score(model, samples), strict=True):
        for question, good in zip(sample.questions, results, strict=True):
            asked[question.kind] += 1
            right[question.kind] += good
    assert accuracy.questions == asked
    assert accuracy.full == {kind: 100 * right[kind] / asked[kind] for kind in accuracy.full}
    for kind, (low, high) in accuracy.intervals.items():
        assert low <= accuracy.full[kind] <= high


def test_pictures_matter(accuracy):
    """What the model says without the picture, or with another, is about the prior."""
    for kind in ("background_pattern", "background_color", "color", "text"):
        assert accuracy.blind[kind] <= 60 < accuracy.full[kind]
        assert accuracy.another[kind] <= 60


def test_gates():
    found = card.Accuracy({"count": 89.9, "text": 90.0, "box": 80.0, "relation": 79.0}, *[{}] * 4)
    assert found.passed == ["text", "box"]


def test_a_card_says_what_was_measured(accuracy, tmp_path):
    log = tmp_path / "log.jsonl"
    lines = [
        {"stage": "patches", "step": 10, "seconds": 60.0},
        {"stage": "answers", "step": 5, "seconds": 30.0},
        {"stage": "answers", "step": 20, "seconds": 120.0},
    ]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "checkpoint"
    out.mkdir()
    recipe = json.loads((SHIPPED / "recipe.json").read_text())
    card.write(out, recipe, log, accuracy, (12, 3))
    text = (out / card.CARD).read_text()
    assert f"| answers | 20 | 2 | {20 * recipe['batch'] / 120:.1f} |" in text
    for kind, share in accuracy.full.items():
        row = next(
            line for line in text.splitlines() if line.startswith(f"| {kind.replace('_', ' ')} ")
        )
        assert f"| {accuracy.questions[kind]} | {share:.1f} (" in row
        assert row.endswith("| yes |" if kind in accuracy.passed else "| no |")
    assert (out / card.LOG).read_text() == log.read_text()
    assert set(card.sums_of(out)) == {card.CARD, card.LOG, "recipe.json"}


def test_a_card_names_the_command_that_trains_the_model():
    recipe = json.loads((SHIPPED / "recipe.json").read_text())
    assert card.options_of(recipe) == " --tower clip --seed 0"
    recipe |= {"language": "tinyvlm", "objective": "captions", "answer_rate": 5e-4}
    words = card.options_of(recipe).split()
    given = dict(zip(words[::2], words[1::2], strict=True))
    assert given["--language"] == "tinyvlm"
    assert given["--objective"] == "captions"
    options = CliRunner().invoke(train, ["--help"], env={"COLUMNS": "200"}).output
    assert all(name in options for name in given)
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    siglip = json.loads((checkpoint_folder("tinyvlm-siglip") / "recipe.json").read_text())
    words = card.options_of(siglip).split()
    command = " ".join(makefile.split("train-siglip: ")[1].split("\n\n")[0].split())
    for name, value in zip(words[::2], words[1::2], strict=True):
        assert f"{name} {value}" in command.replace("5e-4", "0.0005")
