"""What every patch of a scene shows, for objectives that teach a vision tower."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from gprune.tinyvlm.scenes import BINS, DIGITS, EDGES, GRID, KINDS, LETTERS, MARKS, Scene
from gprune.training.packing import IGNORED

# The words of the patch labels: a sign after the first of its text has a word of its own.
KIND_WORDS = (*KINDS, *(f"##{sign}" for sign in DIGITS + LETTERS))
# For each of KINDS the word of a first sign, or of a later one.
FIRST = torch.tensor([KIND_WORDS.index(kind) for kind in KINDS])
LATER = torch.tensor(
    [KIND_WORDS.index(f"##{kind}" if kind in DIGITS + LETTERS else kind) for kind in KINDS]
)


@dataclass
class Labels:
    """Dense labels of patches, -100 where a patch has none.

    Attributes:
        kinds: indices into ``KIND_WORDS``, [b, n].
        hues: indices into ``HUES``, [b, n].
        marks: indices into ``MARKS``, [b, n].
        edges: steps of the four edges of the object's box, [b, n, 4].
        owners: which object a patch shows, -1 where it shows none, [b, n].
    """

    kinds: Tensor
    hues: Tensor
    marks: Tensor
    edges: Tensor
    owners: Tensor

    def padded(self, more: int) -> Labels:
        """With ``more`` pictures that have no labels at the end."""
        fields = (self.kinds, self.hues, self.marks, self.edges, self.owners)
        none = [part.new_full((more, *part.shape[1:]), IGNORED) for part in fields]
        return Labels(*(torch.cat(pair) for pair in zip(fields, none, strict=True)))


def dense(scenes: list[Scene], grid: int = GRID) -> Labels:
    """The patch labels of scenes for a model with ``grid`` patches a side."""

    def stacked(parts: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(parts)).long().flatten(1, 2)

    labels = [scene.patch_labels(grid) for scene in scenes]
    kinds, hues = (stacked(list(part)) for part in zip(*labels, strict=True))
    marks = stacked([scene.patch_marks(grid) for scene in scenes])
    drawn = [scene.patch_owners(grid) for scene in scenes]
    edges = stacked([scene.edges_of(owners) for scene, owners in zip(scenes, drawn, strict=True)])
    later = (marks == MARKS.index("second")) | (marks == MARKS.index("third"))
    return Labels(
        torch.where(later, LATER[kinds], FIRST[kinds]),
        hues,
        marks,
        torch.where(edges < 0, IGNORED, edges),
        stacked(drawn),
    )


def edge_ids(tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """For each of the four edges of a box the token ids of its steps, in their order."""
    return [
        tokenizer.convert_tokens_to_ids([f"{edge}{step}" for step in range(BINS)]) for edge in EDGES
    ]


def edge_logits(seen: Tensor, words: Tensor, steps: list[list[int]]) -> Tensor:
    """Logits of the steps of the four edges, by the nearness of their words, [..., 4, BINS].

    Args:
        seen: what a patch or a region shows, normalised, [..., width].
        words: the language model's word embeddings, [vocabulary, width].
        steps: what `edge_ids` gives.
    """
    return torch.stack([seen @ words[ids].T for ids in steps], -2)
