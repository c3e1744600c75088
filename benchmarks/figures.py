"""The pictures of README.md: python benchmarks/figures.py"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import hard_pictures
import matplotlib.pyplot as plt
import torch
from PIL import Image

from gprune import make, viz
from gprune.ask.answers import answer, first_tokens, pictures_of, quiet_transformers
from gprune.pruners.base import standing_for
from gprune.tinyvlm import load, make_scene, scenes
from gprune.tinyvlm.model import checkpoint_folder
from gprune.training.accuracy import Sample, encode
from gprune.training.card import LOG

FOLDER = Path("docs/images")
SCENE, QUESTION = 11, "background_pattern"
KEEPS = (0.36, 0.1)
GRID = (scenes.GRID, scenes.GRID)
STAGES = {"patches": "stage 1: what patches show", "answers": "stage 2: answers"}
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


def steps(model: object, processor: object) -> None:
    """G-Prune step by step: edges, information as it spreads, scores, and what is kept."""
    pruner = make("gprune", keep=0.25)
    scene = make_scene("test", 0, SCENE)
    outcome = answer(model, processor, pruner, [scene.draw()], "how many shapes are there?")
    image, tokens = scene.draw(), first_tokens(model, outcome)
    built = pruner.graph(tokens)
    edges = built.degree.float()
    connected = int(edges.argmax())
    # Of the tokens with a few edges only, the first: what stands apart.
    apart = int((edges - 4).abs().argmin())
    pictures = [
        (f"token {connected}: {int(edges[connected]) - 1} edges", connected),
        (f"token {apart}: {int(edges[apart]) - 1} edges", apart),
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
    """A picture and what each method keeps of a tenth of its tokens, with captions."""
    tokens = hard_pictures.tokens_of(model, picture)
    drawn = [(title, viz.enlarged(picture))]
    for name in ("graph_cover", "gprune", "divprune", "random"):
        kept = make(name, keep=0.1).select(tokens)
        label = f"{name}: gap {hard_pictures.gap(kept, tokens):.1f}"
        drawn.append((label, viz.overlay(picture, kept, tokens.grid, outline=False)))
    return drawn


def hard(model: object) -> None:
    """What methods keep of pictures that are hard to prune, and of a scene that is not."""
    squares = {
        "blank": hard_pictures.blank(),
        "noise": hard_pictures.noise(),
        "a page of signs": hard_pictures.page(),
        "a scene": make_scene("validation", 0, 2).draw(),
    }
    drawn = [one for pair in squares.items() for one in compared(model, *pair)]
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
    # Noise does not compress: a palette does.
    Image.open(file).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(
        file, optimize=True
    )


def weights(model: object, processor: object) -> None:
    """What WeightedCover's tokens stand for: their regions, and how many tokens are in each."""
    scene = make_scene("test", 0, SCENE)
    (tokens,) = next(encode(model, [Sample(scene.draw(), scene.ask())])).tokens
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.2), layout="constrained")
    axes[0].imshow(scene.draw())
    axes[0].set_title("the picture")
    colors = plt.get_cmap("tab20").colors
    for axis, keep in zip(axes[1:], (0.25, 0.1), strict=True):
        kept, members = make("weighted_cover", keep=keep).reduce_groups([tokens])[0]
        # Neighbours in the order of the tokens get colors far apart.
        shade = [colors[7 * into % len(colors)] for into in members.tolist()]
        axis.imshow(scene.draw(), extent=(0, scenes.GRID, scenes.GRID, 0))
        axis.imshow(
            torch.tensor(shade).view(*GRID, 3), extent=(0, scenes.GRID, scenes.GRID, 0), alpha=0.55
        )
        for token, count in zip(kept.tolist(), standing_for(kept, members).tolist(), strict=True):
            row, column = divmod(token, scenes.GRID)
            box = {"boxstyle": "round,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.8}
            place = (column + 0.5, row + 0.5)
            axis.annotate(f"{count:.0f}", place, ha="center", va="center", fontsize=7, bbox=box)
        axis.set_title(f"keep {keep}: {len(kept)} tokens that count for {len(tokens)}")
    for axis in axes:
        axis.axis("off")
    figure.savefig(FOLDER / "weights.png", dpi=80)


def training() -> None:
    """What the shipped checkpoint's training looked like: losses and answers on the way."""
    records = [json.loads(line) for line in (checkpoint_folder() / LOG).read_text().splitlines()]
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
        for place, name in enumerate(part[0]["validation"]):
            shares = [100 * record["validation"][name] for record in part]
            line = "-" if place < 7 else "--"
            axis.plot(steps, shares, line, marker=".", label=name.replace("_", " "))
        axis.set(title=title, xlabel="step", ylabel="right on validation pictures, %")
        axis.set_ylim(0, 101)
    axes[2].set(title="losses, as weighted", xlabel="minutes of the stage", yscale="log")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, ncols=2)
    figure.savefig(FOLDER / "training.png", dpi=80)


def main() -> None:
    quiet_transformers()
    torch.manual_seed(0)
    FOLDER.mkdir(parents=True, exist_ok=True)
    model, processor = load()
    hero(model, processor)
    graph(model, processor)
    steps(model, processor)
    weights(model, processor)
    training()
    hard(model)


if __name__ == "__main__":
    main()
