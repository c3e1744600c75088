"""A second reference: embeddings of the kept positions alone, where masking is not dropping.

Layers that carry a state from token to token (linear attention, convolutions) pass it through
masked tokens too, and a sliding window counts them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gprune.layouts import family_of
from gprune.proof.results import Inapplicable
from gprune.proof.running import STEPS, Inputs, Run

# Layers that read other positions by attention alone.
ATTENTION = ("full_attention", "sliding_attention", "chunked_attention")
TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")


def why_masking_differs(model: Any, length: int) -> str | None:
    """Returns why masked tokens act otherwise than dropped ones; None if they act alike.

    Args:
        model: the model.
        length: number of positions, generated ones included.
    """
    text = model.config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ())
    others = sorted(kinds - set(ATTENTION))
    if others:
        return f"{', '.join(others)} layers carry a state through masked tokens"
    for kind, setting in (
        ("sliding_attention", "sliding_window"),
        ("chunked_attention", "attention_chunk_size"),
    ):
        size = getattr(text, setting, None)
        if size is not None and size < length and (kind in kinds or not kinds):
            return f"{setting}={size} counts masked tokens"
    return None


@torch.no_grad()
def prefill_call(model: Any, inputs: Inputs) -> dict[str, Any]:
    """Returns the arguments with which `generate` calls the unpruned model for the prompt.

    The embeddings that enter the language model are added as ``inputs_embeds``.
    """
    seen: dict[str, Any] = {}

    def outer(module: Any, args: Any, call: dict[str, Any]) -> None:
        seen.update(call)

    def inner(module: Any, args: Any, call: dict[str, Any]) -> None:
        seen["inputs_embeds"] = call.get("inputs_embeds")

    handles = [
        module.register_forward_pre_hook(hook, with_kwargs=True)
        for module, hook in ((model, outer), (model.get_decoder(), inner))
    ]
    try:
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
    finally:
        for handle in handles:
            handle.remove()
    return seen


@torch.no_grad()
def shortened_greedy(
    model: Any, inputs: Inputs, kept_mask: Tensor, steps: int = STEPS, forced: Tensor | None = None
) -> Run:
    """Decodes from embeddings of the kept positions, with their own position ids; one row.

    Args:
        model: the model, without pruning.
        inputs: of a prompt of one row.
        kept_mask: true at the positions that stay, bool [1, L].
        steps: number of tokens.
        forced: tokens to follow, int64 [1, steps].

    Raises:
        Inapplicable: the language model reads more of its visual tokens than embeddings.
    """
    call = prefill_call(model, inputs)
    refuse_further_features(model)
    kept = kept_mask[0]
    embeds, positions = call["inputs_embeds"][:, kept], call["position_ids"][..., kept]
    types = {name: call[name][:, kept] for name in TOKEN_TYPES if call.get(name) is not None}
    generated = 1 if family_of(model).name == "paligemma" else 0
    tokens, logits = [], []
    for step in range(steps):
        last = model(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device),
            position_ids=positions,
            use_cache=False,
            **types,
        ).logits[:, -1]
        token = last.argmax(-1, keepdim=True) if forced is None else forced[:, step : step + 1]
        tokens.append(token)
        logits.append(last.float())
        embeds = torch.cat([embeds, model.get_input_embeddings()(token).to(embeds)], 1)
        positions = torch.cat([positions, positions[..., -1:] + 1], -1)
        new = torch.full_like(token, generated)
        types = {name: torch.cat([values, new.to(values)], 1) for name, values in types.items()}
    return Run(torch.cat(tokens, 1), torch.stack(logits, 1))


def refuse_further_features(model: Any) -> None:
    """Raises `Inapplicable` for models that add visual features inside the language model."""
    text, vision = model.config.get_text_config(), getattr(model.config, "vision_config", None)
    deepstack = getattr(vision, "deepstack_visual_indexes", None)
    if deepstack or getattr(text, "hidden_size_per_layer_input", None):
        raise Inapplicable(
            f"{type(model).__name__} reads visual features or ids in later layers, so embeddings "
            "of the kept positions do not describe a shortened prompt"
        )
