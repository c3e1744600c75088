"""The entry: checks a model and a method, and prunes the model inside a ``with`` block."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor
from transformers import PreTrainedModel

from gprune.device import raise_pending
from gprune.errors import UnsupportedModelError
from gprune.hf.cross import CrossPrunedModel
from gprune.hf.decoder import DecoderPrunedModel
from gprune.hf.downsampling import DownsampledModel
from gprune.hf.gate import require_proven
from gprune.hf.model import PrunedModel
from gprune.hf.overrides import override_method
from gprune.hf.rewrite import FLASH
from gprune.hf.weighted import WeightedPrunedModel
from gprune.layouts import Family, family_of
from gprune.pruners.base import Pruner
from gprune.pruners.decoder import DecoderPruner
from gprune.pruners.downsampling import Downsampling

# Attention implementations whose results were compared with a masked full-length model;
# FlashAttention with CPU stand-ins for its kernels.
ATTENTION = ("eager", "sdpa", *FLASH)

# How kept tokens and the text after them are numbered.
POSITIONS = ("original", "compact")

_models_under_pruning: weakref.WeakSet[PreTrainedModel] = weakref.WeakSet()


def pruned_model(model: PreTrainedModel, pruner: Pruner, positions: str) -> PrunedModel:
    """Returns a model under pruning, of the kind that the method and the family declare.

    Raises:
        ValueError: ``positions`` is not possible for the method.
        UnsupportedModelError: the family, or what the method needs of it, is not supported.
    """
    # The scope implies the class: only these methods can prune there.
    if pruner.scope == "decoder":
        return DecoderPrunedModel(model, cast(DecoderPruner, pruner), positions)
    if pruner.scope == "pixels":
        return DownsampledModel(model, cast(Downsampling, pruner), positions)
    if pruner.proportional:
        return WeightedPrunedModel(model, pruner, positions)
    if family_of(model).cross_attention:
        return CrossPrunedModel(model, pruner, positions)
    return PrunedModel(model, pruner, positions)


def resolve_positions(positions: str | None, pruner: Pruner, family: Family) -> str:
    """Returns how positions are numbered; None is the method's default, see `Pruner.__call__`.

    Raises:
        ValueError: ``positions`` is none of `POSITIONS`.
    """
    if positions is None:
        return "original" if family.multimodal_positions else pruner.default_positions
    if positions not in POSITIONS:
        raise ValueError(f"positions={positions!r} must be one of {', '.join(POSITIONS)}")
    return positions


def check_positions(positions: str, pruned: PrunedModel) -> None:
    """Checks that position ids can be numbered as ``positions`` says.

    Raises:
        ValueError: they cannot, because the model has M-RoPE.
    """
    if positions == "compact" and pruned.family.multimodal_positions:
        raise ValueError(
            "positions='compact' would move the rows and columns that M-RoPE numbers in "
            f"{type(pruned.model).__name__}; pass positions='original'"
        )


def check_attention_implementation(model: PreTrainedModel) -> None:
    """Checks that the model's attention implementations have been tested.

    Raises:
        UnsupportedModelError: one has not.
    """
    for name, config in (("model", model.config), ("text", model.config.get_text_config())):
        if config._attn_implementation not in ATTENTION:
            raise UnsupportedModelError(
                f"attn_implementation={config._attn_implementation!r} of the {name} config has not "
                "been tested with pruned positions; load the model with "
                f"attn_implementation='sdpa', or one of {', '.join(ATTENTION)}"
            )


def checked_generate(model: PreTrainedModel, family: Family) -> Callable[..., Any]:
    """Wraps `generate` to refuse what the hooks on the model would see too late.

    `generate` encodes images before it calls the model, so their grids are checked here; and
    chunked prefill would pass the pruner parts of an image.
    """
    generate = model.generate

    @functools.wraps(generate)
    def checked(*args: Any, **kwargs: Any) -> Any:
        family.check(kwargs)
        config = kwargs.get("generation_config") or (args[1] if len(args) > 1 else None)
        config = config or model.generation_config
        size = kwargs.get("prefill_chunk_size", getattr(config, "prefill_chunk_size", None))
        if size is not None:
            raise ValueError(
                f"prefill_chunk_size={size} would choose tokens chunk by chunk instead of image by "
                "image; leave it unset: a pruned prefill is short already"
            )
        return generate(*args, **kwargs)

    return checked


def two_dimensional_mask(
    config: Any, inputs_embeds: Any, attention_mask: Tensor | None, *args: Any, **kwargs: Any
) -> Tensor | None:
    """Returns the 2-D mask unchanged; overrides `create_masks_for_generate`.

    For a static cache `generate` builds 4-D masks of the unpruned length before it calls the
    model. The model builds the same masks from the 2-D mask once the hook has shortened it.
    """
    return attention_mask


@contextmanager
def hooked(model: PreTrainedModel, pruned: PrunedModel) -> Iterator[None]:
    """Applies all changes to the model inside a ``with`` block; removes them on exit."""
    generate = checked_generate(model, pruned.family)
    pre_hook = model.register_forward_pre_hook(pruned.pre_forward, with_kwargs=True)
    # Also called after a failure, so that a model without hooks then refuses the cache.
    post_hook = model.register_forward_hook(pruned.post_forward, with_kwargs=True, always_call=True)
    try:
        with (
            pruned.chooser.vision.recording(),
            override_method(model, "generate", generate),
            override_method(model, "create_masks_for_generate", two_dimensional_mask),
            pruned.patched(),
        ):
            yield
    finally:
        pre_hook.remove()
        post_hook.remove()


@contextmanager
def prune(
    model: PreTrainedModel,
    pruner: Pruner,
    positions: str | None = None,
    untested: str | None = None,
) -> Iterator[PrunedModel]:
    """Prunes ``model`` inside a ``with`` block; ``pruner(model)`` is the short form.

    Args:
        model: with its language-modelling head.
        pruner: the method.
        positions: ``original``, ``compact`` or None, see `Pruner.__call__`.
        untested: ``prove``, ``refuse``, ``allow`` or None, see `gprune.hf.gate.require_proven`.

    Raises:
        ValueError: ``positions`` is neither, or cannot be compact for a model with M-RoPE; or
            ``untested`` is none of its values.
        UnsupportedVersionError: the installed transformers or torch has not been tested, and does
            not prove itself.
        UnsupportedModelError: the family, or the attention implementation, is not supported.
        RuntimeError: the model is being pruned already.
    """
    family = family_of(model)
    positions = resolve_positions(positions, pruner, family)
    require_proven(family.name, untested)
    pruned = pruned_model(model, pruner, positions)
    check_positions(positions, pruned)
    check_attention_implementation(model)
    if model in _models_under_pruning:
        raise RuntimeError(
            "model is being pruned already: pruning cannot be nested; leave the outer `with` first"
        )
    _models_under_pruning.add(model)
    try:
        with hooked(model, pruned):
            yield pruned
        raise_pending()
    finally:
        _models_under_pruning.discard(model)
