"""The files beside a checkpoint: model card, training log, checksums."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gprune.tinyvlm import load
from gprune.tinyvlm.model import SHIPPED, checkpoint_folder
from gprune.training import card
from gprune.training.accuracy import held_out, score
from gprune.training.command import app
from gprune.training.recipe import Recipe

FOLDER = checkpoint_folder()


@pytest.fixture(scope="module")
def accuracy():
    return card.measure(load()[0], scenes=12, easy_vqa=3)


@pytest.mark.parametrize("name", SHIPPED)
def test_checksums_of_the_shipped_checkpoints(name):
    """Reads the file as `sha256sum` writes it."""
    folder = checkpoint_folder(name)
    stored = dict(
        line.split("  ")[::-1] for line in (folder / card.SUMS_FILE).read_text().splitlines()
    )
    assert stored == card.checksums(folder)
    assert {"model.safetensors", "config.json", card.CARD_FILE, card.TRAINING_LOG} < stored.keys()


def read_accuracy(text):
    """Parses the accuracy table of a card."""
    found = card.Accuracy({}, {}, {}, {}, {})
    number = r"([\d.]+)"
    row = rf"^\| ([a-z ]+) \| {number} \| {number} \({number} to {number}\)"
    row += rf" \| {number} \| {number} \|"
    for name, count, full, low, high, another, blind in re.findall(row, text, re.MULTILINE):
        kind = name.replace(" ", "_")
        found.questions[kind], found.full[kind] = int(count), float(full)
        found.intervals[kind] = float(low), float(high)
        found.another[kind], found.blind[kind] = float(another), float(blind)
    return found


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_cards_follow_the_template(name):
    folder = checkpoint_folder(name)
    text = (folder / card.CARD_FILE).read_text()
    recipe = json.loads((folder / "recipe.json").read_text())
    records = [json.loads(line) for line in (folder / card.TRAINING_LOG).open()]
    accuracy = read_accuracy(text)
    assert len(accuracy.full) == 13
    assert card.card_text(recipe, records, accuracy, (400, 150)) == text


def test_the_shipped_recipe_is_the_default():
    from dataclasses import asdict

    # Trained before the option `attention` existed.
    stored = {"attention": "sdpa", **json.loads((FOLDER / "recipe.json").read_text())}
    assert stored == asdict(Recipe())


def test_accuracy_agrees_with_the_scored_questions(accuracy):
    model, _ = load()
    samples = held_out("test", 12, 3)
    right, counts = Counter(), Counter()
    for sample, results in zip(samples, score(model, samples), strict=True):
        for question, good in zip(sample.questions, results, strict=True):
            counts[question.kind] += 1
            right[question.kind] += good
    assert accuracy.questions == counts
    assert accuracy.full == {kind: 100 * right[kind] / counts[kind] for kind in accuracy.full}
    for kind, (low, high) in accuracy.intervals.items():
        assert low <= accuracy.full[kind] <= high


def test_pictures_matter(accuracy):
    """Without the picture, or with another one, accuracy is near the prior."""
    for kind in ("background_pattern", "background_color", "color", "text"):
        assert accuracy.blind[kind] <= 60 < accuracy.full[kind]
        assert accuracy.another[kind] <= 60


def test_gates():
    found = card.Accuracy({"count": 89.9, "text": 90.0, "box": 80.0, "relation": 79.0}, *[{}] * 4)
    assert found.passed == ["text", "box"]


def test_a_card_contains_the_measurements(accuracy, tmp_path):
    log = tmp_path / "log.jsonl"
    lines = [
        {"stage": "patches", "step": 10, "seconds": 60.0},
        {"stage": "answers", "step": 5, "seconds": 30.0},
        {"stage": "answers", "step": 20, "seconds": 120.0},
    ]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "checkpoint"
    out.mkdir()
    recipe = json.loads((FOLDER / "recipe.json").read_text())
    card.write(out, recipe, log, accuracy, (12, 3))
    text = (out / card.CARD_FILE).read_text()
    assert f"| answers | 20 | 2 | {20 * recipe['batch'] / 120:.1f} |" in text
    for kind, share in accuracy.full.items():
        row = next(
            line for line in text.splitlines() if line.startswith(f"| {kind.replace('_', ' ')} ")
        )
        assert f"| {accuracy.questions[kind]} | {share:.1f} (" in row
        assert row.endswith("| yes |" if kind in accuracy.passed else "| no |")
    assert (out / card.TRAINING_LOG).read_text() == log.read_text()
    assert set(card.checksums(out)) == {card.CARD_FILE, card.TRAINING_LOG, "recipe.json"}


def test_a_card_contains_the_training_command():
    recipe = json.loads((FOLDER / "recipe.json").read_text())
    assert card.command_options(recipe) == " --tower clip --seed 0"
    recipe |= {"language": "tinyvlm", "objective": "captions", "answer_rate": 5e-4}
    words = card.command_options(recipe).split()
    given = dict(zip(words[::2], words[1::2], strict=True))
    assert given["--language"] == "tinyvlm"
    assert given["--objective"] == "captions"
    options = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    assert all(name in options for name in given)
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    siglip = json.loads((checkpoint_folder("tinyvlm-siglip") / "recipe.json").read_text())
    words = card.command_options(siglip).split()
    command = " ".join(makefile.split("train-siglip: ")[1].split("\n\n")[0].split())
    for name, value in zip(words[::2], words[1::2], strict=True):
        assert f"{name} {value}" in command.replace("5e-4", "0.0005")
