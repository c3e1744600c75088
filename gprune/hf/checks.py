"""Checks of models that several kinds of pruning share."""

from __future__ import annotations

from transformers import PreTrainedModel

from gprune.errors import UnsupportedModelError
from gprune.pruners.base import Pruner


def require_uncompiled(model: PreTrainedModel, pruner: Pruner) -> None:
    """Checks that no part of a model is compiled.

    Code that torch.compile has traced skips hooks that its inner modules get later.

    Raises:
        UnsupportedModelError: a module is compiled.
    """
    if any(module._compiled_call_impl is not None for module in model.modules()):
        raise UnsupportedModelError(
            f"{pruner.name} hooks the language model's layers, which code compiled by "
            "torch.compile bypasses; load the model without compiling it, or use a method before "
            "the language model, such as graph_cover"
        )
