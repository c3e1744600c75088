"""Teaches a vision tower from captions alone: the other way to pretrain it.

No patch is told what it shows. A caption is the set of phrases that hold for a picture: its objects
by name, what the halves of its background look like, and the signs of its texts. Every pair of a
picture and a phrase of the batch is a question of yes or no, as in SigLIP (Zhai et al., 2023, arXiv
2303.15343), and a phrase is as near to a picture as the patches nearest to it, as in FILIP (Yao et
al., 2021, arXiv 2111.07783), so that the tower finds out by itself where things are. A CLS token,
where there is one, has to tell the phrases too, as CLIP's does: what it attends to then means
something.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from gprune.tinyvlm.scenes import Scene

# What a phrase tells of. Each kind has its own share of the loss: with one share for all, the kind
# that tells pictures apart most easily would be all that is learned.
TOLD = ("object", "background", "sign")


@dataclass
class Captions:
    """The different phrases about some pictures.

    Attributes:
        words: token ids of the two words of a phrase, the same twice where it has one, [p, 2].
        told: indices into ``TOLD``, [p].
        holds: whether a phrase holds for a picture, bool [b, p].
    """

    words: Tensor
    told: Tensor
    holds: Tensor


def phrases(scene: Scene) -> set[tuple[str, str, str]]:
    """What the caption of a scene tells: of ``TOLD``, and two words each."""
    objects = {("object", item.color, item.shape) for item in scene.objects}
    halves = zip(scene.tints, scene.patterns, strict=True)
    background = {("background", tint, pattern) for tint, pattern in halves}
    signs = {
        ("sign", word, word)
        for text in scene.texts
        for place, sign in enumerate(text.signs)
        for word in [sign if place == 0 else f"##{sign}"]
    }
    return objects | background | signs


def captions_of(scenes: Sequence[Scene], tokenizer: PreTrainedTokenizerFast) -> Captions:
    """The captions of some scenes, their phrases in alphabetical order."""
    each = [phrases(scene) for scene in scenes]
    every = sorted(set().union(*each))
    ids = [tokenizer.convert_tokens_to_ids([one, other]) for _, one, other in every]
    return Captions(
        torch.tensor(ids),
        torch.tensor([TOLD.index(kind) for kind, _, _ in every]),
        torch.tensor([[phrase in told for phrase in every] for told in each]),
    )


class CaptionHeads(nn.Module):
    """Which phrases hold for a picture, by its patches and by its CLS token.

    Args:
        vision_width: of the tower's tokens.
        text_width: of the language model's tokens.
    """

    def __init__(self, vision_width: int, text_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(text_width)
        self.summary = nn.Linear(vision_width, text_width)
        # The factor and the summand that SigLIP starts from, for patches and for the CLS token.
        self.factor = nn.Parameter(torch.full((2,), math.log(10.0)))
        self.summand = nn.Parameter(torch.full((2,), -10.0))

    def forward(self, projected: Tensor, cls: Tensor | None, words: Tensor) -> list[Tensor]:
        """Logits of the phrases by patches, and by the CLS token if there is one, [b, p] each.

        Args:
            projected: patch features in the language model's space, [b, n, text_width].
            cls: of the tower, [b, vision_width].
            words: embeddings of each phrase's two words, [p, 2, text_width].
        """
        phrase = F.normalize(words.sum(1), dim=-1)
        factor = self.factor.exp()
        near = F.normalize(self.norm(projected), dim=-1) @ phrase.T  # [b, n, p]
        # The patches' yeses are summed: that any of them shows it is enough.
        logits = [(factor[0] * near + self.summand[0]).logsumexp(1)]
        if cls is not None:
            near = F.normalize(self.summary(cls), dim=-1) @ phrase.T
            logits.append(factor[1] * near + self.summand[1])
        return logits

    def loss(
        self, projected: Tensor, cls: Tensor | None, words: Tensor, captions: Captions
    ) -> Tensor:
        """The mean binary cross-entropy of phrases that hold plus that of those that do not.

        Args:
            projected: of pictures that have captions, the first ones, and maybe more.
            cls: of the tower, [b, vision_width], or None.
            words: the language model's word embeddings, [vocabulary, text_width].
            captions: of the pictures that have one.
        """
        count = len(captions.holds)
        few = None if cls is None else cls[:count].float()
        embedded = F.embedding(captions.words, words)
        total = projected.new_zeros(())
        for logits in self(projected[:count].float(), few, embedded):
            cost = F.binary_cross_entropy_with_logits(
                logits, captions.holds.float(), reduction="none"
            )
            for kind in captions.told.unique().tolist():
                own = captions.told == kind
                holds = captions.holds[:, own]
                for those in (holds, ~holds):
                    # A mean over none is left out: small batches may lack either.
                    total = total + (cost[:, own] * those).sum() / those.sum().clamp(min=1)
        return total

    def right(
        self, projected: Tensor, cls: Tensor | None, words: Tensor, captions: Captions
    ) -> dict[str, float]:
        """How often a phrase is told rightly, by kind, the mean of true and untrue ones."""
        found: dict[str, float] = {}
        every = self(projected, cls, F.embedding(captions.words, words))
        for name, logits in zip(("patches", "cls"), every, strict=False):
            for kind, told in enumerate(TOLD):
                own = captions.told == kind
                holds, yes = captions.holds[:, own], logits[:, own] > 0
                shares = yes[holds].float().mean() + (~yes[~holds]).float().mean()
                found[f"{told}_{name}"] = shares.item() / 2
        return found
