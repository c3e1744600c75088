"""The contract of methods that prune between two layers of the language model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gprune.budget import kept_count
from gprune.pruners.base import Pruner
from gprune.pruners.ranking import highest
from gprune.pruners.reduction import Reduction
from gprune.tokens import VisualTokens


@dataclass(frozen=True, eq=False)
class DecoderTokens:
    """The visual tokens of one prompt between two layers.

    A field that the method does not name in `DecoderPruner.reads` is None. "The text" is what
    stands after the last visual token of the prompt, without generated tokens; m can be 0. Tokens
    of all images and videos of a prompt stand together, in the order of the prompt, and rows that
    an earlier stage appended are tokens like the others.

    Attributes:
        hidden: their hidden states as they enter the next layer, [n, d].
        attention: of each rater to each token, averaged over heads, float32 [r, n]; softmax over
            the whole sequence, not renormalised.
        total: number of visual tokens that the prompt has in the first layer.
        keys: keys of the previous layer after RoPE, key heads side by side, float32 [n, c].
        text_keys: keys of the text there, float32 [m, c].
        text_hidden: hidden states of the text as they enter the next layer, [m, d].
        normed: ``hidden`` after the language model's final norm, [n, d].
        normed_text: ``text_hidden`` after it, [m, d].
        coordinates: row and column of each token in the raster of its group, which is the merged
            one where patches are merged, int64 [n, 2]; -1 in a group without a raster.
        rasters: rows and columns of that raster, int64 [n, 2]; -1 in a group without one.
        groups: number of each token's group (an image, a tile, a frame) in the prompt, int64 [n].
        columns: position of each token in the prompt without padding, int64 [n]: for a prompt of
            one image, ``columns[0]`` is where the image starts.
    """

    hidden: Tensor
    attention: Tensor | None
    total: int
    keys: Tensor | None = None
    text_keys: Tensor | None = None
    text_hidden: Tensor | None = None
    normed: Tensor | None = None
    normed_text: Tensor | None = None
    coordinates: Tensor | None = None
    rasters: Tensor | None = None
    groups: Tensor | None = None
    columns: Tensor | None = None

    def __len__(self) -> int:
        return self.hidden.shape[0]

    def scores(self) -> Tensor:
        """Returns the attention that each token receives, the mean over raters, float32 [n].

        Raises:
            ValueError: ``attention`` is missing.
        """
        if self.attention is None:
            raise ValueError("attention is missing; pass DecoderTokens(hidden, attention, total)")
        return self.attention.mean(0)


@dataclass(frozen=True)
class DecoderPruner(Pruner):
    """A method that drops visual tokens inside the language model, at one layer or at several.

    All visual tokens of a prompt are ranked together, whatever image they belong to, by attention
    that is recomputed for a few queries, so SDPA and FlashAttention stay in use. Tokens that a
    family always keeps (the ends of a canvas's rows) are kept here too and do not count. The layers
    before the first stage process all tokens, so the same ``keep`` costs more than it does before
    the language model; `gprune.costs.saving` takes the number of tokens in every layer.

    Positions stay, or each layer from a stage on numbers its tokens without gaps; see
    ``docs/methods/decoder.md``, and `default_positions` of the method.

    The last digits of hidden states depend on the batch and on the device, and so does the choice
    between tokens whose scores are nearly equal.

    Attributes:
        keep: share of the prompt's visual tokens that reaches the last layer, in (0, 1], or a count
            >= 1 of each prompt's.

    Raises:
        TypeError: ``keep`` is not a number.
        ValueError: ``keep`` is out of range.
    """

    # The optional fields of `DecoderTokens` that the method reads; only these are computed.
    reads: ClassVar[tuple[str, ...]] = ("attention",)

    # Whether ``attention`` is that of the next layer instead of the previous one.
    ranks_ahead: ClassVar[bool] = False

    name: ClassVar[str]
    scope: ClassVar[str] = "decoder"

    def __post_init__(self) -> None:
        if callable(self.keep) or isinstance(self.keep, dict):
            raise TypeError(
                f"keep={self.keep!r} must be a ratio or a count: {self.name} ranks all visual "
                "tokens of a prompt together; take a method before the language model, such as "
                "gprune, for a budget for each group"
            )
        super().__post_init__()

    def final_count(self, total: int) -> int:
        """Returns how many of a prompt's ``total`` visual tokens reach the last layer."""
        assert isinstance(self.keep, float | int)  # checked in __post_init__
        return kept_count(total, self.keep)

    @abstractmethod
    def stages(self, depth: int) -> tuple[int, ...]:
        """Returns the layers before which tokens are dropped, ascending from 1.

        Args:
            depth: number of layers of the language model.

        Raises:
            ValueError: the model does not have these layers.
        """

    def planned(self, stage: int, stages: int, total: int) -> int:
        """Returns how many of ``total`` tokens stay at a stage, if that is known beforehand.

        Args:
            stage: number of the stage, from 0.
            stages: number of stages.
            total: number of visual tokens in the first layer.

        Raises:
            ValueError: it depends on the prompt.
        """
        return self.final_count(total)

    def count(self, stage: int, stages: int, tokens: DecoderTokens) -> int:
        """Returns how many tokens stay at a stage; `final_count` at the last."""
        return self.planned(stage, stages, tokens.total)

    def schedule(self, total: int, depth: int) -> list[int]:
        """Returns how many of a prompt's ``total`` visual tokens each of the layers sees, [depth].

        `gprune.costs.saving` takes it as ``kept_tokens``.

        Raises:
            ValueError: it depends on the prompt, or the model does not have these layers.
        """
        stages = self.stages(depth)
        counts = [total, *(self.planned(stage, len(stages), total) for stage in range(len(stages)))]
        return [counts[sum(layer >= first for first in stages)] for layer in range(depth)]

    def raters(self, visual: Tensor, text: Tensor) -> Tensor:
        """Returns the text tokens whose attention ranks the visual ones, int64 [r]; here the last.

        Args:
            visual: embeddings of the visual tokens, [n, d].
            text: embeddings of the text after them, [m, d], m >= 1; the last is the prompt's last.
        """
        return torch.tensor([len(text) - 1], device=text.device)

    def at_stage(self, stage: int, stages: int, tokens: DecoderTokens) -> Reduction | None:
        """Drops tokens at a stage, or returns None if all stay as they are."""
        k = self.count(stage, stages, tokens)
        return None if k >= len(tokens) else self.drop(tokens, k)

    def drop(self, tokens: DecoderTokens, k: int) -> Reduction:
        """Drops all but ``k`` tokens; a subclass may merge dropped ones, or append rows.

        Args:
            tokens: with the fields of `reads`.
            k: 1 to n - 1, from `count`.

        Returns:
            a reduction of length k, appended rows included; shorter only where the method's
            documentation says so.
        """
        return Reduction(highest(tokens.scores(), k))

    def choose(self, tokens: VisualTokens, k: int) -> Tensor | Reduction:
        raise ValueError(
            f"{self.name} ranks visual tokens by attention inside the language model, so features "
            f"alone are not enough; use it as `with {type(self).__name__}(keep)(model):`"
        )


def check_layers(layers: Sequence[int], depth: int, of_output: bool = False) -> tuple[int, ...]:
    """Returns ``layers`` as a tuple after checking that a model has them.

    Args:
        layers: layers before which tokens are dropped.
        depth: number of layers of the language model.
        of_output: ``layers`` are those from whose output tokens are dropped instead.

    Raises:
        ValueError: they are not ascending integers from 1 to ``depth - 1``, or from 0 to
            ``depth - 2`` for outputs.
    """
    first = 0 if of_output else 1
    last = first + depth - 2
    possible = tuple(layer for layer in range(first, last + 1) if layer in layers)
    if not possible or tuple(layers) != possible:
        place = "from the output of a layer" if of_output else "before a layer"
        raise ValueError(
            f"layers={tuple(layers)} must be ascending whole numbers from {first} to {last}: "
            f"tokens are dropped {place}, and the language model has {depth}, counted from 0"
        )
    return possible
