"""A model whose visual tokens are dropped between its layers."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor
from transformers import Cache, PreTrainedModel

from gprune.hf.cache import StagedCache, mark_staged
from gprune.hf.calls import find_cache, full_mask, require_2d_mask
from gprune.hf.checks import require_uncompiled
from gprune.hf.decoder.checks import check_call, check_family, check_layers
from gprune.hf.decoder.continuation import Continuation
from gprune.hf.decoder.grouped import GroupedModality
from gprune.hf.decoder.prefill import LayerCall, Prefill, Prompt
from gprune.hf.model import PrunedModel
from gprune.hf.overrides import override_method
from gprune.pruners.decoder import DecoderPruner


class CallState(threading.local):
    """The call that this thread is about to run through the layers.

    Attributes:
        call: a prefill or the text after one; None if the layers are left alone.
        prompt: number of columns of the prompt that `generate` was called with; None outside it.
    """

    call: Prefill | Continuation | None = None
    prompt: int | None = None


class DecoderPrunedModel(PrunedModel):
    """A model whose visual tokens are dropped between its layers.

    ``kept_mask`` and ``kept`` describe what reached the last layer, ``visual_by_layer`` how many
    tokens each layer had. If a method merges, a kept token may be the mean of several; a row that
    it appends counts as the dropped token whose column in the prompt it has, see
    `gprune.pruners.reduction.Reduction.positions`.

    With compact positions, each layer from a stage on numbers its tokens without gaps: a token's
    position there is that in the first layer, less the tokens dropped before it; appended rows
    stand behind the last visual token of the prompt. Keys are cached as the layer saw them, and
    tokens that follow the prompt go on from the last position of each layer.
    """

    pruner: DecoderPruner

    def __init__(self, model: PreTrainedModel, pruner: DecoderPruner, positions: str) -> None:
        """Prepares pruning; nothing is hooked yet.

        Raises:
            ValueError: the model lacks a layer of a stage.
            UnsupportedModelError: the language model is not of a tested kind.
        """
        super().__init__(model, pruner, positions)
        check_family(model, self.family, pruner)
        self.config = model.config.get_text_config()
        check_layers(model, self.config, pruner)
        require_uncompiled(model, pruner)
        self.decoder: Any = model.get_decoder()
        self.layers = self.decoder.layers[: self.config.num_hidden_layers]
        self.stages = pruner.stages(len(self.layers))
        self._state = CallState()

    @contextmanager
    def patched(self) -> Iterator[None]:
        """Hooks every layer of the language model, and `generate`."""
        with ExitStack() as stack:
            for index, layer in enumerate(self.layers):
                hook = functools.partial(self._pre_layer, index)
                handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
            generate = self._with_prompt_length(self.model.generate)
            stack.enter_context(override_method(self.model, "generate", generate))
            yield

    def post_forward(
        self, model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """Records on the cache what each layer holds, see `PrunedModel.post_forward`."""
        call, self._state.call = self._state.call, None
        cache = find_cache(output, kwargs)
        if isinstance(cache, StagedCache):
            cache.hook_active = False
        super().post_forward(model, args, kwargs, output)
        if output is None or not isinstance(call, Prefill):
            return
        self._report(call)
        if cache is not None and call.slots:
            mark_staged(cache, call.slots, call.candidates.shape[1])

    def _report(self, prefill: Prefill) -> None:
        """Sets ``kept_mask``, ``visual_by_layer`` and what ``kept`` is computed from."""
        kept_mask = prefill.kept_mask()
        self.kept_mask = kept_mask
        self.selections = [part.selection(kept_mask) for part in prefill.modalities]
        self.visual_by_layer = prefill.visual_by_layer(len(self.layers))

    def _pre_layer(
        self, index: int, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> LayerCall | None:
        """Rewrites the call of a layer; a forward pre-hook."""
        call = self._state.call
        return None if call is None else call.pre_layer(index, layer, args, kwargs)

    def _with_prompt_length(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps `generate` to record the length of its prompt.

        Candidates of assisted decoding, and without a cache all generated tokens, come with the
        call that prunes. They must not rank tokens, so that the prompt alone decides what is kept.
        """

        @functools.wraps(generate)
        def with_prompt_length(*args: Any, **kwargs: Any) -> Any:
            ids = kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else None))
            self._state.prompt = None if ids is None else ids.shape[1]
            try:
                return generate(*args, **kwargs)
            finally:
                self._state.prompt = None

        return with_prompt_length

    def continue_text(
        self, call: dict[str, Any], cache: Cache | None, past: int, positions: Tensor | None
    ) -> None:
        """Prepares the layers for text after a pruned prefill, see `PrunedModel.continue_text`."""
        if isinstance(cache, StagedCache):
            length = call["input_ids"].shape[1]
            mask = require_2d_mask(call.get("attention_mask"))
            self._state.call = Continuation(self.decoder, self.config, cache, mask, length)
            cache.hook_active = True
        else:
            super().continue_text(call, cache, past, positions)

    def prefill(
        self,
        call: dict[str, Any],
        cache: Cache | None,
        past: int,
        positions: Tensor,
        outputs: dict[str, Any],
    ) -> None:
        """Prepares the layers for a call with images, see `PrunedModel.prefill`.

        Raises:
            ValueError: the call cannot be pruned between layers, see `check_call`.
        """
        ids = call["input_ids"]
        modalities = [
            self._group(ids, positions, modality, output) for modality, output in outputs.items()
        ]
        call["mm_encoder_outputs"] = {**(call.get("mm_encoder_outputs") or {}), **outputs}
        call["position_ids"] = positions
        length = self._state.prompt
        prompt = Prompt(
            full_mask(call, past)[:, past:].bool(),
            modalities,
            ids.shape[1] if length is None else length - past,
            positions if self.positions == "compact" else None,
        )
        prefill = Prefill(self.pruner, self.decoder, self.config, self.stages, prompt)
        if prefill.drops_nothing() and not isinstance(cache, StagedCache):
            self._report(prefill)  # the layers are left alone, so results are bit-identical
            return
        check_call(self.model, self.pruner, call, cache, past)
        self._state.call = prefill

    def _group(self, ids: Tensor, positions: Tensor, modality: str, output: Any) -> GroupedModality:
        """Divides the images of one modality into groups; arguments as `TokenChooser.locate`."""
        placeholder, located = self.chooser.locate(ids, positions, modality, output)
        images = [
            (features, self.family.groups(self.model, modality, features, grid))
            for features, grid in located
        ]
        return GroupedModality(modality, placeholder, images)
