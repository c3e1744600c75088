"""Teaches a vision tower from captions: the other way to pretrain it.

A caption is the set of phrases that hold for a picture: its objects by name and where they are,
what the halves of its background look like, and the signs of its texts. As in RegionCLIP (Zhong et
al., 2022, arXiv 2112.09106) a phrase is told from the others by the *mean* of the patches that it
is about, so that no patch has to be like a word, as under the dense labels of the other objective,
and what the patches of a region have in common is left to the tower. A CLS token, where there is
one, has to tell every phrase of its picture, by the loss of SigLIP (Zhai et al., 2023, arXiv
2303.15343), as CLIP's tells its caption: what it attends to then means something.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from gprune.tinyvlm.scenes import EDGES, HUES, Scene
from gprune.training.labels import KIND_WORDS, Labels, edge_ids, edge_logits
from gprune.training.packing import IGNORED

# What a phrase tells of. A phrase is told from those of its kind: else the kind that tells pictures
# apart most easily would be all that is learned.
TOLD = ("object", "background", "sign")


@dataclass
class Captions:
    """The different phrases about some pictures.

    Attributes:
        words: token ids of the two words of a phrase, the same twice where it has one, [p, 2].
        told: indices into ``TOLD``, [p].
        holds: whether a phrase holds for a picture, bool [b, p].
        regions: the patches that it is about there, bool [b, p, n]; maybe none, where others cover
            them.
        edges: steps of the four edges of the one object that it names, -100 where it names none or
            several, [b, p, 4].
    """

    words: Tensor
    told: Tensor
    holds: Tensor
    regions: Tensor
    edges: Tensor


def phrases(scene: Scene) -> set[tuple[str, str, str]]:
    """What the caption of a scene tells: of ``TOLD``, what it is, and its color or tint.

    A sign has no color.
    """
    objects = {("object", item.shape, item.color) for item in scene.objects}
    halves = {
        ("background", pattern, tint)
        for pattern, tint in zip(scene.patterns, scene.tints, strict=True)
    }
    signs = {
        ("sign", sign if place == 0 else f"##{sign}", "")
        for text in scene.texts
        for place, sign in enumerate(text.signs)
    }
    return objects | halves | signs


def captions_of(
    scenes: Sequence[Scene], labels: Labels, tokenizer: PreTrainedTokenizerFast
) -> Captions:
    """The captions of some scenes, their phrases in alphabetical order.

    Args:
        scenes: what is in the pictures.
        labels: of their patches.
        tokenizer: has a token for every word.
    """
    each = [phrases(scene) for scene in scenes]
    every = sorted(set().union(*each))
    words = [[hue or kind, kind] for _, kind, hue in every]
    holds = torch.tensor([[phrase in told for phrase in every] for told in each])
    kinds = torch.tensor([KIND_WORDS.index(kind) for _, kind, _ in every])
    hues = torch.tensor([HUES.index(hue or "ink") for _, _, hue in every])
    regions = labels.kinds[:, None] == kinds[None, :, None]
    regions &= (labels.hues[:, None] == hues[None, :, None]) & holds[:, :, None]
    return Captions(
        torch.tensor([tokenizer.convert_tokens_to_ids(pair) for pair in words]),
        torch.tensor([TOLD.index(kind) for kind, _, _ in every]),
        holds,
        regions,
        _edges(labels, regions),
    )


def _edges(labels: Labels, regions: Tensor) -> Tensor:
    """`Captions.edges`, from the labels of the patches."""
    owners = labels.owners[:, None].expand_as(regions)
    none = int(labels.owners.max()) + 1
    one = owners.masked_fill(~regions, none).amin(2) == owners.masked_fill(~regions, -1).amax(2)
    patch = regions.int().argmax(2)  # any patch of the object tells its box
    edges = labels.edges.gather(1, patch[..., None].expand(-1, -1, len(EDGES)))
    return edges.where(one[..., None], IGNORED)


class CaptionHeads(nn.Module):
    """Which phrase a region goes with, where it is, and which phrases a picture goes with.

    Args:
        vision_width: of the tower's tokens.
        text_width: of the language model's tokens.
        tokenizer: of the language model.
    """

    def __init__(
        self, vision_width: int, text_width: int, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(text_width)
        self.summary = nn.Linear(vision_width, text_width)
        # What cosines are multiplied by, for regions (CLIP starts from 14) and for the CLS token,
        # and what is added to the latter; SigLIP starts from 10 and -10.
        self.factor = nn.Parameter(torch.tensor([math.log(14.0), math.log(10.0)]))
        self.summand = nn.Parameter(torch.tensor(-10.0))
        self.edge_ids = edge_ids(tokenizer)

    def regions(self, projected: Tensor, words: Tensor, captions: Captions) -> tuple[Tensor, ...]:
        """Logits of the phrases for each region that shows one, and which one that is.

        Args:
            projected: patch features in the language model's space, float32 [b, n, text_width].
            words: the language model's word embeddings, [vocabulary, text_width].
            captions: of the pictures.

        Returns:
            Logits [r, p], -inf for phrases of other kinds; the phrase of each region, [r]; logits
            of the steps of the four edges, [r, 4, BINS], and those steps, [r, 4].
        """
        regions = captions.regions.float()
        mean = (regions @ projected) / regions.sum(2, keepdim=True).clamp(min=1)  # [b, p, width]
        shown = captions.regions.any(2)
        seen = self.norm(mean[shown])
        which = shown.nonzero()[:, 1]
        near = F.normalize(seen, dim=-1) @ self.phrases(words, captions).T
        other = captions.told[which][:, None] != captions.told
        edges = edge_logits(seen, words, self.edge_ids)
        logits = (self.factor[0].exp() * near).masked_fill(other, -torch.inf)
        return logits, which, edges, captions.edges[shown]

    def whole(self, cls: Tensor, words: Tensor, captions: Captions) -> Tensor:
        """Logits that a phrase holds for a picture, by its CLS token [b, vision_width]: [b, p]."""
        near = F.normalize(self.summary(cls), dim=-1) @ self.phrases(words, captions).T
        return self.factor[1].exp() * near + self.summand

    def phrases(self, words: Tensor, captions: Captions) -> Tensor:
        """The phrases at unit length, [p, text_width]."""
        return F.normalize(F.embedding(captions.words, words).sum(1), dim=-1)

    def loss(
        self, projected: Tensor, cls: Tensor | None, words: Tensor, captions: Captions
    ) -> Tensor:
        """The mean costs of telling regions, their edges, and what holds for whole pictures.

        Args:
            projected: of pictures that have captions, the first ones, and maybe more.
            cls: of the tower, [b, vision_width], or None.
            words: the language model's word embeddings, [vocabulary, text_width].
            captions: of the pictures that have one.
        """
        count = len(captions.holds)
        logits, which, edges, steps = self.regions(projected[:count].float(), words, captions)
        total = F.cross_entropy(edges.flatten(0, 1), steps.flatten(), ignore_index=IGNORED)
        cost = F.cross_entropy(logits, which, reduction="none")
        told = captions.told[which]
        every = [cost[told == kind].mean() for kind in sorted(set(told.tolist()))]
        if cls is not None:
            given = self.whole(cls[:count].float(), words, captions)
            costs = F.binary_cross_entropy_with_logits(
                given, captions.holds.float(), reduction="none"
            )
            # Few phrases hold for a picture: those that do weigh as much as those that do not.
            every += [costs[captions.holds].mean(), costs[~captions.holds].mean()]
        return total + torch.stack(every).sum()

    def right(
        self, projected: Tensor, cls: Tensor | None, words: Tensor, captions: Captions
    ) -> dict[str, float]:
        """How often regions and whole pictures are told rightly; arguments as of `loss`."""
        logits, which, edges, steps = self.regions(projected.float(), words, captions)
        hit = (logits.argmax(1) == which).float()
        found = {
            told: hit[captions.told[which] == kind].mean().item() for kind, told in enumerate(TOLD)
        }
        off = (edges.argmax(-1) - steps).abs()[steps != IGNORED]
        found["edges"] = (off <= 1).float().mean().item()
        if cls is not None:
            yes = self.whole(cls.float(), words, captions) > 0
            halves = yes[captions.holds].float().mean() + (~yes[~captions.holds]).float().mean()
            found["whole"] = halves.item() / 2
        return found
