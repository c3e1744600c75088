"""Captions of scenes, the alternative objective for pretraining a vision tower.

A caption is the set of phrases that hold for a picture: its objects by name, the two halves of its
background, and the signs of its texts. As in RegionCLIP (Zhong et al., 2022, arXiv 2112.09106), a
phrase is matched with the *mean* of the patches that it describes. Unlike the dense labels of the
other objective, this does not pull single patches towards words, and what the patches of a region
share is left to the tower. If the tower has a CLS token, it is matched with all phrases of its
picture, as CLIP's is with a caption, by the loss of SigLIP (Zhai et al., 2023, arXiv 2303.15343);
attention to the CLS token then carries meaning. The heads are in `gprune.training.heads`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from gprune.tinyvlm.boxes import EDGES
from gprune.tinyvlm.contents import Contents
from gprune.training.labels import KIND_WORDS, PATCH_HUES, Labels
from gprune.training.packing import IGNORED

# What a phrase describes. Phrases compete only with phrases of their own kind: otherwise the kind
# that is easiest to tell apart would be all that is learned.
PHRASE_KINDS = ("object", "background", "sign")


@dataclass
class Captions:
    """The p distinct phrases about a batch of b pictures.

    Attributes:
        words: token ids of the two words of a phrase, [p, 2]; a single word is repeated.
        kinds: indices into ``PHRASE_KINDS``, [p].
        holds: whether a phrase holds for a picture, bool [b, p].
        regions: the patches that it describes there, bool [b, p, n]; empty if other content covers
            them.
        edges: bins of the four edges of the object that it names, [b, p, 4]; -100 where it names
            none or several.
    """

    words: Tensor
    kinds: Tensor
    holds: Tensor
    regions: Tensor
    edges: Tensor


def phrases(scene: Contents) -> set[tuple[str, str, str]]:
    """Returns the phrases of a scene: kind from ``PHRASE_KINDS``, content word, color or tint.

    The color of a sign is empty.
    """
    objects = {("object", item.shape, item.color) for item in scene.objects}
    halves = {
        ("background", pattern, tint)
        for pattern, tint in zip(scene.patterns, scene.tints, strict=True)
    }
    signs = {
        ("sign", sign if order == 0 else f"##{sign}", "")
        for text in scene.texts
        for order, sign in enumerate(text.signs)
    }
    return objects | halves | signs


def captions_of(
    scenes: Sequence[Contents], labels: Labels, tokenizer: PreTrainedTokenizerFast
) -> Captions:
    """Returns the captions of scenes, with phrases in alphabetical order.

    Args:
        scenes: the scenes.
        labels: dense labels of their patches.
        tokenizer: has a token for every word.
    """
    per_scene = [phrases(scene) for scene in scenes]
    every = sorted(set().union(*per_scene))
    words = [[hue or word, word] for _, word, hue in every]
    holds = torch.tensor([[phrase in own for phrase in every] for own in per_scene])
    word_labels = torch.tensor([KIND_WORDS.index(word) for _, word, _ in every])
    hue_labels = torch.tensor([PATCH_HUES.index(hue or "ink") for _, _, hue in every])
    regions = labels.kinds[:, None] == word_labels[None, :, None]  # [b, p, n]
    regions &= (labels.hues[:, None] == hue_labels[None, :, None]) & holds[:, :, None]
    return Captions(
        torch.tensor([tokenizer.convert_tokens_to_ids(pair) for pair in words]),
        torch.tensor([PHRASE_KINDS.index(kind) for kind, _, _ in every]),
        holds,
        regions,
        _region_edges(labels, regions),
    )


def _region_edges(labels: Labels, regions: Tensor) -> Tensor:
    """Returns `Captions.edges`, from the labels of the patches."""
    owners = labels.owners[:, None].expand_as(regions)
    none = int(labels.owners.max()) + 1
    lowest, highest = (
        owners.masked_fill(~regions, none).amin(2),
        owners.masked_fill(~regions, -1).amax(2),
    )
    patch = regions.int().argmax(2)  # every patch of an object is labelled with its box
    edges = labels.edges.gather(1, patch[..., None].expand(-1, -1, len(EDGES)))
    return edges.where((lowest == highest)[..., None], IGNORED)
