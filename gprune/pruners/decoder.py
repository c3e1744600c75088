"""What the methods have in common that prune between two layers of the language model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gprune.budget import kept_count
from gprune.pruners.base import Pruner, highest
from gprune.tokens import VisualTokens


@dataclass(frozen=True, eq=False)
class DecoderTokens:
    """The visual tokens of one prompt on their way from one layer into the next.

    Attributes:
        hidden: their hidden states, [n, d].
        attention: what each rater pays to each of them, the mean over heads, float32 [r, n].
        total: how many the prompt had in the first layer.
    """

    hidden: Tensor
    attention: Tensor
    total: int

    def __len__(self) -> int:
        return self.hidden.shape[0]


@dataclass(frozen=True)
class DecoderPruner(Pruner):
    """A method that drops visual tokens inside the language model, at one layer or at several.

    All visual tokens of a prompt are ranked together, whatever image they belong to, by attention
    that is recomputed for a few queries: SDPA and FlashAttention stay on. What a family always
    keeps (the ends of a canvas's rows) is kept here too and does not count. The layers before the
    first stage see everything, so the same ``keep`` costs more than it does before the language
    model; `gprune.costs.saving` takes the tokens of every layer.

    Hidden states depend in their last digits on the batch and on the device. So does the choice
    between tokens whose scores are as good as equal.

    Attributes:
        keep: share of the prompt's visual tokens that reaches the last layer, in (0, 1], or a count
            >= 1 of each prompt's.

    Raises:
        TypeError: ``keep`` is no number.
        ValueError: ``keep`` is out of range.
    """

    # Whether tokens are ranked by the layer that they are about to enter, not by the one before.
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
        """How many of a prompt's ``total`` visual tokens reach the last layer."""
        assert isinstance(self.keep, float | int)  # checked at the door
        return kept_count(total, self.keep)

    @abstractmethod
    def stages(self, depth: int) -> tuple[int, ...]:
        """The layers, ascending from 1, before which tokens are dropped.

        Args:
            depth: number of layers of the language model.

        Raises:
            ValueError: the model has no such layer.
        """

    def planned(self, stage: int, stages: int, total: int) -> int:
        """How many of ``total`` tokens stay at a stage (from 0) of several, known beforehand.

        Raises:
            ValueError: it depends on the prompt.
        """
        return self.final_count(total)

    def count(self, stage: int, stages: int, tokens: DecoderTokens) -> int:
        """How many tokens stay at a stage; at the last, `final_count`."""
        return self.planned(stage, stages, tokens.total)

    def schedule(self, total: int, depth: int) -> list[int]:
        """How many of a prompt's ``total`` visual tokens each of ``depth`` layers sees.

        What `gprune.costs.saving` takes as ``kept_tokens``.

        Raises:
            ValueError: it depends on the prompt, or the model has no such layers.
        """
        stages = self.stages(depth)
        counts = [total, *(self.planned(stage, len(stages), total) for stage in range(len(stages)))]
        return [counts[sum(layer >= first for first in stages)] for layer in range(depth)]

    def raters(self, visual: Tensor, text: Tensor) -> Tensor:
        """Which text tokens' attention ranks the visual ones, int64 [r]; by default the last alone.

        Args:
            visual: embeddings of the visual tokens, [n, d].
            text: embeddings of the text after them, [m, d], m >= 1; the last is the prompt's last.
        """
        return torch.tensor([len(text) - 1], device=text.device)

    def drop(self, tokens: DecoderTokens, k: int) -> tuple[Tensor, Tensor | None]:
        """The ``k`` tokens that stay and what goes into them, as `Pruner.partition` has it."""
        return highest(tokens.attention.mean(0), k), None

    def choose(self, tokens: VisualTokens, k: int) -> Tensor:
        raise ValueError(
            f"{self.name} ranks visual tokens by attention inside the language model, so features "
            f"alone tell it nothing; use it as `with {type(self).__name__}(keep)(model):`"
        )


def check_layers(layers: Sequence[int], depth: int) -> tuple[int, ...]:
    """``layers`` as a tuple, once they fit a model.

    Raises:
        ValueError: they are not ascending whole numbers, or not from 1 to ``depth - 1``.
    """
    possible = tuple(layer for layer in range(1, depth) if layer in layers)
    if not possible or tuple(layers) != possible:
        raise ValueError(
            f"layers={tuple(layers)} must be ascending whole numbers from 1 to {depth - 1}: tokens "
            f"are dropped before a layer, and the language model has {depth}, counted from 0"
        )
    return possible
