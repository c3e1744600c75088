"""Records what a method does inside a model during a prefill."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from gprune.hf import PrunedModel
from gprune.hf.cache import StagedCache
from gprune.proof.stages import Stage, at_positions
from gprune.pruners import Pruner
from gprune.pruners.reduction import Reduction

# Methods of a pruner that return what becomes of tokens.
REDUCING = ("reduce_images", "at_stage", "drop")


class Recorder:
    """Records what a method does inside a ``with`` block.

    Attributes:
        merges: whether the method says that it merged tokens.
        states: the hidden states of the first prefill that enter the first layer of each stage of
            a method inside the language model, by layer, [b, p, d].
        cross_states: the vision states that cross-attention layers read in each prefill, [b, k, d].
    """

    def __init__(self, model: Any, pruner: Pruner) -> None:
        """Prepares to record."""
        self.model, self.pruner = model, pruner
        self.merges = False
        self.states: dict[int, Tensor] = {}
        self.cross_states: list[Tensor] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Records inside a ``with`` block, which stands inside that of the method."""
        with ExitStack() as stack:
            methods: dict[str, Any] = vars(self.pruner)
            for name in REDUCING:
                if hasattr(self.pruner, name):
                    # Through vars(), because the dataclass is frozen; on this instance only.
                    methods[name] = self._noting_merges(getattr(self.pruner, name))
                    stack.callback(methods.pop, name)
            for layer, hook in self._hooks():
                handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
            yield

    def _noting_merges(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps a method of the pruner to note whether its result merges tokens."""

        @functools.wraps(method)
        def noting(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            self.merges |= any(reduction.merges for reduction in reductions_in(result))
            return result

        return noting

    def _hooks(self) -> Iterator[tuple[Any, Callable[..., None]]]:
        """Returns layers and hooks on them, which run after those of the method."""
        pruner: Any = self.pruner
        if pruner.scope == "decoder":
            layers: Sequence[Any] = self.model.get_decoder().layers
            for first in pruner.stages(len(layers)):
                yield layers[first], noting_states(self.states, first)
        for layer in cross_layers(self.model)[:1]:
            yield layer.cross_attn, self._note_cross_states

    def _note_cross_states(self, layer: Any, args: Any, call: dict[str, Any]) -> None:
        """Notes the states that a cross-attention layer reads; a pre-hook."""
        if call.get("cross_attention_states") is not None:
            self.cross_states.append(call["cross_attention_states"])

    def stages(self, cache: Any, length: int) -> list[Stage]:
        """Returns what the layers of the language model saw.

        Args:
            cache: after the prefill.
            length: number of positions of the prompt.
        """
        stages: list[Stage] = []
        for slots in cache.slots if isinstance(cache, StagedCache) else []:
            origin = slots.origin
            moved = bool((origin.diff(dim=1)[origin[:, :-1] >= 0] < 0).any())
            row, slot = (origin >= 0).nonzero(as_tuple=True)
            seen = torch.zeros(len(origin), length, dtype=torch.bool, device=origin.device)
            seen[row, origin[row, slot]] = True
            states = at_positions(self.states[slots.first], origin, length) if self.merges else None
            stages.append(Stage(slots.first, seen, states, moved))
        return stages


def noting_states(states: dict[int, Tensor], first: int) -> Callable[..., None]:
    """Returns a pre-hook that notes the first states that enter a layer."""

    def note(layer: Any, args: Any, call: dict[str, Any]) -> None:
        states.setdefault(first, args[0] if args else call["hidden_states"])

    return note


def reductions_in(result: Any) -> Iterator[Reduction]:
    """Returns the reductions in what a method returned, however deep in lists."""
    if isinstance(result, Reduction):
        yield result
    elif isinstance(result, list | tuple):
        for part in result:
            yield from reductions_in(part)


def cross_layers(model: Any) -> list[Any]:
    """Returns the layers that cross-attend to vision tokens; none in most families."""
    indices = getattr(model.config.get_text_config(), "cross_attention_layers", None) or ()
    return [model.get_decoder().layers[index] for index in indices]


@contextmanager
def pruning(
    model: Any, pruner: Pruner | None
) -> Iterator[tuple[PrunedModel | None, Recorder | None]]:
    """Prunes a model inside a ``with`` block and records it, or leaves it alone without a method.

    Returns the model under pruning, and the recorder.
    """
    if pruner is None:
        yield None, None
        return
    recorder = Recorder(model, pruner)
    with pruner(model) as pruned, recorder.recording():
        yield pruned, recorder
