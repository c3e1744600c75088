"""Dense labels: what each patch of a scene shows, for objectives that train a vision tower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from gprune.tinyvlm.boxes import SIDE, bin_edges
from gprune.tinyvlm.contents import (
    COLORS,
    DIGITS,
    GRID,
    LETTERS,
    PATCH_SIZE,
    PATTERNS,
    SHAPES,
    TINTS,
    Contents,
)
from gprune.tinyvlm.drawing import draw_shape
from gprune.training.packing import IGNORED

# Two labels of a patch: its content and its colour. Background patches are labelled with their own
# pattern and tint: a single class "background" would make their features nearly identical, which
# alone could decide a ranking of pruning methods.
PATCH_KINDS = SHAPES + DIGITS + PATTERNS + LETTERS
PATCH_HUES = (*COLORS, "ink", *TINTS)
# A third label: which sign of its text a patch shows, or that it holds the centre of an object.
PATCH_MARKS = ("none", "first", "second", "third", "centre")

# The words for PATCH_KINDS: a sign after the first of its text is a continuation token.
KIND_WORDS = (*PATCH_KINDS, *(f"##{sign}" for sign in DIGITS + LETTERS))
# For each of PATCH_KINDS the index of its word, as the first sign of a text or as a later one.
FIRST_WORD = torch.tensor([KIND_WORDS.index(kind) for kind in PATCH_KINDS])
LATER_WORD = torch.tensor(
    [KIND_WORDS.index(f"##{kind}" if kind in DIGITS + LETTERS else kind) for kind in PATCH_KINDS]
)


def patch_labels(scene: Contents, grid: int = GRID) -> tuple[np.ndarray, np.ndarray]:
    """Labels patches by content and colour.

    Returns:
        indices into ``PATCH_KINDS`` and into ``PATCH_HUES``, both [grid, grid].
    """
    pixels, scale = grid * PATCH_SIZE, grid * PATCH_SIZE / SIDE
    kinds = np.zeros((pixels, pixels), dtype=np.uint8)
    hues = np.zeros_like(kinds)
    for half, region in enumerate(scene.halves(scale)):
        kinds[region] = PATCH_KINDS.index(scene.patterns[half])
        hues[region] = PATCH_HUES.index(scene.tints[half])
    kind_image, hue_image = Image.fromarray(kinds), Image.fromarray(hues)
    kind_pen, hue_pen = ImageDraw.Draw(kind_image), ImageDraw.Draw(hue_image)
    for item in scene.objects:
        draw_shape(kind_pen, item, PATCH_KINDS.index(item.shape), scale)
        draw_shape(hue_pen, item, PATCH_HUES.index(item.color), scale)
    for text in scene.texts:
        for sign, box in zip(text.signs, text.sign_boxes(scale), strict=True):
            kind_pen.rectangle(box, fill=PATCH_KINDS.index(sign))
            hue_pen.rectangle(box, fill=PATCH_HUES.index("ink"))
    kind_weights = np.where([kind in PATTERNS for kind in PATCH_KINDS], 1, 2)
    hue_weights = np.where([hue in TINTS for hue in PATCH_HUES], 1, 2)
    return (
        weighted_majority(np.asarray(kind_image), kind_weights),
        weighted_majority(np.asarray(hue_image), hue_weights),
    )


def patch_marks(scene: Contents, grid: int = GRID) -> np.ndarray:
    """Labels patches by the order of signs and the centres of objects.

    Returns:
        indices into ``PATCH_MARKS``, [grid, grid].
    """
    scale = grid * PATCH_SIZE / SIDE
    marks = Image.fromarray(np.zeros((grid * PATCH_SIZE,) * 2, dtype=np.uint8))
    pen = ImageDraw.Draw(marks)
    for text in scene.texts:
        for order, box in enumerate(text.sign_boxes(scale), 1):
            pen.rectangle(box, fill=order)
    result = weighted_majority(np.asarray(marks), np.array([1, 2, 2, 2, 2]))
    for item in scene.objects:
        row, column = (int(centre * scale) // PATCH_SIZE for centre in (item.y, item.x))
        result[row, column] = PATCH_MARKS.index("centre")
    return result


def patch_owners(scene: Contents, grid: int = GRID) -> np.ndarray:
    """Labels patches by the index of the object that they show, -1 for none: [grid, grid].

    A patch shared by two objects belongs to the one drawn last, as in the other labels.
    """
    scale = grid * PATCH_SIZE / SIDE
    owners = Image.fromarray(np.zeros((grid * PATCH_SIZE,) * 2, dtype=np.uint8))
    pen = ImageDraw.Draw(owners)
    for number, item in enumerate(scene.objects, 1):
        draw_shape(pen, item, number, scale)
    weights = np.full(len(scene.objects) + 1, 2)
    weights[0] = 1
    return weighted_majority(np.asarray(owners), weights) - 1


def patch_edges(scene: Contents, owners: np.ndarray) -> np.ndarray:
    """Labels patches by the binned box of the object that they show.

    Args:
        scene: the contents.
        owners: from `patch_owners`, [grid, grid].

    Returns:
        the bins of the four edges, -1 where no object is shown, [grid, grid, 4].
    """
    boxes = np.array([[-1] * 4, *(bin_edges(item.box) for item in scene.objects)])
    return boxes[1 + owners]


def foreground(scene: Contents, grid: int = GRID) -> np.ndarray:
    """Returns which patches show an object or a sign, bool [grid, grid]."""
    background = [index for index, kind in enumerate(PATCH_KINDS) if kind in PATTERNS]
    return ~np.isin(patch_labels(scene, grid)[0], background)


def weighted_majority(labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the label with the largest weighted pixel count of each patch.

    Args:
        labels: of the pixels, [grid * PATCH_SIZE, grid * PATCH_SIZE].
        weights: of each label.

    Returns:
        [grid, grid]; ties go to the lowest label.
    """
    grid = len(labels) // PATCH_SIZE
    patches = labels.reshape(grid, PATCH_SIZE, grid, PATCH_SIZE).swapaxes(1, 2)
    flat = patches.reshape(grid * grid, PATCH_SIZE * PATCH_SIZE).astype(np.int64)
    counts = np.zeros((grid * grid, len(weights)), dtype=np.int64)
    np.add.at(counts, (np.arange(grid * grid)[:, None], flat), 1)
    return (counts * weights).argmax(1).reshape(grid, grid)


@dataclass
class Labels:
    """Dense labels of a batch, -100 where a patch has none; n patches are in raster order.

    Attributes:
        kinds: indices into ``KIND_WORDS``, [b, n].
        hues: indices into ``PATCH_HUES``, [b, n].
        marks: indices into ``PATCH_MARKS``, [b, n].
        edges: bins of the four edges of the object's box, [b, n, 4].
        owners: index of the object that a patch shows, -1 for none, [b, n].
    """

    kinds: Tensor
    hues: Tensor
    marks: Tensor
    edges: Tensor
    owners: Tensor

    def padded(self, count: int) -> Labels:
        """Returns the labels with ``count`` unlabelled pictures appended."""
        fields = (self.kinds, self.hues, self.marks, self.edges, self.owners)
        empty = [part.new_full((count, *part.shape[1:]), IGNORED) for part in fields]
        return Labels(*(torch.cat(pair) for pair in zip(fields, empty, strict=True)))


def dense_labels(scenes: Sequence[Contents], grid: int = GRID) -> Labels:
    """Returns the labels of scenes for a model with ``grid`` patches a side."""

    def stack(parts: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(parts)).long().flatten(1, 2)

    labels = [patch_labels(scene, grid) for scene in scenes]
    kinds, hues = (stack(part) for part in zip(*labels, strict=True))
    marks = stack([patch_marks(scene, grid) for scene in scenes])
    owners = [patch_owners(scene, grid) for scene in scenes]
    edges = stack([patch_edges(scene, own) for scene, own in zip(scenes, owners, strict=True)])
    later = (marks == PATCH_MARKS.index("second")) | (marks == PATCH_MARKS.index("third"))
    return Labels(
        torch.where(later, LATER_WORD[kinds], FIRST_WORD[kinds]),
        hues,
        marks,
        torch.where(edges < 0, IGNORED, edges),
        stack(owners),
    )
