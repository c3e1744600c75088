"""What a server is told (method and keep) and what a request may change (keep)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import gprune
from gprune.budget import KINDS, PARTS, Budget, Keep, check_rule, parts_per_million
from gprune.pruners import METHODS, Pruner, make

# The key in vLLM's model config (`--hf-overrides`).
CONFIG_KEY = "gprune"
# The key in a request's `mm_processor_kwargs`.
REQUEST_KEY = "gprune_keep"
# A count beyond the tokens of any image keeps them all, and has to travel as an int64.
MOST = 2**31


def parse_keep(keep: Any) -> Keep:
    """A budget as JSON brings it: a share, a count above 1, or a budget for each kind of group.

    1 is everything: JSON writers make 1 of 1.0, so a count of one cannot be told from it.

    Raises:
        TypeError, ValueError: see `gprune.kept_count`.
    """
    if callable(keep):
        raise TypeError(f"keep={keep!r} must be a number or a mapping of kinds to numbers")
    rule = check_rule(keep)
    if isinstance(rule, Mapping):
        return {kind: whole(budget) for kind, budget in rule.items()}
    assert not callable(rule)
    return whole(rule)


def whole(budget: Budget) -> Budget:
    """``budget``, with 1 read as 1.0."""
    return 1.0 if budget == 1 else budget


def encode(keep: Keep) -> tuple[int, ...]:
    """A budget for each of `KINDS` as an integer, so that every process computes the same count.

    A share is in parts per million, a count negative and at most `MOST`, a kind without budget 0.
    """
    assert not callable(keep)
    given = keep if isinstance(keep, Mapping) else dict.fromkeys(KINDS, keep)

    def number(budget: Budget) -> int:
        return -min(budget, MOST) if isinstance(budget, int) else max(1, parts_per_million(budget))

    return tuple(number(given[kind]) if kind in given else 0 for kind in KINDS)


def decode(numbers: Sequence[int]) -> dict[str, Budget]:
    """What `encode` was given, as a budget for each kind."""
    return {
        kind: -number if number < 0 else number / PARTS
        for kind, number in zip(KINDS, numbers, strict=True)
        if number
    }


def needs_features_only(method: type[Pruner]) -> bool:
    """Whether a method chooses from the projected features of one group and needs nothing else."""
    return method.scope == "group" and not method.signals and not method.proportional


def served_methods() -> list[str]:
    """The name of every method that the plugin serves."""
    return [name for name, method in METHODS.items() if needs_features_only(method)]


@dataclass(frozen=True)
class Settings:
    """What a server prunes with.

    Attributes:
        keep: the budget of requests that name none.
        method: one of `gprune.methods()`, or ``recommended``.
        options: the method's own, such as ``{"threshold": 0.7}``.

    Raises:
        TypeError, ValueError: the method is unknown, an option or ``keep`` is out of range, or the
            method needs more than the projected features.
    """

    keep: Keep
    method: str = "gprune"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.method, str) or not isinstance(self.options, Mapping):
            raise TypeError(
                f"method={self.method!r} must be a name and options={self.options!r} a mapping, "
                'such as {"threshold": 0.7}'
            )
        object.__setattr__(self, "keep", parse_keep(self.keep))
        self.require_features_only()

    @classmethod
    def from_config(cls, config: Any) -> Settings:
        """Reads them from a model config that `--hf-overrides` has written to.

        Raises:
            TypeError, ValueError: there are none, they have unknown keys, or see `Settings`.
        """
        given = getattr(config, CONFIG_KEY, None)
        example = '--hf-overrides \'{"architectures": [...], "gprune": {"keep": 0.36}}\''
        if not isinstance(given, Mapping) or "keep" not in given:
            raise ValueError(
                f"the model config has {CONFIG_KEY}={given!r}, which says no keep; write {example}"
            )
        unknown = sorted(set(given) - {"keep", "method", "options"})
        if unknown:
            raise ValueError(
                f"{CONFIG_KEY} has the unknown keys {', '.join(unknown)}; it takes keep, method "
                "and options"
            )
        return cls(**given)

    def require_features_only(self) -> None:
        """Refuses a method that needs more than projected features, then builds it once."""
        kind = METHODS.get(self.method)
        if kind is not None and not needs_features_only(kind):
            served = ", ".join(served_methods())
            raise ValueError(
                f"method {self.method!r} needs more than the projected features of one image, "
                f"which is what the vLLM plugin has; choose one of {served}"
            )
        try:
            self.pruner(encode(1.0))
        except TypeError as error:  # an option that there is not, or of another type
            raise TypeError(
                f"options={dict(self.options)!r} do not suit {self.method}: {error}"
            ) from None

    def label(self) -> str:
        """Method, options and gprune's version: with a request's keep, what a result depends on."""
        options = ",".join(f"{name}={self.options[name]!r}" for name in sorted(self.options))
        name = make(self.method, keep=1.0, **self.options).name
        return f"{name}({options}) gprune {gprune.__version__}"

    def describe(self) -> str:
        """One line for the log."""
        return f"pruning image tokens: method {self.label()}, keep {self.keep}"

    def pruner(self, numbers: tuple[int, ...]) -> Pruner:
        """The method with the budgets that `encode` made ``numbers`` of."""
        return _pruner(self.method, tuple(sorted(self.options.items())), numbers)


@lru_cache(maxsize=256)
def _pruner(method: str, options: tuple[tuple[str, Any], ...], numbers: tuple[int, ...]) -> Pruner:
    return make(method, keep=decode(numbers), **dict(options))
