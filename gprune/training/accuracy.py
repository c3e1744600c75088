"""How often the tiny VLM answers right, by question type, with any pruner."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from gprune.pruners import Pruner
from gprune.pruners.base import merged, standing_for
from gprune.tinyvlm import easyvqa
from gprune.tinyvlm.scenes import GRID, QUESTION_TYPES, Question, make_scene
from gprune.tinyvlm.vocabulary import build_tokenizer
from gprune.tokens import VisualTokens
from gprune.training.packing import answered, pack, said

# In the order of tables: our own, then the third-party set.
TYPES = (*QUESTION_TYPES, "easy_vqa")


@dataclass(frozen=True, eq=False)
class Sample:
    """A picture with its questions."""

    image: Image.Image
    questions: list[Question]


def held_out(
    split: str, scenes: int, easy_vqa: int, seed: int = 0, grid: int = GRID
) -> list[Sample]:
    """The first pictures of a split: generated scenes, then the official easy-VQA ones.

    Args:
        split: ``validation`` or ``test``.
        scenes: how many generated scenes.
        easy_vqa: how many easy-VQA pictures, each with at most eight of its questions.
        seed: of the scenes.
        grid: patches a side of the model that will see them.
    """
    generated = (make_scene(split, seed, index) for index in range(scenes))
    samples = [Sample(scene.draw(grid), scene.ask()) for scene in generated]
    samples += [
        Sample(easyvqa.image(split, index, grid), easyvqa.ask(split, index, 8))
        for index in easyvqa.indices(split)[:easy_vqa]
    ]
    return samples


def with_other_pictures(samples: Sequence[Sample], scenes: int) -> list[Sample]:
    """Every question about the next picture of its kind; the first ``scenes`` are generated."""
    return [
        Sample(other.image, sample.questions)
        for part in (samples[:scenes], samples[scenes:])
        for sample, other in zip(part, [*part[1:], *part[:1]], strict=True)
    ]


def to_pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """What the image processor makes of pictures that already have the right size, [b, 3, h, w]."""
    stacked = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1


def tower_tokens(
    model: LlavaForConditionalGeneration, pixels: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The vision tower's patch features before the projector [b, n, width], and CLS [b, width].

    There is no CLS token in every tower.
    """
    hidden: Tensor = model.model.vision_tower(pixels).last_hidden_state
    patches = hidden[:, -(grid_of(model) ** 2) :]
    return patches, hidden[:, 0] if hidden.shape[1] > patches.shape[1] else None


def vision_features(model: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """The vision tower's patch features before the projector, [b, n, width]."""
    return tower_tokens(model, pixels)[0]


def grid_of(model: LlavaForConditionalGeneration) -> int:
    """Patches a side."""
    vision = model.config.vision_config
    return int(vision.image_size // vision.patch_size)


@dataclass(frozen=True, eq=False)
class Encoded:
    """Some pictures as a pruner sees them, each with the questions that are asked about it."""

    tokens: list[VisualTokens]
    questions: list[list[Question]]


def encode(
    model: LlavaForConditionalGeneration, samples: Sequence[Sample], batch: int = 16
) -> Iterator[Encoded]:
    """The projected features of pictures, a batch at a time."""
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
    """Whether greedy decoding gives each question's whole answer, by picture.

    Selects and numbers tokens as ``with pruner(model)`` does, but asks all questions of a picture
    in one pass; a test holds the two against each other.

    Args:
        model: in evaluation mode.
        samples: pictures with questions.
        pruner: None keeps all tokens.
        encoded: what `encode` makes of the samples, where several pruners see them or one that
            reads more than features.
        compact: numbers tokens without gaps, as ``positions="compact"`` does.
    """
    tokenizer = build_tokenizer()
    visual = grid_of(model) ** 2
    outcomes: list[list[bool]] = []
    for batch in encoded or encode(model, samples):
        kept = [reduced(one, pruner) for one in batch.tokens]
        found: dict[int, list[bool]] = {}
        # Pictures with as many tokens go together; with a fixed budget, all of them.
        for count in sorted({len(places) for places, _, _ in kept}):
            rows = [row for row, (places, _, _) in enumerate(kept) if len(places) == count]
            questions = [batch.questions[row] for row in rows]
            packed = pack(questions, tokenizer, count if compact else visual)
            parts = zip(*(kept[row] for row in rows), strict=True)
            places, few, stands = (torch.stack(part) for part in parts)
            if compact:
                places = torch.arange(count).expand_as(places)
            right = answered(said(model, few, packed, places, stands), packed, tokenizer)
            found.update(zip(rows, right, strict=True))
        outcomes += [found[row] for row in range(len(kept))]
    return outcomes


def reduced(tokens: VisualTokens, pruner: Pruner | None) -> tuple[Tensor, Tensor, Tensor]:
    """What reaches the language model of one picture.

    Returns:
        the kept tokens, int64 [k]; their features, [k, d]; and how many tokens each counts for in
        attention, [k].
    """
    if pruner is None:
        every = torch.arange(len(tokens))
        return every, tokens.features, torch.ones(len(tokens))
    if not pruner.proportional:
        kept, features = pruner.reduce(tokens)
        return kept, features, torch.ones(len(kept))
    kept, members = pruner.reduce_groups([tokens])[0]
    assert members is not None  # what counts for others has them merged into it
    return kept, merged(tokens.features, members, len(kept)), standing_for(kept, members)


def by_type(samples: Sequence[Sample], outcomes: Sequence[Sequence[bool]]) -> dict[str, list[bool]]:
    """The outcomes of `score` by question type, in the order of `TYPES`."""
    right: dict[str, list[bool]] = {kind: [] for kind in TYPES}
    for sample, results in zip(samples, outcomes, strict=True):
        for question, good in zip(sample.questions, results, strict=True):
            right[question.kind].append(good)
    return {kind: results for kind, results in right.items() if results}
