"""Shows the language model, while it trains, where the objects are that a question names.

Answering "is the red circle left of the blue star?" takes two look-ups, and a yes or a no teaches
little about either: from answers alone the small model never learned to look up an object by its
name. So while training, some attention heads are held to it, as referring-expression data does for
large models: in the first layer the token that ends a name attends to its color, which brings the
name together; in the second that token attends to the patches of the object.
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

# The layer that brings a name together and the one that looks it up.
JOINING, LOOKING = 0, 1
# How many heads of either are held, the first ones.
HEADS = 2


class Watched:
    """What the two attention layers were called with last."""

    def __init__(self) -> None:
        self.hidden: dict[int, Tensor] = {}  # [b, L, width] for each layer
        self.rotary: tuple[Tensor, Tensor]


@contextmanager
def watched(model: LlavaForConditionalGeneration) -> Iterator[Watched]:
    """Notes the inputs of the attention layers that are held."""
    seen = Watched()

    def note(layer: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.hidden[layer], seen.rotary = kwargs["hidden_states"], kwargs["position_embeddings"]

        return hook

    layers = model.model.language_model.layers
    handles = [
        layers[layer].self_attn.register_forward_pre_hook(note(layer), with_kwargs=True)
        for layer in (JOINING, LOOKING)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def shares(
    model: LlavaForConditionalGeneration,
    seen: Watched,
    layer: int,
    queries: tuple[Tensor, Tensor],
    among: slice,
    allowed: Tensor | None = None,
) -> Tensor:
    """Log-probabilities with which tokens attend to some of the sequence, [m, HEADS, k].

    Args:
        model: whose attention it is.
        seen: its inputs.
        layer: which layer of it.
        queries: row of the batch and place in the sequence of the tokens that attend, [m] each.
        among: the k places attended to; how much goes elsewhere is left to the answers.
        allowed: which of them each token may see, [m, k]; all by default.
    """
    attention = model.model.language_model.layers[layer].self_attn
    size, hidden = attention.head_dim, seen.hidden[layer]
    cos, sin = (table.expand(len(hidden), -1, -1) for table in seen.rotary)

    def heads(projection: nn.Linear, x: Tensor) -> Tensor:
        weight = projection.weight[: HEADS * size]
        return nn.functional.linear(x, weight).view(*x.shape[:-1], HEADS, size).float()

    key = heads(attention.k_proj, hidden[:, among]).transpose(1, 2)  # [b, HEADS, k, size]
    key, _ = apply_rotary_pos_emb(key, key, cos[:, among], sin[:, among])
    rows, places = queries
    # Not indexed by both: the gradient of that is summed in any order.
    asking = hidden.flatten(0, 1).index_select(0, rows * hidden.shape[1] + places)
    query = heads(attention.q_proj, asking)[:, :, None]  # [m, HEADS, 1, size]
    query, _ = apply_rotary_pos_emb(query, query, cos[queries][:, None], sin[queries][:, None])
    logits = (query @ key.index_select(0, rows).transpose(-1, -2))[:, :, 0] * attention.scaling
    if allowed is not None:
        logits = logits.masked_fill(~allowed[:, None], -torch.inf)
    return logits.log_softmax(-1)


def loss(
    model: LlavaForConditionalGeneration, seen: Watched, packed: PackedQuestions, owners: Tensor
) -> Tensor:
    """How little attention goes where the names point: the mean negative log of its share.

    Args:
        model: whose attention it is.
        seen: its inputs.
        packed: the questions.
        owners: which object a patch shows, -1 where it shows none, [b, n].
    """
    aimed = [
        (row, token, ends, mask)
        for row, token, ends, pointed in packed.names
        for mask in [torch.isin(owners[row], owners.new_tensor(pointed))]
        if mask.any()  # a later object may cover the patches of an earlier one
    ]
    if not aimed:
        return seen.hidden[LOOKING].sum() * 0
    visual = owners.shape[1]
    rows, tokens = (owners.new_tensor([item[i] for item in aimed]) for i in (0, 1))
    masks = torch.stack([item[3] for item in aimed])
    found = shares(model, seen, LOOKING, (rows, 1 + visual + tokens), slice(1, 1 + visual))
    looking = -found.masked_fill(~masks[:, None], -torch.inf).logsumexp(-1).mean()

    ends = torch.tensor([item[2] for item in aimed], device=owners.device)
    if not ends.any():
        return looking
    rows, tokens = rows[ends], tokens[ends]
    own = packed.segments[rows] == packed.segments[rows, tokens][:, None]
    own &= torch.arange(own.shape[1], device=own.device) <= tokens[:, None]
    text = shares(model, seen, JOINING, (rows, 1 + visual + tokens), slice(1 + visual, None), own)
    previous = (tokens - 1)[:, None, None].expand(-1, HEADS, 1)
    return looking - text.gather(-1, previous).mean()
