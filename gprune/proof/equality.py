"""Claims that two runs agree: pruned and masked, cached and uncached, a batch and its rows, beams.

Two runs agree if their logits differ by no more than the tolerance; the second follows the first
one's tokens, so that every step is compared. Logits within the tolerance imply the same greedy
tokens, except where two tokens are closer to each other than that.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gprune.layouts import PIXELS, family_of
from gprune.proof.identity import BEAMS
from gprune.proof.recording import pruning
from gprune.proof.reference import Kept, full_length, hidden, pruned_greedy
from gprune.proof.results import Inapplicable, Result, within
from gprune.proof.running import STEPS, Inputs, Run, difference, greedy
from gprune.proof.shortened import prefill_call, shortened_greedy, why_masking_differs
from gprune.proof.stages import Stage
from gprune.pruners import Pruner


@dataclass(frozen=True)
class Prompt:
    """A batch of prompts for one model and method, with the pruned run that claims share.

    Attributes:
        model: the model.
        pruner: the method; None leaves the model alone.
        inputs: of the batch.
    """

    model: Any
    pruner: Pruner | None
    inputs: Inputs

    @cached_property
    def pruned(self) -> tuple[Run, Kept]:
        """The pruned run, with a cache, and what was kept."""
        return pruned_greedy(self.model, self.pruner, self.inputs)

    @cached_property
    def lengths(self) -> list[int]:
        """Number of positions of each row, without padding."""
        lengths: list[int] = self.inputs["attention_mask"].sum(1).tolist()
        return lengths

    @property
    def placeholders(self) -> Tensor:
        """True at visual placeholders, bool [b, L]."""
        family, ids = family_of(self.model), self.inputs["input_ids"]
        flags = [ids == family.token_id(self.model, name) for name in family.modalities]
        return torch.stack(flags).any(0)


def why_no_reference(pruner: Pruner | None) -> str | None:
    """Returns why no full-length model equals one pruned by a method; None if one does."""
    if pruner is not None and pruner.scope == "pixels":
        return f"{pruner.name} encodes a smaller image, so there are no dropped tokens to mask"
    return None


def masked_reference(prompt: Prompt, tolerance: float) -> Result:
    """Checks that a pruned run equals the full-length model with the dropped tokens masked.

    Raises:
        Inapplicable: there is no such model, or the comparison could not tell right from wrong.
    """
    reason = why_no_reference(prompt.pruner)
    if reason is not None:
        raise Inapplicable(reason)
    model, inputs = prompt.model, prompt.inputs
    run, kept = prompt.pruned
    dropped = int((prompt.placeholders & ~kept.mask).sum())
    if kept.columns is None and not dropped:
        raise Inapplicable("nothing was dropped, so there is nothing to mask")
    length = inputs["input_ids"].shape[1] + STEPS
    why = why_masking_differs(model, length)
    if why is not None:
        if len(inputs["input_ids"]) > 1:
            raise Inapplicable(f"{why}, and rows of a batch cannot be shortened by hand")
        expected = shortened_greedy(model, inputs, kept.mask, STEPS, run.tokens)
        detail = f"the pruned model equals one given the kept positions alone ({why})"
    else:
        expected = full_length(model, inputs, kept, STEPS, run.tokens)
        detail = "the pruned model equals the full-length one with dropped tokens masked everywhere"
    control = difference(shifted_run(prompt, kept).logits, run.logits[:, :1])
    if control <= tolerance:
        raise Inapplicable(
            f"a mask shifted by one token changes the logits by {control:.1e} only, which the "
            f"tolerance of {tolerance:.1e} hides: the comparison proves nothing"
        )
    measured = difference(run.logits, expected.logits)
    result = within("masked reference", measured, tolerance, detail)
    if not result.passed:
        return result
    control_detail = f"{detail}; a mask shifted by one token would differ by {control:.1e}"
    return replace(result, detail=control_detail)


def shifted_run(prompt: Prompt, kept: Kept) -> Run:
    """Runs one step of the full-length model with the wrong tokens masked, those one further on."""
    visual = prompt.placeholders

    def shift(mask: Tensor) -> Tensor:
        moved = mask.clone()
        for row, own in enumerate(visual):
            moved[row, own] = mask[row, own].roll(1)
        return moved

    columns = None if kept.columns is None else kept.columns.roll(1, 1)
    stages = [Stage(stage.first, shift(stage.seen)) for stage in kept.stages]
    wrong = Kept(shift(kept.mask), (), kept.compact, stages, columns)
    return full_length(prompt.model, prompt.inputs, wrong, 1)


def uncached(prompt: Prompt, tolerance: float) -> Result:
    """Checks that a pruned model decodes with a cache as it does without one."""
    run, _ = prompt.pruned
    other, _ = pruned_greedy(
        prompt.model, prompt.pruner, prompt.inputs, STEPS, run.tokens, use_cache=False
    )
    measured = difference(run.logits, other.logits)
    return within("uncached", measured, tolerance, "decoding with a cache equals a run without one")


def batch_rows(prompt: Prompt, rows: Sequence[Inputs], tolerance: float) -> Result:
    """Checks that each row of an uneven batch is pruned and decoded as if it were alone.

    Args:
        prompt: the batch.
        rows: its prompts, one by one.
        tolerance: largest difference of logits that counts as equal.

    Raises:
        Inapplicable: the encoder's features depend on the batch, and so the method chose others.
    """
    run, kept = prompt.pruned
    largest, moved = 0.0, 0
    for index, inputs in enumerate(rows):
        own = run.row(index)
        alone, kept_alone = pruned_greedy(prompt.model, prompt.pruner, inputs, STEPS, own.tokens)
        in_batch = kept.row(index, inputs["input_ids"].shape[1])
        if not same_choice(kept_alone, in_batch):
            moved += 1
            alone = instead_of_alone(prompt, inputs, in_batch, own)
        largest = max(largest, difference(own.logits, alone.logits))
    detail = f"{len(rows)} rows of one uneven batch equal the same prompts alone"
    if moved:
        detail += (
            f"; in {moved} last digits that depend on the batch moved the choice, so these were "
            "compared with the full-length model masked alike"
        )
    return within("batch", largest, tolerance, detail)


def same_choice(one: Kept, other: Kept) -> bool:
    """Returns whether two prefills kept the same positions."""
    if not torch.equal(one.mask, other.mask):
        return False
    if one.columns is not None and other.columns is not None:
        # A longer batch pads the images of a row.
        width = min(one.columns.shape[1], other.columns.shape[1])
        return torch.equal(one.columns[:, :width], other.columns[:, :width])
    return all(map(torch.equal, seen_by_stage(one, other), seen_by_stage(other, one)))


def seen_by_stage(kept: Kept, other: Kept) -> list[Tensor]:
    """Returns what each layer sees where a stage of either prefill begins, bool [b, L]."""
    firsts = sorted({stage.first for stage in (*kept.stages, *other.stages)})
    seen = []
    for first in firsts:
        own = [stage.seen for stage in kept.stages if stage.first <= first]
        seen.append(own[-1] if own else torch.ones_like(kept.mask))
    return seen


def instead_of_alone(prompt: Prompt, inputs: Inputs, kept: Kept, own: Run) -> Run:
    """Returns the reference for a row whose own pruned run chose other tokens than the batch.

    Raises:
        RuntimeError: the encoder gives the same features in the batch, so that the method's choice
            depends on the batch.
        Inapplicable: there is no full-length model to compare with.
    """
    pruner = prompt.pruner
    assert pruner is not None  # an unpruned run keeps everything
    reads_features = pruner.scope == "group" and not (pruner.signals or pruner.optional_signals)
    if reads_features and features_agree(prompt.model, prompt.inputs, inputs):
        raise RuntimeError(f"{pruner.name} keeps other tokens of an image in a batch than alone")
    why = why_no_reference(pruner)
    why = why or why_masking_differs(prompt.model, inputs["input_ids"].shape[1] + STEPS)
    if why is not None:
        raise Inapplicable(f"last digits depend on the batch and moved the choice, and {why}")
    return full_length(prompt.model, inputs, kept, STEPS, own.tokens)


@torch.no_grad()
def features_agree(model: Any, batch: Inputs, inputs: Inputs) -> bool:
    """Returns whether the encoder gives each image of ``inputs`` the same bits in the batch."""
    together, alone = image_features(model, batch), image_features(model, inputs)
    return all(any(torch.equal(own, other) for other in together) for own in alone)


def image_features(model: Any, inputs: Inputs) -> list[Tensor]:
    """Returns the features of each image (or tile) of an unpruned model's prefill."""
    family = family_of(model)
    if family.cross_attention:
        call = prefill_call(model, inputs)
        return list(call["cross_attention_states"])
    return [
        features
        for modality in family.modalities
        if PIXELS[modality] in inputs
        for features in family.features(model, family.encode(model, modality, dict(inputs)))
    ]


def searched(model: Any, inputs: Inputs, **options: Any) -> tuple[Tensor, Tensor]:
    """Returns the tokens that beam search finds, and the scores of these sequences."""
    output = model.generate(
        **inputs,
        **BEAMS,
        **options,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    return output.sequences[:, inputs["input_ids"].shape[1] :], output.sequences_scores


@torch.no_grad()
def beams_are_right(model: Any, rows: Sequence[Inputs], batch: Inputs, tolerance: float) -> bool:
    """Returns whether an unpruned model's beams have the scores that calls without beams give.

    For some families, transformers mixes up the images of a row when it repeats them for beams.

    Args:
        model: the model.
        rows: prompts of one row each.
        batch: the same prompts in one batch.
        tolerance: largest difference of logits that counts as equal.
    """
    try:
        tokens, scores = searched(model, batch)
    except Exception:
        return False
    count = len(tokens) // len(rows)
    for index, sequence in enumerate(tokens):
        run = greedy(model, rows[index // count], STEPS, sequence[None])
        logs = run.logits[0].log_softmax(-1).gather(1, sequence[:, None])
        # A logarithm of a softmax moves by twice as much as its logits.
        if difference(logs.mean(), scores[index]) > 2 * tolerance:
            return False
    return True


@torch.no_grad()
def beam_search(prompt: Prompt, tolerance: float) -> Result:
    """Checks that beams of a pruned model equal those of the masked full-length model.

    Where no such model exists, they are compared with the pruned model's own without a cache.
    Sequences whose scores are closer than the tolerance may change places.
    """
    model, inputs = prompt.model, prompt.inputs
    with pruning(model, prompt.pruner):
        found, scores = searched(model, inputs)
    kept = prompt.pruned[1]
    plain = not kept.moved and all(
        image.features is None and image.counts is None for image in kept.images
    )
    length = inputs["input_ids"].shape[1] + STEPS
    context: AbstractContextManager[Any]
    if plain and why_no_reference(prompt.pruner) is None and not why_masking_differs(model, length):
        detail, context = "the masked full-length model", hidden(model, kept)
    else:
        detail, context = "the same model without a cache", pruning(model, prompt.pruner)
    with context:
        expected, expected_scores = searched(model, inputs, use_cache=False)
    apart = difference(scores, expected_scores)
    result = within("beams", apart, tolerance, f"beams equal those of {detail}")
    if torch.equal(found, expected) or not result.passed:
        return result
    return replace(result, detail=f"{result.detail}, but for ties within the tolerance")
