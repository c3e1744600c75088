"""Multiplies attention to a kept token by its member count.

Where a method merges, a softmax over fewer keys gives merged tokens less weight than their
members had: fifty tokens of a wall that become one token count once instead of fifty times.
Proportional attention (Bolya et al., "Token Merging", ICLR 2023, arXiv 2210.09461, section 3,
equation 1, there inside a ViT) adds the logarithm of the member count s to the logits of the
token's key, in every layer of the language model, at prefill and for as long as the key is in the
cache:

    A = softmax(Q Kᵀ / √d + log s)

A key that occurs s times would get the same weight, so merging copies changes nothing. The
logarithms are added to the additive mask of each attention layer, which SDPA and the eager kernel
take; FlashAttention takes none.
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
from gprune.hf.calls import find_cache
from gprune.hf.checks import require_uncompiled
from gprune.hf.choice import Selection
from gprune.hf.model import PrunedModel
from gprune.hf.rewrite import FLASH, Plan
from gprune.layouts import cache_of, families_with
from gprune.pruners.base import Pruner


class BiasState(threading.local):
    """What the current call of this thread adds to the logits of keys.

    Attributes:
        new_bias: for the call's own columns if it is a shortened prefill, float32 [b, p].
        bias: for all columns, cached ones first, float32 [b, columns]; None if nothing is added.
        last_mask: the last mask that a layer was given, and that mask with the bias.
    """

    new_bias: Tensor | None = None
    bias: Tensor | None = None
    last_mask: tuple[Tensor | None, Tensor] | None = None

    def clear(self) -> None:
        """Forgets the call."""
        self.new_bias = self.bias = self.last_mask = None


class WeightedPrunedModel(PrunedModel):
    """A pruned model whose attention weighs kept tokens by their member counts."""

    def __init__(self, model: PreTrainedModel, pruner: Pruner, positions: str) -> None:
        super().__init__(model, pruner, positions)
        check_weighable(model, self.family.takes_weights, pruner)
        require_uncompiled(model, pruner)
        self.layers = model.get_decoder().layers
        self._state = BiasState()

    @contextmanager
    def patched(self) -> Iterator[None]:
        """Hooks every attention layer of the language model."""
        with ExitStack() as stack:
            for layer in self.layers:
                handle = layer.self_attn.register_forward_pre_hook(
                    self._pre_attention, with_kwargs=True
                )
                stack.callback(handle.remove)
            yield

    def pre_forward(
        self, model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Prepares the bias of the call, besides what `PrunedModel.pre_forward` does."""
        state = self._state
        state.clear()
        args, call = super().pre_forward(model, args, kwargs)
        cache = cache_of(call)
        cached_bias = cache.weights if isinstance(cache, PrunedCache) else None
        if state.new_bias is None and cached_bias is None:
            return args, call
        # A shortened prefill and a pruned cache both leave the call a 2-D mask.
        mask: Tensor = call["attention_mask"]
        require_interpreted(cache, mask.device)
        bias = mask.new_zeros(mask.shape, dtype=torch.float32)
        if cached_bias is not None:
            bias[:, : cached_bias.shape[1]] = cached_bias
        if state.new_bias is not None:
            bias[:, -state.new_bias.shape[1] :] = state.new_bias
        state.bias = bias
        return args, call

    def post_forward(
        self, model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """Records the bias on the cache, besides what `PrunedModel.post_forward` does."""
        super().post_forward(model, args, kwargs, output)
        state = self._state
        cache = find_cache(output, kwargs)
        if output is not None and state.new_bias is not None and isinstance(cache, PrunedCache):
            cache.weights = state.bias
        state.clear()

    def shorten(
        self,
        call: dict[str, Any],
        plan: Plan,
        mask: Tensor,
        cache: Cache | None,
        selections: list[Selection],
    ) -> None:
        """Computes the bias of the columns that stay, besides shortening the call."""
        super().shorten(call, plan, mask, cache, selections)
        bias = plan.order.new_zeros(plan.kept_mask.shape, dtype=torch.float32)  # [b, L]
        for selection in selections:
            bias = bias.masked_scatter(selection.placeholder, selection.log_member_counts(bias))
        self._state.new_bias = plan.gather(bias, 0)

    def _pre_attention(
        self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Adds the bias to the mask of an attention layer; a forward pre-hook."""
        state = self._state
        if state.bias is None:
            return None
        given = kwargs.get("attention_mask")
        if state.last_mask is None or state.last_mask[0] is not given:
            hidden = args[0] if args else kwargs["hidden_states"]
            mask = given
            if mask is None:
                mask = causal_mask(state.bias, hidden.shape[1], cache_of(kwargs))
            state.last_mask = given, biased_mask(mask, state.bias, hidden.dtype)
        return args, {**kwargs, "attention_mask": state.last_mask[1]}


def check_weighable(model: PreTrainedModel, proven: bool, pruner: Pruner) -> None:
    """Checks that keys can be weighed in every layer of the language model.

    Args:
        model: the model.
        proven: whether its family declares `Family.takes_weights`.
        pruner: the method.

    Raises:
        UnsupportedModelError: the family is not proven, or attention takes no additive mask or
            does not see all keys.
    """
    config, kind = model.config.get_text_config(), type(model).__name__
    if not proven:
        raise UnsupportedModelError(
            f"{pruner.name} weighs keys in the language model's attention, which is not proven "
            f"with {kind} yet; it is with {', '.join(families_with('takes_weights'))}. Use "
            "graph_cover"
        )
    if config._attn_implementation in FLASH:
        raise UnsupportedModelError(
            f"{pruner.name} adds to the logits of attention, for which "
            f"attn_implementation={config._attn_implementation!r} has no argument; load the "
            "model with attn_implementation='sdpa', or use graph_cover"
        )
    if not has_full_attention(config):
        raise UnsupportedModelError(
            f"{pruner.name} weighs keys in layers with full attention, and {kind} has other "
            "layers, such as sliding windows; use graph_cover"
        )


def require_interpreted(cache: Cache | None, device: torch.device) -> None:
    """Checks that `generate` will not compile decoding, which would bypass the attention hooks.

    It does for caches of a fixed size, on an accelerator.

    Raises:
        ValueError: the cache has a fixed size and ``device`` is an accelerator.
    """
    if cache is not None and cache.is_compileable and device.type != "cpu":
        raise ValueError(
            f"past_key_values is a {type(cache).__name__} of a fixed size, for which generate "
            "compiles the model, and compiled code skips the weights of keys; leave "
            "cache_implementation unset"
        )


def has_full_attention(config: Any) -> bool:
    """Returns whether every layer of a language model attends to all previous keys."""
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return getattr(config, "sliding_window", None) is None
    return set(kinds) == {"full_attention"}


def causal_mask(bias: Tensor, queries: int, cache: Cache | None) -> Tensor:
    """Returns the mask that a layer omits where it is plainly causal, bool [1, 1, queries, keys].

    Args:
        bias: of all columns so far, [b, columns].
        queries: number of queries, the last of the columns.
        cache: whose keys the queries see; a static one has room for more.
    """
    columns = bias.shape[1]
    keys = columns if cache is None else cache.get_mask_sizes(queries, 0)[0]
    ones = torch.ones(queries, keys, dtype=torch.bool, device=bias.device)
    return ones.tril(columns - queries)[None, None]


def biased_mask(mask: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns an additive mask that includes the bias of keys, [b, 1, queries, keys].

    Args:
        mask: bool or additive, [b, 1, queries, keys]; a static cache has more keys than columns.
        bias: added to the logits of each key so far, float32 [b, columns].
        dtype: of the queries.
    """
    if mask.dtype == torch.bool:
        least = torch.finfo(dtype).min
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, least)
    bias = torch.nn.functional.pad(bias, (0, mask.shape[-1] - bias.shape[1]))
    # Summed in float32: half precision would round the bias away.
    return (mask.float() + bias[:, None, None].to(mask.device)).to(dtype)
