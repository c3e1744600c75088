"""Pictures for the report: answers that pruning broke, and answers that survived it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image

from gprune.ask.prompts import prepare
from gprune.evaluation.runner import Evaluation
from gprune.evaluation.runs import FULL, Run
from gprune.evaluation.tasks import Example
from gprune.viz import enlarged, overlay


def build_gallery(
    evaluation: Evaluation, runs: Sequence[Run], each: int = 3
) -> list[tuple[str, Image.Image]]:
    """Returns captions and pictures of kept tokens for every method.

    Shows examples that the unpruned run answers correctly: those that are wrong at a method's
    largest budget, and those that are still correct at its smallest budget.

    Args:
        evaluation: an evaluation whose runs are finished.
        runs: its finished runs; of several seeds only the first is used.
        each: most examples of each of the two sorts for each method.
    """
    full_right = {line["id"] for line in evaluation.lines(Run(FULL, 1.0)) if line["right"]}
    examples = {example.id: example for example in evaluation.examples}
    gallery = []
    for run, right in extreme_runs(runs):
        lines = (
            line
            for line in evaluation.lines(run)
            if line["right"] is right and line["id"] in full_right
        )
        for line in itertools.islice(lines, each):
            example = examples[line["id"]]
            gallery.append((caption(run, example, line), kept_picture(evaluation, run, example)))
    return gallery


def extreme_runs(runs: Sequence[Run]) -> Iterator[tuple[Run, bool]]:
    """Yields each method's run at its largest budget with False, at its smallest with True.

    The boolean says whether the examples to show are those with a correct answer.
    """
    for method in dict.fromkeys(run.method for run in runs if run.method != FULL):
        first_seeds = [run for run in runs if run.method == method and run.seed in (None, 0)]
        yield max(first_seeds, key=lambda run: run.keep), False
        yield min(first_seeds, key=lambda run: run.keep), True


def caption(run: Run, example: Example, line: dict[str, Any]) -> str:
    """Returns the text below a picture."""
    outcome = "still correct" if line["right"] else "wrong after pruning"
    return (
        f"{run.label}, {outcome}: {example.question} Answer: {line['prediction']!r}, "
        f"expected: {example.answers[0]!r}"
    )


@torch.inference_mode()
def kept_picture(evaluation: Evaluation, run: Run, example: Example) -> Image.Image:
    """Returns an example's first picture with the pruned patches dimmed.

    Returns the picture alone if its tokens form no raster.
    """
    images = example.load()
    model, prompts = evaluation.model, [(images, example.question)]
    inputs = prepare(model, evaluation.processor, prompts, evaluation.template)
    pruner = run.pruner()
    assert pruner is not None  # the unpruned run is not shown
    with pruner(model) as pruned:
        model(**inputs, logits_to_keep=1)
        # The last group of the image: the canvas if there is a thumbnail too.
        group = [group for group in pruned.kept[0] if group.image == 0][-1]
    if group.grid is None:
        return enlarged(images[0])
    return overlay(images[0], group.indices, group.grid)
