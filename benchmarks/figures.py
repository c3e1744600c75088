"""The pictures of README.md: python benchmarks/figures.py"""

from __future__ import annotations

import textwrap
from pathlib import Path

import torch

from gprune import make, viz
from gprune.cli import answer, pictures_of, quiet_transformers
from gprune.tinyvlm import load, make_scene

FOLDER = Path("docs/images")
SCENE, QUESTION = 11, "background_pattern"
KEEPS = (0.36, 0.1)
METHODS = ("gprune", "graph_cover", "divprune", "random")


def hero(model: object, processor: object) -> None:
    """One scene, what each method keeps of it at two budgets, and the answer to one question."""
    scene = make_scene("test", 0, SCENE)
    question = next(item for item in scene.ask() if item.kind == QUESTION)
    pictures = []
    for keep in KEEPS:
        for name in METHODS:
            pruner = make(name, keep=keep)
            outcome = answer(model, processor, pruner, [scene.draw()], question.question)
            group = outcome.pruned.kept[0][0]
            caption = f"{name}, {len(group.indices)} of {group.size} tokens: "
            drawn = viz.overlay(scene.draw(), group.indices, group.grid)
            pictures.append((caption + textwrap.shorten(outcome.answer_pruned, 16), drawn))
    title = f"{question.question}  (right: {question.answer})"
    viz.panel(pictures, title, columns=len(METHODS)).savefig(FOLDER / "hero.png", dpi=80)


def graph(model: object, processor: object) -> None:
    """What G-Prune sees in one scene: kept tokens, scores, and a token's strongest neighbours."""
    pruner = make("gprune", keep=0.36)
    scene = make_scene("test", 0, SCENE)
    outcome = answer(model, processor, pruner, [scene.draw()], "how many shapes are there?")
    figure = viz.panel(pictures_of(model, processor, pruner, outcome, scene.draw()))
    figure.savefig(FOLDER / "graph.png", dpi=80)


def main() -> None:
    quiet_transformers()
    torch.manual_seed(0)
    FOLDER.mkdir(parents=True, exist_ok=True)
    model, processor = load()
    hero(model, processor)
    graph(model, processor)


if __name__ == "__main__":
    main()
