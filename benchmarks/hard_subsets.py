"""The tiny model's accuracy on hard scenes: python benchmarks/hard_subsets.py

Validation scenes that are crowded, plain or full, noisy or faded, each with the questions that it
can be asked: of a crowded scene with several texts, none about text. What is counted is the share
of all questions that are answered right. Subsets that have been scored are not scored again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image

from gprune import make
from gprune.ask.answers import quiet_transformers
from gprune.tinyvlm import load, make_scene
from gprune.training.accuracy import Sample, encode, score

RESULTS = Path(__file__).parent / "results" / "hard_subsets.json"
NAMES = (
    *("weighted_cover", "graph_cover", "divprune", "weighted_gprune", "gprune"),
    *("uniform_grid", "random"),
)
KEEPS = (0.25, 0.1)
# Standard deviation of the noise, in levels of 256, and how much contrast is left.
NOISE, CONTRAST = 40.0, 0.4
# Plain and full scenes are taken from so many times as many.
AMONG = 3


def noisy(picture: Image.Image, seed: int) -> Image.Image:
    """The picture with Gaussian noise on every channel of every pixel."""
    pixels = np.asarray(picture) + np.random.default_rng(seed).normal(0, NOISE, (*picture.size, 3))
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def faded(picture: Image.Image) -> Image.Image:
    """The picture with less contrast, around mid-grey."""
    return Image.blend(Image.new("RGB", picture.size, (128, 128, 128)), picture, CONTRAST)


def ordinary(count: int) -> list[Sample]:
    made = [make_scene("validation", 0, index) for index in range(count)]
    return [Sample(scene.draw(), scene.ask()) for scene in made]


def crowded(count: int) -> list[Sample]:
    made = [make_scene("validation", 0, index, crowded=True) for index in range(count)]
    return [Sample(scene.draw(), scene.ask()) for scene in made]


def by_foreground(count: int, most: bool) -> list[Sample]:
    """The scenes with the least foreground, or the most, of some."""
    made = [make_scene("validation", 0, index) for index in range(AMONG * count)]
    made.sort(key=lambda scene: int(scene.foreground().sum()), reverse=most)
    return [Sample(scene.draw(), scene.ask()) for scene in made[:count]]


def with_noise(count: int) -> list[Sample]:
    whole = enumerate(ordinary(count))
    return [Sample(noisy(one.image, seed), one.questions) for seed, one in whole]


def with_little_contrast(count: int) -> list[Sample]:
    return [Sample(faded(one.image), one.questions) for one in ordinary(count)]


SUBSETS: dict[str, Callable[[int], list[Sample]]] = {
    "ordinary": ordinary,
    "crowded": crowded,
    "noisy": with_noise,
    "faded": with_little_contrast,
    "plain": lambda count: by_foreground(count, most=False),
    "full": lambda count: by_foreground(count, most=True),
}


def scored(model: Any, samples: list[Sample]) -> dict[str, Any]:
    """How many questions there are, and the share answered right, in %, by run."""
    with torch.inference_mode():
        encoded = list(encode(model, samples))
    runs = {"all tokens": None}
    runs |= {f"{name} {keep}": make(name, keep=keep) for keep in KEEPS for name in NAMES}
    right = {
        label: [one for many in score(model, samples, pruner, encoded) for one in many]
        for label, pruner in runs.items()
    }
    shares = {label: 100 * float(np.mean(outcomes)) for label, outcomes in right.items()}
    return {"pictures": len(samples), "questions": len(right["all tokens"]), "right": shares}


def table(results: dict[str, Any]) -> str:
    """Markdown: a line for each subset and budget."""
    lines = [
        f"| | questions | all tokens | keep | {' | '.join(NAMES)} |",
        "|---" * (4 + len(NAMES)) + "|",
    ]
    for subset, found in results.items():
        right = found["right"]
        for keep in KEEPS:
            shares = " | ".join(f"{right[f'{name} {keep}']:.1f}" for name in NAMES)
            head = f"| {subset} | {found['questions']} | {right['all tokens']:.1f}"
            lines.append(f"{head} | {keep} | {shares} |")
    return "\n".join(lines) + "\n"


def main(
    count: Annotated[int, typer.Option(min=1, help="Pictures of a subset.")] = 100,
    out: Annotated[Path, typer.Option(help="Where to write the numbers.")] = RESULTS,
) -> None:
    """Score what has not been scored yet and print a table."""
    quiet_transformers()
    model, _ = load()
    results = json.loads(out.read_text()) if out.is_file() else {}
    for subset, samples in SUBSETS.items():
        if results.get(subset, {}).get("pictures") == count:
            continue
        results[subset] = scored(model, samples(count))
        out.write_text(json.dumps(results, indent=2) + "\n")
    print(table(results), end="")


if __name__ == "__main__":
    typer.run(main)
