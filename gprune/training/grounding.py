"""Auxiliary training loss that shows attention heads where the named objects are.

"Is the red circle left of the blue star?" takes two look-ups, and a yes or no teaches little about
either: from answers alone the small model never learned to look up an object by its name. So some
attention heads are supervised during training, as referring-expression data does for large models.
In the first layer, the token that ends a name attends to the color before it, which joins the two
words; in the second, that token attends to the patches of the object.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from gprune.training.packing import PackedQuestions

# The layer that joins the words of a name, and the layer that looks up its patches.
JOIN_LAYER, LOOKUP_LAYER = 0, 1
# Number of supervised heads in either layer, the first ones.
HEADS = 2


class AttentionInputs:
    """The inputs of the two supervised attention layers in their latest call."""

    def __init__(self) -> None:
        self.hidden: dict[int, Tensor] = {}  # by layer, [b, t, width]
        self.rotary: tuple[Tensor, Tensor]  # cosines and sines


@contextmanager
def record_attention_inputs(model: LlavaForConditionalGeneration) -> Iterator[AttentionInputs]:
    """Records the inputs of the supervised attention layers inside a ``with`` block."""
    inputs = AttentionInputs()

    def recorder(layer: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs.hidden[layer] = kwargs["hidden_states"]
            inputs.rotary = kwargs["position_embeddings"]

        return hook

    layers = model.model.language_model.layers
    handles = [
        layers[layer].self_attn.register_forward_pre_hook(recorder(layer), with_kwargs=True)
        for layer in (JOIN_LAYER, LOOKUP_LAYER)
    ]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def attention_log_probs(
    model: LlavaForConditionalGeneration,
    inputs: AttentionInputs,
    layer: int,
    queries: tuple[Tensor, Tensor],
    keys: slice,
    allowed: Tensor | None = None,
) -> Tensor:
    """Computes the log-probabilities with which m tokens attend to k keys, [m, HEADS, k].

    Args:
        model: the tiny VLM.
        inputs: of its attention layers.
        layer: index of the layer.
        queries: batch row and sequence index of the tokens that attend, [m] each.
        keys: the sequence indices attended to; the softmax is over these alone, so attention to
            other tokens is left to the answers.
        allowed: which keys each token may attend to, [m, k]; None allows all.
    """
    attention = model.model.language_model.layers[layer].self_attn
    size, hidden = attention.head_dim, inputs.hidden[layer]
    cos, sin = (table.expand(len(hidden), -1, -1) for table in inputs.rotary)

    def project(projection: nn.Linear, x: Tensor) -> Tensor:
        weight = projection.weight[: HEADS * size]
        return nn.functional.linear(x, weight).view(*x.shape[:-1], HEADS, size).float()

    key = project(attention.k_proj, hidden[:, keys]).transpose(1, 2)  # [b, HEADS, k, size]
    key, _ = apply_rotary_pos_emb(key, key, cos[:, keys], sin[:, keys])
    rows, indices = queries
    # index_select instead of hidden[rows, indices], whose gradient is summed in no fixed order.
    selected = hidden.flatten(0, 1).index_select(0, rows * hidden.shape[1] + indices)
    query = project(attention.q_proj, selected)[:, :, None]  # [m, HEADS, 1, size]
    query, _ = apply_rotary_pos_emb(query, query, cos[queries][:, None], sin[queries][:, None])
    logits = (query @ key.index_select(0, rows).transpose(-1, -2))[:, :, 0] * attention.scaling
    if allowed is not None:
        logits = logits.masked_fill(~allowed[:, None], -torch.inf)
    return logits.log_softmax(-1)


def loss(
    model: LlavaForConditionalGeneration,
    inputs: AttentionInputs,
    packed: PackedQuestions,
    owners: Tensor,
) -> Tensor:
    """Computes the mean negative log of the attention that goes where the names point.

    Args:
        model: the tiny VLM.
        inputs: of its attention layers.
        packed: the questions.
        owners: index of the object that a patch shows, -1 for none, [b, n].
    """
    targets = [
        (mention, mask)
        for mention in packed.mentions
        for mask in [torch.isin(owners[mention.row], owners.new_tensor(mention.objects))]
        if mask.any()  # a later object may cover all patches of an earlier one
    ]
    if not targets:
        return inputs.hidden[LOOKUP_LAYER].sum() * 0
    visual = owners.shape[1]
    rows = owners.new_tensor([mention.row for mention, _ in targets])
    tokens = owners.new_tensor([mention.token for mention, _ in targets])
    masks = torch.stack([mask for _, mask in targets])
    queries = (rows, 1 + visual + tokens)
    found = attention_log_probs(model, inputs, LOOKUP_LAYER, queries, slice(1, 1 + visual))
    lookup = -found.masked_fill(~masks[:, None], -torch.inf).logsumexp(-1).mean()
    ends = torch.tensor([mention.ends_name for mention, _ in targets], device=owners.device)
    if not ends.any():
        return lookup
    return lookup + _join_loss(model, inputs, packed, (rows[ends], tokens[ends]), visual)


def _join_loss(
    model: LlavaForConditionalGeneration,
    inputs: AttentionInputs,
    packed: PackedQuestions,
    ends: tuple[Tensor, Tensor],
    visual: int,
) -> Tensor:
    """Computes the mean negative log of the attention from the ends of names to the color before.

    Args:
        model: the tiny VLM.
        inputs: of its attention layers.
        packed: the questions.
        ends: row and text token of the ends of names, [m] each.
        visual: number of visual tokens.
    """
    rows, tokens = ends
    allowed = packed.segments[rows] == packed.segments[rows, tokens][:, None]
    allowed &= torch.arange(allowed.shape[1], device=allowed.device) <= tokens[:, None]
    queries, keys = (rows, 1 + visual + tokens), slice(1 + visual, None)
    text = attention_log_probs(model, inputs, JOIN_LAYER, queries, keys, allowed)
    previous = (tokens - 1)[:, None, None].expand(-1, HEADS, 1)
    return -text.gather(-1, previous).mean()
