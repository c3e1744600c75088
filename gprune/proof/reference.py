"""The full-length model that a pruned one is compared with: dropped tokens are masked, not removed.

The reference runs inside the model's own `generate`, without a cache and without gprune's hooks:
position ids, token types and encoder outputs are transformers' own. Hooks of this module only
replace masks, and features where a method merges.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gprune.hf import PrunedModel
from gprune.hf.cross_cache import CrossPrunedCache
from gprune.layouts import family_of
from gprune.proof.recording import Recorder, cross_layers, pruning
from gprune.proof.results import Inapplicable
from gprune.proof.running import STEPS, Inputs, Run, greedy
from gprune.proof.stages import (
    HiddenFromLayers,
    Stage,
    additive_mask,
    at_positions,
    extended,
    per_beam,
    real_positions,
)
from gprune.pruners import Pruner


@dataclass(frozen=True, eq=False)
class KeptImage:
    """What a method made of one image or video.

    Attributes:
        row: batch row of the prompt.
        modality: ``image`` or ``video``.
        rows: rows of the image's features that stay, int64 [k].
        features: the features of these rows if some are merged, [k, d]; else None.
        counts: member count of each row of the image, float32 [n], if the method weighs keys.
    """

    row: int
    modality: str
    rows: Tensor
    features: Tensor | None
    counts: Tensor | None


@dataclass(frozen=True, eq=False)
class Kept:
    """What a pruned prefill kept.

    Attributes:
        mask: true at the positions that reached the last layer, bool [b, L]; padding may be false.
        images: the images and videos, in prompt order.
        compact: whether positions were renumbered without gaps.
        stages: what later layers see, for methods inside the language model.
        columns: for cross-attention the vision tokens that stay, bool [b, n].
        cross_states: their states, [b, n, d], if the method merged some; else None.
    """

    mask: Tensor
    images: Sequence[KeptImage] = ()
    compact: bool = False
    stages: Sequence[Stage] = ()
    columns: Tensor | None = None
    cross_states: Tensor | None = None

    @property
    def moved(self) -> bool:
        """Whether rows changed their order, for which there is no full-length model."""
        return any(stage.moved for stage in self.stages)

    def row(self, index: int, length: int) -> Kept:
        """Returns one row as if it had been alone: without padding, ``length`` columns."""
        return replace(
            self,
            mask=self.mask[index : index + 1, -length:],
            images=[replace(image, row=0) for image in self.images if image.row == index],
            stages=[stage.row(index, length) for stage in self.stages],
            columns=row_of(self.columns, index),
            cross_states=row_of(self.cross_states, index),
        )

    def followed_by(self, other: Tensor) -> Kept:
        """Returns the same with further columns, ``other`` bool [b, m]."""
        return replace(
            self,
            mask=torch.cat([self.mask, other], 1),
            stages=[stage.followed_by(other.shape[1]) for stage in self.stages],
        )


def kept_by(
    pruned: PrunedModel | None, cache: Any, inputs: Inputs, recorder: Recorder | None = None
) -> Kept:
    """Reads what a prefill kept off the pruned model and off its cache.

    Args:
        pruned: after the prefill; None without a method.
        cache: after the prefill.
        inputs: of the prefill.
        recorder: of the prefill; without it, only positions and images are read.
    """
    if pruned is None:
        return Kept(torch.ones_like(inputs["input_ids"], dtype=torch.bool))
    assert pruned.kept_mask is not None  # set by any prefill
    images = []
    for selection in pruned.selections:
        flags = selection.placeholder
        owners = torch.split(flags.nonzero()[:, 0], selection.lengths)
        for owner, image in zip(owners, selection.images, strict=True):
            reduced = image.reduced
            merged = reduced.features if reduced.merges else None
            images.append(
                KeptImage(
                    int(owner[0]), selection.modality, reduced.rows, merged, reduced.member_counts
                )
            )
    stages: Sequence[Stage] = ()
    columns, cross_states = None, None
    if recorder is not None:
        stages = recorder.stages(cache, pruned.kept_mask.shape[1])
    if isinstance(cache, CrossPrunedCache):
        row, slot = (cache.columns >= 0).nonzero(as_tuple=True)
        column = cache.columns[row, slot]
        columns = torch.zeros(len(cache.columns), cache.total, dtype=torch.bool, device=row.device)
        columns[row, column] = True
        if recorder is not None and recorder.merges:
            states = torch.cat(recorder.cross_states, 1)
            cross_states = at_positions(states, cache.columns, cache.total)
    compact = pruned.positions == "compact"
    return Kept(pruned.kept_mask, images, compact, stages, columns, cross_states)


def row_of(values: Tensor | None, index: int) -> Tensor | None:
    """Returns one row of ``values``, if there are any."""
    return None if values is None else values[index : index + 1]


def pruned_greedy(
    model: Any,
    pruner: Pruner | None,
    inputs: Inputs,
    steps: int = STEPS,
    forced: Tensor | None = None,
    **options: Any,
) -> tuple[Run, Kept]:
    """Runs a pruned model, see `greedy` and `pruning`; returns the run and what was kept."""
    with pruning(model, pruner) as (pruned, recorder):
        run = greedy(model, inputs, steps, forced, **options)
        return run, kept_by(pruned, run.cache, inputs, recorder)


def full_length(
    model: Any,
    inputs: Inputs,
    kept: Kept,
    steps: int = STEPS,
    forced: Tensor | None = None,
    **options: Any,
) -> Run:
    """Runs the full-length model with dropped tokens masked in every layer; as `greedy`."""
    with hidden(model, kept):
        return greedy(model, inputs, steps, forced, use_cache=False, **options)


@contextmanager
def hidden(model: Any, kept: Kept) -> Iterator[None]:
    """Hides dropped tokens of a full-length model inside a ``with`` block.

    Raises:
        Inapplicable: no full-length model equals the pruned one.
    """
    if kept.moved:
        raise Inapplicable("the method moves the rows that it appends behind the image")
    with ExitStack() as stack:

        def add(module: Any, hook: Any) -> None:
            handle = module.register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)

        if kept.columns is not None:
            for layer in cross_layers(model):
                add(layer.cross_attn, HiddenColumns(kept.columns, kept.cross_states))
        elif kept.stages:
            stages = HiddenFromLayers(model, kept.stages, kept.compact)
            add(model, stages.remember)
            for index, layer in enumerate(model.get_decoder().layers):
                add(layer, stages.of_layer(index))
        else:
            add(model, HiddenPositions(kept))
        yield


class HiddenPositions:
    """A pre-hook of the whole model that masks dropped positions, in place of removing them."""

    def __init__(self, kept: Kept) -> None:
        self.kept = kept

    def __call__(self, model: Any, args: Any, call: dict[str, Any]) -> Any:
        ids, kept = call["input_ids"], self.kept
        if call.get("position_ids") is None:
            raise RuntimeError("generate passes no position_ids, so masking would move positions")
        real = real_positions(call)
        stays = extended(per_beam(kept.mask.to(ids.device), len(ids)), ids.shape[1])
        if kept.compact:
            dropped = (real & ~stays).long()
            call["position_ids"] = call["position_ids"] - dropped.cumsum(1)
        visible = real & stays
        call["attention_mask"] = visible.long()
        if any(image.features is not None for image in kept.images):
            call["mm_encoder_outputs"] = merged_outputs(model, call["mm_encoder_outputs"], kept)
        if any(image.counts is not None for image in kept.images):
            call["attention_mask"] = weighted_mask(model, ids, visible, kept)
        return args, call


def merged_outputs(model: Any, outputs: Mapping[str, Any], kept: Kept) -> dict[str, Any]:
    """Returns encoder outputs of full length with merged features at the kept rows."""
    family = family_of(model)
    merged = dict(outputs)
    for modality, output in outputs.items():
        own = [image for image in kept.images if image.modality == modality]
        features = family.features(model, output)
        if len(own) != len(features):
            raise RuntimeError(f"{len(own)} {modality}s were pruned, but {len(features)} encoded")
        full = []
        for image, stock in zip(own, features, strict=True):
            replaced = stock.clone()
            if image.features is not None:
                replaced[image.rows] = image.features.to(stock)
            full.append(replaced)
        everything = [torch.arange(len(rows), device=rows.device) for rows in full]
        merged[modality] = family.shorten(output, everything, full)
    return merged


def weighted_mask(model: Any, ids: Tensor, visible: Tensor, kept: Kept) -> Tensor:
    """Returns an additive mask that weighs keys by their member counts, [b, 1, L, L]."""
    b, length = ids.shape
    bias = torch.zeros(b, length, device=ids.device)
    for modality in {image.modality for image in kept.images}:
        counts = [image.counts for image in kept.images if image.modality == modality]
        placeholder = ids == family_of(model).token_id(model, modality)
        values = torch.cat([count for count in counts if count is not None]).to(bias)
        if len(values) != int(placeholder.sum()):
            raise RuntimeError(f"{len(values)} weights do not fit the placeholders")
        bias[placeholder] = values.log()
    return additive_mask(visible, bias, model.dtype)


class HiddenColumns:
    """A pre-hook of a cross-attention layer that masks dropped vision tokens."""

    def __init__(self, columns: Tensor, states: Tensor | None) -> None:
        """Prepares the hook; see `Kept` for ``columns`` and ``cross_states``."""
        self.columns, self.states = columns, states

    def __call__(self, layer: Any, args: Any, call: dict[str, Any]) -> Any:
        mask = call["attention_mask"]  # [b, 1, L, n]
        columns = per_beam(self.columns.to(mask.device), len(mask))
        least = torch.finfo(mask.dtype).min
        call["attention_mask"] = mask.masked_fill(~columns[:, None, None], least)
        if self.states is not None:
            own = call["cross_attention_states"]
            states = per_beam(self.states, len(mask))
            merged = torch.where(columns.unsqueeze(-1), states, own.view_as(states))
            call["cross_attention_states"] = merged.view_as(own)
        return args, call
