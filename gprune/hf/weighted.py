"""Lets a kept token count as much, in attention, as the tokens that it stands for.

Where a method merges, a softmax over fewer keys gives what was merged less weight than it had: a
wall that is now one token is one voice among the text's instead of fifty. Proportional attention
(Bolya et al., "Token Merging", ICLR 2023, arXiv 2210.09461, section 3, equation 1, there inside a
ViT) adds the logarithm of that number to the logits of the token's key, in every layer of the
language model, at prefill and for as long as the key is in the cache:

    A = softmax(Q Kᵀ / √d + log s)

A key that occurs s times would get the same, so merging copies changes nothing. The numbers go
into the additive mask that each attention layer is given, which SDPA and the eager kernel take;
FlashAttention takes none.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from gprune.errors import UnsupportedModelError
from gprune.hf.cache import PrunedCache
from gprune.hf.hook import FLASH, Plan, PrunedModel, find_cache, require_uncompiled
from gprune.pruners.base import Pruner

# Families whose logits were compared with a masked full-length model of the same weights.
FAMILIES = (
    *("llava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl"),
    *("vipllava", "llava_next_video", "idefics3", "smolvlm", "mistral3", "glm4v"),
)


class Underway(threading.local):
    """What a thread's call adds to the logits of keys; two may use one model.

    Attributes:
        fresh: of the call's own columns, where it is a shortened prefill, float32 [b, p].
        bias: of all columns, cached ones first, float32 [b, columns]; None leaves attention alone.
        made: the last mask that a layer was given, and what was made of it.
    """

    fresh: Tensor | None = None
    bias: Tensor | None = None
    made: tuple[Tensor | None, Tensor] | None = None


class WeightedPrunedModel(PrunedModel):
    """A model in whose attention kept tokens weigh as much as what was merged into them."""

    def __init__(self, model: PreTrainedModel, pruner: Pruner, positions: str) -> None:
        super().__init__(model, pruner, positions)
        kind = type(model).__name__
        if self.family.name not in FAMILIES:
            raise UnsupportedModelError(
                f"{pruner.name} weighs keys in the language model's attention, which has not been "
                f"proven with {kind} yet; it has with {', '.join(FAMILIES)}. Take graph_cover"
            )
        config = model.config.get_text_config()
        if config._attn_implementation in FLASH:
            raise UnsupportedModelError(
                f"{pruner.name} adds to attention's logits, for which "
                f"attn_implementation={config._attn_implementation!r} has no argument; load the "
                "model with attn_implementation='sdpa', or take graph_cover"
            )
        if not sees_everything(config):
            raise UnsupportedModelError(
                f"{pruner.name} weighs the keys of layers that see everything, and {kind} has "
                "others, such as sliding windows; take graph_cover"
            )
        require_uncompiled(model, pruner)
        self.layers = model.get_decoder().layers
        self._underway = Underway()

    @contextmanager
    def inside(self) -> Iterator[None]:
        with ExitStack() as stack:
            for layer in self.layers:
                handle = layer.self_attn.register_forward_pre_hook(self._enter, with_kwargs=True)
                stack.callback(handle.remove)
            yield

    def before(
        self, model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        underway = self._underway
        underway.fresh = underway.bias = underway.made = None
        args, call = super().before(model, args, kwargs)
        cache = call.get("past_key_values")
        old = cache.weights if isinstance(cache, PrunedCache) else None
        if underway.fresh is None and old is None:
            return args, call
        mask: Tensor = call["attention_mask"]  # 2-D: both have left the call one
        require_interpreted(cache, mask.device)
        bias = mask.new_zeros(mask.shape, dtype=torch.float32)
        if old is not None:
            bias[:, : old.shape[1]] = old
        if underway.fresh is not None:
            bias[:, -underway.fresh.shape[1] :] = underway.fresh
        underway.bias = bias
        return args, call

    def after(
        self, model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        super().after(model, args, kwargs, output)
        underway = self._underway
        cache: Cache | None = kwargs.get("past_key_values")
        cache = find_cache(output) if cache is None else cache
        if output is not None and underway.fresh is not None and isinstance(cache, PrunedCache):
            cache.weights = underway.bias
        underway.fresh = underway.bias = underway.made = None

    def _shorten(self, call: dict[str, Any], plan: Plan, mask: Tensor, cache: Cache | None) -> None:
        super()._shorten(call, plan, mask, cache)
        weights = plan.order.new_zeros(plan.before.shape, dtype=torch.float32)  # [b, L]
        for selection in self._selections:
            weights = weights.masked_scatter(selection.placeholder, selection.weights(weights))
        self._underway.fresh = weights.gather(1, plan.order).masked_fill(~plan.real, 0)

    def _enter(
        self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The call of an attention layer to make instead."""
        underway = self._underway
        if underway.bias is None:
            return None
        mask = kwargs.get("attention_mask")
        if underway.made is None or underway.made[0] is not mask:
            hidden = args[0] if args else kwargs["hidden_states"]
            if mask is None:
                mask = causal(underway.bias, hidden.shape[1], kwargs.get("past_key_values"))
            made = weighted(mask, underway.bias, hidden.dtype)
            underway.made = kwargs.get("attention_mask"), made
        return args, {**kwargs, "attention_mask": underway.made[1]}


def require_interpreted(cache: Cache | None, device: torch.device) -> None:
    """Raises ValueError where `generate` would compile decoding, and a later block's hooks be lost.

    It does for caches of a fixed size, on an accelerator.
    """
    if cache is not None and cache.is_compileable and device.type != "cpu":
        raise ValueError(
            f"past_key_values is a {type(cache).__name__} of a fixed size, for which generate "
            "compiles the model, and compiled code passes the weights of keys by; leave "
            "cache_implementation unset"
        )


def sees_everything(config: Any) -> bool:
    """Whether every layer of a language model attends to all keys before a token."""
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return getattr(config, "sliding_window", None) is None
    return set(kinds) == {"full_attention"}


def causal(bias: Tensor, queries: int, cache: Cache | None) -> Tensor:
    """The mask that a layer leaves out where it is plainly causal, bool [1, 1, queries, keys].

    Args:
        bias: of all columns so far, [b, columns].
        queries: how many there are, the last of the columns.
        cache: whose keys they see; a static one has room for more.
    """
    columns = bias.shape[1]
    keys = columns if cache is None else cache.get_mask_sizes(queries, 0)[0]
    every = torch.ones(queries, keys, dtype=torch.bool, device=bias.device)
    return every.tril(columns - queries)[None, None]


def weighted(mask: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """An additive mask that lets keys weigh more, [b, 1, queries, keys].

    Args:
        mask: bool or additive, [b, 1, queries, keys]; a static cache has keys to come.
        bias: what to add to the logits of each key so far, float32 [b, columns].
        dtype: of the queries.
    """
    if mask.dtype == torch.bool:
        least = torch.finfo(dtype).min
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, least)
    bias = torch.nn.functional.pad(bias, (0, mask.shape[-1] - bias.shape[1]))
    # The sum in float32: half precision has no room for both.
    return (mask.float() + bias[:, None, None].to(mask.device)).to(dtype)
