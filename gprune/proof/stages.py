"""The reference for methods inside the language model: later layers see fewer positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gprune.hf.rewrite import FLASH


@dataclass(frozen=True, eq=False)
class Stage:
    """What the layers from one on see of a prompt.

    Attributes:
        first: the first of these layers.
        seen: true at the positions that they see, bool [b, L].
        states: hidden states that enter the first of them, [b, L, d], if the method merged some;
            meaningless where nothing is seen. None if it merged none.
        moved: whether rows changed their order, for which there is no full-length model.
    """

    first: int
    seen: Tensor
    states: Tensor | None = None
    moved: bool = False

    def row(self, index: int, length: int) -> Stage:
        """Returns one row without padding, ``length`` columns."""
        states = None if self.states is None else self.states[index : index + 1, -length:]
        return Stage(self.first, self.seen[index : index + 1, -length:], states, self.moved)

    def followed_by(self, columns: int) -> Stage:
        """Returns the same with further columns, which are all seen."""
        return replace(self, seen=F.pad(self.seen, (0, columns), value=True))


def at_positions(states: Tensor, origin: Tensor, length: int) -> Tensor:
    """Returns states [b, p, d] at their positions ``origin`` [b, p], [b, length, d]; else zeros."""
    row, slot = (origin >= 0).nonzero(as_tuple=True)
    full = states.new_zeros(len(states), length, states.shape[-1])
    full[row, origin[row, slot]] = states[row, slot]
    return full


class HiddenFromLayers:
    """Pre-hooks of a full-length model that mask dropped positions from a layer on."""

    def __init__(self, model: Any, stages: Sequence[Stage], compact: bool) -> None:
        """Prepares the hooks.

        Args:
            model: the model.
            stages: what the layers see, ascending.
            compact: whether layers number what they see without gaps.
        """
        self.stages, self.compact, self.dtype = stages, compact, model.dtype
        self.decoder = model.get_decoder()
        self.flash = model.config.get_text_config()._attn_implementation in FLASH
        self.real = torch.empty(0)

    def remember(self, model: Any, args: Any, call: dict[str, Any]) -> None:
        """Notes which columns are padding; a pre-hook of the whole model."""
        self.real = real_positions(call)

    def of_layer(self, index: int) -> Callable[..., Any]:
        """Returns the pre-hook of a layer."""
        stage = next((one for one in reversed(self.stages) if one.first <= index), None)

        def hide(layer: Any, args: Any, call: dict[str, Any]) -> Any:
            return None if stage is None else self._hide(stage, index == stage.first, args, call)

        return hide

    def _hide(self, stage: Stage, enters: bool, args: Any, call: dict[str, Any]) -> Any:
        """Returns the arguments of a layer; ``enters``: it is the first of its stage."""
        hidden, *rest = args or (call.pop("hidden_states"),)
        b, length = self.real.shape
        seen = per_beam(stage.seen.to(self.real.device), b)
        visible = self.real & extended(seen, length)
        if enters and stage.states is not None:
            states = per_beam(stage.states, b)
            prompt = states.shape[1]
            replaced = torch.where(seen[:, :prompt, None], states, hidden[:, :prompt])
            hidden = torch.cat([replaced, hidden[:, prompt:]], 1)
        call["attention_mask"] = (
            visible.long() if self.flash else additive_mask(visible, None, self.dtype)
        )
        if self.compact:
            dropped = (self.real & ~visible).long().cumsum(1)
            positions = call["position_ids"] - dropped
            call["position_embeddings"] = self.decoder.rotary_emb(hidden, positions)
        return (hidden, *rest), call


def per_beam(values: Tensor, rows: int) -> Tensor:
    """Repeats the rows of ``values`` [b, ...] for the beams of a call of ``rows`` rows."""
    return values.repeat_interleave(rows // len(values), 0)


def extended(seen: Tensor, length: int) -> Tensor:
    """Returns ``seen`` bool [b, L] with true for generated columns, [b, length]."""
    return F.pad(seen, (0, length - seen.shape[1]), value=True)


def real_positions(call: Mapping[str, Any]) -> Tensor:
    """Returns false at a call's padding, bool [b, L]."""
    mask = call.get("attention_mask")
    return torch.ones_like(call["input_ids"], dtype=torch.bool) if mask is None else mask.bool()


def additive_mask(visible: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Returns a causal mask over visible keys, plus ``bias`` [b, L], [b, 1, L, L]."""
    length = visible.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=visible.device).tril()
    seen = visible[:, None, None] & causal  # [b, 1, L, L]
    added = torch.zeros(()) if bias is None else bias[:, None, None]
    return torch.where(seen, added.to(visible.device), torch.finfo(dtype).min).to(dtype)
