"""easy-VQA, a third-party set with an official held-out split (MIT, Victor Zhou 2019).

It comes from the PyPI package ``easy-vqa``: 4,000 training and 1,000 test pictures of one shape
each, 64 pixels a side. Nothing of it was made by us, which is why it is here.
"""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image

from gprune.tinyvlm.scenes import GRID, PATCH_SIZE, Question

# The training split's tail serves as validation; the official test split is left alone.
VALIDATION_IMAGES = 200


@functools.cache
def _split(official: str) -> tuple[dict[int, str], dict[int, list[Question]]]:
    try:
        import easy_vqa
    except ImportError as error:
        raise ImportError(
            "the questions of easy-VQA need the package easy-vqa: pip install 'gprune[train]'"
        ) from error
    if official == "train":
        paths, texts = easy_vqa.get_train_image_paths(), easy_vqa.get_train_questions()
    else:
        paths, texts = easy_vqa.get_test_image_paths(), easy_vqa.get_test_questions()
    questions: dict[int, list[Question]] = {index: [] for index in paths}
    for text, answer, index in zip(*texts, strict=True):
        questions[index].append(Question("easy_vqa", text, answer))
    return paths, questions


def indices(split: str) -> list[int]:
    """Which pictures belong to ``train``, ``validation`` or ``test``."""
    every = sorted(_split("test" if split == "test" else "train")[0])
    if split == "train":
        return every[:-VALIDATION_IMAGES]
    return every[-VALIDATION_IMAGES:] if split == "validation" else every


def image(split: str, index: int, grid: int = GRID) -> Image.Image:
    """A picture, enlarged as the image processor of a model with ``grid`` patches a side does."""
    path = _split("test" if split == "test" else "train")[0][index]
    with Image.open(path) as stored:
        size = (grid * PATCH_SIZE, grid * PATCH_SIZE)
        return stored.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def ask(
    split: str, index: int, most: int, rng: np.random.Generator | None = None
) -> list[Question]:
    """At most ``most`` of a picture's questions: the first ones, or with ``rng`` any."""
    every = _split("test" if split == "test" else "train")[1][index]
    if rng is None or len(every) <= most:
        return every[:most]
    return [every[i] for i in sorted(rng.choice(len(every), most, replace=False))]
