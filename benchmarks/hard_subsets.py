"""Measures the tiny model's accuracy on hard scenes: python benchmarks/hard_subsets.py

The subsets are validation scenes that are crowded, plain, full, noisy or faded, each with all
questions that apply (none about text in a crowded scene with several texts). Accuracy is the share
of all questions that are answered right. Subsets with stored results are skipped.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image

from gprune import make
from gprune.ask.loading import quiet_transformers
from gprune.tinyvlm import load, make_scene
from gprune.tinyvlm.scenes import Scene
from gprune.training.accuracy import Sample, encode, score
from gprune.training.labels import foreground

RESULTS = Path(__file__).parent / "results" / "hard_subsets.json"
NAMES = (
    *("weighted_cover", "graph_cover", "divprune", "weighted_gprune", "gprune"),
    *("uniform_grid", "random"),
)
KEEPS = (0.25, 0.1)
# Standard deviation of the noise in 8-bit levels, and the remaining contrast.
NOISE, CONTRAST = 40.0, 0.4
# Plain and full scenes are chosen from this many times as many.
POOL_FACTOR = 3


def noisy(picture: Image.Image, seed: int) -> Image.Image:
    """Adds Gaussian noise to every channel of every pixel."""
    pixels = np.asarray(picture) + np.random.default_rng(seed).normal(0, NOISE, (*picture.size, 3))
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def faded(picture: Image.Image) -> Image.Image:
    """Reduces the contrast around mid-grey."""
    return Image.blend(Image.new("RGB", picture.size, (128, 128, 128)), picture, CONTRAST)


def samples_of(scenes: Iterable[Scene]) -> list[Sample]:
    """Draws scenes and asks all their questions."""
    return [Sample(scene.draw(), scene.ask()) for scene in scenes]


def ordinary(count: int) -> list[Sample]:
    """Returns the first validation scenes."""
    return samples_of(make_scene("validation", 0, index) for index in range(count))


def crowded(count: int) -> list[Sample]:
    """Returns crowded validation scenes."""
    return samples_of(make_scene("validation", 0, index, crowded=True) for index in range(count))


def by_foreground(count: int, most: bool) -> list[Sample]:
    """Returns the scenes with the least foreground, or the most, of a larger pool."""
    scenes = [make_scene("validation", 0, index) for index in range(POOL_FACTOR * count)]
    scenes.sort(key=lambda scene: int(foreground(scene).sum()), reverse=most)
    return samples_of(scenes[:count])


def with_noise(count: int) -> list[Sample]:
    """Returns the ordinary scenes with noise."""
    samples = enumerate(ordinary(count))
    return [Sample(noisy(sample.image, seed), sample.questions) for seed, sample in samples]


def with_little_contrast(count: int) -> list[Sample]:
    """Returns the ordinary scenes with reduced contrast."""
    return [Sample(faded(sample.image), sample.questions) for sample in ordinary(count)]


SUBSETS: dict[str, Callable[[int], list[Sample]]] = {
    "ordinary": ordinary,
    "crowded": crowded,
    "noisy": with_noise,
    "faded": with_little_contrast,
    "plain": lambda count: by_foreground(count, most=False),
    "full": lambda count: by_foreground(count, most=True),
}


def scored(model: Any, samples: list[Sample]) -> dict[str, Any]:
    """Returns the number of pictures and questions, and the accuracy of each run in %."""
    with torch.inference_mode():
        encoded = list(encode(model, samples))
    runs = {"all tokens": None}
    runs |= {f"{name} {keep}": make(name, keep=keep) for keep in KEEPS for name in NAMES}
    outcomes = {
        label: list(itertools.chain(*score(model, samples, pruner, encoded)))
        for label, pruner in runs.items()
    }
    accuracy = {label: 100 * float(np.mean(right)) for label, right in outcomes.items()}
    questions = len(outcomes["all tokens"])
    return {"pictures": len(samples), "questions": questions, "right": accuracy}


def table(results: dict[str, Any]) -> str:
    """Formats results as Markdown, a row for each subset and budget."""
    lines = [
        f"| | questions | all tokens | keep | {' | '.join(NAMES)} |",
        "|---" * (4 + len(NAMES)) + "|",
    ]
    for subset, result in results.items():
        right = result["right"]
        for keep in KEEPS:
            shares = " | ".join(f"{right[f'{name} {keep}']:.1f}" for name in NAMES)
            head = f"| {subset} | {result['questions']} | {right['all tokens']:.1f}"
            lines.append(f"{head} | {keep} | {shares} |")
    return "\n".join(lines) + "\n"


def main(
    count: Annotated[int, typer.Option(min=1, help="Pictures per subset.")] = 100,
    out: Annotated[Path, typer.Option(help="Where to write the numbers.")] = RESULTS,
) -> None:
    """Score the subsets without stored results and print a table."""
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
