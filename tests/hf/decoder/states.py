"""What an unpruned model itself caches and computes between two layers, row by row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from gprune.hf.records import KeptGroup
from gprune.proof.batches import Batch, forward
from gprune.proof.models import IMAGE, VIDEO
from gprune.pruners.decoder import DecoderTokens
from tests.hf.layerwise import embedded


class ModelStates:
    """The states of each prompt of a batch before layer ``layer`` of the unpruned model.

    Attributes:
        columns: for each row the columns of the visual tokens that may be dropped.
    """

    def __init__(self, model: Any, batch: Batch, layer: int) -> None:
        """Runs the model with a cache."""
        output = forward(model, batch, output_hidden_states=True, use_cache=True)
        self.hidden: Tensor = output.hidden_states[layer]
        self.norm = model.get_decoder().norm
        # [b, key heads, L, head_dim]
        self.keys: Tensor = output.past_key_values.layers[layer - 1].keys
        ids = batch.inputs["input_ids"]
        self.real = batch.inputs["attention_mask"].bool()
        self.visual = (ids == IMAGE) | (ids == VIDEO)
        inside = self.visual
        newline = getattr(model.base_model, "image_newline", None)
        if newline is not None:
            inside = inside & (embedded(model, batch) != newline).any(-1)
        self.columns = [row.nonzero().squeeze(1) for row in inside]

    def tokens(self, row: int, groups: list[KeptGroup]) -> DecoderTokens:
        """Returns the tokens of a row, whose groups stand one after the other."""
        own = self.columns[row]
        last = int(self.visual[row].nonzero().max())
        text = torch.arange(last + 1, self.visual.shape[1])
        places, rasters, numbers = [], [], []
        for number, group in enumerate(groups):
            numbers += [number] * group.size
            rasters += [group.grid or (-1, -1)] * group.size
            columns = 0 if group.grid is None else group.grid[1]
            places += [divmod(i, columns) if columns else (-1, -1) for i in range(group.size)]
        heads = self.keys[row].transpose(0, 1).flatten(1)
        padding = int((~self.real[row]).sum())
        return DecoderTokens(
            self.hidden[row, own],
            None,
            len(own),
            keys=heads[own],
            text_keys=heads[text],
            normed=self.norm(self.hidden[row, own]),
            normed_text=self.norm(self.hidden[row, text]),
            coordinates=torch.tensor(places),
            rasters=torch.tensor(rasters),
            groups=torch.tensor(numbers),
            columns=own - padding,
        )


@contextmanager
def recorded_input(model: Any, layer: int) -> Iterator[list[Tensor]]:
    """Records what enters the attention of a layer: its hidden states after the input norm."""
    found: list[Tensor] = []

    def record(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(args[0] if args else kwargs["hidden_states"])

    attention = model.get_decoder().layers[layer].self_attn
    handle = attention.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


def mask_of(states: ModelStates, kept: list[list[int]]) -> Tensor:
    """Returns the mask of the columns that stay, given the kept tokens of each row."""
    mask = states.real.clone()
    for row, (columns, own) in enumerate(zip(states.columns, kept, strict=True)):
        mask[row, columns] = False
        mask[row, columns[own]] = True
    return mask
