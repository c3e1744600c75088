"""The prompts of a proof: single rows, an uneven batch of them, and a conversation.

Rows are put together here and not by a processor, so that prompts of a user's checkpoint and of a
tiny random model are treated alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gprune.layouts import family_of
from gprune.proof.running import Inputs

# Arguments with one value (or one slice) for each position, [b, L, ...].
PER_POSITION = (
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "mm_token_type_ids",
    "cross_attention_mask",
)

# Those that a later call takes from the start of the conversation.
TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")
OF_HISTORY = ("attention_mask", *TOKEN_TYPES)

# Families whose pixels have a dimension for the rows of the batch before that for the images.
ROWS_OF_IMAGES = ("idefics3", "smolvlm", "mllama")


@dataclass(frozen=True, eq=False)
class Conversation:
    """Two turns of a batch of prompts.

    Attributes:
        joined: the inputs of both turns as one prompt.
        past: number of columns of the first turn.
        first: the inputs of the first turn.
        second: the arguments of a call that continues with the second turn, without position ids.
    """

    joined: Inputs
    past: int
    first: Inputs
    second: Inputs


@dataclass(frozen=True, eq=False)
class Case:
    """The prompts of a proof.

    Attributes:
        rows: prompts of one row each; the first has an image.
        batch: the same prompts in one left-padded batch.
        beams: batches for beam search with their rows, of which fewer and fewer have more images
            than one.
        conversation: two turns with images, of two uneven rows; None if the family allows no later
            image.
        lone_conversation: the same with one row.
    """

    rows: Sequence[Inputs]
    batch: Inputs
    beams: Sequence[tuple[Sequence[Inputs], Inputs]]
    conversation: Conversation | None
    lone_conversation: Conversation | None


def per_position(inputs: Inputs) -> Inputs:
    """Returns the arguments that have a value for each position."""
    return {name: value for name, value in inputs.items() if name in PER_POSITION}


def encoder_inputs(inputs: Inputs) -> Inputs:
    """Returns the other arguments: those of the vision encoder."""
    return {name: value for name, value in inputs.items() if name not in PER_POSITION}


def make_case(model: Any, rows: Sequence[Inputs]) -> Case:
    """Builds a case from prompts of one row each.

    Args:
        model: the model that the prompts are for.
        rows: the prompts; the first two with images.
    """
    family = family_of(model)
    pad_id = padding_token(model)
    choices: list[Sequence[Inputs]] = [rows, [rows[0], rows[-1]], rows[:1]]
    conversations: list[Conversation | None] = [None, None]
    if family.name != "paligemma":
        conversations = [
            converse(family.name, first, list(reversed(first)), pad_id)
            for first in (rows[:2], rows[:1])
        ]
    return Case(
        rows,
        collate(family.name, rows, pad_id),
        [(own, collate(family.name, own, pad_id)) for own in choices],
        *conversations,
    )


def padding_token(model: Any) -> int:
    """Returns a token id for padding: the mask hides it, so any that is no placeholder will do."""
    family = family_of(model)
    placeholders = {family.token_id(model, modality) for modality in family.modalities}
    configs = (model.generation_config, model.config.get_text_config())
    ids = [getattr(config, "pad_token_id", None) for config in configs]
    ids += range(len(placeholders) + 1)
    return next(
        value
        for value in ids
        if isinstance(value, int) and value >= 0 and value not in placeholders
    )


def collate(family: str, rows: Sequence[Inputs], pad_id: int) -> Inputs:
    """Joins prompts of one row each into one left-padded batch.

    Args:
        family: the name of the model's family.
        rows: the prompts.
        pad_id: token id of padding.
    """
    width = max(row["input_ids"].shape[1] for row in rows)
    pixels = [encoder_inputs(row) for row in rows]
    if family in ROWS_OF_IMAGES:
        pixels = with_blank_images(pixels)
    batch = join_images([own for own in pixels if own], 0)
    for name in per_position(rows[0]):
        fill = pad_id if name == "input_ids" else 0
        # A processor may leave token types out of a prompt of text alone.
        values = [row.get(name, torch.zeros_like(row["input_ids"])) for row in rows]
        values = pad_to_largest(values, 2)
        batch[name] = torch.cat([pad_left(value, width, fill) for value in values])
    return batch


def pad_left(values: Tensor, width: int, fill: int) -> Tensor:
    """Pads ``values`` [1, L, ...] to [1, width, ...]."""
    missing = values.new_full((1, width - values.shape[1], *values.shape[2:]), fill)
    return torch.cat([missing, values], 1)


def pad_to_largest(values: Sequence[Tensor], first: int) -> list[Tensor]:
    """Pads tensors with zeros so that their dimensions from ``first`` on agree."""
    sizes = [max(sizes) for sizes in zip(*(value.shape[first:] for value in values), strict=True)]
    padded = []
    for value in values:
        missing = [size - own for size, own in zip(sizes, value.shape[first:], strict=True)]
        pads = [amount for size in reversed(missing) for amount in (0, size)]
        padded.append(F.pad(value, pads) if any(pads) else value)
    return padded


def join_images(parts: Sequence[Inputs], dimension: int) -> Inputs:
    """Joins the arguments of the encoder of several prompts along a dimension; pads the others."""
    joined: Inputs = {}
    for name in {name: None for part in parts for name in part}:
        values = pad_to_largest([part[name] for part in parts if name in part], dimension + 1)
        joined[name] = torch.cat(values, dimension)
    return joined


def with_blank_images(parts: Sequence[Inputs]) -> list[Inputs]:
    """Gives rows without images zeros in their place, as processors do."""
    like = next(part for part in parts if part)
    return [
        part or {name: torch.zeros_like(value) for name, value in like.items()} for part in parts
    ]


def converse(
    family: str, first: Sequence[Inputs], second: Sequence[Inputs], pad_id: int
) -> Conversation:
    """Joins two batches of prompts to a conversation of two turns.

    Args:
        family: the name of the model's family.
        first: prompts of one row each.
        second: as many prompts, which follow them.
        pad_id: token id of padding.
    """
    start, later = collate(family, first, pad_id), collate(family, second, pad_id)
    if "cross_attention_mask" in start:
        # Words that see no image average over all: in one call over those of the second turn too.
        across = start["cross_attention_mask"]
        start["cross_attention_mask"] = across[:, -1:].expand_as(across)
    dimension = 1 if family in ROWS_OF_IMAGES else 0
    pixels = [
        join_images([encoder_inputs(one), encoder_inputs(other)], dimension)
        for one, other in zip(first, second, strict=True)
    ]
    joined = join_images(pixels, 0)
    for name in per_position(start):
        if name != "cross_attention_mask":
            joined[name] = torch.cat([start[name], later[name]], 1)
    # Some models read token types from the start of the conversation, as all read the mask.
    later |= {name: joined[name] for name in OF_HISTORY if name in joined}
    if "cross_attention_mask" in start:
        old, new = start["cross_attention_mask"], later["cross_attention_mask"]
        bottom = torch.cat([old[:, -1:].expand(-1, new.shape[1], -1, -1), new], 2)
        joined["cross_attention_mask"] = torch.cat([torch.cat([old, 0 * old], 2), bottom], 1)
        later["cross_attention_mask"] = bottom
    return Conversation(joined, start["input_ids"].shape[1], start, later)


def followed_by(inputs: Inputs, ids: Tensor) -> Inputs:
    """Appends text to the prompts of a batch.

    Args:
        inputs: of b prompts.
        ids: token ids of the text, int64 [b, m].
    """
    m = ids.shape[1]
    longer = dict(inputs)
    longer["input_ids"] = torch.cat([inputs["input_ids"], ids], 1)
    longer["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(ids)], 1)
    for name in TOKEN_TYPES:
        if name in inputs:
            zeros = inputs[name].new_zeros(ids.shape)
            longer[name] = torch.cat([inputs[name], zeros], 1)
    if "cross_attention_mask" in inputs:
        across = inputs["cross_attention_mask"]
        last = across[:, -1:].expand(-1, m, -1, -1)
        longer["cross_attention_mask"] = torch.cat([across, last], 1)
    return longer
