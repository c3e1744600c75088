"""Generates scenes: small pictures with questions whose answers are known.

A scene has two background halves, each with a pattern and a tint, non-overlapping coloured shapes,
and sometimes three digits or letters. Foreground share, number of objects and amount of text vary
widely, so that the best tokens to keep vary too.

``(split, seed, index)`` determines everything: the same triple gives the same pixels and questions
on every machine, training can resume at any step, and splits never share a random stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from gprune.tinyvlm.boxes import SIDE, Box
from gprune.tinyvlm.contents import (
    COLORS,
    DIGITS,
    GRID,
    LETTERS,
    PATTERNS,
    SHAPES,
    SIDES,
    TINTS,
    Contents,
    Object,
    Text,
)
from gprune.tinyvlm.drawing import FONTS, SUPERSAMPLE, draw_contents, load_font
from gprune.tinyvlm.questions import ASKERS, QUESTION_TYPES, Question

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Scene(Contents):
    """The contents of a picture; ``draw`` makes the pixels, ``ask`` the questions.

    Attributes:
        split: one of ``SPLITS``.
        seed: of the sequence of scenes.
        index: of the scene in that sequence.
    """

    split: str
    seed: int
    index: int

    def draw(self, grid: int = GRID) -> Image.Image:
        """Returns the RGB picture for a model with ``grid`` patches of ``PATCH_SIZE`` pixels."""
        return draw_contents(self, grid)

    def ask(self, kinds: Sequence[str] = QUESTION_TYPES, times: int = 1) -> list[Question]:
        """Returns up to ``times`` different questions of each type that this scene can answer.

        The wording of a question does not depend on ``kinds`` or ``times``.
        """
        questions: dict[str, Question] = {}
        for kind in kinds:
            rng = random_stream(self.split, self.seed, self.index, 1 + QUESTION_TYPES.index(kind))
            for _ in range(times):
                question = ASKERS[kind](self, rng)
                if question is not None:
                    questions.setdefault(question.question, question)
        return list(questions.values())


def make_scene(split: str, seed: int, index: int, crowded: bool = False) -> Scene:
    """Generates the scene of ``(split, seed, index)``.

    Args:
        split: ``train``, ``validation`` or ``test``.
        seed: of the sequence of scenes.
        index: of the scene in that sequence.
        crowded: adds several texts and many small objects, which give a dense per-patch objective
            more to learn from each picture.

    Raises:
        ValueError: ``split`` is unknown.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    # The order of the draws below defines the scenes: the shipped models and results depend on it.
    rng = random_stream(split, seed, index, 0)
    layout = str(rng.choice(list(SIDES)))
    border = int(rng.integers(SIDE * 3 // 8, SIDE * 5 // 8 + 1))
    patterns = rng.choice(PATTERNS, 2)
    tints = rng.choice(list(TINTS), 2, replace=False)
    phases = (float(rng.random()), float(rng.random()))
    occupied: list[Box] = []
    texts = _place_texts(rng, occupied, crowded)
    return Scene(
        split=split,
        seed=seed,
        index=index,
        layout=layout,
        border=border,
        patterns=(str(patterns[0]), str(patterns[1])),
        tints=(str(tints[0]), str(tints[1])),
        phases=phases,
        texts=texts,
        objects=_place_objects(rng, occupied, crowded),
    )


def random_stream(split: str, seed: int, index: int, purpose: int) -> np.random.Generator:
    """Returns the random stream of one purpose (0: contents, then one per question type)."""
    return np.random.default_rng([SPLITS.index(split), seed, index, purpose])


def _place_texts(rng: np.random.Generator, occupied: list[Box], crowded: bool) -> tuple[Text, ...]:
    count = int(rng.integers(2, 6)) if crowded else int(rng.random() < 0.75)
    texts = [_place_text(rng, occupied) for _ in range(count)]
    return tuple(text for text in texts if text is not None)


def _place_objects(
    rng: np.random.Generator, occupied: list[Box], crowded: bool
) -> tuple[Object, ...]:
    count = int(rng.integers(5, 11)) if crowded else int(rng.integers(1, 10))
    scale = float(rng.uniform(0.6, 1.0) if crowded else rng.uniform(0.7, 1.6))
    # A random subset of the colors, often small, so that objects share colors.
    colors = [str(name) for name in rng.permutation(list(COLORS))[: int(rng.integers(2, 11))]]
    objects = [_place_object(rng, occupied, scale, colors) for _ in range(count)]
    return tuple(item for item in objects if item is not None)


def _find_free_spot(
    rng: np.random.Generator, occupied: list[Box], width: float, height: float
) -> tuple[float, float] | None:
    """Finds a box that overlaps none of ``occupied``, by rejection sampling, and appends it there.

    Returns:
        Its left and top edge; None after 30 failed attempts.
    """
    gap = 2
    for _ in range(30):
        left = float(rng.uniform(1, SIDE - width - 1))
        top = float(rng.uniform(1, SIDE - height - 1))
        box = (left, top, left + width, top + height)
        if all(
            box[2] + gap <= other[0]
            or other[2] + gap <= box[0]
            or box[3] + gap <= other[1]
            or other[3] + gap <= box[1]
            for other in occupied
        ):
            occupied.append(box)
            return left, top
    return None


def _place_object(
    rng: np.random.Generator, occupied: list[Box], scale: float, colors: Sequence[str]
) -> Object | None:
    shape, color = str(rng.choice(SHAPES)), str(rng.choice(colors))
    radius = float(rng.uniform(7, 15)) * scale
    spot = _find_free_spot(rng, occupied, 2 * radius, 2 * radius)
    if spot is None:
        return None
    return Object(shape, color, spot[0] + radius, spot[1] + radius, radius)


def _place_text(rng: np.random.Generator, occupied: list[Box]) -> Text | None:
    alphabet = (DIGITS, LETTERS)[int(rng.integers(2))]
    signs = "".join(alphabet[int(index)] for index in rng.integers(0, len(alphabet), 3))
    name, size = str(rng.choice(FONTS)), int(rng.integers(19, 29))
    font = load_font(name, size * SUPERSAMPLE)
    left, top, right, bottom = font.getbbox(signs.upper(), anchor="lt")
    width, height = (right - left) / SUPERSAMPLE, (bottom - top) / SUPERSAMPLE
    spot = _find_free_spot(rng, occupied, width, height)
    if spot is None:
        return None
    edges = tuple(
        spot[0] + font.getlength(signs[:i].upper()) / SUPERSAMPLE for i in range(len(signs))
    )
    return Text(signs, name, size, (*spot, spot[0] + width, spot[1] + height), edges)
