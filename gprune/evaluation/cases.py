"""Examples worth looking at: what pruning broke, and what survived the smallest budget."""

from __future__ import annotations

import torch
from PIL import Image

from gprune import viz
from gprune.ask.prompts import prepare
from gprune.evaluation.runner import Evaluation, Run
from gprune.evaluation.tasks import Example


def cases(evaluation: Evaluation, runs: list[Run], each: int = 3) -> list[tuple[str, Image.Image]]:
    """Captions and pictures with what was kept, for every method that has finished.

    Args:
        evaluation: performed.
        runs: its runs.
        each: at most so many broken and so many surviving examples of each method.
    """
    full = {line["id"]: line for line in evaluation.lines(Run("full", 1.0))}
    by_id = {example.id: example for example in evaluation.examples}
    shown = []
    for method in dict.fromkeys(run.method for run in runs if run.method != "full"):
        own = [run for run in runs if run.method == method and run.seed in (None, 0)]
        largest, smallest = (pick(own, key=lambda run: run.keep) for pick in (max, min))
        for run, right, word in ((largest, False, "broken"), (smallest, True, "survived")):
            lines = [
                line
                for line in evaluation.lines(run)
                if line["right"] is right and full.get(line["id"], {}).get("right")
            ]
            for line in lines[:each]:
                example = by_id[line["id"]]
                picture = kept_picture(evaluation, run, example)
                caption = (
                    f"{run.label}, {word}: {example.question} "
                    f"{line['prediction']!r}, right: {example.answers[0]!r}"
                )
                shown.append((caption, picture))
    return shown


@torch.inference_mode()
def kept_picture(evaluation: Evaluation, run: Run, example: Example) -> Image.Image:
    """An example's first picture with the pruned patches of its last group dimmed."""
    images = example.load()
    model, asked = evaluation.model, [(images, example.question)]
    inputs = prepare(model, evaluation.processor, asked, evaluation.template)
    pruner = run.pruner()
    assert pruner is not None  # the unpruned run keeps everything
    with pruner(model) as pruned:
        model(**inputs, logits_to_keep=1)
        # Of a thumbnail and a canvas, the canvas.
        group = [group for group in pruned.kept[0] if group.image == 0][-1]
    if group.grid is None:
        return viz.enlarged(images[0])
    return viz.overlay(images[0], group.indices, group.grid)
