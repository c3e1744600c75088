"""Answers questions about images with and without pruning."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gprune.ask.prompts import prepare

if TYPE_CHECKING:
    from PIL import Image

    from gprune.costs import Saving
    from gprune.pruners import Pruner


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One prompt answered with pruning, and optionally without.

    Attributes:
        inputs: the processor's output, on the model's device.
        answer_full: the answer without pruning, or None if it was not requested.
        answer_pruned: the answer with pruning.
        pruned: the object that ``with pruner(model) as pruned`` gives.
        saving: visual tokens, multiply-adds and KV-cache bytes.
    """

    inputs: Any
    answer_full: str | None
    answer_pruned: str
    pruned: Any
    saving: Saving


def generate(model: Any, processor: Any, inputs: Any, max_new_tokens: int | None) -> str:
    """Decodes one prompt greedily and returns the answer without the prompt."""
    import torch

    options = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
    with torch.inference_mode():
        ids = model.generate(**inputs, do_sample=False, **options)
    new = ids[0, inputs["input_ids"].shape[1] :]
    return str(processor.decode(new, skip_special_tokens=True)).strip()


def answer(
    model: Any,
    processor: Any,
    pruner: Pruner,
    images: list[Image.Image],
    text: str,
    max_new_tokens: int | None = None,
    compare: bool = True,
) -> Outcome:
    """Answers one question with pruning and, if ``compare``, without.

    Args:
        model: a supported model.
        processor: its processor.
        pruner: the method, with a number as its budget.
        images: the images that the question is about.
        text: the question.
        max_new_tokens: longest answer; the model's own limit by default.
        compare: whether to answer without pruning too.
    """
    from gprune.costs import LanguageModelShape, saving

    inputs = prepare(model, processor, [(images, text)])
    full = generate(model, processor, inputs, max_new_tokens) if compare else None
    with pruner(model) as pruned:
        short = generate(model, processor, inputs, max_new_tokens)
    visual = int((inputs["input_ids"] == model.config.image_token_id).sum())
    by_layer = pruned.visual_by_layer
    assert isinstance(pruner.keep, float | int)  # commands take numbers only
    cost = saving(
        LanguageModelShape.from_config(model.config),
        visual,
        inputs["input_ids"].shape[1] - visual,
        pruner.keep,
        bytes_per_value=model.dtype.itemsize,
        kept_tokens=visual - pruned.dropped[0] if by_layer is None else by_layer[0],
    )
    return Outcome(inputs, full, short, pruned, cost)


def answer_by_methods(
    model: Any, processor: Any, pruners: Sequence[Pruner], images: list[Image.Image], text: str
) -> list[Outcome]:
    """Answers one question once without pruning and once with each of ``pruners``."""
    first = answer(model, processor, pruners[0], images, text)
    others = (
        answer(model, processor, pruner, images, text, compare=False) for pruner in pruners[1:]
    )
    return [first, *(dataclasses.replace(one, answer_full=first.answer_full) for one in others)]
