"""Writes the files beside a trained checkpoint: model card, recipe, training log and checksums."""

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
from gprune.tinyvlm.boxes import MIN_IOU
from gprune.tinyvlm.contents import PATCH_SIZE
from gprune.tinyvlm.vocabulary import build_tokenizer
from gprune.training.accuracy import Sample, by_type, grid_of, held_out, score, with_other_pictures
from gprune.training.packing import decode_answers, grade_answers, pack

CARD_FILE, SUMS_FILE, TRAINING_LOG = "README.md", "SHA256SUMS", "training.jsonl"
# A question type is evidence only from this accuracy on with all tokens, in %: by type, and for
# every other type.
GATES = {"relation": 80.0, "box": 80.0}
DEFAULT_GATE = 90.0


def gate(kind: str) -> float:
    """Returns the accuracy with all tokens, in %, from which on a question type is evidence."""
    return GATES.get(kind, DEFAULT_GATE)


@dataclass(frozen=True)
class Accuracy:
    """Accuracy on the test split in %, by question type.

    Attributes:
        full: with the picture.
        intervals: 95% bootstrap intervals of ``full``, over pictures.
        another: with another picture.
        blind: without a picture.
        questions: number of questions.
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
    """Measures the accuracy of a model on the test split.

    Args:
        model: in float32, in evaluation mode.
        scenes: number of generated scenes.
        easy_vqa: number of easy-VQA pictures.
    """
    samples = held_out("test", scenes, easy_vqa, grid=grid_of(model))
    outcomes = score(model, samples)
    grouped = by_type(samples, outcomes)
    return Accuracy(
        full=shares(samples, outcomes),
        intervals={kind: tally_type(kind, samples, outcomes).interval for kind in grouped},
        another=shares(samples, score(model, with_other_pictures(samples, scenes))),
        blind=shares(samples, score_without_pictures(model, samples)),
        questions={kind: len(results) for kind, results in grouped.items()},
    )


@torch.inference_mode()
def score_without_pictures(
    model: LlavaForConditionalGeneration, samples: Sequence[Sample]
) -> list[list[bool]]:
    """Returns whether each question is answered right without visual tokens, by picture."""
    tokenizer = build_tokenizer()
    outcomes: list[list[bool]] = []
    for sample in samples:
        packed = pack([sample.questions], tokenizer, grid_of(model) ** 2)
        features = torch.empty(1, 0, model.config.text_config.hidden_size)
        outcomes += grade_answers(decode_answers(model, features, packed), packed, tokenizer)
    return outcomes


def shares(samples: Sequence[Sample], outcomes: Sequence[Sequence[bool]]) -> dict[str, float]:
    """Returns the share of right answers by question type, in %."""
    return {
        kind: 100 * sum(results) / len(results)
        for kind, results in by_type(samples, outcomes).items()
    }


def tally_type(kind: str, samples: Sequence[Sample], outcomes: Sequence[Sequence[bool]]) -> Tally:
    """Tallies the outcomes of one question type by picture."""
    return Tally.from_records(
        [
            Record("", str(picture), kind, "", right)
            for picture, (sample, results) in enumerate(zip(samples, outcomes, strict=True))
            for question, right in zip(sample.questions, results, strict=True)
            if question.kind == kind
        ]
    )


def write(
    folder: Path, recipe: dict[str, Any], log: Path, accuracy: Accuracy, pictures: tuple[int, int]
) -> None:
    """Writes card, recipe, training log and checksums beside the weights.

    Args:
        folder: of the checkpoint.
        recipe: fields of the `Recipe` of the run.
        log: of the run.
        accuracy: on the test split.
        pictures: number of scenes and of easy-VQA pictures behind ``accuracy``.
    """
    shutil.copyfile(log, folder / TRAINING_LOG)
    records = [json.loads(line) for line in log.read_text().splitlines()]
    (folder / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n")
    (folder / CARD_FILE).write_text(card_text(recipe, records, accuracy, pictures))
    sums = checksums(folder)
    (folder / SUMS_FILE).write_text("".join(f"{value}  {name}\n" for name, value in sums.items()))


def checksums(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file of a checkpoint by name, without the checksum file."""
    files = sorted(file for file in folder.iterdir() if file.name != SUMS_FILE)
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def command_options(recipe: dict[str, Any]) -> str:
    """Returns the options of the training command that reproduce a recipe."""
    options = {"tower": recipe["architecture"]["tower"], "seed": recipe["seed"]}
    if recipe["objective"] != "patches":
        options["objective"] = recipe["objective"]
    if recipe["language"] is not None:
        # A run from a trained language model has a schedule of its own.
        names = ("language", "patch_steps", "answer_steps", "answer_rate")
        options |= {name: recipe[name] for name in names}
    return "".join(f" --{name.replace('_', '-')} {value}" for name, value in options.items())


CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---

# gprune's tiny VLM, {tower}

A small LLaVA in transformers' own classes that measures what pruning visual tokens does to answers.
It is not meant for any other use. The library gprune trained it with

```
python -m gprune.training{options}
```

- **Architecture**: {tower} vision tower of width {vision_width} with {vision_layers} layers on
  {pixels} x {pixels} pixels in patches of {patch_size}, so {visual_tokens} visual tokens;
  two-layer projector; Llama of width {text_width} with {text_layers} layers. Weights in bfloat16.
  `recipe.json` has everything else.
- **Data**: generated scenes (`gprune.tinyvlm.scenes`: coloured shapes, letters and digits on two
  background halves; splits by seed) and the training split of easy-VQA (Victor Zhou, MIT).
- **Language model**: {language}.
- **Licence**: Apache-2.0.

## Training

| stage | steps | minutes | pictures a second |
|---|---|---|---|
{stages}

The times are those of this run on two CPU cores that were shared with other work. `training.jsonl`
has the losses and the validation accuracy during training.

## Accuracy

{scenes} generated scenes of the test split and {easy_vqa} pictures of easy-VQA's official test
split, greedy decoding, in % with 95% bootstrap intervals over pictures. An answer is right if it
matches exactly and ends; a box is right if its IoU with the true box is at least {min_iou:.0%}.
*Another picture* asks about the next picture, *no picture* removes the visual tokens. A type is
*evidence* for the cost of pruning if it reaches {default_gate:.0f}%, or {box_gate:.0f}% for
relation and box.

| type | questions | right | another picture | no picture | evidence |
|---|---|---|---|---|---|
{types}

## Limits

The model knows {type_count} types of question in fixed wordings, eight shapes, ten colours and
three signs at a time, on drawings. Its vision tower was trained {objective},
and its attention was supervised to look up what a question names, which large models learn from far
more data. Its features therefore have a geometry of their own: a ranking of pruning methods on it
suggests, but does not show, a ranking on other models.
"""


def card_text(
    recipe: dict[str, Any],
    records: Sequence[dict[str, Any]],
    accuracy: Accuracy,
    pictures: tuple[int, int],
) -> str:
    """Returns the model card in Markdown.

    Args:
        recipe: see `write`.
        records: lines of the training log.
        accuracy: see `write`.
        pictures: see `write`.
    """
    sizes = {name: value for name, value in recipe["architecture"].items() if name != "grid"}
    language = "trained from scratch"
    if recipe["language"] is not None:
        language = f"initialised from {recipe['language']}; tower and projector from scratch"
    objective = {
        "patches": "to label its patches with words",
        "captions": "to match regions and whole pictures with phrases",
    }[recipe["objective"]]
    return CARD.format(
        **sizes,
        options=command_options(recipe),
        pixels=PATCH_SIZE * recipe["architecture"]["grid"],
        patch_size=PATCH_SIZE,
        visual_tokens=recipe["architecture"]["grid"] ** 2,
        language=language,
        objective=objective,
        stages=_stage_rows(records, recipe["batch"]),
        types=_type_rows(accuracy),
        type_count=len(accuracy.full),
        scenes=pictures[0],
        easy_vqa=pictures[1],
        min_iou=MIN_IOU,
        default_gate=DEFAULT_GATE,
        box_gate=GATES["box"],
    )


def _stage_rows(records: Sequence[dict[str, Any]], batch: int) -> str:
    """Returns a table row for each stage, from its last record."""
    last = {record["stage"]: record for record in records}
    return "\n".join(
        f"| {stage} | {record['step']} | {record['seconds'] / 60:.0f} | "
        f"{record['step'] * batch / record['seconds']:.1f} |"
        for stage, record in last.items()
    )


def _type_rows(accuracy: Accuracy) -> str:
    """Returns a table row for each question type."""
    return "\n".join(
        f"| {kind.replace('_', ' ')} | {accuracy.questions[kind]} | {share:.1f} "
        f"({low:.1f} to {high:.1f}) | {accuracy.another[kind]:.1f} | {accuracy.blind[kind]:.1f} | "
        f"{'yes' if kind in accuracy.passed else 'no'} |"
        for kind, share in accuracy.full.items()
        for low, high in [accuracy.intervals[kind]]
    )
