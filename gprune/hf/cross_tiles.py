"""Chooses tokens of the tiles that a language model cross-attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gprune.hf.choice import EncodedImage, TokenChooser
from gprune.hf.records import KeptGroup


@dataclass(frozen=True, eq=False)
class KeptTiles:
    """What stays of a batch's new vision tokens.

    Attributes:
        states: vision states of each row, [k, d].
        columns: their indices among all new tokens of the row, int64 [k].
        groups: record of each visible tile of each row.
        dropped_count: number of dropped tokens, without those of padding tiles.
    """

    states: list[Tensor]
    columns: list[Tensor]
    groups: list[list[KeptGroup]]
    dropped_count: int


def visible_tiles(call: dict[str, Any], states: Tensor) -> list[list[list[int]]]:
    """Returns the tiles of each row and image that any text sees; padding tiles are not seen.

    Synchronises the host once, because what stays sets the shapes.

    Args:
        call: of the language model.
        states: [b, images, tiles, n, d].
    """
    mask = call.get("cross_attention_mask")
    b, images, tiles, n = states.shape[:4]
    if mask is None:
        return [[list(range(tiles))] * images] * b
    open_rows = call["full_text_row_masked_out_mask"] != 0  # [b, 1, L, 1]
    # Positions that see no image have a mask of zeros, so that their softmax is defined.
    seen = ((mask == 0) & open_rows).any(2).view(b, -1)[:, -images * tiles * n :: n]
    flags: list[list[list[bool]]] = seen.view(b, images, tiles).tolist()
    return [[[tile for tile, flag in enumerate(image) if flag] for image in row] for row in flags]


def choose_tiles(
    chooser: TokenChooser, states: Tensor, visible: list[list[list[int]]]
) -> KeptTiles:
    """Runs the method on every visible tile, on those of one image together.

    Args:
        chooser: runs the method.
        states: [b, images, tiles, n, d].
        visible: tiles of each row and image, as `visible_tiles` returns them.
    """
    _, images, tiles, n, d = states.shape
    columns = torch.arange(images * tiles * n, device=states.device).view(images, tiles, n)
    shown = [
        (row, image, own)
        for row, per_image in enumerate(visible)
        for image, own in enumerate(per_image)
        if own
    ]
    encoded = [
        EncodedImage(states[row, image, own].flatten(0, 1), None, {}) for row, image, own in shown
    ]
    choices = chooser.choose("image", encoded)
    kept_states = [[states.new_empty(0, d)] for _ in visible]
    kept_columns = [[columns.new_empty(0)] for _ in visible]
    groups: list[list[KeptGroup]] = [[] for _ in visible]
    dropped_count = 0
    for (row, image, own), choice in zip(shown, choices, strict=True):
        kept_states[row].append(choice.reduced.features)
        kept_columns[row].append(columns[image, own].flatten()[choice.reduced.rows])
        groups[row] += choice.records(image)
        dropped_count += len(own) * n - choice.kept_count
    return KeptTiles(
        [torch.cat(parts) for parts in kept_states],
        [torch.cat(parts) for parts in kept_columns],
        groups,
        dropped_count,
    )
