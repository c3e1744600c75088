"""The contract of a pruning method."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from gprune.budget import ADAPTIVE, Budget, Keep, PartBudgets, budgets, check_rule, kept_count
from gprune.pruners.composition import reduce_parts, reduce_unprotected
from gprune.pruners.ranking import highest
from gprune.pruners.reduction import Reduction
from gprune.tokens import SIGNALS, VisualTokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from gprune.hf import PrunedModel


@dataclass(frozen=True)
class Pruner(ABC):
    """A training-free method that chooses which visual tokens of a group to keep.

    A method is a frozen dataclass whose fields are the paper's symbols. It implements `choose`; a
    method that ranks tokens derives from `ScorePruner` and implements `ScorePruner.score` instead.

    Attributes:
        keep: share of the tokens to keep, in (0, 1] as a float, or a count >= 1 as an int; applied
            to each group. ``keep=1.0`` keeps everything, ``keep=1`` one token per group. Or a
            budget for each kind of group, ``{"thumbnail": 1.0, "canvas": 0.25}``, or a function
            that takes the groups of an image (`VisualTokens`) and returns a budget for each;
            `ThumbnailGuided` is such a function. Or ``"adaptive"`` for methods that find the number
            of tokens themselves (`adaptive`).

    Raises:
        TypeError, ValueError: ``keep`` is out of range (see `gprune.kept_count`), or ``adaptive``
            for a method that needs a number.
    """

    keep: Keep

    # The name in `gprune.methods()` and on the command line; unique, lower case.
    name: ClassVar[str]

    # What the method chooses from: the tokens of one ``group``, all frames of a ``video``, the
    # tokens inside the language model's ``decoder``, or the ``pixels`` before the encoder.
    scope: ClassVar[str] = "group"

    # Whether attention to a kept token is multiplied by its member count inside the language model
    # (`gprune.hf.weighted`); needs `Reduction.members`.
    proportional: ClassVar[bool] = False

    # The signals that the method reads besides features, keys of `gprune.tokens.SIGNALS`. Inside a
    # model only these are computed.
    signals: ClassVar[tuple[str, ...]] = ()

    # Signals that the method reads where they are given, and that are computed inside a model.
    optional_signals: ClassVar[tuple[str, ...]] = ()

    # Whether tokens are merged before the projector, in the signal ``vision``, where a model's
    # projector works row by row; elsewhere their projected features are merged.
    merges_before_projector: ClassVar[bool] = False

    # Whether the method can find the number of tokens itself: ``keep="adaptive"``.
    adaptive: ClassVar[bool] = False

    # How positions are numbered inside a model unless the caller says, see `__call__`.
    default_positions: ClassVar[str] = "original"

    def __post_init__(self) -> None:
        if self.keep == ADAPTIVE and not self.adaptive:
            raise ValueError(
                f"keep='adaptive' needs a method that finds the number of tokens itself, which "
                f"{self.name} does not; pass a share such as keep=0.36 or a count"
            )
        object.__setattr__(self, "keep", check_rule(self.keep))

    def needs_features_only(self) -> bool:
        """Whether the method chooses from the projected features of one group and nothing else.

        It then also keeps as many tokens as its budget says, which a server counts beforehand.
        """
        reads = self.signals or self.optional_signals
        return self.scope == "group" and not reads and not self.proportional

    def select(self, tokens: VisualTokens) -> Tensor:
        """Returns the indices of the tokens to keep, int64 [k], ascending and unique.

        The same tokens give the same indices on every run, thread count and batch size; ties go to
        the lowest index. Protected tokens are kept on top of the budget, which is
        ``kept_count(number of unprotected tokens, keep)``.

        Args:
            tokens: one group; the result is on the device of its features.

        Raises:
            ValueError: NaN, infinite values or some beyond float32's range, or a signal is missing
                that the method needs. On an accelerator values are reported later, without
                synchronising (see `gprune.device`).
        """
        return self.reduce(tokens).kept

    def reduce(self, tokens: VisualTokens) -> Reduction:
        """Returns the tokens to keep and what becomes of the others.

        Raises:
            ValueError: see `select`.
        """
        return self.reduce_groups([tokens])[0]

    @torch.no_grad()
    def reduce_groups(self, groups: Sequence[VisualTokens]) -> list[Reduction]:
        """Runs `reduce` on all groups of one image or video, whose budgets may depend on others.

        Raises:
            TypeError, ValueError: see `select`; or ``keep`` gives no budget for a group.
        """
        self.check(groups)
        pairs = zip(groups, budgets(self.keep, groups), strict=True)
        return [self.reduce_within(tokens, budget) for tokens, budget in pairs]

    def reduce_images(self, images: Sequence[Sequence[VisualTokens]]) -> list[list[Reduction]]:
        """Runs `reduce_groups` on several images; a method may override it to batch them.

        Raises:
            TypeError, ValueError: see `reduce_groups`.
        """
        return [self.reduce_groups(groups) for groups in images]

    def check(self, groups: Sequence[VisualTokens]) -> None:
        """Checks that every group has the signals that the method reads, and finite values.

        Raises:
            ValueError: a signal is missing, or a value is not finite.
        """
        for tokens in groups:
            for signal in self.signals:
                field, description = SIGNALS[signal]
                if getattr(tokens, field) is None:
                    raise ValueError(
                        f"{field} is missing: {self.name} needs {description}; pass "
                        f"VisualTokens(..., {field}=...) or take a method that needs features alone"
                    )
            tokens.check_values()

    def reduce_within(self, tokens: VisualTokens, budget: Budget | PartBudgets) -> Reduction:
        """Reduces one checked group to a budget; keeps protected tokens on top of it."""
        if isinstance(budget, PartBudgets):
            return reduce_parts(self.reduce_within, tokens, budget)
        if tokens.protected is not None:
            return reduce_unprotected(self.reduce_within, tokens, budget)
        n = len(tokens)
        count = self.adaptive_count(tokens) if budget == ADAPTIVE else kept_count(n, budget)
        return self.reduce_to(tokens, count)

    def adaptive_count(self, tokens: VisualTokens) -> int:
        """Returns how many tokens of a group to keep for ``keep="adaptive"``, 1 to n."""
        raise NotImplementedError(f"{type(self).__name__} declares adaptive without adaptive_count")

    def reduce_to(self, tokens: VisualTokens, k: int) -> Reduction:
        """Reduces one checked group without protected tokens to ``k`` tokens."""
        choice = self.choose(tokens, k)
        return choice if isinstance(choice, Reduction) else Reduction(choice)

    @abstractmethod
    def choose(self, tokens: VisualTokens, k: int) -> Tensor | Reduction:
        """Chooses ``k`` tokens of a group; what a method implements.

        Args:
            tokens: values have been checked; there are no protected tokens.
            k: 1 to the number of tokens.

        Returns:
            the kept indices, int64 [k], ascending; or, for a method that merges, a `Reduction` of
            length k, appended rows included. A method returns fewer only where its documentation
            says so.
        """

    def __call__(
        self,
        model: PreTrainedModel,
        positions: str | None = None,
        untested: str | None = None,
    ) -> AbstractContextManager[PrunedModel]:
        """Prunes a transformers model inside a ``with`` block; leaving it restores the model.

        Args:
            model: with its language-modelling head.
            positions: ``original`` keeps the position ids of kept tokens and of the text after
                them; ``compact`` renumbers them without gaps, as older code inside a model does.
                None takes `default_positions` of the method, and ``original`` for a model with
                M-RoPE, whose rows and columns cannot be renumbered.
            untested: what to do if the installed transformers or torch has not been tested:
                ``prove`` that pruning works with it (seconds, once), ``refuse`` or ``allow``; None
                takes the environment variable GPRUNE_UNTESTED_TRANSFORMERS, and without it
                ``prove``.

        Examples:
            >>> with GPrune(keep=0.36)(model) as pruned:  # doctest: +SKIP
            ...     model.generate(**inputs)

        Raises:
            ValueError: ``positions`` is neither, or cannot be compact for a model with M-RoPE.
            UnsupportedModelError: the model's family is not supported.
            UnsupportedVersionError: the installed transformers or torch has not been tested, and
                does not prove itself.
            RuntimeError: the model is being pruned already.
        """
        # The one import of a higher room, so that selecting tokens needs torch alone.
        from gprune.hf import prune

        return prune(model, self, positions, untested)


@dataclass(frozen=True)
class ScorePruner(Pruner):
    """A method that gives every token a score and keeps the highest."""

    @abstractmethod
    def score(self, tokens: VisualTokens) -> Tensor:
        """Returns a score for every token, float32 [n]; the highest are kept."""

    def choose(self, tokens: VisualTokens, k: int) -> Tensor | Reduction:
        return highest(self.score(tokens), k)


class MergingPruner(Pruner):
    """Deprecated: implement `Pruner.choose` and return a `Reduction`; goes in the next release."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        warnings.warn(
            f"MergingPruner goes in the next release; derive {cls.__name__} from Pruner and return "
            "a Reduction from choose",
            DeprecationWarning,
            stacklevel=2,
        )

    @abstractmethod
    def partition(self, tokens: VisualTokens, k: int) -> tuple[Tensor, Tensor | None]:
        """Returns kept indices, int64 [k], and members, int64 [n], or weights, float [k, n]."""

    def choose(self, tokens: VisualTokens, k: int) -> Reduction:
        kept, merged = self.partition(tokens, k)
        if merged is not None and merged.is_floating_point():
            return Reduction(kept, weights=merged)
        return Reduction(kept, merged)
