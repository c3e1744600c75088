"""The model families that the vLLM plugin serves; tests/serving covers each."""

from __future__ import annotations

from typing import Any

from gprune.errors import UnsupportedModelError
from gprune.layouts.base import Family
from gprune.layouts.registry import FAMILIES
from gprune.layouts.towers import has_pixtral

SERVED = tuple(family for family in FAMILIES if family.served)


def stock_architecture(family: Family) -> str:
    """Returns the architecture that checkpoints of a family name, which vLLM serves unpruned."""
    return family.architectures[0]


def pruned_architecture(family: Family) -> str:
    """Returns the architecture to request from vLLM, for pruning."""
    return f"GPrune{stock_architecture(family)}"


def served_family(config: Any) -> Family:
    """Returns the family of a model config.

    Raises:
        UnsupportedModelError: the plugin does not serve it.
    """
    family = next((family for family in SERVED if family.name == config.model_type), None)
    if family is not None and not has_pixtral(config):
        return family
    tower = getattr(getattr(config, "vision_config", None), "model_type", None)
    names = ", ".join(family.name for family in SERVED)
    raise UnsupportedModelError(
        f"the model is a {config.model_type} with a {tower} tower, which gprune's vLLM plugin does "
        f"not serve; it serves {names} (not with a Pixtral tower). `vllm serve` without gprune "
        "serves others unpruned"
    )
