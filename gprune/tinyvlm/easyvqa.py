"""easy-VQA, a third-party dataset with an official test split (MIT, Victor Zhou 2019).

The PyPI package ``easy-vqa`` has 4,000 training and 1,000 test pictures of one shape each, 64
pixels a side. It complements the generated scenes with pictures and questions that are not ours.
"""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image

from gprune.tinyvlm.contents import GRID, PATCH_SIZE
from gprune.tinyvlm.questions import Question

# The last pictures of the training split serve as validation split; the test split is unchanged.
VALIDATION_IMAGES = 200


@functools.cache
def _load_split(official: str) -> tuple[dict[int, str], dict[int, list[Question]]]:
    """Returns image paths and questions of an official split (``train`` or ``test``) by index."""
    try:
        import easy_vqa
    except ImportError as error:
        raise ImportError(
            "easy-VQA questions need the package easy-vqa: pip install 'gprune[train]'"
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
    """Returns the indices of the pictures of ``train``, ``validation`` or ``test``."""
    every = sorted(_load_split("test" if split == "test" else "train")[0])
    if split == "train":
        return every[:-VALIDATION_IMAGES]
    return every[-VALIDATION_IMAGES:] if split == "validation" else every


def image(split: str, index: int, grid: int = GRID) -> Image.Image:
    """Returns a picture, resized as the image processor of a model with ``grid`` patches a side."""
    path = _load_split("test" if split == "test" else "train")[0][index]
    with Image.open(path) as stored:
        size = (grid * PATCH_SIZE, grid * PATCH_SIZE)
        return stored.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def ask(
    split: str, index: int, limit: int, rng: np.random.Generator | None = None
) -> list[Question]:
    """Returns at most ``limit`` questions about a picture: the first, or with ``rng`` a sample."""
    every = _load_split("test" if split == "test" else "train")[1][index]
    if rng is None or len(every) <= limit:
        return every[:limit]
    return [every[i] for i in sorted(rng.choice(len(every), limit, replace=False))]
