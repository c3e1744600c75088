"""DART: tokens that duplicate a few pivots least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gprune.graph import UnitRows
from gprune.pruners.decoder import DecoderTokens
from gprune.pruners.one_layer import OneLayerPruner, check_whole, key_norms, required
from gprune.pruners.ranking import highest
from gprune.pruners.reduction import Reduction
from gprune.pruners.registry import register

# How the order of the pivots' turns is found.
TURNS = ("norm", "set")


@register
@dataclass(frozen=True)
class DART(OneLayerPruner):
    """A few pivots with large keys, and the tokens that duplicate them least, from layer K on.

    Wen, Gao, Wang, Zhang, Zhang, Li, He, Zhang: "Stop Looking for Important Tokens in Multimodal
    Language Models: Duplication Matters More", EMNLP 2025, arXiv 2502.11494.

    Layers 0 to K - 1 process every token. The pivots are the 4 visual tokens, and the 4 tokens of
    the text after them, with the largest L1 norm of their keys in layer K - 1 (after RoPE, heads
    side by side). Each pivot in turn takes an equal number of visual tokens: those least similar to
    it, in the cosine of the hidden states that enter layer K, after the language model's final
    norm; among those that are no pivot and not taken. Visual pivots and taken tokens stay, with
    their positions; text pivots are text.

    Source of the facts: the authors' own repository could not be had. The steps and constants are
    those of the copy in ModelTC/LightCompress (commit 9701d03, Apache-2.0), as described by its
    observed behaviour; K = 2 is the paper's layer. Its published reduction of 0.7778 is
    ``keep=0.2222``.

    Two details of that code are mended by default:

    * Number: of a budget of k, each of P pivots takes ⌊k / P⌋ tokens, and the visual pivots stay on
      top of that, so it keeps 68 for 64, and 4 for 7. Here visual pivots count against the budget:
      each pivot takes ⌊(k - visual pivots) / P⌋, and the first ones in turn one more, until k is
      met exactly. ``overspend=True`` keeps the released number.
    * Turns: in the order of a Python set of positions in the prompt, which depends on where the
      image starts. Here the largest norm comes first. ``turns="set"`` reproduces the set's order.

    With ``DART(keep, overspend=True, turns="set")`` all golden vectors agree.

    ``layer=0`` chooses within a group before the language model, for engines without access to its
    layers: features stand for keys and hidden states, and since there is no text, all 8 pivots are
    visual. Positions are then counted from the group's first token.

    Attributes:
        keep: share of the visual tokens from layer K on, 1 - reduction, or a count.
        layer: K; 2 is the paper's setting, 0 is before the language model.
        pivots: number of visual pivots, >= 1; fewer where the budget is smaller.
        text_pivots: number of pivots in the text after the last image, >= 0; fewer where the text
            is shorter. With ``layer=0`` as many more visual pivots.
        turns: ``norm`` or ``set``.
        overspend: whether visual pivots are kept on top of the budget, as in the released code.

    Raises:
        TypeError: a number of tokens is no whole number; or ``keep`` is not a number, and
            ``layer`` is not 0.
        ValueError: a parameter is out of range; or, when applied to a model, ``layer`` is not below
            its number of layers.
    """

    pivots: int = 4
    text_pivots: int = 4
    turns: str = "norm"
    overspend: bool = False

    name: ClassVar[str] = "dart"
    reads: ClassVar[tuple[str, ...]] = ("keys", "text_keys", "normed", "normed_text", "columns")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("pivots", self.pivots, 1)
        check_whole("text_pivots", self.text_pivots, 0)
        if self.turns not in TURNS:
            raise ValueError(f"turns={self.turns!r} must be one of {', '.join(TURNS)}")

    def needs_features_only(self) -> bool:
        return super().needs_features_only() and not self.overspend

    def planned(self, stage: int, stages: int, total: int) -> int:
        """Returns how many tokens stay, if the text has at least ``text_pivots`` tokens."""
        return self._number(total, self.text_pivots, self.final_count(total))

    def count(self, stage: int, stages: int, tokens: DecoderTokens) -> int:
        k = self.final_count(tokens.total)
        return self._number(len(tokens), len(required(tokens, "text_keys")), k)

    def drop(self, tokens: DecoderTokens, k: int) -> Reduction:
        # The released shares follow from the budget, not from the number that `count` returned.
        return self.reduce_states(tokens, self.final_count(tokens.total) if self.overspend else k)

    def reduce_states(self, tokens: DecoderTokens, k: int) -> Reduction:
        pivots = self.find_pivots(tokens, k)
        n, normed = len(tokens), required(tokens, "normed")
        rows = pivots.visual
        if len(pivots.text):
            normed = torch.cat([normed, required(tokens, "normed_text")[pivots.text]])
            rows = torch.cat([rows, torch.arange(n, len(normed), device=rows.device)])
        every = torch.arange(n, device=rows.device)
        similarity = UnitRows(normed).similarity(rows[pivots.order], every)  # [pivots, n]
        taken = torch.zeros(n, dtype=torch.bool, device=rows.device)
        taken[pivots.visual] = True
        shares = self._shares(k, len(pivots.visual), len(pivots.text))
        for scores, share in zip(-similarity, shares, strict=True):
            if share:
                taken[highest(scores.masked_fill(taken, -torch.inf), share)] = True
        number = self._number(n, len(required(tokens, "text_keys")), k)
        return Reduction(highest(taken.float(), number))

    def find_pivots(self, tokens: DecoderTokens, k: int) -> Pivots:
        """Returns the pivots for a budget of ``k`` and the order of their turns.

        Synchronises an accelerator with the host for ``turns="set"``.
        """
        keys, text_keys = required(tokens, "keys"), required(tokens, "text_keys")
        visual_count, text_count = self._pivot_counts(len(keys), len(text_keys), k)
        visual, visual_norms = largest(key_norms(keys), visual_count)
        text, text_norms = visual[:0], visual_norms[:0]
        if text_count:
            text, text_norms = largest(key_norms(text_keys), text_count)
        if self.turns == "norm":
            order = largest(torch.cat([visual_norms, text_norms]), visual_count + text_count)[0]
            return Pivots(visual, text, order)
        columns = required(tokens, "columns")
        positions = torch.cat([columns[visual], columns[-1] + 1 + text]).tolist()
        turns = [positions.index(position) for position in set(positions)]
        return Pivots(visual, text, torch.tensor(turns, device=visual.device))

    def _pivot_counts(self, n: int, m: int, k: int) -> tuple[int, int]:
        """Returns the numbers of visual and text pivots for n tokens, m of text, and budget k."""
        visual = self.pivots if self.layer else self.pivots + self.text_pivots
        return min(visual, n if self.overspend else k), min(self.text_pivots, m)

    def _shares(self, k: int, visual: int, text: int) -> list[int]:
        """Returns how many tokens each pivot takes, in turn."""
        count = visual + text
        share, left = divmod(k if self.overspend else k - visual, count)
        return [share + (not self.overspend and turn < left) for turn in range(count)]

    def _number(self, n: int, m: int, k: int) -> int:
        """Returns how many of n tokens are kept, with m of text, for a budget of k."""
        visual, text = self._pivot_counts(n, m, k)
        return min(n, visual + sum(self._shares(k, visual, text)))


@dataclass(frozen=True, eq=False)
class Pivots:
    """The pivots of one prompt.

    Attributes:
        visual: indices of the visual ones, the largest norm first, int64 [p].
        text: indices of the text's, the largest norm first, int64 [t].
        order: whose turn it is, as places in the visual pivots followed by the text's, int64
            [p + t].
    """

    visual: Tensor
    text: Tensor
    order: Tensor


def largest(norms: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Returns the indices of the ``count`` largest norms, and these; ties: lowest index first."""
    values, order = torch.sort(norms, descending=True, stable=True)
    return order[:count], values[:count]
