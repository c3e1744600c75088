"""Measures how often the tiny VLM answers right, by question type, with any pruner."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from gprune.pruners import Pruner
from gprune.pruners.image import project_merged
from gprune.tinyvlm import easyvqa
from gprune.tinyvlm.contents import GRID
from gprune.tinyvlm.questions import QUESTION_TYPES, Question
from gprune.tinyvlm.scenes import make_scene
from gprune.tinyvlm.vocabulary import build_tokenizer
from gprune.tokens import VisualTokens
from gprune.training.packing import decode_answers, grade_answers, pack

# In the order of tables: our own types, then the third-party dataset.
TYPES = (*QUESTION_TYPES, "easy_vqa")


@dataclass(frozen=True, eq=False)
class Sample:
    """A picture with its questions."""

    image: Image.Image
    questions: list[Question]


def held_out(
    split: str, scenes: int, easy_vqa: int, seed: int = 0, grid: int = GRID
) -> list[Sample]:
    """Returns the first pictures of a split: generated scenes, then easy-VQA's pictures.

    Args:
        split: ``validation`` or ``test``.
        scenes: number of generated scenes.
        easy_vqa: number of easy-VQA pictures, each with at most eight of its questions.
        seed: of the scenes.
        grid: patches per side of the model.
    """
    generated = (make_scene(split, seed, index) for index in range(scenes))
    samples = [Sample(scene.draw(grid), scene.ask()) for scene in generated]
    samples += [
        Sample(easyvqa.image(split, index, grid), easyvqa.ask(split, index, 8))
        for index in easyvqa.indices(split)[:easy_vqa]
    ]
    return samples


def with_other_pictures(samples: Sequence[Sample], scenes: int) -> list[Sample]:
    """Pairs every question with the next picture of the same source.

    Args:
        samples: from `held_out`.
        scenes: how many of them, the first, are generated scenes.
    """
    return [
        Sample(other.image, sample.questions)
        for part in (samples[:scenes], samples[scenes:])
        for sample, other in zip(part, [*part[1:], *part[:1]], strict=True)
    ]


def to_pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """Normalises pictures to [-1, 1] as the image processor does, float32 [b, 3, h, w].

    The pictures must already have the model's size.
    """
    stacked = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1


def tower_tokens(
    model: LlavaForConditionalGeneration, pixels: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Runs the vision tower.

    Returns:
        the patch features before the projector, [b, n, width]; and the CLS token, [b, width], or
        None if the tower has none.
    """
    hidden: Tensor = model.model.vision_tower(pixels).last_hidden_state
    patches = hidden[:, -(grid_of(model) ** 2) :]
    return patches, hidden[:, 0] if hidden.shape[1] > patches.shape[1] else None


def vision_features(model: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """Returns the vision tower's patch features before the projector, [b, n, width]."""
    return tower_tokens(model, pixels)[0]


def grid_of(model: LlavaForConditionalGeneration) -> int:
    """Returns the number of patches per side."""
    vision = model.config.vision_config
    return int(vision.image_size // vision.patch_size)


@dataclass(frozen=True, eq=False)
class Encoded:
    """The visual tokens of some pictures, as a pruner receives them, with their questions."""

    tokens: list[VisualTokens]
    questions: list[list[Question]]


def encode(
    model: LlavaForConditionalGeneration, samples: Sequence[Sample], batch: int = 16
) -> Iterator[Encoded]:
    """Yields the projected features of pictures, ``batch`` pictures at a time."""
    grid = (grid_of(model),) * 2
    for start in range(0, len(samples), batch):
        part = samples[start : start + batch]
        pixels = to_pixels([sample.image for sample in part])
        features = model.model.multi_modal_projector(vision_features(model, pixels))
        tokens = [VisualTokens(x, grid=grid) for x in features]
        yield Encoded(tokens, [sample.questions for sample in part])


@torch.inference_mode()
def score(
    model: LlavaForConditionalGeneration,
    samples: Sequence[Sample],
    pruner: Pruner | None = None,
    encoded: Iterable[Encoded] | None = None,
    compact: bool = False,
) -> list[list[bool]]:
    """Returns whether greedy decoding gives the whole answer to each question, by picture.

    Selects and numbers tokens as ``with pruner(model)`` does, but asks all questions of a picture
    in one pass; a test compares the two.

    Args:
        model: in evaluation mode.
        samples: pictures with questions.
        pruner: None keeps all tokens.
        encoded: from `encode`, to share it between pruners, or with signals beside the features for
            a method that reads them.
        compact: numbers tokens without gaps, as ``positions="compact"`` does.
    """
    tokenizer = build_tokenizer()
    outcomes: list[list[bool]] = []
    for batch in encoded or encode(model, samples):
        outcomes += _score_batch(model, batch, pruner, compact, tokenizer)
    return outcomes


def _score_batch(
    model: LlavaForConditionalGeneration,
    batch: Encoded,
    pruner: Pruner | None,
    compact: bool,
    tokenizer: PreTrainedTokenizerFast,
) -> list[list[bool]]:
    """Scores one batch of pictures, see `score`."""
    project = model.model.multi_modal_projector
    reductions = [reduced(tokens, pruner, project) for tokens in batch.tokens]
    outcomes: dict[int, list[bool]] = {}
    # One pass for all pictures with the same number of kept tokens: with a fixed budget, for all.
    for count in sorted({len(kept) for kept, _, _ in reductions}):
        rows = [row for row, (kept, _, _) in enumerate(reductions) if len(kept) == count]
        questions = [batch.questions[row] for row in rows]
        packed = pack(questions, tokenizer, count if compact else grid_of(model) ** 2)
        parts = zip(*(reductions[row] for row in rows), strict=True)
        kept, features, member_counts = (torch.stack(part) for part in parts)
        if compact:
            kept = torch.arange(count).expand_as(kept)
        predicted = decode_answers(model, features, packed, kept, member_counts)
        outcomes.update(zip(rows, grade_answers(predicted, packed, tokenizer), strict=True))
    return [outcomes[row] for row in range(len(reductions))]


def reduced(
    tokens: VisualTokens, pruner: Pruner | None, project: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """What reaches the language model of one picture.

    Args:
        tokens: of the picture.
        pruner: None keeps all tokens.
        project: the model's projector.

    Returns:
        the kept tokens, int64 [k]; their features, [k, d]; and how many tokens each counts for in
        attention, [k].
    """
    if pruner is None:
        every = torch.arange(len(tokens))
        return every, tokens.features, torch.ones(len(tokens))
    reduction = pruner.reduce(tokens)
    if pruner.merges_before_projector and tokens.vision is not None and reduction.merges:
        features = project_merged(reduction, tokens.features, tokens.vision, project)
    else:
        features = reduction.features(tokens.features)
    counts = reduction.member_counts() if pruner.proportional else torch.ones(len(features))
    return reduction.positions(len(tokens)), features, counts


def by_type(samples: Sequence[Sample], outcomes: Sequence[Sequence[bool]]) -> dict[str, list[bool]]:
    """Groups the outcomes of `score` by question type, in the order of `TYPES`."""
    grouped: dict[str, list[bool]] = {kind: [] for kind in TYPES}
    for sample, results in zip(samples, outcomes, strict=True):
        for question, right in zip(sample.questions, results, strict=True):
            grouped[question.kind].append(right)
    return {kind: results for kind, results in grouped.items() if results}
