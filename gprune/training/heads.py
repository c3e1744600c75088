"""Training heads of the vision objectives; they are discarded after training."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from gprune.tinyvlm.boxes import BINS, EDGES
from gprune.tinyvlm.contents import COLORS, TINTS
from gprune.tinyvlm.vocabulary import build_tokenizer
from gprune.training.captions import PHRASE_KINDS, Captions
from gprune.training.labels import KIND_WORDS, PATCH_MARKS, Labels
from gprune.training.packing import IGNORED


def edge_token_ids(tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """Returns the token ids of the bins of each of the four edges of a box."""
    return [
        tokenizer.convert_tokens_to_ids([f"{edge}{step}" for step in range(BINS)]) for edge in EDGES
    ]


def edge_logits(features: Tensor, words: Tensor, edge_ids: list[list[int]]) -> Tensor:
    """Computes logits of the bins of the four edges, [..., 4, BINS].

    Args:
        features: of patches or regions, normalised, [..., width].
        words: the language model's word embeddings, [vocabulary, width].
        edge_ids: from `edge_token_ids`.
    """
    return torch.stack([features @ words[ids].T for ids in edge_ids], -2)


class PatchHeads(nn.Module):
    """Predicts the dense labels of projected patches.

    Kinds, hues and edges are scored by dot products with word embeddings, marks by a linear layer.

    Args:
        width: hidden size of the language model.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mark = nn.Linear(width, len(PATCH_MARKS))
        self.ink = nn.Parameter(0.02 * torch.randn(1, width))  # the only hue without a word
        tokenizer = build_tokenizer()
        to_ids = tokenizer.convert_tokens_to_ids
        self.kind_ids = to_ids(list(KIND_WORDS))
        self.color_ids = to_ids(list(COLORS))
        self.tint_ids = to_ids(list(TINTS))
        self.edge_ids = edge_token_ids(tokenizer)

    def forward(self, projected: Tensor, words: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Computes logits of kinds, hues and marks, [b, n, number of labels] each.

        Args:
            projected: patch features in the language model's space, [b, n, width].
            words: the language model's word embeddings, [vocabulary, width].
        """
        x = self.norm(projected)
        hues = torch.cat([words[self.color_ids], self.ink, words[self.tint_ids]])
        return x @ words[self.kind_ids].T, x @ hues.T, self.mark(x)

    def edges(self, projected: Tensor, words: Tensor) -> Tensor:
        """Computes logits of the edge bins, [b, n, 4, BINS]; arguments as in `forward`."""
        return edge_logits(self.norm(projected), words, self.edge_ids)

    def loss(self, projected: Tensor, words: Tensor, labels: Labels) -> Tensor:
        """Computes the sum of the mean cross-entropies over labelled patches."""
        kinds, hues, marks = self(projected, words)
        pairs = (
            (kinds, labels.kinds),
            (hues, labels.hues),
            (marks, labels.marks),
            (self.edges(projected, words), labels.edges),
        )
        losses = [
            F.cross_entropy(logits.flatten(0, -2), label.flatten()) for logits, label in pairs
        ]
        return torch.stack(losses).sum()


class CaptionHeads(nn.Module):
    """Matches regions and whole pictures with phrases.

    Args:
        vision_width: hidden size of the tower.
        text_width: hidden size of the language model.
        tokenizer: of the language model.
    """

    def __init__(
        self, vision_width: int, text_width: int, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(text_width)
        self.cls_projection = nn.Linear(vision_width, text_width)
        # Log scale of the cosines of regions (CLIP starts from 14) and of the CLS token, and the
        # bias of the latter; SigLIP starts from scale 10 and bias -10.
        self.log_scale = nn.Parameter(torch.tensor([math.log(14.0), math.log(10.0)]))
        self.bias = nn.Parameter(torch.tensor(-10.0))
        self.edge_ids = edge_token_ids(tokenizer)

    def region_logits(
        self, projected: Tensor, words: Tensor, captions: Captions
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Matches the r regions that are visible with phrases and box edges.

        Args:
            projected: patch features in the language model's space, float32 [b, n, text_width].
            words: the language model's word embeddings, [vocabulary, text_width].
            captions: of the pictures.

        Returns:
            logits of the phrases, [r, p], -inf for phrases of other kinds; the phrase of each
            region, [r]; logits of the edge bins, [r, 4, BINS]; and those bins, [r, 4].
        """
        regions = captions.regions.float()
        mean = (regions @ projected) / regions.sum(2, keepdim=True).clamp(min=1)  # [b, p, width]
        visible = captions.regions.any(2)
        features = self.norm(mean[visible])
        phrase = visible.nonzero()[:, 1]
        cosine = F.normalize(features, dim=-1) @ self.phrase_embeddings(words, captions).T
        other_kind = captions.kinds[phrase][:, None] != captions.kinds
        edges = edge_logits(features, words, self.edge_ids)
        logits = (self.log_scale[0].exp() * cosine).masked_fill(other_kind, -torch.inf)
        return logits, phrase, edges, captions.edges[visible]

    def picture_logits(self, cls: Tensor, words: Tensor, captions: Captions) -> Tensor:
        """Computes logits that phrases hold for pictures, [b, p].

        Args:
            cls: CLS tokens, [b, vision_width].
            words: see `region_logits`.
            captions: see `region_logits`.
        """
        features = F.normalize(self.cls_projection(cls), dim=-1)
        cosine = features @ self.phrase_embeddings(words, captions).T
        return self.log_scale[1].exp() * cosine + self.bias

    def phrase_embeddings(self, words: Tensor, captions: Captions) -> Tensor:
        """Returns the embeddings of the phrases at unit length, [p, text_width]."""
        return F.normalize(F.embedding(captions.words, words).sum(1), dim=-1)

    def loss(
        self, projected: Tensor, cls: Tensor | None, words: Tensor, captions: Captions
    ) -> Tensor:
        """Computes the sum of the mean losses of regions, box edges and whole pictures.

        Args:
            projected: patch features, [b, n, text_width]; pictures after those with captions are
                ignored.
            cls: CLS tokens, [b, vision_width], or None.
            words: the language model's word embeddings, [vocabulary, text_width].
            captions: of the first pictures.
        """
        count = len(captions.holds)
        logits, phrase, edges, bins = self.region_logits(projected[:count].float(), words, captions)
        edge_loss = F.cross_entropy(edges.flatten(0, 1), bins.flatten(), ignore_index=IGNORED)
        region_losses = F.cross_entropy(logits, phrase, reduction="none")
        kinds = captions.kinds[phrase]
        means = [region_losses[kinds == kind].mean() for kind in sorted(set(kinds.tolist()))]
        if cls is not None:
            picture_losses = F.binary_cross_entropy_with_logits(
                self.picture_logits(cls[:count].float(), words, captions),
                captions.holds.float(),
                reduction="none",
            )
            # Few phrases hold for a picture: positives and negatives get equal total weight.
            means += [
                picture_losses[captions.holds].mean(),
                picture_losses[~captions.holds].mean(),
            ]
        return edge_loss + torch.stack(means).sum()

    def accuracy(
        self, projected: Tensor, cls: Tensor | None, words: Tensor, captions: Captions
    ) -> dict[str, float]:
        """Returns the share of correct predictions by kind of phrase; arguments as in `loss`.

        An edge counts as right within one bin. ``whole`` is the balanced accuracy of the CLS token.
        """
        logits, phrase, edges, bins = self.region_logits(projected.float(), words, captions)
        correct = (logits.argmax(1) == phrase).float()
        shares = {
            name: correct[captions.kinds[phrase] == kind].mean().item()
            for kind, name in enumerate(PHRASE_KINDS)
        }
        error = (edges.argmax(-1) - bins).abs()[bins != IGNORED]
        shares["edges"] = (error <= 1).float().mean().item()
        if cls is not None:
            holds, positive = captions.holds, self.picture_logits(cls.float(), words, captions) > 0
            both = positive[holds].float().mean() + (~positive[~holds]).float().mean()
            shares["whole"] = both.item() / 2
        return shares
