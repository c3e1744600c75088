"""The images or videos of a call that is pruned between layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gprune.hf.choice import ImageChoice, Selection
from gprune.pruners.image import ReducedImage
from gprune.tokens import Group


@dataclass(frozen=True, eq=False)
class GroupedModality:
    """The images or videos of a call, before anything is chosen.

    Attributes:
        modality: ``image`` or ``video``.
        placeholder: true at the placeholders, bool [b, L].
        images: features [n, d] and groups of each image.
    """

    modality: str
    placeholder: Tensor
    images: list[tuple[Tensor, list[Group]]]

    def candidates(self) -> Tensor:
        """Returns a mask of the placeholders that may be dropped, those in a group, bool [b, L]."""
        flags = []
        for features, groups in self.images:
            in_group = torch.zeros(len(features), dtype=torch.bool, device=features.device)
            for group in groups:
                in_group[group.rows] = True
            flags.append(in_group)
        none = torch.zeros_like(self.placeholder)
        return none.masked_scatter(self.placeholder, torch.cat(flags).to(none.device))

    def layout(self) -> Tensor:
        """Returns where each placeholder lies in its group, int64 [b, L, 5].

        The channels are its row and column, the rows and columns of the group's raster, and the
        number of the group. They are -1 where there is none: without a raster the first four, and
        outside groups all. Groups are numbered through the call.
        """
        parts, number = [], 0
        for features, groups in self.images:
            part = torch.full((len(features), 5), -1, device=features.device)
            for group in groups:
                part[group.rows, 4] = number
                number += 1
                if group.grid is not None:
                    rows, columns = group.grid
                    index = torch.arange(len(group.rows), device=features.device)
                    part[group.rows, 0], part[group.rows, 1] = index // columns, index % columns
                    part[group.rows, 2], part[group.rows, 3] = rows, columns
            parts.append(part)
        layout = torch.full((*self.placeholder.shape, 5), -1, device=self.placeholder.device)
        layout[self.placeholder] = torch.cat(parts).to(layout.device)
        return layout

    def selection(self, kept_mask: Tensor) -> Selection:
        """Returns what was kept.

        Args:
            kept_mask: true at the positions that reached the last layer, bool [b, L].
        """
        lengths = [len(features) for features, _ in self.images]
        choices = []
        flags = torch.split(kept_mask[self.placeholder], lengths)
        for (features, groups), stays in zip(self.images, flags, strict=True):
            rows = stays.nonzero().squeeze(1).to(features.device)
            kept = [stays[g.rows.to(stays.device)].nonzero().squeeze(1) for g in groups]
            choices.append(ImageChoice(groups, ReducedImage(rows, features[rows], kept)))
        return Selection(self.modality, self.placeholder, lengths, choices)
