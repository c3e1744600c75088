"""What stands beside a trained checkpoint: its model card, how it was trained, and checksums."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration

from gprune.evaluation.metrics import Record, Tally
from gprune.tinyvlm.scenes import SHARED
from gprune.tinyvlm.vocabulary import build_tokenizer
from gprune.training.accuracy import (
    Sample,
    by_type,
    grid_of,
    held_out,
    score,
    with_other_pictures,
)
from gprune.training.packing import answered, pack, said

CARD, SUMS, LOG = "README.md", "SHA256SUMS", "training.jsonl"
# The share of right answers with all tokens below which a type of question is no evidence.
GATE = {"relation": 80.0, "box": 80.0}
OTHERS_GATE = 90.0


def gate(kind: str) -> float:
    """What a type has to reach with all tokens to count as evidence, in %."""
    return GATE.get(kind, OTHERS_GATE)


@dataclass(frozen=True)
class Accuracy:
    """Right answers on the test split in %, by type of question.

    Attributes:
        full: with the picture.
        intervals: 95% bootstrap intervals of ``full``, over pictures.
        another: with another picture.
        blind: without a picture.
        questions: how many there are.
    """

    full: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    another: dict[str, float]
    blind: dict[str, float]
    questions: dict[str, int]

    @property
    def passed(self) -> list[str]:
        """The types that count as evidence."""
        return [kind for kind, share in self.full.items() if share >= gate(kind)]


def measure(model: LlavaForConditionalGeneration, scenes: int, easy_vqa: int) -> Accuracy:
    """The accuracy of a model in evaluation mode.

    Args:
        model: in float32.
        scenes: how many generated pictures of the test split.
        easy_vqa: how many of easy-VQA's.
    """
    samples = held_out("test", scenes, easy_vqa, grid=grid_of(model))
    right = score(model, samples)
    return Accuracy(
        shares(samples, right),
        {kind: tally_of(kind, samples, right).interval for kind in by_type(samples, right)},
        shares(samples, score(model, with_other_pictures(samples, scenes))),
        shares(samples, unseen(model, samples)),
        {kind: len(results) for kind, results in by_type(samples, right).items()},
    )


@torch.inference_mode()
def unseen(model: LlavaForConditionalGeneration, samples: Sequence[Sample]) -> list[list[bool]]:
    """Whether each question is answered right without its picture, by picture."""
    tokenizer = build_tokenizer()
    outcomes: list[list[bool]] = []
    for sample in samples:
        packed = pack([sample.questions], tokenizer, grid_of(model) ** 2)
        nothing = torch.empty(1, 0, model.config.text_config.hidden_size)
        outcomes += answered(said(model, nothing, packed), packed, tokenizer)
    return outcomes


def shares(samples: Sequence[Sample], outcomes: Sequence[Sequence[bool]]) -> dict[str, float]:
    """Right answers by type, in %."""
    return {
        kind: 100 * sum(results) / len(results)
        for kind, results in by_type(samples, outcomes).items()
    }


def tally_of(kind: str, samples: Sequence[Sample], outcomes: Sequence[Sequence[bool]]) -> Tally:
    """The outcomes of one type of question."""
    return Tally.of(
        [
            Record("", str(picture), kind, "", good)
            for picture, (sample, results) in enumerate(zip(samples, outcomes, strict=True))
            for question, good in zip(sample.questions, results, strict=True)
            if question.kind == kind
        ]
    )


def write(
    folder: Path, recipe: dict[str, Any], log: Path, accuracy: Accuracy, pictures: tuple[int, int]
) -> None:
    """Writes the card, the training log and the checksums beside the weights in ``folder``.

    Args:
        folder: of the checkpoint.
        recipe: it was trained with.
        log: of the run.
        accuracy: on the test split.
        pictures: how many scenes and how many of easy-VQA that was.
    """
    shutil.copyfile(log, folder / LOG)
    records = [json.loads(line) for line in log.read_text().splitlines()]
    (folder / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n")
    (folder / CARD).write_text(text_of(recipe, records, accuracy, pictures))
    sums = sums_of(folder)
    (folder / SUMS).write_text("".join(f"{value}  {name}\n" for name, value in sums.items()))


def sums_of(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file of a checkpoint but that of the checksums, by name."""
    files = sorted(file for file in folder.iterdir() if file.name != SUMS)
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def options_of(recipe: dict[str, Any]) -> str:
    """The options of the training command that a recipe was given by."""
    options = {"tower": recipe["architecture"]["tower"], "seed": recipe["seed"]}
    if recipe["objective"] != "patches":
        options["objective"] = recipe["objective"]
    if recipe["language"] is not None:
        # What is taught of a language model that is there already is a matter of its own.
        names = ("language", "patch_steps", "answer_steps", "answer_rate")
        options |= {name: recipe[name] for name in names}
    return "".join(f" --{name.replace('_', '-')} {value}" for name, value in options.items())


def text_of(
    recipe: dict[str, Any],
    records: Sequence[dict[str, Any]],
    accuracy: Accuracy,
    pictures: tuple[int, int],
) -> str:
    """The model card, in Markdown; arguments as of `write`."""
    architecture = recipe["architecture"]
    stages = {record["stage"]: record for record in records}
    trained = "\n".join(
        f"| {stage} | {record['step']} | {record['seconds'] / 60:.0f} | "
        f"{record['step'] * recipe['batch'] / record['seconds']:.1f} |"
        for stage, record in stages.items()
    )
    rows = "\n".join(
        f"| {kind.replace('_', ' ')} | {accuracy.questions[kind]} | {share:.1f} "
        f"({low:.1f} to {high:.1f}) | {accuracy.another[kind]:.1f} | {accuracy.blind[kind]:.1f} | "
        f"{'yes' if kind in accuracy.passed else 'no'} |"
        for kind, share in accuracy.full.items()
        for low, high in [accuracy.intervals[kind]]
    )
    grid = architecture["grid"]
    taught = {
        "patches": "to tell its patches apart in words",
        "captions": "to tell regions and whole pictures apart in phrases",
    }[recipe["objective"]]
    language = "from scratch"
    if recipe["language"] is not None:
        language = f"began with that of {recipe['language']}, tower and projector from scratch"
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---

# gprune's tiny VLM, {architecture["tower"]}

A small LLaVA in transformers' own classes, trained by the library gprune (`python -m
gprune.training.train{options_of(recipe)}`) to measure what pruning visual tokens does to answers.
It is no model for any other use.

- **Architecture**: {architecture["tower"]} vision tower of width {architecture["vision_width"]} and
  {architecture["vision_layers"]} layers on {8 * grid} x {8 * grid} pixels in patches of 8, so
  {grid**2} visual tokens; two-layer projector; Llama of width {architecture["text_width"]} and
  {architecture["text_layers"]} layers. Weights in bfloat16. `recipe.json` has everything else.
- **Data**: scenes that gprune generates (`gprune.tinyvlm.scenes`: coloured shapes, letters and
  digits on two background halves; splits by seed) and the training split of easy-VQA (Victor Zhou,
  MIT).
- **Language model**: {language}.
- **Licence**: Apache-2.0.

## Training

| stage | steps | minutes | pictures a second |
|---|---|---|---|
{trained}

Minutes are of this run on two CPU cores, on which other work ran at times. `training.jsonl` has the
losses and the accuracy on validation pictures on the way.

## Accuracy

{pictures[0]} generated scenes of the test split and {pictures[1]} pictures of easy-VQA's official
test split, greedy decoding, in % with 95% bootstrap intervals over pictures. An answer is right if
it is the whole answer and ends; a box is if it shares {SHARED:.0%} of the union with the true one.
*Another picture* asks about the next one, *no picture* leaves it out. A type is *evidence* for what
pruning costs if it reaches {OTHERS_GATE:.0f}%, relation and box {GATE["box"]:.0f}%.

| type | questions | right | another picture | no picture | evidence |
|---|---|---|---|---|---|
{rows}

## Limits

It knows {len(accuracy.full)} types of question in fixed wordings, eight shapes, ten colours and
three signs at a time, on drawings. Its vision tower was taught {taught}, and its attention to look
up what a question names, which large models learn from far more data; so its features have a
geometry of their own, and a ranking of pruning methods on it is a lead for other models, not a law.
"""
