"""Prunes a model's visual tokens by rewriting its outermost call, once, at prefill.

A pre-hook on the model with its language-modelling head encodes the images, lets the pruner choose,
and shortens ids, mask, position ids and features together. The model then builds its masks and
scatters its features as for any other call, so nothing inside it changes. By default the kept
tokens and the text after them keep their original position ids.
"""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from gprune.budget import ADAPTIVE
from gprune.device import require
from gprune.hf.cache import PrunedCache
from gprune.hf.calls import bind_arguments, find_cache, full_mask, require_2d_mask
from gprune.hf.choice import Selection, TokenChooser
from gprune.hf.records import KeptGroup
from gprune.hf.rewrite import (
    FLASH,
    Plan,
    PlannedOutputs,
    drop_pruned_history,
    mark_as_one_sequence,
    padding_id,
    plan_prefill,
    record_plan,
    shorten_call,
)
from gprune.layouts import Family, cache_of, family_of
from gprune.pruners.base import Pruner


class PrunedModel:
    """A model under pruning, the value of ``with pruner(model) as pruned``.

    Attributes:
        model: the model, unchanged except for its hooks.
        pruner: the method.
        positions: ``original`` or ``compact``.
        family: the layout of the model's family.
        kept_mask: true at the positions that reached the language model in the latest prefill,
            bool [batch, original sequence length]; None before the first prefill. False at padding
            where the rows of a batch were shortened together.
        visual_by_layer: for each row of the latest prefill the number of visual tokens in each
            layer of the language model; None for methods before the language model, after which
            all layers have equally many.
    """

    visual_by_layer: list[list[int]] | None = None

    # Runs the method; a subclass may choose in another way.
    chooser_type: type[TokenChooser] = TokenChooser

    def __init__(self, model: PreTrainedModel, pruner: Pruner, positions: str) -> None:
        """Prepares pruning; nothing is hooked yet.

        Raises:
            UnsupportedModelError: the family, or what the method needs of it, is not supported.
        """
        self.model = model
        self.pruner = pruner
        self.positions = positions
        self.family: Family = family_of(model)
        self.kept_mask: Tensor | None = None
        self.selections: list[Selection] = []
        self.chooser = self.chooser_type(model, pruner, self.family)
        self._parameters = list(inspect.signature(model.forward).parameters)

    @property
    def kept(self) -> list[list[KeptGroup]]:
        """For each batch row of the latest prefill its groups, in the order of the prompt.

        In a row with images and videos, the images come first.
        """
        if self.kept_mask is None:
            return []
        rows: list[list[KeptGroup]] = [[] for _ in self.kept_mask]
        for selection in self.selections:
            for row, groups in zip(rows, selection.kept_by_row(), strict=True):
                row += groups
        return rows

    @property
    def dropped(self) -> list[int]:
        """For each batch row of the latest prefill the number of visual tokens dropped."""
        return [sum(group.size - len(group.indices) for group in row) for row in self.kept]

    def patched(self) -> AbstractContextManager[None]:
        """Applies further changes to the model inside a ``with`` block; here none."""
        return nullcontext()

    def pre_forward(
        self, model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns the arguments to call the model with instead; a forward pre-hook.

        Raises:
            ValueError: an argument is missing, does not fit the others or cannot be shortened.
        """
        call = bind_arguments(self._parameters, args, kwargs)
        if call.get("input_ids") is None:
            raise ValueError(
                "input_ids is missing: inputs_embeds alone do not show which positions are visual "
                "tokens; pass input_ids with pixel_values instead"
            )
        cache = cache_of(call)
        pruned_cache = cache if isinstance(cache, PrunedCache) else None
        if pruned_cache is not None:
            require_2d_mask(call.get("attention_mask"))
            self._check_weights(pruned_cache)
        past = 0 if cache is None else int(cache.get_seq_length())
        outputs, used = self.chooser.encode(call)
        positions: Any = call.get("position_ids")
        if positions is None and (outputs or pruned_cache is not None):
            # Before the grids are removed, which position ids may depend on.
            positions = self.family.default_positions(model, call, past)
        for name in used:
            del call[name]
        if pruned_cache is not None:
            pruned_cache.hook_active = True
            if self.positions == "compact":
                positions = positions - pruned_cache.position_shift[:, None]
        if outputs:
            self.prefill(call, cache, past, positions, outputs)
        else:
            self.continue_text(call, cache, past, positions)
        return (), call

    def post_forward(
        self, model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """Records on the cache what the prefill dropped; a forward hook.

        Args:
            model: the model.
            args: positional arguments of the call.
            kwargs: keyword arguments of the call, as `pre_forward` returned them.
            output: of the call; None if it failed.
        """
        cache = find_cache(output, kwargs)
        if isinstance(cache, PrunedCache):
            cache.hook_active = False
        outputs = kwargs.get("mm_encoder_outputs")
        if output is not None and cache is not None and isinstance(outputs, PlannedOutputs):
            record_plan(cache, outputs.plan, kwargs["attention_mask"])

    def prefill(
        self,
        call: dict[str, Any],
        cache: Cache | None,
        past: int,
        positions: Tensor,
        outputs: dict[str, Any],
    ) -> None:
        """Chooses what to keep of a call with images, and shortens it in place.

        Args:
            call: the arguments, without the pixels.
            cache: of the call.
            past: logical length of the cache.
            positions: position ids, [..., b or 1, L].
            outputs: of the vision encoder, for each modality.
        """
        ids = call["input_ids"]
        questions = self.chooser.questions(call, past)
        # Not read again: another thread may call the model meanwhile.
        self.selections = selections = [
            self.chooser.select(ids, positions, modality, output, questions)
            for modality, output in outputs.items()
        ]
        call["mm_encoder_outputs"] = {**(call.get("mm_encoder_outputs") or {}), **outputs}
        call["position_ids"] = positions
        dropped = any(selection.dropped_count for selection in selections)
        if not dropped and not self._merges_all(selections):
            # The model gets its own call, so that its results are bit-identical.
            self.kept_mask = torch.ones_like(ids, dtype=torch.bool)
            if isinstance(cache, PrunedCache):
                drop_pruned_history(call, cache, past)
            return
        mask = full_mask(call, past)
        planned = self._shorten_outputs(call["mm_encoder_outputs"], selections)
        planned.plan = self.plan(selections, mask, past)
        self.kept_mask = planned.plan.kept_mask
        call["mm_encoder_outputs"] = planned
        self.shorten(call, planned.plan, mask, cache, selections)

    def continue_text(
        self, call: dict[str, Any], cache: Cache | None, past: int, positions: Tensor | None
    ) -> None:
        """Rewrites a decoding step, or a turn without images, in place; arguments as `prefill`."""
        ids = call["input_ids"]
        if isinstance(cache, PrunedCache):
            call["position_ids"] = positions
            drop_pruned_history(call, cache, past)
        elif past == 0:
            for modality in self.family.modalities:
                require(
                    (ids != self.family.token_id(self.model, modality)).all(),
                    f"input_ids hold {modality} placeholders but no {modality} came with the call; "
                    f"pass the {modality}s of the prompt",
                )
            self.kept_mask = torch.ones_like(ids, dtype=torch.bool)
            self.selections = []

    def plan(self, selections: list[Selection], mask: Tensor, past: int) -> Plan:
        """Plans which columns of the call stay, see `plan_prefill`."""
        return plan_prefill(selections, mask, past)

    def shorten(
        self,
        call: dict[str, Any],
        plan: Plan,
        mask: Tensor,
        cache: Cache | None,
        selections: list[Selection],
    ) -> None:
        """Shortens the arguments of a call in place, see `shorten_call`."""
        ids = {self.family.token_id(self.model, name) for name in self.family.modalities}
        pad_id = padding_id(self.model.config, ids)
        shorten_call(call, plan, mask, cache, pad_id, self.positions == "compact")
        if self.model.config.get_text_config()._attn_implementation in FLASH:
            mark_as_one_sequence(call, cache)

    def _shorten_outputs(
        self, outputs: dict[str, Any], selections: list[Selection]
    ) -> PlannedOutputs:
        """Returns the encoder outputs with the features that stay."""
        shortened = PlannedOutputs(outputs)
        for selection in selections:
            output = outputs[selection.modality]
            features = [image.reduced.features for image in selection.images]
            shortened[selection.modality] = self.family.shorten(
                output, selection.kept_rows, features
            )
        return shortened

    def _merges_all(self, selections: list[Selection]) -> bool:
        """Tells whether an adaptive method merges tokens and drops none."""
        return self.pruner.keep == ADAPTIVE and any(
            image.reduced.merges for selection in selections for image in selection.images
        )

    def _check_weights(self, cache: PrunedCache) -> None:
        """Checks that a method goes on weighing the keys of a cache that have weights.

        Raises:
            ValueError: the cache's keys have weights, and the method does not weigh keys.
        """
        if cache.weights is not None and not self.pruner.proportional:
            raise ValueError(
                "past_key_values was pruned by a method that weighs merged tokens by their member "
                f"counts, which {self.pruner.name} would forget; continue it inside "
                "`with WeightedCover(keep)(model):`, or start from an empty cache"
            )
