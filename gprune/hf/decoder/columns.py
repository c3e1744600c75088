"""The columns of a prefill: which remain, in which order, and at which positions."""

from __future__ import annotations

import torch
from torch import Tensor

from gprune.hf.rewrite import right_aligned


class Columns:
    """The columns of a call that remain while it runs through the layers.

    Attributes:
        order: original column of each remaining one, int64 [b, p]. An appended row has the column
            of a dropped token.
        real: false at padding, bool [b, p].
        positions: position ids of the remaining columns, int64 [b, p], if they are numbered
            without gaps; None if every column keeps its own.
        shift: by how much position ids are lower than in the first layer after the last visual
            token, int64 [b]; None if every column keeps its own.
    """

    def __init__(self, real: Tensor, positions: Tensor | None) -> None:
        """Starts with all columns.

        Args:
            real: false at padding, bool [b, L].
            positions: position ids to renumber, int64 [b or 1, L]; None to leave them alone.
        """
        self.order = torch.arange(real.shape[1], device=real.device).expand_as(real)
        self.real = real
        self.positions = None if positions is None else positions.expand_as(real)
        self.shift = None if positions is None else torch.zeros_like(self.order[:, 0])

    def find(self, row: int, original: Tensor) -> Tensor:
        """Returns where original columns [m] that remain now are in a row, int64 [m]."""
        found = (self.order[row] == original[:, None]) & self.real[row]
        return found.to(torch.uint8).argmax(1)

    def take(self, values: Tensor) -> Tensor:
        """Returns values of original columns [b, L] for the remaining ones, [b, p]."""
        return values.gather(1, self.order)

    def keep(self, keep: Tensor, appended: Tensor, visual: Tensor) -> Tensor:
        """Removes columns.

        Args:
            keep: true at the columns that stay, bool [b, p].
            appended: true at those that hold appended rows, bool [b, p]. If positions are numbered
                without gaps, these rows move behind the last visual token of their batch row, in
                their order; else they stay.
            visual: true at visual tokens, bool [b, p].

        Returns:
            for each column that remains the column it was in, int64 [b, q].
        """
        b, p = keep.shape
        arranged = torch.arange(p, device=keep.device).expand(b, p)
        if self.positions is not None:
            last = torch.where(visual & self.real, arranged, -1).amax(1, keepdim=True)
            key = torch.where(appended, 2 * last + 1, 2 * arranged)
            arranged = torch.sort(key, dim=1, stable=True).indices
        stays = keep.gather(1, arranged)
        order, real = right_aligned(stays, int(stays.sum(1).max()))
        if self.positions is not None and self.shift is not None:
            dropped = self.real.gather(1, arranged) & ~stays
            self.positions = (self.positions - dropped.cumsum(1)).gather(1, order)
            self.shift = self.shift + dropped.sum(1)
        order = arranged.gather(1, order)
        self.order, self.real = self.order.gather(1, order), real
        return order


def text_columns(real: Tensor, visual: Tensor, prompt: int) -> Tensor:
    """Returns the columns of a row's text after its last visual token, or else its last token.

    Args:
        real: false at padding, bool [L].
        visual: true at visual tokens, bool [L].
        prompt: number of columns of the prompt; later ones are ignored.

    Returns:
        int64 [m], ascending, m >= 1.
    """
    columns = torch.arange(len(real), device=real.device)
    in_prompt = real & (columns < prompt)
    after_visual = in_prompt & (visual.flip(0).cumsum(0).flip(0) == 0)
    text = after_visual.nonzero().squeeze(1)
    return text if len(text) else in_prompt.nonzero().squeeze(1)[-1:]


def gather_columns(values: Tensor, order: Tensor) -> Tensor:
    """Returns ``values`` [b, p, d] at the columns ``order`` [b, q], [b, q, d]."""
    return values.gather(1, order.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
