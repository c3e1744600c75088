"""Checks that a model and a call can be pruned between layers."""

from __future__ import annotations

from typing import Any

from transformers import Cache, PreTrainedModel

from gprune.errors import UnsupportedModelError
from gprune.hf.calls import refuse_logits_positions
from gprune.hf.decoder.attention import TESTED_ATTENTION
from gprune.layouts import Family, families_with
from gprune.pruners.decoder import DecoderPruner


def check_family(model: PreTrainedModel, family: Family, pruner: DecoderPruner) -> None:
    """Checks that pruning inside the language model is proven for a model's family.

    Raises:
        UnsupportedModelError: it is not.
    """
    if not family.prunes_in_decoder:
        raise UnsupportedModelError(
            f"{pruner.name} prunes inside the language model, which is not proven with "
            f"{type(model).__name__} yet; it is with "
            f"{', '.join(families_with('prunes_in_decoder'))}. Use a method before the language "
            "model, such as graph_cover"
        )


def check_layers(model: PreTrainedModel, config: Any, pruner: DecoderPruner) -> None:
    """Checks that the language model's layers are of a tested kind.

    Args:
        model: the model.
        config: of the language model.
        pruner: the method.

    Raises:
        UnsupportedModelError: untested attention, sliding windows, or layers on several devices.
    """
    layers = model.get_decoder().layers
    devices = {str(weight.device) for layer in layers for weight in layer.parameters()}
    if len(devices) > 1:
        raise UnsupportedModelError(
            f"the language model's layers are on {', '.join(sorted(devices))}, but {pruner.name} "
            "ranks the tokens of one layer in another and needs all of them on one device; load "
            "the model with device_map=0, or use a method before the language model"
        )
    kinds = {type(getattr(layer, "self_attn", layer)).__name__ for layer in layers}
    untested = sorted(kinds - set(TESTED_ATTENTION))
    if untested:
        raise UnsupportedModelError(
            f"{pruner.name} recomputes attention, which is not proven for {', '.join(untested)} "
            f"yet; it is for {', '.join(TESTED_ATTENTION)}. Use a method before the language "
            "model, such as graph_cover"
        )
    types = getattr(config, "layer_types", None)
    sliding = getattr(config, "sliding_window", None) if types is None else None
    if sliding is not None or any(kind != "full_attention" for kind in types or ()):
        raise UnsupportedModelError(
            f"{pruner.name} needs layers with full attention, but this language model has sliding "
            "windows, whose extent dropped tokens would change; use a method before the language "
            "model, such as graph_cover"
        )


def check_call(
    model: PreTrainedModel,
    pruner: DecoderPruner,
    call: dict[str, Any],
    cache: Cache | None,
    past: int,
) -> None:
    """Checks that a call with images works with layers of different lengths.

    Args:
        model: the model.
        pruner: the method.
        call: the arguments.
        cache: of the call.
        past: its length.

    Raises:
        ValueError: the call trains, continues a cache, has a cache of a fixed size, or names
            positions of logits.
    """
    if model.training or call.get("labels") is not None:
        raise ValueError(
            f"{pruner.name} is for inference: call model.eval() and pass no labels, or train with "
            "a method before the language model, such as graph_cover"
        )
    if past:
        raise ValueError(
            f"past_key_values holds {past} positions already: {pruner.name} ranks images by the "
            "text of one prompt; pass the whole conversation with an empty cache"
        )
    if cache is not None and cache.is_compileable:
        raise ValueError(
            f"past_key_values is a {type(cache).__name__} of a fixed size, but {pruner.name} fills "
            "the layers to different lengths; leave cache_implementation unset"
        )
    refuse_logits_positions(call)
