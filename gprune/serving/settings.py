"""What a server prunes with (method and keep) and what a request may change (keep)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import gprune
from gprune.budget import ADAPTIVE, Keep, check_rule
from gprune.pruners.base import Pruner
from gprune.pruners.one_layer import OneLayerPruner
from gprune.pruners.registry import METHODS, make
from gprune.serving.plan import decode_keep, encode_keep

# The key in vLLM's model config (`--hf-overrides`).
CONFIG_KEY = "gprune"
# The key in a request's `mm_processor_kwargs`.
REQUEST_KEY = "gprune_keep"


def keep_from_json(keep: Any) -> Keep:
    """Returns the budget in a JSON value: a share, a count above 1, or a budget per kind of group.

    1 keeps everything: JSON writers turn 1.0 into 1, so a count of one cannot be told from it.

    Raises:
        TypeError, ValueError: see `gprune.kept_count`; or the value is neither number nor object.
    """
    if callable(keep):
        raise TypeError(f"keep={keep!r} must be a number or a mapping of kinds to numbers")
    if keep == ADAPTIVE:
        raise ValueError(
            "keep='adaptive' finds the number of tokens from features, and a server writes the "
            "placeholders before images are encoded; pass a number such as 0.36"
        )
    rule = check_rule(keep)
    if isinstance(rule, Mapping):
        return {kind: 1.0 if budget == 1 else budget for kind, budget in rule.items()}
    return 1.0 if rule == 1 else rule


def served_methods() -> list[str]:
    """Returns the names of the methods that the plugin serves: those that need features only.

    Methods of `layer_methods` are served too, with the option ``{"layer": 0}``.
    """
    return [name for name in METHODS if make(name, keep=1.0).needs_features_only()]


def layer_methods() -> list[str]:
    """Returns the methods that need features only if the option ``layer`` is 0."""
    return [name for name, method in METHODS.items() if issubclass(method, OneLayerPruner)]


@dataclass(frozen=True)
class ServerSettings:
    """What a server prunes with.

    Attributes:
        keep: the budget of requests without one of their own.
        method: one of `gprune.methods()`, or ``recommended``.
        options: options of the method, such as ``{"threshold": 0.7}``.

    Raises:
        TypeError, ValueError: the method is unknown or needs more than the projected features, or
            an option or ``keep`` is out of range.
    """

    keep: Keep
    method: str = "recommended"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.method, str) or not isinstance(self.options, Mapping):
            raise TypeError(
                f"method={self.method!r} must be a name and options={self.options!r} a mapping, "
                'such as {"threshold": 0.7}'
            )
        object.__setattr__(self, "keep", keep_from_json(self.keep))
        self.require_served_method()

    @classmethod
    def from_config(cls, config: Any) -> ServerSettings:
        """Reads the settings that `--hf-overrides` wrote into a model config.

        Raises:
            TypeError, ValueError: settings are missing or have unknown keys; or see the class.
        """
        given = getattr(config, CONFIG_KEY, None)
        example = '--hf-overrides \'{"architectures": [...], "gprune": {"keep": 0.36}}\''
        if not isinstance(given, Mapping) or "keep" not in given:
            raise ValueError(
                f"the model config has {CONFIG_KEY}={given!r}, which has no keep; write {example}"
            )
        unknown = sorted(set(given) - {"keep", "method", "options"})
        if unknown:
            raise ValueError(
                f"{CONFIG_KEY} has the unknown keys {', '.join(unknown)}; it takes keep, method "
                "and options"
            )
        return cls(**given)

    def require_served_method(self) -> None:
        """Checks that the method needs projected features only, and that its options are valid.

        Raises:
            TypeError, ValueError: they are not.
        """
        try:
            served = make(self.method, keep=1.0, **self.options).needs_features_only()
            if served:
                self.pruner(encode_keep(1.0))
        except TypeError as error:  # an unknown option, or a value of another type
            raise TypeError(
                f"options={dict(self.options)!r} do not suit {self.method}: {error}"
            ) from None
        if not served:
            raise ValueError(
                f"method {self.method!r} with options={dict(self.options)!r} needs more than the "
                "projected features of one image, which is all that the vLLM plugin has, or does "
                f"not meet its budget exactly; choose one of {', '.join(served_methods())}, or "
                f"{' or '.join(layer_methods())} with options={{'layer': 0}}"
            )

    def label(self) -> str:
        """Returns method, options and gprune's version, for cache keys.

        Together with the budget of a request they determine its result.
        """
        options = ",".join(f"{name}={self.options[name]!r}" for name in sorted(self.options))
        name = make(self.method, keep=1.0, **self.options).name
        return f"{name}({options}) gprune {gprune.__version__}"

    def describe(self) -> str:
        """Returns one line for the log."""
        return f"pruning image tokens: method {self.label()}, keep {self.keep}"

    def pruner(self, encoded: tuple[int, ...]) -> Pruner:
        """Returns the method with a budget that `encode_keep` encoded."""
        return cached_pruner(self.method, tuple(sorted(self.options.items())), encoded)


@lru_cache(maxsize=256)
def cached_pruner(
    method: str, options: tuple[tuple[str, Any], ...], encoded: tuple[int, ...]
) -> Pruner:
    """Makes a method once per budget, because requests with equal budgets are common."""
    return make(method, keep=decode_keep(encoded), **dict(options))
