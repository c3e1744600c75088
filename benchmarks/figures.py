"""Draws the pictures of README.md and docs: python benchmarks/figures.py"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import hard_pictures
import matplotlib.pyplot as plt
import numpy as np
import torch
from leaderboard import Board
from PIL import Image
from tiny_accuracy import RESULTS

from gprune import make, viz
from gprune.ask.answers import answer
from gprune.ask.loading import quiet_transformers
from gprune.ask.pictures import first_group, outcome_pictures
from gprune.tinyvlm import load, make_scene
from gprune.tinyvlm.contents import GRID as SIDE
from gprune.tinyvlm.model import checkpoint_folder
from gprune.training.accuracy import Sample, encode
from gprune.training.card import TRAINING_LOG

FOLDER = Path("docs/images")
# The scene of the other pictures: it has a patterned and a plain background, shapes and text.
SCENE = 11
GRID = (SIDE, SIDE)
STAGES = {"patches": "stage 1: patch labels", "answers": "stage 2: answers"}
# What the picture of README.md and the start page compares.
KEEPS = (0.25, 0.1)
METHODS = ("weighted_cover", "graph_cover", "gprune", "random")


def right_shares(board: Board) -> np.ndarray:
    """Returns each scene's share of right answers by method and budget of the hero.

    Of the question types in the leaderboard's mean; random is the mean over its seeds.

    Returns:
        [scenes, methods, budgets].
    """
    asked, kinds = board.questions.asked, board.questions.kinds
    picture = np.repeat(np.arange(len(asked)), [len(own) for own in asked])
    counted = np.array([kinds[kind] in board.kinds for own in asked for kind in own])
    number = np.bincount(picture[counted], minlength=len(asked))
    shares = [
        [
            np.bincount(picture[counted], np.mean(board.right[name, keep], 0)[counted], len(asked))
            / number
            for keep in KEEPS
        ]
        for name in METHODS
    ]
    return np.moveaxis(np.array(shares), 2, 0)[: board.questions.scenes]


def typical_scene(shares: np.ndarray) -> int:
    """Returns the scene whose shares are nearest to the mean over all scenes, the first of several.

    Args:
        shares: [scenes, methods, budgets]; near is the sum of absolute differences.
    """
    distances = np.abs(shares - shares.mean(0)).sum((1, 2))
    return int(distances.argmin())


def hero(model: object) -> None:
    """Draws what each method keeps of the typical scene, with its share of right answers.

    Once for light pages, and once with bright words on no background for dark ones.
    """
    shares = right_shares(Board(RESULTS))
    index = typical_scene(shares)
    image = make_scene("test", 0, index).draw()
    tokens = hard_pictures.tokens_of(model, image)
    drawn = [
        [viz.overlay(image, make(name, keep=keep).select(tokens), GRID) for name in METHODS]
        for keep in KEEPS
    ]
    for file, color in (("hero.png", "black"), ("hero_dark.png", "#e8e8e8")):
        figure = hero_figure(image, drawn, shares, index, color)
        figure.savefig(FOLDER / file, dpi=100, transparent=file == "hero_dark.png")
    print(f"hero.png shows scene {index}, the typical one of {len(shares)}")


def hero_figure(
    image: Image.Image,
    drawn: list[list[Image.Image]],
    shares: np.ndarray,
    index: int,
    color: str,
) -> plt.Figure:
    """Lays out the hero: the scene, and a row of methods for each budget.

    Args:
        image: the scene.
        drawn: the kept tokens by budget and method.
        shares: of right answers, [scenes, methods, budgets].
        index: of the scene.
        color: of the words.
    """
    figure, axes = plt.subplots(2, 5, figsize=(13, 5.8), layout="constrained")
    axes[0, 0].imshow(viz.enlarged(image))
    axes[0, 0].set_title("the picture\nall 256 tokens", fontsize=11, color=color)
    for row, keep in enumerate(KEEPS):
        for column, name in enumerate(METHODS):
            here, mean = shares[index, column, row], shares[:, column, row].mean()
            axis = axes[row, column + 1]
            axis.imshow(drawn[row][column])
            title = f"{name}, keep {keep}\n{here:.0%} right here, {mean:.0%} on average"
            axis.set_title(title, fontsize=11, color=color)
    for axis in axes.flat:
        axis.axis("off")
    return figure


def graph(model: object, processor: object) -> None:
    """Draws G-Prune on a scene: kept tokens, scores, and the strongest neighbours of a token."""
    pruner = make("gprune", keep=0.36)
    scene = make_scene("test", 0, SCENE)
    outcome = answer(model, processor, pruner, [scene.draw()], "how many shapes are there?")
    figure = viz.panel(outcome_pictures(model, processor, pruner, outcome, [scene.draw()]))
    figure.savefig(FOLDER / "graph.png", dpi=80)


def steps(model: object, processor: object) -> None:
    """Draws the steps of G-Prune: edges, propagated information, scores, and kept tokens."""
    pruner = make("gprune", keep=0.25)
    scene = make_scene("test", 0, SCENE)
    outcome = answer(model, processor, pruner, [scene.draw()], "how many shapes are there?")
    image, tokens = scene.draw(), first_group(model, outcome)
    built = pruner.graph(tokens)
    edges = built.degree.float()
    connected = int(edges.argmax())
    # The first token with only a few edges: distinct content.
    distinct = int((edges - 4).abs().argmin())
    pictures = [
        (f"token {connected}: {int(edges[connected]) - 1} edges", connected),
        (f"token {distinct}: {int(edges[distinct]) - 1} edges", distinct),
    ]
    drawn = [(text, viz.graph_picture(image, built, token, GRID)) for text, token in pictures]
    for count in (0, 1, pruner.iterations):
        information = built.propagate(built.norms, count).float()
        drawn.append((f"information after {count} steps", viz.score_map(image, information, GRID)))
    drawn.append(("edges of each token", viz.score_map(image, edges, GRID)))
    drawn.append(("score: information per edge", viz.score_map(image, pruner.score(tokens), GRID)))
    kept = pruner.select(tokens)
    drawn.append((f"kept: {len(kept)} of {len(tokens)}", viz.overlay(image, kept, GRID)))
    viz.panel(drawn).savefig(FOLDER / "steps.png", dpi=80)


def compared(model: object, title: str, picture: Image.Image) -> list[tuple[str, Image.Image]]:
    """Draws a picture, and a tenth of its tokens as each method keeps them, with captions."""
    tokens = hard_pictures.tokens_of(model, picture)
    drawn = [(title, viz.enlarged(picture))]
    for name in ("graph_cover", "gprune", "divprune", "random"):
        kept = make(name, keep=0.1).select(tokens)
        label = f"{name}: gap {hard_pictures.gap(kept, tokens):.1f}"
        drawn.append((label, viz.overlay(picture, kept, tokens.grid, outline=False)))
    return drawn


def hard(model: object) -> None:
    """Draws what methods keep of pictures that are hard to prune, and of an ordinary scene."""
    squares = {
        "blank": hard_pictures.blank(),
        "noise": hard_pictures.noise(),
        "a page of signs": hard_pictures.page(),
        "a scene": make_scene("validation", 0, 2).draw(),
    }
    drawn = list(itertools.chain(*(compared(model, *pair) for pair in squares.items())))
    figure = plt.figure(figsize=(10.5, 12.7), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(9, 4.3))
    wide = compared(model, "a strip of four squares", hard_pictures.strip())
    for axes, pictures in ((above.subplots(4, 5), drawn), (below.subplots(3, 2), wide)):
        for axis in axes.flat:
            axis.axis("off")
        for axis, (label, image) in zip(axes.flat, pictures, strict=False):
            axis.imshow(image)
            axis.set_title(label, fontsize=9)
    file = FOLDER / "hard.png"
    figure.savefig(file, dpi=80)
    # A palette, because noise does not compress otherwise.
    Image.open(file).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(
        file, optimize=True
    )


def weights(model: object, processor: object) -> None:
    """Draws the regions that WeightedCover merges, with their numbers of tokens."""
    scene = make_scene("test", 0, SCENE)
    (tokens,) = next(encode(model, [Sample(scene.draw(), scene.ask())])).tokens
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.2), layout="constrained")
    axes[0].imshow(scene.draw())
    axes[0].set_title("the picture")
    colors = plt.get_cmap("tab20").colors
    for axis, keep in zip(axes[1:], (0.25, 0.1), strict=True):
        reduction = make("weighted_cover", keep=keep).reduce(tokens)
        kept, members = reduction.kept, reduction.members
        assert members is not None
        # A step of 7 gives consecutive regions different colors.
        shade = [colors[7 * member % len(colors)] for member in members.tolist()]
        axis.imshow(scene.draw(), extent=(0, SIDE, SIDE, 0))
        axis.imshow(torch.tensor(shade).view(*GRID, 3), extent=(0, SIDE, SIDE, 0), alpha=0.55)
        for token, count in zip(kept.tolist(), reduction.member_counts().tolist(), strict=True):
            row, column = divmod(token, SIDE)
            box = {"boxstyle": "round,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.8}
            centre = (column + 0.5, row + 0.5)
            axis.annotate(f"{count:.0f}", centre, ha="center", va="center", fontsize=7, bbox=box)
        axis.set_title(f"keep {keep}: {len(kept)} tokens represent {len(tokens)}")
    for axis in axes:
        axis.axis("off")
    figure.savefig(FOLDER / "weights.png", dpi=80)


def training() -> None:
    """Draws losses and validation accuracy during the training of the shipped checkpoint."""
    records = [
        json.loads(line) for line in (checkpoint_folder() / TRAINING_LOG).read_text().splitlines()
    ]
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    for axis, (stage, title) in zip(axes, STAGES.items(), strict=False):
        part = [record for record in records if record["stage"] == stage]
        steps = [record["step"] for record in part]
        for name in [name for name in part[0] if name.startswith("loss_")]:
            axes[2].plot(
                [record["seconds"] / 60 for record in part],
                [record[name] for record in part],
                marker=".",
                label=f"{stage}: {name.removeprefix('loss_')}",
            )
        for index, name in enumerate(part[0]["validation"]):
            shares = [100 * record["validation"][name] for record in part]
            line = "-" if index < 7 else "--"
            axis.plot(steps, shares, line, marker=".", label=name.replace("_", " "))
        axis.set(title=title, xlabel="step", ylabel="validation accuracy, %")
        axis.set_ylim(0, 101)
    axes[2].set(title="weighted losses", xlabel="minutes of the stage", yscale="log")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, ncols=2)
    figure.savefig(FOLDER / "training.png", dpi=80)


def main() -> None:
    """Draws every picture."""
    quiet_transformers()
    torch.manual_seed(0)
    FOLDER.mkdir(parents=True, exist_ok=True)
    model, processor = load()
    hero(model)
    graph(model, processor)
    steps(model, processor)
    weights(model, processor)
    training()
    hard(model)


if __name__ == "__main__":
    main()
