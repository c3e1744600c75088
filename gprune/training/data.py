"""Training batches, determined by seed and step number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gprune.tinyvlm import easyvqa
from gprune.tinyvlm.questions import Question
from gprune.tinyvlm.scenes import Scene, make_scene
from gprune.tinyvlm.vocabulary import build_tokenizer
from gprune.training.accuracy import to_pixels
from gprune.training.captions import Captions, captions_of
from gprune.training.labels import Labels, dense_labels
from gprune.training.packing import PackedQuestions, pack
from gprune.training.recipe import Recipe

Record = TypeVar("Record", Labels, Captions, PackedQuestions)


def to_device(record: Record, device: torch.device) -> Record:
    """Returns a copy of a dataclass with all its tensors on ``device``."""
    values: dict[str, Any] = {part.name: getattr(record, part.name) for part in fields(record)}
    tensors = {name: x.to(device) for name, x in values.items() if isinstance(x, Tensor)}
    return replace(record, **{**values, **tensors})


@dataclass
class Batch:
    """Pictures with their dense labels, captions and questions.

    Attributes:
        pixels: [b, 3, size, size], in [-1, 1].
        labels: of the patches.
        captions: None unless the recipe's objective is ``captions``.
        packed: the questions; None in stage 1.
    """

    pixels: Tensor
    labels: Labels
    captions: Captions | None
    packed: PackedQuestions | None

    def to(self, device: torch.device) -> Batch:
        """Returns a copy with all tensors on ``device``."""
        captions = None if self.captions is None else to_device(self.captions, device)
        packed = None if self.packed is None else to_device(self.packed, device)
        return Batch(self.pixels.to(device), to_device(self.labels, device), captions, packed)


class Steps(Dataset[Batch]):
    """The batches of one stage; item i is the batch of step ``start + i``."""

    def __init__(self, recipe: Recipe, stage: str, start: int, stop: int) -> None:
        self.recipe, self.stage, self.start, self.stop = recipe, stage, start, stop
        self.tokenizer = build_tokenizer()

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, item: int) -> Batch:
        step = self.start + item
        return self._patch_batch(step) if self.stage == "patches" else self._answer_batch(step)

    def _patch_batch(self, step: int) -> Batch:
        """Returns a batch of stage 1: mostly crowded scenes, without questions."""
        recipe, grid = self.recipe, self.recipe.architecture.grid
        first = step * recipe.batch
        scenes = [
            make_scene("train", 2 * recipe.seed, index, index % recipe.ordinary_every != 0)
            for index in range(first, first + recipe.batch)
        ]
        pixels = to_pixels([scene.draw(grid) for scene in scenes])
        labels = dense_labels(scenes, grid)
        return Batch(pixels, labels, self._captions(scenes, labels), None)

    def _answer_batch(self, step: int) -> Batch:
        """Returns a batch of stage 2: ordinary scenes and easy-VQA pictures, with questions."""
        recipe, grid = self.recipe, self.recipe.architecture.grid
        rng = np.random.default_rng([recipe.seed, step])
        scenes = [
            make_scene("train", 2 * recipe.seed + 1, step * recipe.batch + i)
            for i in range(recipe.batch - recipe.easy_vqa_images)
        ]
        pictures = [scene.draw(grid) for scene in scenes]
        questions = [self._sample_questions(scene, rng) for scene in scenes]
        for index in rng.choice(easyvqa.indices("train"), recipe.easy_vqa_images, replace=False):
            pictures.append(easyvqa.image("train", int(index), grid))
            questions.append(easyvqa.ask("train", int(index), recipe.easy_vqa_questions, rng))
        labels = dense_labels(scenes, grid)
        return Batch(
            to_pixels(pictures),
            labels.padded(recipe.easy_vqa_images),
            self._captions(scenes, labels),
            pack(questions, self.tokenizer, grid**2),
        )

    def _captions(self, scenes: Sequence[Scene], labels: Labels) -> Captions | None:
        if self.recipe.objective == "captions":
            return captions_of(scenes, labels, self.tokenizer)
        return None

    def _sample_questions(self, scene: Scene, rng: np.random.Generator) -> list[Question]:
        """Samples at most ``most_asked`` of the questions that a scene can answer."""
        every = scene.ask(times=self.recipe.asked)
        if len(every) <= self.recipe.most_asked:
            return every
        return [every[i] for i in sorted(rng.choice(len(every), self.recipe.most_asked, False))]
